"""How near predicted vectors are to given ones, whatever happened to scale, order, width and digits afterwards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e5ref import numpy_model
from e5ref.checkpoint import read_checkpoint
from e5ref.encoder import E5
from e5ref.engines.batching import pad_ids
from e5ref.operations.similarity import dots
from e5ref.parity.altered.models import round_params, rounded_model
from e5ref.parity.diagnosis.given import Given

Floats = NDArray[np.floating]

# Rounding explains distances up to these multiples of its level, which is measured on a few texts: the median of the
# texts, and the worst of them. Two implementations in one dtype round at different places, so each is off by about the
# level. float32 is far from everything else, so it gets more room.
FACTORS = {"float32": (6.0, 12.0), "float16": (2.5, 5.0), "bfloat16": (2.5, 5.0)}

# The same for values that were rounded afterwards. The level of that is known very well.
STORED_FACTORS = (1.5, 2.5)

# Rounding coarser than float32 reaches every text. If a quarter of the texts are nearer than this part of its level,
# the rest have a different problem.
LEAST = 0.15

# A cautious guess of how many values of a vector are independent, to tell chance from evidence.
INDEPENDENT = 30


@dataclass(frozen=True)
class Fit:
    """How predicted vectors compare with the given ones."""

    distances: Floats  # between the two directions of each text, [m]
    predicted: Floats  # the predicted directions, cut to the given width, [m, d]
    scale: str  # what happened to the length of the vectors, for people; "" if they are normalised
    width: tuple[int, int]  # the dimensions of given and predicted vectors
    order: str  # how the vectors are out of order; "" if they are not

    @property
    def median(self) -> float:
        """The median distance."""
        return float(np.median(self.distances))

    @property
    def worst(self) -> float:
        """The largest distance."""
        return float(self.distances.max())

    def only(self, texts: Sequence[int]) -> "Fit":
        """Return the fit of some of the texts."""
        chosen = list(texts)
        return replace(self, distances=self.distances[chosen], predicted=self.predicted[chosen])

    def deviations(self, normalize: bool) -> tuple[str, ...]:
        """Name what departs from the card, which says whether to `normalize`."""
        scale = self.scale
        if not normalize:
            scale = {"": "normalised", "not normalised": ""}.get(scale, scale)
        cut = ""
        if self.width[0] < self.width[1]:
            cut = f"cut to {self.width[0]} of {self.width[1]} dimensions"
            if scale == "cut after normalisation":
                cut, scale = f"{cut}, not normalised again", ""
        return tuple(filter(None, (self.order, cut, scale)))


def fit(predicted: Floats, given: Given, indices: Sequence[int]) -> Fit:
    """Compare predicted vectors, [m, D] and not normalised, with those given for the same texts, [n, d] with d ≤ D.

    `indices`, [m], says which of the given vectors belong to the predicted ones.
    """
    texts = np.asarray(indices, np.int64)
    cut = predicted[:, : given.width]
    directions = numpy_model.l2_normalize(cut)
    distances = np.linalg.norm(directions - given.directions[texts], axis=1)
    order, matches = "", texts
    if len(given.vectors) > 1 and np.median(distances) > 1e-3:
        nearest = np.argmax(dots(directions, given.directions), axis=1)  # the first of equal vectors
        found = np.linalg.norm(directions - given.directions[nearest], axis=1)
        if np.median(found) < np.median(distances) / 3 and len(set(nearest.tolist())) > len(texts) / 2:
            order, matches, distances = _order(texts, nearest, given.lengths), nearest, found
    width = (given.width, predicted.shape[1])
    scale = _scale(predicted, cut, given.vectors[matches], float(np.median(distances)))
    return Fit(distances, directions, scale, width, order)


def _order(texts: NDArray[np.int64], nearest: NDArray[np.int64], lengths: NDArray[np.int64]) -> str:
    """Describe the order of vectors that are out of order: the vector of texts[i] stands at nearest[i]."""
    count = len(lengths)
    if np.array_equal(nearest, count - 1 - texts):
        return "order reversed"
    shift = (nearest - texts) % count
    if (shift == shift[0]).all():
        return f"order shifted by {shift[0] if shift[0] <= count / 2 else shift[0] - count}"
    by_place = lengths[texts][np.argsort(nearest)]
    if len(texts) > 3 and (np.diff(by_place) <= 0).mean() > 0.85:
        return "order changed: sorted by length, the longest first"
    if len(texts) > 3 and (np.diff(by_place) >= 0).mean() > 0.85:
        return "order changed: sorted by length, the shortest first"
    return "order shuffled"


def _scale(predicted: Floats, cut: Floats, given: Floats, distance: float) -> str:
    """Describe what happened to the length of vectors whose directions are off by `distance`."""
    norms = np.linalg.norm(given, axis=1)
    tolerance = max(3 * distance, 1e-4)

    def near(expected: Any) -> bool:
        return bool(np.median(np.abs(norms / expected - 1)) <= tolerance)

    own = np.linalg.norm(cut, axis=1)
    whole = np.linalg.norm(predicted, axis=1)
    if near(1.0):
        return ""
    if cut.shape != predicted.shape and near(own / whole):
        return "cut after normalisation"
    if near(own):
        return "not normalised"
    if near(np.median(norms)):
        return f"scaled by {np.median(norms):.4g}"
    if near(1 / np.sum(np.abs(cut), axis=1) * own):
        return "L1 norm for L2"
    if near(own * np.median(norms / own)):
        return f"not normalised, and scaled by {np.median(norms / own):.4g}"
    return "lengths changed in an unknown way"


@dataclass(frozen=True)
class Levels:
    """How far rounding moves a checkpoint's directions: dtype → the largest distance over a few texts."""

    of: Mapping[str, float]

    def explain(self, fitted: Fit, given: Given) -> tuple[str, float]:
        """Find the finest rounding that explains the distances, and its level; "" and the first level if none does."""
        for dtype, level in self.of.items():
            for worst, distance in enumerate((fitted.median, fitted.worst)):
                if distance > FACTORS[dtype][worst] * level + STORED_FACTORS[worst] * given.stored_level:
                    break
            else:
                total = float(np.hypot(level, given.stored_level))
                if dtype == "float32":
                    return given.stored or dtype, total
                if np.quantile(fitted.distances, 0.25) >= LEAST * level:
                    return dtype, total
        return "", self.of["float32"]


