"""The operations of a run, one by one: each point is computed from the run's own points before it.

So one operation is looked at without the errors of those before it. A `Site` is one operation at one place, with what
went in, what came out, and the weights.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from e5ref import numpy_model
from e5ref.checkpoint import Checkpoint
from e5ref.checkpoint.config import BertConfig
from e5ref.checkpoint.params import Affine, BertParams, Layer, map_leaves
from e5ref.operations import Array, Ids
from e5ref.operations.rows import token_positions
from e5ref.parity.runs.rounding import UNIT_ROUNDOFF, ErrorSum, cost_at, least_costs, token_values
from e5ref.parity.runs.run import Run

Values = Array | list[Array]  # rows [R, n], or for attention one array of rows [t, N * t] for each text
Compute = Callable[["Site"], Values]

# Point → the linear layer that makes it.
LINEAR = {
    "query": "query",
    "key": "key",
    "value": "value",
    "attention_output": "attention_output",
    "feed_forward_activation": "feed_forward_up",
    "output": "feed_forward_down",
}

# Point → the LayerNorm that ends it.
NORM = {"attention_output": "attention_layer_norm", "output": "output_layer_norm"}


@dataclass(frozen=True)
class Candidate:
    """What an operation may have been.

    Attributes:
        says: it in words.
        compute: computes it from what went in.
    """

    says: str
    compute: Compute


class Recorded:
    """Some texts of a run, text after text without padding, in one dtype.

    Attributes:
        run, reference: the run that is judged, and the float64 run that it is judged by.
        texts: which texts.
        config: the checkpoint's sizes.
        params: the checkpoint's weights, in `dtype`.
    """

    def __init__(
        self, run: Run, reference: Run, checkpoint: Checkpoint, texts: Sequence[int], dtype: str = "float64"
    ) -> None:
        """Choose the texts; nothing is read yet."""
        self.run, self.reference, self.checkpoint, self.texts, self.dtype = run, reference, checkpoint, texts, dtype
        self.config: BertConfig = checkpoint.config
        self._values: dict[str, list[Array]] = {}

    @cached_property
    def params(self) -> BertParams:
        """The weights in the dtype of the record."""
        return map_leaves(lambda leaf: np.asarray(leaf, self.dtype), self.checkpoint.params)

    @cached_property
    def single(self) -> "Recorded":
        """The same in float32, which says what rounding costs one operation."""
        return Recorded(self.run, self.reference, self.checkpoint, self.texts, "float32")

    def with_params(self, params: BertParams) -> "Recorded":
        """Return the same texts of the run, for different weights."""
        record = Recorded(self.run, self.reference, replace(self.checkpoint, params=params), self.texts, self.dtype)
        record._values = self._values  # the run's own numbers
        return record

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """The real tokens of each text."""
        return self.run.attention_mask[list(self.texts)].astype(bool).sum(axis=1)

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """The token ids, text after text. [R]."""
        return self._of_tokens(self.reference.input_ids)

    @cached_property
    def positions(self) -> NDArray[np.int64]:
        """The row of the position embedding that each token takes. [R]."""
        mask = self.reference.attention_mask.astype(np.int64)
        return self._of_tokens(token_positions(self.reference.input_ids, mask, self.config))

    @cached_property
    def places(self) -> dict[str, NDArray[np.int64]]:
        """What tells tokens apart: their text, place in it, place from its end, place in the batch, text's length."""
        lengths = self.run.attention_mask.astype(bool).sum(axis=1)
        before = np.cumsum(lengths) - lengths
        parts = [
            (np.full(n, text), np.arange(n), np.arange(n)[::-1], before[text] + np.arange(n), np.full(n, n))
            for text, n in zip(self.texts, self.lengths.tolist(), strict=True)
        ]
        names = ("text", "token", "token from the end", "token of the batch", "length")
        return dict(zip(names, map(np.concatenate, zip(*parts, strict=True)), strict=True))

    def per_text(self, rows: Array) -> list[Array]:
        """Split rows into those of each text."""
        return np.split(rows, np.cumsum(self.lengths)[:-1])

    def values(self, name: str) -> list[Array]:
        """Return the run's values at a point, one array of rows for each text."""
        if name not in self._values:
            array, mask = self.run.points[name], self.run.attention_mask
            self._values[name] = [token_values(array, mask, text).astype(self.dtype) for text in self.texts]
        return self._values[name]

    def rows(self, name: str) -> Array:
        """Return the run's values at a point as rows. [R, n]."""
        return np.concatenate(self.values(name))

    def squares(self, name: str) -> list[Array]:
        """Return the run's attention probabilities, [N, t, t] for each text."""
        heads = self.config.num_attention_heads
        return [rows.reshape(len(rows), heads, -1).swapaxes(0, 1) for rows in self.values(name)]

    def _of_tokens(self, array: Ids) -> NDArray[np.int64]:
        real = self.reference.attention_mask == 1
        return np.concatenate([array[text][real[text]] for text in self.texts])


