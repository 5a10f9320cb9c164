"""Compare a run with the reference: a verdict per point, the first departure, and the points that feed it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from e5ref.parity.runs.check import difference_in_ids, matching
from e5ref.parity.runs.rounding import FACTOR, UNIT_ROUNDOFF, ErrorSum, cost_at, costs_in, least_costs, token_values
from e5ref.parity.runs.run import FEEDS, Run, RunError, read_run

# The number of worst tokens that are kept for each point.
WORST = 5

Verdict = Literal["OK", "DIFF", "SHAPE", "MISSING", "NAN"]


@dataclass(frozen=True)
class Place:
    """Where two runs differ, and by how much."""

    text: int  # counted from 0
    token: int | None  # the real token of that text, counted from 0; None for the vector of a whole text
    string: str | None  # the token as a string, if it is known
    index: tuple[int, ...]  # the dimension; for attention probabilities, the head and the token attended to
    value: float  # the run's
    expected: float  # the reference's

    @property
    def error(self) -> float:
        """How far apart the two values are."""
        return abs(self.value - self.expected)

    def __str__(self) -> str:
        """Describe the place: text, token, and dimension or head."""
        parts = [f"text {self.text}"]
        if self.token is not None:
            parts.append(f"token {self.token}" + (f" ({self.string})" if self.string is not None else ""))
        if len(self.index) == 2:
            parts += [f"head {self.index[0]}", f"to token {self.index[1]}"]
        else:
            parts.append(f"dimension {self.index[0]}")
        return ", ".join(parts)


@dataclass(frozen=True)
class PointVerdict:
    """The verdict on one point. Figures are NaN if there is nothing to compare.

    Attributes:
        name: the point, or "input_ids" if the runs have different inputs.
        verdict: "OK", "DIFF", "SHAPE", "MISSING" or "NAN".
        detail: what is wrong, in words; "" for OK and DIFF.
        max_error: the largest absolute error.
        rms_error: the root mean square error.
        relative: the largest absolute error, relative to the largest value of the point.
        cosine: the least cosine between a token's (or text's) values and the reference's.
        ulps: the largest error in units in the last place, in the run's dtype, of the largest value of the point.
        factor: the smallest factor that would pass: error divided by cost of rounding, as maximum or as RMS, whichever
            is larger.
        allowed: the largest absolute error that passes.
        worst: the worst tokens, the worst first.
    """

    name: str
    verdict: Verdict
    detail: str = ""
    max_error: float = np.nan
    rms_error: float = np.nan
    relative: float = np.nan
    cosine: float = np.nan
    ulps: float = np.nan
    factor: float = np.nan
    allowed: float = np.nan
    worst: tuple[Place, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """A run beside the reference.

    Attributes:
        dtype: the dtype that the run computed in, and that it is judged as.
        verdicts: one per point, in the forward pass's order.
    """

    dtype: str
    verdicts: tuple[PointVerdict, ...]
    layers: int = field(repr=False, default=0)
    modules: Mapping[str, Mapping[str, Any]] = field(repr=False, default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every point is within rounding."""
        return bool(self.verdicts) and all(verdict.verdict == "OK" for verdict in self.verdicts)

    @property
    def first_departure(self) -> PointVerdict | None:
        """The first point whose values are not within rounding; if there is none, the first missing point."""
        failed = [verdict for verdict in self.verdicts if verdict.verdict != "OK"]
        return next((verdict for verdict in failed if verdict.verdict != "MISSING"), failed[0] if failed else None)

    def feeds(self, name: str) -> dict[str, Verdict | None]:
        """Return the points that a point is computed from: name → verdict, or None if it was not compared."""
        found = {verdict.name: verdict.verdict for verdict in self.verdicts}
        if self.modules:
            return {feed: found.get(feed) for feed in self.modules.get(name, {"from": []})["from"]}
        return {feed: found.get(feed) for feed in feeds(name, self.layers, has_dense="dense" in found)}


