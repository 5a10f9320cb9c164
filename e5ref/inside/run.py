"""One forward pass over one text, with everything that it computed on the way."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from e5ref import numpy_model
from e5ref.checkpoint import Checkpoint
from e5ref.engines.stream import E5Warning, Truncation
from e5ref.operations import Array
from e5ref.operations.blas import blas
from e5ref.tokenizer import Piece, Tokenizer, Tokens


class Model(Protocol):
    """What this room needs of a model: `E5` has it."""

    checkpoint: Checkpoint
    tokenizer: Tokenizer
    truncation: Truncation

    @property
    def dimensions(self) -> int:
        """How many numbers a vector has."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """What the vectors are made of."""
        ...

    def tokenize(self, texts: str) -> Tokens:
        """Turn a text into token ids."""
        ...

    def encode_query(self, texts: Sequence[str], **options: Any) -> NDArray[np.floating]:
        """Turn queries into vectors."""
        ...

    def encode_document(self, texts: Sequence[str], **options: Any) -> NDArray[np.floating]:
        """Turn documents into vectors."""
        ...


class Trace(NamedTuple):
    """What the forward pass computed for one text of T tokens."""

    text: str
    ids: NDArray[np.int64]  # [T]
    tokens: list[str]  # [T], such as "[CLS]" and "##ing"
    pieces: list[Piece]  # [T], which part of the text each token is
    groups: list[str]  # [T], what each token is: a special token, named by itself, "prefix" or "words"
    cut: bool  # whether the text was too long, and its end is missing
    points: dict[str, Array]  # the named points of `numpy_model.embed`, without the batch's axis
    updates: list[tuple[Array, Array]]  # [T, D] each: what attention and feed-forward of each layer add
    vector: Array  # [D], unit L2 norm


def run(model: Model, text: str) -> Trace:
    """Run the forward pass of `numpy_model` over one text, as it is, and keep every named point.

    Args:
        model: any model; its weights are run in NumPy, whatever its backend.
        text: with its prefix, if it is to have one.

    Raises:
        TypeError, ValueError: as `E5.encode`; a text too long under truncation="error" too, and a model with a Dense
            layer, behind which a vector is no sum over tokens.
    """
    if model.checkpoint.params.dense:
        raise ValueError(
            f"{model.checkpoint.name} has a Dense layer after pooling, so its vectors are no sums over tokens"
        )
    batch = model.tokenize(text)
    if batch["truncated"][0] and model.truncation != "allow":
        message = f"the text has {batch['n_tokens'][0]} tokens, but the model takes {model.tokenizer.max_length}"
        if model.truncation == "error":
            raise ValueError(f"{message}; shorten it")
        warnings.warn(f"{message}: its end was cut off", E5Warning, stacklevel=2)
    points: dict[str, Array] = {}
    with blas.at_most(1):  # more threads would mostly wait for each other
        numpy_model.embed(
            model.checkpoint.params,
            batch["input_ids"],
            batch["attention_mask"],
            config=model.checkpoint.config,
            pooling=model.checkpoint.settings.pooling,
            tap=lambda name, array: points.update({name: array[0]}),
        )
        updates = [
            (
                numpy_model.linear(points[f"layers.{index}.context"], *layer.attention_output),
                numpy_model.linear(points[f"layers.{index}.feed_forward_activation"], *layer.feed_forward_down),
            )
            for index, layer in enumerate(model.checkpoint.params.layers)
        ]
    ids = batch["input_ids"][0]
    tokens = model.tokenizer.token_strings(ids.tolist())
    pieces = model.tokenizer.pieces(text)
    prompts = [prompt.rstrip() for prompt in model.checkpoint.settings.prompts.values() if prompt]
    prefix = max((len(prompt) for prompt in prompts if text.startswith(prompt)), default=0)  # its characters
    groups = [
        token if piece.word is None else "prefix" if piece.stop <= prefix else "words"
        for token, piece in zip(tokens, pieces, strict=True)
    ]
    vector = numpy_model.l2_normalize(points["pooled"][None, : model.dimensions])[0]
    return Trace(text, ids, tokens, pieces, groups, bool(batch["truncated"][0]), points, updates, vector)


def pooling_weights(run: Trace, pooling: str) -> NDArray[np.float64]:
    """Return the weight of each token in the pooled vector, [T]; together they are 1."""
    tokens = len(run.ids)
    return np.eye(1, tokens)[0] if pooling == "cls" else np.full(tokens, 1 / tokens)