@dataclass(frozen=True)
class Site:
    """One operation of a run.

    Attributes:
        recorded: the run.
        point: the point that the operation makes.
    """

    recorded: Recorded
    point: str

    @property
    def kind(self) -> str:
        """The point without its layer."""
        return self.point.rpartition(".")[2]

    @property
    def index(self) -> int | None:
        """The layer, from 0; None outside the layers."""
        layer = re.match(r"layers\.(\d+)\.", self.point)
        return int(layer[1]) if layer else None

    @property
    def layer(self) -> Layer:
        """The weights of the layer."""
        return self.recorded.params.layers[self.index or 0]

    @property
    def config(self) -> BertConfig:
        """The checkpoint's sizes and constants."""
        return self.recorded.config

    @property
    def affine(self) -> Affine:
        """The linear layer that makes the point."""
        return getattr(self.layer, LINEAR[self.kind])

    @property
    def norm(self) -> Affine:
        """The LayerNorm that ends the operation."""
        return (
            self.recorded.params.embeddings.layer_norm if self.index is None else getattr(self.layer, NORM[self.kind])
        )

    @property
    def feeds(self) -> tuple[str, ...]:
        """The points that the operation is computed from, those that it multiplies first."""
        before = f"layers.{self.index - 1}.output" if self.index else "embeddings"
        of = f"layers.{self.index}."
        last = f"layers.{len(self.recorded.params.layers) - 1}.output"
        return {
            "embeddings": (),
            "attention_probabilities": (of + "query", of + "key"),
            "context": (of + "attention_probabilities", of + "value"),
            "attention_output": (of + "context", before),
            "feed_forward_activation": (of + "attention_output",),
            "output": (of + "feed_forward_activation", of + "attention_output"),
            "last_hidden_state": (last,) if last in self.recorded.run.points else (),
            "pooled": ("last_hidden_state",),
            "normalized": ("pooled",),
        }.get(self.kind, (before,))

    @property
    def is_recorded(self) -> bool:
        """Whether the run holds the point and all that feeds it, without NaN."""
        points, names = self.recorded.run.points, (self.point, *self.feeds)
        return all(name in points and bool(np.isfinite(points[name]).all()) for name in names)

    @property
    def x(self) -> Array:
        """What goes in first. [R, n]."""
        return self.recorded.rows(self.feeds[0])

    @property
    def residual(self) -> Array:
        """What is added to a linear layer's output. [R, D]; 0 if nothing is."""
        return self.recorded.rows(self.feeds[1]) if self.kind in NORM else np.zeros((), self.recorded.dtype)

    def output(self) -> Values:
        """Return what the run recorded."""
        values = self.recorded.values(self.point)
        return values if self.kind == "attention_probabilities" else np.concatenate(values)

    def before_norm(self) -> Array:
        """Return what is added up and normalised, or goes into GELU, in the reference. [R, n]."""
        if self.kind == "embeddings":
            word, position, token_type, _ = self.recorded.params.embeddings
            return word[self.recorded.ids] + position[self.recorded.positions] + token_type[0]
        return linear(self.x, self.affine)

    def errors(self, computed: Values) -> list[Array]:
        """Return how far the run is from computed values, for each text."""
        rows = computed if isinstance(computed, list) else self._split(computed)
        return [run - ours for run, ours in zip(self.recorded.values(self.point), rows, strict=True)]

    def factor(self, compute: Compute, spare: float = 0.0) -> float:
        """Return how many times the cost of rounding the run is from what an operation computes.

        Args:
            compute: the operation.
            spare: the share of the numbers that do not count, those with the largest errors.
        """
        with np.errstate(all="ignore"):
            computed = compute(self)
            factor = self._factor(computed, ErrorSum(), spare)
            if 1 < factor < 1e4 and self.recorded.run.dtype == "float32":
                cost = ErrorSum()
                rounded = compute(Site(self.recorded.single, self.point))
                for ours, single in zip(as_list(computed), as_list(rounded), strict=True):
                    cost.add(ours - np.asarray(single, np.float64))
                factor = self._factor(computed, cost, spare)
        return factor

    def allowed(self, computed: Values) -> tuple[float, float]:
        """Return what rounding costs here, as maximum and as RMS, for values of the size of these."""
        scale, plain = ErrorSum(), ErrorSum()
        for rows in as_list(computed):
            scale.add(rows)
        reference, dtype = self.recorded.reference, self.recorded.run.dtype
        for text in self.recorded.texts:
            plain.add(token_values(reference.points[self.point], reference.attention_mask, text))
        grown = max(1.0, scale.rms / plain.rms if plain.rms else 1.0)
        unit = max(UNIT_ROUNDOFF[dtype], UNIT_ROUNDOFF[str(reference.points[self.point].dtype)])
        max_cost, rms_cost = cost_at(reference.rounding, dtype, self.point)
        return least_costs(max_cost * grown, rms_cost * grown, scale, unit)

    def _factor(self, computed: Values, cost: ErrorSum, spare: float) -> float:
        errors = ErrorSum()
        left = np.concatenate([np.abs(rows).ravel() for rows in self.errors(computed)])
        if not np.isfinite(left).all():
            return math.inf
        if count := int(spare * len(left)):
            left = np.partition(left, len(left) - count)[:-count]
        errors.add(left)
        max_cost, rms_cost = self.allowed(computed)
        max_cost, rms_cost = max(max_cost, cost.max), max(rms_cost, cost.rms)
        if not max_cost:
            return 0.0 if errors.max == 0 else math.inf
        return max(errors.max / max_cost, errors.rms / rms_cost)

    def _split(self, rows: Array) -> list[Array]:
        return list(rows[:, None]) if self.kind in ("pooled", "normalized") else self.recorded.per_text(rows)


