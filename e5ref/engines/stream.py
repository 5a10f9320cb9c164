"""Texts in, vectors out, window by window: check, tokenize, pack, run, put in place."""

import sys
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Set, Sized
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from e5ref.checkpoint import Checkpoint
from e5ref.engines.engine import Engine, Window, finished_windows
from e5ref.numpy_model import forward, l2_normalize
from e5ref.operations.blas import blas
from e5ref.terminal.progress import progress_bar
from e5ref.tokenizer import TokenIds, Tokenizer

Truncation = Literal["warn", "error", "allow"]

# A window closes early once its texts average more than this many characters.
WINDOW_CHARACTERS = 512

# A window may have this many times the texts of the one before.
WINDOW_GROWTH = 16

# Whoever writes a stream may be slow, so the stream's first three windows, of 1, 16 and 256 texts, are each finished
# before more is read.
WINDOWS_AT_ONCE = 3


class E5Warning(UserWarning):
    """Something that the vectors cannot show: a text was cut, dimensions were left out. Said each time, not once."""


# Behind the caller's own filters, so that those decide first.
warnings.simplefilter("always", E5Warning, append=True)


class CutTexts:
    """What was cut of texts.

    Attributes:
        total: how many texts have been tokenized so far.
        tokens: how many tokens of them are kept.
        cut: how many of them were longer than `max_length`.
        longest: the number of the longest of these.
        n_tokens: how many tokens that one has; if `more_than`, it has more.
        more_than: "more than " or "".
    """

    def __init__(self, max_length: int, truncation: Truncation) -> None:
        """Begin with no texts. `truncation` says what `add` and `warn` do, as in `E5.encode`."""
        self.total = self.tokens = self.cut = self.longest = self.n_tokens = 0
        self.more_than = ""
        self._max_length, self._truncation = max_length, truncation

    def add(self, tokens: TokenIds) -> None:
        """Count the next texts.

        Raises:
            ValueError: one of them was cut under truncation="error".
        """
        cut = np.flatnonzero(tokens.truncated)
        self.cut += len(cut)
        if len(cut) and tokens.n_tokens[cut].max() > self.n_tokens:
            index = cut[tokens.n_tokens[cut].argmax()]
            self.longest, self.n_tokens = self.total + int(index), int(tokens.n_tokens[index])
            self.more_than = "" if tokens.exact[index] else "more than "
        self.total += len(tokens.n_tokens)
        self.tokens += len(tokens.ids)
        if self.cut and self._truncation == "error":
            raise ValueError(
                f"texts[{self.longest}] has {self.more_than}{self.n_tokens} tokens, more than max_length "
                f"{self._max_length}; split it, or allow truncation"
            )

    def warn(self) -> None:
        """Warn if texts were cut under truncation="warn"."""
        if self.cut and self._truncation == "warn":
            warn(
                f"{self.cut} of {self.total} texts are longer than {self._max_length} tokens and were cut; the "
                f"longest, texts[{self.longest}], has {self.more_than}{self.n_tokens} (truncation 'allow' silences "
                "this, 'error' refuses)"
            )


class VectorStream(Iterator[NDArray[np.floating]]):
    """The vectors of texts, window by window, [n, D] each; what `E5.encode_stream` returns.

    Attributes:
        cut_texts: what was cut of the texts so far.
    """

    def __init__(self, parts: Generator[NDArray[np.floating]], cut_texts: CutTexts) -> None:
        """Join what `embed` yields with what it counts."""
        self.cut_texts = cut_texts
        self._parts = parts

    def __next__(self) -> NDArray[np.floating]:
        """Return the vectors of the next window."""
        return next(self._parts)

    def close(self) -> None:
        """Leave the rest undone."""
        self._parts.close()


def embed(
    texts: Iterable[str],
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    engine: Engine,
    cut_texts: CutTexts,
    *,
    prompt: str,
    normalize: bool,
    truncate_dim: int | None,
    max_texts: int | None,
    show_progress_bar: bool | None,
) -> Generator[NDArray[np.floating]]:
    """Turn what `checked_texts` returns into vectors, and count in `cut_texts` what was cut.

    `max_texts` bounds a batch; None does not. The remaining arguments are those of `E5.encode`.

    Yields:
        The vectors of each window, [n, D].
    """

    def windows() -> Iterator[Window]:
        for tokens in tokenized(texts, tokenizer, engine, prompt):
            check_tokens(tokens, cut_texts.total)
            cut_texts.add(tokens)
            yield Window(tokens, np.empty((len(tokens.n_tokens), checkpoint.dimensions), checkpoint.dtype))

    every, total = windows(), number_of(texts)
    groups = [every] if total is not None else [*(islice(every, 1) for _ in range(WINDOWS_AT_ONCE)), every]
    with progress_bar(total, "embedding", "text", show=show_progress_bar) as bar:
        for group in groups:
            for window in finished_windows(engine, group, normalize=normalize, max_texts=max_texts, count=bar.update):
                vectors = window.vectors[:, :truncate_dim]
                yield l2_normalize(vectors) if truncate_dim and normalize else vectors
    cut_texts.warn()


