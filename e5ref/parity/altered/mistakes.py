"""The mistakes that ports of BERT make: each as a change to the reference, and the point where it shows first."""

import math
from dataclasses import dataclass

import numpy as np

from e5ref import numpy_model
from e5ref.parity.altered.changes import (
    DENSE_MISTAKES,
    LINEAR,
    Change,
    changed_affines,
    changed_attention,
    changed_config,
    changed_embeddings,
    changed_function,
    changed_gelu,
    changed_layer,
    changed_layer_norm,
    changed_layers,
    changed_mask,
    changed_params,
    changed_pool,
    changed_positions,
    merge_inside_out,
    merge_without_transposing,
    no_bias,
    no_norm_at,
    norm_before_sum,
    normed,
    plain_softmax,
    pool_padding,
    sigmoid,
    split_inside_out,
    split_without_transposing,
    swapped,
    taken,
    tanh_gelu,
    transposed,
)


@dataclass(frozen=True)
class Mistake:
    """A known mistake.

    Attributes:
        name: the mistake in a few words.
        point: where it shows first: "embeddings", a point of a layer such as "query", "pooled", "normalized".
        check: what to look at in the port.
        change: makes the mistake in the reference.
    """

    name: str
    point: str
    check: str
    change: Change


MISTAKES = [
    # embeddings
    Mistake(
        "no token-type embedding",
        "embeddings",
        "row 0 of the token-type embedding is added to every token",
        changed_embeddings(lambda e: e._replace(token_type=np.zeros_like(e.token_type))),
    ),
    Mistake(
        "token type 1",
        "embeddings",
        "all tokens of an E5 text have token type 0",
        changed_embeddings(lambda e: e._replace(token_type=e.token_type[::-1])),
    ),
    Mistake(
        "no position embedding",
        "embeddings",
        "the position embedding is added",
        changed_embeddings(lambda e: e._replace(position=np.zeros_like(e.position))),
    ),
    *(
        Mistake(
            f"positions off by {name}",
            "embeddings",
            "BERT counts positions from 0; XLM-RoBERTa from the padding id + 1",
            changed_positions(shift),
        )
        for shift, name in ((1, "one"), (2, "two"), (-1, "minus one"))
    ),
    Mistake(
        "embeddings times √D",
        "embeddings",
        "BERT does not scale its word embeddings",
        changed_embeddings(lambda e: e._replace(word=e.word * math.sqrt(e.word.shape[1]))),
    ),
    Mistake(
        "no LayerNorm after the embeddings",
        "embeddings",
        "the sum of the embeddings goes through a LayerNorm",
        no_norm_at("embeddings"),
    ),
    *(
        Mistake(
            f"LayerNorm epsilon {eps:.0e}".replace("e-0", "e-"),
            "embeddings",
            "the epsilon is layer_norm_eps of config.json",
            changed_config(layer_norm_eps=eps),
        )
        for eps in (1e-3, 1e-5, 1e-6, 1e-7, 1e-8, 1e-12)
    ),
    Mistake(
        "LayerNorm epsilon outside the root",
        "embeddings",
        "LayerNorm divides by √(variance + epsilon)",
        changed_layer_norm(lambda x, w, b, eps: normed(x, outside=eps) * w + b),
    ),
    Mistake(
        "LayerNorm variance over n - 1",
        "embeddings",
        "LayerNorm's variance divides by n (torch.std and the like by n - 1)",
        changed_layer_norm(lambda x, w, b, eps: normed(x, inside=eps, less=1) * w + b),
    ),
    Mistake(
        "LayerNorm without its mean (RMSNorm)",
        "embeddings",
        "LayerNorm subtracts the mean first",
        changed_layer_norm(lambda x, w, b, eps: normed(x, mean=False, inside=eps) * w + b),
    ),
    Mistake(
        "LayerNorm without its bias",
        "embeddings",
        "LayerNorm's bias (beta) is loaded and added",
        changed_layer_norm(lambda x, w, b, eps: normed(x, inside=eps) * w),
    ),
    Mistake(
        "LayerNorm without its weight",
        "embeddings",
        "LayerNorm's weight (gamma) is loaded and multiplied",
        changed_layer_norm(lambda x, w, b, eps: normed(x, inside=eps) + b),
    ),
    Mistake(
        "LayerNorm weight and bias swapped",
        "embeddings",
        "gamma is the weight and beta the bias",
        changed_layer_norm(lambda x, w, b, eps: normed(x, inside=eps) * b + w),
    ),
    # query, key, value
    Mistake(
        "no bias in the linear layers",
        "query",
        "every linear layer of BERT has a bias",
        changed_affines(no_bias, *LINEAR),
    ),
    *(
        Mistake(f"no bias in {name}", name, f"the bias of {name} is loaded and added", changed_affines(no_bias, name))
        for name in ("query", "key", "value")
    ),
    Mistake(
        "transposed weights",
        "query",
        "torch's weights are [out, in]: x Wᵀ",
        changed_affines(transposed, *LINEAR),
    ),
    *(
        Mistake(
            f"transposed {name} weight",
            point,
            f"the weight of {name} is [out, in]: x Wᵀ",
            changed_affines(transposed, name),
        )
        for name, point in (*((name, name) for name in LINEAR[:3]), ("attention_output", "attention_output"))
    ),
    *(
        Mistake(
            f"{one} and {other} swapped",
            one,
            f"the order of {one} and {other} in the fused weights",
            swapped(one, other),
        )
        for one, other in (("query", "key"), ("query", "value"), ("key", "value"))
    ),
    *(
        Mistake(f"{source}'s weights for {place}", place, "each has its own weights", taken(place, source))
        for place in LINEAR[:3]
        for source in LINEAR[:3]
        if place != source
    ),
    # attention
    Mistake(
        "no attention scale",
        "attention_probabilities",
        "scores are divided by √H before the softmax",
        changed_attention(scale=lambda _: 1.0),
    ),
    Mistake(
        "attention scale 1/√D",
        "attention_probabilities",
        "the scale comes from the head's size H, not from the hidden size D",
        changed_attention(scale=lambda config: 1 / math.sqrt(config.hidden_size)),
    ),
    Mistake(
        "attention scale 1/H",
        "attention_probabilities",
        "scores are divided by the root of the head's size once; a fused kernel may do it a second time",
        changed_attention(scale=lambda config: 1 / config.head_size),
    ),
    Mistake(
        "heads split inside out",
        "attention_probabilities",
        "[t, D] is reshaped to [t, N, H], heads first and their size second",
        changed_attention(split=split_inside_out, merge=merge_inside_out),
    ),
    Mistake(
        "heads split without a transpose",
        "attention_probabilities",
        "[t, D] becomes [t, N, H] and then [N, t, H]; a reshape alone mixes tokens",
        changed_attention(split=split_without_transposing, merge=merge_without_transposing),
    ),
    Mistake(
        "softmax over the queries",
        "attention_probabilities",
        "softmax runs over the keys: each query's probabilities sum to 1",
        changed_attention(softmax=lambda scores: plain_softmax(scores, -2)),
    ),
    Mistake(
        "softmax without its divisor",
        "attention_probabilities",
        "softmax divides by the sum",
        changed_attention(softmax=lambda scores: np.exp(scores - scores.max(axis=-1, keepdims=True))),
    ),
    Mistake("causal mask", "attention_probabilities", "BERT attends both ways", changed_attention(causal=True)),
    Mistake(
        "attention mask ignored",
        "attention_probabilities",
        "padding is masked out of the scores",
        changed_mask(0),
    ),
    *(
        Mistake(
            f"attention mask of {bias:g}",
            "attention_probabilities",
            "minus infinity is added to the scores of padding, or a number whose exp is 0",
            changed_mask(bias),
        )
        for bias in (-1.0, -5.0, -10.0)
    ),
    Mistake(
        "key for value",
        "context",
        "the probabilities weigh the values",
        changed_attention(value="key"),
    ),
    Mistake(
        "heads merged without a transpose",
        "context",
        "[N, t, H] becomes [t, N, H] and then [t, D]; a reshape alone mixes tokens",
        changed_attention(merge=merge_without_transposing),
    ),
    Mistake(
        "heads merged inside out",
        "context",
        "heads stand side by side in the context; the H values of a head are adjacent",
        changed_attention(merge=merge_inside_out),
    ),
    # after attention
    Mistake(
        "no output projection",
        "attention_output",
        "the context goes through the attention's output layer",
        changed_attention(project=False),
    ),
    Mistake(
        "no bias in attention_output",
        "attention_output",
        "the bias of the attention's output layer is added",
        changed_affines(no_bias, "attention_output"),
    ),
    Mistake(
        "no residual around attention",
        "attention_output",
        "the layer's input is added to the attention's output",
        changed_layer(residuals=("none", "attention")),
    ),
    Mistake(
        "LayerNorm before the layer's parts (pre-LayerNorm)",
        "query",
        "BERT is post-LayerNorm: LayerNorm(x + part(x))",
        changed_layer(before=True),
    ),
    Mistake(
        "LayerNorm before the sums",
        "attention_output",
        "LayerNorm is over the sum: LayerNorm(x + part(x))",
        norm_before_sum("attention_output", "output"),
    ),
    Mistake(
        "LayerNorm before the first sum",
        "attention_output",
        "LayerNorm is over the sum: LayerNorm(x + part(x))",
        norm_before_sum("attention_output"),
    ),
    *(
        Mistake(
            f"{source} for {place}",
            "attention_output" if place == "attention_layer_norm" else "output",
            "attention.output.LayerNorm comes first, output.LayerNorm second",
            taken(place, source),
        )
        for place, source in (
            ("attention_layer_norm", "output_layer_norm"),
            ("output_layer_norm", "attention_layer_norm"),
        )
    ),
    Mistake(
        "LayerNorm before the second sum",
        "output",
        "LayerNorm is over the sum: LayerNorm(x + part(x))",
        norm_before_sum("output"),
    ),
    Mistake(
        "the two LayerNorms of a layer swapped",
        "attention_output",
        "attention.output.LayerNorm comes first, output.LayerNorm second",
        changed_layers(
            lambda layer: layer._replace(
                attention_layer_norm=layer.output_layer_norm, output_layer_norm=layer.attention_layer_norm
            )
        ),
    ),
    Mistake(
        "no LayerNorm after attention",
        "attention_output",
        "the sum after attention goes through attention.output.LayerNorm",
        no_norm_at("attention_layer_norm"),
    ),
    # feed-forward
    Mistake(
        "tanh GELU",
        "feed_forward_activation",
        'hidden_act "gelu" is the erf form; tanh is "gelu_new" (and the default of jax.nn.gelu)',
        changed_gelu(tanh_gelu),
    ),
    Mistake(
        "sigmoid GELU",
        "feed_forward_activation",
        'hidden_act "gelu" is the erf form, not x σ(1.702 x)',
        changed_gelu(lambda x: x * sigmoid(1.702 * x)),
    ),
    Mistake("ReLU", "feed_forward_activation", "the activation is GELU", changed_gelu(lambda x: np.maximum(x, 0))),
    Mistake("SiLU", "feed_forward_activation", "the activation is GELU", changed_gelu(lambda x: x * sigmoid(x))),
    Mistake(
        "no activation", "feed_forward_activation", "GELU follows the first linear layer", changed_gelu(lambda x: x)
    ),
    Mistake(
        "no bias in feed_forward_up",
        "feed_forward_activation",
        "the bias of intermediate.dense is added before GELU",
        changed_affines(no_bias, "feed_forward_up"),
    ),
    Mistake(
        "no bias in feed_forward_down",
        "output",
        "the bias of output.dense is added",
        changed_affines(no_bias, "feed_forward_down"),
    ),
    Mistake(
        "no residual around feed-forward",
        "output",
        "the attention's output is added to that of the feed-forward part",
        changed_layer(residuals=("input", "none")),
    ),
    Mistake(
        "the layer's input as second residual",
        "output",
        "the second residual is the output of the attention part",
        changed_layer(residuals=("input", "input")),
    ),
    Mistake(
        "no LayerNorm after feed-forward",
        "output",
        "the sum after feed-forward goes through output.LayerNorm",
        no_norm_at("output_layer_norm"),
    ),
    # layers
    Mistake(
        "last layer left out",
        "last_hidden_state",
        "all layers are run: is a loop short by one, or hidden_states[-2] taken?",
        changed_params(lambda params: params._replace(layers=params.layers[:-1])),
    ),
    Mistake(
        "first layer left out",
        "query",
        "layers count from 0",
        changed_params(lambda params: params._replace(layers=params.layers[1:])),
    ),
    Mistake(
        "layers in reverse",
        "query",
        "layers run from 0 up; names sorted as text put 10 before 2",
        changed_params(lambda params: params._replace(layers=params.layers[::-1])),
    ),
    Mistake(
        "layers sorted as text",
        "query",
        "encoder.layer.10 comes after encoder.layer.9: sort by number",
        changed_params(
            lambda params: params._replace(
                layers=tuple(params.layers[index] for index in sorted(range(len(params.layers)), key=str))
            )
        ),
    ),
    Mistake(
        "the first layer's weights in every layer",
        "query",
        "each layer has its own weights",
        changed_params(lambda params: params._replace(layers=params.layers[:1] * len(params.layers))),
    ),
    # pooling
    Mistake("[CLS] for the average", "pooled", "E5 averages over the tokens", changed_pool(lambda x, n: x[0])),
    Mistake(
        "maximum for the average", "pooled", "E5 averages over the tokens", changed_pool(lambda x, n: x[:n].max(axis=0))
    ),
    Mistake("last token for the average", "pooled", "E5 averages over the tokens", changed_pool(lambda x, n: x[n - 1])),
    Mistake(
        "sum for the average",
        "pooled",
        "the sum is divided by the tokens",
        changed_pool(lambda x, n: x[:n].sum(axis=0)),
    ),
    Mistake(
        "divided by the padded length",
        "pooled",
        "the sum is divided by the number of real tokens",
        changed_pool(lambda x, n: x.mean(axis=0)),
    ),
    Mistake(
        "divided by the root of the length",
        "pooled",
        "the sum is divided by the number of real tokens",
        changed_pool(lambda x, n: x[:n].sum(axis=0) / math.sqrt(n)),
    ),
    Mistake(
        "[CLS] and [SEP] left out of the average",
        "pooled",
        "the average is over all real tokens, [CLS] and [SEP] included",
        changed_pool(lambda x, n: x[1 : n - 1].mean(axis=0) if n > 2 else x[:n].mean(axis=0)),
    ),
    Mistake(
        "padding averaged in",
        "pooled",
        "the average is over the real tokens: multiply by the attention mask",
        pool_padding,
    ),
    # the Dense layer
    *(
        Mistake(
            name,
            "dense",
            "the folder 2_Dense: weight, bias and activation, between pooling and normalisation",
            changed_function(dense=function),
        )
        for name, function in DENSE_MISTAKES.items()
    ),
    # normalisation
    Mistake(
        "not normalised",
        "normalized",
        "vectors are divided by their L2 norm",
        changed_function(l2_normalize=lambda x: x),
    ),
    Mistake(
        "L1 norm for L2",
        "normalized",
        "vectors are divided by their L2 norm",
        changed_function(l2_normalize=lambda x: x / np.abs(x).sum(axis=-1, keepdims=True)),
    ),
    Mistake(
        "maximum norm for L2",
        "normalized",
        "vectors are divided by their L2 norm",
        changed_function(l2_normalize=lambda x: x / np.abs(x).max(axis=-1, keepdims=True)),
    ),
    Mistake(
        "vectors centred before normalisation",
        "normalized",
        "vectors are divided by their L2 norm, and nothing else",
        changed_function(l2_normalize=lambda x: numpy_model.l2_normalize(x - x.mean(axis=-1, keepdims=True))),
    ),
]
