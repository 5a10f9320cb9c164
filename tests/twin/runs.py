"""Run the JAX twin so that it yields named points as NumPy arrays, as a recorded run of the NumPy twin does."""

from functools import partial
from types import SimpleNamespace

import numpy as np

import e5ref
from e5ref import jax_model
from e5ref.parity.runs.runners import jax_points


def jax_run(
    checkpoint: e5ref.Checkpoint, input_ids: np.ndarray, attention_mask: np.ndarray, *, model=jax_model
) -> dict:
    """Record every named point of one compiled program, of our JAX twin or of a changed copy of it."""
    packed = SimpleNamespace(embed=partial(model.embed, texts_per_row=int(attention_mask.max(initial=1))))
    run = jax_points(checkpoint, None, str(checkpoint.params.embeddings.word.dtype), model=packed)
    return dict(run(input_ids, attention_mask))
