"""The forward pass of `numpy_model` in JAX: the same functions, names, order and signatures, for GPU and TPU.

Read `numpy_model` first; what is said there is not said again here. What differs:

- XLA compiles a program for each shape, so padding stays in the arrays and attention is masked. States at padding are
  computed and mean nothing; recorded arrays have 0 there, as in NumPy.
- The layers are scanned: XLA compiles one layer and loops, over weights stacked to [layers, …] (`stack_layers`).
- Weights may be of half precision (`round_matrices`). Then products take and give that dtype, adding up in float32,
  and the states between them have it too. Biases, sums, LayerNorm, softmax, GELU, pooling and norm are computed in
  float32.
- Linear layers and attention may be computed in a way that suits the device better (`jax_ops`).
- The precision of float32 products is that of `jax.default_matmul_precision`, or "highest" if nobody has chosen one:
  left to itself, JAX rounds the factors to 11 bits on recent NVIDIA cards and to 8 on TPUs.

Letters in shapes: B rows, T tokens of a row, K texts of a row, D hidden size, N heads, H size of a head, F feed-forward
size, E numbers of a vector.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from e5ref.checkpoint.config import BertConfig
from e5ref.checkpoint.params import Affine, BertParams, Dense, Embeddings, Layer, TanhDense
from e5ref.operations import jax_ops
from e5ref.operations.jax_ops import matmul, widen
from e5ref.operations.rows import check_batch, check_texts_per_row

Array = jax.Array
Tap = Callable[[str, Array], None]  # gets (name, array) at every named point


def linear(x: Array, weight: Array, bias: Array) -> Array:
    """A linear layer, x Wᵀ + b. [..., in], [out, in], [out] -> [..., out]."""
    return (matmul(x, weight.T) + bias).astype(x.dtype)


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Layer normalisation of each row, in float32 at least. [..., D], [D], [D] -> [..., D]."""
    wide = widen(x)
    centred = wide - wide.mean(axis=-1, keepdims=True)  # [..., D]
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)  # [..., 1]
    return (centred / jnp.sqrt(variance + eps) * weight + bias).astype(x.dtype)


def gelu(x: Array) -> Array:
    """GELU in its erf form, in float32 at least. [..., n] -> [..., n]."""
    wide = widen(x)
    if x.dtype == wide.dtype:
        return jax.nn.gelu(x, approximate=False)
    # `jax.nn.gelu` takes erfc. 1 + erf is quicker, and off by up to 6e-7 below zero: half precision rounds off more.
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def embed_tokens(params: Embeddings, input_ids: Array, attention_mask: Array, *, config: BertConfig) -> Array:
    """Token, position and token-type embedding, summed and normalised. [B, T], [B, T] -> [B, T, D]."""
    reached = jax.lax.cummax(attention_mask, axis=1)  # [B, T]
    begins = (reached > 1) & (jnp.diff(reached, axis=1, prepend=0) > 0)  # [B, T]
    starts = jax.lax.cummax(jnp.where(begins, jnp.arange(input_ids.shape[1]), 0), axis=1)  # [B, T]
    positions = jnp.arange(input_ids.shape[1]) - starts  # [B, T]
    if config.position_offset:
        is_token = input_ids != config.pad_token_id
        counts = jnp.cumsum(is_token, axis=1)  # [B, T]
        counts -= jnp.take_along_axis(counts - is_token, starts, axis=1)
        positions = counts * is_token + config.pad_token_id

    embeddings = widen(params.word[input_ids]) + widen(params.token_type[0])  # [B, T, D] + [D] -> [B, T, D]
    embeddings += widen(params.position[positions])
    return layer_norm(embeddings, *params.layer_norm, config.layer_norm_eps).astype(params.word.dtype)


