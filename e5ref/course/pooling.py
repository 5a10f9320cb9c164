"""Chapter 6, docs/learn/6-pooling.md: the average, the cosine, and how far apart a temperature pushes scores."""

from collections.abc import Callable

import numpy as np

from e5ref import numpy_model
from e5ref.course import Verdict, compared
from e5ref.operations import Array, Ids


def average(answer: Callable[[Array, Ids], Array]) -> str | None:
    """Judge 6.1, a function that averages the real tokens of each text. [B, T, D], [B, T] -> [B, D]."""
    random = np.random.default_rng(6)
    # In the second batch the padding is not 0, as in other programs.
    for lengths in ([3, 3], [6, 3, 4]):
        mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)  # [B, T]
        states = random.normal(size=(*mask.shape, 5))  # [B, T, D]
        real, counts = states * mask[:, :, None], mask.sum(axis=1, keepdims=True)  # [B, T, D], [B, 1]
        right = numpy_model.average_pool(states, mask)
        words = (mask > 0) & (np.arange(mask.shape[1]) > 0) & (np.arange(mask.shape[1]) < counts - 1)
        mistakes = {
            "Padding is averaged, too: only tokens whose mask is 1 count.": states.mean(axis=1),
            "The sum has only the real tokens, but you divide it by T, the length of the row; divide by the number of "
            "the text's own tokens.": real.mean(axis=1),
            "You divide by the right number, but the sum has padding in it: multiply the states by the mask first.": (
                states.sum(axis=1) / counts
            ),
            "That is the sum of the real tokens; divide it by their number.": real.sum(axis=1),
            "You divide by the number of tokens of the whole batch; each text has its own number.": (
                real.sum(axis=1) / mask.sum()
            ),
            "That is the state of the first token, [CLS]; E5 averages all of them.": states[:, 0],
            "[CLS] and [SEP] are left out; E5 averages them, too.": numpy_model.average_pool(states, words),
            "That is the largest number of each column; E5 averages.": (
                np.where(mask[:, :, None] > 0, states, -np.inf).max(axis=1)
            ),
            "The average is right, but you scale it to length 1 as well; that is the next step.": (
                numpy_model.l2_normalize(right)
            ),
            "You average over the D numbers of each token; average over the tokens, axis 1.": states.mean(axis=2),
        }
        if wrong := compared(answer(states.copy(), mask.copy()), right, mistakes):
            return wrong
    return None


def cosine(answer: Callable[[Array, Array], Array]) -> str | None:
    """Judge 6.2, a function that gives the cosine of each row with each row. [n, D], [m, D] -> [n, m]."""
    random = np.random.default_rng(6)
    a, b = random.normal(size=(3, 4)), 5 * random.normal(size=(2, 4))
    unit_a, unit_b = numpy_model.l2_normalize(a), numpy_model.l2_normalize(b)
    mistakes = {
        "Those are the dot products of the vectors as they are: divide each vector by its length first.": a @ b.T,
        "Only the first vectors are divided by their lengths.": unit_a @ b.T,
        "Only the second vectors are divided by their lengths.": a @ unit_b.T,
        "You take the length of each column: take that of each row, axis=-1, with keepdims=True.": (
            (a / np.linalg.norm(a, axis=0)) @ (b / np.linalg.norm(b, axis=0)).T
        ),
        "You divide by the length of the whole array: each row has its own, axis=-1 with keepdims=True.": (
            a @ b.T / np.linalg.norm(a) / np.linalg.norm(b)
        ),
        "You divide by the sum of the squares: the length is its square root.": (
            a @ b.T / np.square(a).sum(axis=1)[:, None] / np.square(b).sum(axis=1)
        ),
        "You divide by the sum of the magnitudes: the length is the square root of the sum of the squares.": (
            a @ b.T / np.abs(a).sum(axis=1)[:, None] / np.abs(b).sum(axis=1)
        ),
        "Rows and columns are exchanged: the answer is [n, m], n vectors of the first argument.": unit_b @ unit_a.T,
        "Those are distances, which are small for texts that are near.": (
            np.linalg.norm(unit_a[:, None] - unit_b, axis=-1)
        ),
    }
    return compared(answer(a.copy(), b.copy()), unit_a @ unit_b.T, mistakes)


def gap(answer: Callable[[int, float, float], float]) -> str | None:
    """Judge 6.3: by how much the right one of n passages must score above the others, at a temperature."""
    for passages, temperature, probability in ((3, 1.0, 0.75), (6, 0.05, 0.9), (32768, 0.01, 0.9)):
        odds = probability / (1 - probability)
        right = temperature * np.log((passages - 1) * odds)
        mistakes = {
            "The temperature is missing: scores are divided by it before the softmax, so multiply by it.": (
                right / temperature
            ),
            "You divide by the temperature; softmax divides the scores by it, so the gap is multiplied.": (
                right / temperature**2
            ),
            "You count n wrong passages, but one of the n is the right one.": temperature * np.log(passages * odds),
            "The odds of the right passage are p / (1 - p); you turn them over.": (
                temperature * np.log((passages - 1) / odds)
            ),
            "The probability is missing: that gap gives the right passage one half.": (
                temperature * np.log(passages - 1)
            ),
            "You compare with one wrong passage; there are n - 1.": temperature * np.log(odds),
            "Softmax is made of powers of e: take the natural logarithm, np.log, not log10.": right / np.log(10),
            "Softmax is made of powers of e: take the natural logarithm, np.log, not log2.": right / np.log(2),
            "The sign is turned over: the right passage stands above the others.": -right,
        }
        if wrong := compared(answer(passages, temperature, probability), right, mistakes):
            return wrong
    return None


EXERCISES: dict[str, Verdict] = {"6.1": average, "6.2": cosine, "6.3": gap}
