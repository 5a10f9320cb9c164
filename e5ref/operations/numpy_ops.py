"""The few kernels that NumPy lacks or does slowly. Every function keeps its input's dtype, float32 or float64."""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from e5ref.operations import Array
from e5ref.operations.blas import rows_alternate

# Numbers of one block: large enough that Python's part of a call does not count, small enough to stay in cache.
BLOCK_ELEMENTS = 147_456

# Below this many rows a BLAS takes different paths (a matrix-vector product, kernels for tiny matrices) that add in a
# different order. A row's last bits would then depend on the number of rows.
MIN_ROWS = 16

# Up to this many rows a product of float32 is faster as W xᵀ: a BLAS rearranges its second factor first, which here is
# then the smaller one.
FEW_ROWS = 48


def in_row_blocks(function: Callable[..., None]) -> Callable[..., Array]:
    """Make `function(x, ...)`, which overwrites each row of x [m, n] on its own, work through x in blocks of rows.

    A formula of several steps then finds its intermediate results in the cache instead of in main memory. The
    numbers are the same: no operation crosses rows. What is made returns x.
    """

    @functools.wraps(function)
    def in_blocks(x: Array, *args: Array | float) -> Array:
        rows = max(1, BLOCK_ELEMENTS // x.shape[-1])
        for start in range(0, len(x), rows):
            function(x[start : start + rows], *args)
        return x

    return in_blocks


def matmul_rows(x: Array, weight: Array) -> Array:
    """Multiply rows by a weight of the same dtype, as in the checkpoint: x Wᵀ. [m, in], [out, in] -> [m, out].

    If `rows_are_independent`, a row's bits depend on that row alone. If `rows_alternate`, they also depend on the row's
    index modulo 12.
    """
    rows = len(x)
    if rows_alternate():  # a batch has twelve at least, and W xᵀ would not be faster
        return x @ weight.T
    if rows < MIN_ROWS:
        x = np.concatenate([x, np.zeros((MIN_ROWS - rows, x.shape[1]), x.dtype)])
    if rows <= FEW_ROWS and x.dtype == np.float32:
        return np.ascontiguousarray((weight @ x.T).T[:rows])  # [out, in] @ [in, m] -> [out, m] -> [m, out]
    return (x @ weight.T)[:rows]  # [m, in] @ [in, out] -> [m, out]


def matmul_heads(a: Array, b: Array) -> Array:
    """Multiply head by head, as `a @ b` does, for what goes down the columns afterwards.

    [n, N, t, H] @ [n, N, H, m] -> [n, N, t, m], in memory [n, t, N, m]: row i of all heads lies in one piece. If a text
    is short, NumPy's passes over rows of N · m numbers take half as long as over rows of m.
    """
    texts, heads, rows, _ = a.shape
    return np.matmul(a, b, out=np.empty((texts, rows, heads, b.shape[-1]), a.dtype).transpose(0, 2, 1, 3))


def softmax(scores: Array) -> Array:
    """Softmax down the columns, in place: exp(s - max) / Σ exp(s - max). [..., n, m] -> [..., n, m].

    Each column, [n], is now positive and of sum 1. (Along rows, NumPy's max takes two to four times as long.)
    """
    scores -= scores.max(axis=-2, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-2, keepdims=True)
    return scores


def normal_tail(x: Array) -> Array:
    """Q(x) = 1 - Φ(x) = erfc(x/√2) / 2: the chance that a normal variable exceeds x ≥ 0. Of x's shape and dtype.

    In float64 it is the C library's erfc, element by element. In float32 it is a fit of our own: exp(-x²/2) N(x)/D(x),
    whose ratio of polynomials, of degree 3 and 4, meets exp(x²/2) Q(x) within a relative 1.5e-7 on 0 ≤ x ≤ 3, and
    within 6e-6 up to x = 14.5, beyond which Q is below what float32 can hold. Out there exp multiplies the rounding of
    x² by x²/2, which is more. `x` may go up to 40, from where on Q is 0 in either dtype.
    """
    if x.dtype == np.float64:
        erfc = np.fromiter(map(math.erfc, (x.ravel() * math.sqrt(0.5)).tolist()), np.float64, x.size)
        return 0.5 * erfc.reshape(x.shape)
    tail = x * TAIL_NUMERATOR[0]
    tail += TAIL_NUMERATOR[1]
    tail = horner(tail, x, TAIL_NUMERATOR[2:])
    tail /= horner(x + TAIL_DENOMINATOR[0], x, TAIL_DENOMINATOR[1:])
    exponent = x * x
    exponent *= -0.5
    tail *= np.exp(exponent, out=exponent)
    return tail


def horner(result: Array, x: Array, coefficients: Sequence[np.float32]) -> Array:
    """Go on with a polynomial by Horner's rule: times x, plus the next coefficient, in place."""
    for coefficient in coefficients:
        result *= x
        result += coefficient
    return result


# Highest power first; the denominator's, 1, is left out. Found by weighted least squares iterated towards the least
# greatest relative error (Lawson's method) on 6,000 Chebyshev points of 0 to 14.5, where errors beyond 3 count less.
TAIL_NUMERATOR = [np.float32(value) for value in (0.3988407, 2.9257910, 9.1159062, 13.0820203)]
TAIL_DENOMINATOR = [np.float32(value) for value in (7.3251722, 23.9746758, 39.1074875, 26.1640444)]
