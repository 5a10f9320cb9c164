"""Texts of all requests in, vectors out: what waits is computed together, by the engine that `encode` uses."""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from e5ref.encoder import E5
from e5ref.engines.engine import Window, finished_windows
from e5ref.engines.stream import hidden_states
from e5ref.serve.metrics import Metrics
from e5ref.tokenizer import TokenIds

# What a request wants: vectors of unit L2 norm, vectors as they are pooled, or the hidden states of all tokens.
Wanted = Literal["normalized", "pooled", "hidden states"]

# Tokens of a text in mean, up to which a window is full when it has its number of texts. The texts of a window are
# computed the longest first, so a query waits for its whole window: this bounds how long.
WINDOW_TOKENS = 8

# Whoever was answered may ask again at once. So that one window does for all clients, the next waits these seconds and
# the time that the event loop has with the answers. It waits on as long as texts come faster than they are computed,
# until as many are there as were answered, or the window is full.
LINGER_SECONDS = 0.002
REQUEST_SECONDS = 0.0003  # of the event loop, to read one or to answer it


class FullError(Exception):
    """Too many texts wait.

    Attributes:
        seconds: when to try again.
    """

    def __init__(self, seconds: int) -> None:
        """Take the seconds after which there will be room."""
        super().__init__(f"too many texts wait already; try again in {seconds} seconds")
        self.seconds = seconds


class Job:
    """The texts of one request.

    Attributes:
        tokens: of its n texts.
        wanted: what to compute of them.
        vectors: [n, D], written part by part.
        hidden_states: those of each text, [tokens, D], if they are wanted.
        begun: how many texts the engine has been given.
        left: how many texts are not finished.
        done: set when all texts are finished, or with the error that ended the work.
    """

    def __init__(self, tokens: TokenIds, wanted: Wanted, vectors: NDArray[np.floating]) -> None:
        """Take the texts' tokens. Must be called in the event loop that waits for `done`."""
        self.tokens, self.wanted, self.vectors = tokens, wanted, vectors
        self.hidden_states: list[NDArray[np.floating]] = []
        self.begun, self.left = 0, len(vectors)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def finish(self, texts: int) -> None:
        """Count finished texts."""
        self.left -= texts
        if not self.left and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        """Say that the texts cannot be computed."""
        if not self.done.done():
            self.done.set_exception(error)


class Part(NamedTuple):
    """Some texts of a job, one behind another in a window."""

    job: Job
    texts: slice

    @property
    def tokens(self) -> TokenIds:
        """The tokens of these texts."""
        ids, offsets, n_tokens, exact = self.job.tokens
        offsets = offsets[self.texts.start : self.texts.stop + 1]
        return TokenIds(ids[offsets[0] : offsets[-1]], offsets - offsets[0], n_tokens[self.texts], exact[self.texts])


