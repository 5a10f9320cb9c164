"""Mistakes in `numpy_model`, independent of those that the judge knows (`e5ref.parity.altered.mistakes`)."""

from tests.mutants.planting import Mutant

ACTIVATION = "layers.0.feed_forward_activation"
PROBABILITIES = "layers.0.attention_probabilities"
AFTER_ATTENTION = "layers.0.attention_output"

MUTANTS = {
    "tanh GELU": Mutant(
        "feed_forward",
        "activation =",
        "x = linear(hidden_states, *params.feed_forward_up)\n"
        "activation = x * (0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))",
        ACTIVATION,
    ),
    "sigmoid GELU": Mutant(
        "feed_forward",
        "activation =",
        "x = linear(hidden_states, *params.feed_forward_up)\nactivation = x / (1 + np.exp(-1.702 * x))",
        ACTIVATION,
    ),
    "ReLU": Mutant(
        "feed_forward",
        "activation =",
        "activation = np.maximum(linear(hidden_states, *params.feed_forward_up), 0)",
        ACTIVATION,
    ),
    "epsilon of 1e-5": Mutant("layer_norm", "np.sqrt(", "np.sqrt(variance + 1e-5)", "embeddings"),
    "epsilon outside the root": Mutant("layer_norm", "np.sqrt(", "(np.sqrt(variance) + eps)", "embeddings"),
    "variance over n - 1": Mutant(
        "layer_norm",
        "variance =",
        "variance = np.square(x).sum(axis=-1, keepdims=True) / (x.shape[1] - 1)",
        "embeddings",
    ),
    "mean not taken off": Mutant("layer_norm", "x -=", "", "embeddings"),
    "no LayerNorm bias": Mutant("layer_norm", "x += bias", "", "embeddings"),
    "no LayerNorm weight": Mutant("layer_norm", "x *= weight", "", "embeddings"),
    "no token type": Mutant("embed_tokens", "embeddings =", "embeddings = params.word[input_ids[real]]", "embeddings"),
    "the other token type": Mutant(
        "embed_tokens",
        "embeddings =",
        "embeddings = params.word[input_ids[real]] + params.token_type[1]",
        "embeddings",
    ),
    "no positions": Mutant("embed_tokens", "embeddings +=", "", "embeddings"),
    "positions off by one": Mutant(
        "embed_tokens",
        "embeddings +=",
        "embeddings += params.position[positions[real] + 1]",
        "embeddings",
    ),
    "no bias": Mutant("linear", "result +=", "", "layers.0.query"),
    "transposed weight": Mutant(
        "linear",
        "matmul_rows(",
        "matmul_rows(x, weight.T if len(weight) == x.shape[1] else weight)",
        "layers.0.query",
    ),
    "query and key swapped": Mutant(
        "self_attention", "query = linear", "query = linear(hidden_states, *params.key)", "layers.0.query"
    ),
    "no scale": Mutant("self_attention", "scores *=", "", PROBABILITIES),
    "scale by the hidden size": Mutant(
        "self_attention", "scores *=", "scores *= 1 / math.sqrt(config.hidden_size)", PROBABILITIES
    ),
    "heads split the other way": Mutant(
        "heads",
        "return",
        "x = x.reshape(block.texts, block.length, config.head_size, config.num_attention_heads)\n"
        "return x[..., block.heads].transpose(0, 3, 1, 2)",
        PROBABILITIES,
    ),
    "keys not turned": Mutant(
        "self_attention",
        "matmul_heads(",
        "matmul_heads(heads(key, block)[:, :, ::-1], heads(query, block).swapaxes(-1, -2))",
        PROBABILITIES,
    ),
    "value for key": Mutant(
        "self_attention",
        "np.matmul(",
        "np.matmul(probabilities, heads(key, block), out=heads(context, block))",
        "layers.0.context",
    ),
    "no output projection": Mutant("self_attention", "return linear", "return context.copy()", AFTER_ATTENTION),
    "no residual around attention": Mutant("encoder_layer", "attention +=", "", AFTER_ATTENTION),
    "LayerNorm before the sum": Mutant(
        "encoder_layer",
        "attention = layer_norm",
        "attention = layer_norm(attention - hidden_states, *params.attention_layer_norm, 1e-12) + hidden_states",
        AFTER_ATTENTION,
    ),
    "the two LayerNorms swapped": Mutant(
        "encoder_layer",
        "attention = layer_norm",
        "attention = layer_norm(attention, *params.output_layer_norm, config.layer_norm_eps)",
        AFTER_ATTENTION,
    ),
    "no residual around feed-forward": Mutant("encoder_layer", "output +=", "", "layers.0.output"),
    "last layer left out": Mutant("forward", "enumerate(", "enumerate(params.layers[:-1])", "names"),
    "layers in reverse": Mutant("forward", "enumerate(", "enumerate(params.layers[::-1])", "layers.0.query"),
    "padding averaged in": Mutant(
        "average_pool",
        "vectors[is_there] =",
        "vectors[is_there] = np.add.reduceat(states, first, dtype=np.float64) / attention_mask.shape[1]",
        "pooled",
    ),
    "[CLS] for the average": Mutant("embed", "pool =", "pool = cls_pool", "pooled"),
    "not normalised": Mutant("embed", "vectors = l2_normalize", "vectors = vectors.copy()", "normalized"),
    "L1 norm": Mutant(
        "l2_normalize", "norms =", "norms = np.sum(np.abs(vectors), axis=-1, keepdims=True)", "normalized"
    ),
}

