"""Which rows of the embeddings were taken, and how they were added up."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from e5ref.operations import Array
from e5ref.parity.altered.models import in_steps, round_to
from e5ref.parity.identify import layer_norm as norms
from e5ref.parity.identify.linear import on_grid
from e5ref.parity.identify.site import Candidate, Site, layer_norm

# Rows of the word embeddings are looked for at no more than this many different tokens.
LOOKED_FOR = 16


def candidates(site: Site) -> Iterator[Candidate]:
    """Yield what may have been added up, and what was done to the sum."""
    for says, (word, position, token_type) in SUMS.items():
        yield Candidate(says, lambda site, w=word, p=position, t=token_type: _normed(site, _sum(site, w, p, t)))
    yield Candidate(
        "token type 1 is taken",
        lambda site: _normed(site, _sum(site, 1, 1, 0) + site.recorded.params.embeddings.token_type[-1]),
    )
    root = site.config.hidden_size**0.5
    yield Candidate("word embeddings are multiplied by √D", lambda site: _normed(site, _sum(site, root, 1, 1)))
    yield Candidate("the sum is multiplied by √D", lambda site: _normed(site, root * _sum(site, 1, 1, 1)))
    for says, counted in PARTS.items():
        times = norms.share(site, _sum(site, *(1 - one for one in counted)), _sum(site, *counted))
        yield Candidate(
            f"the {says} embedding is added {times:.4g} times",
            lambda site, counted=counted, times=times: _normed(
                site, _sum(site, *(1 - one for one in counted)) + times * _sum(site, *counted)
            ),
        )
    for says, (word, position, token_type) in AFTER.items():
        yield Candidate(
            says,
            lambda site, w=word, p=position, t=token_type: (
                _normed(site, _sum(site, 1 - w, 1 - p, 1 - t)) + _sum(site, w, p, t)
            ),
        )
    yield from _positions(site)
    yield from norms.candidates(site)
    yield from _words(site)
    for bits, minimum in ((8, False), (8, True), (4, False), (4, True)):
        for group in (None, 0, 32, 64):
            grid = on_grid(bits, group, minimum=minimum)
            each = {None: "one scale for all", 0: "one scale for each row"}.get(
                group, f"a scale for each {group} numbers"
            )
            yield Candidate(
                f"word embeddings are {bits}-bit whole numbers with {each}{' and a minimum' * minimum}",
                lambda site, grid=grid: _normed(site, _sum(site, 0, 1, 1) + _on_grid(site, grid)),
            )
    yield Candidate("all embeddings are of 8 bits, as onnxruntime quantises them", _in_steps)
    for dtype in ("float16", "bfloat16"):
        yield Candidate(
            f"word embeddings are in {dtype}",
            lambda site, dtype=dtype: _normed(site, _sum(site, 0, 1, 1) + round_to(_sum(site, 1, 0, 0), dtype)),
        )


# What is said → how often word, position and token-type embedding count in the sum.
SUMS = {
    "the token-type embedding is missing": (1, 1, 0),
    "the position embedding is missing": (1, 0, 1),
    "the word embedding is missing": (0, 1, 1),
    "position and token-type embedding are missing": (1, 0, 0),
    "the token-type embedding is added twice": (1, 1, 2),
    "the position embedding is added twice": (1, 2, 1),
    "the position embedding is subtracted": (1, -1, 1),
}
PARTS = {"word": (1, 0, 0), "position": (0, 1, 0), "token-type": (0, 0, 1)}
AFTER = {
    "the position embedding is added after LayerNorm": (0, 1, 0),
    "the token-type embedding is added after LayerNorm": (0, 0, 1),
    "position and token-type embedding are added after LayerNorm": (0, 1, 1),
}


def _sum(site: Site, word: float, position: float, token_type: float) -> Array:
    tables, recorded = site.recorded.params.embeddings, site.recorded
    total = word * tables.word[recorded.ids] + position * tables.position[recorded.positions]
    return (total + token_type * tables.token_type[0]).astype(recorded.dtype)


def _normed(site: Site, total: Array) -> Array:
    return layer_norm(total, site.norm, site.config.layer_norm_eps)


def _on_grid(site: Site, grid: Callable[[Array], Array]) -> Array:
    """Put the words of the texts on a grid. The largest and smallest numbers set its scale."""
    word = site.recorded.params.embeddings.word
    extremes = [int(word.argmin()) // word.shape[1], int(word.argmax()) // word.shape[1]]
    return grid(word[[*site.recorded.ids, *extremes]])[: len(site.recorded.ids)]


def _in_steps(site: Site) -> Array:
    """Round each table of embeddings to 8 bits, with one scale and one zero."""
    tables, recorded = site.recorded.params.embeddings, site.recorded
    total = in_steps(tables.word[recorded.ids], 255, tables.word)
    total = total + in_steps(tables.position[recorded.positions], 255, tables.position)
    return _normed(site, total + in_steps(tables.token_type[0], 255, tables.token_type))


def _nearest(site: Site, made: Array, row: Array) -> tuple[int, float]:
    """Return which of several sums gives the run's row best, and how far it is."""
    errors = np.abs(_normed(site, made) - row).max(axis=1)
    return int(errors.argmin()), float(errors.min())


