"""What attention may have been: the scale, the mask, the heads, the softmax; and how values were averaged."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from e5ref.operations import Array
from e5ref.parity.altered.changes import (
    merge_inside_out,
    merge_without_transposing,
    plain_softmax,
    split_inside_out,
    split_without_transposing,
)
from e5ref.parity.altered.models import round_to
from e5ref.parity.identify.linear import described
from e5ref.parity.identify.site import Candidate, Site, departure, heads, joined, plain, scores, softmax
from e5ref.parity.runs.rounding import FACTOR

# The places of a text's tokens, and how many there are → which keys (across) each query (down) sees.
Seen = Callable[[NDArray[np.int64], int], NDArray[np.bool_]]

# A probability below this is 0: nothing was attended to there.
NOTHING = 1e-30

# A probability above this is large enough to be missed if it is 0.
SOMETHING = 1e-12


def candidates(site: Site) -> Iterator[Candidate]:
    """Yield what may have made the probabilities, or the context, of a site. The simplest come first."""
    yield from (_of_probabilities if site.kind == "attention_probabilities" else _of_context)(site)


def _of_probabilities(site: Site) -> Iterator[Candidate]:
    yield from _scales(site)
    for says, end in SOFTMAXES.items():
        yield Candidate(says, _ended(end))
    for says, split in (
        ("heads are split inside out: their size before their number", split_inside_out),
        ("heads are split without a transpose", split_without_transposing),
    ):
        yield Candidate(says, lambda site, split=split: [joined(softmax(each)) for each in _split(site, split)])
    yield from _head_pairs(site)
    yield from _masks(site)
    yield from _dropout(site)
    yield from _distances(site)


def _ended(end: Callable[[Array], Array]) -> Callable[[Site], list[Array]]:
    return lambda site: [joined(end(scores(site, text))) for text in range(len(site.recorded.texts))]


def _one_more(x: Array) -> Array:
    exponents = np.exp(x)
    return exponents / (1 + exponents.sum(axis=-1, keepdims=True))


SOFTMAXES: dict[str, Callable[[Array], Array]] = {
    "softmax runs over the queries": lambda x: plain_softmax(x, -2),
    "softmax runs over the heads": lambda x: plain_softmax(x, -3),
    "softmax does not divide by the sum": lambda x: np.exp(x - x.max(axis=-1, keepdims=True)),
    "1 is added to softmax's divisor": _one_more,
    "the softmax is left out": lambda x: x,
    "a sigmoid takes softmax's place": lambda x: 1 / (1 + np.exp(-x)),
    "softmax is applied twice": lambda x: softmax(softmax(x)),
    "queries and keys are swapped": lambda x: softmax(x.swapaxes(-1, -2)),
    "the probabilities are transposed": lambda x: softmax(x).swapaxes(-1, -2),
    "keys are in reverse": lambda x: softmax(x[..., ::-1]),
    "scores are rounded to float16": lambda x: softmax(round_to(x, "float16")),
    "scores are rounded to bfloat16": lambda x: softmax(round_to(x, "bfloat16")),
    "probabilities are rounded to float16": lambda x: round_to(softmax(x), "float16"),
    "probabilities are rounded to bfloat16": lambda x: round_to(softmax(x), "bfloat16"),
}


def _scales(site: Site) -> Iterator[Candidate]:
    """Solve for the scale: the logarithms of a query's probabilities differ as its scores do."""
    top = bottom = 0.0
    for text, run in enumerate(site.recorded.squares(site.point)):
        seen = run > NOTHING
        count = np.maximum(seen.sum(axis=-1, keepdims=True), 1)
        parts = (scores(site, text) * seen, np.log(np.where(seen, run, 1)))
        right, logs = ((x - x.sum(axis=-1, keepdims=True) / count) * seen for x in parts)
        top, bottom = top + float(np.vdot(right, logs)), bottom + float(np.vdot(right, right))
    factor, config = (top / bottom if bottom else 1.0), site.config
    scale = factor / math.sqrt(config.head_size)
    known = {
        "1, so scores are not scaled": 1.0,
        "1/√D, of the hidden size D": 1 / math.sqrt(config.hidden_size),
        "1/H, so scores are scaled twice": 1 / config.head_size,
        "ln 2/√H, so exp2 stands for exp": math.log(2) / math.sqrt(config.head_size),
        "1/(ln 2 √H)": 1 / (math.log(2) * math.sqrt(config.head_size)),
        "√H": math.sqrt(config.head_size),
        "1/√N, of the number of heads N": 1 / math.sqrt(config.num_attention_heads),
    }
    says = next((says for says, value in known.items() if abs(scale / value - 1) < 1e-4), f"{factor:.6g}/√H")
    yield Candidate(
        f"the attention scale is {says}",
        _ended(lambda x: softmax(x * factor)),
    )


