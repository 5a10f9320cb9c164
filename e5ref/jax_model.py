"""The forward pass of `numpy_model` in JAX: the same functions, names, order and signatures, for GPU and TPU.

Read `numpy_model` first; what is said there is not said again here. What differs:

- XLA compiles a program for each shape, so padding stays in the arrays and attention is masked. States at padding are
  computed and mean nothing; recorded arrays have 0 there, as in NumPy.
- The layers are scanned: XLA compiles one layer and loops, over weights stacked to [layers, …] (`stack_layers`).
- Weights may be of half precision (`round_matrices`). Then products take and give that dtype, adding up in float32,
  and so are the states between them; biases, sums, LayerNorm, softmax, GELU, pooling and norm are computed in float32.
- Linear layers and attention go to kernels of our own on the GPUs that there are some for (`jax_kernels`).
- The precision of float32 products is that of `jax.default_matmul_precision`, and where nobody has chosen one
  "highest": left to itself, JAX rounds the factors to 11 bits on recent NVIDIA cards and to 8 on TPUs.

Letters in shapes: B texts, T tokens of a padded row, D hidden size, N heads, H size of a head, F feed-forward size.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.backend import get_backend

from e5ref.batching import check_batch
from e5ref.config import BertConfig
from e5ref.params import Affine, BertParams, Embeddings, Layer

Array = jax.Array
Tap = Callable[[str, Array], None]  # gets (name, array) at every named point

HALF = (jnp.bfloat16, jnp.float16)

# Tokens of a padded row from which on attention takes lengths on NVIDIA, in a kernel of ours or of cuDNN.
LENGTHS_FROM_TOKENS = 64

# Attention scores of a batch from which on a CPU takes one text at a time, so that a text's scores stay in the cache.
CPU_SCORES = 3 << 20


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
    # 1 + erf is quicker than erfc, which that takes, and off by up to 6e-7 below zero: half precision rounds off more.
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def embed_tokens(params: Embeddings, input_ids: Array, attention_mask: Array, *, config: BertConfig) -> Array:
    """Token, position and token-type embedding, summed and normalised. [B, T], [B, T] -> [B, T, D]."""
    positions = jnp.arange(input_ids.shape[1])  # [T]
    if config.position_offset:
        is_token = input_ids != config.pad_token_id
        positions = jnp.cumsum(is_token, axis=1) * is_token + config.pad_token_id  # [B, T]

    embeddings = widen(params.word[input_ids]) + widen(params.token_type[0])  # [B, T, D] + [D] -> [B, T, D]
    embeddings += widen(params.position[positions])
    return layer_norm(embeddings, *params.layer_norm, config.layer_norm_eps).astype(params.word.dtype)


def self_attention(
    params: Layer, hidden_states: Array, attention_mask: Array, *, config: BertConfig, tap: Tap | None = None
) -> Array:
    """Multi-head self-attention: softmax(Q Kᵀ / √H) V, heads side by side, times W_O. [B, T, D] -> [B, T, D]."""
    query, key, value = linear_layers(hidden_states, params.query, params.key, params.value)  # [B, T, D] each

    def heads(x: Array) -> Array:  # [B, T, D] -> [B, N, T, H]
        return x.reshape(*x.shape[:2], config.num_attention_heads, config.head_size).transpose(0, 2, 1, 3)

    inputs = heads(query), heads(key), heads(value), attention_mask == 1
    if tap is None:
        context = fast_attention(*inputs)  # [B, N, T, H]
    else:
        context, probabilities = dot_product_attention(*inputs)  # [B, N, T, H], [B, N, T, T]
    context = context.transpose(0, 2, 1, 3).reshape(query.shape)  # [B, N, T, H] -> [B, T, D]

    record(tap, "query", query, attention_mask)
    record(tap, "key", key, attention_mask)
    record(tap, "value", value, attention_mask)
    if tap is not None:
        is_token = attention_mask[:, None, :, None] == 1  # [B, 1, T, 1]
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
        attention_mask: [B, T], 1 for a real token and 0 for padding. In half precision on NVIDIA, padding must stand on
            the right: a text where it does not gets NaN.
        config: the sizes and constants.
        tap: called as `tap(name, array)` at every named point, with the names, shapes and order of
            `numpy_model.forward`. Under `jax.jit` it must keep what it gets for the caller to return.

    Returns:
        The last hidden states, [B, T, D], in the dtype of the weights' matrices; 0 where there is padding.

    Raises:
        ValueError: as `numpy_model.forward`, but under `jax.jit`, where values are not known yet: there an id outside
            the vocabulary is taken for the nearest inside. Also for float64 weights where JAX is not set to keep them.
    """
    if not isinstance(input_ids, jax.core.Tracer):
        check_batch(np.asarray(input_ids), np.asarray(attention_mask), config)
    if params.embeddings.word.dtype == np.float64 and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise ValueError("the weights are float64, which JAX would make float32; run this under jax.enable_x64(True)")
    embeddings, layers = jax.tree.map(jnp.asarray, stack_layers(params))
    input_ids, attention_mask = jnp.asarray(input_ids), jnp.asarray(attention_mask)

    hidden_states = embed_tokens(embeddings, input_ids, attention_mask, config=config)  # [B, T, D]
    record(tap, "embeddings", hidden_states, attention_mask)
    if tap is None and takes_lengths(hidden_states.dtype, hidden_states.shape[1], config.head_size):
        # Where a text's tokens are not the first of its row, all becomes NaN.
        count = attention_mask.sum(axis=1, keepdims=True)  # [B, 1]
        is_first = (attention_mask <= (jnp.arange(attention_mask.shape[1]) < count)).all(axis=1)  # [B]
        hidden_states = jnp.where(is_first[:, None, None], hidden_states, jnp.nan)

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
    return jnp.where(attention_mask[..., None] == 1, hidden_states, 0)


