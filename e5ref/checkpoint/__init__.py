"""A name or a folder → verified local files → the parameter tree."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from e5ref.checkpoint.config import BertConfig, CheckpointError, read_config
from e5ref.checkpoint.hub import DEFAULT_CHECKPOINT, file_sha256, known_checkpoints, locate
from e5ref.checkpoint.params import BertParams
from e5ref.checkpoint.settings import EmbeddingSettings, read_settings
from e5ref.checkpoint.tensors import params_from_tensors, read_dense, read_tensors


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint as read from disk.

    Attributes:
        name: the hub name or folder that was asked for.
        folder: where its files are.
        revision: the hub's commit; None for a folder.
        config: the encoder's sizes and constants.
        settings: pooling, normalisation, prompts.
        params: the weights, read-only; float32 weights stay on disk and are mapped into memory.
        weight_files: the safetensors files.
    """

    name: str
    folder: Path
    revision: str | None
    config: BertConfig
    settings: EmbeddingSettings
    params: BertParams = field(repr=False)
    weight_files: tuple[Path, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """What the weights are made of: float32 or float64."""
        dtype: np.dtype[Any] = self.params.embeddings.word.dtype
        return dtype

    @property
    def dimensions(self) -> int:
        """E, how many numbers a vector has: D, or what a Dense layer gives."""
        return len(self.params.dense.bias) if self.params.dense else self.config.hidden_size

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights' file, in hexadecimal; of several files, that of their hashes one below another."""
        digests = [file_sha256(path) for path in self.weight_files]
        return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def read_checkpoint(
    name_or_folder: str | Path = DEFAULT_CHECKPOINT, *, revision: str | None = None, dtype: str = "float32"
) -> Checkpoint:
    """Read a checkpoint: find its files, check them, and build the parameter tree.

    Args:
        name_or_folder: a hub name such as "intfloat/e5-small-v2", or "e5ref-nano", the small model that comes with
            e5ref, or a folder; for the last two no socket is opened.
        revision: the hub's commit, tag or branch; None takes the one that e5ref pins for a known name, and else
            `main`, with a warning that names the commit. Anything but a commit is resolved to one first.
        dtype: "float32" or "float64", what the weights are computed in.

    Raises:
        CheckpointError: a file is missing, damaged, or not what a BERT-style encoder needs; or the hub cannot give it.
        ValueError: an unknown dtype, or a revision for a folder.
        TypeError: neither a name nor a folder.
    """
    if not isinstance(name_or_folder, str | Path):
        raise TypeError(f"give the name or the folder of a checkpoint, not {type(name_or_folder).__name__}")
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype is {dtype!r}, but must be 'float32' or 'float64'")
    name = str(name_or_folder)
    folder, revision = locate(name_or_folder, revision)
    config = read_config(folder / "config.json")
    known = known_checkpoints().get(name, {})
    settings = read_settings(folder, config, known.get("prompts"))
    if settings.pooling != known.get("pooling", settings.pooling):
        raise CheckpointError(
            f"{folder}: pools by {settings.pooling}, but {name} pools by {known['pooling']}; its modules.json or "
            "1_Pooling/config.json is missing or changed: fetch them anew"
        )
    files, tensors = read_tensors(folder)
    params = params_from_tensors(tensors, config, folder, dtype)
    if settings.dense is not None:
        dense_files, dense = read_dense(folder / settings.dense, config, dtype)
        files, params = files + dense_files, params._replace(dense=dense)
    return Checkpoint(name, folder, revision, config, settings, params, files)