def self_attention(
    params: Layer, hidden_states: Array, attention_mask: Array, *, config: BertConfig, tap: Tap | None = None
) -> Array:
    """Multi-head self-attention: softmax(Q Kᵀ / √H) V, heads side by side, times W_O. [B, T, D] -> [B, T, D]."""
    query, key, value = linear_layers(hidden_states, params.query, params.key, params.value)  # [B, T, D] each

    def heads(x: Array) -> Array:  # [B, T, D] -> [B, T, N, H]
        return x.reshape(*x.shape[:2], config.num_attention_heads, config.head_size)

    inputs = heads(query), heads(key), heads(value), attention_mask
    if tap is None:
        context = jax_ops.attention(lambda *inputs: dot_product_attention(*inputs)[0], *inputs)  # [B, T, N, H]
    else:
        context, probabilities = dot_product_attention(*inputs)  # [B, T, N, H], [B, N, T, T]
    context = context.reshape(query.shape)  # [B, T, N, H] -> [B, T, D]

    record(tap, "query", query, attention_mask)
    record(tap, "key", key, attention_mask)
    record(tap, "value", value, attention_mask)
    if tap is not None:
        is_token = attention_mask[:, None, :, None] > 0  # [B, 1, T, 1]
        tap("attention_probabilities", jnp.where(is_token, probabilities, 0))
    record(tap, "context", context, attention_mask)
    return linear(context, *params.attention_output)


def feed_forward(params: Layer, hidden_states: Array, attention_mask: Array, *, tap: Tap | None = None) -> Array:
    """The position-wise feed-forward network, with GELU for ReLU. [B, T, D] -> [B, T, F] -> [B, T, D]."""
    (activation,) = linear_layers(hidden_states, params.feed_forward_up, with_gelu=True)  # [B, T, F]
    record(tap, "feed_forward_activation", activation, attention_mask)
    return linear(activation, *params.feed_forward_down)


def encoder_layer(
    params: Layer, hidden_states: Array, attention_mask: Array, *, config: BertConfig, tap: Tap | None = None
) -> Array:
    """Self-attention, then feed-forward; LayerNorm(x + Sublayer(x)) after each. [B, T, D] -> [B, T, D]."""
    dtype = hidden_states.dtype
    attention = self_attention(params, hidden_states, attention_mask, config=config, tap=tap)
    attention = widen(attention) + widen(hidden_states)
    attention = layer_norm(attention, *params.attention_layer_norm, config.layer_norm_eps).astype(dtype)
    record(tap, "attention_output", attention, attention_mask)

    output = feed_forward(params, attention, attention_mask, tap=tap)
    output = widen(output) + widen(attention)
    output = layer_norm(output, *params.output_layer_norm, config.layer_norm_eps).astype(dtype)
    record(tap, "output", output, attention_mask)
    return output


def forward(
    params: BertParams, input_ids: Array, attention_mask: Array, *, config: BertConfig, tap: Tap | None = None
) -> Array:
    """Run the encoder: what `transformers` calls `BertModel(...).last_hidden_state`.

    Args:
        params: the weights, of NumPy or JAX; layers as a tuple, or stacked beforehand by `stack_layers`.
        input_ids: token ids, [B, T], any integer dtype.
        attention_mask: [B, T], as in `numpy_model.forward`.
        config: the sizes and constants.
        tap: called as `tap(name, array)` at every named point, with the names, shapes and order of
            `numpy_model.forward`. Under `jax.jit` it must keep what it gets for the caller to return.

    Returns:
        The last hidden states, [B, T, D], in the dtype of the weights' matrices; 0 at padding.

    Raises:
        ValueError: as `numpy_model.forward`, and for float64 weights if JAX is not set to keep them. Under `jax.jit`,
            values are not known yet: an id outside the vocabulary is taken for the nearest one inside.
    """
    if not isinstance(input_ids, jax.core.Tracer):
        check_batch(np.asarray(input_ids), np.asarray(attention_mask), config)
    if params.embeddings.word.dtype == np.float64 and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise ValueError("the weights are float64, which JAX would make float32; run this under jax.enable_x64(True)")
    embeddings, layers = jax.tree.map(jnp.asarray, stack_layers(params)[:2])
    input_ids, attention_mask = jnp.asarray(input_ids), jnp.asarray(attention_mask, jnp.int32)

    hidden_states = embed_tokens(embeddings, input_ids, attention_mask, config=config)  # [B, T, D]
    record(tap, "embeddings", hidden_states, attention_mask)

    def step(hidden_states: Array, layer: Layer) -> tuple[Array, OrderedDict[str, Array]]:
        points: OrderedDict[str, Array] = OrderedDict()  # JAX sorts the names of a plain dict
        layer_tap = None if tap is None else points.__setitem__
        return encoder_layer(layer, hidden_states, attention_mask, config=config, tap=layer_tap), points

    hidden_states, points = jax.lax.scan(step, hidden_states, layers)  # points: name -> [layers, B, ...]
    if tap is not None:
        for index in range(config.num_hidden_layers):
            for name, array in points.items():
                tap(f"layers.{index}.{name}", array[index])
    record(tap, "last_hidden_state", hidden_states, attention_mask)
    return jnp.where(attention_mask[..., None] > 0, hidden_states, 0)


