"""What the JAX twin leaves to the device: the same results, computed as is fastest there.

Each function gets its plain form, which `jax_model` defines. It runs that, or an equivalent: a kernel of `jax_kernels`
on Hopper GPUs, cuDNN's attention on the rest of NVIDIA's, attention text by text on a CPU.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.backend import get_backend

from e5ref.checkpoint.params import Affine

Array = jax.Array

HALF = (jnp.bfloat16, jnp.float16)

# Rows of at least this many tokens go to an attention kernel, ours or cuDNN's.
KERNEL_FROM_TOKENS = 64

# On a CPU, attention takes rows of up to CPU_ROW tokens whole, and cuts longer ones into pieces. All texts that start
# within one block of CPU_BLOCK tokens are one piece. It is padded to one of CPU_LENGTHS. Pieces of about CPU_GROUP
# tokens in all are computed at a time.
CPU_ROW, CPU_BLOCK = 256, 32
CPU_LENGTHS = (64, 96, 128, 192, 256, 384, 512)
CPU_GROUP = 256


def is_hopper() -> bool:
    """Say whether this runs on the GPUs that `jax_kernels` is written for, of compute capability 9.0."""
    device = jax.config.jax_default_device or jax.local_devices()[0]  # type: ignore[attr-defined]
    return getattr(device, "compute_capability", None) == "9.0"


def is_nvidia() -> bool:
    """Say whether this runs on an NVIDIA GPU."""
    return "cuda" in get_backend().platform_version.lower()


def matmul(a: Array, b: Array, dtype: jnp.dtype | None = None) -> Array:
    """Multiply at the precision of `jax.default_matmul_precision`, or "highest". The result is of `dtype`, or as a."""
    precision = jax.config.jax_default_matmul_precision or "highest"  # type: ignore[attr-defined]
    return jnp.matmul(a, b, precision=precision, preferred_element_type=dtype)


def widen(x: Array) -> Array:
    """Make half precision float32; leave float32 and float64."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def linear_layers(
    plain: Callable[[Array, Sequence[Affine]], list[Array]], x: Array, layers: Sequence[Affine], *, with_gelu: bool
) -> list[Array]:
    """Apply several linear layers to one input, or GELU after them.

    [..., in], ([out, in], [out]) for each -> [..., out] for each.
    """
    rows, outputs = math.prod(x.shape[:-1]), {len(bias) for _, bias in layers}
    fits = rows > 0 and rows % 128 == 0 and x.shape[-1] % 64 == 0 and len(outputs) == 1 and max(outputs) % 128 == 0
    if is_hopper() and x.dtype in HALF and fits:
        from e5ref.operations import jax_kernels

        return differentiated_as(plain, partial(jax_kernels.linear_layers, with_gelu=with_gelu))(x, layers)
    return plain(x, layers)


def attention(plain: Callable[..., Array], query: Array, key: Array, value: Array, attention_mask: Array) -> Array:
    """Compute softmax(Q Kᵀ / √H) V among the tokens of each text.

    [B, T, N, H] three times, [B, T] -> [B, T, N, H]. Tokens see those of the same row and the same number.
    """
    _, tokens, _, head_size = query.shape
    if query.dtype in HALF and tokens >= KERNEL_FROM_TOKENS and head_size % 8 == 0 and is_nvidia():
        if is_hopper() and tokens <= 512 and tokens % 8 == 0 and head_size in (32, 64):
            from e5ref.operations import jax_kernels

            return differentiated_as(plain, jax_kernels.attention)(query, key, value, attention_mask)
        mask = (attention_mask[:, :, None] == attention_mask[:, None])[:, None]  # [B, 1, T, T]
        return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="cudnn")
    if jax.default_backend() == "cpu" and tokens > CPU_ROW:
        return differentiated_as(plain, partial(attention_in_pieces, plain))(query, key, value, attention_mask)
    return plain(query, key, value, attention_mask)


