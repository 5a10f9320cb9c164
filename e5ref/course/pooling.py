"""Chapter 6, docs/learn/6-pooling.md: the average, the cosine, and how far apart a temperature pushes scores."""

from collections.abc import Callable
from typing import Any

import numpy as np

from e5ref import numpy_model
from e5ref.course import Verdict, compared
from e5ref.operations import Array, Ids


def real(states: Array, mask: Ids) -> Array:
    """Set the states of padding to 0. [B, T, D], [B, T] -> [B, T, D]."""
    return states * mask[:, :, None]


def words(mask: Ids) -> Ids:
    """Take [CLS] and [SEP], the first and last token of each text, out of a mask. [B, T] -> [B, T]."""
    place, count = np.arange(mask.shape[1]), mask.sum(axis=1, keepdims=True)  # [T], [B, 1]
    return ((place > 0) & (place < count - 1)).astype(np.int64)


def average(answer: Any) -> str | None:
    """Judge 6.1, a function that averages the real tokens of each text. [B, T, D], [B, T] -> [B, D]."""
    random = np.random.default_rng(6)
    cases = []
    for lengths in ([3, 3], [6, 3, 4]):
        mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)  # [B, T]
        cases.append((random.normal(size=(*mask.shape, 5)), mask))  # padding is not 0, as in other programs
    mistakes: dict[str, Callable[[Array, Ids], Array]] = {
        "Padding is averaged, too: only tokens whose mask is 1 count.": lambda states, mask: states.mean(axis=1),
        "The sum has only the real tokens, but you divide it by T, the length of the row; divide by the number of the "
        "text's own tokens.": lambda states, mask: real(states, mask).mean(axis=1),
        "You divide by the right number, but the sum has padding in it: multiply the states by the mask first.": (
            lambda states, mask: states.sum(axis=1) / mask.sum(axis=1, keepdims=True)
        ),
        "That is the sum of the real tokens; divide it by their number.": (
            lambda states, mask: real(states, mask).sum(axis=1)
        ),
        "You divide by the number of tokens of the whole batch; each text has its own number.": (
            lambda states, mask: real(states, mask).sum(axis=1) / mask.sum()
        ),
        "You take the mask, 0 and 1, as row numbers: to pick the tokens, write states[mask == 1].": (
            lambda states, mask: np.stack([rows[which].mean(axis=0) for rows, which in zip(states, mask, strict=True)])
        ),
        "That is the state of the first token, [CLS]; E5 averages all of them.": lambda states, mask: states[:, 0],
        "[CLS] and [SEP] are left out; E5 averages them, too.": (
            lambda states, mask: numpy_model.average_pool(states, words(mask))
        ),
        "That is the largest number of each column; E5 averages.": (
            lambda states, mask: np.where(mask[:, :, None] > 0, states, -np.inf).max(axis=1)
        ),
        "The average is right, but you scale it to length 1 as well; that is the next step.": (
            lambda states, mask: numpy_model.l2_normalize(numpy_model.average_pool(states, mask))
        ),
        "You average over the D numbers of each token; average over the tokens, axis 1.": (
            lambda states, mask: states.mean(axis=2)
        ),
    }
    return compared(answer, numpy_model.average_pool, cases, mistakes)


def unit(vectors: Array) -> Array:
    """Scale vectors to length 1. [n, D] -> [n, D]."""
    return numpy_model.l2_normalize(vectors)