def average_pool(last_hidden_state: Array, attention_mask: Array, texts_per_row: int = 1) -> Array:
    """Average the hidden states of each text's tokens, in float32 at least. [B, T, D], [B, T] -> [B · K, D]."""
    is_of_text = texts_of(attention_mask, texts_per_row)  # [B, K, T]
    states = jnp.where(attention_mask[..., None] > 0, widen(last_hidden_state), 0)  # [B, T, D]
    # [B, K, T] @ [B, T, D] -> [B, K, D]
    sums = jnp.matmul(is_of_text.astype(states.dtype), states, precision="highest")
    counts = jnp.maximum(is_of_text.sum(axis=2, keepdims=True), 1)  # [B, K, 1]
    return (sums / counts).reshape(-1, states.shape[-1])


def cls_pool(last_hidden_state: Array, attention_mask: Array, texts_per_row: int = 1) -> Array:
    """Take the hidden state of each text's first token, [CLS]. [B, T, D], [B, T] -> [B · K, D]."""
    is_of_text = texts_of(attention_mask, texts_per_row)  # [B, K, T]
    rows = jnp.arange(len(attention_mask)).repeat(texts_per_row)  # [B · K]
    return widen(last_hidden_state)[rows, is_of_text.argmax(axis=2).ravel()]


def dense(params: Dense, vectors: Array) -> Array:
    """Apply the linear layer after pooling, and its activation, in float32 at least. [B, D] -> [B, E]."""
    vectors = linear(vectors, *params)
    return jnp.tanh(vectors) if isinstance(params, TanhDense) else vectors


def l2_normalize(vectors: Array) -> Array:
    """Scale each vector to unit L2 norm: x / max(‖x‖, 1e-12). [B, E] -> [B, E]."""
    # The bound is taken before the root, whose gradient at 0 is infinite.
    squares = jnp.sum(vectors * vectors, axis=-1, keepdims=True)  # [B, 1]
    return vectors / jnp.sqrt(jnp.maximum(squares, 1e-24))


def embed(
    params: BertParams,
    input_ids: Array,
    attention_mask: Array,
    *,
    config: BertConfig,
    pooling: str = "mean",
    normalize: bool = True,
    texts_per_row: int = 1,
    tap: Tap | None = None,
) -> Array:
    """Token ids in, vectors out, as `numpy_model.embed`. `compiled_embed` is this under `jax.jit`.

    Args:
        params: as in `forward`.
        input_ids: token ids, [B, T].
        attention_mask: [B, T], as in `forward`.
        config: the sizes and constants.
        pooling: "mean" (E5) or "cls".
        normalize: whether to scale the vectors to unit L2 norm (E5 does).
        texts_per_row: K, the most texts of a row.
        tap: as in `forward`; also gets "pooled" [B · K, D] and, if computed, "dense" and "normalized" [B · K, E].

    Returns:
        The vectors, [B · K, E]: float32, or float64 if the weights are. The k-th text of row b is at b · K + k - 1.

    Raises:
        ValueError: an unknown pooling, more texts in a row than said, and as `forward`. Under `jax.jit`, texts beyond
            `texts_per_row` are left out.
    """
    if pooling not in ("mean", "cls"):
        raise ValueError(f"pooling is {pooling!r}, but must be 'mean' or 'cls'")
    last_hidden_state = forward(params, input_ids, attention_mask, config=config, tap=tap)  # [B, T, D]
    pool = average_pool if pooling == "mean" else cls_pool
    vectors = pool(last_hidden_state, jnp.asarray(attention_mask), texts_per_row)  # [B · K, D]
    record(tap, "pooled", vectors)
    if params.dense:
        vectors = dense(params.dense, vectors)
        record(tap, "dense", vectors)
    if normalize:
        vectors = l2_normalize(vectors)
        record(tap, "normalized", vectors)
    return vectors


