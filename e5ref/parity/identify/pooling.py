"""What the last states, their average and the norm may have been."""

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from e5ref import numpy_model
from e5ref.operations import Array
from e5ref.parity.altered.models import round_to
from e5ref.parity.identify.site import Candidate, Site, departure, plain

# The weights that an average gives to the tokens of a text of n. -> [n]
Weights = Callable[[int], Array]

AVERAGES: dict[str, Weights] = {
    "[CLS] is taken, not the average": lambda n: np.eye(1, n)[0],
    "the last token is taken, not the average": lambda n: np.eye(1, n, n - 1)[0],
    "the sum is taken: it is not divided by the number of tokens": np.ones,
    "the sum is divided by the root of the number of tokens": lambda n: np.ones(n) / math.sqrt(n),
    "the sum is divided by one more than the number of tokens": lambda n: np.ones(n) / (n + 1),
    "the sum is divided by one less than the number of tokens": lambda n: np.ones(n) / max(n - 1, 1),
    "[CLS] is left out of the average": lambda n: _inner(n, 1, 0),
    "[SEP], the last token, is left out of the average": lambda n: _inner(n, 0, 1),
    "[CLS] and [SEP] are left out of the average": lambda n: _inner(n, 1, 1),
    "[CLS] is left out, but the sum is divided by all tokens": lambda n: _inner(n, 1, 0) * max(n - 1, 1) / n,
    "[SEP] is left out, but the sum is divided by all tokens": lambda n: _inner(n, 0, 1) * max(n - 1, 1) / n,
    "[CLS] and [SEP] are left out, but the sum is divided by all tokens": lambda n: _inner(n, 1, 1) * max(n - 2, 1) / n,
    "tokens weigh more by their position, later ones most": lambda n: np.arange(1, n + 1) * 2 / (n * (n + 1)),
    "tokens weigh less by their position, earlier ones most": lambda n: np.arange(n, 0, -1) * 2 / (n * (n + 1)),
    "the average of first and last token is taken": lambda n: (np.eye(1, n)[0] + np.eye(1, n, n - 1)[0]) / 2,
}


def _inner(tokens: int, before: int, after: int) -> Array:
    """The average without some tokens at either end; of all, if none is left."""
    weights = np.zeros(tokens)
    weights[before : tokens - after] = 1
    return (weights if weights.any() else np.ones(tokens)) / max(weights.sum() or tokens, 1)


def candidates(site: Site) -> Iterator[Candidate]:
    """Yield what may have been done at the last states, the average or the norm."""
    if site.kind == "last_hidden_state":
        layers = len(site.recorded.params.layers)
        for index in range(layers - 1, -1, -1):
            yield from _points(f"layers.{index}.output", f"the output of layer {index}, not of the last")
        yield from _points("embeddings", "the embeddings")
    else:
        yield from (_pools if site.kind == "pooled" else _norms)(site)
        yield from _orders(site)
        for dtype in ("float16", "bfloat16"):
            yield Candidate(
                f"the vectors are rounded to {dtype}",
                lambda site, dtype=dtype: round_to(np.asarray(plain(site)), dtype),
            )
        yield Candidate("the dimensions are in reverse", lambda site: np.asarray(plain(site))[:, ::-1])
        yield Candidate(
            "the vectors are rounded to 1/127, as whole numbers of 8 bits",
            lambda site: np.rint(np.asarray(plain(site)) * 127) / 127,
        )


def _points(name: str, says: str) -> Iterator[Candidate]:
    yield Candidate(f"{says} is taken", lambda site: site.recorded.rows(name))


