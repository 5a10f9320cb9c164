"""Runs batches of token ids through the NumPy twin, on all cores."""

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from e5ref import numpy_model
from e5ref.checkpoint import Checkpoint
from e5ref.engines.batching import Batch, token_batches
from e5ref.engines.engine import Window
from e5ref.operations.blas import blas, usable_cores
from e5ref.operations.probes import rows_are_independent, threads_do_not_matter

# A thread holds Python's lock for a fiftieth to a twentieth of its time, so more threads would mostly wait for each
# other: see docs/measure/performance.md.
MAX_THREADS = 16

# Environment variables that set the threads of a BLAS.
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")

# Products of batches of this many tokens run at the BLAS's full rate: larger batches would only cost memory.
FULL_TOKENS = 1536

# Up to this many tokens, all threads work on one batch together; more tokens are divided among the threads.
SHARED_TOKENS = 256

# Smallest batch when threads may not share one (sharing would change bits).
LEAST_TOKENS = 64


class NumpyEngine:
    """An `Engine` of the NumPy twin. A batch is one row, in which texts stand one behind another without padding.

    Threads compute whole batches side by side, each with a BLAS of one thread: NumPy lets go of Python's lock inside
    its loops, so that everything runs in parallel and not the matrix products alone. A batch that is alone and small,
    such as a query, is computed by one thread of Python and all of the BLAS.

    Attributes:
        threads: how many cores to use.
    """

    first_texts = window_texts = 1024
    is_accelerator = False

    def __init__(self, checkpoint: Checkpoint, *, threads: int | None = None) -> None:
        """Run the weights of `checkpoint`.

        Without `threads` it uses as many cores as `THREAD_VARIABLES` say, or else `usable_cores`, up to `MAX_THREADS`.

        Raises:
            ValueError: `threads` is no whole number of at least 1.
        """
        if threads is not None and (not isinstance(threads, int | np.integer) or threads < 1):
            raise ValueError(f"threads is {threads!r}, but must be a whole number of at least 1")
        if threads is None:
            threads = min(blas.threads, MAX_THREADS)
            if not any(map(os.environ.get, THREAD_VARIABLES)):
                threads = min(threads, usable_cores())
        self.threads = threads
        self._checkpoint = checkpoint

    def batches(self, lengths: NDArray[np.int64], *, max_texts: int | None = None) -> Iterator[Batch]:
        """Divide texts, of these numbers of tokens, into batches, the longest first."""
        all_tokens = int(lengths.sum())
        rounds = -(-all_tokens // (self.threads * FULL_TOKENS))  # in each of which every thread gets a batch
        tokens = -(-all_tokens // (self.threads * max(rounds, 1)))
        if tokens < SHARED_TOKENS:
            tokens = max(tokens, SHARED_TOKENS if self._threads_do_not_matter else LEAST_TOKENS)
        # If the BLAS rounds a text's rows by what stands beside them, it gets one text at a time. Trying that out takes
        # longer than a query.
        if len(lengths) > 1 and not self.rows_are_independent:
            max_texts = 1
        for texts in token_batches(lengths, tokens=tokens, max_texts=max_texts):
            yield Batch(texts, np.zeros(len(texts), np.int64), (1, int(lengths[texts].sum())))

    def run(self, windows: Iterable[Window], *, normalize: bool, max_texts: int | None = None) -> Iterator[int]:
        """Do what `Engine.run` says."""
        jobs = (
            (window, batch) for window in windows for batch in self.batches(window.tokens.lengths, max_texts=max_texts)
        )
        first, second = next(jobs, None), next(jobs, None)
        if first is None:
            return
        if second is None:
            alone = first[1].shape[1] <= SHARED_TOKENS and self._threads_do_not_matter
            yield self._embed(*first, normalize, self.threads if alone else 1)
            return
        workers = ThreadPoolExecutor(self.threads, "e5ref")
        try:
            under_way: deque[Future[int]] = deque()
            for window, batch in itertools.chain([first, second], jobs):
                under_way.append(workers.submit(self._embed, window, batch, normalize, 1))
                if len(under_way) > 2 * self.threads:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            workers.shutdown(cancel_futures=True)

    def warm_up(self) -> Iterator[int]:
        """Do what the first texts would wait for; yield the number of all steps after each. Here: try out the BLAS."""
        _ = self._threads_do_not_matter, self.rows_are_independent
        yield 1

    def provenance(self) -> dict[str, str]:
        """Say what computed the vectors."""
        return {"backend": "numpy"}

    @property
    def rows_are_independent(self) -> bool:
        """Whether texts can share a batch: whether each keeps its bits in any company."""
        D, F = self._checkpoint.config.hidden_size, self._checkpoint.config.intermediate_size
        shapes = {(D, D), (D, F), (F, D), (D, self._checkpoint.dimensions)}
        return all(rows_are_independent(*shape, self._checkpoint.dtype.name) for shape in shapes)

    @property
    def _threads_do_not_matter(self) -> bool:
        """Whether a text keeps its bits on any number of BLAS threads."""
        config, dtype = self._checkpoint.config, self._checkpoint.dtype.name
        widths = {config.intermediate_size}
        if self._checkpoint.params.dense:
            widths.add(self._checkpoint.dimensions)
        return all(
            threads_do_not_matter(config.hidden_size, width, config.head_size, dtype, self.threads) for width in widths
        )

    def _embed(self, window: Window, batch: Batch, normalize: bool, blas_threads: int) -> int:
        """Compute the vectors of a batch, write them where they belong, and return how many there are."""
        with blas.at_most(blas_threads):
            window.vectors[batch.texts] = numpy_model.embed(
                self._checkpoint.params,
                *batch.arrays(window.tokens.ids, window.tokens.offsets),
                config=self._checkpoint.config,
                pooling=self._checkpoint.settings.pooling,
                normalize=normalize,
                texts_per_row=len(batch.texts),
            )
        return len(batch.texts)