def cosine(answer: Any) -> str | None:
    """Judge 6.2, a function that gives the cosine of each row with each row. [n, D], [m, D] -> [n, m]."""
    random = np.random.default_rng(6)
    cases = [(random.normal(size=(3, 4)), 5 * random.normal(size=(2, 4)))]
    mistakes: dict[str, Callable[[Array, Array], Array]] = {
        "Those are the dot products of the vectors as they are: divide each vector by its length first.": (
            lambda a, b: a @ b.T
        ),
        "Only the first vectors are divided by their lengths.": lambda a, b: unit(a) @ b.T,
        "Only the second vectors are divided by their lengths.": lambda a, b: a @ unit(b).T,
        "You take the length of each column: take that of each row, axis=-1, with keepdims=True.": (
            lambda a, b: (a / np.linalg.norm(a, axis=0)) @ (b / np.linalg.norm(b, axis=0)).T
        ),
        "You divide by the length of the whole array: each row has its own, axis=-1 with keepdims=True.": (
            lambda a, b: a @ b.T / np.linalg.norm(a) / np.linalg.norm(b)
        ),
        "You divide by the sum of the squares: the length is its square root.": (
            lambda a, b: a @ b.T / np.square(a).sum(axis=1)[:, None] / np.square(b).sum(axis=1)
        ),
        "You divide by the sum of the magnitudes: the length is the square root of the sum of the squares.": (
            lambda a, b: a @ b.T / np.abs(a).sum(axis=1)[:, None] / np.abs(b).sum(axis=1)
        ),
        "Rows and columns are exchanged: the answer is [n, m], n vectors of the first argument.": (
            lambda a, b: unit(b) @ unit(a).T
        ),
        "Those are distances, which are small for texts that are near.": (
            lambda a, b: np.linalg.norm(unit(a)[:, None] - unit(b), axis=-1)
        ),
    }
    return compared(answer, lambda a, b: unit(a) @ unit(b).T, cases, mistakes)


def gap(answer: Any) -> str | None:
    """Judge 6.3: by how much the right one of n passages must score above the others, at a temperature."""
    cases = [(3, 1.0, 0.75), (6, 0.05, 0.9), (32768, 0.01, 0.9)]
    mistakes: dict[str, Callable[[int, float, float], float]] = {
        "The temperature is missing: scores are divided by it before the softmax, so multiply by it.": (
            lambda n, t, p: lead(n, 1, p)
        ),
        "You divide by the temperature; softmax divides the scores by it, so the gap is multiplied.": (
            lambda n, t, p: lead(n, 1, p) / t
        ),
        "You count n wrong passages, but one of the n is the right one.": lambda n, t, p: lead(n + 1, t, p),
        "The odds of the right passage are p / (1 - p); you turn them over.": lambda n, t, p: lead(n, t, 1 - p),
        "The p before n - 1 is lost: multiplying by the denominator gives p e^(g/t) + p (n - 1).": (
            lambda n, t, p: lead(n, t, p) - t * np.log(p)
        ),
        "The 1 - p is lost: bring both e^(g/t) to one side, and divide by 1 - p.": (
            lambda n, t, p: lead(n, t, p) + t * np.log(1 - p)
        ),
        "The n - 1 wrong passages make the gap larger: multiply by n - 1 inside the logarithm, don't divide.": (
            lambda n, t, p: t * np.log(p / (1 - p) / (n - 1))
        ),
        "That is e^(g/t) times t: take the logarithm first.": lambda n, t, p: t * (n - 1) * p / (1 - p),
        "That is the logarithm of a negative number: divide by 1 - p, not by p - 1.": lambda n, t, p: np.nan,
        "The probability is missing: that gap gives the right passage one half.": lambda n, t, p: lead(n, t, 0.5),
        "You compare with one wrong passage; there are n - 1.": lambda n, t, p: lead(2, t, p),
        "Softmax is made of powers of e: take the natural logarithm, np.log, not log10.": (
            lambda n, t, p: lead(n, t, p) / np.log(10)
        ),
        "Softmax is made of powers of e: take the natural logarithm, np.log, not log2.": (
            lambda n, t, p: lead(n, t, p) / np.log(2)
        ),
        "The sign is turned over: the right passage stands above the others.": lambda n, t, p: -lead(n, t, p),
    }
    return compared(answer, lead, cases, mistakes)


def lead(passages: int, temperature: float, probability: float) -> float:
    """Return by how much the right passage scores above all wrong ones if it has this probability."""
    return float(temperature * np.log((passages - 1) * probability / (1 - probability)))


EXERCISES: dict[str, Verdict] = {"6.1": average, "6.2": cosine, "6.3": gap}