def _pools(site: Site) -> Iterator[Candidate]:
    longest = site.recorded.run.input_ids.shape[1]
    padded = {f"the sum is divided by the padded length, {longest}": lambda n: np.ones(n) / longest}
    for says, weights in (AVERAGES | padded).items():
        yield Candidate(says, lambda site, weights=weights: _averaged(site, weights))
    for says, function in (
        ("the maximum is taken, not the average", lambda rows: rows.max(axis=0)),
        ("the minimum is taken, not the average", lambda rows: rows.min(axis=0)),
        ("the median is taken, not the average", lambda rows: np.median(rows, axis=0)),
        ("the average of the absolute values is taken", lambda rows: np.abs(rows).mean(axis=0)),
    ):
        yield Candidate(
            says,
            lambda site, function=function: np.stack([function(rows) for rows in site.recorded.values(site.feeds[0])]),
        )
    yield Candidate(
        "the average's tanh is taken",
        lambda site: np.tanh(np.stack([r.mean(axis=0) for r in site.recorded.values(site.feeds[0])])),
    )
    layers = len(site.recorded.params.layers)
    last = f"layers.{layers - 1}.output"
    for index in range(layers - 2, -1, -1):
        yield from _averages_of((f"layers.{index}.output",), f"layer {index} is averaged, not the last")
    for count in (2, 3, 4):
        names = tuple(f"layers.{index}.output" for index in range(max(layers - count, 0), layers))
        if len(names) == count:
            yield from _averages_of(names, f"the last {count} layers are averaged")
    yield from _averages_of(("layers.0.output", last), "first and last layer are averaged")
    yield from _averages_of(("embeddings",), "the embeddings are averaged")
    yield from _averages_of(("embeddings", last), "embeddings and last layer are averaged")
    yield from _scaled(site)


def _averages_of(names: tuple[str, ...], says: str) -> Iterator[Candidate]:
    def compute(site: Site) -> Array:
        rows = np.mean([site.recorded.rows(name) for name in names], axis=0)
        return np.stack([each.mean(axis=0) for each in site.recorded.per_text(rows)])

    yield Candidate(says, compute)


def _averaged(site: Site, weights: Weights) -> Array:
    return np.stack([weights(len(rows)).astype(rows.dtype) @ rows for rows in site.recorded.values(site.feeds[0])])


def _scaled(site: Site) -> Iterator[Candidate]:
    """Solve for one factor."""
    run, right = np.concatenate(site.recorded.values(site.point)), np.asarray(plain(site))
    factor = float(np.vdot(right, run) / np.vdot(right, right))
    yield Candidate(f"the result is multiplied by {factor:.6g}", lambda site: factor * np.asarray(plain(site)))


def _orders(site: Site) -> Iterator[Candidate]:
    """Find texts that have the vector of a different text."""
    recorded = site.recorded
    run, right = np.concatenate(recorded.values(site.point)), np.asarray(plain(site))
    distances = np.square(run[:, None] - right[None]).sum(axis=-1)
    taken = distances.argmin(axis=1)
    count = len(taken)
    if count < 2 or (taken == np.arange(count)).all():
        return
    rules = {
        "each text has the vector of the text before it": np.roll(np.arange(count), 1),
        "each text has the vector of the text after it": np.roll(np.arange(count), -1),
        "the texts are in reverse order": np.arange(count)[::-1],
        "the texts are sorted by length, shortest first": np.argsort(recorded.lengths, kind="stable"),
        "the texts are sorted by length, longest first": np.argsort(-recorded.lengths, kind="stable"),
        f"every text has the vector of text {recorded.texts[taken[0]]}": np.full(count, taken[0]),
        "the texts are in a different order: " + ", ".join(str(recorded.texts[i]) for i in taken[:12]): taken,
    }
    for says, order in rules.items():
        yield Candidate(says, lambda site, order=order: np.asarray(plain(site))[order])


