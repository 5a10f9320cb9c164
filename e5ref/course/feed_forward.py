"""The exercises of docs/learn/4-feed-forward.md."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from e5ref.course import Verdict, compared
from e5ref.operations import Array
from e5ref.operations.numpy_ops import normal_tail

RANDOM = np.random.default_rng(4)
NUMBERS = np.linspace(-4, 4, 17)
# With D = F a weight that is not transposed fits, too; D and F that differ come after it.
SQUARE = (RANDOM.normal(size=(3, 4)), *(RANDOM.normal(size=shape) for shape in ((4, 4), (4,), (4, 4), (4,))))
UNEQUAL = (RANDOM.normal(size=(3, 2)), *(RANDOM.normal(size=shape) for shape in ((6, 2), (6,), (2, 6), (2,))))

Curve = Callable[[Array], Array]

ROOT = math.sqrt(2 / math.pi)


def below(x: Array) -> Array:
    """Φ(x), the share of a normal distribution that lies below x."""
    tail = normal_tail(np.abs(x))
    return np.where(x < 0, tail, 1 - tail)


def gelu(x: Array) -> Array:
    """GELU in its erf form."""
    return x * below(x)


def tanh_gelu(x: Array) -> Array:
    """GELU in its tanh form."""
    return x * (1 + np.tanh(ROOT * (x + 0.044715 * x**3))) / 2


def relu(x: Array) -> Array:
    """What GELU is a smooth form of."""
    return np.maximum(x, 0)


CURVES: dict[str, Curve] = {
    "This is GELU's tanh form, which differs by up to 4.7e-4: use erf.": tanh_gelu,
    "This is GELU's sigmoid form, which differs by up to 0.02: use erf.": lambda x: x / (1 + np.exp(-1.702 * x)),
    "This is SiLU, x times the sigmoid of x: use erf.": lambda x: x / (1 + np.exp(-x)),
    "This is ReLU, which has a corner at 0: multiply x by Φ(x).": relu,
    "This is Φ(x): multiply it by x.": below,
    "erf wants x / √2: Φ(x) = (1 + erf(x / √2)) / 2.": lambda x: x * below(x * math.sqrt(2)),
    "This is twice GELU: Φ(x) is half of 1 + erf(x / √2).": lambda x: 2 * gelu(x),
    "This lacks the 1: Φ(x) = (1 + erf(x / √2)) / 2.": lambda x: gelu(x) - x / 2,
}


def check_gelu(answer: object) -> str | None:
    """Exercise 4.1: GELU of an array."""
    return compared(answer, gelu, [(NUMBERS,)], CURVES) or compared(answer, gelu, [(NUMBERS[:16].reshape(4, 4),)], {})


def feed_forward(x: Array, up: Array, up_bias: Array, down: Array, down_bias: Array, curve: Curve = gelu) -> Array:
    """The feed-forward network with a curve between its two layers. [T, D], [F, D], [F], [D, F], [D] -> [T, D]."""
    return curve(x @ up.T + up_bias) @ down.T + down_bias


linear = partial(feed_forward, curve=lambda x: x)


def check_feed_forward(answer: object) -> str | None:
    """Exercise 4.2: up, GELU, down."""
    return compared(
        answer,
        feed_forward,
        [SQUARE],
        {
            "The weights are [out, in], as in the checkpoint: x Wᵀ, not x W.": lambda x, up, up_bias, down, down_bias: (
                feed_forward(x, up.T, up_bias, down.T, down_bias)
            ),
            "The weight of the first layer is [F, D]: x Wᵀ, not x W.": lambda x, up, *rest: feed_forward(
                x, up.T, *rest
            ),
            "The weight of the second layer is [D, F]: x Wᵀ, not x W.": lambda x, up, up_bias, down, down_bias: (
                feed_forward(x, up, up_bias, down.T, down_bias)
            ),
            "There is no curve between the two layers: without GELU they are one.": linear,
            "The curve is ReLU: use GELU.": partial(feed_forward, curve=relu),
            "The curve is GELU's tanh form: use the erf form of exercise 4.1.": partial(feed_forward, curve=tanh_gelu),
            "GELU comes at the end: it belongs between the two layers.": lambda *arrays: gelu(linear(*arrays)),
            "GELU comes a second time, at the end: it belongs only between the two layers.": lambda *arrays: gelu(
                feed_forward(*arrays)
            ),
            "Both biases are missing.": lambda x, up, up_bias, down, down_bias: gelu(x @ up.T) @ down.T,
            "The first bias is missing: add it before GELU.": lambda x, up, up_bias, down, down_bias: feed_forward(
                x, up, 0 * up_bias, down, down_bias
            ),
            "The first bias is added after GELU: add it before.": lambda x, up, up_bias, down, down_bias: (
                (gelu(x @ up.T) + up_bias) @ down.T + down_bias
            ),
            "The second bias is missing.": lambda x, up, up_bias, down, down_bias: feed_forward(
                x, up, up_bias, down, 0 * down_bias
            ),
            "x is added at the end: that is the layer's next step, not this one's.": lambda x, *rest: (
                x + feed_forward(x, *rest)
            ),
        },
    ) or compared(answer, feed_forward, [UNEQUAL], {})


# The largest |tanh form - erf form|, near x = 2.699 and x = -2.699.
LARGEST = 4.732e-4


def check_difference(answer: object) -> str | None:
    """Exercise 4.3: how far the two forms of GELU lie apart."""
    try:
        value = float(answer)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return "This exercise wants one number, the largest difference."

    def near(wanted: float) -> bool:
        return math.isclose(value, wanted, rel_tol=2e-3)

    if near(LARGEST):
        return None
    if near(-LARGEST):
        return "The difference is negative: take its size, np.abs."
    if near(2.337e-4):
        return "This is how far the tanh form lies below: it lies further above elsewhere, so take np.abs before max."
    if near(2.034e-2):
        return "This is what the sigmoid form differs by: compare the tanh form."
    if near(2.699) or near(-2.699):
        return "This is the x at which they differ most: how much do they differ there?"
    if 3e-4 < value < LARGEST:
        return "It is a bit more: look at more values of x, in steps of 0.01 from -5 to 5."
    if 1e-12 < value < 3e-4:
        return "It is more: look from -5 to 5, in steps of 0.01."
    if value == 0:
        return "They are not equal: were both values those of the same form?"
    return f"{value:g} is not it: take np.abs(tanh form - erf form).max() from -5 to 5, in steps of 0.01."


EXERCISES: dict[str, Verdict] = {"4.1": check_gelu, "4.2": check_feed_forward, "4.3": check_difference}
