"""Plant one mistake at a time in a copy of the forward pass: the comparison must fail, and first at the point of it."""

import types

import numpy as np
import pytest

from e5ref import numpy_model
from e5ref.operations import blocks, numpy_ops, rows
from tests.mutants.conftest import module_with
from tests.tools.runs import first_departure, our_run

# name: (source, mistake, the point that departs first)
MUTANTS = {
    "tanh GELU": (
        "magnitude = np.clip(x, -40, 40)",
        "x *= 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))); return",
        "layers.0.feed_forward_activation",
    ),
    "sigmoid GELU": (
        "magnitude = np.clip(x, -40, 40)",
        "x /= 1 + np.exp(-1.702 * x); return",
        "layers.0.feed_forward_activation",
    ),
    "ReLU": ("x -= np.multiply(magnitude", "np.multiply(magnitude", "layers.0.feed_forward_activation"),
    "epsilon of 1e-5": ("np.sqrt(variance + eps)", "np.sqrt(variance + 1e-5)", "embeddings"),
    "epsilon outside the root": ("np.sqrt(variance + eps)", "(np.sqrt(variance) + eps)", "embeddings"),
    "variance over n - 1": (
        "np.square(x).mean(axis=-1, keepdims=True)",
        "np.square(x).sum(axis=-1, keepdims=True) / (x.shape[1] - 1)",
        "embeddings",
    ),
    "mean not taken off": ("x -= x.mean(axis=-1, keepdims=True)", "", "embeddings"),
    "no LayerNorm bias": ("    x *= weight\n    x += bias", "    x *= weight", "embeddings"),
    "no LayerNorm weight": ("    x *= weight\n    x += bias", "    x += bias", "embeddings"),
    "no token type": (" + params.token_type[0]", "", "embeddings"),
    "the other token type": ("params.token_type[0]", "params.token_type[1]", "embeddings"),
    "no positions": ("embeddings += params.position[positions[real]]", "", "embeddings"),
    "positions off by one": ("params.position[positions[real]]", "params.position[positions[real] + 1]", "embeddings"),
    "no bias": ("result += bias", "", "layers.0.query"),
    "transposed weight": (
        "matmul_rows(x, weight)",
        "matmul_rows(x, weight.T if len(weight) == x.shape[1] else weight)",
        "layers.0.query",
    ),
    "query and key swapped": (
        "linear(hidden_states, *params.query)",
        "linear(hidden_states, *params.key)",
        "layers.0.query",
    ),
    "no scale": ("scores *= 1 / math.sqrt(config.head_size)", "", "layers.0.attention_probabilities"),
    "scale by the hidden size": (
        "math.sqrt(config.head_size)",
        "math.sqrt(config.hidden_size)",
        "layers.0.attention_probabilities",
    ),
    "heads split the other way": (
        "config.num_attention_heads, config.head_size)\n        return x[:, :, block.heads].transpose(0, 2, 1, 3)",
        "config.head_size, config.num_attention_heads)\n        return x[..., block.heads].transpose(0, 3, 1, 2)",
        "layers.0.attention_probabilities",
    ),
    "keys not turned": (
        "heads(key, block)",
        "heads(key, block)[:, :, ::-1]",
        "layers.0.attention_probabilities",
    ),
    "value for key": (
        "np.matmul(probabilities, heads(value, block)",
        "np.matmul(probabilities, heads(key, block)",
        "layers.0.context",
    ),
    "no output projection": (
        "return linear(context, *params.attention_output)",
        "return context.copy()",
        "layers.0.attention_output",
    ),
    "no residual around attention": ("attention += hidden_states", "", "layers.0.attention_output"),
    "LayerNorm before the sum": (
        "attention = layer_norm(attention, *params.attention_layer_norm, config.layer_norm_eps)",
        "attention = layer_norm(attention - hidden_states, *params.attention_layer_norm, 1e-12) + hidden_states",
        "layers.0.attention_output",
    ),
    "the two LayerNorms swapped": (
        "*params.attention_layer_norm",
        "*params.output_layer_norm",
        "layers.0.attention_output",
    ),
    "no residual around feed-forward": ("output += attention", "", "layers.0.output"),
    "last layer left out": ("enumerate(params.layers)", "enumerate(params.layers[:-1])", "names"),
    "layers in reverse": ("enumerate(params.layers)", "enumerate(params.layers[::-1])", "layers.0.query"),
    "padding averaged in": ("/ counts[is_there, None]", "/ attention_mask.shape[1]", "pooled"),
    "[CLS] for the average": ('average_pool if pooling == "mean"', 'cls_pool if pooling == "mean"', "pooled"),
    "not normalised": ("vectors = l2_normalize(vectors)", "vectors = vectors.copy()", "normalized"),
    "L1 norm": ("np.sqrt(np.sum(vectors * vectors", "(np.sum(np.abs(vectors)", "normalized"),
}


# The same in packed rows: what makes a difference only if a row has several texts.
PACKED_MUTANTS = {
    "neighbour's last token pooled": (
        "np.add.reduceat(states, first,",
        "np.add.reduceat(states, np.maximum(first - 1, 0),",
        "pooled",
    ),
    "neighbour's first token pooled": (
        "np.add.reduceat(states, first,",
        "np.add.reduceat(states, np.where(first > 0, first + 1, 0).clip(max=len(states) - 1),",
        "pooled",
    ),
    "last text of a row lost": (
        "is_there = counts > 0",
        "is_there = (counts > 0) & (np.append(counts[1:], 0) > 0)",
        "pooled",
    ),
    "texts in another order": ("return vectors\n", "return vectors[::-1]\n", "pooled"),
}


