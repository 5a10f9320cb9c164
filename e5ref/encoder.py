"""E5: texts in, vectors out."""

import importlib.metadata
import itertools
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Set, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from e5ref import numpy_model
from e5ref.batching import NumberedIds, pad_ids
from e5ref.checkpoint import DEFAULT_CHECKPOINT, Checkpoint, file_sha256, read_checkpoint
from e5ref.extras import require
from e5ref.numpy_engine import Batch, NumpyEngine
from e5ref.progress import progress_bar
from e5ref.prompts import find_prompt
from e5ref.similarity import cosines, pairwise_cosines
from e5ref.tokenizer import Encoded, TokenizedText, Tokenizer

if TYPE_CHECKING:
    from e5ref.jax_engine import JaxEngine

Truncation = Literal["warn", "error", "allow"]
Backend = Literal["numpy", "jax"]
Precision = Literal["highest", "high", "bfloat16", "float16"]


class E5Warning(UserWarning):
    """Something that the vectors cannot show: a text was cut, dimensions were left out. Said each time, not once."""


# Behind the caller's own filters, so that those decide first.
warnings.simplefilter("always", E5Warning, append=True)


# Texts of a window that were tokenized together: (row in the window, text) of each.
_Piece = list[tuple[int, TokenizedText]]

# Characters of a text in mean, up to which a window is full when it has its number of texts.
WINDOW_CHARACTERS = 512


class Tokens(TypedDict):
    """What `E5.tokenize` returns; the first two entries are what the model card's code calls `batch_dict`."""

    input_ids: NDArray[np.int64]  # [B, T]
    attention_mask: NDArray[np.int64]  # [B, T], 1 for a real token
    n_tokens: NDArray[np.int64]  # [B], tokens of each text uncut, with [CLS] and [SEP]; a very long one may have more
    truncated: NDArray[np.bool_]  # [B], whether the text was cut to max_length


def load(
    model_name_or_path: str | Path = DEFAULT_CHECKPOINT,
    *,
    revision: str | None = None,
    backend: Backend = "numpy",
    dtype: str = "float32",
    precision: Precision | None = None,
    threads: int | None = None,
    max_length: int | None = None,
    truncation: Truncation = "warn",
    batch_size: int | None = None,
    truncate_dim: int | None = None,
) -> "E5":
    """Load a checkpoint, ready to embed texts.

    Args:
        model_name_or_path: a hub name such as "intfloat/e5-small-v2", or a folder.
        revision: the hub's commit, tag or branch; None takes the commit that e5ref pins for a known name.
        backend: "numpy", or "jax" for GPU and TPU; "jax" takes all devices that JAX shows.
        dtype: "float32" or "float64", what everything is computed in, and what vectors are made of.
        precision: how JAX computes in float32: "highest" (the same as None: as exactly as NumPy), "high" (products
            rounded to TF32 on NVIDIA, made of three in bfloat16 on TPU, exact on a CPU), "bfloat16" or "float16"
            (weights, and states between them, of that type).
        threads: how many cores NumPy uses; None for all that this process may use, or as many as OPENBLAS_NUM_THREADS
            and the like say, up to 16. Vectors do not depend on it.
        max_length: the most tokens of a text, [CLS] and [SEP] counted; None for the checkpoint's own.
        truncation: what to do about longer texts: "warn" and cut, "error", or "allow" (cut without a word).
        batch_size: the most texts in one batch; None for as many as make a batch of full size. Vectors do not depend
            on it.
        truncate_dim: keep this many dimensions, the first ones; None for all. Warns, because E5 is not trained for it.

    Returns:
        The model.

    Raises:
        CheckpointError: the checkpoint cannot be found, is damaged, or is not one that e5ref runs.
        ValueError: an argument that is out of its range.
        ModuleNotFoundError: backend "jax" without JAX; the message says what to install.
    """
    if backend == "jax":
        require_jax()  # before anything is fetched
    return E5(
        read_checkpoint(model_name_or_path, revision=revision, dtype=dtype),
        backend=backend,
        precision=precision,
        threads=threads,
        max_length=max_length,
        truncation=truncation,
        batch_size=batch_size,
        truncate_dim=truncate_dim,
    )


