"""What explains a run that departs: its own operations, identified one by one, and the known mistakes.

Each known mistake is made in the reference, on the run's own inputs, and compared.
"""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e5ref import numpy_model
from e5ref.checkpoint import Checkpoint
from e5ref.checkpoint.params import map_leaves
from e5ref.encoder import E5
from e5ref.operations import Ids
from e5ref.operations.blas import blas
from e5ref.parity.altered.mistakes import MISTAKES, Mistake
from e5ref.parity.diagnosis.hypotheses import Predictions
from e5ref.parity.diagnosis.texts import TextVariant
from e5ref.parity.identify.identify import Identification, described_points, identify
from e5ref.parity.judge.comparison import Comparison, PointVerdict, compare
from e5ref.parity.runs.rounding import FACTOR, UNIT_ROUNDOFF, ErrorSum, cost_at, least_costs, token_values
from e5ref.parity.runs.run import Run

# The most tokens that mistakes are tried on, without padding and with it; and those that they are tried on first.
TRIED_TOKENS = 192
TRIED_PADDED = 1024
FIRST_TOKENS = 32
FIRST_PADDED = 96

# What lowers the error on the first few tokens at least by this factor is tried on more.
PROMISING = 2.0

# Seconds after which no further mistake is tried.
SECONDS = 30.0

# A mistake explains a run if the errors that are left are at most this many times the cost of rounding, up to the first
# departure and after it. More than FACTOR: the cost was measured without the mistake, which can make later points more
# sensitive.
LEFT_AT_DEPARTURE = 2 * FACTOR
LEFT_LATER = 8 * FACTOR

# A mistake that lowers the error by this factor is looked into even if more than rounding is left.
MUCH = 1e4


@dataclass(frozen=True)
class Explanation:
    """A known mistake, or what was identified, beside a run that departs.

    It `explains` the run if only rounding is left, there and at all other points. For what was identified: at the
    points that it names.
    """

    mistake: str  # its name; for what was identified, where it was and what it is
    check: str  # what to look at in the port
    point: str  # where the run departs first; "input_ids" if the tokens differ
    before: float  # the largest error there, on the texts that were tried
    after: float  # the same with the mistake made in the reference
    explains: bool
    identified: bool = False  # whether it was computed from the run's own operations, and is not of the known mistakes

    def __str__(self) -> str:
        """Return the explanation as one line."""
        if self.point == "input_ids":
            return f"explained by: {self.mistake} (gives the same tokens). Check: {self.check}."
        if self.identified and not self.explains:
            return f"measured: {self.mistake}."
        start = "identified" if self.identified else "explained by" if self.explains else "not explained; nearest"
        return (
            f"{start}: {self.mistake} (error at {self.point} falls from {self.before:.1e} to {self.after:.1e}). "
            f"Check: {self.check}."
        )


def explain(
    run: Run,
    reference: Run,
    checkpoint: Checkpoint,
    comparison: Comparison | None = None,
    *,
    seconds: float = SECONDS,
) -> list[Explanation]:
    """Find what explains why a run departs.

    Args:
        run: the run that is judged.
        reference: e5ref's run in float64, with the costs of rounding.
        checkpoint: the weights in float64.
        comparison: what `compare` returned for the two, if it was called already. Only its points count.
        seconds: when to stop looking. What was found until then is returned.

    Returns:
        The known mistakes that explain the run, what was identified, and the mistakes that lower the error most. Empty
        if the run passes, or if the first departure is a shape, a NaN or a missing point, which no values can explain.

    Raises:
        ValueError: the weights are not float64, or not those of the reference.
        RunError: as `compare`.
    """
    if checkpoint.params.embeddings.word.dtype != np.float64:
        raise ValueError('the reference computes in float64: read the checkpoint with dtype="float64"')
    recorded = reference.provenance
    if recorded.get("weights_sha256", checkpoint.weights_sha256) != checkpoint.weights_sha256:
        raise ValueError(
            f"{checkpoint.name}: is not the checkpoint of the reference, which was recorded from "
            f"{recorded.get('model', 'a different one')}; give that one"
        )
    comparison = compare(run, reference) if comparison is None else comparison
    first = comparison.first_departure
    if first is None or first.verdict != "DIFF":
        return []
    if first.name == "input_ids":
        return _explain_inputs(run, reference, checkpoint)

    # Products are small here. On a busy machine, threads that wait for each other take ten times as long as one.
    with blas.at_most(1):
        return _explain_values(run, reference, checkpoint, comparison, first, time.monotonic() + seconds)


