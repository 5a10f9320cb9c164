"""Chapter 5: the right answers are right, and each usual mistake gets its sentence."""

import numpy as np
import pytest

from e5ref.course import check


def mean(x):
    return x.mean(axis=-1, keepdims=True)


def standard(x, eps=0.0, axis=-1, ddof=0):
    centred = x - x.mean(axis=axis, keepdims=True)
    return centred / np.sqrt(x.var(axis=axis, ddof=ddof, keepdims=True) + eps)


def encoder_layer(x, attend, feed, first, second):
    x = first(x + attend(x))
    return second(x + feed(x))


def pre_norm(x, attend, feed, first, second):
    x = x + attend(first(x))
    return x + feed(second(x))


def norm_then_sum(x, attend, feed, first, second):
    x = x + first(attend(x))
    return x + second(feed(x))


def no_second_sum(x, attend, feed, first, second):
    return second(feed(first(x + attend(x))))


def no_first_sum(x, attend, feed, first, second):
    x = first(attend(x))
    return second(x + feed(x))


def wrong_second_sum(x, attend, feed, first, second):
    return second(x + feed(first(x + attend(x))))


def parallel(x, attend, feed, first, second):
    return second(first(x + attend(x)) + feed(x))


def no_first_norm(x, attend, feed, first, second):
    x = x + attend(x)
    return second(x + feed(x))


def no_last_norm(x, attend, feed, first, second):
    x = first(x + attend(x))
    return x + feed(x)


def no_norm(x, attend, feed, first, second):
    x = x + attend(x)
    return x + feed(x)


@pytest.mark.parametrize(
    ("exercise", "answer"),
    [
        ("5.1", lambda x, w, b, eps: standard(x, eps) * w + b),
        ("5.2", encoder_layer),
        ("5.3", lambda x: np.square(x - x.mean()).mean()),
        ("5.3", np.var),
    ],
)
def test_right(exercise, answer, capsys):
    check(exercise, answer)
    assert capsys.readouterr().out == f"{exercise}: right\n"


@pytest.mark.parametrize(
    ("exercise", "answer", "sentence"),
    [
        ("5.1", lambda x, w, b, eps: standard(x, eps, axis=0) * w + b, "down the columns"),
        ("5.1", lambda x, w, b, eps: standard(x, eps, axis=None) * w + b, "all numbers together"),
        ("5.1", lambda x, w, b, eps: standard(x, eps, ddof=1) * w + b, "divides by D - 1"),
        ("5.1", lambda x, w, b, eps: standard(x) * w + b, "eps is missing"),
        ("5.1", lambda x, w, b, eps: (x - mean(x)) / (np.sqrt(mean((x - mean(x)) ** 2)) + eps) * w + b, "outside"),
        ("5.1", lambda x, w, b, eps: (x - mean(x)) / (mean((x - mean(x)) ** 2) + eps) * w + b, "by the variance"),
        ("5.1", lambda x, w, b, eps: x / np.sqrt(mean((x - mean(x)) ** 2) + eps) * w + b, "mean is not subtracted"),
        ("5.1", lambda x, w, b, eps: x / np.sqrt(mean(x**2) + eps) * w + b, "RMSNorm"),
        ("5.1", lambda x, w, b, eps: (x - mean(x)) * w + b, "nothing is divided"),
        ("5.1", lambda x, w, b, eps: standard(x, eps), "Weight and bias are missing"),
        ("5.1", lambda x, w, b, eps: standard(x, eps) + b, "The weight is missing"),
        ("5.1", lambda x, w, b, eps: standard(x, eps) * w, "The bias is missing"),
        ("5.1", lambda x, w, b, eps: (standard(x, eps) + b) * w, "multiply first"),
        ("5.2", pre_norm, "newer models"),
        ("5.2", norm_then_sum, "add first"),
        ("5.2", lambda x, attend, feed, first, second: second(feed(first(attend(x)))), "Nothing is added"),
        ("5.2", no_first_sum, "After attention, what came into it is not added"),
        ("5.2", no_second_sum, "After feed-forward, what came into it is not added"),
        ("5.2", wrong_second_sum, "you add what came into the layer"),
        ("5.2", parallel, "give it what the first norm returns"),
        ("5.2", lambda x, attend, feed, first, second: encoder_layer(x, attend, feed, second, first), "exchanged"),
        ("5.2", lambda x, attend, feed, first, second: encoder_layer(x, attend, feed, first, first), "both places"),
        ("5.2", lambda x, attend, feed, first, second: encoder_layer(x, feed, attend, first, second), "comes first"),
        ("5.2", no_first_norm, "The first norm is missing"),
        ("5.2", no_last_norm, "The last norm is missing"),
        ("5.2", no_norm, "Both norms are missing"),
        ("5.3", np.std, "the root of the variance"),
        ("5.3", lambda x: x.var(ddof=1), "You divide by n - 1"),
        ("5.3", lambda x: (x**2).mean(), "the mean of the squares"),
        ("5.3", lambda x: ((x - x.mean()) ** 2).sum(), "the sum of the squares"),
        ("5.3", lambda x: (x**2).mean() - x.mean() ** 2, "not in float32"),
    ],
)
def test_a_usual_mistake(exercise, answer, sentence, capsys):
    check(exercise, answer)
    output = capsys.readouterr().out
    assert output.startswith(f"{exercise}: not yet. ")
    assert sentence in output
