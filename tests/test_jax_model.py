"""The JAX twin beyond its numbers: gradients, padding, the forms of attention, what it refuses."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModel

import e5ref
from e5ref import jax_model
from e5ref.checkpoint.params import leaves
from tests.tools.batches import ragged_batch
from tests.tools.checkpoints import tiny_config
from tests.tools.runs import jax_run
from tests.tools.tolerances import COSINE_HALF, GELU_HALF, GRADIENTS, VECTORS, VECTORS_HALF


def our_gradients(checkpoint, batch, weights) -> e5ref.BertParams:
    """Gradients of the sum of all vectors' numbers, each times a weight."""

    def loss(params, input_ids, attention_mask):
        return (jax_model.embed(params, input_ids, attention_mask, config=checkpoint.config) * weights).sum()

    return jax.jit(jax.grad(loss))(checkpoint.params, *batch)


@pytest.mark.peer
def test_gradients_are_those_of_transformers(tiny_bert):
    checkpoint = e5ref.read_checkpoint(tiny_bert, dtype="float64")
    input_ids, attention_mask = ragged_batch([9, 1, 30, 2], 40)
    weights = np.random.default_rng(0).normal(size=(4, 32))

    peer = AutoModel.from_pretrained(tiny_bert, dtype=torch.float64, add_pooling_layer=False).eval()
    mask = torch.from_numpy(attention_mask)[..., None]
    states = peer(torch.from_numpy(input_ids), torch.from_numpy(attention_mask)).last_hidden_state
    vectors = torch.nn.functional.normalize((states * mask).sum(dim=1) / mask.sum(dim=1))
    (vectors * torch.from_numpy(weights)).sum().backward()

    with jax.enable_x64(True):
        gradients = our_gradients(checkpoint, (input_ids, attention_mask), weights)
        names = e5ref.build_params(lambda name, _shape: name, checkpoint.config)
        for name, gradient in zip(leaves(names), leaves(gradients), strict=True):
            expected = peer.get_parameter(name).grad.numpy()
            assert np.abs(np.asarray(gradient) - expected).max() <= GRADIENTS * max(np.abs(expected).max(), 1), name


@pytest.mark.slow
def test_a_row_that_only_fills_the_batch_gives_zeros_and_finite_gradients(tiny_bert):
    checkpoint = e5ref.read_checkpoint(tiny_bert)
    input_ids, attention_mask = ragged_batch([5, 3], 40)
    attention_mask[1] = 0

    vectors = jax_model.compiled_embed(checkpoint.params, input_ids, attention_mask, config=checkpoint.config)
    assert not np.asarray(vectors[1]).any()
    gradients = our_gradients(checkpoint, (input_ids, attention_mask), np.ones((2, 32)))
    assert all(np.isfinite(gradient).all() for gradient in leaves(gradients))


