"""Dot products and cosines of vectors: two equal vectors get two equal scores, whatever stands beside them.

A BLAS adds up products in an order that depends on where a vector stands and how many there are, so that equal vectors
get scores that differ in the last bit, and ties are broken by chance. Sums of whole numbers do not depend on the order
as long as they are small enough to be exact. So each vector is split into slices of whole numbers (Ozaki et al.,
"Error-free transformations of matrix multiplication by using fast routines of matrix multiplication", Numerical
Algorithms 59, 2012), and the BLAS multiplies those. The result is also more exact than a product of the vectors.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

# Rows of the second factor that are split at a time, so that memory holds the slices of these alone.
BLOCK_ROWS = 8192


def cosines(a: Floats, b: Floats) -> Floats:
    """Compute the cosine of each vector of `a` with each of `b`.

    Args:
        a: [n, D] or [D].
        b: [m, D] or [D].

    Returns:
        [n, m], between -1 and 1 but for rounding; float64 if one of the two is, else float32. Equal vectors have equal
        cosines, on any BLAS, in any order and among any others. A vector of zeros has 0.

    Raises:
        ValueError: vectors of different widths.
    """
    return _by_blocks(a, b, unit)


def pairwise_cosines(a: Floats, b: Floats) -> Floats:
    """Compute the cosine of each vector of `a`, [n, D], with the same row of `b`: the diagonal of `cosines`, [n]."""
    first, second, dtype = _checked(a, b)
    if len(first) != len(second):
        raise ValueError(f"vectors must be as many in both, but are {np.shape(a)} and {np.shape(b)}")
    return _dots(unit(first), unit(second), dtype, np.vecdot).astype(dtype)


def dots(a: Floats, b: Floats) -> Floats:
    """Compute the dot product of each vector of `a`, [n, D], with each of `b`, [m, D]; as `cosines` does, [n, m]."""
    return _by_blocks(a, b, lambda vectors: vectors.astype(np.float64))


def unit(vectors: Floats) -> NDArray[np.float64]:
    """Scale each vector to unit L2 norm in float64; zeros stay. [n, D] -> [n, D]."""
    vectors = np.ascontiguousarray(vectors, np.float64)  # by its layout NumPy chooses in which order it adds up
    norms = np.sqrt(np.sum(vectors * vectors, axis=1, keepdims=True))  # [n, 1]
    return vectors / np.where(norms == 0, 1, norms)


def _checked(a: Floats, b: Floats) -> tuple[Floats, Floats, np.dtype[Any]]:
    """Make both two-dimensional; return them with the dtype of the result."""
    first, second = np.atleast_2d(a), np.atleast_2d(b)
    if first.shape[1:] != second.shape[1:] or first.ndim != 2:
        raise ValueError(f"vectors must be [n, D] and [m, D], but are {np.shape(a)} and {np.shape(b)}")
    return first, second, np.result_type(first, second, np.float32)


def _by_blocks(a: Floats, b: Floats, prepared: Callable[[Floats], NDArray[np.float64]]) -> Floats:
    first, second, dtype = _checked(a, b)
    rows = prepared(first)
    products = np.empty((len(first), len(second)), dtype)
    for start in range(0, len(second), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        products[:, block] = _dots(rows, prepared(second[block]), dtype, lambda a, b: a @ b.T)
    return products


def _dots(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    dtype: np.dtype[Any],
    multiply: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Multiply vectors slice by slice; `multiply` makes dot products of rows of whole numbers.

    With n slices a product is a₀b₀ + (a₀b₁ + a₁b₀) + …, n terms in all. What is left out is below what `dtype` holds.
    """
    n = 3 if dtype == np.float64 else 2
    # float64 holds whole numbers of 53 bits: those of two factors, and of the number of products in the largest sum.
    bits = (53 - math.ceil(math.log2(n * max(a.shape[1], 1)))) // 2
    (first, scale_a), (second, scale_b) = (_slices(vectors, n, bits) for vectors in (a, b))
    total: NDArray[np.float64] | float = 0.0
    for k in reversed(range(n)):
        total = total * 0.5**bits + multiply(np.hstack(first[: k + 1]), np.hstack(second[k::-1]))
    return total * multiply(scale_a, scale_b)


def _slices(vectors: NDArray[np.float64], n: int, bits: int) -> tuple[list[NDArray[np.float64]], NDArray[np.float64]]:
    """Split each vector into n slices of whole numbers of at most `bits` bits, and a power of two.

    Returns:
        The slices s, each [m, D], and the scale c, [m, 1]: a vector is c Σ sᵢ 2^(-bits i).
    """
    _, exponents = np.frexp(np.abs(vectors).max(axis=1, keepdims=True, initial=0))
    rest = vectors * np.ldexp(1.0, bits - exponents)  # a product with a power of two is exact
    slices = []
    for _ in range(n):
        slices.append(np.rint(rest))
        rest = (rest - slices[-1]) * 2.0**bits
    return slices, np.ldexp(1.0, exponents - bits)