def measure_levels(encoder: E5, ids: Sequence[Sequence[int]]) -> Levels:
    """Measure on the tokens of a few texts how far rounding moves directions, for a checkpoint in float32.

    It is the largest distance from float64's directions, for float32 and for simulated float16 and bfloat16.
    """
    checkpoint = encoder.checkpoint
    exact = read_checkpoint(checkpoint.folder, dtype="float64").params
    input_ids, attention_mask = pad_ids(ids, encoder.tokenizer.pad_id)

    def vectors(model: Any, params: Any) -> Floats:
        states = model.forward(params, input_ids, attention_mask, config=checkpoint.config)
        pooled = numpy_model.average_pool(states, attention_mask)
        pooled = model.dense(params.dense, pooled) if params.dense else pooled
        return numpy_model.l2_normalize(pooled.astype(np.float64))

    truth = vectors(numpy_model, exact)
    levels = {}
    for dtype in FACTORS:
        made = vectors(rounded_model(dtype), round_params(checkpoint.params, dtype))
        levels[dtype] = float(np.linalg.norm(made - truth, axis=1).max())
    return Levels(levels)


def tell_apart(one: Fit, other: Fit) -> bool:
    """Tell whether the vectors show that the first of two explanations, tried on the same texts, is right.

    Let δ be the distance between the two predictions. If the first is right, the squared distance to the other is
    larger by δ² on average; if the other is right, it is smaller by δ². Chance moves this by about 2 r / (δ √(n · d)),
    with r the distance to the first. Evidence beyond 2 δ² is no sign of either: what is left has its own direction.
    """
    gap = float(np.sum(np.linalg.norm(one.predicted - other.predicted, axis=1) ** 2))
    if gap <= 1e-12 * len(one.distances):
        return False
    evidence = float(np.sum(other.distances**2 - one.distances**2)) / gap
    chance = 2 * float(np.sqrt(np.sum(one.distances**2) / gap / (len(one.distances) * INDEPENDENT)))
    return 0.5 <= evidence <= 2 and chance <= 0.25
