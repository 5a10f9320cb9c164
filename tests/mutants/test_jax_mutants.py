"""Plant one mistake at a time in a copy of the JAX twin: the comparison must fail, and first at the point of it."""

import types
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from e5ref import jax_model
from e5ref.operations import jax_ops
from tests.mutants.planting import Mutant, copy_of
from tests.operations.attention import assert_the_same_attention, mask_of, plain
from tests.tools.runs import first_departure, jax_run

PROBABILITIES = "layers.0.attention_probabilities"

MUTANTS = {
    "tanh GELU": Mutant(
        "gelu",
        "return jax.nn.gelu",
        "return jax.nn.gelu(x, approximate=True)",
        "layers.0.feed_forward_activation",
    ),
    "epsilon of 1e-5": Mutant("layer_norm", "jnp.sqrt(", "jnp.sqrt(variance + 1e-5)", "embeddings"),
    "variance over n - 1": Mutant(
        "layer_norm",
        "variance =",
        "variance = jnp.sum(centred * centred, axis=-1, keepdims=True) / (x.shape[-1] - 1)",
        "embeddings",
    ),
    "no LayerNorm bias": Mutant(
        "layer_norm", "return", "return (centred / jnp.sqrt(variance + eps) * weight).astype(x.dtype)", "embeddings"
    ),
    "the other token type": Mutant(
        "embed_tokens",
        "embeddings =",
        "embeddings = widen(params.word[input_ids]) + widen(params.token_type[1])",
        "embeddings",
    ),
    "positions off by one": Mutant(
        "embed_tokens",
        "positions = jnp.arange",
        "positions = jnp.arange(input_ids.shape[1]) - starts + 1",
        "embeddings",
    ),
    "no bias": Mutant("linear", "return", "return matmul(x, weight.T).astype(x.dtype)", "layers.0.query"),
    "query and key swapped": Mutant(
        "self_attention",
        "linear_layers(",
        "linear_layers(hidden_states, params.key, params.query, params.value)",
        "layers.0.query",
    ),
    "no scale": Mutant("dot_product_attention", "scores *=", "", PROBABILITIES),
    "mask ignored": Mutant("dot_product_attention", "scores +=", "", PROBABILITIES),
    "mask of -1": Mutant(
        "dot_product_attention", "scores +=", "scores += jnp.where(is_seen, 0, -1)[:, None]", PROBABILITIES
    ),
    "mask the wrong way round": Mutant(
        "dot_product_attention",
        "scores +=",
        "scores += jnp.where(is_seen, np.finfo(np.float32).min, 0)[:, None]",
        PROBABILITIES,
    ),
    "mask over queries": Mutant(
        "dot_product_attention", "is_seen =", "is_seen = attention_mask[:, :, None] > 0", PROBABILITIES
    ),
    "heads split the other way": Mutant(
        "heads",
        "return",
        "return x.reshape(*x.shape[:2], config.head_size, config.num_attention_heads).swapaxes(2, 3)",
        PROBABILITIES,
    ),
    "softmax without its divisor": Mutant(
        "dot_product_attention",
        "return",
        "return context.astype(value.dtype).transpose(0, 2, 1, 3), weights",
        PROBABILITIES,
    ),
    "context without its divisor": Mutant(
        "dot_product_attention",
        "context =",
        "context = widen(matmul(weights.astype(value.dtype), value))",
        "layers.0.context",
    ),
    "heads joined the other way": Mutant(
        "self_attention",
        "context.reshape(",
        "context.swapaxes(2, 3).reshape(query.shape)",
        "layers.0.context",
    ),
    "no residual around attention": Mutant(
        "encoder_layer", "attention = widen", "attention = widen(attention)", "layers.0.attention_output"
    ),
    "the two LayerNorms swapped": Mutant(
        "encoder_layer",
        "attention = layer_norm",
        "attention = layer_norm(attention, *params.output_layer_norm, config.layer_norm_eps).astype(dtype)",
        "layers.0.attention_output",
    ),
    "no residual around feed-forward": Mutant(
        "encoder_layer", "output = widen", "output = widen(output)", "layers.0.output"
    ),
    "layers in reverse": Mutant(
        "forward", "jax.lax.scan(", "jax.lax.scan(step, hidden_states, layers, reverse=True)", "layers.0.query"
    ),
    "padding averaged in": Mutant(
        "average_pool",
        "counts =",
        "counts = jnp.maximum(is_of_text.sum(axis=2, keepdims=True), attention_mask.shape[1])",
        "pooled",
    ),
    "[CLS] for the average": Mutant("embed", "pool =", "pool = cls_pool", "pooled"),
    "not normalised": Mutant("embed", "vectors = l2_normalize", "", "normalized"),
}

# What makes a difference only if a row has several texts.
PACKED_MUTANTS = {
    "positions not started anew": Mutant(
        "embed_tokens", "positions = jnp.arange", "positions = jnp.arange(input_ids.shape[1])", "embeddings"
    ),
    "positions anew behind a hole": Mutant("embed_tokens", "reached =", "reached = attention_mask", "embeddings"),
    "tokens counted on": Mutant("embed_tokens", "counts -=", "", "embeddings"),
    "attention across texts": Mutant(
        "dot_product_attention",
        "is_seen =",
        "is_seen = (attention_mask[:, :, None] > 0) == (attention_mask[:, None] > 0)",
        PROBABILITIES,
    ),
    "attention to the texts before": Mutant(
        "dot_product_attention",
        "is_seen =",
        "is_seen = attention_mask[:, :, None] >= attention_mask[:, None]",
        PROBABILITIES,
    ),
    "neighbour's last token pooled": Mutant(
        "average_pool",
        "is_of_text.astype(",
        "(is_of_text | jnp.roll(is_of_text, -1, axis=2)).astype(states.dtype)",
        "pooled",
    ),
    "neighbour's first token pooled": Mutant(
        "average_pool",
        "is_of_text.astype(",
        "(is_of_text | jnp.roll(is_of_text, 1, axis=2)).astype(states.dtype)",
        "pooled",
    ),
    "last text of a row lost": Mutant(
        "average_pool",
        "is_of_text =",
        "is_of_text = texts_of(attention_mask, texts_per_row)\n"
        "is_of_text &= (attention_mask < attention_mask.max(1)[:, None])[:, None]",
        "pooled",
    ),
}

