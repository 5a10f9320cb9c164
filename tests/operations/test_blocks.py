"""Attention in blocks: each token and head once, and squares back in their places."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e5ref.operations import blocks


def test_attention_blocks_by_hand(monkeypatch):
    """Room for two texts of two tokens and two heads; a text of four has a head at a time."""
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 16)
    lengths = [4, 2, 2, 2, 1]
    attention_mask = (np.arange(4) < np.array(lengths)[:, None]).astype(int)
    both = slice(0, 2)
    assert list(blocks.attention_blocks(attention_mask, 2)) == [
        (0, 1, 4, slice(0, 4), slice(0, 1)),
        (0, 1, 4, slice(0, 4), slice(1, 2)),
        (1, 2, 2, slice(4, 8), both),
        (3, 1, 2, slice(8, 10), both),
        (4, 1, 1, slice(10, 11), both),
    ]


@given(st.lists(st.integers(1, 40), max_size=20), st.integers(1, 5), st.integers(1, 3000))
def test_attention_blocks_hold_each_token_and_head_once(lengths, heads, elements):
    attention_mask = (np.arange(40) < np.array(lengths, int)[:, None]).astype(int)
    seen = np.zeros((sum(lengths), heads), int)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", elements)
        for block in blocks.attention_blocks(attention_mask, heads):
            assert set(lengths[block.first : block.first + block.texts]) == {block.length}
            assert block.tokens.start == sum(lengths[: block.first])
            part = seen[block.tokens, block.heads]
            assert part.shape[0] == block.texts * block.length
            if block.texts > 1:
                assert part.size * block.length <= elements
            assert part.shape[1] == 1 or (part.shape[1] - 1) * block.length**2 < elements
            part += 1
    assert (seen == 1).all()


def test_squares_by_hand():
    attention_mask = np.array([[1, 0, 1], [1, 2, 0]])
    places = [(0, 1, 2, slice(0, 2), slice(0, 1)), (1, 2, 1, slice(2, 4), slice(0, 1))]
    squares = [np.array([[[[1.0, 2.0], [3.0, 4.0]]]]), np.array([[[[5.0]]], [[[6.0]]]])]
    named = [(blocks.AttentionBlock(*block), square) for block, square in zip(places, squares, strict=True)]
    padded = blocks.pad_squares(named, attention_mask, 1)
    assert padded[:, 0].tolist() == [[[1, 0, 2], [0, 0, 0], [3, 0, 4]], [[5, 0, 0], [0, 6, 0], [0, 0, 0]]]
