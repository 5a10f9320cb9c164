"""Chapter 5, docs/learn/5-layers.md: LayerNorm, the order of a layer, and a variance that keeps its digits."""

from collections.abc import Callable
from typing import Any

import numpy as np

from e5ref import numpy_model
from e5ref.course import Verdict, compared
from e5ref.operations import Array

Step = Callable[[Array], Array]  # a part of a layer: hidden states in, hidden states out


def normalized(x: Array, weight: Array, bias: Array, eps: float, *, axis: int | None = -1, ddof: int = 0) -> Array:
    """LayerNorm of each row; of each column with axis 0, of all numbers at once with axis None."""
    variance = x.var(axis=axis, ddof=ddof, keepdims=True)
    return (x - x.mean(axis=axis, keepdims=True)) / np.sqrt(variance + eps) * weight + bias


def layer_norm(answer: Any) -> str | None:
    """Judge 5.1, LayerNorm: x [m, D], weight [D], bias [D], eps -> [m, D]."""
    random = np.random.default_rng(5)
    cases = [(2 + random.normal(size=(3, 4)), *random.normal(size=(2, 4)), eps) for eps in (1e-12, 0.1)]
    mistakes: dict[str, Callable[[Array, Array, Array, float], Array]] = {
        "You normalise down the columns; each row on its own is brought to mean 0 and variance 1, axis=-1.": (
            lambda x, w, b, eps: normalized(x, w, b, eps, axis=0)
        ),
        "You normalise all numbers together; each row has its own mean and variance, axis=-1.": (
            lambda x, w, b, eps: normalized(x, w, b, eps, axis=None)
        ),
        "Your variance divides by D - 1; LayerNorm divides by D.": (
            lambda x, w, b, eps: normalized(x, w, b, eps, ddof=1)
        ),
        "eps is missing: it is added to the variance.": lambda x, w, b, eps: normalized(x, w, b, 0),
        "eps is added outside the root; it belongs inside, beside the variance.": (
            lambda x, w, b, eps: (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + eps) * w + b
        ),
        "You divide by the variance; divide by its square root.": (
            lambda x, w, b, eps: (x - x.mean(-1, keepdims=True)) / (x.var(-1, keepdims=True) + eps) * w + b
        ),
        "The mean is not subtracted from what you divide.": (
            lambda x, w, b, eps: x / np.sqrt(x.var(-1, keepdims=True) + eps) * w + b
        ),
        "You divide by the root of the mean square, which is RMSNorm; LayerNorm subtracts the mean first.": (
            lambda x, w, b, eps: x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps) * w + b
        ),
        "The mean is subtracted, but nothing is divided by the root of the variance.": (
            lambda x, w, b, eps: (x - x.mean(-1, keepdims=True)) * w + b
        ),
        "Weight and bias are missing.": lambda x, w, b, eps: normalized(x, np.ones(4), np.zeros(4), eps),
        "The weight is missing.": lambda x, w, b, eps: normalized(x, np.ones(4), b, eps),
        "The bias is missing.": lambda x, w, b, eps: normalized(x, w, np.zeros(4), eps),
        "You add the bias before you multiply by the weight; multiply first.": (
            lambda x, w, b, eps: normalized(x, w, b * w, eps)
        ),
    }
    return compared(answer, lambda x, w, b, eps: numpy_model.layer_norm(x, w, b, eps), cases, mistakes)


