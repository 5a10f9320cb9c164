"""The kernels for Hopper GPUs: that they can be built, what they compute, and that the twin calls them.

What they compute needs such a GPU; elsewhere those tests are skipped, and all others run.
"""

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import e5ref
from e5ref import jax_model
from e5ref.checkpoint.params import Affine, leaves
from e5ref.operations import jax_kernels, jax_ops
from tests.tools.batches import packed_batch, ragged_batch
from tests.tools.tolerances import GELU_KERNEL, PRODUCT_HALF, VECTORS_HALF

needs_hopper = pytest.mark.skipif(not jax_ops.is_hopper(), reason="needs an NVIDIA Hopper GPU (H100, H200)")

# Width in and out, layers, GELU: of e5-small's, e5-base's and e5-large's shape.
LINEAR = [(384, 384, 3, False), (384, 1536, 1, True), (768, 768, 3, False), (1024, 4096, 1, True)]

# Tokens, heads and their size: one tile, tiles that overlap, queries and keys that fill two; keys in several blocks,
# the last of which is whole, or overlaps the one before; queries of one warpgroup, and of several.
ATTENTION = [(64, 12, 32), (72, 12, 32), (96, 3, 32), (128, 12, 32), (64, 16, 64), (104, 16, 64), (128, 16, 64)]
ATTENTION += [(136, 12, 32), (144, 12, 32), (256, 12, 32), (288, 12, 32), (512, 12, 32)]
ATTENTION += [(144, 16, 64), (264, 16, 64), (352, 16, 64), (512, 16, 64)]


