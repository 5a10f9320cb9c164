"""What both engines do: token ids in, vectors out."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from e5ref.extras import require
from e5ref.tokenizer import TokenIds

Backend = Literal["numpy", "jax"]
Precision = Literal["highest", "high", "bfloat16", "float16"]


class Window(NamedTuple):
    """Texts that are sorted by length and embedded together."""

    tokens: TokenIds
    vectors: NDArray[np.floating]  # [texts, D], written by the engine


class Engine(Protocol):
    """Runs one of the twins.

    Attributes:
        first_texts: the most texts of the first window of a list: enough to begin with.
        window_texts: the most texts of any window: enough to fill every batch well, few enough to hold.
        is_accelerator: whether a device computes while the host makes the next batches ready.
    """

    first_texts: int
    window_texts: int
    is_accelerator: bool

    def run(self, windows: Iterable[Window], *, normalize: bool, max_texts: int | None) -> Iterator[int]:
        """Compute the vectors of windows, batch by batch, and write each to its place.

        Args:
            windows: taken as the work goes on, some batches ahead.
            normalize: whether to scale vectors to unit L2 norm.
            max_texts: the most texts of a batch; None for no bound.

        Yields:
            How many texts have been finished since; those of a window before those of the next.
        """
        ...

    def warm_up(self) -> Iterator[int]:
        """Do what the first texts would wait for; yield the number of all steps after each."""
        ...

    def provenance(self) -> dict[str, str]:
        """Say what computes the vectors."""
        ...


def finished_windows(
    engine: Engine,
    windows: Iterable[Window],
    *,
    normalize: bool,
    max_texts: int | None = None,
    count: Callable[[int], object] = lambda texts: None,
) -> Iterator[Window]:
    """Run windows, and yield each once all of its texts are finished, in order.

    `count` is called with the number of texts that were finished since; the other arguments are those of `Engine.run`.
    """
    begun: deque[Window] = deque()

    def noted() -> Iterator[Window]:
        for window in windows:
            begun.append(window)
            yield window

    finished = 0
    for texts in engine.run(noted(), normalize=normalize, max_texts=max_texts):
        count(texts)
        finished += texts
        while begun and finished >= len(begun[0].vectors):
            finished -= len(begun[0].vectors)
            yield begun.popleft()


def require_jax() -> None:
    """Raise `ModuleNotFoundError`, with what to install, if there is no JAX."""
    require("jax", "backend 'jax' (the extra is cuda on NVIDIA, tpu on TPU)", "jax")
