"""Chapter 7: the right answers are right, and each usual mistake gets its sentence."""

import numpy as np
import pytest

from e5ref.course import check
from e5ref.course.training import PAIRS


def softmax(scores, axis=1):
    powers = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def each(scores, t=1.0, axis=1):
    scores = scores / t
    scores = scores - scores.max(axis=axis, keepdims=True)
    return np.log(np.exp(scores).sum(axis=axis)) - np.diag(scores)


def loss(scores, t=1.0):
    return each(scores, t).mean()


def without_right(scores, t):
    powers = np.exp(scores / t)
    return -np.log(np.diag(powers) / (powers.sum(axis=1) - np.diag(powers))).mean()


def overflowing(scores, t):
    powers = np.exp(scores / t)
    return -np.log(np.diag(powers) / powers.sum(axis=1)).mean()


def by_score(scores, t, inside=None, axis=1):
    return (softmax(scores / (inside or t), axis) - np.eye(len(scores))) / len(scores) / t


def norm(z):
    return np.linalg.norm(z, axis=1, keepdims=True)


def along(z, g):
    u = z / norm(z)
    return (u * g).sum(axis=1, keepdims=True) * u


def by_vector(z, g):
    return (g - along(z, g)) / norm(z)


@pytest.mark.parametrize(("exercise", "answer"), [("7.1", loss), ("7.2", by_score), ("7.3", by_vector)])
def test_right(exercise, answer, capsys):
    check(exercise, answer)
    assert capsys.readouterr().out == f"{exercise}: right\n"


@pytest.mark.parametrize(
    ("exercise", "answer", "sentence"),
    [
        ("7.1", lambda scores, t: loss(scores), "The temperature is missing"),
        ("7.1", lambda scores, t: loss(scores * t), "You multiply the scores by the temperature"),
        ("7.1", lambda scores, t: each(scores, t, axis=0).mean(), "down the columns"),
        ("7.1", lambda scores, t: (loss(scores, t) + loss(scores.T, t)) / 2, "both directions"),
        ("7.1", lambda scores, t: each(scores, t).sum(), "That is the sum"),
        ("7.1", lambda scores, t: -loss(scores, t), "The sign is turned over"),
        ("7.1", lambda scores, t: -np.log(softmax(scores / t)).mean(), "only the diagonal counts"),
        ("7.1", lambda scores, t: -np.log(np.diag(softmax(scores / t)).mean()), "the mean of the logarithms"),
        ("7.1", lambda scores, t: np.diag(softmax(scores / t)).mean(), "That is the mean probability"),
        ("7.1", each, "That is the loss of each query"),
        ("7.1", without_right, "must contain the right passage"),
        ("7.1", lambda scores, t: loss(scores, t) / np.log(2), "not log2"),
        ("7.1", lambda scores, t: loss(scores, t) / np.log(10), "not log10"),
        ("7.1", overflowing, "subtract each row's maximum first"),
        ("7.2", lambda scores, t: -by_score(scores, t), "The sign is turned over"),
        ("7.2", lambda scores, t: by_score(scores, t) * len(scores), "You do not divide by B;"),
        ("7.2", lambda scores, t: by_score(scores, t) / len(scores), "You divide by B · B"),
        ("7.2", lambda scores, t: by_score(scores, t) * t, "You do not divide by the temperature"),
        ("7.2", lambda scores, t: softmax(scores / t) - np.eye(len(scores)), "Both divisions are missing"),
        ("7.2", lambda scores, t: by_score(scores, t) * t * t, "You multiply by the temperature"),
        ("7.2", lambda scores, t: softmax(scores / t) / len(scores) / t, "is not subtracted"),
        ("7.2", lambda scores, t: (softmax(scores / t) - 1) / len(scores) / t, "You subtract 1 everywhere"),
        ("7.2", lambda scores, t: by_score(scores, t, axis=0), "down the columns"),
        ("7.2", lambda scores, t: by_score(scores, t, inside=1), "inside the softmax"),
        ("7.3", lambda z, g: g - along(z, g), "You do not divide by the length"),
        ("7.3", lambda z, g: (g - along(z, g)) / norm(z) ** 2, "by the square of the length"),
        ("7.3", lambda z, g: (g - along(z, g)) * norm(z), "You multiply by the length"),
        ("7.3", lambda z, g: g / norm(z), "is not taken away"),
        ("7.3", lambda z, g: (g + along(z, g)) / norm(z), "is added; subtract it"),
        ("7.3", lambda z, g: (g - (z * g).sum(1)[:, None] * z) / norm(z), "with the vector itself"),
        ("7.3", lambda z, g: along(z, g) / norm(z), "subtract it from the gradient"),
        ("7.3", lambda z, g: (g - (z / norm(z) * g).sum(0) * z / norm(z)) / norm(z), "over the wrong axis"),
        ("7.3", lambda z, g: (g - (z / norm(z) * g).sum() * z / norm(z)) / norm(z), "over all rows"),
    ],
)
def test_a_usual_mistake(exercise, answer, sentence, capsys):
    check(exercise, answer)
    output = capsys.readouterr().out
    assert output.startswith(f"{exercise}: not yet. ")
    assert sentence in output


def test_pairs():
    assert len(PAIRS) == len(set(PAIRS)) == 96
    assert {len(pair) for pair in PAIRS} == {2}
