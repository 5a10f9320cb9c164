"""Attention in blocks of texts and heads whose scores stay in the cache."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from e5ref.operations import Array, Ids
from e5ref.operations.numpy_ops import BLOCK_ELEMENTS
from e5ref.operations.rows import text_lengths


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
    lengths = text_lengths(attention_mask)  # [B, K]
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


def pad_squares(squares: Sequence[tuple[AttentionBlock, Array]], attention_mask: Ids, heads: int) -> Array:
    """Put the [n, N, t, t] of each block into their places in the padded batch, zeros elsewhere. -> [B, N, T, T]."""
    rows, length = attention_mask.shape
    padded = np.zeros((rows, heads, length, length), squares[0][1].dtype if squares else np.float32)
    places = np.argwhere(text_lengths(attention_mask))  # [texts, 2], the row of each, and which of its texts it is
    for block, square in squares:
        for (row, number), of_text in zip(places[block.first :], square, strict=False):
            mask = attention_mask[row] == number + 1
            padded[row, block.heads][:, np.outer(mask, mask)] = of_text.reshape(len(of_text), -1)
    return padded
