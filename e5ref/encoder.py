"""E5: texts in, vectors out."""

import importlib.metadata
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from e5ref.checkpoint import Checkpoint, read_checkpoint
from e5ref.checkpoint.hub import DEFAULT_CHECKPOINT, file_sha256
from e5ref.checkpoint.prompts import find_prompt
from e5ref.engines import make_engine
from e5ref.engines.batching import pad_ids
from e5ref.engines.engine import Backend, Precision, require_jax
from e5ref.engines.numpy_engine import NumpyEngine
from e5ref.engines.stream import (
    CutTexts,
    Truncation,
    VectorStream,
    as_text,
    check_tokens,
    check_unicode,
    checked_batch_size,
    checked_texts,
    checked_truncation,
    embed,
    number_of,
    token_embeddings,
    warn,
)
from e5ref.inside.explain import Explanation, explain
from e5ref.operations.similarity import cosines, pairwise_cosines
from e5ref.terminal.progress import progress_bar
from e5ref.tokenizer import Tokenizer, Tokens


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
        batch_size: the most texts in one batch; None for as many as make a batch of full size. NumPy's vectors do not
            depend on it.
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
        self.truncation = checked_truncation(truncation)
        self.batch_size = checked_batch_size(batch_size)
        self.truncate_dim = self._checked_width(truncate_dim)
        if max_length is None:
            max_length = checkpoint.settings.max_length
        self.tokenizer = Tokenizer(checkpoint.folder, checkpoint.config, max_length)
        self.engine = make_engine(checkpoint, self.tokenizer, backend, precision, threads)

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
        return self.truncate_dim or self.checkpoint.dimensions

    @property
    def dtype(self) -> np.dtype[Any]:
        """What the vectors are made of."""
        return self.checkpoint.dtype

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
        output_value: Literal["sentence_embedding", "token_embeddings"] = "sentence_embedding",
        convert_to_numpy: bool = True,
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
            output_value: "token_embeddings" gives the last hidden states of each text's tokens instead, for late
                chunking and late interaction; needs backend "numpy". Prompt, [CLS] and [SEP] have states too.
            convert_to_numpy: must be True; vectors are always NumPy arrays.

        Returns:
            One row per text in the order given, [n, D] ([0, D] for no texts); for one str its vector, [D]. float32
            or float64, as loaded. For "token_embeddings", a list of [tokens, D], not normalised; for one str its array.

        Raises:
            TypeError: `texts`, or one of them (named by its index), is not a str.
            ValueError: a text that is not valid Unicode, a text too long under truncation="error", a million
                characters with hardly a token, or an argument that is out of its range.
        """
        if not convert_to_numpy:
            raise ValueError("convert_to_numpy is False, but must be True: vectors are NumPy arrays")
        if output_value not in ("sentence_embedding", "token_embeddings"):
            raise ValueError(
                f"output_value is {output_value!r}, but must be 'sentence_embedding' or 'token_embeddings'"
            )
        if output_value == "token_embeddings":
            if not isinstance(self.engine, NumpyEngine):
                raise ValueError("output_value='token_embeddings' needs backend='numpy'")
            prompt, cut_texts = self._find_prompt(prompt_name, prompt), self._cut_texts(truncation)
            states = token_embeddings(checked_texts(texts), self.checkpoint, self.tokenizer, cut_texts, prompt)
            return states[0] if isinstance(texts, str) else states  # type: ignore[return-value]
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
        if (total := number_of(texts)) is None:
            return np.concatenate([np.empty((0, width), self.dtype), *parts])
        vectors = np.empty((total, width), self.dtype)
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
    ) -> VectorStream:
        """Turn texts into vectors, part by part, in memory that does not grow with their number.

        A generator of texts is read as the work goes on. While the parts are taken, NumPy's BLAS has one thread.

        Args:
            texts: as for `encode`, and so are the other arguments.

        Returns:
            An iterator that gives the vectors of the next texts, [n, D], in the order given; n is a thousand or
            more, fewer at the beginning of a generator, and fewer for long texts. Its attribute `cut_texts` counts what
            was cut.

        Raises:
            TypeError, ValueError: as `encode`, those of an argument at once.
        """
        settings, cut_texts = self.checkpoint.settings, self._cut_texts(truncation)
        vectors = embed(
            checked_texts(texts),
            self.checkpoint,
            self.tokenizer,
            self.engine,
            cut_texts,
            prompt=self._find_prompt(prompt_name, prompt),
            normalize=settings.normalize if normalize_embeddings is None else normalize_embeddings,
            truncate_dim=self.truncate_dim if truncate_dim is None else self._checked_width(truncate_dim),
            max_texts=self.batch_size if batch_size is None else checked_batch_size(batch_size),
            show_progress_bar=show_progress_bar,
        )
        return VectorStream(vectors, cut_texts)

    def _find_prompt(self, prompt_name: str | None, prompt: str | None) -> str:
        settings = self.checkpoint.settings
        if prompt is None and prompt_name is None:
            prompt_name = settings.default_prompt_name
        return check_unicode([as_text("prompt", find_prompt(settings.prompts, prompt_name, prompt))], name="prompt")[0]

    def _cut_texts(self, truncation: Truncation | None) -> CutTexts:
        return CutTexts(
            self.tokenizer.max_length, checked_truncation(self.truncation if truncation is None else truncation)
        )

    def encode_query(self, texts: str | Iterable[str], **options: Any) -> NDArray[np.floating]:
        """Turn queries into vectors: `encode`, with its options, puts the query prompt (E5: "query: ") before each."""
        return self.encode(texts, **_with_prompt("query", options))

    def encode_document(self, texts: str | Iterable[str], **options: Any) -> NDArray[np.floating]:
        """Turn documents into vectors: `encode`, with its options, puts the document prompt (E5: "passage: ") there."""
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
            [n, m], between -1 and 1 but for rounding. Equal vectors have equal cosines in any company.

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

    def explain(self, a: str, b: str) -> Explanation:
        """Explain the cosine of two texts, as they are: a matrix [tokens of a, tokens of b] that adds up to it."""
        return explain(self, a, b)

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
        texts = [as_text(f"texts[{number}]", text) for number, text in enumerate(checked_texts(texts))]
        tokens = self.tokenizer(check_unicode(texts))
        check_tokens(tokens)
        input_ids, attention_mask = pad_ids(tokens.texts(), self.tokenizer.pad_id)
        return Tokens(
            input_ids=input_ids,
            attention_mask=attention_mask,
            n_tokens=tokens.n_tokens,
            truncated=tokens.truncated,
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
            **({"dense": type(self.checkpoint.params.dense).__name__} if self.checkpoint.params.dense else {}),
            "normalized": str(settings.normalize).lower(),
            "dtype": str(self.dtype),
            **({} if self.truncate_dim is None else {"truncate_dim": str(self.truncate_dim)}),
            **self.engine.provenance(),
            "tokenized_by": self.tokenizer.implementation,
            **{
                f"{package}_version": importlib.metadata.version(package)
                for package in dict.fromkeys(("e5ref", "numpy", "tokenizers", self.tokenizer.implementation))
            },
        }

    def _checked_width(self, truncate_dim: int | None) -> int | None:
        width = self.checkpoint.dimensions
        if truncate_dim is None:
            return None
        if not isinstance(truncate_dim, int | np.integer) or not 1 <= truncate_dim <= width:
            raise ValueError(f"truncate_dim is {truncate_dim!r}, but must be a whole number from 1 to {width}")
        warn(f"truncate_dim={truncate_dim} keeps {truncate_dim} of {width} dimensions; E5 is not trained for that")
        return int(truncate_dim)


def _with_prompt(prompt_name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Add the name of a prompt to the options of `encode`, unless the caller chose one."""
    chosen = options.get("prompt") is not None or options.get("prompt_name") is not None
    return options if chosen else {**options, "prompt_name": prompt_name}
