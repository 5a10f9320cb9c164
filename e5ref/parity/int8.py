"""The forward pass with 8-bit products, as the dynamic quantisation of libraries makes them."""

from types import ModuleType

import numpy as np

from e5ref import numpy_model
from e5ref.batching import Ids
from e5ref.config import BertConfig
from e5ref.numpy_ops import Array
from e5ref.params import Embeddings
from e5ref.parity.reference import model_copy


def int8_model(kind: str) -> ModuleType:
    """Return the forward pass with 8-bit products, as a library's dynamic quantisation makes them.

    Args:
        kind: "onnxruntime" (states of 8 bits; weights with one scale each, embeddings too), "onnxruntime by channel"
            (a scale for each output of a weight) or "torch" (states of 7 bits, embeddings untouched).
    """
    steps = 127 if kind == "torch" else 255

    def rounded(x: Array) -> Array:  # with one scale and one zero for the whole array
        low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
        step = (high - low) / steps
        zero = round(low / step)
        return (np.clip(np.rint(x / step), zero, zero + steps) * step).astype(x.dtype)

    def linear(x: Array, weight: Array, bias: Array) -> Array:
        axis = 1 if kind == "onnxruntime by channel" else None
        scale = np.abs(weight).max(axis=axis, keepdims=True) / (127.5 if kind == "torch" else 127)
        whole = np.clip(np.rint(weight / scale), -128, 127)
        return numpy_model.linear(rounded(x), (whole * scale).astype(x.dtype), bias)

    if kind == "torch":
        return model_copy(linear=linear)
    tables: dict[int, Embeddings] = {}

    def embed_tokens(params: Embeddings, *args: Ids, config: BertConfig) -> Array:
        if id(params) not in tables:
            word, position, token_type = (rounded(table) for table in params[:3])
            tables[id(params)] = Embeddings(word, position, token_type, params.layer_norm)
        return numpy_model.embed_tokens(tables[id(params)], *args, config=config)

    return model_copy(linear=linear, embed_tokens=embed_tokens)
