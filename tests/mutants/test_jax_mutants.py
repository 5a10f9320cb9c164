"""Plant one mistake at a time in a copy of the JAX twin: the comparison must fail, and first at the point of it."""

import types
from functools import partial

import jax
import pytest

from e5ref import jax_model
from e5ref.operations import jax_ops
from tests.mutants.conftest import module_with
from tests.operations.attention import assert_the_same_attention, mask_of, plain
from tests.tools.runs import first_departure, jax_run

# name: (source, mistake, the point that departs first)
MUTANTS = {
    "tanh GELU": ("approximate=False", "approximate=True", "layers.0.feed_forward_activation"),
    "epsilon of 1e-5": ("variance + eps", "variance + 1e-5", "embeddings"),
    "variance over n - 1": (
        "variance = jnp.mean(",
        "variance = x.shape[-1] / (x.shape[-1] - 1) * jnp.mean(",
        "embeddings",
    ),
    "no LayerNorm bias": ("* weight + bias).astype", "* weight).astype", "embeddings"),
    "the other token type": ("params.token_type[0]", "params.token_type[1]", "embeddings"),
    "positions off by one": ("input_ids.shape[1]) - starts", "input_ids.shape[1]) - starts + 1", "embeddings"),
    "no bias": ("(matmul(x, weight.T) + bias)", "matmul(x, weight.T)", "layers.0.query"),
    "query and key swapped": (
        "params.query, params.key, params.value",
        "params.key, params.query, params.value",
        "layers.0.query",
    ),
    "no scale": ("scores *= 1 / math.sqrt(query.shape[-1])", "", "layers.0.attention_probabilities"),
    "mask ignored": (
        "jnp.where(is_seen, 0, np.finfo(np.float32).min)",
        "0 * is_seen",
        "layers.0.attention_probabilities",
    ),
    "mask of -1": ("np.finfo(np.float32).min", "-1", "layers.0.attention_probabilities"),
    "mask the wrong way round": (
        "jnp.where(is_seen, 0, np.finfo(np.float32).min)",
        "jnp.where(is_seen, np.finfo(np.float32).min, 0)",
        "layers.0.attention_probabilities",
    ),
    "mask over queries": (
        "attention_mask[:, :, None] == attention_mask[:, None]",
        "attention_mask[:, :, None] > 0",
        "layers.0.attention_probabilities",
    ),
    "heads split the other way": (
        "x.reshape(*x.shape[:2], config.num_attention_heads, config.head_size)",
        "x.reshape(*x.shape[:2], config.head_size, config.num_attention_heads).swapaxes(2, 3)",
        "layers.0.attention_probabilities",
    ),
    "softmax without its divisor": (
        "transpose(0, 2, 1, 3), weights / totals",
        "transpose(0, 2, 1, 3), weights",
        "layers.0.attention_probabilities",
    ),
    "context without its divisor": ("value)) / totals", "value))", "layers.0.context"),
    "heads joined the other way": (
        "context.reshape(query.shape)",
        "context.swapaxes(2, 3).reshape(query.shape)",
        "layers.0.context",
    ),
    "no residual around attention": (
        "widen(attention) + widen(hidden_states)",
        "widen(attention)",
        "layers.0.attention_output",
    ),
    "the two LayerNorms swapped": (
        "*params.attention_layer_norm",
        "*params.output_layer_norm",
        "layers.0.attention_output",
    ),
    "no residual around feed-forward": ("widen(output) + widen(attention)", "widen(output)", "layers.0.output"),
    "layers in reverse": (
        "hidden_states, layers)  # points",
        "hidden_states, layers, reverse=True)  # points",
        "layers.0.query",
    ),
    "padding averaged in": (
        "is_of_text.sum(axis=2, keepdims=True), 1)",
        "is_of_text.sum(axis=2, keepdims=True), attention_mask.shape[1])",
        "pooled",
    ),
    "[CLS] for the average": ('average_pool if pooling == "mean"', 'cls_pool if pooling == "mean"', "pooled"),
    "not normalised": ("vectors = l2_normalize(vectors)", "", "normalized"),
    "float32 where float64 is": (
        "from e5ref.operations.jax_ops import matmul, widen",
        "from e5ref.operations.jax_ops import matmul\nwiden = jnp.float32",
        "embeddings",
    ),
}


