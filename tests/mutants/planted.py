"""Mistakes to be planted in float32, written as edits of the source: independent of `e5ref.parity.mistakes`."""

import inspect
import types

from e5ref import numpy_model
from tests.mutants.test_numpy_mutants import MUTANTS

# name: (source, mistake, point that departs first, what the judge calls it or None)
NAMES = {
    "tanh GELU": "tanh GELU",
    "sigmoid GELU": "sigmoid GELU",
    "ReLU": "ReLU",
    "epsilon of 1e-5": "LayerNorm epsilon 1e-5",
    "epsilon outside the root": "LayerNorm epsilon outside the root",
    "variance over n - 1": "LayerNorm variance over n - 1",
    "mean not taken off": "LayerNorm without its mean (RMSNorm)",
    "no LayerNorm bias": "LayerNorm without its bias",
    "no LayerNorm weight": "LayerNorm without its weight",
    "no token type": "no token-type embedding",
    "the other token type": "token type 1",
    "no positions": "no position embedding",
    "positions off by one": "positions off by one",
    "no bias": "no bias in the linear layers",
    "transposed weight": "transposed weights",
    "query and key swapped": "key's weights for query",
    "no scale": "no attention scale",
    "scale by the hidden size": "attention scale 1/√D",
    "heads split the other way": "heads split inside out",
    "value for key": "key for value",
    "no output projection": "no output projection",
    "no residual around attention": "no residual around attention",
    "the two LayerNorms swapped": "output_layer_norm for attention_layer_norm",
    "no residual around feed-forward": "no residual around feed-forward",
    "last layer left out": "last layer left out",
    "layers in reverse": "layers in reverse",
    "padding averaged in": "divided by the padded length",
    "[CLS] for the average": "[CLS] for the average",
    "not normalised": "not normalised",
    "L1 norm": "L1 norm for L2",
}
ATTENTION_SUM = "attention = layer_norm(attention, *params.attention_layer_norm, config.layer_norm_eps)"
OUTPUT_SUM = "output = layer_norm(output, *params.output_layer_norm, config.layer_norm_eps)"
AVERAGE = "np.add.reduceat(states, first, dtype=np.float64) / counts[is_there, None]"

PLANTED = {
    name: (source, mistake, "last_hidden_state" if point == "names" else point, NAMES.get(name))
    for name, (source, mistake, point) in MUTANTS.items()
    if name != "LayerNorm before the sum"
} | {
    "LayerNorm before the first sum": (
        ATTENTION_SUM,
        "attention = layer_norm(attention - hidden_states, *params.attention_layer_norm, config.layer_norm_eps)"
        " + hidden_states",
        "layers.0.attention_output",
        "LayerNorm before the first sum",
    ),
    "no LayerNorm after attention": (ATTENTION_SUM, "", "layers.0.attention_output", "no LayerNorm after attention"),
    "no LayerNorm after feed-forward": (OUTPUT_SUM, "", "layers.0.output", "no LayerNorm after feed-forward"),
    "no LayerNorm after the embeddings": (
        "return layer_norm(rows_of(embeddings, attention_mask), *params.layer_norm, config.layer_norm_eps)",
        "return rows_of(embeddings, attention_mask)",
        "embeddings",
        "no LayerNorm after the embeddings",
    ),
    "embeddings scaled": (
        "params.word[input_ids[real]]",
        "params.word[input_ids[real]] * math.sqrt(config.hidden_size)",
        "embeddings",
        "embeddings times √D",
    ),
    "positions from 2": ("positions[real]]", "positions[real] + 2]", "embeddings", "positions off by two"),
    "SiLU": (
        "magnitude = np.clip(x, -40, 40)",
        "x /= 1 + np.exp(-x); return",
        "layers.0.feed_forward_activation",
        "SiLU",
    ),
    "no activation": (
        "gelu(linear(hidden_states, *params.feed_forward_up))",
        "linear(hidden_states, *params.feed_forward_up)",
        "layers.0.feed_forward_activation",
        "no activation",
    ),
    "no bias in feed_forward_up": (
        "*params.feed_forward_up)",
        "params.feed_forward_up.weight, 0 * params.feed_forward_up.bias)",
        "layers.0.feed_forward_activation",
        "no bias in feed_forward_up",
    ),
    "no bias in feed_forward_down": (
        "*params.feed_forward_down)",
        "params.feed_forward_down.weight, 0 * params.feed_forward_down.bias)",
        "layers.0.output",
        "no bias in feed_forward_down",
    ),
    "no bias in value": (
        "linear(hidden_states, *params.value)",
        "linear(hidden_states, params.value.weight, 0 * params.value.bias)",
        "layers.0.value",
        "no bias in value",
    ),
    "scale 1/H": (
        "1 / math.sqrt(config.head_size)",
        "1 / config.head_size",
        "layers.0.attention_probabilities",
        "attention scale 1/H",
    ),
    "input as second residual": (
        "output += attention",
        "output += hidden_states",
        "layers.0.output",
        "the layer's input as second residual",
    ),
    "first layer everywhere": (
        "enumerate(params.layers)",
        "enumerate(params.layers[:1] * len(params.layers))",
        "layers.1.query",
        "the first layer's weights in every layer",
    ),
    "first layer left out": (
        "enumerate(params.layers)",
        "enumerate(params.layers[1:])",
        "layers.0.query",
        "first layer left out",
    ),
    "sum for the average": (AVERAGE, "np.add.reduceat(states, first)", "pooled", "sum for the average"),
    "root of the length": (
        AVERAGE,
        "np.add.reduceat(states, first) / np.sqrt(counts[is_there, None])",
        "pooled",
        "divided by the root of the length",
    ),
    "last token": (AVERAGE, "states[first + counts[is_there] - 1]", "pooled", "last token for the average"),
    "maximum norm": (
        "np.sqrt(np.sum(vectors * vectors, axis=-1, keepdims=True))",
        "np.abs(vectors).max(axis=-1, keepdims=True)",
        "normalized",
        "maximum norm for L2",
    ),
    "centred vectors": (
        "return vectors / np.maximum(norms, 1e-12)",
        "vectors = vectors - vectors.mean(axis=-1, keepdims=True)\n"
        "    return vectors / np.sqrt(np.sum(vectors * vectors, axis=-1, keepdims=True))",
        "normalized",
        "vectors centred before normalisation",
    ),
    "a weight in half precision": (  # no known mistake: only the place is to be found
        "linear(hidden_states, *params.key)",
        "linear(hidden_states, params.key.weight.astype(np.float16).astype(np.float32), params.key.bias)",
        "layers.0.key",
        None,
    ),
}

# What makes no difference beyond rounding where epsilon is 1e-12, as it is in all BERT-style E5.
NEEDS_EPSILON = {"epsilon outside the root"}


def planted(name: str) -> types.ModuleType:
    """A copy of numpy_model with a mistake in it."""
    source, mistake, _, _ = PLANTED[name]
    original = inspect.getsource(numpy_model)
    assert source in original, "the forward pass has changed: write this mutant anew"
    module = types.ModuleType("planted")
    exec(compile(original.replace(source, mistake, 1), "planted", "exec"), module.__dict__)
    return module
