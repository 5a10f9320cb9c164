"""Texts in, vectors out, window by window."""

import itertools
import threading
from functools import partial

import numpy as np
import pytest

from e5ref.engines import stream
from e5ref.operations.blas import blas
from e5ref.terminal.progress import progress_bar


@pytest.fixture(scope="module", autouse=True)
def blas_threads():
    """As many as there are: what they must not change is tested here."""


@pytest.fixture
def small_windows(tiny, monkeypatch):
    """Let windows have a few texts."""

    def set_to(texts):
        monkeypatch.setattr(tiny.engine, "first_texts", texts)
        monkeypatch.setattr(tiny.engine, "window_texts", texts)

    set_to(7)
    return set_to


def test_batches_of_more_than_one_window(tiny, small_windows):
    texts = [f"cat {'a ' * (n % 7)}" for n in range(50)]
    small_windows(1000)
    expected = tiny.encode(texts)
    small_windows(7)
    np.testing.assert_array_equal(tiny.encode(text for text in texts), expected)
    with pytest.raises(ValueError, match=r"texts\[30\] has \d+ tokens"):
        tiny.encode([*texts[:30], "a " * 1000, *texts[30:]], truncation="error")


def test_a_stream_gives_the_same_part_by_part(tiny, small_windows):
    texts = [f"cat {'a ' * (n % 7)}" for n in range(50)]
    expected = tiny.encode(texts)
    parts = list(tiny.encode_stream(text for text in texts))
    assert [len(part) for part in parts] == [1] + [7] * 7
    np.testing.assert_array_equal(np.concatenate(parts), expected)
    (vector,) = tiny.encode_stream("cat", prompt_name="query")
    np.testing.assert_array_equal(vector[0], tiny.encode("query: cat"))
    assert list(tiny.encode_stream([])) == []
    with pytest.raises(ValueError, match="batch_size is 0"):
        tiny.encode_stream(["cat"], batch_size=0)  # at once, and not when the first part is taken


def test_a_stream_reads_a_generator_as_it_goes(tiny, small_windows):
    """What is held is a few windows of texts and batches, however many texts there are."""
    read = 0

    def texts():
        nonlocal read
        while True:  # without end
            read += 1
            yield "cat " + "a " * (read % 5)

    ahead = []
    for number, part in zip(range(1, 60), tiny.encode_stream(texts()), strict=False):
        assert len(part) == (1 if number == 1 else 7)
        ahead.append(read - 7 * number)
    assert max(ahead) <= 7 * (2 * tiny.engine.threads + 4)
    assert max(ahead[40:]) <= max(ahead[:20])


def test_a_stream_that_is_left_ends_its_work(tiny, small_windows):
    before, threads_before = blas.threads, set(threading.enumerate())
    stream = tiny.encode_stream("cat" for _ in itertools.count())
    next(stream)
    stream.close()
    assert set(threading.enumerate()) <= threads_before
    assert blas.threads == before


def test_long_texts_fill_a_window_sooner(tiny, small_windows, monkeypatch):
    monkeypatch.setattr(stream, "WINDOW_CHARACTERS", 10)
    small_windows(4)
    texts = ["cat", "a" * 50, "b" * 39, "", "", "c"]
    assert [len(part) for part in tiny.encode_stream(texts)] == [2, 4]


def test_of_a_stream_the_first_vectors_come_at_once(tiny):
    """Of a generator, whose next text may be long in coming, but not of what can be counted and taken apart."""
    taken = 0

    def texts():
        nonlocal taken
        while True:
            taken += 1
            yield "cat"

    stream = tiny.encode_stream(texts())
    for texts_of_window, read in ((1, 1), (16, 17), (256, 273)):
        assert len(next(stream)) == texts_of_window
        assert taken == read
    assert len(next(tiny.encode_stream(["cat"] * 300))) == 300


def test_a_length_that_is_a_guess(tiny):
    """As of a progress bar around a generator."""

    class Guess:
        def __len__(self):
            return 8

        def __iter__(self):
            return iter(["cat", "dog"])

    np.testing.assert_array_equal(tiny.encode(Guess()), tiny.encode(["cat", "dog"]))


def test_progress_bar(tiny, capsys, monkeypatch):
    tiny.encode(["cat"])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(stream, "progress_bar", partial(progress_bar, delay=0))
    tiny.encode(["cat"] * 3, show_progress_bar=False)
    tiny.encode(["cat"] * 3)  # standard error is no terminal here
    assert capsys.readouterr().err == ""
    tiny.encode(["cat"] * 3, show_progress_bar=True)
    assert "3/3" in capsys.readouterr().err


def test_a_generator_is_not_read_ahead(tiny, small_windows):
    small_windows(2)
    seen = []

    def texts():
        for number in range(5):
            seen.append(number)
            yield "cat" if number < 4 else None

    with pytest.raises(TypeError, match=r"texts\[4\] is NoneType"):
        tiny.encode(texts())
    assert seen == [0, 1, 2, 3, 4]
