"""Changes that put a mistake into the reference: each function makes one kind."""

import math
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np

from e5ref import numpy_model
from e5ref.checkpoint import Checkpoint
from e5ref.checkpoint.config import BertConfig
from e5ref.checkpoint.params import Affine, BertParams, Dense, Embeddings, Layer
from e5ref.operations import Array, Ids, Tap
from e5ref.operations.rows import rows_of, tokens_of
from e5ref.parity.altered.models import model_copy, padded_model

# A checkpoint → the forward pass to run, and the checkpoint to run it with.
Change = Callable[[Checkpoint], tuple[ModuleType, Checkpoint]]


def changed_function(**replacements: Any) -> Change:
    """Replace functions of `numpy_model`."""
    return lambda checkpoint: (model_copy(**replacements), checkpoint)


def changed_params(change: Callable[[BertParams], BertParams]) -> Change:
    """Change the weights."""
    return lambda checkpoint: (numpy_model, replace(checkpoint, params=change(checkpoint.params)))


def changed_layers(change: Callable[[Layer], Layer]) -> Change:
    """Change the weights of every layer."""
    return changed_params(lambda params: params._replace(layers=tuple(map(change, params.layers))))


def changed_embeddings(change: Callable[[Embeddings], Embeddings]) -> Change:
    """Change the weights of the embeddings."""
    return changed_params(lambda params: params._replace(embeddings=change(params.embeddings)))


def changed_config(**values: Any) -> Change:
    """Change constants of the configuration."""
    return lambda checkpoint: (numpy_model, replace(checkpoint, config=replace(checkpoint.config, **values)))


def changed_affines(change: Callable[[Affine], Affine], *names: str) -> Change:
    """Change the named linear layers or LayerNorms of every layer."""
    return changed_layers(lambda layer: layer._replace(**{name: change(getattr(layer, name)) for name in names}))


def no_bias(affine: Affine) -> Affine:
    """Return the layer with a bias of zeros."""
    return Affine(affine.weight, np.zeros_like(affine.bias))


def transposed(affine: Affine) -> Affine:
    """Return the layer with its weight transposed, if it is square."""
    square = affine.weight.shape[0] == affine.weight.shape[1]
    return Affine(affine.weight.T if square else affine.weight, affine.bias)


def swapped(one: str, other: str) -> Change:
    """Swap the weights of two parts of every layer."""
    return changed_layers(lambda layer: layer._replace(**{one: getattr(layer, other), other: getattr(layer, one)}))


def taken(place: str, source: str) -> Change:
    """Use the weights of `source` for `place` too, in every layer."""
    return changed_layers(lambda layer: layer._replace(**{place: getattr(layer, source)}))


LINEAR = ("query", "key", "value", "attention_output", "feed_forward_up", "feed_forward_down")


# LayerNorm


def normed(x: Array, *, mean: bool = True, outside: float = 0.0, inside: float = 0.0, less: int = 0) -> Array:
    """Normalise without weight and bias. `outside` and `inside` are epsilons; the variance divides by n - `less`."""
    centred = x - x.mean(axis=-1, keepdims=True) if mean else x
    variance = np.sum(centred**2, axis=-1, keepdims=True) / (x.shape[-1] - less)
    return centred / (np.sqrt(variance + inside) + outside)


def no_norm_at(name: str) -> Change:
    """Leave out one of the LayerNorms. It is recognised by its weights."""

    def change(checkpoint: Checkpoint) -> tuple[ModuleType, Checkpoint]:
        params = checkpoint.params
        layers = [getattr(layer, name) for layer in params.layers] if name != "embeddings" else []
        affines = layers or [params.embeddings.layer_norm]
        left_out = {id(affine.weight) for affine in affines}

        def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
            return x if id(weight) in left_out else numpy_model.layer_norm(x, weight, bias, eps)

        return model_copy(layer_norm=layer_norm), checkpoint

    return change