def token_embeddings(
    texts: Iterable[str], checkpoint: Checkpoint, tokenizer: Tokenizer, cut_texts: CutTexts, prompt: str
) -> list[NDArray[np.floating]]:
    """Compute the last hidden states of each text's tokens, prompt and special tokens included. [tokens, D] each."""
    tokens = tokenizer(check_unicode([prompt + as_text(f"texts[{n}]", text) for n, text in enumerate(texts)]))
    check_tokens(tokens)
    cut_texts.add(tokens)
    states = [hidden_states(checkpoint, ids) for ids in tokens.texts()]
    cut_texts.warn()
    return states


def hidden_states(checkpoint: Checkpoint, ids: NDArray[np.integer]) -> NDArray[np.floating]:
    """Compute the last hidden states of one text in the NumPy twin. [tokens] -> [tokens, D]."""
    with blas.at_most(1):  # bits may depend on the number of threads
        return forward(checkpoint.params, ids[None], np.ones((1, len(ids)), int), config=checkpoint.config)[0]


def tokenized(texts: Iterable[str], tokenizer: Tokenizer, engine: Engine, prompt: str) -> Iterator[TokenIds]:
    """Yield the tokens of each window, while a thread makes those of the next; a query does without the thread."""
    thread = ThreadPoolExecutor(1, "e5ref-tokenizer")
    ahead: deque[Callable[[], TokenIds]] = deque()
    try:
        for number, window in enumerate(checked_windows(texts, engine)):
            tokenize = partial(tokenizer, [prompt + text for text in window])
            ahead.append(thread.submit(tokenize).result if number else tokenize)
            if len(ahead) > 1 or (number < WINDOWS_AT_ONCE and number_of(texts) is None):
                yield ahead.popleft()()
        while ahead:
            yield ahead.popleft()()
    finally:
        thread.shutdown(cancel_futures=True)


def checked_windows(texts: Iterable[str], engine: Engine) -> Iterator[list[str]]:
    """Yield the texts of each window, checked; the first window of a stream is a single text."""
    size = 1 if number_of(texts) is None else engine.first_texts
    window: list[str] = []
    first = characters = 0
    for index, text in enumerate(texts):
        text = text if isinstance(text, str) else as_text(f"texts[{index}]", text)
        window.append(text)
        characters += len(text)
        if len(window) == size or characters >= size * WINDOW_CHARACTERS:
            yield check_unicode(window, first)
            size = min(WINDOW_GROWTH * size, engine.window_texts)
            window, first, characters = [], index + 1, 0
    if window:
        yield check_unicode(window, first)


def checked_texts(texts: Any) -> Iterable[str]:
    """Return texts as an iterable, one str as a list of one; refuse what is neither, or a table."""
    if isinstance(texts, str):
        return [texts]
    # Those of pandas and Polars, and of Arrow; iterating over the former would give the names of the columns.
    columns = getattr(texts, "column_names", getattr(texts, "columns", None))
    if columns is not None:
        names = [str(name) for name in columns]
        example = "text" if "text" in names else next(iter(names), "text")
        raise TypeError(
            f"texts is a {type(texts).__name__} with the columns {', '.join(names) or 'none'}; give one of them, such "
            f"as texts[{example!r}]"
        )
    refused = isinstance(texts, bytes | bytearray | Mapping | Set) or (isinstance(texts, np.ndarray) and not texts.ndim)
    if refused or not isinstance(texts, Iterable):
        raise TypeError(f"texts must be a str or an iterable of str in order, not {type(texts).__name__}")
    return texts


def checked_batch_size(batch_size: int | None) -> int | None:
    """Return the most texts of a batch; refuse what is no count."""
    if batch_size is not None and (not isinstance(batch_size, int | np.integer) or batch_size < 1):
        raise ValueError(f"batch_size is {batch_size!r}, but must be a whole number of at least 1")
    return batch_size


def checked_truncation(truncation: str) -> Truncation:
    """Return what to do about long texts; refuse an unknown word."""
    if truncation not in ("warn", "error", "allow"):
        raise ValueError(f"truncation is {truncation!r}, but must be 'warn', 'error' or 'allow'")
    return truncation  # type: ignore[return-value]


def number_of(texts: Iterable[str]) -> int | None:
    """Count texts; None for a stream, and for what only guesses its length, as a progress bar does."""
    return len(texts) if isinstance(texts, Sized) and hasattr(texts, "__getitem__") else None


def as_text(name: str, text: Any) -> str:
    """Return a str, also of an element of an Arrow array; refuse anything else."""
    text = text.as_py() if hasattr(text, "as_py") else text
    if not isinstance(text, str):
        raise TypeError(f"{name} is {type(text).__name__}, not str")
    return text


def check_unicode(texts: list[str], first: int = 0, name: str | None = None) -> list[str]:
    """Return texts if all can be written as UTF-8; else name the first that cannot: `name`, or its number."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        for number, text in enumerate(texts, first):
            for place, character in enumerate(text):
                if "\ud800" <= character <= "\udfff":
                    raise ValueError(
                        f"{name or f'texts[{number}]'} is not valid Unicode: a lone surrogate at position {place}; "
                        "decode the text again, or replace it: text.encode(errors='replace').decode()"
                    ) from None
    return texts


def check_tokens(tokens: TokenIds, first: int = 0) -> None:
    """Refuse texts of which not even the tokens that are kept could be found."""
    if not tokens.lengths.all():
        raise ValueError(
            f"texts[{first + tokens.lengths.argmin()}] has hardly a token in a million characters; take out what is "
            "not text"
        )


def warn(message: str) -> None:
    """Warn at the line that called the library."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__") in (__name__, "e5ref.encoder"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, E5Warning, stacklevel=level)