class E5:
    """A checkpoint, its tokenizer, and the twin that runs it: texts in, vectors out.

    Attributes:
        checkpoint: the weights, the configuration, and how to pool.
        tokenizer: texts → ids.
        engine: ids → vectors, in NumPy or JAX.
        truncation: what to do about texts longer than `tokenizer.max_length`.
        batch_size: the most texts in one batch; None for as many as make a batch of full size.
        truncate_dim: how many dimensions are kept; None for all.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        backend: Backend = "numpy",
        precision: Precision | None = None,
        threads: int | None = None,
        max_length: int | None = None,
        truncation: Truncation = "warn",
        batch_size: int | None = None,
        truncate_dim: int | None = None,
    ) -> None:
        """Join a checkpoint with its tokenizer; the arguments are those of `load`."""
        self.checkpoint = checkpoint
        self.truncation = _checked_truncation(truncation)
        self.batch_size = _checked_batch_size(batch_size)
        self.truncate_dim = self._checked_width(truncate_dim)
        if max_length is None:
            max_length = checkpoint.settings.max_length
        self.tokenizer = Tokenizer(checkpoint.folder, checkpoint.config, max_length)
        self.engine = self._make_engine(backend, precision, threads)

    def _make_engine(
        self, backend: Backend, precision: Precision | None, threads: int | None
    ) -> "NumpyEngine | JaxEngine":
        if backend == "numpy":
            if precision is not None:
                raise ValueError("precision is for backend='jax'; NumPy computes everything in dtype")
            return NumpyEngine(self.checkpoint, pad_id=self.tokenizer.pad_id, threads=threads)
        if backend != "jax":
            raise ValueError(f"backend is {backend!r}, but must be 'numpy' or 'jax'")
        if threads is not None:
            raise ValueError("threads is for backend='numpy'; JAX takes whole devices")
        require_jax()
        from e5ref.jax_engine import JaxEngine

        return JaxEngine(
            self.checkpoint,
            pad_id=self.tokenizer.pad_id,
            max_length=self.tokenizer.max_length,
            precision=precision or "highest",
        )

    def __repr__(self) -> str:
        """Say which model this is, what runs it, and what its vectors are."""
        facts = self.engine.provenance() | {"dtype": str(self.dtype)}
        shown = {name: facts[name] for name in ("backend", "precision", "platform", "dtype") if name in facts}
        described = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        return (
            f"E5({self.checkpoint.name!r}, {described}, dimensions={self.dimensions}, "
            f"max_length={self.tokenizer.max_length})"
        )

    @property
    def dimensions(self) -> int:
        """How many numbers a vector has."""
        return self.truncate_dim or self.checkpoint.config.hidden_size

    @property
    def dtype(self) -> np.dtype[Any]:
        """What the vectors are made of."""
        dtype: np.dtype[Any] = self.checkpoint.params.embeddings.word.dtype
        return dtype

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        normalize_embeddings: bool | None = None,
        truncate_dim: int | None = None,
        truncation: Truncation | None = None,
    ) -> NDArray[np.floating]:
        """Turn texts into vectors.

        The texts are taken as they are: an E5 text starts with "query: " or "passage: " (`encode_query` and
        `encode_document` put that there). Keyword names are those of sentence-transformers.

        Args:
            texts: one text, or any iterable of them. The empty string is a text too.
            prompt_name: which of the checkpoint's prompts to put before each text.
            prompt: a prompt to put before each text, instead of a named one.
            batch_size: the most texts in one batch; None for the model's own setting. Vectors do not depend on it.
            show_progress_bar: None shows one in a terminal or notebook once the work has taken 2 seconds.
            normalize_embeddings: whether to scale vectors to unit L2 norm; None does as the checkpoint says (E5: yes).
            truncate_dim: keep this many dimensions, the first ones; None for the model's own setting. Warns, because
                E5 is not trained for that.
            truncation: "warn", "error" or "allow"; None for the model's own setting.

        Returns:
            One row per text in the order given, [n, D] ([0, D] for no texts); for one str its vector, [D]. float32
            or float64, as loaded.

        Raises:
            TypeError: `texts`, or one of them (named by its index), is not a str.
            ValueError: a text that is not valid Unicode, a text too long under truncation="error", a million
                characters with hardly a token, or an argument that is out of its range.
        """
        parts = self.encode_stream(
            texts,
            prompt_name=prompt_name,
            prompt=prompt,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
            truncation=truncation,
        )
        if isinstance(texts, str):
            ((vector,),) = parts
            return vector
        width = truncate_dim or self.dimensions
        if not isinstance(texts, Sized):
            return np.concatenate([np.empty((0, width), self.dtype), *parts])
        vectors = np.empty((len(texts), width), self.dtype)
        stop = 0
        for part in parts:
            start, stop = stop, stop + len(part)
            vectors[start:stop] = part
        return vectors

    def encode_stream(
        self,
        texts: str | Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        normalize_embeddings: bool | None = None,
        truncate_dim: int | None = None,
        truncation: Truncation | None = None,
    ) -> Iterator[NDArray[np.floating]]:
        """Turn texts into vectors, part by part, in memory that does not grow with their number.

        A generator of texts is read as the work goes on. While the parts are taken, NumPy's BLAS has one thread.

        Args:
            texts: as for `encode`, and so are the other arguments.

        Yields:
            The vectors of the next texts, [n, D], in the order given; n is a thousand or so, and fewer for long texts.

        Raises:
            TypeError, ValueError: as `encode`, those of an argument at once.
        """
        settings = self.checkpoint.settings
        width = self.checkpoint.config.hidden_size
        texts = _checked_texts(texts)
        if prompt is None and prompt_name is None:
            prompt_name = settings.default_prompt_name
        prefix = _checked_text("prompt", find_prompt(settings.prompts, prompt_name, prompt))
        normalize = settings.normalize if normalize_embeddings is None else normalize_embeddings
        truncation = self.truncation if truncation is None else _checked_truncation(truncation)
        max_texts = self.batch_size if batch_size is None else _checked_batch_size(batch_size)
        kept = self.truncate_dim if truncate_dim is None else self._checked_width(truncate_dim)

        windows: deque[NDArray[np.floating]] = deque()  # begun, and not yielded yet
        cut_texts = _CutTexts()

        def numbered_ids(first: int, pieces: Iterable[_Piece]) -> Iterator[list[NumberedIds]]:
            for piece in pieces:
                cut_texts.add(first, piece)
                if truncation == "error":
                    cut_texts.refuse(self.tokenizer.max_length)
                yield [(row, text.ids) for row, text in piece]

        def batches(tokenized: Iterable[tuple[int, int, Iterator[_Piece]]]) -> Iterator[Batch]:
            for first, count, pieces in tokenized:
                windows.append(np.empty((count, width), self.dtype))
                for batch in self.engine.batches(numbered_ids(first, pieces), total=count, max_texts=max_texts):
                    yield Batch.of(batch, windows[-1])

        def parts() -> Iterator[NDArray[np.floating]]:
            finished = 0
            total = len(texts) if isinstance(texts, Sized) else None
            tokenized = self._tokenized_windows(texts, prefix)
            # Who writes a stream may be slow: its first window is finished before more is read.
            groups = [tokenized] if isinstance(texts, Sized) else [itertools.islice(tokenized, 1), tokenized]
            with progress_bar(total, "embedding", "text", show=show_progress_bar) as progress:
                runs = (self.engine.run(batches(group), normalize=normalize) for group in groups)
                for batch in itertools.chain.from_iterable(runs):
                    progress.update(len(batch.rows))
                    finished += len(batch.rows)
                    while windows and finished >= len(windows[0]):  # batches are finished in their order
                        finished -= len(windows[0])
                        yield _cut_vectors(windows.popleft(), kept, normalize)
            if truncation == "warn":
                cut_texts.warn(self.tokenizer.max_length)

        return parts()

    def encode_query(self, texts: str | Iterable[str], **options: Any) -> NDArray[np.floating]:
        """Turn queries into vectors: `encode` with the checkpoint's query prompt (E5: "query: ") before each.

        Args:
            texts: as for `encode`, without the prompt.
            options: the other arguments of `encode`.
        """
        return self.encode(texts, **_with_prompt("query", options))

    def encode_document(self, texts: str | Iterable[str], **options: Any) -> NDArray[np.floating]:
        """Turn documents into vectors: `encode` with the checkpoint's document prompt (E5: "passage: ") before each.

        Args:
            texts: as for `encode`, without the prompt.
            options: the other arguments of `encode`.
        """
        return self.encode(texts, **_with_prompt("document", options))

    def warm_up(self, *, show_progress_bar: bool | None = None) -> int:
        """Do beforehand what the first texts would wait for: with JAX, compile a program for each shape of batch.

        Args:
            show_progress_bar: as for `encode`.

        Returns:
            The number of steps: programs, with JAX.
        """
        steps = 0
        with progress_bar(None, "warming up", "program", show=show_progress_bar) as progress:
            for progress.total in self.engine.warm_up():
                progress.update()
                steps += 1
        return steps

    def similarity(self, a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.floating]:
        """Compute the cosine of each vector of `a` with each of `b`.

        Args:
            a: vectors, [n, D], or one, [D].
            b: vectors, [m, D], or one, [D].

        Returns:
            [n, m], between -1 and 1 but for rounding. Equal vectors have equal cosines, whatever stands beside them.

        Raises:
            ValueError: vectors of different widths.
        """
        return cosines(a, b)

    def similarity_pairwise(self, a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.floating]:
        """Compute the cosine of each vector of `a`, [n, D], with the same row of `b`: [n], as in `similarity`.

        Raises:
            ValueError: vectors of different widths or numbers.
        """
        return pairwise_cosines(a, b)

    def tokenize(self, texts: str | Iterable[str]) -> Tokens:
        """Turn texts, as they are, into token ids; padded, and cut to `tokenizer.max_length` where longer.

        Args:
            texts: one text, or any iterable of them.

        Returns:
            A dictionary: "input_ids" and "attention_mask" [B, T] int64; "n_tokens" [B] int64, how many tokens each
            text has uncut (a text of more than 65,536 characters may have more); "truncated" [B] bool, whether it was
            cut. One str is a batch of one.

        Raises:
            TypeError, ValueError: as `encode`.
        """
        tokenized = [
            _checked_tokens(first + row, text)
            for first, window in self._windows(_checked_texts(texts))
            for row, text in enumerate(self.tokenizer(window))
        ]
        input_ids, attention_mask = pad_ids([text.ids for text in tokenized], self.tokenizer.pad_id)
        return Tokens(
            input_ids=input_ids,
            attention_mask=attention_mask,
            n_tokens=np.array([text.n_tokens for text in tokenized], np.int64),
            truncated=np.array([text.truncated for text in tokenized], np.bool_),
        )

    def provenance(self, prompt: str) -> dict[str, str]:
        """Say where the vectors of `encode` come from, for the files that hold them.

        Args:
            prompt: what was put before each text; the other options of `encode` are taken to be at their defaults.

        Returns:
            Name → value: model, revision, hashes of weights and tokenizer, prompt, pooling, normalisation, …
        """
        settings = self.checkpoint.settings
        return {
            "model": self.checkpoint.name,
            "revision": self.checkpoint.revision or "",
            "weights_sha256": self.checkpoint.weights_sha256,
            "config_sha256": file_sha256(self.checkpoint.folder / "config.json"),
            "tokenizer_sha256": file_sha256(self.tokenizer.path),
            "prompt": prompt,
            "max_length": str(self.tokenizer.max_length),
            "pooling": settings.pooling,
            "normalized": str(settings.normalize).lower(),
            "dtype": str(self.dtype),
            **({} if self.truncate_dim is None else {"truncate_dim": str(self.truncate_dim)}),
            **self.engine.provenance(),
            **{
                f"{package}_version": importlib.metadata.version(package)
                for package in ("e5ref", "numpy", "tokenizers")
            },
        }

    def _windows(self, texts: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
        """Yield (index of the first text, texts) a window at a time, each text checked.

        A window holds as many texts as the engine sorts together, or fewer long ones. Of texts that come from a stream
        the first window is one that keeps the engine busy and no more, so that its vectors come soon.
        """
        size = self.engine.window_texts
        most_characters = size * WINDOW_CHARACTERS
        bound = most_characters if isinstance(texts, Sized) else min(most_characters, self.engine.first_characters)
        window: list[str] = []
        characters = 0
        for index, text in enumerate(texts):
            if not isinstance(text, str) and hasattr(text, "as_py"):
                text = text.as_py()  # an element of an Arrow array
            window.append(_checked_text(f"texts[{index}]", text))
            characters += len(text)
            if len(window) == size or characters >= bound:
                yield index + 1 - len(window), window
                window, characters, bound = [], 0, most_characters
        if window:
            yield index + 1 - len(window), window

    def _checked_width(self, truncate_dim: int | None) -> int | None:
        width = self.checkpoint.config.hidden_size
        if truncate_dim is None:
            return None
        if not isinstance(truncate_dim, int | np.integer) or not 1 <= truncate_dim <= width:
            raise ValueError(f"truncate_dim is {truncate_dim!r}, but must be a whole number from 1 to {width}")
        _warn(f"truncate_dim={truncate_dim} keeps {truncate_dim} of {width} dimensions; E5 is not trained for that")
        return int(truncate_dim)

    def _tokenized_windows(self, texts: Iterable[str], prefix: str) -> Iterator[tuple[int, int, Iterator[_Piece]]]:
        """Yield the index of a window's first text, how many it has, and its pieces, each once it is tokenized.

        A thread tokenizes what comes next meanwhile, up to the end of the window after.
        """
        thread = ThreadPoolExecutor(1, "e5ref-tokenizer")

        def begin(first: int, window: list[str]) -> Iterator[_Piece]:
            # The longest first, by their characters, so that a piece holds texts of like lengths, which make batches.
            order = sorted(range(len(window)), key=lambda row: -len(window[row]))
            # Later windows are tokenized while others are computed: they come whole, and are padded less.
            size = len(window) if first else self.engine.piece_texts
            pieces = [order[start : start + size] for start in range(0, len(order), size)]
            results: deque[Callable[[], list[TokenizedText]]] = deque()
            for rows in pieces:
                prompted = [prefix + window[row] for row in rows]
                if first:
                    results.append(thread.submit(self.tokenizer, prompted).result)
                elif not results:  # needed at once: a query does without the thread
                    results.append(partial(self.tokenizer, prompted))
                else:  # the thread does only what needs no Python, so that nothing keeps it from the next piece
                    results.append(partial(read, thread.submit(self.tokenizer.encode, prompted)))
            # Taken out one by one: what the tokenizer made is large, and is let go of once it is read.
            return (list(zip(rows, results.popleft()(), strict=True)) for rows in pieces)

        def read(encoded: Future[Encoded]) -> list[TokenizedText]:
            return self.tokenizer.read(encoded.result())

        try:
            begun: deque[tuple[int, int, Iterator[_Piece]]] = deque()
            for first, window in self._windows(texts):
                begun.append((first, len(window), begin(first, window)))
                if len(begun) > 1 or not (first or isinstance(texts, Sized)):
                    yield begun.popleft()
            yield from begun
        finally:
            thread.shutdown(cancel_futures=True)


def _cut_vectors(vectors: NDArray[np.floating], width: int | None, normalize: bool) -> NDArray[np.floating]:
    """Keep the first dimensions only; None keeps all."""
    if width is None:
        return vectors
    return numpy_model.l2_normalize(vectors[:, :width]) if normalize else vectors[:, :width]


def _with_prompt(prompt_name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Add the name of a prompt to the options of `encode`, unless the caller chose one."""
    chosen = options.get("prompt") is not None or options.get("prompt_name") is not None
    return options if chosen else {**options, "prompt_name": prompt_name}


