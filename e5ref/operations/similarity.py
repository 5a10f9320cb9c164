"""Dot products and cosines of vectors: equal vectors get equal scores in any company.

A BLAS adds up products in an order that depends on where a vector stands and how many there are, so that equal vectors
get scores that differ in the last bit, and ties are broken by chance. Sums of whole numbers do not depend on the order
as long as they are small enough to be exact. So each vector is split into slices of whole numbers (Ozaki et al.,
"Error-free transformations of matrix multiplication by using fast routines of matrix multiplication", Numerical
Algorithms 59, 2012), and the BLAS multiplies those. The result is also more exact than a product of the vectors.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

# Vectors that are split at a time, so that memory holds the slices of these alone.
BLOCK_ROWS = 2048


class Sliced(NamedTuple):
    """Vectors as sums of slices: c Σ sᵢ 2^(-bits i)."""

    slices: list[NDArray[np.float64]]  # [m, D] each, whole numbers of at most `bits` bits
    scale: NDArray[np.float64]  # c, [m, 1]


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
    return _table(a, b, unit)


def pairwise_cosines(a: Floats, b: Floats) -> Floats:
    """Compute the cosine of each vector of `a`, [n, D], with the same row of `b`: the diagonal of `cosines`, [n]."""
    first, second, dtype = _checked(a, b)
    if len(first) != len(second):
        raise ValueError(f"vectors must be as many in both, but are {np.shape(a)} and {np.shape(b)}")
    products = np.empty(len(first), dtype)
    for rows in _blocks(len(first)):
        left, right = (_sliced(unit(each[rows]), dtype) for each in (first, second))
        products[rows] = _multiply(left, right, np.vecdot)
    return products


def dots(a: Floats, b: Floats) -> Floats:
    """Compute the dot product of each vector of `a`, [n, D], with each of `b`, [m, D]; as `cosines` does, [n, m]."""
    return _table(a, b, lambda vectors: vectors.astype(np.float64))


def unit(vectors: Floats) -> NDArray[np.float64]:
    """Scale each vector to unit L2 norm in float64; zeros stay. [n, D] -> [n, D]."""
    scaled = np.array(vectors, np.float64, order="C")  # by its layout NumPy chooses in which order it adds up
    scaled *= np.ldexp(1.0, -_exponents(scaled))  # no square of any number is too large or too small then
    norms = np.sqrt(np.sum(scaled * scaled, axis=1, keepdims=True))  # [n, 1]
    scaled /= np.where(norms == 0, 1, norms)
    return scaled


def _checked(a: Floats, b: Floats) -> tuple[Floats, Floats, np.dtype[Any]]:
    """Make both two-dimensional; return them with the dtype of the result."""
    first, second = np.atleast_2d(a), np.atleast_2d(b)
    if first.shape[1:] != second.shape[1:] or first.ndim != 2:
        raise ValueError(f"vectors must be [n, D] and [m, D], but are {np.shape(a)} and {np.shape(b)}")
    return first, second, np.result_type(first, second, np.float32)


def _table(a: Floats, b: Floats, prepared: Callable[[Floats], NDArray[np.float64]]) -> Floats:
    """Multiply each vector with each, some of the one and some of the other at a time. [n, D], [m, D] -> [n, m]."""
    first, second, dtype = _checked(a, b)
    products = np.empty((len(first), len(second)), dtype)
    for rows in _blocks(len(first)):
        left = _sliced(prepared(first[rows]), dtype)
        for columns in _blocks(len(second)):
            right = _sliced(prepared(second[columns]), dtype)
            products[rows, columns] = _multiply(left, right, lambda a, b: a @ b.T)
    return products


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK_ROWS) for start in range(0, count, BLOCK_ROWS))


def _bits(width: int, n: int) -> int:
    """Return the bits of a slice: float64 holds whole numbers of 53, of two factors and of how many are added up."""
    return (53 - math.ceil(math.log2(n * max(width, 1)))) // 2


def _exponents(vectors: NDArray[np.float64]) -> NDArray[np.int32]:
    """Return for each vector an e for which all of its numbers are below 2ᵉ. [m, D] -> [m, 1]."""
    exponents: NDArray[np.int32] = np.frexp(np.abs(vectors).max(axis=1, keepdims=True, initial=0))[1]
    return np.maximum(exponents, -960)  # what divides the smallest of all numbers must not be infinite


def _sliced(vectors: NDArray[np.float64], dtype: np.dtype[Any]) -> Sliced:
    """Split vectors into as many slices as hold what `dtype` does."""
    n = 3 if dtype == np.float64 else 2
    bits, exponents = _bits(vectors.shape[1], n), _exponents(vectors)
    rest = vectors * np.ldexp(1.0, bits - exponents)  # a product with a power of two is exact
    slices = []
    for _ in range(n):
        slices.append(np.rint(rest))
        rest -= slices[-1]
        rest *= 2.0**bits
    return Sliced(slices, np.ldexp(1.0, exponents - bits))


def _multiply(
    a: Sliced, b: Sliced, multiply: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Multiply vectors slice by slice; `multiply` makes dot products of rows of whole numbers.

    With n slices a product is a₀b₀ + (a₀b₁ + a₁b₀) 2^-bits + …, n terms in all. The dtype does not hold what is left
    out.
    """
    n = len(a.slices)
    bits = _bits(a.slices[0].shape[1], n)
    total: NDArray[np.float64] | float = 0.0
    for k in reversed(range(n)):
        term = multiply(a.slices[0], b.slices[k])
        for i in range(1, k + 1):
            term += multiply(a.slices[i], b.slices[k - i])
        total = total * 0.5**bits + term
    return total * multiply(a.scale, b.scale)