def feeds(name: str, layers: int, *, has_dense: bool = False) -> list[str]:
    """Return the points that a point is computed from, in a model with that number of layers; none for embeddings."""
    layer = re.fullmatch(r"layers\.(\d+)\.(\w+)", name)
    if layer:
        index = int(layer[1])
        before = f"layers.{index - 1}.output" if index else "embeddings"
        return [before if feed == "input" else f"layers.{index}.{feed}" for feed in FEEDS.get(layer[2], ())]
    last = f"layers.{layers - 1}.output" if layers else "embeddings"
    vectors = {"dense": ["pooled"], "normalized": ["dense" if has_dense else "pooled"]}
    return {"last_hidden_state": [last], "pooled": ["last_hidden_state"], **vectors}.get(name, [])


def compare(run: Run | str | Path, reference: Run | str | Path, *, only: Sequence[str] | None = None) -> Comparison:
    """Judge a run by the reference.

    Args:
        run: the run to judge, or its file.
        reference: a run of e5ref's NumPy forward pass in float64 on the same texts, with the costs of rounding
            (`e5ref record --dtype float64`), or its file.
        only: names, or patterns such as "layers.*.output", of the points to compare. None for all: then a point that
            one of the two lacks is a failure.

    Returns:
        A verdict per point; only one verdict if the inputs differ, since nothing else can be compared.

    Raises:
        RunError: a file does not hold a run, the reference is not a float64 run with costs, or a pattern fits no name.
    """
    run, reference = (given if isinstance(given, Run) else read_run(given) for given in (run, reference))
    if reference.dtype != "float64" or not reference.rounding:
        raise RunError(
            "the reference must be a run of e5ref in float64 that says what rounding costs; record one with "
            "e5ref record MODEL -i TEXTS --dtype float64 -o REFERENCE"
        )
    names = _chosen(reference.in_order({*run.points, *reference.points}), only)
    numbers = [re.match(r"layers\.(\d+)\.", name) for name in reference.points]
    layers = 1 + max((int(number[1]) for number in numbers if number), default=-1)
    if difference := difference_in_ids(run, reference):
        return Comparison(run.dtype, (PointVerdict("input_ids", "DIFF", difference),), layers, reference.modules)
    if reference.modules:  # float16 may overflow in a tree of modules; then nobody is judged in it there
        measured = costs_in(reference.rounding, run.dtype)
        names = [name for name in names if name not in reference.points or name in measured] or names
    verdicts = tuple(_judge(name, run, reference) for name in names)
    return Comparison(run.dtype, verdicts, layers, reference.modules)


def _chosen(ordered: list[str], only: Sequence[str] | None) -> list[str]:
    for pattern in only or ():
        if not matching(ordered, [pattern]):
            raise RunError(f"neither run has a point {pattern!r}; they have {', '.join(ordered)}")
    return ordered if only is None else matching(ordered, only)