# What makes a difference only if a row has several texts.
PACKED_MUTANTS = {
    "neighbour's last token pooled": Mutant(
        "average_pool",
        "np.add.reduceat(",
        "np.add.reduceat(states, np.maximum(first - 1, 0), dtype=np.float64)",
        "pooled",
    ),
    "neighbour's first token pooled": Mutant(
        "average_pool",
        "np.add.reduceat(",
        "np.add.reduceat(states, np.where(first > 0, first + 1, 0).clip(max=len(states) - 1), dtype=np.float64)",
        "pooled",
    ),
    "last text of a row lost": Mutant(
        "average_pool", "is_there =", "is_there = (counts > 0) & (np.append(counts[1:], 0) > 0)", "pooled"
    ),
    "texts in another order": Mutant("average_pool", "return", "return vectors[::-1]", "pooled"),
}

# The same in `rows.token_positions`.
POSITION_MUTANTS = {
    "positions not started anew": Mutant("token_positions", "starts =", "starts = 0 * attention_mask"),
    "positions anew behind a hole": Mutant(
        "token_positions",
        "starts =",
        "begins = (attention_mask > 1) & (np.diff(attention_mask, prepend=0) > 0)\n"
        "starts = np.maximum.accumulate(np.where(begins, np.arange(input_ids.shape[1]), 0), axis=1)",
    ),
    "tokens counted on": Mutant("token_positions", "counts -=", ""),
}

