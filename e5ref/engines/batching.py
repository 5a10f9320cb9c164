"""Which texts are computed together, and where each stands in the arrays of its batch."""

import bisect
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from e5ref.operations import Ids


class Batch(NamedTuple):
    """Which texts stand in the rows of a batch: row after row, and in a row one behind another."""

    texts: NDArray[np.int64]  # [n], their numbers
    rows: NDArray[np.int64]  # [n], the row of each, ascending
    shape: tuple[int, int]  # rows and their length, (B, T)

    @property
    def numbers(self) -> NDArray[np.int64]:
        """Which text of its row each one is, from 1 on. [n]."""
        return np.arange(1, len(self.rows) + 1) - np.searchsorted(self.rows, self.rows)

    def arrays(self, ids: Ids, offsets: Ids, pad_id: int = 0) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Lay the texts' ids into rows, and fill the rest with `pad_id`. -> input_ids and attention_mask, [B, T] each.

        `ids` are of all texts, [tokens]; text i has ids[offsets[i] : offsets[i + 1]].
        """
        lengths = offsets[self.texts + 1] - offsets[self.texts]  # [n]
        before = np.cumsum(lengths) - lengths  # [n], tokens of the batch before each text
        columns = before - before[np.searchsorted(self.rows, self.rows)]
        within = np.arange(lengths.sum()) - np.repeat(before, lengths)  # [tokens]
        places = np.repeat(self.rows * self.shape[1] + columns, lengths) + within
        input_ids, attention_mask = np.full(self.shape, pad_id, np.int32), np.zeros(self.shape, np.int32)
        input_ids.ravel()[places] = ids[np.repeat(offsets[self.texts], lengths) + within]
        attention_mask.ravel()[places] = np.repeat(self.numbers, lengths)
        return input_ids, attention_mask


def token_batches(lengths: Ids, *, tokens: int, max_texts: int | None = None) -> Iterator[NDArray[np.int64]]:
    """Split texts, of `lengths` tokens each, into batches of about equal work, the longest texts first.

    A batch with `tokens` tokens is full; its last text may bring more. It has `max_texts` at most; None is no bound.

    Yields:
        The numbers of a batch's texts; each is in one batch.
    """
    order = np.argsort(-lengths, kind="stable")
    reached = np.cumsum(lengths[order])
    start = 0
    while start < len(order):
        before = reached[start - 1] if start else 0
        stop = min(int(np.searchsorted(reached, before + tokens)) + 1, start + (max_texts or len(order)))
        yield order[start:stop]
        start = stop


def pack(lengths: Ids, shape: tuple[int, int], most: int) -> Batch:
    """Fill rows with texts, each with `most` at most: again and again with the longest that still fits.

    `lengths`, [texts], are the texts' tokens, ascending; none exceeds the length in `shape`. The batch has the texts
    that found room; the longest is always among them.
    """
    present, first = (array.tolist() for array in np.unique(lengths, return_index=True))
    stop = dict(zip(present, [*first[1:], len(lengths)], strict=True))  # length -> behind the last one that is left
    left = dict(zip(present, np.diff([*first, len(lengths)]).tolist(), strict=True))  # length -> how many are left
    texts, rows, row = [], [], 0
    while present and row < shape[0]:
        room, free, alike, at = shape[1], most, shape[0] - row, len(present)
        parts: list[tuple[int, int]] = []  # (length, how many of it) in the next row
        while free and (at := bisect.bisect_right(present, room, hi=at)):
            at -= 1
            length = present[at]
            count = min(left[length], room // length, free)
            alike = min(alike, left[length] // count)  # rows that can be filled like this one
            room, free = room - count * length, free - count
            parts.append((length, count))
        columns = []
        for length, count in parts:
            stop[length] -= alike * count
            left[length] -= alike * count
            columns.append(np.arange(stop[length], stop[length] + alike * count).reshape(alike, count))
            if not left[length]:
                present.remove(length)
        block = np.hstack(columns)  # [rows that are alike, texts of each]
        texts.append(block.ravel())
        rows.append(np.repeat(np.arange(row, row + alike), block.shape[1]))
        row += alike
    return Batch(np.concatenate(texts), np.concatenate(rows), shape)


def pad_ids(
    ids: Sequence[Sequence[int] | NDArray[np.integer]], pad_id: int, shape: tuple[int, int] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lay the token ids of texts into one array, padded on the right by `pad_id`.

    -> input_ids [B, T] and attention_mask [B, T] (1 for a real token). T is the longest length, unless `shape` asks for
    longer rows, or for more rows than texts.
    """
    lengths = [len(text) for text in ids]
    texts = np.arange(len(ids))
    batch = Batch(texts, texts, shape or (len(ids), max(lengths, default=0)))
    flat = np.concatenate([np.empty(0, np.int64), *ids]).astype(np.int64)  # [tokens]
    input_ids, attention_mask = batch.arrays(flat, np.cumsum([0, *lengths]), pad_id)
    return input_ids.astype(np.int64), attention_mask.astype(np.int64)
