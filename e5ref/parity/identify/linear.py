"""What a linear layer may have been: the wrong weights, in the wrong order, or of few bits."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from e5ref.checkpoint.config import BertConfig
from e5ref.checkpoint.params import Affine
from e5ref.operations import Array
from e5ref.parity.altered.models import int8_linear, round_to
from e5ref.parity.identify.site import LINEAR, Candidate, Site, layer_norm, linear

# Site → the weights that were used.
Weights = Callable[[Site], Affine]

# The largest rank of a difference that is called low.
LOW_RANK = 8


def candidates(site: Site) -> Iterator[Candidate]:
    """Yield what the linear layer of a site may have computed, before GELU or LayerNorm. The simplest come first."""
    for says, weights in _weights(site):
        yield Candidate(says, lambda site, weights=weights: linear(site.x, weights(site)))
    yield from _inputs(site)
    if site.kind in ("query", "key", "value"):
        yield from _fitted(site)


def _weights(site: Site) -> Iterator[tuple[str, Weights]]:
    own = LINEAR[site.kind]
    yield "the bias is missing", lambda site: Affine(site.affine.weight, 0 * site.affine.bias)
    yield "the bias is added twice", lambda site: Affine(site.affine.weight, 2 * site.affine.bias)
    yield "the bias is subtracted", lambda site: Affine(site.affine.weight, -site.affine.bias)
    shape = site.affine.weight.shape
    for name in dict.fromkeys(LINEAR.values()):
        if name != own and getattr(site.layer, name).weight.shape == shape:
            yield from _of(f"{name}", lambda site, name=name: getattr(site.layer, name))
    for index in range(len(site.recorded.params.layers)):
        if index != site.index:
            yield from _of(
                f"{own} of layer {index}",
                lambda site, index=index: getattr(site.recorded.params.layers[index], LINEAR[site.kind]),
            )
    yield (
        "the weight is read as [in, out]"
        + (", so it is transposed" if shape[0] == shape[1] else " and not transposed"),
        lambda site: Affine(site.affine.weight.T.reshape(site.affine.weight.shape), site.affine.bias),
    )
    for says, order in ORDERS.items():
        yield f"the rows of weight and bias {says}", lambda site, order=order: _rows(site, order, bias=True)
        yield f"the rows of the weight {says}", lambda site, order=order: _rows(site, order, bias=False)
        yield f"the columns of the weight {says}", lambda site, order=order: _columns(site, order)
    if site.kind in ("query", "key", "value"):
        for says, axes in (
            ("head by head", (1, 0)),
            ("one after another, though they are stored head by head", (0, 1)),
        ):
            yield f"fused query, key and value are split {says}", lambda site, axes=axes: _fused(site, axes)
    for says, rounded in PRECISIONS.items():
        yield (
            f"the weight is {says}",
            lambda site, rounded=rounded: Affine(rounded(site.affine.weight), site.affine.bias),
        )


def _of(name: str, affine: Weights) -> Iterator[tuple[str, Weights]]:
    yield f"weight and bias of {name} are used", affine
    yield f"the weight of {name} is used", lambda site: Affine(affine(site).weight, site.affine.bias)
    yield f"the bias of {name} is used", lambda site: Affine(site.affine.weight, affine(site).bias)


def _by_size(x: Array, config: BertConfig) -> Array:
    return x.reshape(config.num_attention_heads, config.head_size, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)


def _by_head(x: Array, config: BertConfig) -> Array:
    return x.reshape(config.head_size, config.num_attention_heads, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)


def _rotary(x: Array, config: BertConfig) -> Array:
    return x.reshape(config.num_attention_heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def _from_rotary(x: Array, config: BertConfig) -> Array:
    return x.reshape(config.num_attention_heads, -1, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def _heads_reversed(x: Array, config: BertConfig) -> Array:
    return x.reshape(config.num_attention_heads, -1, *x.shape[1:])[::-1].reshape(x.shape)


# What is said of an order of rows → the rows in that order.
ORDERS: dict[str, Callable[[Array, BertConfig], Array]] = {
    "interleave the heads": _by_size,
    "interleave the heads' dimensions": _by_head,
    "are in the order for rotary positions": _rotary,
    "are in the order for rotary positions, undone": _from_rotary,
    "have the heads in reverse": _heads_reversed,
    "are in reverse": lambda x, _config: x[::-1],
}


def _rows(site: Site, order: Callable[[Array, BertConfig], Array], *, bias: bool) -> Affine:
    weight, own = site.affine
    if len(weight) != site.config.hidden_size or site.kind == "output":
        return site.affine
    return Affine(order(weight, site.config), order(own, site.config) if bias else own)


def _columns(site: Site, order: Callable[[Array, BertConfig], Array]) -> Affine:
    weight, bias = site.affine
    return Affine(order(weight.T, site.config).T if site.kind == "attention_output" else weight, bias)


def _fused(site: Site, axes: tuple[int, int]) -> Affine:
    """Lay query, key and value into one matrix in one order, and take them out in the other."""
    place, number = ("query", "key", "value").index(site.kind), site.config.num_attention_heads
    parts = [getattr(site.layer, name) for name in ("query", "key", "value")]

    def split(arrays: list[Array]) -> Array:
        if axes == (1, 0):
            fused = np.concatenate(arrays).reshape(number, 3, -1, *arrays[0].shape[1:])[:, place]
        else:
            by_head = [array.reshape(number, -1, *array.shape[1:]) for array in arrays]
            fused = np.stack(by_head, axis=1).reshape(3, -1, *arrays[0].shape[1:])[place]
        return fused.reshape(arrays[0].shape)

    return Affine(split([part.weight for part in parts]), split([part.bias for part in parts]))


def tf32(x: Array) -> Array:
    """Round to 10 bits after the point, as an NVIDIA card does for a fast product of float32."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32).astype(x.dtype)