def _split(site: Site, split: Callable[..., Array]) -> Iterator[Array]:
    for text in range(len(site.recorded.texts)):
        query, key = (split(site.recorded.values(name)[text], site.config) for name in site.feeds)
        yield query @ key.swapaxes(-1, -2) / math.sqrt(site.config.head_size)


def _head_pairs(site: Site) -> Iterator[Candidate]:
    """Find the head of the queries, and that of the keys, that make each head."""
    number = site.config.num_attention_heads
    text = int(site.recorded.lengths.argmax())
    query, key = (heads(site.recorded.values(name)[text], site.config) for name in site.feeds)
    run = site.recorded.squares(site.point)[text]
    best = np.full(number, np.inf)
    pairs = np.zeros((number, 2), int)
    for a in range(number):
        for b in range(number):
            made = softmax(query[a] @ key[b].T / math.sqrt(site.config.head_size))
            errors = np.square(run - made).mean(axis=(1, 2))
            better = errors < best
            best[better], pairs[better] = errors[better], (a, b)
    if not (pairs == np.arange(number)[:, None]).all():
        says = " and ".join(
            f"{name} of {described_heads(pairs[:, i])}"
            for i, name in enumerate(("queries", "keys"))
            if (pairs[:, i] != np.arange(number)).any()
        )
        yield Candidate(f"heads take {says}", lambda site: [joined(softmax(each)) for each in _paired(site, pairs)])


def _paired(site: Site, pairs: NDArray[np.int64]) -> Iterator[Array]:
    for text in range(len(site.recorded.texts)):
        query, key = (heads(site.recorded.values(name)[text], site.config) for name in site.feeds)
        yield query[pairs[:, 0]] @ key[pairs[:, 1]].swapaxes(-1, -2) / math.sqrt(site.config.head_size)


