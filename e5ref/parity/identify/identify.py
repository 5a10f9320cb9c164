"""Identify the operations of a run that are not the reference's, each from its own input, output and weights."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from e5ref.checkpoint import Checkpoint
from e5ref.operations import Array
from e5ref.parity.identify import attention, embeddings, layer_norm, linear, pointwise, pooling
from e5ref.parity.identify.site import LINEAR, NORM, Candidate, Recorded, Site, Values, finished, plain
from e5ref.parity.runs.rounding import FACTOR
from e5ref.parity.runs.run import Run

# The most tokens that operations are computed for.
MOST_TOKENS = 256

# What is this close is taken at once; if nothing is, the closest candidate within FACTOR is.
CLOSE = 1.5

# A number between two steps of a grid may be rounded either way. So this share of the numbers need not be explained.
SPARE = 1e-3

# What explains an operation must lower its error at least by this factor.
LOWERED = 4.0

# Kind → the module that knows what the operation may have been, apart from its linear layer.
ROOMS: dict[str, ModuleType] = {
    "embeddings": embeddings,
    "query": linear,
    "key": linear,
    "value": linear,
    "attention_probabilities": attention,
    "context": attention,
    "attention_output": layer_norm,
    "feed_forward_activation": pointwise,
    "output": layer_norm,
    "last_hidden_state": pooling,
    "pooled": pooling,
    "normalized": pooling,
}


@dataclass(frozen=True)
class Finding:
    """What a run did at some of its points.

    Attributes:
        points: the points, in the forward pass's order.
        says: what it did there; if it is not `named`, what was measured.
        named: whether it explains these points: computed that way from the run's own points before them, they differ
            from the run by no more than rounding.
        before: how many times the cost of rounding the first of the points is from the reference's operation.
        after: the same with what was found; NaN if it is not named.
    """

    points: tuple[str, ...]
    says: str
    named: bool
    before: float
    after: float


@dataclass(frozen=True)
class Identification:
    """All operations of a run that are not the reference's.

    Attributes:
        findings: in the forward pass's order.
        is_complete: whether every point after the first departure could be looked at, within the time.
    """

    findings: tuple[Finding, ...]
    is_complete: bool

    @property
    def holds(self) -> bool:
        """Whether all of the run is explained: with what was found, only rounding is left everywhere."""
        return self.is_complete and bool(self.findings) and all(finding.named for finding in self.findings)


def identify(
    run: Run, reference: Run, checkpoint: Checkpoint, names: Sequence[str], worst: int, *, seconds: float = 30.0
) -> Identification:
    """Identify the operations of a run that are not the reference's.

    Every point is computed from the run's own points before it. So an error is seen only where it is made, and a second
    mistake is as plain as the first.

    Args:
        run: the run that is judged.
        reference: the float64 run that it is judged by, with the costs of rounding.
        checkpoint: the weights, in float64.
        names: the points from the first departure on, in the forward pass's order.
        worst: the text with the largest error.
        seconds: when to stop.

    Returns:
        What was found.
    """
    stop = time.monotonic() + seconds
    recorded = Recorded(run, reference, checkpoint, _chosen(run, worst))
    sites = [Site(recorded, name) for name in names]
    are_known = [site.kind in ROOMS and site.is_recorded for site in sites]
    known = [site for site, is_known in zip(sites, are_known, strict=True) if is_known]
    factors = {site.point: site.factor(plain) for site in known}
    wrong = [site for site in known if factors[site.point] > FACTOR]
    findings, wrong = _layers(wrong, factors)
    found: list[Candidate] = []
    in_time = True
    for _, group in groupby(sorted(wrong, key=lambda site: list(ROOMS).index(site.kind)), key=lambda site: site.kind):
        left = list(group)
        while left and (in_time := time.monotonic() < stop):
            first = left[0]
            candidate = _explained(first, factors[first.point], stop, found)
            if candidate is None:
                part = wrong_part(first)
                says = ROOMS[first.kind].measured(first) + (
                    f"; it is so for {part.says} alone" if part and "…" not in part.says else ""
                )
                findings.append(Finding((first.point,), says, False, factors[first.point], np.nan))
                left = [] if len(left) == len(recorded.params.layers) else left[1:]
                continue
            found.append(candidate)
            after = {site.point: site.factor(candidate.compute, SPARE) for site in left}
            explained = [site for site in left if site is first or after[site.point] <= _most(factors[site.point])]
            points = tuple(site.point for site in explained)
            findings.append(Finding(points, candidate.says, True, factors[first.point], after[first.point]))
            left = [site for site in left if site not in explained]
    findings.sort(key=lambda finding: list(names).index(finding.points[0]))
    return Identification(tuple(_joined(findings)), all(are_known) and in_time)


def _chosen(run: Run, worst: int) -> list[int]:
    """Choose the text with the largest error, and as many others as there is room for, evenly spread."""
    lengths = run.attention_mask.astype(bool).sum(axis=1)
    others = [text for text in range(len(lengths)) if text != worst]
    step = max(1, int(np.ceil(lengths.sum() / MOST_TOKENS)))
    order = [worst, *(text for start in range(step) for text in others[start::step])]
    total = np.cumsum(lengths[order])
    return sorted(order[: max(1, int((total <= MOST_TOKENS).sum()))])


def _most(before: float) -> float:
    """The largest factor that is left where something explains an operation that was off by `before`."""
    return min(FACTOR, before / LOWERED)


def _explained(site: Site, before: float, stop: float, found: Sequence[Candidate]) -> Candidate | None:
    """Find what explains a site: the first candidate that is close, else the closest within rounding."""
    best: tuple[float, Candidate | None] = (_most(before), None)
    for candidate in _candidates(site, found):
        try:
            factor = site.factor(candidate.compute, SPARE)
        except (KeyError, ValueError):  # a point that the candidate needs is not recorded, or has a different width
            continue
        if factor <= min(CLOSE, _most(before)):
            return candidate
        if factor < best[0]:
            best = factor, candidate
        if time.monotonic() > stop:
            break
    return best[1]


def _candidates(site: Site, found: Sequence[Candidate]) -> Iterator[Candidate]:
    """Yield all candidates of a site, the simplest first."""
    is_composite = site.kind in NORM or site.kind == "feed_forward_activation"
    # What was done in one place is likely to have been done in others.
    yield from found
    if is_composite:
        yield from map(_ended, found)
    yield from _whole(site)
    part = wrong_part(site)
    if part is not None:
        for candidate in (*fillings(site), *_whole(site)):
            yield restricted(candidate, part)
    if is_composite:
        yield from _pairs(site)


def _whole(site: Site) -> Iterator[Candidate]:
    yield from ROOMS[site.kind].candidates(site)
    if site.kind in NORM or site.kind == "feed_forward_activation":
        for candidate in linear.candidates(site):
            yield _ended(candidate)


def _ended(candidate: Candidate) -> Candidate:
    """Follow a linear layer by what the reference does after it."""
    return Candidate(candidate.says, lambda site: finished(site, np.asarray(candidate.compute(site))))


def _pairs(site: Site) -> Iterator[Candidate]:
    """Yield pairs of mistakes, in the linear layer and after it, that one text does not rule out."""
    lengths = site.recorded.lengths
    text = int(np.argmin(np.where(lengths >= 4, lengths, lengths.max())))
    recorded = site.recorded
    few = Site(Recorded(recorded.run, recorded.reference, recorded.checkpoint, [recorded.texts[text]]), site.point)
    before = few.before_norm()
    room = ROOMS[site.kind]
    products = [(one, np.asarray(one.compute(few))) for one in linear.candidates(few)]
    ends = list(room.finishes(few, before))
    for (one, made), (says, finish) in product(products, ends):
        with np.errstate(all="ignore"):
            errors = few.errors(finish(few, made))
        if max(float(np.abs(each).max()) for each in errors) <= FACTOR * few.allowed(finish(few, made))[0]:
            yield Candidate(
                f"{one.says}; {says}",
                lambda site, one=one, finish=finish: finish(site, np.asarray(one.compute(site))),
            )


def _layers(wrong: list[Site], factors: dict[str, float]) -> tuple[list[Finding], list[Site]]:
    """Find layers that compute with the weights of a different layer. Return the sites that are left, too."""
    findings: list[Finding] = []
    for index, of_layer in groupby(list(wrong), key=lambda site: site.index):
        sites = [site for site in of_layer if site.kind in LINEAR]
        if index is None or len(sites) < len(LINEAR):
            continue
        for other in range(len(sites[0].recorded.params.layers)):
            if other == index:
                continue
            params = sites[0].recorded.params
            layers = list(params.layers)
            layers[index] = layers[other]
            recorded = sites[0].recorded.with_params(params._replace(layers=tuple(layers)))
            after = [Site(recorded, site.point).factor(plain) for site in sites]
            if max(after) <= FACTOR:
                points = tuple(site.point for site in sites)
                says = f"the weights of layer {other} are used"
                findings.append(Finding(points, says, True, factors[points[0]], after[0]))
                wrong = [site for site in wrong if site not in sites]
                break
    return findings, wrong


def _joined(findings: list[Finding]) -> Iterator[Finding]:
    """Join findings of the same words, such as a weight in float16 in every linear layer."""
    together: dict[tuple[str, bool], list[Finding]] = {}
    for finding in findings:
        together.setdefault((finding.says, finding.named), []).append(finding)
    for same in together.values():
        points = tuple(point for finding in same for point in finding.points)
        yield Finding(points, same[0].says, same[0].named, same[0].before, same[0].after)


@dataclass(frozen=True)
class Part:
    """A part of a point's numbers.

    Attributes:
        says: the rule.
        rows: the rows that are wrong. [R]
        columns: the columns that are wrong. [n]
    """

    says: str
    rows: NDArray[np.bool_]
    columns: NDArray[np.bool_]


def wrong_part(site: Site) -> Part | None:
    """Find the part of a site that is wrong. None if all of it is, if no rule fits, or for attention probabilities."""
    computed = plain(site)
    if isinstance(computed, list):
        return None
    errors = np.concatenate(site.errors(computed))
    wrong = np.abs(errors) > FACTOR * site.allowed(computed)[0]
    rows, columns = wrong.any(axis=1), wrong.any(axis=0)
    if not rows.any():
        return None
    # A wrong row is wrong in many of its numbers; one in a hundred may be right by chance.
    by_column = wrong[rows].mean(axis=0) > 0.5
    if not rows.all():
        for says, chosen in _rules(site, rows):
            return Part(says, chosen, np.ones_like(columns))
    if not columns.all() and by_column.any() and np.array_equal(by_column, columns):
        says = linear.described(columns, "dimension").removesuffix(" are").removesuffix(" is")
        return Part(says, np.ones_like(rows), columns)
    return None


def _rules(site: Site, wrong: NDArray[np.bool_]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield the rules over one property of a row that choose exactly the wrong ones."""
    recorded = site.recorded
    if site.kind in ("pooled", "normalized"):
        places = {"text": np.array(recorded.texts), "length": recorded.lengths}
    else:
        places = recorded.places | {"token id": recorded.ids}
    for name, values in places.items():
        inside, outside = np.unique(values[wrong]), np.unique(values[~wrong])
        if np.isin(inside, outside).any():
            continue
        if len(inside) == 1:
            yield f"{name} {inside[0]}", wrong
        elif len(outside) == 1 and name != "token id":
            yield f"every {name} but {outside[0]}", wrong
        elif name != "token id" and inside.min() > outside.max():
            yield f"{'texts of' if name == 'length' else name} {inside.min()} and more", wrong
        elif name != "token id" and inside.max() < outside.min():
            yield f"{'texts of' if name == 'length' else name} {inside.max()} and less", wrong
        elif len(inside) <= 4 and len(inside) * 4 <= len(values):
            yield f"{name} {', '.join(map(str, inside))}", wrong