def as_list(values: Values) -> list[Array]:
    """Return values as a list of arrays."""
    return values if isinstance(values, list) else [values]


def linear(x: Array, affine: Affine) -> Array:
    """x Wᵀ + b. [R, in] -> [R, out]."""
    return x @ affine.weight.T + affine.bias


def layer_norm(x: Array, affine: Affine, eps: float) -> Array:
    """The reference's LayerNorm, of a copy."""
    return numpy_model.layer_norm(np.array(x), *affine, eps)


def gelu(x: Array) -> Array:
    """The reference's GELU, of a copy."""
    return numpy_model.gelu(np.array(x))


def heads(rows: Array, config: BertConfig) -> Array:
    """Split rows into heads. [t, D] -> [N, t, H]."""
    return rows.reshape(len(rows), config.num_attention_heads, -1).swapaxes(0, 1)


def finished(site: Site, before: Array) -> Array:
    """What the reference does after the linear layer: nothing, GELU, or residual and LayerNorm."""
    if site.kind == "feed_forward_activation":
        return gelu(before)
    if site.kind in NORM or site.kind == "embeddings":
        return layer_norm(before + site.residual, site.norm, site.config.layer_norm_eps)
    return before


def plain(site: Site) -> Values:
    """Compute a point as the reference does, from what the run recorded before it."""
    if site.kind == "attention_probabilities":
        return [joined(softmax(scores(site, text))) for text in range(len(site.recorded.texts))]
    if site.kind == "context":
        probabilities, value = site.recorded.squares(site.feeds[0]), site.recorded.values(site.feeds[1])
        return np.concatenate(
            [joined(square @ heads(rows, site.config)) for square, rows in zip(probabilities, value, strict=True)]
        )
    if site.kind == "last_hidden_state":  # 0 if the last layer was not run
        return site.x if site.feeds else 0 * site.recorded.rows(site.point)
    if site.kind == "pooled":
        states = site.recorded.values(site.feeds[0])
        return np.stack(
            [rows.mean(axis=0) if site.recorded.checkpoint.settings.pooling == "mean" else rows[0] for rows in states]
        )
    if site.kind == "normalized":
        return numpy_model.l2_normalize(site.x)
    return finished(site, site.before_norm())


def departure(site: Site) -> float:
    """Return how far the run is from what the reference computes there, in norm, as a share of it."""
    right = plain(site)
    error, size = (np.concatenate([each.ravel() for each in of]) for of in (site.errors(right), as_list(right)))
    return float(np.linalg.norm(error) / np.linalg.norm(size))


def scores(site: Site, text: int) -> Array:
    """The scaled scores of a text. [N, t, t], queries down."""
    query, key = (heads(site.recorded.values(name)[text], site.config) for name in site.feeds)
    return query @ key.swapaxes(-1, -2) * (1 / math.sqrt(site.config.head_size))


def softmax(x: Array) -> Array:
    """Softmax over the keys. [N, t, t]."""
    exponents = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


def joined(x: Array) -> Array:
    """Put heads side by side. [N, t, n] -> [t, N * n]."""
    return x.swapaxes(0, 1).reshape(x.shape[1], -1)
