"""Which part of a batch is wrong: the shortest rule that tells the wrong rows, or dimensions, from the right ones."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from e5ref.operations import Array
from e5ref.parity.identify.linear import described
from e5ref.parity.identify.site import Candidate, Site, Values, plain
from e5ref.parity.runs.rounding import FACTOR


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
        says = described(columns, "dimension").removesuffix(" are").removesuffix(" is")
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