def _explain_values(
    run: Run, reference: Run, checkpoint: Checkpoint, comparison: Comparison, first: PointVerdict, stop: float
) -> list[Explanation]:
    """Find what explains a first departure in a point's values."""
    names = [verdict.name for verdict in comparison.verdicts if verdict.verdict in ("OK", "DIFF")]
    at, worst = names.index(first.name), first.worst[0].text
    tried = _Tried(run, reference, checkpoint, names, at, worst)
    kind = first.name.rpartition(".")[2]
    # The mistakes that show first where the run departs are the cheapest to try: nothing after that point is computed.
    listed = tried.explanations([mistake for mistake in MISTAKES if mistake.point == kind], stop)
    left = stop - time.monotonic()
    identification = identify(run, reference, checkpoint, names[at:], worst, seconds=left)
    if not identification.holds and not any(one.explains for *_, one in listed):
        listed += tried.explanations([mistake for mistake in MISTAKES if mistake.point != kind], stop)
    listed.sort(key=lambda entry: (not entry[-1].explains, entry[0]))
    # A list has only so many names. The nearest one is wrong if what was identified leaves less of the error.
    closest = min((finding.after for finding in identification.findings[:1] if finding.named), default=np.inf)
    explaining = [one for _, factor, one in listed if one.explains and factor <= max(FACTOR, 4 * closest)]
    identified = _identified(identification, first.worst[0].error, checkpoint)
    return [*explaining, *identified, *(one for *_, one in listed if not one.explains)]


def _identified(identification: Identification, before: float, checkpoint: Checkpoint) -> list[Explanation]:
    """Put what was identified into words."""
    found = []
    for finding in identification.findings:
        where = described_points(finding.points, len(checkpoint.params.layers))
        after = before * finding.after / finding.before if finding.named else np.nan
        check = f"the operation that makes {finding.points[0]}"
        found.append(
            Explanation(f"{where}: {finding.says}", check, finding.points[0], before, after, finding.named, True)
        )
    return found


@dataclass(frozen=True)
class _Tried:
    """What mistakes are tried on: a run and the points where it departs."""

    run: Run
    reference: Run
    checkpoint: Checkpoint
    names: Sequence[str]
    at: int
    worst: int

    def explanations(self, mistakes: Iterable[Mistake], stop: float) -> list[tuple[float, float, Explanation]]:
        """Try some known mistakes on few tokens, and on more if that helps.

        Each comes with two factors that are left: the largest at any point, if it explains the run, and the one at the
        departure.
        """
        name = self.names[self.at]
        few, more = (
            _Part.of(self.run, self.reference, self.worst, *sizes)
            for sizes in ((FIRST_TOKENS, FIRST_PADDED), (TRIED_TOKENS, TRIED_PADDED))
        )
        right = self.names[: self.at]
        before_few, before = (
            part.error(name, part.points(self.checkpoint, numpy_model, [name]))[0] for part in (few, more)
        )
        found: list[tuple[float, float, Explanation]] = []
        for mistake in mistakes:
            if time.monotonic() > stop:
                break
            model, changed = mistake.change(self.checkpoint)
            points = few.points(changed, model, [name], right=right)
            if name not in points or few.error(name, points)[0] > before_few / PROMISING:
                continue
            points = more.points(changed, model, [name], right=right)
            if name not in points:
                continue
            after, factor = more.error(name, points)
            explains, left = False, factor
            if factor <= LEFT_AT_DEPARTURE or after <= before / MUCH:
                explains, left = _explains(self, more, mistake, model, changed)
            if after < before / 2:  # otherwise the mistake changes nothing there
                explanation = Explanation(mistake.name, mistake.check, name, before, after, explains)
                found.append((left if explains else factor, factor, explanation))
        return found


def _explains(
    tried: _Tried, part: "_Part", mistake: Mistake, model: ModuleType, changed: Checkpoint
) -> tuple[bool, float]:
    """Tell whether a mistake leaves only rounding at every point, and how many times its cost at most."""
    points = part.points(changed, model, tried.names)
    factors = [part.error(name, points)[1] if name in points else np.inf for name in tried.names]
    explains = _are_rounding(factors, tried.at)
    if not explains and tried.run.dtype == "float32" and all(name in points for name in tried.names):
        # The mistake may make rounding cost more: it makes values larger, or later points more sensitive.
        single = replace(changed, params=map_leaves(lambda leaf: leaf.astype(np.float32), changed.params))
        rounded = part.points(single, mistake.change(single)[0], tried.names)
        after = tried.names[tried.at :]
        factors[tried.at :] = [part.error(name, points, rounded[name])[1] for name in after]
        explains = _are_rounding(factors, tried.at)
    return explains, max(factors)


def _are_rounding(factors: Sequence[float], departure: int) -> bool:
    """Tell whether only rounding is left, up to the first departure and after it."""
    return max(factors[: departure + 1]) <= LEFT_AT_DEPARTURE and max(factors) <= LEFT_LATER


