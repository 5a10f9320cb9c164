"""Chapter 6: the right answers are right, and each usual mistake gets its sentence."""

import numpy as np
import pytest

from e5ref import numpy_model
from e5ref.course import check


def average(states, mask):
    return (states * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)


def unit(vectors, axis=-1):
    return vectors / np.linalg.norm(vectors, axis=axis, keepdims=True)


def words_alone(states, mask):
    words = mask.copy()
    words[:, 0] = words[np.arange(len(mask)), mask.sum(axis=1) - 1] = 0
    return average(states, words)


@pytest.mark.parametrize(
    ("exercise", "answer"),
    [
        ("6.1", average),
        ("6.1", numpy_model.average_pool),
        ("6.2", lambda a, b: unit(a) @ unit(b).T),
        ("6.3", lambda n, t, p: t * np.log((n - 1) * p / (1 - p))),
    ],
)
def test_right(exercise, answer, capsys):
    check(exercise, answer)
    assert capsys.readouterr().out == f"{exercise}: right\n"


@pytest.mark.parametrize(
    ("exercise", "answer", "sentence"),
    [
        ("6.1", lambda states, mask: states.mean(axis=1), "Padding is averaged, too"),
        ("6.1", lambda states, mask: (states * mask[:, :, None]).mean(axis=1), "you divide it by T"),
        ("6.1", lambda states, mask: states.sum(axis=1) / mask.sum(axis=1)[:, None], "the sum has padding in it"),
        ("6.1", lambda states, mask: (states * mask[:, :, None]).sum(axis=1), "That is the sum"),
        ("6.1", lambda states, mask: (states * mask[:, :, None]).sum(axis=1) / mask.sum(), "the whole batch"),
        (
            "6.1",
            lambda states, mask: np.array([states[n][mask[n]].mean(axis=0) for n in range(len(mask))]),
            "as row numbers",
        ),
        ("6.1", lambda states, mask: states[:, 0], "the first token, [CLS]"),
        ("6.1", words_alone, "[CLS] and [SEP] are left out"),
        ("6.1", lambda states, mask: np.where(mask[:, :, None], states, -9).max(axis=1), "the largest number"),
        ("6.1", lambda states, mask: unit(average(states, mask)), "you scale it to length 1"),
        ("6.1", lambda states, mask: states.mean(axis=-1), "average over the tokens, axis 1"),
        ("6.1", lambda states, mask: average(states, mask) + 0.5, "Your result is"),
        ("6.2", lambda a, b: a @ b.T, "dot products of the vectors as they are"),
        ("6.2", lambda a, b: unit(a) @ b.T, "Only the first vectors"),
        ("6.2", lambda a, b: a @ unit(b).T, "Only the second vectors"),
        ("6.2", lambda a, b: unit(a, 0) @ unit(b, 0).T, "the length of each column"),
        ("6.2", lambda a, b: a @ b.T / (np.linalg.norm(a) * np.linalg.norm(b)), "the length of the whole array"),
        ("6.2", lambda a, b: (a / (a**2).sum(1)[:, None]) @ (b / (b**2).sum(1)[:, None]).T, "sum of the squares"),
        ("6.2", lambda a, b: (a / abs(a).sum(1)[:, None]) @ (b / abs(b).sum(1)[:, None]).T, "sum of the magnitudes"),
        ("6.2", lambda a, b: unit(b) @ unit(a).T, "Rows and columns are exchanged"),
        ("6.2", lambda a, b: np.linalg.norm(unit(a)[:, None] - unit(b), axis=2), "Those are distances"),
        ("6.3", lambda n, t, p: np.log((n - 1) * p / (1 - p)), "The temperature is missing"),
        ("6.3", lambda n, t, p: np.log((n - 1) * p / (1 - p)) / t, "You divide by the temperature"),
        ("6.3", lambda n, t, p: t * np.log(n * p / (1 - p)), "one of the n is the right one"),
        ("6.3", lambda n, t, p: t * np.log((n - 1) * (1 - p) / p), "you turn them over"),
        ("6.3", lambda n, t, p: t * np.log(n - 1), "The probability is missing"),
        ("6.3", lambda n, t, p: t * np.log((n - 1) / (1 - p)), "The p before n - 1 is lost"),
        ("6.3", lambda n, t, p: t * np.log((n - 1) * p), "The 1 - p is lost"),
        ("6.3", lambda n, t, p: t * np.log(p / (1 - p) / (n - 1)), "don't divide"),
        ("6.3", lambda n, t, p: t * (n - 1) * p / (1 - p), "take the logarithm first"),
        ("6.3", lambda n, t, p: np.nan, "a negative number"),
        ("6.3", lambda n, t, p: t * np.log(p / (1 - p)), "there are n - 1"),
        ("6.3", lambda n, t, p: t * np.log10((n - 1) * p / (1 - p)), "not log10"),
        ("6.3", lambda n, t, p: t * np.log2((n - 1) * p / (1 - p)), "not log2"),
        ("6.3", lambda n, t, p: -t * np.log((n - 1) * p / (1 - p)), "The sign is turned over"),
    ],
)
def test_a_usual_mistake(exercise, answer, sentence, capsys):
    check(exercise, answer)
    output = capsys.readouterr().out
    assert output.startswith(f"{exercise}: not yet. ")
    assert sentence in output
