"""Every mistake that the exercises of chapter 3 know is named; the right answers are right."""

import math

import numpy as np
import pytest

from e5ref.course import check


def softmax(scores, axis=-1):
    exponentials = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return exponentials / exponentials.sum(axis=axis, keepdims=True)


def overflowing(scores):
    return np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)


def changing(scores):
    scores -= scores.max(axis=-1, keepdims=True)
    return np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)


def one_head(q, k, v):
    return softmax(q @ k.T / math.sqrt(8)) @ v


def heads_of(x, n):
    return x.reshape(len(x), n, -1).transpose(1, 0, 2)


def contexts(q, k, v, n, scale=None):  # [N, T, H]
    q, k, v = (heads_of(x, n) for x in (q, k, v))
    return softmax(q @ k.transpose(0, 2, 1) * (scale or 1 / math.sqrt(q.shape[-1]))) @ v


def several(q, k, v, n):
    return contexts(q, k, v, n).transpose(1, 0, 2).reshape(q.shape)


def by_one_reshape(q, k, v, n):
    parts = [x.reshape(n, len(x), -1) for x in (q, k, v)]
    return (
        np.array([softmax(a @ b.T / math.sqrt(a.shape[1])) @ c for a, b, c in zip(*parts, strict=True)])
        .transpose(1, 0, 2)
        .reshape(q.shape)
    )


def every_nth(q, k, v, n):
    size = q.shape[1] // n
    result = np.empty_like(q)
    for head in range(n):
        a, b, c = (x[:, head::n] for x in (q, k, v))
        result[:, head::n] = softmax(a @ b.T / math.sqrt(size)) @ c
    return result


def overlapping(q, k, v, n):
    size = q.shape[1] // n
    parts = [[x[:, head : head + size] for x in (q, k, v)] for head in range(n)]
    return np.hstack([softmax(a @ b.T / math.sqrt(size)) @ c for a, b, c in parts])


@pytest.mark.parametrize(
    ("exercise", "answer"),
    [("3.1", softmax), ("3.2", one_head), ("3.3", several), ("3.1", lambda scores: softmax(scores.astype(np.float32)))],
)
def test_right(exercise, answer, capsys):
    check(exercise, answer)
    assert capsys.readouterr().out == f"{exercise}: right\n"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("exercise", "answer", "sentence"),
    [
        ("3.1", lambda s: softmax(s, 0), "The columns sum to 1"),
        ("3.1", lambda s: softmax(s.ravel()).reshape(s.shape), "All weights together sum to 1"),
        ("3.1", np.exp, "The weights do not sum to 1"),
        ("3.1", lambda s: np.exp(s - s.max(axis=-1, keepdims=True)), "The largest weight of each row is 1"),
        ("3.1", lambda s: s / s.sum(axis=-1, keepdims=True), "without exp"),
        ("3.1", lambda s: np.log(softmax(s)), "the logarithm of the softmax"),
        ("3.1", lambda s: np.exp(s) / np.exp(s).sum(axis=-1), "sum with keepdims=True"),
        ("3.1", lambda s: softmax(s - s.max(axis=-1)), "find them with keepdims=True"),
        ("3.1", overflowing, "exp overflows"),
        ("3.1", lambda s: np.exp(s - s.max()) / np.exp(s - s.max()).sum(axis=-1, keepdims=True), "becomes 0 / 0"),
        ("3.1", changing, "changes the array"),
        ("3.1", lambda s: None, "lacks a `return`"),
        ("3.1", lambda s: softmax(s)[0], r"has the shape [3], but should have [3, 3]"),
        ("3.1", lambda s: s * np.nan, "holds nan or infinity"),
        ("3.1", lambda s: softmax(s) + 0.1 * np.eye(*s.shape), "but should be"),
        ("3.1", lambda s: s.astype(str), "instead of numbers"),
        ("3.1", lambda s: softmax(s, 7), "Your code raises AxisError"),
        ("3.1", np.ones((3, 3)), "wants a function, but got an array of shape [3, 3]"),
        ("3.1", 0.5, "wants a function, but got float"),
        ("3.2", lambda q, k, v: softmax(q @ k.T) @ v, "The scale is left out"),
        ("3.2", lambda q, k, v: softmax(q @ k.T / 8) @ v, "divided by H"),
        ("3.2", lambda q, k, v: softmax(q @ k.T / math.sqrt(5)) @ v, "The scale is √T"),
        ("3.2", lambda q, k, v: softmax(q @ k.T / 2) @ v, "vectors of 4 numbers alone"),
        ("3.2", lambda q, k, v: softmax(q @ k.T * math.sqrt(8)) @ v, "multiplied by √H"),
        ("3.2", lambda q, k, v: softmax(q @ k.T) / math.sqrt(8) @ v, "after the softmax"),
        ("3.2", lambda q, k, v: softmax(q @ k.T / math.sqrt(8), 0) @ v, "runs over the queries"),
        ("3.2", lambda q, k, v: q @ k.T / math.sqrt(8) @ v, "There is no softmax"),
        ("3.2", lambda q, k, v: softmax(q @ k.T / math.sqrt(8)), "These are the weights"),
        ("3.2", lambda q, k, v: one_head(q, k, k), "applied to the keys"),
        ("3.2", lambda q, k, v: one_head(k, q, v), "Query and key are exchanged"),
        ("3.2", lambda q, k, v: softmax(q @ k.T / math.sqrt(8) + np.triu(np.full((5, 5), -1e9), 1)) @ v, "before it"),
        ("3.3", lambda q, k, v, n: one_head(q, k, v), "one head of size D"),
        ("3.3", lambda q, k, v, n: contexts(q, k, v, n, 8**-0.5).transpose(1, 0, 2).reshape(5, 8), "The scale is √D"),
        ("3.3", lambda q, k, v, n: contexts(q, k, v, n, 1).transpose(1, 0, 2).reshape(5, 8), "The scale is left out"),
        ("3.3", by_one_reshape, "mixes tokens"),
        ("3.3", lambda q, k, v, n: contexts(q, k, v, n).reshape(5, 8), "put together wrongly"),
        ("3.3", every_nth, "every N-th number"),
        ("3.3", overlapping, "begins at number n"),
        ("3.3", lambda q, k, v, n: several(q, k, v, 8 // n), "Each head has N numbers"),
        ("3.3", lambda q, k, v, n: contexts(q, k, v, n).reshape(5 * n, -1), "below each other"),
        ("3.3", contexts, "not put together"),
        ("3.3", lambda q, k, v, n: contexts(q, k, v, n).sum(axis=0), "added up"),
        ("3.3", lambda q, k, v, n: contexts(q, k, v, n).mean(axis=0), "averaged"),
    ],
)
def test_a_mistake_is_named(exercise, answer, sentence, capsys):
    check(exercise, answer)
    said = capsys.readouterr().out
    assert said.startswith(f"{exercise}: not yet. ")
    assert sentence in said
