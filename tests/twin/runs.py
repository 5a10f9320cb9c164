"""Run the JAX twin so that it yields named points as NumPy arrays, as a recorded run of the NumPy twin does."""

from collections import OrderedDict

import jax
import numpy as np

import e5ref
from e5ref import jax_model


def jax_run(
    checkpoint: e5ref.Checkpoint, input_ids: np.ndarray, attention_mask: np.ndarray, *, model=jax_model
) -> dict:
    """Record every named point of one compiled program, of our JAX twin or of a changed copy of it."""

    @jax.jit
    def recorded(params, input_ids, attention_mask):
        points = OrderedDict()
        model.embed(params, input_ids, attention_mask, config=checkpoint.config, tap=points.__setitem__)
        return points

    with jax.enable_x64(checkpoint.params.embeddings.word.dtype == np.float64):
        points = recorded(checkpoint.params, input_ids, attention_mask)
        return {name: np.asarray(array) for name, array in points.items()}
