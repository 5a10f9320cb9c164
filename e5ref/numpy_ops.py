"""The few kernels that NumPy lacks or does slowly. Every function keeps its input's dtype, float32 or float64."""

import functools
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from e5ref.rows import text_lengths

Array = NDArray[np.floating]

# Elements of one block: large enough that Python's part of a call does not count, small enough to stay in cache.
BLOCK_ELEMENTS = 147_456

# Below this many rows a BLAS takes other paths (a matrix-vector product, kernels for tiny matrices) that add in
# another order, so that a row's last bits would depend on how many rows came with it.
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
    """Multiply rows by a weight: x Wᵀ.

    Args:
        x: rows, [m, in].
        weight: as in the checkpoint, [out, in], of x's dtype.

    Returns:
        [m, out]. Where `rows_are_independent`, a row's bits depend on that row alone; and where `rows_alternate`, on
        its place among twelve.
    """
    rows = len(x)
    if rows_alternate():  # a batch has twelve at least, and W xᵀ would not be faster
        return x @ weight.T
    if rows < MIN_ROWS:
        x = np.concatenate([x, np.zeros((MIN_ROWS - rows, x.shape[1]), x.dtype)])
    if rows <= FEW_ROWS and x.dtype == np.float32:
        return np.ascontiguousarray((weight @ x.T).T[:rows])  # [out, in] @ [in, m] -> [out, m] -> [m, out]
    return (x @ weight.T)[:rows]  # [m, in] @ [in, out] -> [m, out]


class BlasThreads:
    """The number of threads of NumPy's BLAS: one setting of the whole process, lowered for a while and then put back.

    Nothing is done about a BLAS that threadpoolctl does not know, such as Apple's Accelerate.

    A fork waits until no other thread of Python is inside `at_most`. The child would have no such thread to put the
    number back, or to let go of a lock, be it ours or OpenBLAS's. And OpenBLAS hangs at a fork while its own threads
    are at work.
    """

    def __init__(self) -> None:
        """Find the libraries that are loaded by now: NumPy's."""
        self._libraries = ThreadpoolController().select(user_api="blas").lib_controllers
        self._before = [library.num_threads for library in self._libraries]
        self._wanted: list[tuple[int, int]] = []  # the thread of Python that asks, and how many
        self._forks = 0  # how many threads of Python wait for their fork
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        if hasattr(os, "register_at_fork"):  # Windows does not fork
            os.register_at_fork(
                before=self._before_fork, after_in_parent=self._after_fork, after_in_child=self._after_fork_in_child
            )

    @property
    def threads(self) -> int:
        """How many the caller has chosen: all cores, unless the environment or threadpoolctl says otherwise."""
        with self._lock:
            counts = self._before if self._wanted else [library.num_threads for library in self._libraries]
        return max(counts, default=os.cpu_count() or 1)

    @contextmanager
    def at_most(self, threads: int) -> Iterator[None]:
        """Keep to so many threads; of several who ask for this at a time, the least number counts."""
        me = threading.get_ident()
        with self._lock:
            # What the fork waits for goes on, whatever it asks for within.
            self._changed.wait_for(lambda: not self._forks or any(thread == me for thread, _ in self._wanted))
            if not self._wanted:
                self._before = [library.num_threads for library in self._libraries]
            self._wanted.append((me, threads))
            self._set()
        try:
            yield
        finally:
            with self._lock:
                self._wanted.remove((me, threads))
                self._set()
                self._changed.notify_all()

    def _set(self) -> None:
        for library, before in zip(self._libraries, self._before, strict=True):
            # From version 3.7 on threadpoolctl heeds one thread of Python only, lest others set it back; here the lock
            # sees to that.
            set_threads = getattr(library, "_real_set_num_threads", library.set_num_threads)
            set_threads(min([before, *(threads for _, threads in self._wanted)]))

    def _before_fork(self) -> None:
        me = threading.get_ident()
        self._lock.acquire()
        self._forks += 1
        self._changed.wait_for(lambda: all(thread == me for thread, _ in self._wanted))

    def _after_fork(self) -> None:
        self._forks -= 1
        self._changed.notify_all()
        self._lock.release()

    def _after_fork_in_child(self) -> None:
        self._forks = 0
        self._lock.release()


blas = BlasThreads()


@functools.cache
def rows_alternate() -> bool:
    """Tell whether the BLAS rounds the first six of every twelve rows alike, and the other six in another way.

    OpenBLAS's kernels for AVX2 do. Nothing documents this, so it is tried out.
    """
    random = np.random.default_rng(0)
    row, weight = random.random(384, np.float32) - 0.5, random.random((96, 384), np.float32) - 0.5
    with blas.at_most(1):
        products = np.tile(row, (36, 1)) @ weight.T
    twelve = np.repeat(products[[0, 6]], 6, axis=0)
    return not np.array_equal(products[0], products[6]) and np.array_equal(products, np.tile(twelve, (3, 1)))