def _judge(name: str, run: Run, reference: Run) -> PointVerdict:
    """Judge a point of a run that has the reference's inputs."""
    for one, who in ((run, "the run"), (reference, "the reference")):
        if name not in one.points:
            return PointVerdict(name, "MISSING", f"{who} has no such point")
    actual, expected = run.points[name], reference.points[name]
    wanted = _shape(expected, reference)
    if wanted is None:
        raise RunError(f"the reference's {name!r} has the unknown shape {list(expected.shape)}; record it again")
    if _shape(actual, run) != wanted:
        sizes = [str(run.input_ids.shape[1]) if size == "T" else str(size) for size in wanted]
        return PointVerdict(name, "SHAPE", f"{list(actual.shape)} instead of [{', '.join(sizes)}]")
    errors, scale, cosine = ErrorSum(), ErrorSum(), 1.0
    places: list[Place] = []
    for text in range(len(run.input_ids)):
        ours = token_values(actual, run.attention_mask, text)
        theirs = token_values(expected, reference.attention_mask, text)
        if not np.isfinite(ours).all():
            token, column = np.argwhere(~np.isfinite(ours))[0].tolist()
            first = _place(ours, theirs, token, column, text, actual.ndim, run)
            return PointVerdict(name, "NAN", f"{first.value} at {first}")
        if not np.isfinite(theirs).all():
            raise RunError(f"the reference holds NaN or infinity at {name!r}; record it again")
        errors.add(ours - theirs)
        scale.add(theirs)
        cosine = min(cosine, float(_cosines(ours, theirs).min()))
        places += _worst_places(ours, theirs, text, actual.ndim, run)
        places = sorted(places, key=lambda place: -place.error)[:WORST]

    max_cost, rms_cost = expected_errors(reference, name, run.dtype, scale)
    factor = max(_ratio(errors.max, max_cost), _ratio(errors.rms, rms_cost))
    return PointVerdict(
        name,
        "OK" if factor <= FACTOR else "DIFF",
        max_error=errors.max,
        rms_error=errors.rms,
        relative=_ratio(errors.max, scale.max),
        cosine=cosine,
        ulps=_ratio(errors.max, 2 * UNIT_ROUNDOFF[run.dtype] * 2.0 ** np.floor(np.log2(scale.max or 1.0))),
        factor=factor,
        allowed=FACTOR * max_cost,
        worst=tuple(places),
    )


def expected_errors(reference: Run, name: str, dtype: str, scale: ErrorSum) -> tuple[float, float]:
    """Return what rounding costs at a point, as maximum and as RMS. A run may err by `FACTOR` times that.

    `dtype` is what the judged run computed in; `scale` is of the reference's own values there, over the real tokens.

    Raises:
        RunError: the reference does not say what rounding costs there.
    """
    try:
        max_cost, rms_cost = cost_at(reference.rounding, dtype, name)
    except KeyError:
        raise RunError(f"the reference does not say what rounding to {dtype} costs at {name!r}") from None
    # A reference that is stored in float32 is no more exact than that.
    unit = max(UNIT_ROUNDOFF[dtype], UNIT_ROUNDOFF[str(reference.points[name].dtype)])
    return least_costs(max_cost, rms_cost, scale, unit)


def _shape(array: NDArray[np.floating], run: Run) -> tuple[int | str, ...] | None:
    """Return a point's shape, with "T" for the padded length, which may differ between runs.

    None if the shape is not [B, D], [B, T, n] or [B, N, T, T].
    """
    texts, length = run.input_ids.shape
    padded = {3: (1,), 4: (2, 3)}.get(array.ndim, ())
    shape = tuple("T" if axis in padded and size == length else size for axis, size in enumerate(array.shape))
    known = array.ndim in (2, 3, 4) and len(array) == texts and array.size and shape.count("T") == len(padded)
    return shape if known else None


def _ratio(a: float, b: float) -> float:
    return a / b if b else (np.inf if a else 0.0)


def _cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cosine of each token's values in a with those in b; 1 if both are all zeros."""
    products = np.einsum("mn,mn->m", a, b)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.where(norms > 0, products / np.where(norms > 0, norms, 1), (a == b).all(axis=1))


def _worst_places(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], text: int, ndim: int, run: Run
) -> Iterator[Place]:
    """Yield the worst places of a text, one for each of its worst tokens."""
    errors = np.abs(ours - theirs)
    columns = errors.argmax(axis=1)
    for token in np.argsort(-errors.max(axis=1), kind="stable")[:WORST].tolist():
        yield _place(ours, theirs, token, int(columns[token]), text, ndim, run)


def _place(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], token: int, column: int, text: int, ndim: int, run: Run
) -> Place:
    """Explain two indices into the `token_values` of a text, in a point of `ndim` dimensions."""
    values = float(ours[token, column]), float(theirs[token, column])
    if ndim == 2:
        return Place(text, None, None, (column,), *values)
    index = divmod(column, int(run.attention_mask[text].sum())) if ndim == 4 else (column,)
    return Place(text, token, run.token(text, token), index, *values)