class Batcher:
    """Computes the texts of all requests, first come first served, on a thread of its own.

    The thread makes windows of what waits, of several requests where there are several, and gives them to one run of
    the engine, which goes on as long as texts wait.
    """

    def __init__(self, model: E5, max_waiting: int, metrics: Metrics) -> None:
        """Start the thread.

        Args:
            model: turns texts into vectors.
            max_waiting: the most texts that wait for the engine; one request may have more if no other waits.
            metrics: counts.
        """
        self._model, self._metrics = model, metrics
        self._max_waiting = max_waiting
        self._jobs: deque[Job] = deque()
        self._texts = self._tokens = 0  # of the jobs, those that wait
        self._tokens_done, self._seconds = 0, 0.0  # what the engine has done, and in what time
        # How many texts the next window waits for, until when at most, and what one of them will take to compute.
        self._expected, self._linger_until, self._text_seconds = 0, 0.0, 0.0
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="e5ref-batcher", daemon=True)
        self._thread.start()
        metrics.waiting.set_function(lambda: self._texts)

    @property
    def is_alive(self) -> bool:
        """Whether texts are computed."""
        return self._thread.is_alive()

    def check_room(self, texts: int = 1) -> None:
        """Raise `FullError` if no room is left for more texts."""
        with self._changed:
            if self._jobs and self._texts + texts > self._max_waiting:
                tokens_per_second = self._tokens_done / self._seconds if self._seconds else math.inf
                raise FullError(max(1, math.ceil(self._tokens / tokens_per_second)))

    def submit(self, tokens: TokenIds, wanted: Wanted) -> Job:
        """Put texts at the end of the queue.

        Args:
            tokens: of n texts, at least 1.
            wanted: what to compute of them.

        Returns:
            The job; await its `done`.

        Raises:
            FullError: too many texts wait already.
        """
        width = self._model.checkpoint.dimensions
        job = Job(tokens, wanted, np.empty((len(tokens.n_tokens), width), self._model.dtype))
        with self._changed:
            self.check_room(len(job.vectors))
            self._jobs.append(job)
            self._count(job, +1)
            self._linger_until += max(REQUEST_SECONDS, self._text_seconds * len(job.vectors))
            self._changed.notify()
        return job

    def cancel(self, job: Job) -> None:
        """Leave undone what has not begun of a job. Must be called in the job's event loop."""
        job.done.cancel()
        self._drop(job)

    def _drop(self, job: Job) -> None:
        """Take a job off the queue."""
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)
                self._count(job, -1)

    def close(self) -> None:
        """Finish what waits, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _count(self, job: Job, sign: int) -> None:
        """Add what waits of a job to the sums, or take it away."""
        self._texts += sign * (len(job.vectors) - job.begun)
        self._tokens += sign * int(job.tokens.offsets[-1] - job.tokens.offsets[job.begun])

    def _work(self) -> None:
        """Run the engine whenever texts wait."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if not self._jobs:
                    return
                wanted = self._jobs[0].wanted
            if wanted == "hidden states":
                self._run_hidden_states()
            else:
                self._run(wanted)

    def _run(self, wanted: Wanted) -> None:
        """Run the engine as long as texts wait of which this is wanted."""
        begun: deque[list[Part]] = deque()  # of each window
        jobs: set[Job] = set()  # those under way: a run may go on for hours

        def windows() -> Iterator[Window]:
            while parts := self._next_parts(wanted):
                jobs.update(part.job for part in parts)
                tokens = joined([part.tokens for part in parts])
                vectors = np.empty((len(tokens.n_tokens), parts[0].job.vectors.shape[1]), self._model.dtype)
                begun.append(parts)
                yield Window(tokens, vectors)

        engine = self._model.engine
        # An accelerator has the next window at hand while it computes one. A CPU takes what waits once it is done: a
        # window that is made later has more texts, and many small ones cost more than a large one.
        runs = [windows()] if engine.is_accelerator else ([window] for window in windows())
        try:
            for run in runs:
                start = time.perf_counter()
                for window in finished_windows(engine, run, normalize=wanted == "normalized"):
                    parts = begun.popleft()
                    end = time.perf_counter()
                    self._seconds += end - start
                    # Before the answer: whoever has it may ask again at once, and is then among those expected.
                    with self._changed:
                        self._expected = self._texts + len(window.vectors)
                        self._linger_until = end + LINGER_SECONDS + REQUEST_SECONDS * len(parts)
                        self._text_seconds = (end - start) / len(window.vectors)
                    start = end
                    self._hand_over(parts, window.vectors)
                    jobs.difference_update(part.job for part in parts if part.texts.stop == len(part.job.vectors))
        except Exception as error:  # it is theirs who wait; the next run may go well
            for job in jobs:
                self._drop(job)
                job.done.get_loop().call_soon_threadsafe(job.fail, error)

    def _next_parts(self, wanted: Wanted) -> list[Part]:
        """Take a window's texts off the queue; none if no text waits, or something else is wanted of the next."""
        parts: list[Part] = []
        texts = self._model.engine.window_texts
        tokens = texts * WINDOW_TOKENS
        with self._changed:
            if not self._model.engine.is_accelerator:
                self._linger(tokens)
            while self._jobs and self._jobs[0].wanted == wanted and texts > 0 and tokens > 0:
                job = self._jobs[0]
                offsets, start = job.tokens.offsets, job.begun
                reached = int(np.searchsorted(offsets, offsets[start] + tokens))  # its last text may bring more tokens
                stop = min(reached, start + texts, len(job.vectors))
                parts.append(Part(job, slice(start, stop)))
                texts -= stop - start
                tokens -= int(offsets[stop] - offsets[start])
                self._count(job, -1)
                job.begun = stop
                self._count(job, +1)
                if stop == len(job.vectors):
                    self._jobs.popleft()
        return parts

    def _linger(self, tokens: int) -> None:
        """Wait for those who were answered just now, as long as they come fast and there is room."""
        while self._texts < self._expected and self._tokens < tokens and not self._closed:
            left = self._linger_until - time.perf_counter()
            if left <= 0 or not self._changed.wait(left):
                return

    def _hand_over(self, parts: list[Part], vectors: NDArray[np.floating]) -> None:
        """Give a window's vectors to its jobs."""
        start = 0
        tokens = 0
        for job, texts in parts:
            stop = start + texts.stop - texts.start
            job.vectors[texts] = vectors[start:stop]
            tokens += int(job.tokens.offsets[texts.stop] - job.tokens.offsets[texts.start])
            start = stop
        self._count_done(len(vectors), tokens)

        def finish() -> None:
            for job, texts in parts:
                job.finish(texts.stop - texts.start)

        parts[0].job.done.get_loop().call_soon_threadsafe(finish)  # once for all of them

    def _run_hidden_states(self) -> None:
        """Compute the next job's hidden states, text by text in the NumPy twin."""
        with self._changed:
            job = self._jobs.popleft()
            self._count(job, -1)
        loop = job.done.get_loop()
        try:
            for ids in job.tokens.texts():
                if job.done.cancelled():
                    break
                start = time.perf_counter()
                job.hidden_states.append(hidden_states(self._model.checkpoint, ids))
                self._seconds += time.perf_counter() - start
                self._count_done(1, len(ids))
                loop.call_soon_threadsafe(job.finish, 1)
        except Exception as error:
            loop.call_soon_threadsafe(job.fail, error)

    def _count_done(self, texts: int, tokens: int) -> None:
        self._tokens_done += tokens
        self._metrics.texts.inc(texts)
        self._metrics.tokens.inc(tokens)
        self._metrics.window_texts.observe(texts)
        self._metrics.window_tokens.observe(tokens)


def joined(parts: list[TokenIds]) -> TokenIds:
    """Join the tokens of several lists of texts."""
    if len(parts) == 1:
        return parts[0]
    offsets = np.cumsum([0, *np.concatenate([part.lengths for part in parts])])
    return TokenIds(
        np.concatenate([part.ids for part in parts]),
        offsets,
        np.concatenate([part.n_tokens for part in parts]),
        np.concatenate([part.exact for part in parts]),
    )
