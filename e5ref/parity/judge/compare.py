"""Compare a run with the reference: one verdict per point, and the first departure, with what feeds it."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from e5ref.parity.judge.inputs import other_inputs
from e5ref.parity.runs.rounding import UNIT_ROUNDOFF, ErrorSum, cost_at, least_costs, text_rows
from e5ref.parity.runs.run import Run, RunError, forward_order, read_run

# A run passes at a point while its largest error, and the root of its mean squared error, stay within so many times
# what rounding alone costs the reference there. docs/judge.md has the evidence.
FACTOR = 8.0

# How many of the worst tokens of each point to keep.
WORST = 5

Verdict = Literal["OK", "DIFF", "SHAPE", "MISSING", "NAN"]

# What each point of a layer is computed from; "input" is the output of the layer before.
FEEDS = {
    "query": ("input",),
    "key": ("input",),
    "value": ("input",),
    "attention_probabilities": ("query", "key"),
    "context": ("attention_probabilities", "value"),
    "attention_output": ("context", "input"),
    "feed_forward_activation": ("attention_output",),
    "output": ("feed_forward_activation", "attention_output"),
}


@dataclass(frozen=True)
class Place:
    """Where two runs differ, and by how much.

    Attributes:
        text: which text, from 0.
        token: which of its real tokens, from 0; None for the vector of a whole text.
        string: the token as a string, if it is known.
        index: the dimension; for attention probabilities the head and the token attended to.
        value: what the run has there.
        expected: what the reference has.
    """

    text: int
    token: int | None
    string: str | None
    index: tuple[int, ...]
    value: float
    expected: float

    @property
    def error(self) -> float:
        """How far apart they are."""
        return abs(self.value - self.expected)


@dataclass(frozen=True)
class PointVerdict:
    """What is to be said of one point. The figures are NaN where there is nothing to compare.

    Attributes:
        name: the point, or "input_ids" where the runs are not of the same inputs.
        verdict: "OK", "DIFF", "SHAPE", "MISSING" or "NAN".
        detail: what is wrong, in words; "" for OK and DIFF.
        max_error: the largest absolute error.
        rms_error: the root of the mean squared error.
        relative: the largest absolute error, relative to the largest value of the point.
        cosine: the least cosine of a token's (or text's) numbers with those of the reference.
        ulps: the largest error in units in the last place, in the run's dtype, of the largest value of the point.
        factor: the smallest factor that would pass: error by cost of rounding, the larger of maximum and RMS.
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
        dtype: what the run computed in, and so is judged as.
        verdicts: one per point, in the forward pass's order.
    """

    dtype: str
    verdicts: tuple[PointVerdict, ...]
    layers: int = field(repr=False, default=0)

    @property
    def passed(self) -> bool:
        """Whether every point is within rounding."""
        return bool(self.verdicts) and all(verdict.verdict == "OK" for verdict in self.verdicts)

    @property
    def first_departure(self) -> PointVerdict | None:
        """The first point whose numbers are not within rounding; where all that are there are, the first missing."""
        failed = [verdict for verdict in self.verdicts if verdict.verdict != "OK"]
        return next((verdict for verdict in failed if verdict.verdict != "MISSING"), failed[0] if failed else None)

    def feeds(self, name: str) -> dict[str, Verdict | None]:
        """Return what a point is computed from: name → its verdict, None where it was not compared."""
        found = {verdict.name: verdict.verdict for verdict in self.verdicts}
        return {feed: found.get(feed) for feed in feeds(name, self.layers)}


def feeds(name: str, layers: int) -> list[str]:
    """Return the points that a point is computed from, in a model of so many layers; none for the embeddings."""
    layer = re.fullmatch(r"layers\.(\d+)\.(\w+)", name)
    if layer:
        index = int(layer[1])
        before = f"layers.{index - 1}.output" if index else "embeddings"
        return [before if feed == "input" else f"layers.{index}.{feed}" for feed in FEEDS.get(layer[2], ())]
    last = f"layers.{layers - 1}.output" if layers else "embeddings"
    return {"last_hidden_state": [last], "pooled": ["last_hidden_state"], "normalized": ["pooled"]}.get(name, [])


def compare(run: Run | str | Path, reference: Run | str | Path, *, only: Sequence[str] | None = None) -> Comparison:
    """Judge a run by the reference.

    Args:
        run: what is judged, or its file.
        reference: what e5ref's NumPy forward pass gives in float64 for the same texts, with the costs of rounding
            (`e5ref record --dtype float64`), or its file.
        only: names, or patterns such as "layers.*.output", of the points to compare. None for all: then a point that
            one of the two lacks is a failure.

    Returns:
        A verdict per point. Where the inputs differ, it is one verdict alone: nothing else can be compared.

    Raises:
        RunError: a file that is no run, a reference that is not one of float64 with costs, or a pattern that fits no
            name.
    """
    run, reference = (given if isinstance(given, Run) else read_run(given) for given in (run, reference))
    if reference.dtype != "float64" or not reference.rounding:
        raise RunError(
            "the reference must be a run of e5ref in float64 that says what rounding costs: e5ref record MODEL "
            "-i TEXTS --dtype float64 -o REFERENCE"
        )
    names = _chosen({*run.points, *reference.points}, only)
    layers = 1 + max((int(name.split(".")[1]) for name in reference.points if name.startswith("layers.")), default=-1)
    if difference := other_inputs(run, reference):
        return Comparison(run.dtype, (PointVerdict("input_ids", "DIFF", difference),), layers)
    return Comparison(run.dtype, tuple(_judge(name, run, reference) for name in names), layers)


def assert_parity(run: Run | str | Path, reference: Run | str | Path, *, only: Sequence[str] | None = None) -> None:
    """Fail a test where a run departs from the reference by more than rounding.

    Args:
        run: as for `compare`, and so are the others.
        reference: see there.
        only: see there.

    Raises:
        AssertionError: it does; the message is the table up to the first departure.
        RunError: as `compare`.
    """
    from e5ref.parity.judge.report import text_report

    __tracebackhide__ = True  # pytest then shows the caller's line
    comparison = compare(run, reference, only=only)
    if not comparison.passed:
        raise AssertionError(text_report(comparison, whole=False))


def _chosen(names: Collection[str], only: Sequence[str] | None) -> list[str]:
    for pattern in only or ():
        if not any(fnmatchcase(name, pattern) for name in names):
            raise RunError(
                f"neither run has a point {pattern!r}; they have {', '.join(sorted(names, key=forward_order))}"
            )
    return sorted(
        (name for name in names if only is None or any(fnmatchcase(name, pattern) for pattern in only)),
        key=forward_order,
    )


def _judge(name: str, run: Run, reference: Run) -> PointVerdict:
    """Judge a point of a run that is of the reference's inputs."""
    for one, who in ((run, "the run"), (reference, "the reference")):
        if name not in one.points:
            return PointVerdict(name, "MISSING", f"{who} has no such point")
    actual, expected = run.points[name], reference.points[name]
    wanted = _shape(expected, reference)
    if wanted is None:
        raise RunError(f"the reference's {name!r} is {list(expected.shape)}, which is no known shape; record it anew")
    if _shape(actual, run) != wanted:
        sizes = [str(run.input_ids.shape[1]) if size == "T" else str(size) for size in wanted]
        return PointVerdict(name, "SHAPE", f"{list(actual.shape)} for [{', '.join(sizes)}]")
    errors, scale, cosine = ErrorSum(), ErrorSum(), 1.0
    places: list[Place] = []
    for text in range(len(run.input_ids)):
        ours = text_rows(actual, run.attention_mask, text)
        theirs = text_rows(expected, reference.attention_mask, text)
        if not np.isfinite(ours).all():
            return PointVerdict(name, "NAN", _not_finite(ours, text, actual.ndim, run))
        if not np.isfinite(theirs).all():
            raise RunError(f"the reference holds NaN or infinity at {name!r}; record it anew")
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
    """Return what rounding costs at a point, at most and as RMS; a run may err by `FACTOR` times that.

    Args:
        reference: a run in float64 with the costs of rounding.
        name: the point.
        dtype: what the run to be judged computed in.
        scale: the reference's own numbers at that point, over the real tokens.

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
    """Return a point's shape with "T" for the length that the texts are padded to, which may differ between runs.

    None if it is not [B, D], [B, T, n] or [B, N, T, T].
    """
    texts, length = run.input_ids.shape
    padded = {3: (1,), 4: (2, 3)}.get(array.ndim, ())
    shape = tuple("T" if axis in padded and size == length else size for axis, size in enumerate(array.shape))
    known = array.ndim in (2, 3, 4) and len(array) == texts and array.size and shape.count("T") == len(padded)
    return shape if known else None


def _ratio(a: float, b: float) -> float:
    return a / b if b else (np.inf if a else 0.0)


def _cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cosine of each row of a with that of b; 1 for two rows of zeros."""
    products = np.einsum("mn,mn->m", a, b)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.where(norms > 0, products / np.where(norms > 0, norms, 1), (a == b).all(axis=1))