def token_rows(attention_mask: NDArray[np.integer]) -> NDArray[np.int64] | slice:
    """Say in which rows the tokens of a batch stand, for the BLAS to round each alike whatever texts are there.

    Where `rows_alternate`, tokens at even positions of their text take the first six of every twelve rows, and those at
    odd positions the other six. Elsewhere each takes the next row.

    Args:
        attention_mask: [B, T], k > 0 for a token of the row's k-th text.

    Returns:
        The row of each token, text after text; or all rows, as a slice.
    """
    return alternating_rows(tuple(text_lengths(attention_mask).ravel().tolist())) if rows_alternate() else slice(None)


@functools.lru_cache(maxsize=32)  # every layer of a batch asks for them, of several batches at a time
def alternating_rows(lengths: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the rows of `token_rows` for texts of these lengths, where the BLAS rounds rows in turns of six."""
    counts = np.array(lengths, np.int64)
    odd = (np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)) % 2  # [tokens]
    before = np.where(odd, np.cumsum(odd), np.cumsum(1 - odd)) - 1  # [tokens], how many of its kind stand before each
    places = before // 6 * 12 + odd * 6 + before % 6
    places.flags.writeable = False  # it is handed out again
    return places


def rows_of(tokens: Array, places: NDArray[np.int64] | slice) -> Array:
    """Put what belongs to tokens into the rows that `token_rows` says. [tokens, n] -> [R, n].

    Rows that are left over, of the last twelve and where a text has an even position more, repeat the first token.
    """
    if isinstance(places, slice):
        return tokens
    rows = np.repeat(tokens[:1], (places.max(initial=-1) // 12 + 1) * 12, axis=0)
    rows[places] = tokens
    return rows


@functools.cache
def rows_are_independent(features_in: int, features_out: int, dtype: Literal["float32", "float64"]) -> bool:
    """Tell whether tokens, in their places, get the same bits whatever stands beside them.

    OpenBLAS gives them that at E5's widths on x86-64 with AVX, AVX2 or AVX-512, and not always elsewhere. It is tried
    out, once per shape: the same tokens are multiplied together and in parts, by one thread.

    Args:
        features_in: columns of the rows.
        features_out: rows of the weight.
        dtype: "float32" or "float64".
    """
    random = np.random.default_rng(0)
    states, weight = (random.random((n, features_in), dtype) - 0.5 for n in (256, features_out))

    def products(first: int, last: int) -> Array:
        places = token_rows(np.ones((1, last - first), np.int64))
        return matmul_rows(rows_of(states[first:last], places), weight)[places]

    parts = [(0, 1), (2, 5), (8, 20), (4, 38), (50, 115), (12, 256)]
    with blas.at_most(1):
        together = products(0, 256)
        return all(np.array_equal(products(first, last), together[first:last]) for first, last in parts)


@functools.cache
def threads_do_not_matter(
    hidden_size: int, intermediate_size: int, head_size: int, dtype: Literal["float32", "float64"], threads: int
) -> bool:
    """Tell whether this machine's BLAS gives texts of up to 256 tokens the same bits with one thread and with several.

    Args:
        hidden_size: D.
        intermediate_size: F.
        head_size: H.
        dtype: "float32" or "float64".
        threads: how many are several.
    """
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


def matmul_heads(a: Array, b: Array) -> Array:
    """Multiply head by head, as `a @ b` does, for what goes down the columns afterwards.

    [n, N, t, H] @ [n, N, H, m] -> [n, N, t, m], in memory [n, t, N, m]: row i of all heads lies in one piece. Where a
    text is short, NumPy's passes over rows of N · m numbers take half of their time over rows of m.
    """
    texts, heads, rows, _ = a.shape
    return np.matmul(a, b, out=np.empty((texts, rows, heads, b.shape[-1]), a.dtype).transpose(0, 2, 1, 3))


def softmax(scores: Array) -> Array:
    """Softmax down the columns, in place: exp(s - max) / Σ exp(s - max).

    Args:
        scores: any shape [..., n, m]; overwritten.

    Returns:
        `scores`, each column [n] now positive and of sum 1. (Along rows, NumPy's max takes two to four times as long.)
    """
    scores -= scores.max(axis=-2, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-2, keepdims=True)
    return scores


def normal_tail(x: Array) -> Array:
    """Q(x) = 1 - Φ(x) = erfc(x/√2) / 2: the chance that a normal variable exceeds x.

    In float64 it is the C library's erfc, element by element. In float32 it is a fit of our own: exp(-x²/2) N(x)/D(x),
    where the ratio of polynomials of degree 3 and 4 meets exp(x²/2) Q(x) within a relative 1.5e-7 on 0 ≤ x ≤ 3, and
    within 6e-6 up to x = 14.5, beyond which Q is below what float32 can hold. Out there exp multiplies the rounding of
    x² by x²/2, which is more. `x` may go up to 40, from where on Q is 0 in either dtype.

    Args:
        x: any shape, not negative.

    Returns:
        Q(x), of x's shape and dtype.
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