def average_pool(last_hidden_state: Array, attention_mask: Array) -> Array:
    """Average the hidden states of the real tokens, in float32 at least. [B, T, D], [B, T] -> [B, D].

    A row of padding alone gives 0.
    """
    states = jnp.where(attention_mask[..., None] == 1, widen(last_hidden_state), 0)  # [B, T, D]
    counts = jnp.maximum(attention_mask.sum(axis=1, keepdims=True), 1)  # [B, 1]
    return states.sum(axis=1) / counts


def cls_pool(last_hidden_state: Array, attention_mask: Array) -> Array:
    """Take the hidden state of the first real token, [CLS]. [B, T, D], [B, T] -> [B, D]."""
    return widen(last_hidden_state)[jnp.arange(len(attention_mask)), attention_mask.argmax(axis=1)]


def l2_normalize(vectors: Array) -> Array:
    """Scale each vector to unit L2 norm: x / max(‖x‖, 1e-12). [B, D] -> [B, D]."""
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
    tap: Tap | None = None,
) -> Array:
    """Token ids in, vectors out: `forward`, pooled and normalised. `compiled_embed` is this under `jax.jit`.

    Args:
        params: as in `forward`.
        input_ids: token ids, [B, T].
        attention_mask: [B, T], 1 for a real token and 0 for padding.
        config: the sizes and constants.
        pooling: "mean" (E5) or "cls".
        normalize: whether to scale the vectors to unit L2 norm (E5 does).
        tap: as in `forward`; also gets "pooled" [B, D] and, if it is computed, "normalized" [B, D].

    Returns:
        The vectors, [B, D]: float32, or float64 where the weights are.

    Raises:
        ValueError: an unknown pooling, and as `forward`.
    """
    if pooling not in ("mean", "cls"):
        raise ValueError(f"pooling is {pooling!r}, but must be 'mean' or 'cls'")
    last_hidden_state = forward(params, input_ids, attention_mask, config=config, tap=tap)  # [B, T, D]
    pool = average_pool if pooling == "mean" else cls_pool
    vectors = pool(last_hidden_state, jnp.asarray(attention_mask))  # [B, D]
    if tap is not None:
        tap("pooled", vectors)
    if normalize:
        vectors = l2_normalize(vectors)
        if tap is not None:
            tap("normalized", vectors)
    return vectors


def record(tap: Tap | None, name: str, array: Array, attention_mask: Array) -> None:
    """Give `tap`, if there is one, a named array [B, T, n] with 0 at padding."""
    if tap is not None:
        tap(name, jnp.where(attention_mask[..., None] == 1, array, 0))


def widen(x: Array) -> Array:
    """Make half precision float32; leave float32 and float64."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def matmul(a: Array, b: Array, dtype: jnp.dtype | None = None) -> Array:
    """Multiply at the precision of `jax.default_matmul_precision`, or "highest". The result is of `dtype`, or as a."""
    precision = jax.config.jax_default_matmul_precision or "highest"  # type: ignore[attr-defined]
    return jnp.matmul(a, b, precision=precision, preferred_element_type=dtype)


def is_hopper() -> bool:
    """Say whether this runs on the GPUs that `jax_kernels` is written for, of compute capability 9.0."""
    device = jax.config.jax_default_device or jax.local_devices()[0]  # type: ignore[attr-defined]
    return getattr(device, "compute_capability", None) == "9.0"


def linear_layers(x: Array, *layers: Affine, with_gelu: bool = False) -> Sequence[Array]:
    """Apply several linear layers to one input, or GELU after them, in the way that is fastest where this runs.

    [..., in], ([out, in], [out]) for each -> [..., out] for each.
    """

    def plain(x: Array, layers: Sequence[Affine]) -> list[Array]:
        results = [linear(x, *layer) for layer in layers]
        return [gelu(result) for result in results] if with_gelu else results

    rows, outputs = math.prod(x.shape[:-1]), {len(bias) for _, bias in layers}
    fits = rows > 0 and rows % 128 == 0 and x.shape[-1] % 64 == 0 and len(outputs) == 1 and max(outputs) % 128 == 0
    if is_hopper() and x.dtype in HALF and fits:
        from e5ref import jax_kernels

        return differentiated_as(plain, partial(jax_kernels.linear_layers, with_gelu=with_gelu))(x, layers)
    return plain(x, layers)


def differentiated_as(plain: Callable[..., Any], kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Return `kernel`, for whose derivatives JAX takes those of `plain`, which computes the same."""
    function = jax.custom_jvp(kernel)
    function.defjvp(partial(jax.jvp, plain))
    return function


