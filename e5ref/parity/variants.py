"""The forward pass with one thing changed: rounded to a smaller dtype, or with padding computed as frameworks do it."""

import importlib.util
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e5ref import numpy_model, numpy_ops
from e5ref.batching import Ids
from e5ref.config import BertConfig
from e5ref.params import Embeddings, Layer

Floats = NDArray[np.floating]
Round = Callable[[Floats], Floats]


def copied(**replacements: Any) -> ModuleType:
    """Return a second, private instance of `numpy_model` in which the named functions are others."""
    spec = importlib.util.spec_from_file_location("e5ref.numpy_model_copy", numpy_model.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module).update(replacements)
    return module


def padded_model(attention_mask: Ids) -> ModuleType:
    """Return the forward pass that computes padding too, as frameworks do: it attends, but is not attended to.

    It is to be called with a mask of ones; `attention_mask` [B, T] is the true one.
    """
    hidden = attention_mask[:, None, None] == 0  # [B, 1, 1, T]
    texts, length = attention_mask.shape

    def self_attention(params: Layer, hidden_states: Floats, _mask: Ids, *, config: BertConfig, tap: Any) -> Floats:
        def heads(x: Floats) -> Floats:  # [B * T, D] -> [B, N, T, H]
            return x.reshape(texts, length, config.num_attention_heads, config.head_size).transpose(0, 2, 1, 3)

        query, key, value = (
            heads(numpy_model.linear(hidden_states, *affine)) for affine in (params.query, params.key, params.value)
        )
        scores = query @ key.swapaxes(-1, -2)  # [B, N, T, T]
        scores *= 1 / math.sqrt(config.head_size)
        np.copyto(scores, -np.inf, where=hidden)
        probabilities = numpy_ops.softmax(scores.swapaxes(-1, -2)).swapaxes(-1, -2)
        context = (probabilities @ value).transpose(0, 2, 1, 3).reshape(hidden_states.shape)
        return numpy_model.linear(context, *params.attention_output)

    return copied(self_attention=self_attention)


def rounded_model(round_to: Round) -> ModuleType:
    """Return the forward pass in float32 with the weights, and the result of every operation, rounded."""

    def rounding(function: Callable[..., Floats]) -> Callable[..., Floats]:
        return lambda x, *args: round_to(
            function(x, *(round_to(arg) if isinstance(arg, np.ndarray) else arg for arg in args))
        )

    return copied(
        linear=rounding(numpy_model.linear),
        layer_norm=rounding(numpy_model.layer_norm),
        gelu=rounding(numpy_model.gelu),
        softmax=rounding(numpy_ops.softmax),
    )


def int8_model(kind: str) -> ModuleType:
    """Return the forward pass with 8-bit products, as a library's dynamic quantisation makes them.

    Args:
        kind: "onnxruntime" (states of 8 bits; weights with one scale each, embeddings too), "onnxruntime by channel"
            (a scale for each output of a weight) or "torch" (states of 7 bits, embeddings untouched).
    """
    steps = 127 if kind == "torch" else 255

    def rounded(x: Floats) -> Floats:  # with one scale and one zero for the whole array
        low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
        step = (high - low) / steps
        zero = round(low / step)
        return (np.clip(np.rint(x / step), zero, zero + steps) * step).astype(x.dtype)

    def linear(x: Floats, weight: Floats, bias: Floats) -> Floats:
        axis = 1 if kind == "onnxruntime by channel" else None
        scale = np.abs(weight).max(axis=axis, keepdims=True) / (127.5 if kind == "torch" else 127)
        whole = np.clip(np.rint(weight / scale), -128, 127)
        return numpy_model.linear(rounded(x), (whole * scale).astype(x.dtype), bias)

    if kind == "torch":
        return copied(linear=linear)
    tables: dict[int, Embeddings] = {}

    def embed_tokens(params: Embeddings, *args: Ids, config: BertConfig) -> Floats:
        if id(params) not in tables:
            word, position, token_type = (rounded(table) for table in params[:3])
            tables[id(params)] = Embeddings(word, position, token_type, params.layer_norm)
        return numpy_model.embed_tokens(tables[id(params)], *args, config=config)

    return copied(linear=linear, embed_tokens=embed_tokens)


def to_float16(x: Floats) -> Floats:
    """Round to what float16 holds, and keep the dtype."""
    return np.asarray(x).astype(np.float16).astype(x.dtype)


def to_bfloat16(x: Floats) -> Floats:
    """Round to what bfloat16 holds, ties to even, and keep the dtype."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32).astype(x.dtype)
