"""Lengths → batches, and ids → padded arrays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e5ref.engines import batching


@given(st.lists(st.integers(0, 5000), max_size=50), st.one_of(st.none(), st.integers(1, 5)))
def test_batches_hold_each_text_once_within_bounds(lengths, max_texts):
    batches = list(batching.token_batches(np.array(lengths, int), tokens=2048, max_texts=max_texts))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert sum(lengths[index] for index in batch[:-1]) < 2048
        assert max_texts is None or len(batch) <= max_texts
    in_order = [lengths[index] for batch in batches for index in batch]
    assert in_order == sorted(lengths, reverse=True)


def test_texts_of_one_length_make_equal_batches():
    for tokens in (40, 31):
        assert [len(batch) for batch in batching.token_batches(np.full(12, 10), tokens=tokens)] == [4, 4, 4]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=80), st.integers(1, 6), st.integers(20, 50), st.integers(1, 9))
def test_rows_are_packed_within_bounds(lengths, rows, length, most):
    """Each text has room of its own, the longest has room for sure, and no text is left that a row would hold."""
    lengths = np.sort(lengths)
    batch = batching.pack(lengths, (rows, length), most)
    assert len(set(batch.texts)) == len(batch.texts)
    assert lengths[-1] == lengths[batch.texts[0]]
    assert (np.diff(batch.rows) >= 0).all()
    held = np.bincount(batch.rows, lengths[batch.texts], minlength=rows)
    texts = np.bincount(batch.rows, minlength=rows)
    assert held.max() <= length
    assert texts.max() <= most
    left = np.delete(lengths, batch.texts)
    if len(left):
        assert texts.min() > 0
        assert all(count == most or length - tokens < left[0] for count, tokens in zip(texts, held, strict=True))


def test_rows_by_hand_are_the_longest_that_fits_again_and_again():
    batch = batching.pack(np.array([2, 3, 3, 5, 6]), (3, 8), 3)
    assert batch.texts.tolist() == [4, 0, 3, 1, 2] or batch.texts.tolist() == [4, 0, 3, 2, 1]
    assert batch.rows.tolist() == [0, 0, 1, 1, 2]
    assert batch.numbers.tolist() == [1, 2, 1, 2, 1]


def test_arrays_by_hand():
    ids, offsets = np.array([5, 6, 7, 8, 9, 4]), np.array([0, 1, 3, 6])
    batch = batching.Batch(np.array([2, 0, 1]), np.array([0, 0, 2]), (3, 5))
    input_ids, attention_mask = batch.arrays(ids, offsets, 1)
    assert input_ids.tolist() == [[8, 9, 4, 5, 1], [1] * 5, [6, 7, 1, 1, 1]]
    assert attention_mask.tolist() == [[1, 1, 1, 2, 0], [0] * 5, [1, 1, 0, 0, 0]]


@pytest.mark.parametrize("mean", [12, 80, 200])
def test_little_of_full_rows_is_padding(mean):
    """Of rows of 512 and 1,024 tokens and of lengths as a corpus has them."""
    lengths = np.sort(np.random.default_rng(0).lognormal(np.log(mean), 0.4, 4096).astype(int).clip(5, 512))
    for length in (512, 1024):
        rows = int(0.9 * lengths.sum() / length)
        batch = batching.pack(lengths, (rows, length), length // 8)
        assert lengths[batch.texts].sum() > 0.97 * rows * length


def test_pad_ids_by_hand():
    input_ids, attention_mask = batching.pad_ids([[5], [6, 7, 8], [9, 9]], 1)
    assert input_ids.tolist() == [[5, 1, 1], [6, 7, 8], [9, 9, 1]]
    assert attention_mask.tolist() == [[1, 0, 0], [1, 1, 1], [1, 1, 0]]


def test_pad_ids_of_nothing():
    input_ids, attention_mask = batching.pad_ids([], 0)
    assert input_ids.shape == attention_mask.shape == (0, 0)