# Attention, one text at a time; heads are [N, t, H].


def _split(x: Array, config: BertConfig) -> Array:
    return x.reshape(len(x), config.num_attention_heads, config.head_size).transpose(1, 0, 2)


def split_inside_out(x: Array, config: BertConfig) -> Array:
    """Split the heads as if [t, D] were [t, H, N]. [t, D] -> [N, t, H]."""
    return x.reshape(len(x), config.head_size, config.num_attention_heads).transpose(2, 0, 1)


def split_without_transposing(x: Array, config: BertConfig) -> Array:
    """Split the heads by a reshape alone. [t, D] -> [N, t, H]."""
    return x.reshape(config.num_attention_heads, len(x), config.head_size)


def _merge(context: Array) -> Array:
    return context.transpose(1, 0, 2).reshape(context.shape[1], -1)


def merge_inside_out(context: Array) -> Array:
    """Merge the heads as [t, H, N]. [N, t, H] -> [t, D]."""
    return context.transpose(1, 2, 0).reshape(context.shape[1], -1)


def merge_without_transposing(context: Array) -> Array:
    """Merge the heads by a reshape alone. [N, t, H] -> [t, D]."""
    return context.reshape(context.shape[1], -1)


def plain_softmax(scores: Array, axis: int = -1) -> Array:
    """Softmax along an axis, by default the keys. [N, t, t] -> [N, t, t]."""
    exponents = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return exponents / exponents.sum(axis=axis, keepdims=True)


def changed_attention(
    *,
    split: Callable[[Array, BertConfig], Array] = _split,
    merge: Callable[[Array], Array] = _merge,
    scale: Callable[[BertConfig], float] = lambda config: 1 / math.sqrt(config.head_size),
    softmax: Callable[[Array], Array] = plain_softmax,
    causal: bool = False,
    value: str = "value",
    project: bool = True,
) -> Change:
    """Replace parts of self-attention."""

    def self_attention(
        params: Layer, hidden_states: Array, attention_mask: Ids, *, config: BertConfig, tap: Tap | None = None
    ) -> Array:
        points = {name: numpy_model.linear(hidden_states, *getattr(params, name)) for name in LINEAR[:3]}  # [R, D]
        tokens = {name: tokens_of(rows, attention_mask) for name, rows in points.items()}  # [tokens, D]
        context = np.empty_like(tokens["query"])
        texts, length = attention_mask.shape
        squares = np.zeros((texts, config.num_attention_heads, length, length), hidden_states.dtype)
        start = 0
        for text, mask in enumerate(attention_mask == 1):
            of_text = slice(start, start + int(mask.sum()))
            q, k, v = (split(tokens[name][of_text], config) for name in ("query", "key", value))
            scores = q @ k.swapaxes(-1, -2) * scale(config)  # [N, t, t]
            if causal:
                scores += np.triu(np.full(scores.shape[1:], -np.inf), 1)
            probabilities = softmax(scores)
            context[of_text] = merge(probabilities @ v)
            squares[text][:, np.outer(mask, mask)] = probabilities.reshape(len(probabilities), -1)
            start = of_text.stop
        for name, rows in points.items():
            numpy_model.record(tap, name, rows, attention_mask)
        if tap is not None:
            tap("attention_probabilities", squares)
        context = rows_of(context, attention_mask)
        numpy_model.record(tap, "context", context, attention_mask)
        return numpy_model.linear(context, *params.attention_output) if project else context

    return changed_function(self_attention=self_attention)


def changed_mask(bias: float) -> Change:
    """Compute padding too, and add `bias` to its scores."""
    return lambda checkpoint: (padded_model(bias), checkpoint)


# The layer


