"""The mistakes that change numbers least, beside the right way that errs most: the factor lies between the two.

`python -m tests.measure.parity.small_mistakes FOLDER…` prints how many times the cost of rounding each errs, in every
dtype: a table of docs/laboratory/judge.md.
"""

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

import e5ref
from e5ref import numpy_model
from e5ref.parity import Comparison, Run, compare
from e5ref.parity.altered.models import round_params, round_to, rounded_model, run_reference
from e5ref.terminal.table import aligned
from tests.tools.runs import reference_run, run_of

TEXTS = ["query: how much protein should a female eat", "a", "passage: naïve café, 日本語", "passage: " + "green " * 30]
DTYPES = ("float32", "float16", "bfloat16")


def tanh_gelu(x):
    return x * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3))) / 2


def epsilon_of_1e5(x, weight, bias, eps):
    return numpy_model.layer_norm(x, weight, bias, 1e-5)


def variance_over_n_minus_1(x, weight, bias, eps):
    return numpy_model.layer_norm(x, weight * np.float32(math.sqrt(1 - 1 / x.shape[1])), bias, eps)


def product_of_tf32(x, weight, bias):
    """As an NVIDIA card multiplies float32 unless it is told otherwise: factors with 10 bits after the point."""
    x, weight = (
        ((a.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32) for a in (x, weight)
    )
    return numpy_model.linear(x, weight, bias)


def product_with_rounded_weight(x, weight, bias):
    return numpy_model.linear(x, round_to(weight, "float16"), bias)


def product_in_plain_loops(x, weight, bias):
    """As a port writes it first: one term after another, added up in float32."""
    result = np.zeros((len(x), len(weight)), np.float32)
    for column in range(x.shape[1]):
        result += x[:, column, None] * weight[None, :, column]
    return result + bias


def layer_norm_in_plain_loops(x, weight, bias, eps):
    centred = x - np.add.accumulate(x, axis=1)[:, -1:] / np.float32(x.shape[1])
    variance = np.add.accumulate(centred * centred, axis=1)[:, -1:] / np.float32(x.shape[1])
    return centred / np.sqrt(variance + np.float32(eps)) * weight + bias


# Right, in the order of adding up that errs most.
PLAIN_LOOPS = {"linear": product_in_plain_loops, "layer_norm": layer_norm_in_plain_loops}

# What is done wrong, and at which point that is to be noticed first.
SMALL: dict[str, tuple[Mapping[str, Callable], str]] = {
    "tanh GELU": ({"gelu": tanh_gelu}, "layers.0.feed_forward_activation"),
    "epsilon of 1e-5": ({"layer_norm": epsilon_of_1e5}, "embeddings"),
    "variance over n - 1": ({"layer_norm": variance_over_n_minus_1}, "embeddings"),
    "products of TF32": ({"linear": product_of_tf32}, "layers.0.query"),
    "matrices of float16": ({"linear": product_with_rounded_weight}, "layers.0.query"),
}


def judged(
    checkpoint: e5ref.Checkpoint, reference: Run, replacements: Mapping[str, Callable], dtype: str = "float32"
) -> Comparison:
    """Judge the forward pass of a dtype with some functions replaced."""
    model = rounded_model(dtype)
    for name, function in replacements.items():
        setattr(model, name, function if dtype == "float32" else rounding(function, dtype))
    params = round_params(checkpoint.params, dtype)
    points = run_reference(checkpoint, reference.input_ids, reference.attention_mask, model=model, params=params)
    return compare(run_of(points, reference, dtype), reference)


def rounding(function: Callable, dtype: str) -> Callable:
    return lambda x, *args: round_to(function(round_to(x, dtype), *args), dtype)


def reference_of(folder: Path) -> Run:
    tokens = e5ref.load(folder).tokenize(TEXTS)
    return reference_run(folder, tokens["input_ids"], tokens["attention_mask"])


def main() -> None:
    """Print the table."""
    rows = []
    for folder in map(Path, sys.argv[1:]):
        checkpoint, reference = e5ref.read_checkpoint(folder), reference_of(folder)
        for name, (replacements, point) in {"plain loops": (PLAIN_LOOPS, ""), **SMALL}.items():
            row = {"what": name, "checkpoint": folder.name}
            for dtype in DTYPES:
                comparison = judged(checkpoint, reference, replacements, dtype)
                first = comparison.first_departure
                factor = max(verdict.factor for verdict in comparison.verdicts if verdict.name == point or not point)
                row[f"{dtype}: times the cost"] = f"{factor:,.1f}"
                row[f"{dtype}: found at"] = first.name if first else "-"
            rows.append(row)
    print(aligned(rows))


if __name__ == "__main__":
    main()