def dot_product_attention(query: Array, key: Array, value: Array, is_token: Array) -> tuple[Array, Array]:
    """Compute softmax(Q Kᵀ / √H) V, in the plain form, and the softmax itself.

    [B, N, T, H] three times, [B, T] -> [B, N, T, H], [B, N, T, T]. The softmax's division comes after the product with
    the values, where it is one of H numbers a row instead of T.
    """
    # [B, N, T, H] @ [B, N, H, T] -> [B, N, T, T]
    scores = matmul(query, key.swapaxes(-1, -2), dtype=jnp.promote_types(query.dtype, jnp.float32))
    scores *= 1 / math.sqrt(query.shape[-1])
    # Not minus infinity: a row of padding alone must not become 0/0.
    scores += jnp.where(is_token, 0, np.finfo(np.float32).min)[:, None, None, :]  # [B, T] -> [B, 1, 1, T]
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))  # [B, N, T, T]
    totals = weights.sum(axis=-1, keepdims=True)  # [B, N, T, 1]
    context = widen(matmul(weights.astype(value.dtype), value)) / totals  # [B, N, T, T] @ [B, N, T, H] -> [B, N, T, H]
    return context.astype(value.dtype), weights / totals


def takes_lengths(dtype: jnp.dtype, tokens: int, head_size: int) -> bool:
    """Say whether `fast_attention` takes lengths for a mask: on NVIDIA, in half precision, from 64 tokens a row on."""
    is_nvidia = "cuda" in get_backend().platform_version.lower()
    return is_nvidia and dtype in HALF and tokens >= LENGTHS_FROM_TOKENS and head_size % 8 == 0


def fast_attention(query: Array, key: Array, value: Array, is_token: Array) -> Array:
    """Do what `dot_product_attention` does in the way that is fastest where this runs. -> [B, N, T, H].

    Where it `takes_lengths`, a text's tokens must be the first of its row; `forward` sees to that.
    """
    texts, heads, tokens, head_size = query.shape
    has_kernel = is_hopper() and tokens <= 512 and tokens % 8 == 0 and head_size in (32, 64)

    def plain(*inputs: Array) -> Array:
        return dot_product_attention(*inputs)[0]

    def told_lengths(query: Array, key: Array, value: Array, is_token: Array) -> Array:
        # One kernel that keeps the scores out of memory. A mask would cost it a number for each pair of tokens, so it
        # gets the number of each text's tokens, one at least.
        lengths = jnp.maximum(is_token.sum(axis=1, dtype=jnp.int32), 1)  # [B]
        query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))  # [B, T, N, H]
        if has_kernel:
            from e5ref import jax_kernels

            context = jax_kernels.attention(query, key, value, lengths)
        else:
            context = jax.nn.dot_product_attention(
                query, key, value, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="cudnn"
            )
        return context.transpose(0, 2, 1, 3)

    if takes_lengths(query.dtype, tokens, head_size):
        attend_to_first = differentiated_as(plain, told_lengths) if has_kernel else told_lengths
        return attend_to_first(query, key, value, is_token)
    if jax.default_backend() != "cpu" or texts * heads * tokens**2 <= CPU_SCORES:
        return plain(query, key, value, is_token)

    def attend(text: tuple[Array, ...]) -> Array:  # [N, T, H] three times, [T] -> [N, T, H]
        return plain(*(x[None] for x in text))[0]

    return jax.lax.map(attend, (query, key, value, is_token))


def stack_layers(params: BertParams) -> BertParams:
    """Stack the layers' weights, [...] each, to [layers, ...], for `jax.lax.scan`; what is stacked stays as it is."""
    if isinstance(params.layers, Layer):
        return params
    return params._replace(layers=jax.tree.map(lambda *leaves: jnp.stack(leaves), *params.layers))


def round_matrices(params: BertParams, dtype: str) -> BertParams:
    """Round all weights of two dimensions to `dtype`; biases and LayerNorms keep theirs. Before `stack_layers`."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim == 2 else leaf, params)


compiled_embed = jax.jit(embed, static_argnames=("config", "pooling", "normalize"))
