"""The reference with something changed: a mistake, rounding to a smaller dtype, or padding that is computed too.

Only `numpy_model` holds the forward pass. Its functions find each other by name in their module. So a copy of that
module, with one name bound to a different function, is the whole forward pass with one thing changed.
"""

import importlib.util
import math
from collections.abc import Callable, Collection
from types import ModuleType
from typing import Any

import numpy as np

from e5ref import numpy_model
from e5ref.checkpoint import Checkpoint
from e5ref.checkpoint.config import BertConfig
from e5ref.checkpoint.params import BertParams, Embeddings, Layer, map_leaves
from e5ref.operations import Array, Ids, Tap, numpy_ops
from e5ref.operations.rows import rows_of, tokens_of

# Tokens that are computed at a time, padding counted. Their points take a few hundred MB at most.
BATCH_TOKENS = 2048


def model_copy(**replacements: Any) -> ModuleType:
    """Return a private copy of `numpy_model` with some functions, such as gelu or softmax, replaced.

    Raises:
        ValueError: `numpy_model` does not have a name.
    """
    spec = importlib.util.spec_from_file_location("e5ref.parity.numpy_model_copy", numpy_model.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, function in replacements.items():
        if not hasattr(module, name):
            raise ValueError(f"numpy_model has no {name!r} to be replaced")
        setattr(module, name, function)
    return module


def run_reference(
    checkpoint: Checkpoint,
    input_ids: Ids,
    attention_mask: Ids,
    *,
    model: ModuleType = numpy_model,
    params: BertParams | None = None,
    only: Collection[str] | None = None,
) -> dict[str, Array]:
    """Run the reference, or a changed copy of it, and return its named points.

    Args:
        checkpoint: the weights, in the dtype to compute in, and how to pool and normalise.
        input_ids, attention_mask: [B, T], 1 in the mask for a real token; padding may stand on either side.
        model: `numpy_model`, or a copy by `model_copy`.
        params: weights to use instead of the checkpoint's.
        only: names of the points to return; None for all.

    Returns:
        Name → array, in the forward pass's order, padded to T; 0 at padding.

    Raises:
        ValueError: as `numpy_model.embed`.
    """
    texts, length = input_ids.shape
    batch_texts = max(1, BATCH_TOKENS // max(length, 1))
    points: dict[str, Array] = {}
    for start in range(0, texts, batch_texts):
        batch = slice(start, min(start + batch_texts, texts))

        def keep(name: str, array: Array, batch: slice = batch) -> None:
            if only is None or name in only:
                if name not in points:
                    points[name] = np.zeros((texts, *array.shape[1:]), array.dtype)
                points[name][batch] = array

        model.embed(
            checkpoint.params if params is None else params,
            input_ids[batch],
            attention_mask[batch],
            config=checkpoint.config,
            pooling=checkpoint.settings.pooling,
            normalize=checkpoint.settings.normalize,
            tap=keep,
        )
    return points


def padded_model(bias: float = -math.inf, **replacements: Any) -> ModuleType:
    """Return the forward pass that computes padding too, as frameworks do, and so needs a mask.

    `bias` is added to the scores of padding; minus infinity is right, 0 means no mask.
    """

    def embed_tokens(params: Embeddings, input_ids: Ids, attention_mask: Ids, *, config: BertConfig) -> Array:
        return numpy_model.embed_tokens(params, input_ids, np.ones_like(attention_mask), config=config)

    def self_attention(
        params: Layer, hidden_states: Array, attention_mask: Ids, *, config: BertConfig, tap: Tap | None = None
    ) -> Array:
        texts, length = attention_mask.shape
        all_tokens = np.ones_like(attention_mask)

        def heads(x: Array) -> Array:  # [R, D] -> [B, N, T, H]
            x = tokens_of(x, all_tokens)  # [B * T, D]
            return x.reshape(texts, length, config.num_attention_heads, config.head_size).transpose(0, 2, 1, 3)

        query = module.linear(hidden_states, *params.query)  # [R, D], padding included
        key = module.linear(hidden_states, *params.key)
        value = module.linear(hidden_states, *params.value)
        scores = heads(key) @ heads(query).swapaxes(-1, -2)  # keys down: [B, N, T, T]
        scores *= 1 / math.sqrt(config.head_size)
        scores += np.where(attention_mask == 0, bias, 0).astype(scores.dtype)[:, None, :, None]
        probabilities = module.softmax(scores).swapaxes(-1, -2)
        context = (probabilities @ heads(value)).transpose(0, 2, 1, 3).reshape(-1, config.hidden_size)  # [B * T, D]
        context = rows_of(context, all_tokens)  # [R, D]

        module.record(tap, "query", query, attention_mask)
        module.record(tap, "key", key, attention_mask)
        module.record(tap, "value", value, attention_mask)
        if tap is not None:
            tap("attention_probabilities", probabilities)
        module.record(tap, "context", context, attention_mask)
        return module.linear(context, *params.attention_output)

    def pad_rows(rows: Array, attention_mask: Ids) -> Array:
        return tokens_of(rows, np.ones_like(attention_mask)).reshape(*attention_mask.shape, -1)

    changed = {"embed_tokens": embed_tokens, "self_attention": self_attention, "pad_rows": pad_rows}
    module = model_copy(**(changed | replacements))
    return module


def rounded_model(dtype: str) -> ModuleType:
    """Return the forward pass with the result of every operation rounded, as frameworks compute in half precision.

    Inside, an operation computes in the dtype of the weights. The weights must be rounded too: see `round_params`. With
    "float32", only the average changes: it adds up in float32 instead of float64.
    """
    if dtype == "float32":
        return model_copy(average_pool=_plain_average)

    def rounded(x: Array) -> Array:
        return round_to(x, dtype)

    def rounding(function: Callable[..., Array]) -> Callable[..., Array]:
        return lambda x, *args: rounded(function(rounded(x), *args))

    def record(tap: Tap | None, name: str, array: Array, attention_mask: Ids | None = None) -> None:
        numpy_model.record(tap, name, rounded(array), attention_mask)

    def l2_normalize(vectors: Array) -> Array:
        norms = rounded(np.sqrt(np.sum(vectors * vectors, axis=-1, keepdims=True)))
        return rounded(vectors / np.maximum(norms, 1e-12))

    module = model_copy(
        linear=rounding(numpy_model.linear),
        layer_norm=rounding(numpy_model.layer_norm),
        gelu=rounding(numpy_model.gelu),
        softmax=rounding(numpy_ops.softmax),
        average_pool=rounding(numpy_model.average_pool),
        l2_normalize=l2_normalize,
        record=record,
    )
    exact: Any = vars(module)["dense"]  # its linear layer is that of the copy, which rounds; its tanh does not
    vars(module)["dense"] = lambda params, vectors: rounded(exact(params, vectors))
    return module


def _plain_average(last_hidden_state: Array, attention_mask: Ids, _texts_per_row: int = 1) -> Array:
    states = np.where(attention_mask[..., None] == 1, last_hidden_state, 0)
    return states.sum(axis=1) / attention_mask.sum(axis=1, keepdims=True).astype(states.dtype)


def round_to(x: Array, dtype: str) -> Array:
    """Round to the precision of "float16" or "bfloat16", ties to even, and keep the array's dtype."""
    if dtype == "float16":
        with np.errstate(over="ignore"):  # beyond 65,504 is infinity, as in a framework
            return x.astype(np.float16).astype(x.dtype)
    bits = np.asarray(x, np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(x.dtype)


def round_params(params: BertParams, dtype: str) -> BertParams:
    """Round all weights to the precision of `dtype`; "float32" leaves them."""
    return params if dtype == "float32" else map_leaves(lambda leaf: round_to(leaf, dtype), params)


def int8_model(kind: str) -> ModuleType:
    """Return the forward pass with 8-bit products, as in a library's dynamic quantisation.

    Kinds are "onnxruntime" (states of 8 bits; one scale for each weight and embedding), "onnxruntime by channel" (one
    scale for each output of a weight) and "torch" (states of 7 bits; embeddings as they are).
    """

    def linear(x: Array, weight: Array, bias: Array) -> Array:
        return int8_linear(kind, x, weight, bias, batch=x)

    if kind == "torch":
        return model_copy(linear=linear)
    tables: dict[int, Embeddings] = {}

    def embed_tokens(params: Embeddings, *args: Ids, config: BertConfig) -> Array:
        if id(params) not in tables:
            word, position, token_type = (in_steps(table, 255, table) for table in params[:3])
            tables[id(params)] = Embeddings(word, position, token_type, params.layer_norm)
        return numpy_model.embed_tokens(tables[id(params)], *args, config=config)

    return model_copy(linear=linear, embed_tokens=embed_tokens)


def int8_linear(kind: str, x: Array, weight: Array, bias: Array, *, batch: Array) -> Array:
    """A linear layer of 8 bits, as in `int8_model`; the least and greatest number of a `batch` set the scale of x."""
    axis = 1 if kind == "onnxruntime by channel" else None
    scale = np.abs(weight).max(axis=axis, keepdims=True) / (127.5 if kind == "torch" else 127)
    whole = np.clip(np.rint(weight / scale), -128, 127)
    rounded = in_steps(x, 127 if kind == "torch" else 255, batch)
    return numpy_model.linear(rounded, (whole * scale).astype(x.dtype), bias)


def in_steps(x: Array, steps: int, batch: Array) -> Array:
    """Round to whole numbers of steps between the least and greatest number of a batch, 0 among them."""
    low, high = min(float(batch.min()), 0.0), max(float(batch.max()), 0.0)
    step = (high - low) / steps
    zero = round(low / step)
    return (np.clip(np.rint(x / step), zero, zero + steps) * step).astype(x.dtype)