def restricted(candidate: Candidate, part: Part) -> Candidate:
    """Apply a candidate to a part alone; the rest is as in the reference."""

    def compute(site: Site) -> Values:
        right = np.asarray(plain(site))
        changed = np.asarray(candidate.compute(site))
        if len(right) != len(part.rows):
            return changed
        return np.where(part.rows[:, None] & part.columns, changed, right)

    return Candidate(f"{candidate.says}, for {part.says} alone", compute)


def fillings(site: Site) -> Iterator[Candidate]:
    """Yield what a part may hold if it was not computed at all."""
    yield Candidate("the values are 0", lambda site: np.zeros_like(np.asarray(plain(site))))
    for shift, which in ((1, "before"), (-1, "after")):
        yield Candidate(
            f"the values are those of the row {which}",
            lambda site, shift=shift: np.roll(np.asarray(plain(site)), shift, axis=0),
        )
    yield Candidate("the values are those of the first row", lambda site: _repeated(np.asarray(plain(site)), 0))
    yield Candidate("the values have the opposite sign", lambda site: -np.asarray(plain(site)))
    yield Candidate("the values are twice what they should be", lambda site: 2 * np.asarray(plain(site)))


def _repeated(rows: Array, row: int) -> Array:
    return np.broadcast_to(rows[row], rows.shape)


def described_points(points: Sequence[str], layers: int) -> str:
    """Name points of one kind, or of several, in few words: "query and key, in every layer"."""
    kinds: dict[str, list[str]] = {}
    for point in points:
        before, _, kind = point.rpartition(".")
        kinds.setdefault(kind, []).append(before.removeprefix("layers."))
    places = {tuple(of_kind) for of_kind in kinds.values()}
    if len(kinds) == len(LINEAR) and places == {next(iter(places))} and len(next(iter(places))) == 1:
        return f"layer {next(iter(places))[0]}"
    parts = [
        _listed(names) if of == ("",) else f"{_listed(names)} in {_layers_in_words(of, layers)}"
        for of, names in _by_layers(kinds).items()
    ]
    return ", ".join(parts)


def _by_layers(kinds: dict[str, list[str]]) -> dict[tuple[str, ...], list[str]]:
    together: dict[tuple[str, ...], list[str]] = {}
    for kind, of_kind in kinds.items():
        together.setdefault(tuple(of_kind), []).append(kind)
    return together


def _layers_in_words(of: tuple[str, ...], layers: int) -> str:
    if len(of) == layers:
        return "every layer"
    return f"layer{'s' * (len(of) > 1)} {', '.join(of)}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
