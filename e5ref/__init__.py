"""E5 text embeddings that people can read, trust and run without a framework."""

from e5ref import numpy_model
from e5ref.checkpoint import Checkpoint, read_checkpoint
from e5ref.checkpoint.config import BertConfig, CheckpointError
from e5ref.checkpoint.hub import known_checkpoints
from e5ref.checkpoint.params import BertParams, build_params
from e5ref.checkpoint.settings import EmbeddingSettings
from e5ref.encoder import E5, load
from e5ref.engines.stream import E5Warning
from e5ref.inside import look
from e5ref.tokenizer import Tokens

__version__ = "0.1.0"

__all__ = [
    "E5",
    "BertConfig",
    "BertParams",
    "Checkpoint",
    "CheckpointError",
    "E5Warning",
    "EmbeddingSettings",
    "Tokens",
    "build_params",
    "known_checkpoints",
    "load",
    "look",
    "numpy_model",
    "read_checkpoint",
]
