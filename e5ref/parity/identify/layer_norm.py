"""What a LayerNorm, and the sum before it, may have been."""

from collections.abc import Callable, Iterator

import numpy as np

from e5ref.checkpoint.params import Affine
from e5ref.operations import Array
from e5ref.parity.altered.changes import normed
from e5ref.parity.altered.models import round_to
from e5ref.parity.identify.site import Candidate, Site, layer_norm

Finish = Callable[[Site, Array], Array]

EPSILONS = (1e-12, 1e-3, 1e-5, 1e-6, 1e-7, 1e-8, 1e-4, 1e-2)


def finishes(site: Site, before: Array) -> Iterator[tuple[str, Finish]]:
    """Yield what may have been done to a linear layer's output: in words, and as a function of the output.

    Args:
        site: the operation.
        before: the output of the reference's linear layer. [R, D].
    """
    yield from _sums(site)
    if site.index is not None:
        times = share(site, before, site.residual)
        yield (
            f"the residual is added {times:.4g} times",
            lambda site, x: layer_norm(x + times * site.residual, site.norm, site.config.layer_norm_eps),
        )
    total = before + site.residual
    for epsilon in dict.fromkeys((*EPSILONS, _solved_epsilon(site, total))):
        if epsilon > 0 and epsilon != site.config.layer_norm_eps:
            yield (
                f"LayerNorm has epsilon {power(epsilon)}",
                lambda site, x, epsilon=epsilon: layer_norm(x + site.residual, site.norm, epsilon),
            )
    for says, function in NORMS.items():
        yield (
            says,
            lambda site, x, function=function: function(x + site.residual, site.norm, site.config.layer_norm_eps),
        )
    yield "LayerNorm's statistics are those of a whole text", _over_texts
    yield "LayerNorm's statistics are those of the whole batch", _over_all
    for name, affine in _norms(site):
        for says, used in (
            ("weight and bias", lambda own, other: other),
            ("weight", lambda own, other: Affine(other.weight, own.bias)),
            ("bias", lambda own, other: Affine(own.weight, other.bias)),
        ):
            yield (
                f"LayerNorm has the {says} of {name}",
                lambda site, x, affine=affine, used=used: layer_norm(
                    x + site.residual, used(site.norm, affine(site)), site.config.layer_norm_eps
                ),
            )


def _sums(site: Site) -> Iterator[tuple[str, Finish]]:
    yield "LayerNorm is left out", lambda site, x: x + site.residual
    if site.index is None:
        return

    def ended(site: Site, x: Array) -> Array:
        return layer_norm(x, site.norm, site.config.layer_norm_eps)

    yield "the residual is missing", ended
    yield "the residual is added twice", lambda site, x: ended(site, x + 2 * site.residual)
    yield "the residual is subtracted", lambda site, x: ended(site, x - site.residual)
    yield "LayerNorm comes before the sum", lambda site, x: ended(site, x) + site.residual
    yield "the sum is halved before LayerNorm", lambda site, x: ended(site, (x + site.residual) / 2)
    yield "the residual goes through LayerNorm", lambda site, x: x + ended(site, site.residual)
    yield (
        "the sum of residual and LayerNorm's result is taken",
        lambda site, x: ended(site, x + site.residual) + site.residual,
    )
    yield (
        "the linear layer's output is left out, residual and LayerNorm alone are there",
        lambda site, x: ended(site, np.zeros_like(x) + site.residual),
    )
    yield (
        "the linear layer is left out",
        lambda site, x: ended(site, (site.x if site.x.shape == x.shape else x) + site.residual),
    )
    before = f"layers.{site.index - 1}.output" if site.index else "embeddings"
    if site.kind == "output":
        yield (
            "the layer's input is the residual, not the attention part's output",
            lambda site, x, before=before: ended(site, x + site.recorded.rows(_input(site))),
        )
    if site.kind == "attention_output" or site.index:
        yield "the embeddings are the residual", lambda site, x: ended(site, x + site.recorded.rows("embeddings"))