def on_grid(bits: int, group: int | None, *, minimum: bool) -> Callable[[Array], Array]:
    """Return a function that puts a weight on a grid.

    Args:
        bits: of each number.
        group: the inputs that share a scale; 0 for a whole row, None for the whole weight.
        minimum: whether the grid starts at the smallest number instead of being symmetric.
    """

    def rounded(weight: Array) -> Array:
        if group and weight.shape[1] % group:
            return weight
        shape = (1, -1) if group is None else (len(weight), -1, group or weight.shape[1])
        groups = weight.reshape(shape)
        if minimum:
            low = groups.min(axis=-1, keepdims=True)
            scale = (groups.max(axis=-1, keepdims=True) - low) / (2**bits - 1)
        else:
            low, scale = 0.0, np.abs(groups).max(axis=-1, keepdims=True) / (2 ** (bits - 1) - 1)
        scale = np.where(scale == 0, 1, scale)
        return (np.rint((groups - low) / scale) * scale + low).reshape(weight.shape).astype(weight.dtype)

    return rounded


def float8(x: Array, largest: Array | float) -> Array:
    """Round to float8 in its form E4M3, with the scale that makes the largest number 448."""
    scale = np.asarray(largest / 448)
    _, exponent = np.frexp(x / scale)
    step = np.ldexp(1.0, np.maximum(exponent, -5) - 4) * scale  # 4 significant bits; fewer below 2⁻⁶
    return (np.rint(x / step) * step).astype(x.dtype)


PRECISIONS: dict[str, Callable[[Array], Array]] = {
    "in float16": lambda weight: round_to(weight, "float16"),
    "in bfloat16": lambda weight: round_to(weight, "bfloat16"),
    "in TF32": tf32,
    "in float8 (E4M3)": lambda weight: float8(weight, 448.0),
    "in float8 (E4M3) with one scale for all": lambda weight: float8(weight, np.abs(weight).max()),
    "in float8 (E4M3) with one scale for each row": lambda weight: float8(weight, np.abs(weight).max(1, keepdims=True)),
} | {
    f"in {bits}-bit whole numbers with one scale{' and minimum' * minimum} {each}": on_grid(
        bits, group, minimum=minimum
    )
    for bits in (8, 4)
    for minimum in (False, True)
    for group, each in (
        (None, "for all"),
        (0, "for each row"),
        (16, "for each 16 inputs"),
        (32, "for each 32 inputs"),
        (64, "for each 64 inputs"),
        (128, "for each 128 inputs"),
    )
}


def _inputs(site: Site) -> Iterator[Candidate]:
    """Yield products of rounded inputs, and of few bits on both sides."""
    for name, rounded in (
        ("bfloat16", lambda x: round_to(x, "bfloat16")),
        ("float16", lambda x: round_to(x, "float16")),
        ("TF32", tf32),
    ):
        yield Candidate(
            f"the input is rounded to {name}", lambda site, rounded=rounded: linear(rounded(site.x), site.affine)
        )
        yield Candidate(
            f"input and weight are rounded to {name}",
            lambda site, rounded=rounded: linear(
                rounded(site.x), Affine(rounded(site.affine.weight), site.affine.bias)
            ),
        )
    for kind in ("onnxruntime", "onnxruntime by channel", "torch"):
        yield Candidate(
            f"input and weight are of 8 bits, as {kind} quantises them",
            lambda site, kind=kind: int8_linear(
                kind, site.x, *site.affine, batch=site.recorded.run.points[site.feeds[0]]
            ),
        )
    for count in (1, 2, 4, 8, 16, 32):
        yield Candidate(
            f"the last {count} inputs are left out",
            lambda site, count=count: linear(
                np.where(np.arange(site.x.shape[1]) < site.x.shape[1] - count, site.x, 0), site.affine
            ),
        )
    for feed, says in ((_layer_input, "the layer's input"), (_normed_input, "its input after a LayerNorm")):
        yield Candidate(f"{says} goes in", lambda site, feed=feed: linear(feed(site), site.affine))


