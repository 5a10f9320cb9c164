"""The exercises of docs/learn/3-attention.md."""

import math

import numpy as np

from e5ref.course import Verdict, compared
from e5ref.operations import Array

RANDOM = np.random.default_rng(3)
SQUARE = RANDOM.normal(size=(3, 3))
WIDE = RANDOM.normal(size=(2, 4))
TOKENS = tuple(RANDOM.normal(size=(3, 5, 8)))  # query, key and value of five tokens


def softmax(scores: Array, axis: int = -1) -> Array:
    """Softmax along an axis."""
    exponentials = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return exponentials / exponentials.sum(axis=axis, keepdims=True)


def plain_softmax(scores: Array) -> Array:
    """Softmax that overflows: it does not subtract the maximum."""
    exponentials = np.exp(scores)
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def whole_softmax(scores: Array) -> Array:
    """Softmax over all scores together."""
    exponentials = np.exp(scores - scores.max())
    return exponentials / exponentials.sum()


def check_softmax(answer: object) -> str | None:
    """Exercise 3.1: softmax of each row, [queries, keys] -> [queries, keys]."""
    small = compared(
        answer,
        softmax,
        [(SQUARE,)],
        {
            "The sums of the rows are applied to the columns: sum with keepdims=True.": lambda scores: (
                np.exp(scores) / np.exp(scores).sum(axis=-1)
            ),
            "The maxima of the rows are taken off the columns: find them with keepdims=True.": lambda scores: softmax(
                scores - scores.max(axis=-1)
            ),
            "The columns sum to 1: each query's weights stand in a row, so sum over axis -1.": lambda scores: softmax(
                scores, 0
            ),
            "All weights together sum to 1: each row on its own should.": whole_softmax,
            "The weights do not sum to 1: divide each row by its sum.": np.exp,
            "The largest weight of each row is 1: divide each row by its sum, too.": lambda s: np.exp(
                s - s.max(axis=-1, keepdims=True)
            ),
            "The scores are divided by their sum, without exp.": lambda scores: (
                scores / scores.sum(axis=-1, keepdims=True)
            ),
            "This is the logarithm of the softmax.": lambda scores: np.log(softmax(scores)),
        },
    )
    if small is not None:
        return small
    with np.errstate(all="ignore"):
        return compared(
            answer,
            softmax,
            [(WIDE,), (WIDE * 1000,)],
            {
                "exp overflows for scores of 1000: subtract each row's maximum first.": plain_softmax,
                "The maximum of all scores is subtracted, and a row far below it becomes 0 / 0: subtract each row's "
                "own.": lambda scores: plain_softmax(scores - scores.max()),
            },
        )


def attend(query: Array, key: Array, value: Array, scale: float | None = None, axis: int = -1) -> Array:
    """Attention of one head, [T, H] three times -> [T, H]; by default the scale is 1 / √H."""
    scale = 1 / math.sqrt(query.shape[1]) if scale is None else scale
    return softmax(query @ key.T * scale, axis) @ value


def causal(query: Array, key: Array, value: Array) -> Array:
    """Attention of one head in which a token sees none of those after it."""
    scores = query @ key.T / math.sqrt(query.shape[1])
    return softmax(np.where(np.tri(len(scores)) == 1, scores, -np.inf)) @ value


def check_attend(answer: object) -> str | None:
    """Exercise 3.2: attention of one head."""
    tokens, size = TOKENS[0].shape
    root = math.sqrt(size)
    return compared(
        answer,
        attend,
        [TOKENS],
        {
            "The scale is left out: divide the scores by √H before the softmax.": lambda q, k, v: attend(q, k, v, 1),
            "The scores are divided by H: the scale is its root, √H.": lambda q, k, v: attend(q, k, v, 1 / size),
            "The scale is √T: take the root of a head's size H, not of the number of tokens.": lambda q, k, v: attend(
                q, k, v, 1 / math.sqrt(tokens)
            ),
            "The scores are divided by 2, which is √H for vectors of 4 numbers alone.": lambda q, k, v: attend(
                q, k, v, 1 / 2
            ),
            "The scores are multiplied by √H: divide by it.": lambda q, k, v: attend(q, k, v, root),
            "The scale comes after the softmax: divide the scores before it.": lambda q, k, v: (
                attend(q, k, v, 1) / root
            ),
            "The softmax runs over the queries: each query's weights, a row, should sum to 1.": lambda q, k, v: attend(
                q, k, v, axis=0
            ),
            "There is no softmax: the scores themselves are the weights.": lambda q, k, v: q @ k.T / root @ v,
            "These are the weights: multiply them by the values.": lambda q, k, v: softmax(q @ k.T / root),
            "The weights are applied to the keys: apply them to the values.": lambda q, k, v: attend(q, k, k),
            "Query and key are exchanged: rows should be queries, columns keys.": lambda q, k, v: attend(k, q, v),
            "Each token sees only those before it: in BERT it sees all of its text.": causal,
        },
    )


