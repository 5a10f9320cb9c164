"""Which known mistake explains a run: each is made in the reference, on the run's own inputs, and compared."""

from collections.abc import Collection, Mapping, Sequence
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
from e5ref.parity.altered.mistakes import MISTAKES
from e5ref.parity.diagnosis.hypotheses import Predictions, TextVariant
from e5ref.parity.judge.comparison import FACTOR, Comparison, compare
from e5ref.parity.runs.rounding import UNIT_ROUNDOFF, ErrorSum, cost_at, least_costs, token_values
from e5ref.parity.runs.run import Run

# The most tokens that mistakes are tried on, without padding and with it.
TRIED_TOKENS = 192
TRIED_PADDED = 1024

# A mistake explains a run if the errors that are left are at most this many times the cost of rounding, up to the first
# departure and after it. More than FACTOR: the cost was measured without the mistake, which can make later points more
# sensitive.
LEFT_AT_DEPARTURE = 2 * FACTOR
LEFT_LATER = 8 * FACTOR

# A mistake that lowers the error by this factor is looked into even if more than rounding is left.
MUCH = 1e4


@dataclass(frozen=True)
class Explanation:
    """A known mistake beside a run that departs.

    Attributes:
        mistake: its name.
        check: what to look at in the port.
        point: where the run departs first; "input_ids" if the tokens differ.
        before: the largest error there, on the texts that were tried.
        after: the same with the mistake made in the reference.
        explains: whether only rounding is left, there and at all other points.
    """

    mistake: str
    check: str
    point: str
    before: float
    after: float
    explains: bool

    def __str__(self) -> str:
        """Return the explanation as one line."""
        if self.point == "input_ids":
            return f"explained by: {self.mistake} (gives the same tokens). Check: {self.check}."
        start = "explained by" if self.explains else "not explained; nearest"
        return (
            f"{start}: {self.mistake} (error at {self.point} falls from {self.before:.1e} to {self.after:.1e}). "
            f"Check: {self.check}."
        )


def explain(
    run: Run, reference: Run, checkpoint: Checkpoint, comparison: Comparison | None = None
) -> list[Explanation]:
    """Find the known mistakes that explain why a run departs.

    Args:
        run: the run that is judged.
        reference: e5ref's run in float64, with the costs of rounding.
        checkpoint: the weights in float64.
        comparison: what `compare` returned for the two, if it was called already. Only its points count.

    Returns:
        The mistakes that lower the error most, the likeliest first. Empty if the run passes, or if the first departure
        is a shape, a NaN or a missing point, which no values can explain.

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

    part = _Part.of(run, reference, first.worst[0].text)
    names = [verdict.name for verdict in comparison.verdicts if verdict.verdict in ("OK", "DIFF")]
    at = names.index(first.name)
    before, _ = part.error(first.name, part.points(checkpoint, numpy_model, [first.name]))
    kind = first.name.rpartition(".")[2]
    likely = sorted(MISTAKES, key=lambda mistake: mistake.point != kind)
    found: list[tuple[float, Explanation]] = []
    for mistake in likely:
        model, changed = mistake.change(checkpoint)
        points = part.points(changed, model, [first.name], right=names[:at])
        if first.name not in points:
            continue
        after, factor = part.error(first.name, points)
        explains = False
        if factor <= LEFT_AT_DEPARTURE or after <= before / MUCH:
            points = part.points(changed, model, names)
            factors = [part.error(name, points)[1] if name in points else np.inf for name in names]
            explains = _are_rounding(factors, at)
            if not explains and run.dtype == "float32" and all(name in points for name in names):
                # The mistake may make rounding cost more: it makes values larger, or later points more sensitive.
                single = replace(changed, params=map_leaves(lambda leaf: leaf.astype(np.float32), changed.params))
                rounded = part.points(single, mistake.change(single)[0], names)
                factors[at:] = [part.error(name, points, rounded[name])[1] for name in names[at:]]
                explains = _are_rounding(factors, at)
            factor = max(factors) if explains else factor
        explanation = Explanation(mistake.name, mistake.check, first.name, before, after, explains)
        if after < before / 2:  # otherwise the mistake changes nothing there
            found.append((factor, explanation))
    return [one for _, one in sorted(found, key=lambda entry: (not entry[1].explains, entry[0]))]


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
    def of(cls, run: Run, reference: Run, worst: int) -> "_Part":
        """Choose the text with the worst error, and the shortest texts, which cost least."""
        lengths = run.attention_mask.sum(axis=1)
        most = max(1, TRIED_PADDED // run.input_ids.shape[1])
        order = [worst, *(text for text in np.argsort(lengths, kind="stable").tolist() if text != worst)]
        total = np.cumsum(lengths[order])
        return cls(run, reference, order[: max(1, min(most, int((total <= TRIED_TOKENS).sum())))])

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
