"""Every mistake that the exercises of chapter 4 know is named; the right answers are right."""

import math

import numpy as np
import pytest

from e5ref.course import check

erf = np.vectorize(math.erf)


def gelu(x):
    return x * (1 + erf(x / math.sqrt(2))) / 2


def tanh_form(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def feed_forward(x, up, up_bias, down, down_bias, *, curve=gelu, last=lambda x: x):
    return last(curve(x @ up.T + up_bias) @ down.T + down_bias)


def same(x):
    return x


X = np.linspace(-5, 5, 1001)
DIFFERENCE = tanh_form(X) - gelu(X)


@pytest.mark.parametrize(
    ("exercise", "answer"),
    [
        ("4.1", gelu),
        ("4.1", lambda x: gelu(x.astype(np.float32))),
        ("4.2", feed_forward),
        ("4.3", np.abs(DIFFERENCE).max()),
        ("4.3", 4.73e-4),
    ],
)
def test_right(exercise, answer, capsys):
    check(exercise, answer)
    assert capsys.readouterr().out == f"{exercise}: right\n"


@pytest.mark.parametrize(
    ("exercise", "answer", "sentence"),
    [
        ("4.1", tanh_form, "GELU's tanh form"),
        ("4.1", lambda x: x * sigmoid(1.702 * x), "GELU's sigmoid form"),
        ("4.1", lambda x: x * sigmoid(x), "This is SiLU"),
        ("4.1", lambda x: np.maximum(x, 0), "This is ReLU"),
        ("4.1", lambda x: (1 + erf(x / math.sqrt(2))) / 2, "multiply it by x"),
        ("4.1", lambda x: x * (1 + erf(x)) / 2, "erf wants x / √2"),
        ("4.1", lambda x: x * (1 + erf(x / math.sqrt(2))), "This is twice GELU"),
        ("4.1", lambda x: x * erf(x / math.sqrt(2)) / 2, "This lacks the 1"),
        ("4.1", lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2, "Your code raises TypeError"),
        ("4.1", lambda x: np.array([gelu(number) for number in x.ravel()]), "should have [4, 4]"),
        ("4.2", lambda x, u, b, d, c: feed_forward(x, u.T, b, d.T, c), "The weights are [out, in]"),
        ("4.2", lambda x, u, b, d, c: feed_forward(x, u.T, b, d, c), "The weight of the first layer"),
        ("4.2", lambda x, u, b, d, c: feed_forward(x, u, b, d.T, c), "The weight of the second layer"),
        ("4.2", lambda *arrays: feed_forward(*arrays, curve=same), "There is no curve"),
        ("4.2", lambda *arrays: feed_forward(*arrays, curve=lambda x: np.maximum(x, 0)), "The curve is ReLU"),
        ("4.2", lambda *arrays: feed_forward(*arrays, curve=tanh_form), "tanh form"),
        ("4.2", lambda *arrays: feed_forward(*arrays, curve=same, last=gelu), "GELU comes at the end"),
        ("4.2", lambda *arrays: feed_forward(*arrays, last=gelu), "a second time"),
        ("4.2", lambda x, u, b, d, c: feed_forward(x, u, 0, d, 0), "Both biases are missing"),
        ("4.2", lambda x, u, b, d, c: feed_forward(x, u, 0, d, c), "The first bias is missing"),
        ("4.2", lambda x, u, b, d, c: (gelu(x @ u.T) + b) @ d.T + c, "The first bias is added after GELU"),
        ("4.2", lambda x, u, b, d, c: feed_forward(x, u, b, d, 0), "The second bias is missing"),
        ("4.2", lambda x, *rest: x + feed_forward(x, *rest), "x is added at the end"),
        ("4.2", lambda x, u, b, d, c: x * 2, "but should be"),
        ("4.3", DIFFERENCE, "wants one number"),
        ("4.3", -np.abs(DIFFERENCE).max(), "The difference is negative"),
        ("4.3", np.abs(DIFFERENCE.min()), "take np.abs before max"),
        ("4.3", np.abs(X * sigmoid(1.702 * X) - gelu(X)).max(), "the sigmoid form"),
        ("4.3", X[np.abs(DIFFERENCE).argmax()], "the x at which they differ most"),
        ("4.3", np.abs(DIFFERENCE[::100]).max(), "It is a bit more"),
        ("4.3", abs(tanh_form(np.array(1.0)) - gelu(np.array(1.0))), "It is more"),
        ("4.3", 0, "They are not equal"),
        ("4.3", 1.5, "1.5 is not it"),
    ],
)
def test_a_mistake_is_named(exercise, answer, sentence, capsys):
    check(exercise, answer)
    said = capsys.readouterr().out
    assert said.startswith(f"{exercise}: not yet. ")
    assert sentence in said
