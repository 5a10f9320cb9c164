"""transformers, run so that it yields the same named points as our forward pass, and the comparison of two runs."""

from pathlib import Path

import numpy as np

import e5ref
from e5ref.parity.peers import transformers_points
from tests.tolerances import POINTS

Run = dict[str, np.ndarray]


def transformers_run(folder: Path, input_ids: np.ndarray, attention_mask: np.ndarray, dtype: str) -> Run:
    """Run a checkpoint in transformers and record every named point, in the forward pass's order."""
    return dict(transformers_points(e5ref.read_checkpoint(folder), None, dtype)(input_ids, attention_mask))


def first_departure(run: Run, reference: Run, attention_mask: np.ndarray, dtype: str) -> str | None:
    """Name the first point where a run leaves the reference by more than its tolerance, and by how much.

    What stands at padding is not compared: transformers computes something there, we put 0.
    """
    if list(run) != list(reference):
        return f"names: {sorted(run.keys() ^ reference.keys()) or 'in another order'}"
    real = attention_mask == 1
    for name, expected in reference.items():
        actual = run[name]
        if actual.shape != expected.shape or actual.dtype != expected.dtype:
            return f"{name}: {actual.dtype} {actual.shape} for {expected.dtype} {expected.shape}"
        if actual.ndim == 4:  # [B, N, T, T] -> [real pairs of tokens, N]
            pairs = real[:, :, None] & real[:, None, :]
            actual, expected = (array.transpose(0, 2, 3, 1)[pairs] for array in (actual, expected))
        elif actual.ndim == 3:  # [B, T, n] -> [R, n]
            actual, expected = actual[real], expected[real]
        difference = np.abs(actual - expected).max() / np.abs(expected).max()
        if not difference <= POINTS[dtype]:  # so written, a NaN departs too
            return f"{name}: {difference:.1e}"
    return None