# The same in packed rows: what makes a difference only where a row has several texts.
PACKED_MUTANTS = {
    "positions not started anew": ("input_ids.shape[1]) - starts", "input_ids.shape[1])", "embeddings"),
    "positions anew behind a hole": (
        "reached = jax.lax.cummax(attention_mask, axis=1)",
        "reached = attention_mask",
        "embeddings",
    ),
    "tokens counted on": ("counts -= jnp.take_along_axis(counts - is_token, starts, axis=1)", "", "embeddings"),
    "attention across texts": (
        "attention_mask[:, :, None] == attention_mask[:, None]",
        "(attention_mask[:, :, None] > 0) == (attention_mask[:, None] > 0)",
        "layers.0.attention_probabilities",
    ),
    "attention to the texts before": (
        "attention_mask[:, :, None] == attention_mask[:, None]",
        "attention_mask[:, :, None] >= attention_mask[:, None]",
        "layers.0.attention_probabilities",
    ),
    "neighbour's last token pooled": (
        "jnp.matmul(is_of_text.astype",
        "jnp.matmul((is_of_text | jnp.roll(is_of_text, -1, axis=2)).astype",
        "pooled",
    ),
    "neighbour's first token pooled": (
        "jnp.matmul(is_of_text.astype",
        "jnp.matmul((is_of_text | jnp.roll(is_of_text, 1, axis=2)).astype",
        "pooled",
    ),
    "last text of a row lost": (
        "= texts_of(attention_mask, texts_per_row)",
        "= texts_of(attention_mask, texts_per_row) & (attention_mask < attention_mask.max(1)[:, None])[:, None]",
        "pooled",
    ),
}

# Mistakes in attention's pieces on a CPU.
PIECES_MUTANTS = {
    "texts see each other": ("+ [numbers]", "+ [numbers > 0]"),
    "rows share numbers": ("* (shape[1] + 1)", "* 0"),
    "cut at a piece's edge": ("begin = first.reshape(-1, CPU_BLOCK).min(axis=1)", "begin = place[::CPU_BLOCK]"),
    "last token lost at a piece's edge": ("(place < stops[piece[index]])", "(place < stops[piece[index]] - 1)"),
    "first token lost at a piece's edge": ("(starts[piece[index]] <= place)", "(starts[piece[index]] < place)"),
    "last token of a piece forgotten": ("last_real[stop - 1] + 1", "last_real[stop - 1]"),
    "last piece lost": ("jnp.append(begin[1:], tokens)", "jnp.append(begin[1:], begin[-1])"),
    "longest text lost": (
        "done = jnp.sum(stops - starts > lengths[-1]",
        "done = jnp.sum(stops - starts >= lengths[-1]",
    ),
    "last of a group lost": ("-((done - last) // together)", "(last - done) // together"),
    "too long for a piece": ("(lengths, [0, *lengths]", "(lengths, [-9, *(length + 8 for length in lengths)]"),
    "a hole divides a text": ("jnp.where(before == after, before, 0)", "attention_mask"),
    "apart from the plain form": (
        "is_own[:, None, None], results[index]",
        "is_own[:, None, None], 1.01 * results[index]",
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
    assert departure(module_with(jax_model), reference, compiled=compiled) is None


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_an_unchanged_copy_passes_on_packed_rows(kind, packed_references):
    assert departure(module_with(jax_model), packed_references[kind]) is None


@pytest.mark.parametrize("name", PACKED_MUTANTS)
def test_mutant_is_noticed_in_packed_rows(name, packed_references):
    source, mistake, point = PACKED_MUTANTS[name]
    reference = packed_references["xlm-roberta" if name == "tokens counted on" else "bert"]
    found = departure(module_with(jax_model, source, mistake), reference)
    assert found is not None
    assert found.split(":")[0] == point


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


def test_mutants_of_pieces_are_noticed():
    """In one test: what its operations cost to compile is paid once."""
    assert pieces_pass(module_with(jax_ops))
    assert [name for name, edit in PIECES_MUTANTS.items() if pieces_pass(module_with(jax_ops, *edit))] == []


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_noticed_where_it_is(name, reference):
    source, mistake, point = MUTANTS[name]
    found = departure(module_with(jax_model, source, mistake), reference)
    assert found is not None
    assert found.split(":")[0] == point


def test_products_below_float32_are_noticed(reference):
    module = module_with(jax_model)
    module.matmul = lambda a, b, dtype=None: jax_model.matmul(a.astype("f4"), b.astype("f4")).astype("f8")
    assert departure(module, reference).startswith("layers.0.query")