def _worst_places(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], text: int, ndim: int, run: Run
) -> Iterator[Place]:
    """Yield the worst places of a text, one for each of its worst tokens."""
    errors = np.abs(ours - theirs)
    columns = errors.argmax(axis=1)
    rows = np.arange(len(errors))
    for row in np.argsort(-errors[rows, columns], kind="stable")[:WORST]:
        token, string, index = _place(int(row), int(columns[row]), text, ndim, run)
        yield Place(text, token, string, index, float(ours[row, columns[row]]), float(theirs[row, columns[row]]))


def _place(row: int, column: int, text: int, ndim: int, run: Run) -> tuple[int | None, str | None, tuple[int, ...]]:
    """Say what a row and a column of `text_rows` are: token, its string, and the indices within."""
    if ndim == 2:
        return None, None, (column,)
    length = int(run.attention_mask[text].sum())
    return row, run.token(text, row), divmod(column, length) if ndim == 4 else (column,)


def _not_finite(rows: NDArray[np.float64], text: int, ndim: int, run: Run) -> str:
    row, column = (int(index) for index in np.argwhere(~np.isfinite(rows))[0])
    token, string, index = _place(row, column, text, ndim, run)
    where = f"text {text}" + ("" if token is None else f", token {token}") + (f" ({string})" if string else "")
    return f"{rows[row, column]} at {where}, {', '.join(map(str, index))}"
