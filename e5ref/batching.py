"""Texts of different lengths → batches; padded batches ↔ rows of real tokens."""

import bisect
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from e5ref.config import BertConfig
from e5ref.numpy_ops import BLOCK_ELEMENTS, token_rows

Ids = NDArray[np.integer]
Floats = NDArray[np.floating]
NumberedIds = tuple[int, Sequence[int] | NDArray[np.integer]]  # a text: its row among others, and its token ids

# The part of a batch that real tokens must fill for `PaddedShapes` to make it before all texts have come.
FULL = 0.85


def token_batches(lengths: Sequence[int], *, tokens: int, max_texts: int | None = None) -> Iterator[list[int]]:
    """Split texts into batches of about equal work, the longest texts first.

    Args:
        lengths: tokens of each text.
        tokens: how many make a batch full; its last text may bring more.
        max_texts: the most texts of one batch; None for no bound.

    Yields:
        Indices into `lengths`, each once.
    """
    batch: list[int] = []
    held = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        batch.append(index)
        held += lengths[index]
        if held >= tokens or len(batch) == max_texts:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


@dataclass(frozen=True)
class PaddedShapes:
    """The fixed set of shapes (rows, length) that the JAX twin compiles a program for, and batches of these shapes.

    Lengths stand eight to an octave, so that a row is padded by an eighth at most. Of each length there are batches of
    1 row, of 8, of 64, …, and one that fills the token budget.

    Attributes:
        max_length: the most tokens of a text.
        max_tokens: the most tokens of a batch on one device, padding counted (one row may have more).
        devices: among how many devices the rows are divided; each gets as many.
    """

    max_length: int
    max_tokens: int
    devices: int = 1

    @cached_property
    def lengths(self) -> list[int]:
        """The lengths to which texts are padded, ascending; the last is `max_length`."""
        lengths = [min(8, self.max_length)]
        while lengths[-1] < self.max_length:
            step = 1 << lengths[-1].bit_length() >> 4  # an eighth of the power of two below
            lengths.append(min(lengths[-1] + step, self.max_length))
        return lengths

    def rows(self, length: int) -> list[int]:
        """The numbers of rows that there are for a length, ascending."""
        full = max(1, self.max_tokens // length)
        multiple = 128 // math.gcd(length, 128)  # of rows, for rows × length to be a multiple of `jax_kernels`' tiles
        if full >= 8 * multiple:  # an eighth of the rows is lost at most
            full -= full % multiple
        rows = [8**power for power in range(full.bit_length()) if 2 * 8**power <= full]
        return [count * self.devices for count in (*rows, full)]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield every shape."""
        for length in self.lengths:
            for rows in self.rows(length):
                yield rows, length

    def fit(self, texts: int, length: int) -> tuple[int, int]:
        """Return the smallest shape for some texts, the longest of which has `length` tokens."""
        padded = self.lengths[bisect.bisect_left(self.lengths, length)]
        rows = self.rows(padded)
        return rows[bisect.bisect_left(rows, texts)], padded

    def batches(
        self, pieces: Iterable[Sequence[NumberedIds]], *, total: int, max_texts: int | None = None
    ) -> Iterator[list[NumberedIds]]:
        """Split texts into batches that each `fit` a shape, beginning before all of them have come.

        Until then a batch is made only where it fills `FULL` of the largest shape of its length (so none is with a
        small `max_texts`); other texts wait for more like them. What has waited to the end is taken the longest first.

        Args:
            pieces: the texts, some at a time.
            total: how many there are in all pieces.
            max_texts: the most texts of one batch; None for no bound.

        Yields:
            The texts of a batch, each in one of them.
        """

        def negative_length(text: NumberedIds) -> int:
            return -len(text[1])

        waiting: list[NumberedIds] = []
        for piece in pieces:
            total -= len(piece)
            waiting = sorted([*waiting, *piece], key=negative_length)
            first = 0  # those before it go on waiting
            while total and first < len(waiting):
                _, length = self.fit(1, len(waiting[first][1]))
                rows = self.rows(length)[-1]
                batch = waiting[first : first + min(rows, max_texts or rows)]
                if len(batch) >= FULL * rows and sum(len(ids) for _, ids in batch) >= FULL * rows * length:
                    yield batch
                    del waiting[first : first + len(batch)]
                else:  # on to the next shorter shape
                    shorter = max((other for other in self.lengths if other < length), default=0)
                    first = bisect.bisect_left(waiting, -shorter, key=negative_length)
        while waiting:
            _, length = self.fit(1, len(waiting[0][1]))
            # As many as the largest batch that they fill by half; the rest of its rows is padding.
            fits = [rows for rows in self.rows(length) if rows < 2 * len(waiting)] or self.rows(length)[:1]
            count = min(fits[-1], max_texts or len(waiting))
            yield waiting[:count]
            waiting = waiting[count:]


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
    lengths = np.array([len(text) for text in ids], dtype=np.int64)  # [B]
    rows, length = shape or (len(ids), max(lengths, default=0))
    lengths = np.pad(lengths, (0, rows - len(ids)))
    is_token = np.arange(length) < lengths[:, None]  # [B, T]
    input_ids = np.full(is_token.shape, pad_id, np.int64)
    if len(ids):
        input_ids[is_token] = np.concatenate(ids)
    return input_ids, is_token.astype(np.int64)


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
    for length, run in itertools.groupby(attention_mask.sum(axis=1).tolist()):
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
    padded[attention_mask == 1] = rows[token_rows(attention_mask)]
    return padded


def pad_squares(squares: Sequence[tuple[AttentionBlock, Floats]], attention_mask: Ids, heads: int) -> Floats:
    """Put the [n, N, t, t] of each block into their places in the padded batch, zeros elsewhere. -> [B, N, T, T]."""
    texts, length = attention_mask.shape
    padded = np.zeros((texts, heads, length, length), squares[0][1].dtype if squares else np.float32)
    for block, square in squares:
        for index, of_text in enumerate(square, block.first):
            mask = attention_mask[index] == 1
            padded[index, block.heads][:, np.outer(mask, mask)] = of_text.reshape(len(of_text), -1)
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
    if not np.isin(attention_mask, (0, 1)).all():
        raise ValueError("attention_mask must hold 1 for a real token and 0 for padding, and nothing else")
    empty = np.flatnonzero(attention_mask.sum(axis=1) == 0)
    if len(empty):
        raise ValueError(f"attention_mask leaves text {empty[0]} without a single real token")
    if input_ids.shape[1] > config.max_tokens:
        raise ValueError(
            f"input_ids has {input_ids.shape[1]} tokens a text, but the model {config.max_tokens} positions"
        )
    outside = (input_ids < 0) | (input_ids >= config.vocab_size)
    if outside.any():
        text, token = np.argwhere(outside)[0]
        raise ValueError(
            f"input_ids[{text}, {token}] is {input_ids[text, token]}, outside the vocabulary of {config.vocab_size}; "
            "were the ids made by another model's tokenizer?"
        )