def layer(answer: Any) -> str | None:
    """Judge 5.2, a layer put together from its parts: x [T, D], attention, feed-forward and two norms -> [T, D]."""
    random = np.random.default_rng(5)

    def norm(weight: Array, bias: Array) -> Step:
        return lambda x: normalized(x, weight, bias, 0)

    def sublayer(weight: Array) -> Step:
        return lambda x: np.tanh(x @ weight)

    steps = [sublayer(random.normal(size=(4, 4))) for _ in range(2)]
    norms = [norm(*random.normal(size=(2, 4))) for _ in range(2)]
    mistakes: dict[str, Callable[[Array, Step, Step, Step, Step], Array]] = {
        "You normalise before each part, as newer models do; BERT normalises after the sum.": (
            lambda x, attend, feed, first, second: summed(
                summed(x, lambda y: attend(first(y))), lambda y: feed(second(y))
            )
        ),
        "You normalise what a part returns, and then add; add first, and normalise the sum.": (
            lambda x, attend, feed, first, second: summed(
                summed(x, lambda y: first(attend(y))), lambda y: second(feed(y))
            )
        ),
        "Nothing is added: after each part, add what came into it.": (
            lambda x, attend, feed, first, second: second(feed(first(attend(x))))
        ),
        "After attention, what came into it is not added.": (
            lambda x, attend, feed, first, second: second(summed(first(attend(x)), feed))
        ),
        "After feed-forward, what came into it is not added.": (
            lambda x, attend, feed, first, second: second(feed(first(summed(x, attend))))
        ),
        "After feed-forward you add what came into the layer; add what came into feed-forward.": (
            lambda x, attend, feed, first, second: second(x + feed(first(summed(x, attend))))
        ),
        "Feed-forward gets what came into the layer; give it what the first norm returns.": (
            lambda x, attend, feed, first, second: second(first(summed(x, attend)) + feed(x))
        ),
        "The two norms are exchanged: the first follows attention.": (
            lambda x, attend, feed, first, second: encoder_layer(x, attend, feed, second, first)
        ),
        "The first norm stands in both places.": (
            lambda x, attend, feed, first, second: encoder_layer(x, attend, feed, first, first)
        ),
        "Feed-forward comes first here; in BERT attention does.": (
            lambda x, attend, feed, first, second: encoder_layer(x, feed, attend, first, second)
        ),
        "The first norm is missing, after attention.": (
            lambda x, attend, feed, first, second: second(summed(summed(x, attend), feed))
        ),
        "The last norm is missing, after feed-forward.": (
            lambda x, attend, feed, first, second: summed(first(summed(x, attend)), feed)
        ),
        "Both norms are missing.": lambda x, attend, feed, first, second: summed(summed(x, attend), feed),
    }
    return compared(answer, encoder_layer, [(random.normal(size=(3, 4)), *steps, *norms)], mistakes)


def summed(x: Array, step: Step) -> Array:
    """Add what a part returns to what came in."""
    return x + step(x)


def encoder_layer(x: Array, attend: Step, feed: Step, first: Step, second: Step) -> Array:
    """Put a layer together as BERT does: LayerNorm(x + part(x)), twice."""
    return second(summed(first(summed(x, attend)), feed))


def variance(answer: Any) -> str | None:
    """Judge 5.3, the variance of float32 numbers [n], computed in float32, whose mean may be large."""
    random = np.random.default_rng(5)
    near, far = (mean + random.normal(size=100).astype(np.float32) for mean in (np.float32(0), np.float32(4000)))
    mistakes: dict[str, Callable[[Array], Array]] = {
        "That is the root of the variance.": lambda x: x.std(dtype=np.float64),
        "You divide by n - 1; LayerNorm divides by n.": lambda x: x.var(ddof=1, dtype=np.float64),
        "That is the mean of the squares: subtract the mean from the numbers first.": (
            lambda x: np.square(x, dtype=np.float64).mean()
        ),
        "That is the sum of the squares; divide it by n.": lambda x: x.var(dtype=np.float64) * len(x),
    }

    def exact(x: Array) -> Array:
        return x.var(dtype=np.float64)

    if wrong := compared(answer, exact, [(near,)], mistakes):
        return wrong
    result = answer(far.copy())
    if abs(result - exact(far)) <= 1e-4:
        return None
    return (
        f"The formula is right, but not in float32: for numbers near 4,000 you get {result:.3g} instead of "
        f"{exact(far):.3g}. Subtract the mean before you square: a square near 16 million has no digits left for "
        "differences of 1."
    )


EXERCISES: dict[str, Verdict] = {"5.1": layer_norm, "5.2": layer, "5.3": variance}
