"""The few kernels that NumPy lacks or does slowly. Every function keeps its input's dtype, float32 or float64."""

import functools
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

# Elements of one block: large enough that Python's part of a call does not count, small enough to stay in cache.
BLOCK_ELEMENTS = 65_536

# Below this many rows a BLAS takes other paths (a matrix-vector product, kernels for tiny matrices) that add in
# another order, so that a row's last bits would depend on how many rows came with it.
MIN_ROWS = 16


def in_row_blocks(function: Callable[..., Array]) -> Callable[..., Array]:
    """Make `function(x, ...)`, which treats each row of x [m, n] on its own, work through x in blocks of rows.

    A formula of several steps then finds its intermediate results in the cache instead of in main memory. The
    numbers are the same: no operation crosses rows.
    """

    @functools.wraps(function)
    def in_blocks(x: Array, *args: Array | float) -> Array:
        rows = max(1, BLOCK_ELEMENTS // x.shape[-1])
        if len(x) <= rows:
            return function(x, *args)
        result = np.empty_like(x)
        for start in range(0, len(x), rows):
            result[start : start + rows] = function(x[start : start + rows], *args)
        return result

    return in_blocks


def matmul_rows(x: Array, weight: Array) -> Array:
    """Multiply rows by a weight: x Wᵀ.

    Args:
        x: rows, [m, in].
        weight: as in the checkpoint, [out, in], of x's dtype.

    Returns:
        [m, out]. Where `rows_are_independent`, a row's bits depend on that row alone.
    """
    if len(x) >= MIN_ROWS:
        return x @ weight.T  # [m, in] @ [in, out] -> [m, out]
    padded = np.zeros((MIN_ROWS, x.shape[1]), x.dtype)
    padded[: len(x)] = x
    return (padded @ weight.T)[: len(x)]


@functools.cache
def rows_are_independent(features_in: int, features_out: int, dtype: Literal["float32", "float64"]) -> bool:
    """Tell whether this machine's BLAS gives a row of a product the same bits whatever rows stand beside it.

    OpenBLAS does on AVX-512 at E5's widths; on AVX2, and for small weights, its kernels round a row differently by
    its place in the matrix. Nothing documents this, so it is tried out, once per shape: the same rows are multiplied
    together and in parts.

    Args:
        features_in: columns of the rows.
        features_out: rows of the weight.
        dtype: "float32" or "float64".
    """
    random = np.random.default_rng(0)
    rows, weight = (random.random((n, features_in), dtype) - 0.5 for n in (256, features_out))
    together = matmul_rows(rows, weight)
    parts = [(0, 1), (3, 5), (7, 20), (1, 38), (50, 115), (13, 256)]
    return all(np.array_equal(matmul_rows(rows[a:b], weight), together[a:b]) for a, b in parts)


def softmax(scores: Array) -> Array:
    """Softmax over the last axis, in place: exp(s - max) / Σ exp(s - max).

    Args:
        scores: any shape [..., n]; overwritten.

    Returns:
        `scores`, its last axis now positive and of sum 1.
    """
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


def normal_tail(x: Array) -> Array:
    """Q(x) = 1 - Φ(x) = erfc(x/√2) / 2: the chance that a normal variable exceeds x.

    In float64 it is the C library's erfc, element by element. In float32 it is a fit of our own: with
    t = 1 / (1 + 0.3 x), Q(x) = exp(-x²/2) · P(t), where the polynomial P meets exp(x²/2) Q(x) within a relative
    6.4e-8 (half a unit in the last place) on 0 ≤ x ≤ 14.5; beyond that Q is below what float32 can hold. Computed in
    float32 it is right within a relative 1.5e-6 for x < 5 and 8e-6 up to 14.5, where exp multiplies the rounding of x².

    Args:
        x: any shape, not negative.

    Returns:
        Q(x), of x's shape and dtype.
    """
    if x.dtype == np.float64:
        erfc = np.fromiter(map(math.erfc, (x.ravel() * math.sqrt(0.5)).tolist()), np.float64, x.size)
        return 0.5 * erfc.reshape(x.shape)
    t = np.reciprocal(1 + 0.3 * x)
    polynomial = t * TAIL_COEFFICIENTS[0]
    polynomial += TAIL_COEFFICIENTS[1]
    for coefficient in TAIL_COEFFICIENTS[2:]:
        polynomial *= t
        polynomial += coefficient
    exponent = x * x
    exponent *= -0.5 * math.log2(math.e)
    polynomial *= np.exp2(exponent, out=exponent)  # exp2 takes half the time of exp
    return polynomial


# Highest power first. Found by weighted least squares iterated towards the least greatest relative error (Lawson's
# method) on 4,000 Chebyshev points.
TAIL_COEFFICIENTS = [
    np.float32(coefficient)
    for coefficient in (
        3.84073947e-02,
        -1.69307471e-01,
        2.28951795e-01,
        -7.68396774e-02,
        1.42765283e-01,
        9.45858609e-02,
        1.21945263e-01,
        1.19484207e-01,
        7.37239062e-06,
    )
]
