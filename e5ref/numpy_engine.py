"""Runs batches of token ids through the NumPy twin, on all cores."""

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from e5ref import numpy_model
from e5ref.batching import NumberedIds, pad_ids, token_batches
from e5ref.checkpoint import Checkpoint
from e5ref.numpy_ops import blas, rows_are_independent, threads_do_not_matter

# A thread holds Python's lock for a fiftieth to a twentieth of its time, so that more would mostly wait for each other:
# see docs/performance.md.
MAX_THREADS = 16

# What people set to say how many threads a BLAS has.
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")

# Tokens of a batch with which products run at the BLAS's full rate: more would only cost memory.
FULL_TOKENS = 1536

# Characters of a token in mean, in English.
TOKEN_CHARACTERS = 4

# Tokens up to which all threads work on one batch together; more are divided among the threads.
SHARED_TOKENS = 256

# Tokens that are worth a batch, where threads do not work on one together since it would get other bits.
LEAST_TOKENS = 64


class Batch(NamedTuple):
    """Token ids of some texts, and where their vectors belong."""

    ids: Sequence[Sequence[int] | NDArray[np.integer]]
    vectors: NDArray[np.floating]  # [n, D], of a whole window of texts
    rows: list[int]  # the rows of `vectors` that are those of `ids`

    @classmethod
    def of(cls, texts: Sequence[NumberedIds], vectors: NDArray[np.floating]) -> "Batch":
        """Make one of what an engine's `batches` yields; the texts' rows are those of `vectors`."""
        return cls([ids for _, ids in texts], vectors, [row for row, _ in texts])


class NumpyEngine:
    """What `E5` asks of a twin. `JaxEngine` has the same methods.

    Threads compute whole batches side by side, each with a BLAS of one thread: NumPy lets go of Python's lock inside
    its loops, so that everything runs in parallel and not the matrix products alone. A batch that is alone and small,
    such as a query, is computed by one thread of Python and all of the BLAS.

    Attributes:
        threads: how many cores to use.
        window_texts: how many texts to sort by length together: enough to fill every batch well, few enough to hold.
        piece_texts: how many of the first window to tokenize together.
        first_characters: characters of texts that keep every thread busy once.
    """

    window_texts = piece_texts = 1024

    def __init__(self, checkpoint: Checkpoint, *, pad_id: int, threads: int | None = None) -> None:
        """Run the weights of `checkpoint`.

        Args:
            checkpoint: the weights, float32 or float64.
            pad_id: fills short rows of a batch.
            threads: how many cores to use; None for as many as `THREAD_VARIABLES` say, or else `usable_cores`, up to
                `MAX_THREADS`.

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
        self.first_characters = self.threads * FULL_TOKENS * TOKEN_CHARACTERS
        self._checkpoint = checkpoint
        self._pad_id = pad_id

    def batches(
        self, pieces: Iterable[Sequence[NumberedIds]], *, total: int, max_texts: int | None
    ) -> Iterator[list[NumberedIds]]:
        """Split texts that come some at a time, `total` in all, into batches of at most `max_texts`."""
        texts = list(itertools.chain.from_iterable(pieces))
        lengths = [len(ids) for _, ids in texts]
        all_tokens = sum(lengths)
        rounds = -(-all_tokens // (self.threads * FULL_TOKENS))  # in each of which every thread gets a batch
        tokens = -(-all_tokens // (self.threads * max(rounds, 1)))
        if tokens < SHARED_TOKENS:
            tokens = max(tokens, SHARED_TOKENS if self._threads_do_not_matter else LEAST_TOKENS)
        # Where the BLAS rounds a text's rows differently by what stands beside them, it gets one text at a time; trying
        # that out takes longer than a query.
        if total > 1 and not self.rows_are_independent:
            max_texts = 1
        for batch in token_batches(lengths, tokens=tokens, max_texts=max_texts):
            yield [texts[index] for index in batch]

    def run(self, batches: Iterable[Batch], *, normalize: bool) -> Iterator[Batch]:
        """Compute the vectors of each batch, write them where they belong, and yield the batches in their order."""
        batches = iter(batches)
        first, second = next(batches, None), next(batches, None)
        if first is None:
            return
        if second is None:
            alone = sum(map(len, first.ids)) <= SHARED_TOKENS and self._threads_do_not_matter
            yield self._embed(first, normalize, self.threads if alone else 1)
            return
        workers = ThreadPoolExecutor(self.threads, "e5ref")
        try:
            under_way: deque[Future[Batch]] = deque()
            for batch in itertools.chain([first, second], batches):
                under_way.append(workers.submit(self._embed, batch, normalize, 1))
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
        """Whether texts can share a batch: whether each keeps its bits whatever stands beside it."""
        D, F = self._checkpoint.config.hidden_size, self._checkpoint.config.intermediate_size
        return all(rows_are_independent(*shape, self._dtype) for shape in ((D, D), (D, F), (F, D)))

    @property
    def _threads_do_not_matter(self) -> bool:
        """Whether a text keeps its bits whatever number of threads the BLAS has."""
        config = self._checkpoint.config
        sizes = config.hidden_size, config.intermediate_size, config.head_size
        return threads_do_not_matter(*sizes, self._dtype, self.threads)

    @property
    def _dtype(self) -> str:
        return str(self._checkpoint.params.embeddings.word.dtype)

    def _embed(self, batch: Batch, normalize: bool, blas_threads: int) -> Batch:
        """Compute the vectors of a batch and write them where they belong."""
        input_ids, attention_mask = pad_ids(batch.ids, self._pad_id)
        with blas.at_most(blas_threads):
            batch.vectors[batch.rows] = numpy_model.embed(
                self._checkpoint.params,
                input_ids,
                attention_mask,
                config=self._checkpoint.config,
                pooling=self._checkpoint.settings.pooling,
                normalize=normalize,
            )
        return batch


def usable_cores(root: Path = Path("/")) -> int:
    """Count the cores that this process may keep busy: those of its affinity, up to the CPU quota of its container.

    A quota may be a part of a core, and is rounded up. Containers are cgroups, of version 2 or 1; of nested ones the
    least quota counts.

    Args:
        root: holds `proc` and `sys`, if this is Linux.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    groups = root / "sys/fs/cgroup"
    with suppress(OSError, ValueError):  # whatever cannot be read bounds nothing
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:  # version 2
                folder, files = groups / path.strip("/"), ["cpu.max"]
            elif "cpu" in controllers.split(","):
                folder, files = groups / "cpu" / path.strip("/"), ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
            else:
                continue
            # Seen from a container, the path may be one that exists outside only; its quota is then at the top.
            for group in (folder, *folder.parents):
                with suppress(FileNotFoundError):
                    quota, period = " ".join((group / file).read_text() for file in files).split()
                    if quota not in ("max", "-1"):
                        cores = min(cores, max(1, -(-int(quota) // int(period))))
    return cores