def share(site: Site, rest: Array, part: Array) -> float:
    """Solve for how often a part counts in the sum before LayerNorm, if the rest counts once. [R, D] both.

    LayerNorm keeps the direction of a centred row. What `rest` and `part` have beside that direction must add up to 0.
    """
    with np.errstate(all="ignore"):
        sure = np.abs(site.norm.weight) > 0.01 * np.abs(site.norm.weight).max()  # elsewhere the rounding is too large
        direction = ((site.recorded.rows(site.point) - site.norm.bias) / site.norm.weight)[:, sure]
        direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
        rest, part = ((x - x.mean(axis=-1, keepdims=True))[..., sure] for x in (rest, part))
        rest, part = (x - (x * direction).sum(axis=-1, keepdims=True) * direction for x in (rest, part))
        return -float(np.vdot(part, rest) / np.vdot(part, part))


def _input(site: Site) -> str:
    return f"layers.{site.index - 1}.output" if site.index else "embeddings"


def power(value: float) -> str:
    """Write a small number with its power of ten: 1e-5."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _plain(x: Array, eps: float) -> Array:
    return normed(x, inside=eps)


def _half(x: Array, affine: Affine, eps: float, dtype: str, *, inverse: bool) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    root = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + eps)
    factor = round_to(1 / root, dtype) if inverse else 1 / round_to(root, dtype)
    return centred * factor * affine.weight + affine.bias


NORMS: dict[str, Callable[[Array, Affine, float], Array]] = {
    "LayerNorm's variance divides by n − 1": lambda x, a, eps: normed(x, inside=eps, less=1) * a.weight + a.bias,
    "LayerNorm's epsilon is outside the root": lambda x, a, eps: normed(x, outside=eps) * a.weight + a.bias,
    "LayerNorm does not subtract the mean": lambda x, a, eps: normed(x, mean=False, inside=eps) * a.weight + a.bias,
    "RMSNorm: LayerNorm has neither mean nor bias": lambda x, a, eps: normed(x, mean=False, inside=eps) * a.weight,
    "LayerNorm has no bias": lambda x, a, eps: _plain(x, eps) * a.weight,
    "LayerNorm has no weight": lambda x, a, eps: _plain(x, eps) + a.bias,
    "LayerNorm has neither weight nor bias": lambda x, a, eps: _plain(x, eps),
    "LayerNorm has weight and bias swapped": lambda x, a, eps: _plain(x, eps) * a.bias + a.weight,
    "LayerNorm multiplies by 1 + weight": lambda x, a, eps: _plain(x, eps) * (1 + a.weight) + a.bias,
    "LayerNorm's bias is subtracted": lambda x, a, eps: _plain(x, eps) * a.weight - a.bias,
    "LayerNorm's bias is added before its weight": lambda x, a, eps: (_plain(x, eps) + a.bias) * a.weight,
    "LayerNorm is applied twice": lambda x, a, eps: layer_norm(layer_norm(x, a, eps), a, eps),
    "LayerNorm divides by the variance, not by its root": lambda x, a, eps: (
        (x - x.mean(axis=-1, keepdims=True)) / (x.var(axis=-1, keepdims=True) + eps) * a.weight + a.bias
    ),
    "LayerNorm divides by the mean absolute deviation": lambda x, a, eps: (
        _plain(x, 0)
        * x.std(axis=-1, keepdims=True)
        / (np.abs(x - x.mean(axis=-1, keepdims=True)).mean(axis=-1, keepdims=True) + eps)
        * a.weight
        + a.bias
    ),
    "LayerNorm's standard deviation is in float16": lambda x, a, eps: _half(x, a, eps, "float16", inverse=False),
    "LayerNorm's reciprocal deviation is in float16": lambda x, a, eps: _half(x, a, eps, "float16", inverse=True),
    "LayerNorm's standard deviation is in bfloat16": lambda x, a, eps: _half(x, a, eps, "bfloat16", inverse=False),
    "LayerNorm's reciprocal deviation is in bfloat16": lambda x, a, eps: _half(x, a, eps, "bfloat16", inverse=True),
    "the sum before LayerNorm is in float16": lambda x, a, eps: layer_norm(round_to(x, "float16"), a, eps),
    "the sum before LayerNorm is in bfloat16": lambda x, a, eps: layer_norm(round_to(x, "bfloat16"), a, eps),
    "LayerNorm's result is rounded to float16": lambda x, a, eps: round_to(layer_norm(x, a, eps), "float16"),
    "LayerNorm's result is rounded to bfloat16": lambda x, a, eps: round_to(layer_norm(x, a, eps), "bfloat16"),
}


def _norms(site: Site) -> Iterator[tuple[str, Callable[[Site], Affine]]]:
    """Yield every other LayerNorm of the model."""
    for name in ("attention_layer_norm", "output_layer_norm"):
        if site.index is not None and getattr(site.layer, name) is not site.norm:
            yield f"{name} of the same layer", lambda site, name=name: getattr(site.layer, name)
    if site.index is not None:
        yield "the embeddings", lambda site: site.recorded.params.embeddings.layer_norm
    for index in range(len(site.recorded.params.layers)):
        if index != site.index:
            for name in ("attention_layer_norm", "output_layer_norm"):
                yield (
                    f"{name} of layer {index}",
                    lambda site, index=index, name=name: getattr(site.recorded.params.layers[index], name),
                )


def _over_texts(site: Site, x: Array) -> Array:
    parts = [_over(part, site) for part in site.recorded.per_text(x + site.residual)]
    return np.concatenate(parts)


def _over_all(site: Site, x: Array) -> Array:
    return _over(x + site.residual, site)


def _over(x: Array, site: Site) -> Array:
    return (x - x.mean()) / np.sqrt(x.var() + site.config.layer_norm_eps) * site.norm.weight + site.norm.bias


def _solved_epsilon(site: Site, total: Array) -> float:
    """Solve for epsilon: the run's normalised numbers are smaller than 1 by what was added to the variance."""
    run = np.concatenate(site.recorded.values(site.point))
    centred = total - total.mean(axis=-1, keepdims=True)
    with np.errstate(all="ignore"):
        factor = ((run - site.norm.bias) * site.norm.weight * centred).sum(axis=-1) / np.square(
            site.norm.weight * centred
        ).sum(axis=-1)
        variance = np.square(centred).mean(axis=-1)
        solved = 1 / factor**2 - variance
        weights = 1 / variance**2
        return float(f"{np.sum(solved * weights) / np.sum(weights):.3g}")


