"""Attention in its plain form, and masks to compare other forms with it on."""

import itertools

import jax
import numpy as np

from e5ref import jax_model
from e5ref.operations import jax_ops
from tests.tools.batches import packed_batch
from tests.tools.tolerances import POINTS


def plain(*inputs):
    return jax_model.dot_product_attention(*inputs)[0]


def mask_of(rows, shape):
    """Rows as `packed_batch` knows them, filled up with padding; the last is repeated. [B, T]."""
    attention_mask = np.zeros(shape, np.int64)
    for mask, row in zip(attention_mask, itertools.chain(rows, itertools.repeat(rows[-1])), strict=False):
        _, (numbers,) = packed_batch([row], 2)
        mask[: len(numbers)] = numbers
    return attention_mask


compiled = jax.jit(lambda *inputs: jax_ops.attention_in_pieces(plain, *inputs))


def assert_the_same_attention(attention_mask, attention=compiled):
    """Compare attention in pieces with that of whole rows, in float64. The mask is [B, T]."""
    random = np.random.default_rng(0)
    inputs = *(random.normal(size=(*attention_mask.shape, 2, 4)) for _ in range(3)), attention_mask
    with jax.enable_x64(True):
        result, expected = np.asarray(attention(*inputs)), np.asarray(plain(*inputs))
    assert np.isfinite(result).all()
    difference = np.where(attention_mask[..., None, None] > 0, result - expected, 0)
    assert np.abs(difference).max() <= POINTS["float64"]
