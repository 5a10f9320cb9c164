"""Texts → the rows of a batch; a batch ↔ rows of real tokens.

A batch is two arrays [B, T]. `input_ids` holds token ids. `attention_mask` says whose they are: 0 is padding, and k > 0
is the k-th text of that row. A mask of 0 and 1, as in `transformers`, is the case of one text a row.
"""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from e5ref.config import BertConfig
from e5ref.numpy_ops import BLOCK_ELEMENTS, token_rows
from e5ref.rows import text_lengths, text_starts

Ids = NDArray[np.integer]
Floats = NDArray[np.floating]


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
        """Lay the texts' ids into rows.

        Args:
            ids: of all texts, [tokens]; text i has ids[offsets[i] : offsets[i + 1]].
            offsets: [all texts + 1].
            pad_id: fills the rest of a row.

        Returns:
            input_ids [B, T] and attention_mask [B, T].
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
    """Split texts into batches of about equal work, the longest texts first.

    Args:
        lengths: tokens of each text, [texts].
        tokens: how many make a batch full; its last text may bring more.
        max_texts: the most texts of one batch; None for no bound.

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
    """Fill rows with texts: into each row again and again the longest that still fits.

    Args:
        lengths: tokens of each text, ascending, [texts].
        shape: rows and their length, which no text exceeds.
        most: the most texts of a row.

    Returns:
        The texts that found room; the longest is always among them.
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
    """Lay token ids of different lengths into one array, padded on the right.

    Args:
        ids: the token ids of each text.
        pad_id: the id that fills short rows.
        shape: of the array, where it is to have more rows than there are texts, or longer ones.

    Returns:
        input_ids [B, T] and attention_mask [B, T] (1 for a real token); without `shape`, T is the longest length.
    """
    lengths = [len(text) for text in ids]
    texts = np.arange(len(ids))
    batch = Batch(texts, texts, shape or (len(ids), max(lengths, default=0)))
    flat = np.concatenate([np.empty(0, np.int64), *ids]).astype(np.int64)  # [tokens]
    input_ids, attention_mask = batch.arrays(flat, np.cumsum([0, *lengths]), pad_id)
    return input_ids.astype(np.int64), attention_mask.astype(np.int64)


class AttentionBlock(NamedTuple):
    """Some texts of one length, one below another among the tokens of a batch, and some of the heads."""

    first: int  # the text that the block starts with
    texts: int  # n, how many there are
    length: int  # T, tokens of each
    tokens: slice  # which of the tokens of all texts are theirs
    heads: slice


def attention_blocks(attention_mask: Ids, heads: int) -> Iterator[AttentionBlock]:
    """Split attention into blocks whose scores stay in the cache, in the order of the texts; [B, T] is the mask.

    Texts of one length that follow each other are taken together, and the heads of a long text in parts.
    """
    first = start = 0
    lengths = text_lengths(attention_mask)  # [B, texts of a row]
    for length, run in itertools.groupby(lengths[lengths > 0].tolist()):
        most_texts = max(1, BLOCK_ELEMENTS // (heads * length**2))
        parts = min(heads, -(-heads * length**2 // BLOCK_ELEMENTS))
        most_heads = -(-heads // parts)
        rest = len(list(run))
        while rest:
            texts = min(rest, most_texts)
            tokens = slice(start, start + texts * length)
            for head in range(0, heads, most_heads):
                yield AttentionBlock(first, texts, length, tokens, slice(head, head + most_heads))
            first, start, rest = first + texts, tokens.stop, rest - texts


def pad_rows(rows: Floats, attention_mask: Ids) -> Floats:
    """Put rows back into their places in the padded batch, zeros elsewhere. [R, n], [B, T] -> [B, T, n]."""
    padded = np.zeros((*attention_mask.shape, rows.shape[-1]), rows.dtype)
    padded[attention_mask > 0] = rows[token_rows(attention_mask)]
    return padded


def pad_squares(squares: Sequence[tuple[AttentionBlock, Floats]], attention_mask: Ids, heads: int) -> Floats:
    """Put the [n, N, t, t] of each block into their places in the padded batch, zeros elsewhere. -> [B, N, T, T]."""
    rows, length = attention_mask.shape
    padded = np.zeros((rows, heads, length, length), squares[0][1].dtype if squares else np.float32)
    places = np.argwhere(text_lengths(attention_mask))  # [texts, 2], the row of each, and which of its texts it is
    for block, square in squares:
        for (row, number), of_text in zip(places[block.first :], square, strict=False):
            mask = attention_mask[row] == number + 1
            padded[row, block.heads][:, np.outer(mask, mask)] = of_text.reshape(len(of_text), -1)
    return padded


def check_batch(input_ids: Ids, attention_mask: Ids, config: BertConfig) -> None:
    """Check what goes into the forward pass.

    Raises:
        ValueError: says which argument is wrong, and where. Both must be NumPy arrays.
    """
    if input_ids.dtype.kind not in "iu" or attention_mask.dtype.kind not in "biu":
        raise ValueError(
            f"input_ids and attention_mask must be whole numbers, but are {input_ids.dtype} and {attention_mask.dtype}"
        )
    if input_ids.ndim != 2 or input_ids.shape != attention_mask.shape:
        raise ValueError(
            f"input_ids and attention_mask must both be [B, T], but have shapes {input_ids.shape} and "
            f"{attention_mask.shape}"
        )
    empty = np.flatnonzero(~(attention_mask > 0).any(axis=1))
    if len(empty):
        raise ValueError(f"attention_mask leaves row {empty[0]} without a single real token")
    reached = np.maximum.accumulate(attention_mask, axis=1)  # [B, T]
    skipped = np.diff(reached, axis=1, prepend=0) > 1
    if (attention_mask < 0).any() or ((attention_mask > 0) & (attention_mask < reached)).any() or skipped.any():
        raise ValueError("attention_mask must hold 0 for padding and 1, 2, … for the first, second, … text of a row")
    positions = np.where(attention_mask > 0, np.arange(input_ids.shape[1]) - text_starts(attention_mask), 0)
    longest = positions.max(initial=-1) + 1
    if longest > config.max_tokens:
        raise ValueError(f"input_ids has a text of {longest} tokens, but the model {config.max_tokens} positions")
    outside = (input_ids < 0) | (input_ids >= config.vocab_size)
    if outside.any():
        row, token = np.argwhere(outside)[0]
        raise ValueError(
            f"input_ids[{row}, {token}] is {input_ids[row, token]}, outside the vocabulary of {config.vocab_size}; "
            "were the ids made by another model's tokenizer?"
        )