def changed_layer(
    *,
    before: bool = False,
    residuals: tuple[str, str] = ("input", "attention"),
    norm_first: tuple[str, ...] = (),
) -> Change:
    """Put LayerNorm `before` each part of the encoder layer, or change the residuals.

    At the points of `norm_first`, "attention_output" or "output", LayerNorm comes before the residual is added.
    """

    def encoder_layer(
        params: Layer, hidden_states: Array, attention_mask: Ids, *, config: BertConfig, tap: Tap | None = None
    ) -> Array:
        states = {"input": hidden_states, "none": np.zeros_like(hidden_states)}

        def norm(x: Array, affine: Affine) -> Array:
            return numpy_model.layer_norm(x.copy(), *affine, config.layer_norm_eps)

        def joined(point: str, x: Array, residual: str, affine: Affine) -> Array:
            if before:
                result = x + states[residual]
            elif point in norm_first:
                result = norm(x, affine) + states[residual]
            else:
                result = norm(x + states[residual], affine)
            numpy_model.record(tap, point, result, attention_mask)
            return result

        fed = norm(hidden_states, params.attention_layer_norm) if before else hidden_states
        attention = numpy_model.self_attention(params, fed, attention_mask, config=config, tap=tap)
        attention = joined("attention_output", attention, residuals[0], params.attention_layer_norm)
        states["attention"] = attention
        fed = norm(attention, params.output_layer_norm) if before else attention
        output = numpy_model.feed_forward(params, fed, attention_mask, tap=tap)
        return joined("output", output, residuals[1], params.output_layer_norm)

    return changed_function(encoder_layer=encoder_layer)


# Pooling


def changed_pool(function: Callable[[Array, int], Array]) -> Change:
    """Replace the pooling of a text: its states, [T, D] with padding last and 0, and its number of tokens -> [D]."""

    def average_pool(last_hidden_state: Array, attention_mask: Ids, _texts_per_row: int) -> Array:
        vectors = []
        for states, mask in zip(last_hidden_state, attention_mask, strict=True):
            ordered = np.concatenate([states[mask == 1], states[mask == 0]])
            vectors.append(function(ordered, int(mask.sum())))
        return np.stack(vectors)

    return lambda checkpoint: (model_copy(average_pool=average_pool, cls_pool=average_pool), checkpoint)


def pool_padding(checkpoint: Checkpoint) -> tuple[ModuleType, Checkpoint]:
    """Average over padding too, whose states are computed."""

    def average_pool(last_hidden_state: Array, _mask: Ids, _texts_per_row: int) -> Array:
        return np.asarray(last_hidden_state.mean(axis=1))

    return padded_model(average_pool=average_pool, cls_pool=average_pool), checkpoint


# Mistake → what is done instead of `dense`. [E, D] and [E], [B, D] -> [B, E], or [B, D] if it is left out.
DENSE_LEFT_OUT = "the Dense layer left out"
DENSE_MISTAKES: dict[str, Callable[[Dense, Array], Array]] = {
    DENSE_LEFT_OUT: lambda _, vectors: vectors,
    "no activation after the Dense layer": lambda dense, vectors: numpy_model.dense(Dense(*dense), vectors),
    "no bias in the Dense layer": lambda dense, vectors: numpy_model.dense(
        dense._replace(bias=np.zeros_like(dense.bias)), vectors
    ),
    "normalised before the Dense layer": lambda dense, vectors: numpy_model.dense(
        dense, numpy_model.l2_normalize(vectors)
    ),
}


def changed_positions(shift: int) -> Change:
    """Give each token the position embedding that stands `shift` places further."""
    return changed_embeddings(lambda e: e._replace(position=np.roll(e.position, -shift, axis=0)))


def tanh_gelu(x: Array, *, root: float = math.sqrt(2 / math.pi), cube: float = 0.044715) -> Array:
    """GELU's approximation by tanh, with its two constants: "gelu_new", and the default of jax.nn.gelu."""
    return np.asarray(0.5 * x * (1 + np.tanh(root * (x + cube * x * x * x))))


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x))."""
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -700, 700))))