# Mistakes in attention's pieces on a CPU, in `jax_ops`.
PIECES_MUTANTS = {
    "texts see each other": Mutant(
        "attention_in_pieces",
        "inputs =",
        "inputs = [x.reshape(tokens, *shape[2:]) for x in (query, key, value)] + [numbers > 0]",
    ),
    "rows share numbers": Mutant("attention_in_pieces", "numbers =", "numbers = attention_mask.reshape(tokens)"),
    "cut at a piece's edge": Mutant("pieces", "begin =", "begin = place[::CPU_BLOCK]"),
    "last token lost at a piece's edge": Mutant(
        "turn", "is_own =", "is_own = (starts[piece[index]] <= place) & (place < stops[piece[index]] - 1)"
    ),
    "first token lost at a piece's edge": Mutant(
        "turn", "is_own =", "is_own = (starts[piece[index]] < place) & (place < stops[piece[index]])"
    ),
    "last token of a piece forgotten": Mutant(
        "pieces", "stop = jnp.maximum", "stop = jnp.maximum(begin, last_real[stop - 1])"
    ),
    "last piece lost": Mutant(
        "pieces", "stop = jax.lax.cummin", "stop = jax.lax.cummin(jnp.append(begin[1:], begin[-1]), reverse=True)"
    ),
    "longest text lost": Mutant(
        "attention_in_pieces",
        "done = jnp.sum",
        "done = jnp.sum(stops - starts >= lengths[-1], dtype=jnp.int32)",
    ),
    "last of a group lost": Mutant(
        "attend", "jax.lax.fori_loop(", "jax.lax.fori_loop(0, (last - done) // together, turn, context)"
    ),
    "too long for a piece": Mutant(
        "attention_in_pieces",
        "last = jnp.sum",
        "last = jnp.sum(stops - starts > (shorter + 8 if shorter else -9), dtype=jnp.int32)",
    ),
    "a hole divides a text": Mutant("pieces", "text =", "text = attention_mask"),
    "apart from the plain form": Mutant(
        "turn",
        "result =",
        "result = jnp.where(is_own[:, None, None], 1.01 * results[index], part(context, index))",
    ),
}


def departure(module: types.ModuleType, reference, *, compiled: bool = False) -> str | None:
    """Run a copy operation by operation, which asks for next to no compiling anew, or as one program."""
    checkpoint, batch, expected = reference
    with jax.disable_jit(not compiled):
        run = jax_run(checkpoint, *batch, model=module)
    return first_departure(run, expected, batch[1], "float64")


@pytest.mark.parametrize("compiled", [False, True])
def test_an_unchanged_copy_passes(compiled, reference):
    assert departure(copy_of(jax_model), reference, compiled=compiled) is None


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_an_unchanged_copy_passes_on_packed_rows(kind, packed_references):
    assert departure(copy_of(jax_model), packed_references[kind]) is None


@pytest.mark.parametrize("name", PACKED_MUTANTS)
def test_mutant_is_noticed_in_packed_rows(name, packed_references):
    reference = packed_references["xlm-roberta" if name == "tokens counted on" else "bert"]
    found = departure(copy_of(jax_model, PACKED_MUTANTS[name]), reference)
    assert found is not None
    assert found.split(":")[0] == PACKED_MUTANTS[name].point


def pieces_pass(module: types.ModuleType) -> bool:
    """Run attention in pieces operation by operation, on rows in which every one of the mistakes shows."""
    module.CPU_LENGTHS, module.CPU_GROUP = (64, 128), 128  # as few operations as show them
    masks = mask_of([[128, 3, 5, 4], [1, 63, 65], [-2, 100, 30], [5, -1, 5, -70, 10, -20, 20, 9]], (4, 140))
    masks[2, 10:95] = 0
    try:
        with jax.disable_jit():
            assert_the_same_attention(masks, partial(module.attention_in_pieces, plain))
    except AssertionError:
        return False
    return True


@pytest.mark.slow
def test_mutants_of_pieces_are_noticed():
    """In one test: what its operations cost to compile is paid once."""
    assert pieces_pass(copy_of(jax_ops))
    assert [name for name, mutant in PIECES_MUTANTS.items() if pieces_pass(copy_of(jax_ops, mutant))] == []


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_noticed_where_it_is(name, reference):
    found = departure(copy_of(jax_model, MUTANTS[name]), reference)
    assert found is not None
    assert found.split(":")[0] == MUTANTS[name].point


def test_products_below_float32_are_noticed(reference):
    module = copy_of(jax_model)
    module.matmul = lambda a, b, dtype=None: jax_model.matmul(a.astype("f4"), b.astype("f4")).astype("f8")
    assert departure(module, reference).startswith("layers.0.query")


def test_float32_where_float64_is_is_noticed(reference):
    module = copy_of(jax_model)
    module.widen = jnp.float32
    assert departure(module, reference).startswith("embeddings")