def split(x: Array, heads: int) -> Array:
    """[T, D] -> [N, T, H]."""
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)


def multi_head(query: Array, key: Array, value: Array, heads: int) -> Array:
    """Attention of all heads, side by side: [T, D] three times -> [T, D]."""
    contexts = [attend(*each) for each in zip(*(split(x, heads) for x in (query, key, value)), strict=True)]
    return np.concatenate(contexts, axis=1)


def reshaped(query: Array, key: Array, value: Array, heads: int) -> Array:
    """Attention whose heads are made by one reshape, which gives a head numbers of other tokens."""
    parts = (x.reshape(heads, len(x), -1) for x in (query, key, value))
    return np.stack([attend(*each) for each in zip(*parts, strict=True)]).transpose(1, 0, 2).reshape(query.shape)


def merged_by_reshape(query: Array, key: Array, value: Array, heads: int) -> Array:
    """Attention whose heads are right, but are put together by one reshape."""
    parts = (split(x, heads) for x in (query, key, value))
    return np.stack([attend(*each) for each in zip(*parts, strict=True)]).reshape(query.shape)


def inside_out(query: Array, key: Array, value: Array, heads: int) -> Array:
    """Attention in which head n takes every N-th number, from n on."""
    contexts = [attend(query[:, n::heads], key[:, n::heads], value[:, n::heads]) for n in range(heads)]
    return np.stack(contexts, axis=2).reshape(query.shape)


def overlapping(query: Array, key: Array, value: Array, heads: int) -> Array:
    """Attention whose head n begins at number n instead of n · H."""
    size = query.shape[1] // heads
    parts = [slice(n, n + size) for n in range(heads)]
    return np.concatenate([attend(query[:, part], key[:, part], value[:, part]) for part in parts], axis=1)


def scaled_by_hidden_size(query: Array, key: Array, value: Array, heads: int) -> Array:
    """Attention of all heads, scaled as if there were one."""
    return multi_head(query / math.sqrt(heads), key, value, heads)


def check_multi_head(answer: object) -> str | None:
    """Exercise 3.3: attention of several heads."""
    return compared(
        answer,
        multi_head,
        [(*TOKENS, 2), (*TOKENS, 4)],
        {
            "This is one head of size D: split query, key and value into heads first, of D / N numbers each. (That "
            "is 64 in e5ref-nano, but not here.)": lambda q, k, v, _: attend(q, k, v),
            "The scale is √D: take the root of a head's size, H = D / N.": scaled_by_hidden_size,
            "The scale is left out: divide the scores by √H.": lambda q, k, v, heads: multi_head(
                q * math.sqrt(q.shape[1] // heads), k, v, heads
            ),
            "One reshape to [N, T, H] mixes tokens: reshape to [T, N, H], then transpose.": reshaped,
            "The heads are split well, but put together wrongly: transpose to [T, N, H] before the reshape.": (
                merged_by_reshape
            ),
            "Head n takes every N-th number: it should take H neighbours, from n · H on.": inside_out,
            "Head n begins at number n: it should begin at n · H.": overlapping,
            "Each head has N numbers: there should be N heads, of D / N numbers each.": lambda q, k, v, heads: (
                multi_head(q, k, v, q.shape[1] // heads)
            ),
            "The heads are below each other: put them side by side, [T, D].": lambda q, k, v, heads: np.concatenate(
                np.split(multi_head(q, k, v, heads), heads, axis=1)
            ),
            "The heads are not put together: make [T, D] of [N, T, H].": lambda q, k, v, heads: split(
                multi_head(q, k, v, heads), heads
            ),
            "The heads are added up: put them side by side.": lambda q, k, v, heads: split(
                multi_head(q, k, v, heads), heads
            ).sum(axis=0),
            "The heads are averaged: put them side by side.": lambda q, k, v, heads: split(
                multi_head(q, k, v, heads), heads
            ).mean(axis=0),
        },
    )


EXERCISES: dict[str, Verdict] = {"3.1": check_softmax, "3.2": check_attend, "3.3": check_multi_head}
