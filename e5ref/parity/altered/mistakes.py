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
    changed_layer,
    changed_mask,
    changed_params,
    changed_pool,
    changed_positions,
    merge_inside_out,
    merge_without_transposing,
    no_bias,
    no_norm_at,
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
    """A known mistake."""

    name: str  # the mistake in a few words
    point: str  # where it shows first: "embeddings", a point of a layer such as "query", "pooled", "normalized"
    check: str  # what to look at in the port
    change: Change  # makes the mistake in the reference


# What several mistakes ask to be checked.
OVER_THE_SUM = "LayerNorm is over the sum: LayerNorm(x + part(x))"
ORDER_OF_NORMS = "attention.output.LayerNorm comes first, output.LayerNorm second"
L2_NORM = "vectors are divided by their L2 norm"

# A mistake's name → what to look at in the port, and the change to the reference.
Named = dict[str, tuple[str, Change]]


def _of_projection(name: str) -> Named:
    """List the mistakes that show first in the query, the key or the value."""
    own = {
        f"no bias in {name}": (f"the bias of {name} is loaded and added", changed_affines(no_bias, name)),
        f"transposed {name} weight": (f"the weight of {name} is [out, in]: x Wᵀ", changed_affines(transposed, name)),
    }
    swaps = {
        f"{name} and {other} swapped": (f"the order of {name} and {other} in the fused weights", swapped(name, other))
        for other in LINEAR[LINEAR.index(name) + 1 : 3]
    }
    others = {
        f"{source}'s weights for {name}": ("each has its own weights", taken(name, source))
        for source in LINEAR[:3]
        if source != name
    }
    return own | swaps | others


