"""Lengths → batches, ids → padded arrays, and rows back into their places."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from e5ref import batching


@given(st.lists(st.integers(0, 5000), max_size=50), st.one_of(st.none(), st.integers(1, 5)))
def test_batches_hold_each_text_once_within_bounds(lengths, max_texts):
    batches = list(batching.token_batches(lengths, max_texts=max_texts))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[index] for index in batch) <= batching.MAX_TOKENS
        assert max_texts is None or len(batch) <= max_texts
    in_order = [lengths[index] for batch in batches for index in batch]
    assert in_order == sorted(lengths, reverse=True)


def test_pad_ids_by_hand():
    input_ids, attention_mask = batching.pad_ids([[5], [6, 7, 8], [9, 9]], 1)
    assert input_ids.tolist() == [[5, 1, 1], [6, 7, 8], [9, 9, 1]]
    assert attention_mask.tolist() == [[1, 0, 0], [1, 1, 1], [1, 1, 0]]


def test_pad_ids_of_nothing():
    input_ids, attention_mask = batching.pad_ids([], 0)
    assert input_ids.shape == attention_mask.shape == (0, 0)


def test_rows_by_hand():
    attention_mask = np.array([[1, 1, 0], [0, 1, 0]])
    assert list(batching.rows_of_each_text(attention_mask)) == [slice(0, 2), slice(2, 3)]
    padded = batching.pad_rows(np.array([[1.0], [2.0], [3.0]]), attention_mask)
    assert padded[..., 0].tolist() == [[1, 2, 0], [0, 3, 0]]


def test_squares_by_hand():
    attention_mask = np.array([[1, 0, 1], [0, 1, 0]])
    padded = batching.pad_squares([np.array([[[1.0, 2.0], [3.0, 4.0]]]), np.array([[[5.0]]])], attention_mask, 1)
    assert padded[:, 0].tolist() == [[[1, 0, 2], [0, 0, 0], [3, 0, 4]], [[0, 0, 0], [0, 5, 0], [0, 0, 0]]]