def _layer_input(site: Site) -> Array:
    before = f"layers.{site.index - 1}.output" if site.index else "embeddings"
    rows = site.recorded.rows(before)
    return rows if rows.shape == site.x.shape else site.x


def _normed_input(site: Site) -> Array:
    norm = site.layer.output_layer_norm if site.kind == "feed_forward_activation" else site.layer.attention_layer_norm
    return layer_norm(site.x, norm, site.config.layer_norm_eps) if len(norm.weight) == site.x.shape[1] else site.x


def _fitted(site: Site) -> Iterator[Candidate]:
    """Yield what can be solved for: factors of weight and bias, and inputs that do not count."""
    x, (weight, bias), run = site.x, site.affine, np.concatenate(site.recorded.values(site.point))
    product = x @ weight.T
    parts = np.stack([product.ravel(), np.broadcast_to(bias, product.shape).ravel()], axis=1)
    (of_weight, of_bias), *_ = np.linalg.lstsq(parts, run.ravel(), rcond=None)
    if abs(of_weight - of_bias) < 1e-4 * abs(of_weight):
        yield Candidate(
            f"the result is multiplied by {_number(of_weight, site.config)}",
            lambda site: of_weight * linear(site.x, site.affine),
        )
    scaled = []
    if abs(of_weight - 1) >= 1e-4:
        scaled.append(f"the weight is multiplied by {_number(of_weight, site.config)}")
    if abs(of_bias - 1) >= 1e-4:
        scaled.append(f"the bias is multiplied by {of_bias:.4g}")
    if scaled:
        yield Candidate(
            "; ".join(scaled),
            lambda site: of_weight * (site.x @ site.affine.weight.T) + of_bias * site.affine.bias,
        )
    # How much each input counts: the sum over c of gain[c] x[:, c] weight[:, c] is the difference.
    squares = (x.T @ x) * (weight.T @ weight)
    gains, *_ = np.linalg.lstsq(
        squares, np.einsum("rc,ro,oc->c", x, run - product - bias, weight, optimize=True), rcond=1e-12
    )
    missing = gains < -0.5
    if missing.any() and not missing.all():
        yield Candidate(
            f"{described(missing, 'input')} left out",
            lambda site: linear(site.x * ~missing, site.affine),
        )


def _number(value: float, config: BertConfig) -> str:
    for says, known in (
        ("1/√H", config.head_size**-0.5),
        ("√H", config.head_size**0.5),
        ("1/√D", config.hidden_size**-0.5),
    ):
        if abs(value - known) < 1e-5 * known:
            return f"{value:.4g} = {says}"
    return f"{value:.6g}"


def described(chosen: NDArray[np.bool_], name: str) -> str:
    """Describe which of n numbered things are chosen: a range, a pattern of tiles, or a list; "is" or "are" ends it."""
    places = np.flatnonzero(chosen)
    if len(places) == 1:
        return f"{name} {places[0]} is"
    if places[-1] - places[0] + 1 == len(places):
        return f"{name}s {places[0]} to {places[-1]} are"
    for tile in (2, 4, 8, 16, 32, 64, 128):
        inside = np.unique(places % tile)
        if len(chosen) > tile and np.array_equal(chosen, np.isin(np.arange(len(chosen)) % tile, inside)):
            return f"{name}s {inside[0]} to {inside[-1]} of every {tile} are"
    return f"{name}s {', '.join(map(str, places[:8]))}{', …' * (len(places) > 8)} are"


def measured(site: Site) -> str:
    """Say what the difference from the reference's product looks like, if nothing explains it."""
    product = linear(site.x, site.affine)
    run = np.concatenate(site.recorded.values(site.point))
    return describe_difference(run - product, product - site.affine.bias)


def describe_difference(difference: Array, product: Array) -> str:
    """Say what the difference from a product of inputs and weight looks like. [R, n] both."""
    size = np.sqrt(np.mean(difference**2) / np.mean(product**2))
    singular = np.linalg.svd(difference, compute_uv=False)
    rank = int((singular > 1e-4 * singular[0]).sum())
    limit = min(difference.shape)
    if rank <= min(LOW_RANK, limit // 4):
        return f"W′ − W has rank {rank}, as far as {len(product)} tokens tell; it changes the product by {size:.2%}"
    return (
        f"the product is that of a weight which differs by noise of relative size {size:.1%}, without structure: "
        "a different revision, or fewer bits"
    )