def linear_inputs(rows, width, out, count, dtype):
    random = np.random.default_rng(width)
    layers = [
        Affine(
            jnp.asarray(random.normal(0, 0.05, (out, width)), dtype),
            jnp.asarray(random.normal(size=out), jnp.float32),
        )
        for _ in range(count)
    ]
    return jnp.asarray(random.normal(size=(rows // 32, 32, width)), dtype), layers


def masks(tokens):
    """Rows of one text, padded in every way, and of several, packed. -> [B, T]."""
    lengths = [[1], [tokens], [tokens // 2 + 3, tokens // 2 - 5], [3, tokens - 6, 3]]  # of the texts of each row
    lengths += [[], [min(tokens, jax_kernels.KEYS)], [tokens - 1], [8, tokens - 8], [3] * 17, [3] * (tokens // 3)]
    lengths += [[64] * (tokens // 64), [65, 62, 30]]  # up to a tile's edge, and a token across
    random = np.random.default_rng(tokens)
    lengths += [random.multinomial(tokens - 9, np.full(count, 1 / count)) for count in (3, 7)]
    rows = [np.repeat(np.arange(len(row)) + 1, row) for row in lengths]
    rows = np.array([np.append(row, np.zeros(tokens))[:tokens] for row in rows])
    left, holes = np.ones((2, tokens), rows.dtype)
    left[: tokens // 2 - 1] = 0
    holes[[0, 7, tokens - 10, tokens - 1]] = 0
    return np.vstack([rows, left, holes])


def attention_inputs(rows, tokens, heads, size, dtype):
    random = np.random.default_rng(tokens)
    arrays = [random.normal(0, 1.5, (rows, tokens, heads, size)) for _ in range(3)]
    arrays[0][1::3] *= 10  # scores of hundreds, which e to their power would be too large
    arrays = [jnp.asarray(array, dtype) for array in arrays]
    return arrays, jnp.asarray(np.resize(masks(tokens), (rows, tokens)), jnp.int32)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", LINEAR)
def test_linear_layers_can_be_built_for_the_gpu(case, dtype):
    width, out, count, with_gelu = case
    x, layers = linear_inputs(128, width, out, count, dtype)

    def call(x, layers):
        return jax_kernels.linear_layers(x, layers, with_gelu=with_gelu, processors=132)

    lowered = jax.jit(call).trace(x, layers).lower(lowering_platforms=("cuda",))
    assert [output.shape for output in lowered.out_info] == [(*x.shape[:2], out)] * count
    assert "mosaic_gpu" in lowered.as_text()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", ATTENTION)
def test_attention_can_be_built_for_the_gpu(case, dtype):
    arrays, attention_mask = attention_inputs(2, *case, dtype)
    lowered = jax.jit(jax_kernels.attention).trace(*arrays, attention_mask).lower(lowering_platforms=("cuda",))
    assert lowered.out_info.shape == arrays[0].shape
    assert "mosaic_gpu" in lowered.as_text()


def test_gelu_is_off_by_what_is_said():
    x = np.linspace(-40, 40, 400_001, dtype=np.float32)
    exact = np.array([0.5 * number * math.erfc(-number / math.sqrt(2)) for number in x.astype(np.float64)])
    error = np.abs(np.asarray(jax_kernels.gelu(jnp.asarray(x)), np.float64) - exact)
    for bound, tolerance in GELU_KERNEL.items():
        assert error[np.abs(x) <= bound].max() <= tolerance


@needs_hopper
@pytest.mark.parametrize("rows", [128, 40 * 128, 65_536])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", LINEAR)
def test_linear_layers_on_the_gpu(case, dtype, rows):
    width, out, count, with_gelu = case
    x, layers = linear_inputs(rows, width, out, count, dtype)
    results = jax.jit(lambda *arrays: jax_kernels.linear_layers(*arrays, with_gelu=with_gelu))(x, layers)
    for result, (weight, bias) in zip(results, layers, strict=True):
        exact = jnp.matmul(x.astype(jnp.float32), weight.T.astype(jnp.float32), precision="highest") + bias
        exact = jax.nn.gelu(exact, approximate=False) if with_gelu else exact
        assert (np.abs(np.asarray(result, np.float32) - exact) <= PRODUCT_HALF[dtype] * (1 + jnp.abs(exact))).all()


def assert_attention(rows, tokens, heads, size, dtype):
    """Compare with float32. Softmax's weights are rounded, and the result is: each by half a unit of what it is."""
    arrays, attention_mask = attention_inputs(rows, tokens, heads, size, dtype)
    result = jax.jit(lambda *inputs: jax_kernels.attention(*inputs))(*arrays, attention_mask)  # compiled anew
    result = np.asarray(result, np.float32)
    query, key, value = (array.astype(jnp.float32) for array in arrays)
    is_seen = attention_mask[:, :, None] == attention_mask[:, None, :]
    scores = jnp.einsum("bqnh,bknh->bnqk", query, key, precision="highest") / math.sqrt(size)
    weights = jax.nn.softmax(jnp.where(is_seen[:, None], scores, -jnp.inf))

    def attention(value):
        return np.asarray(jnp.einsum("bnqk,bknh->bqnh", weights, value, precision="highest"))

    exact, of_sizes = attention(value), attention(jnp.abs(value))
    assert np.isfinite(result).all()
    error = np.where(attention_mask[..., None, None] > 0, np.abs(result - exact), 0)
    assert (error <= PRODUCT_HALF[dtype] * (of_sizes + np.abs(exact))).all()


@needs_hopper
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", ATTENTION)
def test_attention_on_the_gpu(case, dtype):
    assert_attention(20_000 // case[0], *case, dtype)


@pytest.fixture
def interpreted(monkeypatch):
    """Run kernels in JAX's interpreter, and what it does not know, matrix instructions and their sums, as plain JAX.

    What is left is the kernel's own: copies and barriers, who takes which queries, blocks of keys, masks, softmax.
    """
    reason = "this JAX has no interpreter of kernels for GPUs where 0.10 has it"
    interpreter = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.params", reason=reason)
    pallas, mosaic = jax_kernels.pl, jax_kernels.plgpu
    run_scoped = pallas.run_scoped

    class Sums:
        """What a product is added up in: `ACC(...)`, `ACC.init(...)` and the references to either."""

        def __init__(self, shape, dtype):
            self.numbers = jnp.zeros(shape, dtype)

        @classmethod
        def init(cls, numbers):
            sums = cls(numbers.shape, numbers.dtype)
            sums.numbers = numbers
            return sums

        def __getitem__(self, _):
            return self.numbers

    def read(factor):
        if isinstance(factor, jax.Array):
            return factor
        *others, last = factor.transforms
        if type(last).__name__ == "TransposeTransform":
            return replace(factor, transforms=tuple(others))[...].T
        return factor[...]

    def wgmma(sums, a, b):
        sums.numbers += jnp.matmul(read(a), read(b), preferred_element_type=jnp.float32)

    def run_scoped_or_plain(function, *scratch, **options):
        return function(*scratch) if scratch else run_scoped(function, **options)

    def run_state(function):
        return lambda sums: function(sums) or sums.numbers

    def iota(dtype, shape, dimension, *, layout):
        return jax.lax.broadcasted_iota(dtype, shape, dimension)

    def load(source, index, *, layout, optimized):
        return source[index]

    monkeypatch.setattr(pallas, "run_scoped", run_scoped_or_plain)
    monkeypatch.setattr(pallas, "run_state", run_state)
    monkeypatch.setattr(mosaic, "ACC", Sums)
    monkeypatch.setattr(mosaic, "wgmma", wgmma)
    monkeypatch.setattr(mosaic, "broadcasted_iota", iota)
    monkeypatch.setattr(mosaic, "load", load)
    with interpreter.force_gpu_interpret_mode():
        yield


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "tokens", "size"),
    [(16, 72, 32), (16, 104, 64), (16, 128, 32), (16, 144, 32), (16, 288, 32), (4, 264, 64), (4, 512, 32)],
)
def test_attention_interpreted(rows, tokens, size, interpreted):
    """Also with two warpgroups, from 264 tokens on; the interpreter lets them take turns."""
    assert len(masks(tokens)) == 16
    assert_attention(rows, tokens, 1, size, "bfloat16")


def test_blocks_of_keys():
    """Worked by hand: the first key, blocks, those that lead up to the ones without a mask, these."""
    rows = np.zeros((3, 320), np.int32)
    rows[0, :10], rows[0, 10:310] = 1, 2
    rows[1, :256] = 1
    rows[2, 8:200] = rows[2, 201:] = 1
    assert jax_kernels._blocks(jnp.asarray(rows), 128).tolist() == [
        [[0, 3, 0, 0]] + 4 * [[8, 3, 1, 1]],
        4 * [[0, 2, 0, 2]] + [[320, 0, 0, 0]],
        5 * [[8, 3, 0, 1]],
    ]


def across_texts(blocks, attention_mask, count):
    return blocks(jnp.minimum(attention_mask, 1), count)


def without_last_text(blocks, attention_mask, count):
    return blocks(jnp.where(attention_mask == attention_mask.max(axis=1, keepdims=True), 0, attention_mask), count)


def without_last_block(blocks, attention_mask, count):
    return blocks(attention_mask, count) - jnp.array([0, 1, 0, 0])


def without_first_mask(blocks, attention_mask, count):
    first, total, leading, unmasked = jnp.moveaxis(blocks(attention_mask, count), 2, 0)
    return jnp.stack([first, total, leading * 0, jnp.maximum(leading + unmasked, 1)], axis=2)


def without_other_tiles(blocks, attention_mask, count):
    """A text that reaches over a tile's edge is met from there on only."""
    first, total, *rest = jnp.moveaxis(blocks(attention_mask, count), 2, 0)
    own = jnp.arange(first.shape[1], dtype=jnp.int32) * jax_kernels.ROWS
    return jnp.stack([jnp.maximum(first, own), total, *rest], axis=2)


MISTAKES = [across_texts, without_last_text, without_last_block, without_first_mask, without_other_tiles]


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_attention_to_the_wrong_keys_is_seen(mistake, interpreted, monkeypatch):
    monkeypatch.setattr(jax_kernels, "_blocks", partial(mistake, jax_kernels._blocks))
    with pytest.raises(AssertionError):
        assert_attention(len(masks(144)), 144, 1, 32, "bfloat16")


@pytest.mark.slow
def test_a_kernel_apart_from_the_plain_form_is_seen(interpreted, monkeypatch):
    wrong = SimpleNamespace(log2=math.log2, e=math.e, sqrt=lambda number: 1.02 * math.sqrt(number))
    monkeypatch.setattr(jax_kernels, "math", wrong)
    with pytest.raises(AssertionError):
        assert_attention(len(masks(72)), 72, 1, 32, "bfloat16")


@pytest.fixture
def calls(monkeypatch, cudnn):
    """Let the twin think that it runs on such a GPU; what it asks of the kernels is done in plain JAX, and listed.

    Like a kernel, it has no derivative of its own.
    """
    calls = []

    def linear_layers(x, layers, *, with_gelu):
        calls.append((len(layers), with_gelu))
        results = [jax_model.linear(x, *layer) for layer in layers]
        return jax.lax.stop_gradient([jax_model.gelu(result) if with_gelu else result for result in results])

    def attention(query, key, value, attention_mask):
        calls.append(query.shape)
        return jax.lax.stop_gradient(plain(query, key, value, attention_mask))

    monkeypatch.setattr(jax_kernels, "linear_layers", linear_layers)
    monkeypatch.setattr(jax_kernels, "attention", attention)
    monkeypatch.setattr(jax_ops, "is_hopper", lambda: True)
    return calls


@pytest.fixture(scope="module")
def small_model():
    """Random weights of the smallest sizes that the kernels take, and their config."""
    config = e5ref.BertConfig("bert", 40, 128, 2, 4, 256, 128, 2, 1e-12, 0)
    random = np.random.default_rng(0)

    def tensor(name, shape):
        return random.normal(1.0 if name.endswith("LayerNorm.weight") else 0.0, 0.1, shape).astype(np.float32)

    return e5ref.build_params(tensor, config), config


def plain(*inputs):
    return jax_model.dot_product_attention(*inputs)[0]


def embed(params, batch, config):
    """Embed a batch of up to three texts a row, compiled anew."""
    return jax.jit(partial(jax_model.embed, config=config, texts_per_row=3))(params, *batch)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_twin_calls_them(small_model, dtype, calls):
    params, config = small_model
    batch = packed_batch([[64], [1], [30, 34], [-3, 20, -1, 39, 1]], 40)
    exact = embed(params, batch, config)
    assert not calls  # in float32
    vectors = embed(jax_model.round_matrices(params, dtype), batch, config)
    assert calls == [(3, False), (4, 64, 4, 32), (1, True)]  # once, for all layers
    assert np.abs(vectors - exact).max() <= VECTORS_HALF[dtype]


@pytest.mark.slow
def test_short_rows_go_without(small_model, calls):
    params, config = small_model
    half = jax_model.round_matrices(params, "bfloat16")
    embed(half, ragged_batch([40, 3], 40), config)
    assert not calls
    embed(half, ragged_batch([32] * 4, 40), config)
    assert calls == [(3, False), (1, True)]  # 128 rows, but too short for attention


@pytest.mark.parametrize(
    ("rows", "width", "outs"),
    [(130, 64, [128]), (128, 96, [128]), (128, 64, [192]), (128, 64, [128, 256]), (0, 64, [128])],
)
def test_linear_layers_that_the_kernel_cannot_take(rows, width, outs, calls):
    layers = [Affine(jnp.ones((out, width), "bfloat16"), jnp.ones(out, jnp.float32)) for out in outs]
    results = jax_model.linear_layers(jnp.ones((rows, width), "bfloat16"), *layers)
    assert [result.shape for result in results] == [(rows, out) for out in outs]
    assert not calls


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "size"), [(68, 32), (520, 32), (64, 16)])
def test_attention_that_the_kernel_cannot_take(tokens, size, calls, cudnn):
    arrays, attention_mask = attention_inputs(2, tokens, 2, size, "bfloat16")
    jax_ops.attention(plain, *arrays, attention_mask)
    assert cudnn == ["cudnn"]
    assert not calls


@pytest.mark.parametrize("is_hopper", [True, False])
def test_padding_on_the_left_or_inside_is_padding(small_model, is_hopper, calls, cudnn, monkeypatch):
    monkeypatch.setattr(jax_ops, "is_hopper", lambda: is_hopper)
    params, config = small_model
    batch = packed_batch([[64], [-63, 1], [-20, 30, -14], [63]], 40)
    batch[1][3, 5:60] = 0
    exact = embed(params, batch, config)
    vectors = embed(jax_model.round_matrices(params, "bfloat16"), batch, config)
    assert bool(calls) == is_hopper
    assert bool(cudnn) != is_hopper
    assert np.abs(vectors - exact).max() <= VECTORS_HALF["bfloat16"]


@pytest.mark.slow
def test_they_are_differentiated_as_what_they_stand_for(small_model, calls, monkeypatch):
    params, config = small_model
    half = jax_model.round_matrices(params, "bfloat16")
    batch = packed_batch([[64], [1], [30, 34], [-3, 20, -1, 39, 1]], 40)

    def gradients():
        return jax.jit(jax.grad(lambda params: (embed(params, batch, config) ** 3).sum()))(half)

    through_kernels = gradients()
    assert calls
    monkeypatch.setattr(jax_ops, "is_hopper", lambda: False)
    monkeypatch.setattr(jax_ops, "is_nvidia", lambda: False)
    for ours, plain in zip(leaves(through_kernels), leaves(gradients()), strict=True):
        ours, plain = np.asarray(ours, np.float32), np.asarray(plain, np.float32)
        assert np.linalg.norm(ours - plain) <= 0.03 * np.linalg.norm(plain)