# Point → the mistakes that show there first.
BY_POINT: dict[str, Named] = {
    "embeddings": {
        "no token-type embedding": (
            "row 0 of the token-type embedding is added to every token",
            changed_embeddings(lambda e: e._replace(token_type=np.zeros_like(e.token_type))),
        ),
        "token type 1": (
            "all tokens of an E5 text have token type 0",
            changed_embeddings(lambda e: e._replace(token_type=e.token_type[::-1])),
        ),
        "no position embedding": (
            "the position embedding is added",
            changed_embeddings(lambda e: e._replace(position=np.zeros_like(e.position))),
        ),
        **{
            f"positions off by {name}": (
                "BERT counts positions from 0; XLM-RoBERTa from the padding id + 1",
                changed_positions(shift),
            )
            for shift, name in ((1, "one"), (2, "two"), (-1, "minus one"))
        },
        "embeddings times √D": (
            "BERT does not scale its word embeddings",
            changed_embeddings(lambda e: e._replace(word=e.word * math.sqrt(e.word.shape[1]))),
        ),
        "no LayerNorm after the embeddings": (
            "the sum of the embeddings goes through a LayerNorm",
            no_norm_at("embeddings"),
        ),
        **{
            f"LayerNorm epsilon {eps:.0e}".replace("e-0", "e-"): (
                "the epsilon is layer_norm_eps of config.json",
                changed_config(layer_norm_eps=eps),
            )
            for eps in (1e-3, 1e-5, 1e-6, 1e-7, 1e-8, 1e-12)
        },
        "LayerNorm epsilon outside the root": (
            "LayerNorm divides by √(variance + epsilon)",
            changed_function(layer_norm=lambda x, w, b, eps: normed(x, outside=eps) * w + b),
        ),
        "LayerNorm variance over n - 1": (
            "LayerNorm's variance divides by n (torch.std and the like by n - 1)",
            changed_function(layer_norm=lambda x, w, b, eps: normed(x, inside=eps, less=1) * w + b),
        ),
        "LayerNorm without its mean (RMSNorm)": (
            "LayerNorm subtracts the mean first",
            changed_function(layer_norm=lambda x, w, b, eps: normed(x, mean=False, inside=eps) * w + b),
        ),
        "LayerNorm without its bias": (
            "LayerNorm's bias (beta) is loaded and added",
            changed_function(layer_norm=lambda x, w, b, eps: normed(x, inside=eps) * w),
        ),
        "LayerNorm without its weight": (
            "LayerNorm's weight (gamma) is loaded and multiplied",
            changed_function(layer_norm=lambda x, w, b, eps: normed(x, inside=eps) + b),
        ),
        "LayerNorm weight and bias swapped": (
            "gamma is the weight and beta the bias",
            changed_function(layer_norm=lambda x, w, b, eps: normed(x, inside=eps) * b + w),
        ),
    },
    "query": {
        "no bias in the linear layers": ("every linear layer of BERT has a bias", changed_affines(no_bias, *LINEAR)),
        "transposed weights": ("torch's weights are [out, in]: x Wᵀ", changed_affines(transposed, *LINEAR)),
        **_of_projection("query"),
        "LayerNorm before the layer's parts (pre-LayerNorm)": (
            "BERT is post-LayerNorm: LayerNorm(x + part(x))",
            changed_layer(before=True),
        ),
        "first layer left out": (
            "layers count from 0",
            changed_params(lambda params: params._replace(layers=params.layers[1:])),
        ),
        "layers in reverse": (
            "layers run from 0 up; names sorted as text put 10 before 2",
            changed_params(lambda params: params._replace(layers=params.layers[::-1])),
        ),
        "layers sorted as text": (
            "encoder.layer.10 comes after encoder.layer.9: sort by number",
            changed_params(
                lambda params: params._replace(
                    layers=tuple(params.layers[index] for index in sorted(range(len(params.layers)), key=str))
                )
            ),
        ),
        "the first layer's weights in every layer": (
            "each layer has its own weights",
            changed_params(lambda params: params._replace(layers=params.layers[:1] * len(params.layers))),
        ),
    },
    "key": _of_projection("key"),
    "value": _of_projection("value"),
    "attention_probabilities": {
        "no attention scale": ("scores are divided by √H before the softmax", changed_attention(scale=lambda _: 1.0)),
        "attention scale 1/√D": (
            "the scale comes from the head's size H, not from the hidden size D",
            changed_attention(scale=lambda config: 1 / math.sqrt(config.hidden_size)),
        ),
        "attention scale 1/H": (
            "scores are divided by the root of the head's size once; a fused kernel may do it a second time",
            changed_attention(scale=lambda config: 1 / config.head_size),
        ),
        "heads split inside out": (
            "[t, D] is reshaped to [t, N, H], heads first and their size second",
            changed_attention(split=split_inside_out, merge=merge_inside_out),
        ),
        "heads split without a transpose": (
            "[t, D] becomes [t, N, H] and then [N, t, H]; a reshape alone mixes tokens",
            changed_attention(split=split_without_transposing, merge=merge_without_transposing),
        ),
        "softmax over the queries": (
            "softmax runs over the keys: each query's probabilities sum to 1",
            changed_attention(softmax=lambda scores: plain_softmax(scores, -2)),
        ),
        "softmax without its divisor": (
            "softmax divides by the sum",
            changed_attention(softmax=lambda scores: np.exp(scores - scores.max(axis=-1, keepdims=True))),
        ),
        "causal mask": ("BERT attends both ways", changed_attention(causal=True)),
        "attention mask ignored": ("padding is masked out of the scores", changed_mask(0)),
        **{
            f"attention mask of {bias:g}": (
                "minus infinity is added to the scores of padding, or a number whose exp is 0",
                changed_mask(bias),
            )
            for bias in (-1.0, -5.0, -10.0)
        },
    },
    "context": {
        "key for value": ("the probabilities weigh the values", changed_attention(value="key")),
        "heads merged without a transpose": (
            "[N, t, H] becomes [t, N, H] and then [t, D]; a reshape alone mixes tokens",
            changed_attention(merge=merge_without_transposing),
        ),
        "heads merged inside out": (
            "heads stand side by side in the context; the H values of a head are adjacent",
            changed_attention(merge=merge_inside_out),
        ),
    },
    "attention_output": {
        "transposed attention_output weight": (
            "the weight of attention_output is [out, in]: x Wᵀ",
            changed_affines(transposed, "attention_output"),
        ),
        "no output projection": (
            "the context goes through the attention's output layer",
            changed_attention(project=False),
        ),
        "no bias in attention_output": (
            "the bias of the attention's output layer is added",
            changed_affines(no_bias, "attention_output"),
        ),
        "no residual around attention": (
            "the layer's input is added to the attention's output",
            changed_layer(residuals=("none", "attention")),
        ),
        "LayerNorm before the sums": (OVER_THE_SUM, changed_layer(norm_first=("attention_output", "output"))),
        "LayerNorm before the first sum": (OVER_THE_SUM, changed_layer(norm_first=("attention_output",))),
        "output_layer_norm for attention_layer_norm": (
            ORDER_OF_NORMS,
            taken("attention_layer_norm", "output_layer_norm"),
        ),
        "the two LayerNorms of a layer swapped": (ORDER_OF_NORMS, swapped("attention_layer_norm", "output_layer_norm")),
        "no LayerNorm after attention": (
            "the sum after attention goes through attention.output.LayerNorm",
            no_norm_at("attention_layer_norm"),
        ),
    },
    "feed_forward_activation": {
        "tanh GELU": (
            'hidden_act "gelu" is the erf form; tanh is "gelu_new" (and the default of jax.nn.gelu)',
            changed_function(gelu=tanh_gelu),
        ),
        "sigmoid GELU": (
            'hidden_act "gelu" is the erf form, not x σ(1.702 x)',
            changed_function(gelu=lambda x: x * sigmoid(1.702 * x)),
        ),
        "ReLU": ("the activation is GELU", changed_function(gelu=lambda x: np.maximum(x, 0))),
        "SiLU": ("the activation is GELU", changed_function(gelu=lambda x: x * sigmoid(x))),
        "no activation": ("GELU follows the first linear layer", changed_function(gelu=lambda x: x)),
        "no bias in feed_forward_up": (
            "the bias of intermediate.dense is added before GELU",
            changed_affines(no_bias, "feed_forward_up"),
        ),
    },
    "output": {
        "attention_layer_norm for output_layer_norm": (
            ORDER_OF_NORMS,
            taken("output_layer_norm", "attention_layer_norm"),
        ),
        "LayerNorm before the second sum": (OVER_THE_SUM, changed_layer(norm_first=("output",))),
        "no bias in feed_forward_down": (
            "the bias of output.dense is added",
            changed_affines(no_bias, "feed_forward_down"),
        ),
        "no residual around feed-forward": (
            "the attention's output is added to that of the feed-forward part",
            changed_layer(residuals=("input", "none")),
        ),
        "the layer's input as second residual": (
            "the second residual is the output of the attention part",
            changed_layer(residuals=("input", "input")),
        ),
        "no LayerNorm after feed-forward": (
            "the sum after feed-forward goes through output.LayerNorm",
            no_norm_at("output_layer_norm"),
        ),
    },
    "last_hidden_state": {
        "last layer left out": (
            "all layers are run: is a loop short by one, or hidden_states[-2] taken?",
            changed_params(lambda params: params._replace(layers=params.layers[:-1])),
        ),
    },
    "pooled": {
        "[CLS] for the average": ("E5 averages over the tokens", changed_pool(lambda x, n: x[0])),
        "maximum for the average": ("E5 averages over the tokens", changed_pool(lambda x, n: x[:n].max(axis=0))),
        "last token for the average": ("E5 averages over the tokens", changed_pool(lambda x, n: x[n - 1])),
        "sum for the average": ("the sum is divided by the tokens", changed_pool(lambda x, n: x[:n].sum(axis=0))),
        "divided by the padded length": (
            "the sum is divided by the number of real tokens",
            changed_pool(lambda x, n: x.mean(axis=0)),
        ),
        "divided by the root of the length": (
            "the sum is divided by the number of real tokens",
            changed_pool(lambda x, n: x[:n].sum(axis=0) / math.sqrt(n)),
        ),
        "[CLS] and [SEP] left out of the average": (
            "the average is over all real tokens, [CLS] and [SEP] included",
            changed_pool(lambda x, n: x[1 : n - 1].mean(axis=0) if n > 2 else x[:n].mean(axis=0)),
        ),
        "padding averaged in": ("the average is over the real tokens: multiply by the attention mask", pool_padding),
    },
    "dense": {
        name: (
            "the folder 2_Dense: weight, bias and activation, between pooling and normalisation",
            changed_function(dense=function),
        )
        for name, function in DENSE_MISTAKES.items()
    },
    "normalized": {
        "not normalised": (L2_NORM, changed_function(l2_normalize=lambda x: x)),
        "L1 norm for L2": (L2_NORM, changed_function(l2_normalize=lambda x: x / np.abs(x).sum(axis=-1, keepdims=True))),
        "maximum norm for L2": (
            L2_NORM,
            changed_function(l2_normalize=lambda x: x / np.abs(x).max(axis=-1, keepdims=True)),
        ),
        "vectors centred before normalisation": (
            "vectors are divided by their L2 norm, and nothing else",
            changed_function(l2_normalize=lambda x: numpy_model.l2_normalize(x - x.mean(axis=-1, keepdims=True))),
        ),
    },
}

MISTAKES = [
    Mistake(name, point, check, change) for point, named in BY_POINT.items() for name, (check, change) in named.items()
]