def record(tap: Tap | None, name: str, array: Array, attention_mask: Array | None = None) -> None:
    """Give `tap`, if there is one, a named array; one that comes with its mask, [B, T, n], has 0 at padding."""
    if tap is not None:
        tap(name, array if attention_mask is None else jnp.where(attention_mask[..., None] > 0, array, 0))


def texts_of(attention_mask: Array, texts_per_row: int) -> Array:
    """Say which tokens are whose, for pooling. [B, T] -> [B, K, T]."""
    if not isinstance(attention_mask, jax.core.Tracer):
        check_texts_per_row(np.asarray(attention_mask), texts_per_row)
    return attention_mask[:, None] == jnp.arange(1, texts_per_row + 1)[:, None]


def linear_layers(x: Array, *layers: Affine, with_gelu: bool = False) -> Sequence[Array]:
    """Apply several linear layers to one input, or GELU after them.

    [..., in], ([out, in], [out]) for each -> [..., out] for each.
    """

    def plain(x: Array, layers: Sequence[Affine]) -> list[Array]:
        results = [linear(x, *layer) for layer in layers]
        return [gelu(result) for result in results] if with_gelu else results

    return jax_ops.linear_layers(plain, x, layers, with_gelu=with_gelu)


def dot_product_attention(query: Array, key: Array, value: Array, attention_mask: Array) -> tuple[Array, Array]:
    """Compute softmax(Q Kᵀ / √H) V among the tokens of each text, and the softmax itself.

    [B, T, N, H] three times, [B, T] -> [B, T, N, H], [B, N, T, T]. The softmax's division comes after the product with
    the values: there a row has H numbers instead of T.
    """
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))  # [B, N, T, H]
    # [B, N, T, H] @ [B, N, H, T] -> [B, N, T, T]
    scores = matmul(query, key.swapaxes(-1, -2), dtype=jnp.promote_types(query.dtype, jnp.float32))
    scores *= 1 / math.sqrt(query.shape[-1])
    is_seen = attention_mask[:, :, None] == attention_mask[:, None]  # [B, T, T]
    scores += jnp.where(is_seen, 0, np.finfo(np.float32).min)[:, None]  # [B, T, T] -> [B, 1, T, T]
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))  # [B, N, T, T]
    totals = weights.sum(axis=-1, keepdims=True)  # [B, N, T, 1]
    context = widen(matmul(weights.astype(value.dtype), value)) / totals  # [B, N, T, T] @ [B, N, T, H] -> [B, N, T, H]
    return context.astype(value.dtype).transpose(0, 2, 1, 3), weights / totals


def stack_layers(params: BertParams) -> BertParams:
    """Stack the layers' weights, [...] each, to [layers, ...], for `jax.lax.scan`; what is stacked stays as it is."""
    if isinstance(params.layers, Layer):
        return params
    return params._replace(layers=jax.tree.map(lambda *leaves: jnp.stack(leaves), *params.layers))


def round_matrices(params: BertParams, dtype: str) -> BertParams:
    """Round all weights of two dimensions to `dtype`; biases and LayerNorms keep theirs. Before `stack_layers`."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim == 2 else leaf, params)


compiled_embed = jax.jit(embed, static_argnames=("config", "pooling", "normalize", "texts_per_row"))
