"""Texts of many requests, computed together: the order, the bits, and what a request may not do to another."""

import asyncio
import gc
import itertools
import threading
import time
import weakref
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest

from e5ref.serve import batcher as batcher_module
from e5ref.serve.batcher import WINDOW_TOKENS, Batcher, FullError
from e5ref.serve.metrics import Metrics
from e5ref.tokenizer import TokenIds

TEXTS = [f"query: {'how do plants eat ' * (n % 7)}{n}" for n in range(60)]


class Engine:
    """Gives as the vector of a text the sum of its ids, once `begin` is set; notes the windows."""

    is_accelerator = False

    def __init__(self, window_texts: int = 1000) -> None:
        self.window_texts = window_texts
        self.begin = threading.Event()
        self.windows: list[list[int]] = []

    def run(self, windows, *, normalize, max_texts):
        self.begin.wait()
        for window in windows:
            sums = [int(ids.sum()) for ids in window.tokens.texts()]
            self.windows.append(sums)
            if -1 in sums:
                raise ValueError("numbers grew too large")
            window.vectors[:, 0] = sums
            yield len(sums)


def batcher_of(engine: Engine, max_waiting: int = 1000) -> Batcher:
    model = SimpleNamespace(engine=engine, checkpoint=SimpleNamespace(dimensions=1), dtype=np.float32)
    return Batcher(model, max_waiting, Metrics())


def tokens(*texts: int, length: int = 1) -> TokenIds:
    """Texts of `length` tokens, of which the first is a number and the others are 0."""
    ids = np.zeros((len(texts), length), np.int32)
    ids[:, 0] = texts
    lengths = np.full(len(texts), length)
    return TokenIds(ids.ravel(), np.cumsum([0, *lengths]), lengths, np.ones(len(texts), np.bool_))


async def results(engine, batcher, *jobs) -> list[list[float]]:
    """Begin once all jobs wait, and return their vectors."""
    engine.begin.set()
    await asyncio.gather(*(job.done for job in jobs))
    await asyncio.to_thread(batcher.close)
    return [job.vectors[:, 0].tolist() for job in jobs]


def test_first_come_first_served():
    async def serve():
        engine = Engine(window_texts=3)
        batcher = batcher_of(engine)
        jobs = [batcher.submit(tokens(*texts), "pooled") for texts in ([1, 2], [3, 4, 5, 6, 7], [8])]
        assert await results(engine, batcher, *jobs) == [[1, 2], [3, 4, 5, 6, 7], [8]]
        assert engine.windows == [[1, 2, 3], [4, 5, 6], [7, 8]]

    asyncio.run(serve())


def test_a_window_is_bounded_by_tokens_too():
    async def serve():
        engine = Engine(window_texts=2)
        batcher = batcher_of(engine)
        job = batcher.submit(tokens(1, 2, 3, length=2 * WINDOW_TOKENS), "pooled")
        assert await results(engine, batcher, job) == [[1, 2, 3]]
        assert engine.windows == [[1], [2], [3]]

    asyncio.run(serve())


def test_what_is_wanted_differs():
    """Only texts of which the same is wanted share a window, and none overtakes another."""

    async def serve():
        engine = Engine()
        batcher = batcher_of(engine)
        wanted = ["pooled", "pooled", "normalized", "pooled"]
        jobs = [batcher.submit(tokens(number), kind) for number, kind in enumerate(wanted, 1)]
        assert await results(engine, batcher, *jobs) == [[1], [2], [3], [4]]
        assert engine.windows == [[1, 2], [3], [4]]

    asyncio.run(serve())


def test_a_cancelled_job_frees_its_place():
    async def serve():
        engine = Engine()
        batcher = batcher_of(engine, max_waiting=3)
        first, second = batcher.submit(tokens(1), "pooled"), batcher.submit(tokens(2, 3), "pooled")
        with pytest.raises(FullError):
            batcher.submit(tokens(4), "pooled")
        batcher.cancel(second)
        third = batcher.submit(tokens(4, 5), "pooled")
        assert await results(engine, batcher, first, third) == [[1], [4, 5]]
        assert engine.windows == [[1, 4, 5]]
        assert batcher._texts == batcher._tokens == 0

    asyncio.run(serve())


def test_full_says_when_there_is_room():
    async def serve():
        engine = Engine()
        batcher = batcher_of(engine, max_waiting=2)
        jobs = [batcher.submit(tokens(1, 2, 3, length=100), "pooled")]  # of a queue that is empty, whatever its size
        batcher._tokens_done, batcher._seconds = 1000, 10.0
        with pytest.raises(FullError, match="too many texts wait already; try again in 3 seconds") as caught:
            batcher.check_room()
        assert caught.value.seconds == 3
        await results(engine, batcher, *jobs)

    asyncio.run(serve())


def test_an_error_is_theirs_whose_texts_it_met():
    async def serve():
        engine = Engine(window_texts=1)
        batcher = batcher_of(engine)
        bad = batcher.submit(tokens(-1, 5), "pooled")
        engine.begin.set()
        with pytest.raises(ValueError, match="numbers grew too large"):
            await bad.done
        good = batcher.submit(tokens(7), "pooled")
        assert await results(engine, batcher, good) == [[7]]
        assert engine.windows == [[-1], [7]]

    asyncio.run(serve())


