"""What the pictures show: e5ref-nano, and what it computes for a text."""

import functools

import e5ref
from e5ref import numpy_model
from e5ref.operations import Array

QUERY = "query: how much protein should a female eat"
# A short form of the passage that belongs to "summit define" on E5's model cards.
PASSAGE = "passage: Definition of summit: the highest point of a mountain."


@functools.cache
def nano() -> e5ref.E5:
    """Load the model that all pictures are made with."""
    return e5ref.load("e5ref-nano")


def recorded(text: str) -> tuple[list[str], dict[str, Array]]:
    """Run a text; return its tokens, and the array of each named point without the axis of the batch."""
    ids, _, run = recorded_batch([text])
    return nano().tokenizer.token_strings(ids[0]), {name: array[0] for name, array in run.items()}


def recorded_batch(texts: list[str]) -> tuple[Array, Array, dict[str, Array]]:
    """Run texts; return ids and mask, [B, T], and the array of each named point."""
    model = nano()
    batch = model.tokenize(texts)
    run: dict[str, Array] = {}
    numpy_model.embed(
        model.checkpoint.params,
        batch["input_ids"],
        batch["attention_mask"],
        config=model.checkpoint.config,
        tap=run.__setitem__,
    )
    return batch["input_ids"], batch["attention_mask"], run