@pytest.mark.slow
def test_with_and_without_recording_compiled_or_not(tiny_bert):
    checkpoint = e5ref.read_checkpoint(tiny_bert)
    batch = ragged_batch([5, 3], 40)
    recorded = jax_run(checkpoint, *batch)["normalized"]
    for embed in (jax_model.embed, jax_model.compiled_embed):
        for params in (checkpoint.params, jax_model.stack_layers(checkpoint.params)):
            vectors = embed(params, *batch, config=checkpoint.config)
            np.testing.assert_allclose(vectors, recorded, rtol=0, atol=VECTORS["float32"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gelu_in_half_precision_is_off_by_its_rounding(dtype):
    x = jnp.linspace(-20, 20, 100_001).astype(dtype)
    exact = np.array([0.5 * number * math.erfc(-number / math.sqrt(2)) for number in np.asarray(x, np.float64)])
    rounding = np.abs(exact) * float(jnp.finfo(dtype).eps) / 2
    assert (np.abs(np.asarray(jax_model.gelu(x), np.float64) - exact) <= rounding + GELU_HALF).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(minilm, dtype):
    """Matrices and states are of half precision, vectors of float32; the error is that of rounding."""
    model = e5ref.load(minilm)
    tokens = model.tokenize(["How much protein should a female eat?", "naïve café", "a b c", "cat " * 100])
    batch = tokens["input_ids"], tokens["attention_mask"]
    checkpoint = model.checkpoint
    expected = jax_run(checkpoint, *batch)["normalized"]
    halved = jax_model.round_matrices(checkpoint.params, dtype)
    assert {str(leaf.dtype) for leaf in leaves(halved) if leaf.ndim == 1} == {"float32"}
    states = jax_model.forward(halved, *batch, config=checkpoint.config)
    assert states.dtype == dtype
    vectors = np.asarray(jax_model.compiled_embed(halved, *batch, config=checkpoint.config))
    assert vectors.dtype == np.float32
    assert 1e-5 < np.abs(vectors - expected).max() <= VECTORS_HALF[dtype]
    assert (1 - (vectors * expected).sum(axis=1)).max() <= COSINE_HALF[dtype]


def test_layer_norm_in_half_precision_keeps_an_epsilon_of_1e_12():
    x = jnp.zeros((1, 4), jnp.float16)
    result = jax_model.layer_norm(x, jnp.ones(4), jnp.zeros(4), 1e-12)
    assert result.dtype == jnp.float16
    assert not np.isnan(result).any()


def test_products_are_as_exact_as_they_can_be_unless_told(tiny_bert):
    """On a CPU all precisions give the same; what would run elsewhere is in the program."""
    checkpoint = e5ref.read_checkpoint(tiny_bert)

    def program() -> str:
        lowered = jax.jit(lambda x, w: jax_model.linear(x, w, w[0])).lower(jnp.ones((2, 2)), jnp.ones((2, 2)))
        return lowered.as_text()

    assert "HIGHEST" in program()
    with jax.default_matmul_precision("high"):
        assert "HIGHEST" not in program()
        assert "HIGH" in program()
    text = jax_model.compiled_embed.lower(checkpoint.params, *ragged_batch([5], 40), config=checkpoint.config).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 9  # of a layer: four projections, two of attention, two of feed-forward; and of pooling
    assert all("HIGHEST" in line for line in products)


@pytest.mark.parametrize(
    ("input_ids", "attention_mask", "message"),
    [
        ([[1, 2]], [[1, 1, 1]], r"shapes \(1, 2\) and \(1, 3\)"),
        ([[1, 2], [1, 2]], [[1, 1], [0, 0]], "row 1 without"),
        ([[1, 5]], [[1, 1]], r"input_ids\[0, 1\] is 5, outside"),
    ],
)
def test_bad_batches_are_refused(input_ids, attention_mask, message):
    params = e5ref.build_params(lambda _name, shape: np.ones(shape, np.float32), config := tiny_config())
    with pytest.raises(ValueError, match=message):
        jax_model.forward(params, np.array(input_ids), np.array(attention_mask), config=config)


def test_float64_weights_are_not_cut_to_float32(tiny_bert):
    checkpoint = e5ref.read_checkpoint(tiny_bert, dtype="float64")
    with pytest.raises(ValueError, match=r"run this under jax\.enable_x64"):
        jax_model.embed(checkpoint.params, *ragged_batch([5], 40), config=checkpoint.config)


def test_unknown_pooling_is_refused(tiny_bert):
    checkpoint = e5ref.read_checkpoint(tiny_bert)
    with pytest.raises(ValueError, match="pooling is 'max'"):
        jax_model.embed(checkpoint.params, *ragged_batch([5], 40), config=checkpoint.config, pooling="max")


def test_pooling_of_packed_texts_by_hand():
    """Two texts, with padding between; one, whose row is full; none."""
    states = jnp.array([[[1.0], [3.0], [99.0], [5.0]], [[2.0], [4.0], [6.0], [8.0]], [[99.0], [99.0], [99.0], [99.0]]])
    attention_mask = jnp.array([[1, 1, 0, 2], [1, 1, 1, 1], [0, 0, 0, 0]])
    assert jax_model.average_pool(states, attention_mask, 3)[:, 0].tolist() == [2, 5, 0, 5, 0, 0, 0, 0, 0]
    assert jax_model.cls_pool(states, attention_mask, 3)[jnp.array([0, 1, 3]), 0].tolist() == [1, 5, 2]


@pytest.mark.parametrize("pool", [jax_model.average_pool, jax_model.cls_pool])
def test_more_texts_than_said_are_refused(pool):
    with pytest.raises(ValueError, match="numbers 3 texts of a row, but texts_per_row is 2"):
        pool(jnp.ones((1, 3, 2)), jnp.array([[1, 2, 3]]), 2)


def test_pooling_and_norm_by_hand():
    states = jnp.array([[[1.0, 2.0], [3.0, 6.0], [99.0, 99.0]], [[99.0, 99.0], [5.0, 7.0], [99.0, 99.0]]])
    attention_mask = jnp.array([[1, 1, 0], [0, 1, 0]])
    np.testing.assert_array_equal(jax_model.average_pool(states, attention_mask), [[2.0, 4.0], [5.0, 7.0]])
    np.testing.assert_array_equal(jax_model.cls_pool(states, attention_mask), [[1.0, 2.0], [5.0, 7.0]])
    vectors = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(jax_model.l2_normalize(vectors), [[0.6, 0.8], [0.0, 0.0]], rtol=1e-7)