def _norms(site: Site) -> Iterator[Candidate]:
    yield Candidate("the vectors are not normalised", lambda site: site.x)
    for says, norm in (
        ("L1 norm", lambda x: np.abs(x).sum(axis=-1, keepdims=True)),
        ("largest value (maximum norm)", lambda x: np.abs(x).max(axis=-1, keepdims=True)),
        ("squared norm", lambda x: np.square(x).sum(axis=-1, keepdims=True)),
        ("root of the norm", lambda x: np.sqrt(np.linalg.norm(x, axis=-1, keepdims=True))),
        ("root mean square", lambda x: np.sqrt(np.square(x).mean(axis=-1, keepdims=True))),
        (
            "norm of each dimension over the batch: the axis is wrong",
            lambda x: np.linalg.norm(x, axis=0, keepdims=True),
        ),
        ("norm of the whole batch", lambda x: np.linalg.norm(x)),
        ("sum", lambda x: x.sum(axis=-1, keepdims=True)),
    ):
        yield Candidate(f"vectors are divided by their {says}", lambda site, norm=norm: site.x / norm(site.x))
    for dtype in ("float16",):
        yield Candidate(
            f"the norm is in {dtype}",
            lambda site, dtype=dtype: (
                site.x / np.linalg.norm(site.x, axis=-1, keepdims=True).astype(dtype).astype(site.x.dtype)
            ),
        )
    yield Candidate(
        "vectors are centred before they are normalised",
        lambda site: numpy_model.l2_normalize(site.x - site.x.mean(axis=-1, keepdims=True)),
    )
    yield Candidate(
        "the batch's mean is subtracted before vectors are normalised",
        lambda site: numpy_model.l2_normalize(site.x - site.x.mean(axis=0)),
    )
    yield Candidate(
        "softmax takes the norm's place",
        lambda site: (
            np.exp(site.x - site.x.max(axis=-1, keepdims=True))
            / np.exp(site.x - site.x.max(axis=-1, keepdims=True)).sum(axis=-1, keepdims=True)
        ),
    )
    # The divisor of each vector, and what it has beyond the norm.
    x, run = site.x, np.concatenate(site.recorded.values(site.point))
    with np.errstate(all="ignore"):
        divisors = np.square(x).sum(axis=-1) / (x * run).sum(axis=-1)
    norms = np.linalg.norm(x, axis=-1)
    more, more_squared = float(np.median(divisors - norms)), float(np.median(divisors**2 - norms**2))
    yield Candidate(
        f"vectors are divided by their norm plus {more:.4g}",
        lambda site: site.x / (np.linalg.norm(site.x, axis=-1, keepdims=True) + more),
    )
    yield Candidate(
        f"vectors are divided by √(norm² + {more_squared:.4g})",
        lambda site: site.x / np.sqrt(np.square(site.x).sum(axis=-1, keepdims=True) + more_squared),
    )
    least = float(divisors.min())
    yield Candidate(
        f"vectors are divided by at least {least:.4g}",
        lambda site: site.x / np.maximum(np.linalg.norm(site.x, axis=-1, keepdims=True), least),
    )
    factor = float(np.median(divisors / norms))
    yield Candidate(
        f"vectors are normalised and multiplied by {1 / factor:.6g}",
        lambda site: numpy_model.l2_normalize(site.x) / factor,
    )


def measured(site: Site) -> str:
    """Solve for the weights that the average gave each token of a text, and say how far they are from equal."""
    if site.kind != "pooled":
        x, run = site.x, np.concatenate(site.recorded.values(site.point))
        if x.shape != run.shape:
            return "the vectors have a different width"
        norms = np.linalg.norm(run, axis=-1)
        return (
            f"the norms of the vectors are {norms.min():.4g} to {norms.max():.4g}, and they are off by "
            f"{departure(site):.2g} in norm"
        )
    states, vectors = site.recorded.values(site.feeds[0]), site.recorded.values(site.point)
    text = int(np.argmax([len(rows) if len(rows) < rows.shape[1] else 0 for rows in states]))
    weights, *_ = np.linalg.lstsq(states[text].T, vectors[text][0], rcond=None)
    left = np.linalg.norm(states[text].T @ weights - vectors[text][0]) / np.linalg.norm(vectors[text][0])
    if left > 1e-3:
        return f"no average of a text's last states gives its vector: {left:.1%} is left with the best weights"
    shares: NDArray[np.float64] = weights * len(weights)
    said = ", ".join(f"{share:.3g}" for share in shares[:8])
    return f"the average weighs the tokens of text {site.recorded.texts[text]} by {said}… (1 is right)"
