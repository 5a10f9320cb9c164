"""Run the JAX twin so that it yields named points as NumPy arrays, as a recorded run of the NumPy twin does."""

import numpy as np

import e5ref
from e5ref import jax_model
from e5ref.parity.runners import jax_points


def jax_run(
    checkpoint: e5ref.Checkpoint, input_ids: np.ndarray, attention_mask: np.ndarray, *, model=jax_model
) -> dict:
    """Record every named point of one compiled program, of our JAX twin or of a changed copy of it."""
    run = jax_points(checkpoint, None, str(checkpoint.params.embeddings.word.dtype), model=model)
    return dict(run(input_ids, attention_mask))
