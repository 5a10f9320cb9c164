"""What the JAX twin leaves to the device is what `jax_model` defines: pieces on a CPU, cuDNN on NVIDIA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e5ref.operations import jax_ops
from tests.operations.attention import assert_the_same_attention, mask_of, plain
from tests.tools.batches import packed_batch

# Tokens of each row's texts, -n for padding; at the edges of pieces, of their lengths and of groups of them. The last
# rows hold one text, with padding inside and on the left, or nothing.
ROWS = [
    [512, 65, 62, 1],
    [64] * 10,
    [65] * 9,
    [128] * 5,
    [129, 192, 193],
    [3] * 213,
    [63, 1, 63, 2, -60, 1, 63, -70, 257, 60],
    [1, 384],
    [-130, 510],
    [-640],
]
LONG_ROWS = [[600, 40], [513, 64, 63], [640]]


def with_holes(length):
    """Rows of one text, with padding inside and on both sides, and of several texts with padding inside. -> [6, T]."""
    masks = np.ones((4, length), np.int64)
    masks[0, [0, 7, 70, length - 10, length - 1]] = 0
    masks[1, 3:-3] = 0
    masks[2, : length // 2], masks[2, -5:] = 0, 0
    masks[3, 20:100] = 0
    return np.vstack([masks, masks[[0, 3]] * np.minimum(np.arange(length) // 40 + 1, 3)])


@pytest.mark.slow
@pytest.mark.parametrize("rows", [ROWS, [*LONG_ROWS, *ROWS], ROWS[1:4]], ids=["short", "long", "64 to 128"])
def test_attention_in_pieces_is_attention(rows):
    assert_the_same_attention(mask_of(rows, (13, 640)))


@pytest.mark.slow
def test_attention_in_pieces_of_texts_with_holes_is_attention():
    masks = with_holes(640)
    masks[2, :300] = 0  # no text of more than 512, which would take all rows whole
    assert_the_same_attention(np.vstack([masks[[1, 2, 4, 5]], mask_of([[3], [-640]], (9, 640))]))
    assert_the_same_attention(np.vstack([masks, mask_of([[3], [-640]], (7, 640))]))


@pytest.mark.parametrize("row", [[3, 60, 2, 64], [129], [128, 1], [-1, 129], [65, -1, 64], [1] * 130, [-130]])
def test_a_short_row_alone_in_pieces_is_attention(row):
    assert_the_same_attention(mask_of([row], (1, 130)))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_cudnn_is_asked_for_the_same_attention(dtype, cudnn):
    """What is handed to JAX's fused attention means the same as ours; its cuDNN form itself needs an NVIDIA card."""
    attention_mask = jnp.asarray(mask_of([[3, 20, 41], [64], [-5, 9, -1, 9], [5]], (4, 64)))
    random = np.random.default_rng(0)
    inputs = [jnp.asarray(random.normal(size=(4, 64, 2, 8)), jnp.float32) for _ in range(3)]
    halves = [array.astype(dtype) for array in inputs]
    expected = plain(*halves, attention_mask)
    actual = jax_ops.attention(plain, *halves, attention_mask)
    real = np.asarray(attention_mask)[..., None, None] > 0
    difference = np.abs(np.where(real, actual.astype(np.float32) - expected.astype(np.float32), 0)).max()
    assert difference < {"bfloat16": 3e-2, "float16": 4e-3}[dtype]
    assert cudnn == ["cudnn"]
    jax_ops.attention(plain, *inputs, attention_mask)  # float32 is not for cuDNN
    jax_ops.attention(plain, *(array[:, :63] for array in halves), attention_mask[:, :63])  # nor are short rows
    assert cudnn == ["cudnn"]


find_pieces = jax.jit(jax_ops.pieces)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(-70, 70), min_size=1, max_size=30), min_size=3, max_size=3))
def test_pieces_hold_each_text_once(rows):
    attention_mask = np.vstack([np.resize(packed_batch([[*row, -150]], 2)[1], 150) for row in rows])
    texts = attention_mask.ravel() + np.arange(3).repeat(150) * 1000 * (attention_mask.ravel() > 0)
    begins, ends = np.asarray(find_pieces(attention_mask))
    assert (np.diff(ends - begins) <= 0).all()
    seen = np.concatenate([texts[begin:end] for begin, end in zip(begins, ends, strict=True)])
    np.testing.assert_array_equal(np.sort(seen[seen > 0]), np.sort(texts[texts > 0]))
    for begin, end in zip(begins, ends, strict=True):
        own = set(texts[begin:end]) - {0}
        assert sum(texts[begin:end] > 0) == np.isin(texts, list(own)).sum()
        assert end - begin < jax_ops.CPU_BLOCK + 150
        assert len(own) <= jax_ops.CPU_BLOCK