def _positions(site: Site) -> Iterator[Candidate]:
    """Find the position that each token took, and say what they have in common."""
    recorded, tables = site.recorded, site.recorded.params.embeddings
    run = recorded.rows(site.point)
    before = tables.word[recorded.ids] + tables.token_type[0]
    taken = np.array([_nearest(site, tables.position + part, row)[0] for part, row in zip(before, run, strict=True)])
    offset = site.config.position_offset
    own, token, end = taken - offset, recorded.places["token"], recorded.places["token from the end"]
    batch, most = recorded.places["token of the batch"], int(taken.max())
    shift = int(np.median(own - token))
    again = int(own.max()) + 1
    rules: dict[str, NDArray[np.int64]] = {
        f"positions are off by {shift}": (token + shift) % (len(tables.position) - offset),
        f"position {own[0]} is taken for every token": np.full_like(token, own[0]),
        "positions are counted from the end, in reverse": end,
        f"positions are clipped: they stop at {again - 1}": np.minimum(token, again - 1),
        f"positions start again after {again} tokens": token % again,
        "positions are counted across the whole batch": batch % max(len(tables.position) - offset, 1),
        "each position is taken twice": token // 2,
        "every second position is taken": token * 2,
    }
    for says, rule in rules.items():
        if np.array_equal(rule, own) or (again > most and np.mean(rule == own) > 0.5):
            rows = np.clip(rule + offset, 0, len(tables.position) - 1)
            yield Candidate(says, lambda site, rows=rows: _with_positions(site, rows))


def _with_positions(site: Site, rows: NDArray[np.int64]) -> Array:
    return _normed(site, _sum(site, 1, 0, 1) + site.recorded.params.embeddings.position[rows])


def _words(site: Site) -> Iterator[Candidate]:
    """Find the row of the word embeddings that each wrong token took."""
    recorded, tables = site.recorded, site.recorded.params.embeddings
    run = recorded.rows(site.point)
    right = _normed(site, _sum(site, 1, 1, 1))
    limit = site.allowed(right)[0]
    wrong = np.abs(run - right).max(axis=1) > 8 * limit
    different = np.unique(recorded.ids[wrong])
    if not wrong.any():
        return
    taken: dict[int, int] = {}
    for token in different[:LOOKED_FOR].tolist():
        at = int(np.flatnonzero(wrong & (recorded.ids == token))[0])
        rest = tables.position[recorded.positions[at]] + tables.token_type[0]
        row, error = _nearest(site, tables.word + rest, run[at])
        if error <= 16 * limit:
            taken[token] = row
    shifts = {row - token for token, row in taken.items()}
    if len(shifts) == 1 and len(taken) == min(LOOKED_FOR, len(different)) > 1:
        (shift,) = shifts
        yield Candidate(
            f"word embeddings take the row {abs(shift)} {'further' if shift > 0 else 'before'}",
            lambda site: _normed(
                site, _sum(site, 0, 1, 1) + np.roll(site.recorded.params.embeddings.word, -shift, 0)[recorded.ids]
            ),
        )
    if len(taken) == len(different):
        says = ", ".join(f"row {row} for token id {token}" for token, row in list(taken.items())[:4])
        ids = np.array([taken.get(token, token) for token in recorded.ids.tolist()])
        yield Candidate(
            f"word embeddings take {says}{', …' * (len(taken) > 4)}",
            lambda site: _normed(site, _sum(site, 0, 1, 1) + site.recorded.params.embeddings.word[ids]),
        )


def measured(site: Site) -> str:
    """Say which share of the tokens is wrong, and what LayerNorm would have to be."""
    return norms.measured(site)