# The same in `rows.token_positions`.
POSITION_MUTANTS = {
    "positions not started anew": ("input_ids.shape[1]) - starts", "input_ids.shape[1]) - 0 * starts"),
    "positions anew behind a hole": (
        "starts = text_starts(attention_mask)",
        "starts = text_starts(attention_mask)\n"
        "    begins = (attention_mask > 1) & (np.diff(attention_mask, prepend=0) > 0)\n"
        "    starts = np.maximum.accumulate(np.where(begins, np.arange(input_ids.shape[1]), 0), axis=1)",
    ),
    "tokens counted on": ("counts -= np.take_along_axis(counts - is_token, starts, axis=1)", ""),
}


def departure(module: types.ModuleType, reference) -> str | None:
    checkpoint, batch, expected = reference
    return first_departure(our_run(checkpoint, *batch, model=module), expected, batch[1], "float64")


def test_an_unchanged_copy_passes(reference):
    assert departure(module_with(numpy_model), reference) is None


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_noticed_where_it_is(name, reference):
    source, mistake, point = MUTANTS[name]
    found = departure(module_with(numpy_model, source, mistake), reference)
    assert found is not None
    assert found.split(":")[0] == point


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_an_unchanged_copy_passes_on_packed_rows(kind, packed_references):
    assert departure(module_with(numpy_model), packed_references[kind]) is None


@pytest.mark.parametrize("name", PACKED_MUTANTS)
def test_mutant_is_noticed_in_packed_rows(name, packed_references):
    source, mistake, point = PACKED_MUTANTS[name]
    found = departure(module_with(numpy_model, source, mistake), packed_references["bert"])
    assert found is not None
    assert found.split(":")[0] == point


@pytest.mark.parametrize("name", POSITION_MUTANTS)
def test_mutant_of_positions_is_noticed_in_packed_rows(name, packed_references):
    module = module_with(numpy_model)
    module.token_positions = module_with(rows, *POSITION_MUTANTS[name]).token_positions
    found = departure(module, packed_references["xlm-roberta" if name == "tokens counted on" else "bert"])
    assert found is not None
    assert found.startswith("embeddings:")


def test_attention_across_the_texts_of_a_row_is_noticed(packed_references):
    module = module_with(numpy_model)

    def whole_rows(function):
        return lambda *arguments: function(*arguments[:-2], np.minimum(arguments[-2], 1), arguments[-1])

    module.attention_blocks = whole_rows(blocks.attention_blocks)
    module.pad_squares = whole_rows(blocks.pad_squares)
    assert departure(module, packed_references["bert"]).startswith("layers.0.attention_probabilities")


def test_attention_across_texts_is_noticed(reference):
    """The mask, as it were: every token attends to every row of the batch."""
    module = module_with(numpy_model)

    def one_block(attention_mask, heads):
        rows = int(attention_mask.sum())
        return [blocks.AttentionBlock(0, 1, rows, slice(0, rows), slice(0, heads))]

    def split(squares, mask, heads):
        ((_, square),) = squares
        parts = [(block, square[:, :, block.tokens, block.tokens]) for block in blocks.attention_blocks(mask, heads)]
        return blocks.pad_squares(parts, mask, heads)

    module.attention_blocks, module.pad_squares = one_block, split
    assert departure(module, reference).startswith("layers.0.attention_probabilities")


@pytest.mark.parametrize("elements", [1, 100])
def test_attention_in_small_blocks_is_the_same(reference, monkeypatch, elements):
    """A head at a time, or a few."""
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", elements)
    assert departure(module_with(numpy_model), reference) is None


def test_softmax_without_its_divisor_is_noticed(reference):
    module = module_with(numpy_model)
    module.softmax = lambda scores: np.exp(scores - scores.max(axis=-2, keepdims=True))
    assert departure(module, reference).startswith("layers.0.attention_probabilities")


def test_softmax_over_the_queries_is_noticed(reference):
    module = module_with(numpy_model)
    module.softmax = lambda scores: numpy_ops.softmax(scores.swapaxes(-1, -2)).swapaxes(-1, -2)
    assert departure(module, reference).startswith("layers.0.attention_probabilities")


def test_a_float32_product_in_float64_is_noticed(reference):
    module = module_with(numpy_model)
    module.matmul_rows = lambda x, weight: numpy_ops.matmul_rows(x.astype("f4"), weight.astype("f4")).astype("f8")
    assert departure(module, reference).startswith("layers.0.query")


@pytest.mark.parametrize("point", ["embeddings", "layers.1.context", "normalized"])
@pytest.mark.parametrize("damage", ["NaN", "missing", "shape", "dtype"])
def test_the_comparison_itself_fails_on(damage, point, reference):
    _, (_, attention_mask), expected = reference
    run = dict(expected)
    if damage == "NaN":
        run[point] = np.where(attention_mask.any(), np.nan, expected[point])
    elif damage == "missing":
        del run[point]
    elif damage == "shape":
        run[point] = expected[point][:, :1]
    else:
        run[point] = expected[point].astype(np.float32)
    assert first_departure(run, expected, attention_mask, "float64") is not None
