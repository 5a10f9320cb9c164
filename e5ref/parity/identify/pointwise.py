"""What the activation may have been: a known function, or a measured curve."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from e5ref.operations import Array
from e5ref.operations.numpy_ops import normal_tail
from e5ref.parity.altered.changes import sigmoid, tanh_gelu
from e5ref.parity.altered.models import round_to
from e5ref.parity.identify.site import Candidate, Site, gelu


def normal(x: Array) -> Array:
    """The probability that a normal number is below x."""
    tail = normal_tail(np.abs(np.clip(x, -40, 40)))
    return np.where(x > 0, 1 - tail, tail)


FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "GELU in its tanh form": tanh_gelu,
    "x σ(1.702 x), GELU in its sigmoid form": lambda x: x * sigmoid(1.702 * x),
    "ReLU": lambda x: np.maximum(x, 0),
    "SiLU": lambda x: x * sigmoid(x),
    "left out": lambda x: x,
    "tanh": np.tanh,
    "a sigmoid": sigmoid,
    "ReLU squared": lambda x: np.maximum(x, 0) ** 2,
    "softplus": lambda x: np.logaddexp(x, 0),
    "Mish": lambda x: x * np.tanh(np.logaddexp(x, 0)),
    "ELU": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "hard swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "ReLU6": lambda x: np.clip(x, 0, 6),
    "leaky ReLU with 0.01": lambda x: np.where(x > 0, x, 0.01 * x),
    "x erf(x)": lambda x: x * (2 * normal(math.sqrt(2) * x) - 1),
    "GELU with erf(x) for erf(x / √2)": lambda x: x * normal(math.sqrt(2) * x),
    "GELU with erf(x / 2) for erf(x / √2)": lambda x: x * normal(x / math.sqrt(2)),
    "the normal distribution function without its factor x": normal,
    "GELU in its tanh form with 0.44715 for 0.044715": partial(tanh_gelu, cube=0.44715),
    "GELU in its tanh form with 0.04715 for 0.044715": partial(tanh_gelu, cube=0.04715),
    "GELU in its tanh form with 0.0044715 for 0.044715": partial(tanh_gelu, cube=0.0044715),
    "GELU in its tanh form without its cube": partial(tanh_gelu, cube=0.0),
    "GELU in its tanh form with 1 for √(2/π)": partial(tanh_gelu, root=1.0),
    "GELU in its tanh form with 2/π for √(2/π)": partial(tanh_gelu, root=2 / math.pi),
    "GELU twice": lambda x: gelu(gelu(x)),
    "GELU of −x": lambda x: gelu(-x),
    "GELU of a float16": lambda x: gelu(round_to(x, "float16")),
    "GELU of a bfloat16": lambda x: gelu(round_to(x, "bfloat16")),
    "GELU, rounded to float16": lambda x: round_to(gelu(x), "float16"),
    "GELU, rounded to bfloat16": lambda x: round_to(gelu(x), "bfloat16"),
}


def finishes(site: Site, before: Array) -> Iterator[tuple[str, Callable[[Site, Array], Array]]]:
    """Yield what the activation of a site may have been: in words, and as a function of what goes in."""
    for says, function in FUNCTIONS.items():
        yield f"the activation is {says}", lambda _site, x, function=function: function(x)
    yield "the bias is added after GELU", lambda site, x: gelu(x - site.affine.bias) + site.affine.bias
    run, right = np.concatenate(site.recorded.values(site.point)), gelu(before)
    with np.errstate(all="ignore"):
        share = run / before
        slope = _median((np.log(share / (1 - share)) / before)[(share > 0.01) & (share < 0.99)])
    leak = _median(share[before < 0])
    yield f"the activation is x σ({slope:.5g} x)", lambda _site, x: x * sigmoid(slope * x)
    yield f"the activation is leaky ReLU with {leak:.4g}", lambda _site, x: np.where(x > 0, x, leak * x)
    scale = float(np.vdot(right, run) / np.vdot(right, right))
    yield f"the activation is GELU times {scale:.5g}", lambda _site, x: scale * gelu(x)
    for says, bound, clipped in (("at most", float(run.max()), np.minimum), ("at least", float(run.min()), np.maximum)):
        yield (
            f"the activation is GELU, clipped to {says} {bound:.6g}",
            lambda _site, x, bound=bound, clipped=clipped: clipped(gelu(x), bound),
        )


def _median(values: Array) -> float:
    """The middle one; NaN if there are none."""
    return float(np.median(values)) if values.size else math.nan


def candidates(site: Site) -> Iterator[Candidate]:
    """Yield the reference's linear layer with each activation."""
    before = site.before_norm()
    for says, finish in finishes(site, before):
        yield Candidate(says, lambda site, finish=finish: finish(site, site.before_norm()))


def measured(site: Site) -> str:
    """Say whether the output is a function of the input alone, and where it departs from GELU."""
    x, run = site.before_norm().ravel(), np.concatenate(site.recorded.values(site.point)).ravel()
    order = np.argsort(x, kind="stable")
    x, run = x[order], run[order]
    guessed = np.interp(x[1::2], x[::2], run[::2])
    right = gelu(x[None])[0]  # a row for each number would take a loop of Python
    difference = np.abs(run - right)
    worst = int(difference.argmax())
    left = np.median(np.abs(run[1::2] - guessed))
    if left > 0.01 * np.median(difference[difference > 0]):
        return "the activation is no function of x W + b alone: the linear layer before it may be wrong"
    return (
        f"the activation is an unknown function of x W + b: it departs from GELU most at {x[worst]:.4g}, where it is "
        f"{run[worst]:.6g} instead of {right[worst]:.6g}"
    )
