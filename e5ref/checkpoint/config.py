"""What a checkpoint's config.json says: a frozen dataclass, checked."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e5ref.files.lines import foreign_file

MODEL_TYPES = ("bert", "xlm-roberta")

# Encoders that people take for BERT's kin. Their forward passes are different ones.
RUN_ELSEWHERE = {"mpnet": "MPNet", "modernbert": "ModernBERT"}


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message says which file is at fault and what to do."""


@dataclass(frozen=True)
class BertConfig:
    """The sizes and constants of one BERT-style encoder.

    Field names are those of `config.json`. The letters are the axis letters used in every shape comment.

    Attributes:
        model_type: "bert" or "xlm-roberta". They differ in how positions are counted (`position_offset`).
        vocab_size: V, entries of the token embedding.
        hidden_size: D, width of the hidden states and of the vectors.
        num_hidden_layers: number of encoder layers.
        num_attention_heads: N, attention heads of a layer; divides D.
        intermediate_size: F, width of the feed-forward layer.
        max_position_embeddings: rows of the position embedding.
        type_vocab_size: rows of the token-type embedding, of which E5 uses row 0 alone.
        layer_norm_eps: what LayerNorm adds to the variance.
        pad_token_id: the id that fills up short rows of a batch.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    pad_token_id: int

    @property
    def head_size(self) -> int:
        """H, the width of one attention head: D / N."""
        return self.hidden_size // self.num_attention_heads

    @property
    def position_offset(self) -> int:
        """Row of the position embedding that the first token takes: 0 in BERT, the padding id + 1 in XLM-RoBERTa."""
        return self.pad_token_id + 1 if self.model_type == "xlm-roberta" else 0

    @property
    def max_tokens(self) -> int:
        """The most tokens that a text can have, [CLS] and [SEP] counted."""
        return self.max_position_embeddings - self.position_offset


def read_config(path: Path) -> BertConfig:
    """Read and check a `config.json`.

    Raises:
        CheckpointError: the file is missing or no JSON object, lacks a value, or describes a model that is not
            a BERT-style encoder with erf GELU and absolute positions. Nothing is filled in by guessing.
    """
    raw = read_json(path)

    def refuse(reason: str) -> CheckpointError:
        return CheckpointError(f"{path}: {reason}")

    model_type = raw.get("model_type")
    if model_type not in MODEL_TYPES:
        name = RUN_ELSEWHERE.get(str(model_type))
        elsewhere = f"; {name} has a forward pass of its own, which sentence-transformers runs" if name else ""
        known = " and ".join(map(repr, MODEL_TYPES))
        raise refuse(f"model_type is {model_type!r}, but e5ref runs {known} encoders only{elsewhere}")
    # transformers names the erf form of GELU "gelu"; "gelu_new" and "gelu_pytorch_tanh" are the tanh form.
    if raw.get("hidden_act") != "gelu":
        raise refuse(f"hidden_act is {raw.get('hidden_act')!r}, but e5ref computes 'gelu' (the erf form) only")
    # Checkpoints written by newer versions of transformers leave the key out: absolute is all that is left there.
    if raw.get("position_embedding_type", "absolute") != "absolute":
        raise refuse(f"position_embedding_type is {raw['position_embedding_type']!r}, but e5ref knows 'absolute' only")
    for flag in ("is_decoder", "add_cross_attention"):
        if raw.get(flag):
            raise refuse(f"{flag} is true, but e5ref runs encoders only")

    for key, kind in BertConfig.__annotations__.items():
        least = 0 if key == "pad_token_id" else 1
        if kind is int and (type(raw.get(key)) is not int or raw[key] < least):
            raise refuse(f"{key} is {raw.get(key)!r}, but must be a whole number of at least {least}")
    epsilon = raw.get("layer_norm_eps")
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise refuse(f"layer_norm_eps is {epsilon!r}, but must be a number between 0 and 1")

    config = BertConfig(**{key: raw[key] for key in BertConfig.__dataclass_fields__})
    if config.hidden_size % config.num_attention_heads:
        raise refuse(
            f"hidden_size {config.hidden_size} cannot be split evenly into {config.num_attention_heads} attention heads"
        )
    if config.pad_token_id >= config.vocab_size:
        raise refuse(f"pad_token_id {config.pad_token_id} lies outside the vocabulary of {config.vocab_size}")
    if config.max_tokens < 1:
        raise refuse(
            f"max_position_embeddings is {config.max_position_embeddings}, which leaves no position for a text"
        )
    return config


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of a checkpoint.

    Raises:
        CheckpointError: the file is missing, cannot be read, or holds anything but one JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; a checkpoint folder needs {path.name}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        reason = foreign_file(path) or f"cannot be read as JSON ({error}); fetch the file anew"
        raise CheckpointError(f"{path}: {reason}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds {type(value).__name__}, not a JSON object; fetch the file anew")
    return value
