"""The cost of rounding alone: how far the reference in a smaller dtype is from float64, at each point."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e5ref.checkpoint import Checkpoint
from e5ref.checkpoint.params import map_leaves
from e5ref.operations import Array, Ids
from e5ref.parity.altered.models import BATCH_TOKENS, round_params, rounded_model, run_reference
from e5ref.terminal.progress import progress_bar

# The largest relative error of one rounding: half the distance from 1 to the next larger float.
UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-9}

# A run passes at a point if both its largest error and its root mean square error are at most this many times what
# rounding alone costs the reference there. docs/laboratory/judge.md has the evidence.
FACTOR = 8.0

# dtype → point → {"max": the largest error, "rms": the root mean square error}, over the real tokens.
Costs = dict[str, dict[str, dict[str, float]]]

# The dtypes whose cost is measured.
ROUNDED = ("float32", "float16", "bfloat16")


def rounding_costs(
    checkpoint: Checkpoint,
    input_ids: Ids,
    attention_mask: Ids,
    *,
    only: Collection[str] | None = None,
) -> Costs:
    """Measure what rounding costs at each point for these inputs: the reference in each dtype against float64.

    The inputs are [B, T] each, with 1 in the mask for a real token. `only` names points; None takes all.

    Raises:
        ValueError: the weights are not float64; and as `numpy_model.embed`.
    """
    if checkpoint.params.embeddings.word.dtype != np.float64:
        raise ValueError('the truth is float64: read the checkpoint with dtype="float64"')
    single = map_leaves(lambda leaf: leaf.astype(np.float32), checkpoint.params)
    rounded = [(dtype, rounded_model(dtype), round_params(single, dtype)) for dtype in ROUNDED]
    sums: dict[tuple[str, str], ErrorSum] = {}
    texts, length = input_ids.shape
    batch_texts = max(1, BATCH_TOKENS // length)
    with progress_bar(texts, "rounding", "text") as progress:
        for start in range(0, texts, batch_texts):
            ids, mask = (array[start : start + batch_texts] for array in (input_ids, attention_mask))
            truth = run_reference(checkpoint, ids, mask, only=only)
            for dtype, model, params in rounded:
                points = run_reference(checkpoint, ids, mask, model=model, params=params, only=only)
                for name, expected in truth.items():
                    error = sums.setdefault((dtype, name), ErrorSum())
                    for text in range(len(mask)):
                        error.add(token_values(points[name], mask, text) - token_values(expected, mask, text))
            progress.update(len(ids))
    return costs_of(sums)


def costs_of(sums: Mapping[tuple[str, str], "ErrorSum"]) -> Costs:
    """Return the costs of rounding from the errors of each dtype at each point."""
    costs: Costs = {dtype: {} for dtype in ROUNDED}
    for (dtype, name), error in sums.items():
        costs[dtype][name] = {"max": error.max, "rms": error.rms}
    return costs


def costs_in(costs: Mapping[str, Mapping[str, Mapping[str, float]]], dtype: str) -> Mapping[str, Mapping[str, float]]:
    """Return what was measured for a dtype: point → cost. For float64 that is float32's, which is scaled then."""
    return costs.get("float32" if dtype == "float64" else dtype, {})


def cost_at(costs: Mapping[str, Mapping[str, Mapping[str, float]]], dtype: str, name: str) -> tuple[float, float]:
    """Return what rounding costs at a point in a dtype, as maximum and as RMS.

    The cost of float64 cannot be measured, since there is nothing more exact. It is float32's cost times the ratio of
    their unit roundoffs.

    Raises:
        KeyError: the cost was not measured.
    """
    measured = costs_in(costs, dtype)[name]
    scale = UNIT_ROUNDOFF["float64"] / UNIT_ROUNDOFF["float32"] if dtype == "float64" else 1.0
    return measured["max"] * scale, measured["rms"] * scale


class ErrorSum:
    """The largest of many errors, and their root mean square."""

    def __init__(self) -> None:
        """Start without errors."""
        self.max = self._squares = 0.0
        self._count = 0

    def add(self, errors: Array) -> None:
        """Add errors of any sign and shape."""
        self.max = max(self.max, float(np.abs(errors).max(initial=0)))
        self._squares += float(np.vdot(errors, errors))
        self._count += errors.size

    @property
    def rms(self) -> float:
        """The root mean square of the errors; 0 if there are no errors."""
        return float(np.sqrt(self._squares / max(self._count, 1)))


def least_costs(max_cost: float, rms_cost: float, scale: ErrorSum, unit: float) -> tuple[float, float]:
    """Return the costs of rounding at a point, raised to a minimum in case they are small by luck.

    The RMS is at least one rounding of every value. The maximum is at least the relative RMS cost times the largest
    value: a short text may hold only one or two outliers, such as a certain dimension of [CLS], and they may be rounded
    well by luck.

    `scale` is of the right values at that point, over the real tokens; `unit` is the largest relative error of one
    rounding.
    """
    rms_cost = max(rms_cost, unit * scale.rms)
    return max(max_cost, rms_cost * scale.max / scale.rms if scale.rms else 0.0), rms_cost


def token_values(array: NDArray[Any], attention_mask: Ids, text: int) -> NDArray[np.float64]:
    """Return the values that a point has at one text's real tokens, token by token, in float64.

    [B, D], [B, T, n], or [B, N, T, T] with queries before keys -> [1, D], [t, n] or [t, N * t] for a text of t tokens.
    """
    values = array[text]
    if values.ndim > 1:
        real = np.flatnonzero(attention_mask[text])
        values = values[real] if values.ndim == 2 else values[:, real][:, :, real].transpose(1, 0, 2)
        values = values.reshape(len(real), -1)
    else:
        values = values[None]
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes an ordinary one
        return values.astype(np.float64)