def test_at_the_end_what_waits_is_computed():
    async def serve():
        engine = Engine()
        batcher = batcher_of(engine)
        job = batcher.submit(tokens(1), "pooled")
        engine.begin.set()
        await asyncio.to_thread(batcher.close)
        await job.done
        assert not batcher.is_alive

    asyncio.run(serve())


@pytest.mark.parametrize("is_accelerator", [False, True])
def test_a_queue_that_is_never_empty_says_when_to_come_again(is_accelerator, monkeypatch):
    """The first run of the engine may go on for hours; its windows tell how fast it is."""
    monkeypatch.setattr(batcher_module, "LINGER_SECONDS", 0)

    async def serve():
        engine = Engine(window_texts=1)
        engine.is_accelerator = is_accelerator
        batcher = batcher_of(engine, max_waiting=1)
        engine.begin.set()
        for _ in range(50):
            job = batcher.submit(tokens(1), "normalized")
            with suppress(FullError):  # there is no room for a third
                batcher.submit(tokens(2), "normalized")
                batcher.submit(tokens(3), "normalized")
            with suppress(FullError):
                batcher.check_room(2)
            await job.done
        await asyncio.to_thread(batcher.close)

    asyncio.run(serve())


@pytest.mark.parametrize("is_accelerator", [False, True])
def test_a_run_that_goes_on_holds_no_finished_job(is_accelerator):
    async def serve():
        engine = Engine(window_texts=1)
        engine.is_accelerator = is_accelerator
        engine.begin.set()
        batcher = batcher_of(engine)
        finished, waiting = [], batcher.submit(tokens(1), "normalized")
        for number in range(2, 30):
            job, waiting = waiting, batcher.submit(tokens(number), "normalized")
            await job.done
            finished.append(weakref.ref(job))
            del job
        gc.collect()
        held = sum(reference() is not None for reference in finished)
        await waiting.done
        await asyncio.to_thread(batcher.close)
        return held

    assert asyncio.run(serve()) <= 3


@pytest.mark.parametrize("is_accelerator", [False, True])
def test_a_cpu_waits_a_moment_for_who_was_answered_just_now(is_accelerator, monkeypatch):
    monkeypatch.setattr(batcher_module, "LINGER_SECONDS", 2.0)
    hand_over = Batcher._hand_over

    def hand_over_and_stop_for_a_moment(batcher, parts, vectors):
        hand_over(batcher, parts, vectors)
        time.sleep(0.02)  # the client asks again before the thread goes on

    monkeypatch.setattr(Batcher, "_hand_over", hand_over_and_stop_for_a_moment)

    async def serve():
        engine = Engine()
        engine.is_accelerator = is_accelerator
        engine.begin.set()
        batcher = batcher_of(engine)
        both = batcher.submit(tokens(1, 2), "normalized")
        await both.done
        one = batcher.submit(tokens(3), "normalized")
        await asyncio.sleep(0.05)
        other = batcher.submit(tokens(4), "normalized")
        await asyncio.gather(one.done, other.done)
        begin = asyncio.get_running_loop().time()
        await batcher.submit(tokens(5, 6), "normalized").done  # as many as were answered: nobody is waited for
        seconds = asyncio.get_running_loop().time() - begin
        lonely = batcher.submit(tokens(7), "normalized")
        await lonely.done  # the others stay away
        await asyncio.to_thread(batcher.close)
        return engine.windows, seconds

    windows, seconds = asyncio.run(serve())
    if is_accelerator:
        assert windows == [[1, 2], [3], [4], [5, 6], [7]]
    else:
        assert windows == [[1, 2], [3, 4], [5, 6], [7]]
    assert seconds < 1.5


async def served_together(nano, batcher: Batcher) -> list[np.ndarray]:
    """Submit requests of 1, 2 and 3 texts by turns, all at once; return the vectors of each."""
    starts = np.cumsum([0, *[1, 2, 3] * 10])
    jobs = [
        batcher.submit(nano.tokenizer(TEXTS[start:stop]), "normalized") for start, stop in itertools.pairwise(starts)
    ]
    await asyncio.gather(*(job.done for job in jobs))
    await asyncio.to_thread(batcher.close)
    return [job.vectors for job in jobs]


def test_a_vector_has_the_same_bits_whoever_asks_at_the_same_time(nano):
    metrics = Metrics()
    found = asyncio.run(run_together(nano, metrics))
    alone = [nano.encode(text) for text in TEXTS]
    np.testing.assert_array_equal(np.concatenate(found), alone)
    (windows,) = [
        sample.value
        for metric in metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "e5ref_window_texts_count"
    ]
    assert windows < len(found)  # requests were computed together


async def run_together(nano, metrics: Metrics, kind: type[Batcher] = Batcher) -> list[np.ndarray]:
    return await served_together(nano, kind(nano, 1000, metrics))


class Shifted(Batcher):
    """A planted mistake: the vectors of a window are handed over one place too far."""

    def _hand_over(self, parts, vectors):
        super()._hand_over(parts, np.roll(vectors, 1, axis=0))


def test_mixed_up_vectors_would_be_seen(nano):
    found = np.concatenate(asyncio.run(run_together(nano, Metrics(), Shifted)))
    assert not np.array_equal(found, nano.encode(TEXTS))
