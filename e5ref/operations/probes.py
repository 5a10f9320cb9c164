"""What this machine's BLAS does to the last bits, tried out."""

import functools
from collections.abc import Iterator
from typing import Literal

import numpy as np

from e5ref.operations import Array
from e5ref.operations.blas import blas, rows_alternate
from e5ref.operations.numpy_ops import matmul_rows
from e5ref.operations.rows import rows_of, tokens_of


@functools.cache
def rows_are_independent(features_in: int, features_out: int, dtype: Literal["float32", "float64"]) -> bool:
    """Tell whether a token, in its row, gets the same bits whatever stands beside it.

    It does in OpenBLAS at E5's widths on x86-64 with AVX, AVX2 or AVX-512, and not always elsewhere. So it
    is tried out, once per shape of the weight: the same tokens are multiplied together and in parts, by one thread.
    """
    random = np.random.default_rng(0)
    states, weight = (random.random((n, features_in), dtype) - 0.5 for n in (256, features_out))

    def products(first: int, last: int) -> Array:
        one_text = np.ones((1, last - first), np.int64)
        return tokens_of(matmul_rows(rows_of(states[first:last], one_text), weight), one_text)

    parts = [(0, 1), (2, 5), (8, 20), (4, 38), (50, 115), (12, 256)]
    with blas.at_most(1):
        together = products(0, 256)
        return all(np.array_equal(products(first, last), together[first:last]) for first, last in parts)


@functools.cache
def threads_do_not_matter(
    hidden_size: int, intermediate_size: int, head_size: int, dtype: Literal["float32", "float64"], threads: int
) -> bool:
    """Tell whether texts of up to 256 tokens get the same bits from the BLAS with one thread and with `threads`."""
    if rows_alternate():
        return False  # threads divide the rows, and would count them anew
    random = np.random.default_rng(0)
    shapes = [(hidden_size, hidden_size), (intermediate_size, hidden_size), (hidden_size, intermediate_size)]
    weights = [random.random(shape, dtype) - 0.5 for shape in shapes]  # [out, in]
    rows = random.random((256, max(hidden_size, intermediate_size)), dtype) - 0.5
    query, key = random.random((2, 256, head_size), dtype) - 0.5
    scores = random.random((256, 256), dtype)

    def products() -> Iterator[Array]:
        for n in (1, 17, 33, 48, 49, 129, 256):
            yield from (matmul_rows(rows[:n, : weight.shape[1]], weight) for weight in weights)
        for n in range(1, 257, 3):  # some kernels divide some lengths only
            yield from (key[:n] @ query[:n].T, scores[:n, :n].T @ query[:n])

    with blas.at_most(threads):
        by_several = list(products())
    with blas.at_most(1):
        return all(map(np.array_equal, products(), by_several))
