"""What rounding alone costs: how far the reference in a smaller dtype is from float64, at each point."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e5ref.checkpoint import Checkpoint
from e5ref.checkpoint.params import map_leaves
from e5ref.operations import Array, Ids
from e5ref.parity.altered.models import BATCH_TOKENS, round_params, rounded_model, run_reference
from e5ref.terminal.progress import progress_bar

# Half the distance from 1 to the next number: what one rounding may cost of a number.
UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-9}

# dtype → point → {"max": the largest error, "rms": the root of the mean squared error}, over the real tokens.
Costs = dict[str, dict[str, dict[str, float]]]


def rounding_costs(
    checkpoint: Checkpoint,
    input_ids: Ids,
    attention_mask: Ids,
    *,
    only: Collection[str] | None = None,
    dtypes: Iterable[str] = ("float32", "float16", "bfloat16"),
) -> Costs:
    """Measure what rounding costs at each point, for these inputs: the reference in each dtype against float64.

    Args:
        checkpoint: the weights, in float64.
        input_ids: [B, T].
        attention_mask: [B, T], 1 for a real token and 0 for padding.
        only: names of the points to measure; None for all.
        dtypes: "float32", "float16", "bfloat16".

    Returns:
        dtype → point → "max" and "rms" of the error.

    Raises:
        ValueError: weights that are not float64, and as `numpy_model.embed`.
    """
    if checkpoint.params.embeddings.word.dtype != np.float64:
        raise ValueError('the truth is float64: read the checkpoint with dtype="float64"')
    single = map_leaves(lambda leaf: leaf.astype(np.float32), checkpoint.params)
    ways = [(dtype, rounded_model(dtype), round_params(single, dtype)) for dtype in dtypes]
    sums: dict[tuple[str, str], ErrorSum] = {}
    texts, length = input_ids.shape
    rows = max(1, BATCH_TOKENS // length)
    with progress_bar(texts, "rounding", "text") as progress:
        for start in range(0, texts, rows):
            ids, mask = (array[start : start + rows] for array in (input_ids, attention_mask))
            truth = run_reference(checkpoint, ids, mask, only=only)
            for dtype, model, params in ways:
                points = run_reference(checkpoint, ids, mask, model=model, params=params, only=only)
                for name, expected in truth.items():
                    error = sums.setdefault((dtype, name), ErrorSum())
                    for text in range(len(mask)):
                        error.add(text_rows(points[name], mask, text) - text_rows(expected, mask, text))
            progress.update(len(ids))
    costs: Costs = {dtype: {} for dtype, _, _ in ways}
    for (dtype, name), error in sums.items():
        costs[dtype][name] = {"max": error.max, "rms": error.rms}
    return costs


def cost_at(costs: Mapping[str, Mapping[str, Mapping[str, float]]], dtype: str, name: str) -> tuple[float, float]:
    """Return what rounding costs at a point in a dtype, at most and as RMS.

    float64's is not measured, since there is nothing more exact: it is float32's, as much smaller as its roundings are.

    Raises:
        KeyError: that was not measured.
    """
    measured = costs["float32" if dtype == "float64" else dtype][name]
    scale = UNIT_ROUNDOFF["float64"] / UNIT_ROUNDOFF["float32"] if dtype == "float64" else 1.0
    return measured["max"] * scale, measured["rms"] * scale


class ErrorSum:
    """The largest of many errors, and the root of their mean square."""

    def __init__(self) -> None:
        """Start with none."""
        self.max = self._squares = 0.0
        self._count = 0

    def add(self, errors: Array) -> None:
        """Add errors of any sign and shape."""
        self.max = max(self.max, float(np.abs(errors).max(initial=0)))
        self._squares += float(np.vdot(errors, errors))
        self._count += errors.size

    @property
    def rms(self) -> float:
        """The root of the mean squared error; 0 where there is none."""
        return float(np.sqrt(self._squares / max(self._count, 1)))


def least_costs(max_cost: float, rms_cost: float, scale: ErrorSum, unit: float) -> tuple[float, float]:
    """Return what rounding costs at a point, or what it must at least be taken to cost where it cost less by chance.

    As RMS that is one rounding of every number. At most, it is as much of the largest number as of the others: where
    one is far larger than the rest, such as a certain dimension of [CLS], the largest error is that number's, and a
    short text has but one or two of them, which may happen to be rounded well.

    Args:
        max_cost: as measured, and so is the next.
        rms_cost: see there.
        scale: the right numbers at that point, over the real tokens.
        unit: what one rounding may cost of a number.
    """
    rms_cost = max(rms_cost, unit * scale.rms)
    return max(max_cost, rms_cost * scale.max / scale.rms if scale.rms else 0.0), rms_cost


def text_rows(array: NDArray[Any], attention_mask: Ids, text: int) -> NDArray[np.float64]:
    """Return what belongs to the real tokens of one text, a row per token, in float64.

    Args:
        array: a point: [B, D], [B, T, n], or [B, N, T, T] with queries before keys.
        attention_mask: [B, T].
        text: which text.

    Returns:
        [1, D], [t, n] or [t, N * t] for a text of t tokens.
    """
    values = array[text]
    if values.ndim > 1:
        real = np.flatnonzero(attention_mask[text])
        values = values[real] if values.ndim == 2 else values[:, real][:, :, real].transpose(1, 0, 2)
        values = values.reshape(len(real), -1)
    else:
        values = values[None]
    with np.errstate(invalid="ignore"):  # of a signalling NaN, which is NaN afterwards too
        return values.astype(np.float64)