def candidates(site: Site) -> Iterator[Candidate]:
    """Yield the reference's linear layer, or sum of embeddings, with each end."""
    for says, finish in finishes(site, site.before_norm()):
        yield Candidate(says, lambda site, finish=finish: finish(site, site.before_norm()))


def measured(site: Site) -> str:
    """Solve for LayerNorm's weight and bias, dimension by dimension, and say how they differ from the checkpoint's."""
    run = np.concatenate(site.recorded.values(site.point))
    plain = _plain(site.before_norm() + site.residual, site.config.layer_norm_eps)
    mean, run_mean = plain.mean(axis=0), run.mean(axis=0)
    weight = ((plain - mean) * (run - run_mean)).mean(axis=0) / np.square(plain - mean).mean(axis=0)
    left = run - run_mean - (plain - mean) * weight
    share = np.sqrt(np.mean(left**2) / np.mean((run - plain * site.norm.weight - site.norm.bias) ** 2))
    if share > 0.01:
        return (
            f"no weight and bias of LayerNorm explain it: {share:.0%} of the error is left with the best ones, so the "
            "sum before it, or the linear layer, is wrong"
        )
    change = np.abs(weight - site.norm.weight).max(), np.abs(run_mean - mean * weight - site.norm.bias).max()
    return f"LayerNorm's weight is off by at most {change[0]:.2g} and its bias by at most {change[1]:.2g}"