def described_heads(order: NDArray[np.int64]) -> str:
    """Say which head each head takes."""
    if (order == order[0]).all():
        return f"head {order[0]} for every head"
    if (order == np.arange(len(order))[::-1]).all():
        return "the heads in reverse order"
    for shift in range(1, len(order)):
        if (order == np.roll(np.arange(len(order)), -shift)).all():
            return f"the head {shift} further"
    for group in range(2, len(order)):
        if len(order) % group == 0 and (order == np.arange(len(order)) // group * group).all():
            return f"the first of each {group} heads"
    return "heads " + ", ".join(map(str, order))


def _masks(site: Site) -> Iterator[Candidate]:
    """Find which keys no query sees, which queries do not see themselves, and so on, from the zeros."""
    squares = site.recorded.squares(site.point)
    hidden = [(run < NOTHING) & (softmax(scores(site, text)) > SOMETHING) for text, run in enumerate(squares)]
    if not any(each.any() for each in hidden):
        return
    shown = [(run > NOTHING).any(axis=0) for run in squares]  # [t, t], what any head sees
    distance = max(int(np.abs(np.subtract(*np.nonzero(each))).max(initial=0)) for each in shown)
    longest = max(int(np.flatnonzero(each.any(axis=0)).max(initial=-1)) + 1 for each in shown)
    keys = np.unique(np.concatenate([np.flatnonzero(each.any(axis=0)) for each in shown]))
    most = max(int((run > NOTHING).sum(axis=-1).max()) for run in squares)
    for end, kept in (("", _most_probable), (", and the rest is not normalised again", _most_probable_cut)):
        yield Candidate(f"a token sees only the {most} most probable keys{end}", _ended(partial(kept, count=most)))
    seen: dict[str, Seen] = {
        "a token sees only itself and those before it: the mask is causal": lambda at, n: at <= at[:, None],
        "a token sees only those before it": lambda at, n: at < at[:, None],
        "a token sees only itself and those after it": lambda at, n: at >= at[:, None],
        f"a token sees only a window of {distance} tokens on either side": lambda at, n: (
            abs(at - at[:, None]) <= distance
        ),
        "a token does not see itself": lambda at, n: at != at[:, None],
        "token 0, [CLS], is not seen": lambda at, n: np.broadcast_to(at > 0, (n, n)),
        "the last token, [SEP], is not seen": lambda at, n: np.broadcast_to(at < n - 1, (n, n)),
        f"only the first {longest} tokens are seen": lambda at, n: np.broadcast_to(at < longest, (n, n)),
        f"only tokens {', '.join(map(str, keys[:8]))}{', …' * (len(keys) > 8)} are seen": lambda at, n: np.broadcast_to(
            np.isin(at, keys), (n, n)
        ),
    }
    for says, rule in seen.items():
        for end, masked in (("", _masked), (", and the rest is not normalised again", _cut)):
            yield Candidate(says + end, lambda site, rule=rule, masked=masked: masked(site, rule))


def _most_probable_cut(x: Array, count: int) -> Array:
    probabilities = softmax(x)
    least = np.sort(probabilities, axis=-1)[..., -count:][..., :1]
    return probabilities * (probabilities >= least)


def _most_probable(x: Array, count: int) -> Array:
    kept = _most_probable_cut(x, count)
    return kept / kept.sum(axis=-1, keepdims=True)


def _seen(rule: Seen, length: int) -> NDArray[np.bool_]:
    """Which keys each query sees; a query that would see nothing sees all."""
    seen = np.array(rule(np.arange(length), length))
    seen[~seen.any(axis=1)] = True
    return seen


def _masked(site: Site, rule: Seen) -> list[Array]:
    made = []
    for text, length in enumerate(site.recorded.lengths.tolist()):
        bias = np.where(_seen(rule, length), 0, -np.inf).astype(site.recorded.dtype)
        made.append(joined(softmax(scores(site, text) + bias)))
    return made


def _cut(site: Site, rule: Seen) -> list[Array]:
    lengths = site.recorded.lengths.tolist()
    return [joined(softmax(scores(site, text)) * _seen(rule, n)) for text, n in enumerate(lengths)]


def _dropout(site: Site) -> Iterator[Candidate]:
    """Recognise dropout: some probabilities are 0, and the others all larger by the factor that makes up for them."""
    kept = [run > NOTHING for run in site.recorded.squares(site.point)]
    count = sum(each.size for each in kept)
    rate = 1 - sum(int(each.sum()) for each in kept) / count
    ratios = [
        (run / softmax(scores(site, text)))[each]
        for text, (run, each) in enumerate(zip(site.recorded.squares(site.point), kept, strict=True))
    ]
    scale = float(np.median(np.concatenate(ratios)))
    # Four standard deviations of a share of so many.
    if not 0 < rate < 0.9 or abs(1 - 1 / scale - rate) > 4 * math.sqrt(rate * (1 - rate) / count):
        return
    yield Candidate(
        f"dropout of {1 - 1 / scale:.0%} is left on",
        lambda site: [
            joined(scale * softmax(scores(site, text)) * each.astype(site.recorded.dtype))
            for text, each in enumerate(kept)
        ],
    )


def _distances(site: Site) -> Iterator[Candidate]:
    """Solve for a slope of each head: how much is added to a score for each token between query and key."""
    number = site.config.num_attention_heads
    top, bottom = np.zeros(number), 0.0
    for text, run in enumerate(site.recorded.squares(site.point)):
        if (run < NOTHING).any():
            return
        at = np.arange(run.shape[-1])
        away = np.abs(at - at[:, None]).astype(float)
        away -= away.mean(axis=-1, keepdims=True)
        logs = np.log(run) - scores(site, text)
        top += ((logs - logs.mean(axis=-1, keepdims=True)) * away).sum(axis=(1, 2))
        bottom += float(np.square(away).sum())
    if not bottom:
        return
    slopes = top / bottom
    biased = f"{slopes[0]:.4g}" if number == 1 else f"{slopes[0]:.4g} … {slopes[-1]:.4g}, head by head (ALiBi)"
    yield Candidate(
        f"a bias by distance is added to the scores: for each token between query and key {biased}",
        lambda site: [joined(softmax(scores(site, text) + _away(site, text, slopes))) for text in _texts(site)],
    )


def _texts(site: Site) -> range:
    return range(len(site.recorded.texts))


def _away(site: Site, text: int, slopes: Array) -> Array:
    at = np.arange(site.recorded.lengths[text])
    return (slopes[:, None, None] * np.abs(at - at[:, None])).astype(site.recorded.dtype)


def _of_context(site: Site) -> Iterator[Candidate]:
    def averaged(
        change: Callable[[Array, Array], Array], point: str = "value", merge: Callable[[Array], Array] = joined
    ) -> Callable[[Site], Array]:
        def compute(site: Site) -> Array:
            squares = site.recorded.squares(site.feeds[0])
            rows = site.recorded.values(site.feeds[1].removesuffix("value") + point)
            pairs = zip(squares, rows, strict=True)
            return np.concatenate([merge(change(square, heads(each, site.config))) for square, each in pairs])

        return compute

    def product(square: Array, value: Array) -> Array:
        return square @ value

    for point in ("key", "query"):
        yield Candidate(f"the probabilities weigh the {point}, not the value", averaged(product, point))
    yield Candidate("heads are merged inside out", averaged(product, merge=merge_inside_out))
    yield Candidate("heads are merged without a transpose", averaged(product, merge=merge_without_transposing))
    yield Candidate("heads are split and merged inside out", _whole(split_inside_out, merge_inside_out))
    yield Candidate(
        "heads are split and merged without a transpose", _whole(split_without_transposing, merge_without_transposing)
    )
    yield Candidate("the probabilities are transposed", averaged(lambda p, v: p.swapaxes(-1, -2) @ v))
    for shift, which in ((-1, "next"), (1, "previous")):
        yield Candidate(
            f"each key weighs the value of the {which} token", averaged(lambda p, v, s=shift: p @ np.roll(v, s, axis=1))
        )
    yield Candidate("the values are in reverse", averaged(lambda p, v: p @ v[:, ::-1]))
    yield Candidate("the value goes through without attention", averaged(lambda p, v: v + 0 * (p @ v)))
    for dtype in ("float16", "bfloat16"):
        yield Candidate(f"probabilities are rounded to {dtype}", averaged(lambda p, v, d=dtype: round_to(p, d) @ v))
        yield Candidate(f"values are rounded to {dtype}", averaged(lambda p, v, d=dtype: p @ round_to(v, d)))
        yield Candidate(
            f"probabilities and values are rounded to {dtype}",
            averaged(lambda p, v, d=dtype: round_to(p, d) @ round_to(v, d)),
        )
        yield Candidate(f"the context is rounded to {dtype}", averaged(lambda p, v, d=dtype: round_to(p @ v, d)))
    order = _matched(site)
    if (order[:, 0] != order[:, 1]).any() or (order[:, 0] != np.arange(len(order))).any():
        says = " and ".join(
            f"{name} of {described_heads(order[:, i])}"
            for i, name in enumerate(("probabilities", "values"))
            if (order[:, i] != np.arange(len(order))).any()
        )
        yield Candidate(f"heads of the context take {says}", averaged(lambda p, v: p[order[:, 0]] @ v[order[:, 1]]))


def _whole(split: Callable[..., Array], merge: Callable[[Array], Array]) -> Callable[[Site], Array]:
    def compute(site: Site) -> Array:
        pairs = zip(site.recorded.squares(site.feeds[0]), site.recorded.values(site.feeds[1]), strict=True)
        return np.concatenate([merge(square @ split(rows, site.config)) for square, rows in pairs])

    return compute


def _matched(site: Site) -> NDArray[np.int64]:
    """Return, for each head of the context, the heads of the probabilities and of the values that make it. [N, 2]."""
    text = int(site.recorded.lengths.argmax())
    square = site.recorded.squares(site.feeds[0])[text]
    value, run = (heads(site.recorded.values(name)[text], site.config) for name in (site.feeds[1], site.point))
    made = np.einsum("aij,bjh->abih", square, value, optimize=True)
    errors = np.square(run[:, None, None] - made[None]).mean(axis=(-1, -2))  # [N, N, N]
    return np.stack(np.unravel_index(errors.reshape(len(run), -1).argmin(axis=1), made.shape[:2]), axis=1)


def measured(site: Site) -> str:
    """Say what the probabilities look like, and which heads are wrong; or how far a context is off."""
    if site.kind != "attention_probabilities":
        return f"the context is not the average of the values by these probabilities, by {departure(site):.2g} in norm"
    run = site.recorded.squares(site.point)
    sums = np.concatenate([each.sum(axis=-1).ravel() for each in run])
    zeros = float(np.mean(np.concatenate([(each < NOTHING).ravel() for each in run])))
    padded = site.recorded.lengths < site.recorded.run.input_ids.shape[1]
    full = np.array([abs(each.sum(axis=-1) - 1).max() < 1e-3 for each in run])
    least, most = f"{sums.min():.4g}", f"{sums.max():.4g}"
    says = f"a query's probabilities sum to {least if least == most else f'{least} to {most}'}, and {zeros:.1%} are 0"
    computed = plain(site)
    wrong = np.zeros(site.config.num_attention_heads, np.bool_)
    for error in site.errors(computed):
        wrong |= np.abs(error).reshape(len(error), len(wrong), -1).max(axis=(0, 2)) > FACTOR * site.allowed(computed)[0]
    if not wrong.all():
        says += f"; only {described(wrong, 'head')} wrong"
    if padded.any() and np.array_equal(full, ~padded) and sums.max() < 1 + 1e-3:
        says += "; the sum is below 1 only for texts with padding, so padding is attended to"
    return says