def differentiated_as(plain: Callable[..., Any], kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Return `kernel`, for whose derivatives JAX takes those of `plain`, which computes the same."""
    function = jax.custom_jvp(kernel)
    function.defjvp(partial(jax.jvp, plain))
    return function


def attention_in_pieces(
    plain: Callable[..., Array], query: Array, key: Array, value: Array, attention_mask: Array
) -> Array:
    """Do what `attention` does, piece by piece: a long text, or several short ones that follow each other.

    Almost no score is then computed between different texts, and the scores of a piece stay in the cache.
    """
    shape, tokens = query.shape, attention_mask.size
    starts, stops = pieces(attention_mask)  # [pieces]
    # From here on one row holds all texts, and no two of them share a number.
    numbers = (attention_mask + jnp.arange(shape[0])[:, None] * (shape[1] + 1)).reshape(tokens)
    inputs = [x.reshape(tokens, *shape[2:]) for x in (query, key, value)] + [numbers]  # [tokens, N, H], [tokens]

    def attend(context: Array, length: int, done: Array, last: Array) -> Array:
        """Compute the pieces from `done` to `last`, of at most `length` tokens, some at a time."""
        together = max(1, CPU_GROUP // length)

        def turn(number: Array, context: Array) -> Array:
            piece = jnp.minimum(done + number * together + jnp.arange(together), last - 1)  # [together]
            first = jnp.minimum(starts[piece], tokens - length)

            def part(x: Array, index: int) -> Array:  # [tokens, ...] -> [length, ...]
                return jax.lax.dynamic_slice_in_dim(x, first[index], length)

            results = plain(*(jnp.stack([part(x, index) for index in range(together)]) for x in inputs))
            for index in range(together):
                place = first[index] + jnp.arange(length)
                is_own = (starts[piece[index]] <= place) & (place < stops[piece[index]])
                result = jnp.where(is_own[:, None, None], results[index], part(context, index))
                context = jax.lax.dynamic_update_slice_in_dim(context, result, first[index], 0)
            return context

        return jax.lax.fori_loop(0, -((done - last) // together), turn, context)

    lengths = [length for length in CPU_LENGTHS if length < tokens]
    # If a piece is longer than the greatest of these, rows are taken whole. In a loop, XLA would always compute that.
    context = jax.lax.cond(
        jnp.max(stops - starts) > lengths[-1],
        lambda: plain(query, key, value, attention_mask),
        lambda: jnp.zeros_like(query),
    ).reshape(inputs[0].shape)
    done = jnp.sum(stops - starts > lengths[-1], dtype=jnp.int32)
    for length, shorter in reversed([*zip(lengths, [0, *lengths], strict=False)]):
        last = jnp.sum(stops - starts > shorter, dtype=jnp.int32)  # the longest pieces come first
        context = attend(context, length, done, last)
        done = last
    return context.reshape(shape)


def pieces(attention_mask: Array) -> tuple[Array, Array]:
    """Divide the tokens of a batch, row after row, into pieces for attention.

    A piece is the texts that start in one block of `CPU_BLOCK` tokens. Padding within it belongs to it.

    [B, T] -> the first token of each piece and the one behind its last, [blocks] of int32 each, the longest pieces
    first. The two are equal for blocks without a piece, which come last.
    """
    tokens = attention_mask.size
    place = jnp.arange(tokens, dtype=jnp.int32)
    before = jax.lax.cummax(attention_mask, axis=1)
    after = jnp.where(attention_mask > 0, attention_mask, np.iinfo(np.int32).max)
    after = jax.lax.cummin(after, axis=1, reverse=True)
    text = jnp.where(before == after, before, 0)  # [B, T]; a hole belongs to the text around it
    is_first = jnp.diff(text, axis=1, prepend=-1).ravel() != 0  # [tokens]
    first = jnp.pad(jnp.where(is_first, place, tokens), (0, -tokens % CPU_BLOCK), constant_values=tokens)
    begin = first.reshape(-1, CPU_BLOCK).min(axis=1)  # [blocks]
    stop = jax.lax.cummin(jnp.append(begin[1:], tokens), reverse=True)
    last_real = jax.lax.cummax(jnp.where(attention_mask.ravel() > 0, place, -1))  # [tokens], up to each
    stop = jnp.maximum(begin, last_real[stop - 1] + 1)
    order = jnp.argsort(begin - stop)
    return begin[order], stop[order]