class _Enough(Exception):  # noqa: N818  # not an error: it only stops the forward pass
    pass


@dataclass(frozen=True)
class _Part:
    """The few texts of a run that mistakes are tried on."""

    run: Run
    reference: Run
    texts: Sequence[int]

    @classmethod
    def of(cls, run: Run, reference: Run, worst: int, tokens: int, padded: int) -> "_Part":
        """Choose the text with the worst error, and the shortest texts, which cost least."""
        lengths = run.attention_mask.sum(axis=1)
        most = max(1, padded // run.input_ids.shape[1])
        order = [worst, *(text for text in np.argsort(lengths, kind="stable").tolist() if text != worst)]
        total = np.cumsum(lengths[order])
        return cls(run, reference, order[: max(1, min(most, int((total <= tokens).sum())))])

    def points(
        self, checkpoint: Checkpoint, model: ModuleType, names: Collection[str], right: Collection[str] = ()
    ) -> dict[str, NDArray[Any]]:
        """Run the reference, changed or not, up to the last of some points.

        Stop as soon as the change spoils a point that the run has `right`.
        """
        points: dict[str, NDArray[Any]] = {}

        def tap(name: str, array: NDArray[Any]) -> None:
            if name in right and self.error(name, {name: array})[1] > LEFT_AT_DEPARTURE:
                raise _Enough
            if name in names:
                points[name] = array
                if len(points) == len(names):
                    raise _Enough

        texts = list(self.texts)
        try:
            with np.errstate(all="ignore"):  # a mistake may well overflow
                model.embed(
                    checkpoint.params,
                    self.run.input_ids[texts],
                    self.run.attention_mask[texts],
                    config=checkpoint.config,
                    pooling=checkpoint.settings.pooling,
                    normalize=checkpoint.settings.normalize,
                    tap=tap,
                )
        except _Enough:
            pass
        return points

    def error(
        self, name: str, points: Mapping[str, NDArray[Any]], rounded: NDArray[Any] | None = None
    ) -> tuple[float, float]:
        """Return the run's largest error at a point, and how many times the cost of rounding its errors are.

        The cost is the reference's, or if it is larger the error of `rounded`, the same point in float32.
        """
        errors, scale, plain, cost = ErrorSum(), ErrorSum(), ErrorSum(), ErrorSum()
        mask: Ids = self.run.attention_mask
        for place, text in enumerate(self.texts):
            expected = token_values(points[name], mask[list(self.texts)], place)
            errors.add(token_values(self.run.points[name], mask, text) - expected)
            scale.add(expected)
            if rounded is not None:
                cost.add(token_values(rounded, mask[list(self.texts)], place) - expected)
            plain.add(token_values(self.reference.points[name], self.reference.attention_mask, text))
        if not np.isfinite(errors.max):
            return np.inf, np.inf
        # Rounding is relative to the size of the values, which a mistake may have changed.
        grown = max(1.0, scale.rms / plain.rms if plain.rms else 1.0)
        unit = max(UNIT_ROUNDOFF[self.run.dtype], UNIT_ROUNDOFF[str(self.reference.points[name].dtype)])
        max_cost, rms_cost = cost_at(self.reference.rounding, self.run.dtype, name)
        max_cost, rms_cost = max(max_cost * grown, cost.max), max(rms_cost * grown, cost.rms)
        max_cost, rms_cost = least_costs(max_cost, rms_cost, scale, unit)
        if not max_cost:
            return errors.max, 0.0 if not errors.max else np.inf
        return errors.max, max(errors.max / max_cost, errors.rms / rms_cost)


def _explain_inputs(run: Run, reference: Run, checkpoint: Checkpoint) -> list[Explanation]:
    """Find the changes to texts or tokens that give the run's ids."""
    texts = reference.texts or run.texts
    if texts is None:
        return []
    predictions = Predictions(E5(checkpoint, truncation="allow"), texts, None)
    wanted = [tuple(ids[mask == 1].tolist()) for ids, mask in zip(run.input_ids, run.attention_mask, strict=True)]
    found = []
    as_given = TextVariant("as given", None, tuple(texts))
    for text, token in product((as_given, *predictions.texts), predictions.tokens):
        if predictions.ids(text, token) == wanted:
            names = [name for name in (text.deviation, token.deviation) if name]
            if names and names not in found:
                found.append(names)
    # The simplest explanation wins: leave out those that only add a change without effect on these texts.
    simplest = [names for names in found if not any(set(other) < set(names) for other in found)]
    return [
        Explanation(", ".join(names), "how texts become tokens", "input_ids", np.nan, np.nan, True)
        for names in sorted(simplest, key=len)
    ]
