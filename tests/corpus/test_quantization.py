"""Vectors in fewer bits: sentence-transformers' numbers, bit for bit."""

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="a corpus needs the extra corpus")
from e5ref.corpus.quantization import find_ranges, quantize, restore, stored_width

VECTORS = np.random.default_rng(0).standard_normal((2000, 37)).astype(np.float32)
VECTORS[:, 5] = 0.25  # a dimension that never changes
VECTORS[3] = 0


@pytest.mark.parametrize("dtype", ["int8", "uint8", "binary", "ubinary", "float32"])
@pytest.mark.parametrize("calibrated_by", [2000, 50])
def test_the_bits_are_those_of_sentence_transformers(dtype, calibrated_by):
    from sentence_transformers.util import quantize_embeddings

    ranges = find_ranges(VECTORS[:calibrated_by])  # of 50, many numbers lie outside the range
    theirs = quantize_embeddings(VECTORS, dtype, ranges=ranges)
    ours = quantize(VECTORS, dtype, ranges)
    assert ours.dtype == theirs.dtype
    assert np.array_equal(ours, theirs)
    assert ours.shape == (2000, stored_width(37, dtype))


def test_ranges_are_those_of_sentence_transformers():
    from sentence_transformers.util import quantize_embeddings

    theirs = quantize_embeddings(VECTORS, "int8", calibration_embeddings=VECTORS[:500])
    assert np.array_equal(quantize(VECTORS, "int8", find_ranges(VECTORS[:500])), theirs)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_what_is_restored_is_within_half_a_step(dtype):
    ranges = find_ranges(VECTORS)
    restored = restore(quantize(VECTORS, dtype, ranges), dtype, 37, ranges)
    half = (ranges[1] - ranges[0]) / 255 / 2
    changes = np.arange(37) != 5
    greatest = ranges[1] == VECTORS  # lies at the upper end of the last step, whose number does not exist
    assert np.all(np.abs(restored - VECTORS)[:, changes] <= np.where(greatest, 2.1, 1.001)[:, changes] * half[changes])


@pytest.mark.parametrize("dtype", ["binary", "ubinary"])
def test_bits_are_restored_as_signs(dtype):
    assert np.array_equal(restore(quantize(VECTORS, dtype), dtype, 37), np.where(VECTORS > 0, 1, -1))


def test_halves_are_rounded():
    assert np.array_equal(restore(quantize(VECTORS, "float16"), "float16", 37), VECTORS.astype(np.float16))
