"""Texts → unit vectors for an evaluation: cut texts are counted, and vectors can be kept in a cache."""

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from e5ref.checkpoint.prompts import count_doubled
from e5ref.encoder import E5
from e5ref.files.whole import written_whole
from e5ref.terminal.progress import PROGRESS_DELAY, ProgressBar, progress_bar

# More texts than this take more than a few seconds to embed.
MANY_TEXTS = 512

# Facts that say where a checkpoint lay, not what it is. They may differ between equal vectors.
PLACES = ("model", "revision")


class Embedded(NamedTuple):
    """Vectors of some texts."""

    vectors: NDArray[np.floating]  # [n, D], unit L2 norm
    cut: int  # texts with more tokens than the model takes
    doubled: int  # texts that started with the prompt already


def provenance(model: E5, prompt: str) -> dict[str, str]:
    """Say where the vectors of `embed` come from, as `E5.provenance` does."""
    return model.provenance(prompt) | {"normalized": "true"}


def embedding_bar(texts: int) -> ProgressBar:
    """Make a progress bar. For many texts it shows at once, since its first step takes a while."""
    delay = 0 if texts > MANY_TEXTS else PROGRESS_DELAY
    return progress_bar(texts, "embedding", "text", delay=delay)


def embed(
    model: E5, texts: Sequence[str], prompt: str, *, cache: Path | None = None, progress: "ProgressBar | None" = None
) -> Embedded:
    """Embed texts, or read their vectors from a cache.

    The cache is a folder with a file for each call. A file is named after the hash of everything that its vectors
    depend on: texts, prompt, checkpoint, precision and version. So wrong vectors are never found.

    Args:
        model: the model.
        texts: without prompts.
        prompt: the prompt to put before each.
        cache: the folder, created if it does not exist; None to keep nothing.
        progress: moved on by the number of texts.
    """
    progress = progress_bar(len(texts), "embedding", "text", show=False) if progress is None else progress
    doubled = count_doubled(prompt, texts)
    if cache is None:
        return Embedded(*_embed(model, texts, prompt, progress), doubled)
    facts = {key: value for key, value in provenance(model, prompt).items() if key not in PLACES}
    facts["texts_sha256"] = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    path = cache / f"{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]}.safetensors"
    found = _read(path, facts) if path.exists() else None
    if found is not None:
        progress.update(len(texts))
        return Embedded(*found, doubled)
    cache.mkdir(parents=True, exist_ok=True)  # if this fails, it fails before the work
    vectors, cut = _embed(model, texts, prompt, progress)
    with written_whole(path) as file:
        file.write(save({"embeddings": vectors}, facts | {"cut": str(cut)}))
    return Embedded(vectors, cut, doubled)


def _embed(model: E5, texts: Sequence[str], prompt: str, progress: ProgressBar) -> tuple[NDArray[np.floating], int]:
    """Embed texts. -> their vectors, and how many were cut."""
    vectors = np.empty((len(texts), model.dimensions), model.dtype)
    stop = 0
    stream = model.encode_stream(
        texts,
        prompt=prompt,
        normalize_embeddings=True,
        truncation="error" if model.truncation == "error" else "allow",  # the report counts cut texts
        show_progress_bar=False,
    )
    for part in stream:
        start, stop = stop, stop + len(part)
        vectors[start:stop] = part
        progress.update(len(part))
    return vectors, stream.cut_texts.cut


def _read(path: Path, facts: dict[str, str]) -> tuple[NDArray[np.floating], int] | None:
    """Read a file of the cache and return it as `_embed` does; None, with a warning, if it is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            kept = file.metadata() or {}
            cut = int(kept.pop("cut"))
            if kept != facts:
                raise ValueError("it holds different vectors")
            return file.get_tensor("embeddings"), cut
    except (SafetensorError, ValueError, KeyError) as error:
        warnings.warn(f"{path}: is damaged ({error}), so it is made again", stacklevel=2)
        return None