class _CutTexts:
    """Counts the texts that were cut, and remembers the longest of them."""

    def __init__(self) -> None:
        self.cut = self.total = self.n_tokens = 0
        self.index: int | None = None
        self.more_than = ""

    def add(self, first: int, piece: _Piece) -> None:
        self.total += len(piece)
        for row, text in piece:
            self.cut += _checked_tokens(first + row, text).truncated
            if text.truncated and text.n_tokens > self.n_tokens:
                self.index, self.n_tokens = first + row, text.n_tokens
                self.more_than = "" if text.exact else "more than "

    def refuse(self, max_length: int) -> None:
        if self.cut:
            raise ValueError(
                f"texts[{self.index}] has {self.more_than}{self.n_tokens} tokens, more than max_length {max_length}; "
                "split it, or allow truncation"
            )

    def warn(self, max_length: int) -> None:
        if self.cut:
            _warn(
                f"{self.cut} of {self.total} texts are longer than {max_length} tokens and were cut; the longest, "
                f"texts[{self.index}], has {self.more_than}{self.n_tokens} (truncation 'allow' silences this, 'error' "
                "refuses)"
            )


def require_jax() -> None:
    """Raise `ModuleNotFoundError`, with what to install, if there is no JAX."""
    require("jax", "backend 'jax' (the extra is cuda on NVIDIA, tpu on TPU)", "jax")


def _checked_texts(texts: Any) -> Iterable[str]:
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


def _checked_text(name: str, text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{name} is {type(text).__name__}, not str")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} is not valid Unicode: a lone surrogate at position {error.start}; decode the text again, or "
            "replace it: text.encode(errors='replace').decode()"
        ) from None
    return text


def _checked_tokens(index: int, text: TokenizedText) -> TokenizedText:
    if not text.ids and not text.exact:
        raise ValueError(f"texts[{index}] has hardly a token in a million characters; take out what is not text")
    return text


def _warn(message: str) -> None:
    """Warn at the line outside this file that called."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_code.co_filename == __file__:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, E5Warning, stacklevel=level)


def _checked_batch_size(batch_size: int | None) -> int | None:
    if batch_size is not None and (not isinstance(batch_size, int | np.integer) or batch_size < 1):
        raise ValueError(f"batch_size is {batch_size!r}, but must be a whole number of at least 1")
    return batch_size


def _checked_truncation(truncation: str) -> Truncation:
    if truncation not in ("warn", "error", "allow"):
        raise ValueError(f"truncation is {truncation!r}, but must be 'warn', 'error' or 'allow'")
    return truncation  # type: ignore[return-value]