# What the judge is given besides.
MORE_MUTANTS = {
    "LayerNorm before the first sum": Mutant(
        "encoder_layer",
        "attention = layer_norm",
        "attention = layer_norm(attention - hidden_states, *params.attention_layer_norm, config.layer_norm_eps)\n"
        "attention = attention + hidden_states",
        AFTER_ATTENTION,
    ),
    "no LayerNorm after attention": Mutant("encoder_layer", "attention = layer_norm", "", AFTER_ATTENTION),
    "no LayerNorm after feed-forward": Mutant("encoder_layer", "output = layer_norm", "", "layers.0.output"),
    "no LayerNorm after the embeddings": Mutant(
        "embed_tokens", "return", "return rows_of(embeddings, attention_mask)", "embeddings"
    ),
    "embeddings scaled": Mutant(
        "embed_tokens",
        "embeddings =",
        "embeddings = params.word[input_ids[real]] * math.sqrt(config.hidden_size) + params.token_type[0]",
        "embeddings",
    ),
    "positions from 2": Mutant(
        "embed_tokens", "embeddings +=", "embeddings += params.position[positions[real] + 2]", "embeddings"
    ),
    "SiLU": Mutant(
        "feed_forward",
        "activation =",
        "x = linear(hidden_states, *params.feed_forward_up)\nactivation = x / (1 + np.exp(-x))",
        ACTIVATION,
    ),
    "no activation": Mutant(
        "feed_forward", "activation =", "activation = linear(hidden_states, *params.feed_forward_up)", ACTIVATION
    ),
    "no bias in feed_forward_up": Mutant(
        "feed_forward",
        "activation =",
        "activation = gelu(linear(hidden_states, params.feed_forward_up.weight, 0 * params.feed_forward_up.bias))",
        ACTIVATION,
    ),
    "no bias in feed_forward_down": Mutant(
        "feed_forward",
        "return",
        "return linear(activation, params.feed_forward_down.weight, 0 * params.feed_forward_down.bias)",
        "layers.0.output",
    ),
    "no bias in value": Mutant(
        "self_attention",
        "value = linear",
        "value = linear(hidden_states, params.value.weight, 0 * params.value.bias)",
        "layers.0.value",
    ),
    "scale 1/H": Mutant("self_attention", "scores *=", "scores *= 1 / config.head_size", PROBABILITIES),
    "input as second residual": Mutant("encoder_layer", "output +=", "output += hidden_states", "layers.0.output"),
    "first layer everywhere": Mutant(
        "forward", "enumerate(", "enumerate(params.layers[:1] * len(params.layers))", "layers.1.query"
    ),
    "first layer left out": Mutant("forward", "enumerate(", "enumerate(params.layers[1:])", "layers.0.query"),
    "sum for the average": Mutant(
        "average_pool", "vectors[is_there] =", "vectors[is_there] = np.add.reduceat(states, first)", "pooled"
    ),
    "root of the length": Mutant(
        "average_pool",
        "vectors[is_there] =",
        "vectors[is_there] = np.add.reduceat(states, first) / np.sqrt(counts[is_there, None])",
        "pooled",
    ),
    "last token": Mutant(
        "average_pool",
        "vectors[is_there] =",
        "vectors[is_there] = states[first + counts[is_there] - 1]",
        "pooled",
    ),
    "maximum norm": Mutant(
        "l2_normalize", "norms =", "norms = np.abs(vectors).max(axis=-1, keepdims=True)", "normalized"
    ),
    "centred vectors": Mutant(
        "l2_normalize",
        "return",
        "vectors = vectors - vectors.mean(axis=-1, keepdims=True)\n"
        "return vectors / np.sqrt(np.sum(vectors * vectors, axis=-1, keepdims=True))",
        "normalized",
    ),
    "a weight in half precision": Mutant(
        "self_attention",
        "key = linear",
        "key = linear(hidden_states, params.key.weight.astype(np.float16).astype(np.float32), params.key.bias)",
        "layers.0.key",
    ),
}

# All that the judge is given. It compares the points that a run has: a run without its last layer departs at the end.
PLANTED = {
    name: mutant._replace(point="last_hidden_state") if mutant.point == "names" else mutant
    for name, mutant in (MUTANTS | MORE_MUTANTS).items()
    if name != "LayerNorm before the sum"  # with an epsilon of its own, which is a second mistake
}

# What the judge calls them, if not as they are called here; None for what it does not know: it finds only the place.
CALLED = {
    "epsilon of 1e-5": "LayerNorm epsilon 1e-5",
    "epsilon outside the root": "LayerNorm epsilon outside the root",
    "variance over n - 1": "LayerNorm variance over n - 1",
    "mean not taken off": "LayerNorm without its mean (RMSNorm)",
    "no LayerNorm bias": "LayerNorm without its bias",
    "no LayerNorm weight": "LayerNorm without its weight",
    "no token type": "no token-type embedding",
    "the other token type": "token type 1",
    "no positions": "no position embedding",
    "no bias": "no bias in the linear layers",
    "transposed weight": "transposed weights",
    "query and key swapped": "key's weights for query",
    "no scale": "no attention scale",
    "scale by the hidden size": "attention scale 1/√D",
    "heads split the other way": "heads split inside out",
    "keys not turned": None,
    "value for key": "key for value",
    "the two LayerNorms swapped": "output_layer_norm for attention_layer_norm",
    "padding averaged in": "divided by the padded length",
    "L1 norm": "L1 norm for L2",
    "embeddings scaled": "embeddings times √D",
    "positions from 2": "positions off by two",
    "scale 1/H": "attention scale 1/H",
    "input as second residual": "the layer's input as second residual",
    "first layer everywhere": "the first layer's weights in every layer",
    "root of the length": "divided by the root of the length",
    "last token": "last token for the average",
    "maximum norm": "maximum norm for L2",
    "centred vectors": "vectors centred before normalisation",
    "a weight in half precision": None,
}

# What makes no difference beyond rounding where epsilon is 1e-12, as it is in all BERT-style E5.
NEEDS_EPSILON = {"epsilon outside the root"}
