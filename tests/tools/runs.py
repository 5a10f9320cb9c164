"""Runs at named points: ours, those of transformers, a reference to judge by, and where two of them part."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import e5ref
from e5ref import jax_model, numpy_model
from e5ref.operations.rows import text_lengths
from e5ref.parity import Run
from e5ref.parity.altered.models import run_reference
from e5ref.parity.runs.peers import transformers_points
from e5ref.parity.runs.rounding import rounding_costs
from e5ref.parity.runs.runners import jax_points
from tests.tools.tolerances import POINTS

Points = dict[str, np.ndarray]


def our_run(
    checkpoint: e5ref.Checkpoint, input_ids: np.ndarray, attention_mask: np.ndarray, *, model=numpy_model
) -> dict[str, np.ndarray]:
    """Record every named point of our forward pass, or of a changed copy of it."""
    run: dict[str, np.ndarray] = {}
    texts = int(attention_mask.max(initial=1))
    options = {"config": checkpoint.config, "texts_per_row": texts, "tap": run.__setitem__}
    model.embed(checkpoint.params, input_ids, attention_mask, **options)
    return run


def jax_run(
    checkpoint: e5ref.Checkpoint, input_ids: np.ndarray, attention_mask: np.ndarray, *, model=jax_model
) -> dict:
    """Record every named point of one compiled program, of our JAX twin or of a changed copy of it."""
    packed = SimpleNamespace(embed=partial(model.embed, texts_per_row=int(attention_mask.max(initial=1))))
    run = jax_points(checkpoint, None, str(checkpoint.params.embeddings.word.dtype), model=packed)
    return dict(run(input_ids, attention_mask))


def transformers_run(folder: Path, input_ids: np.ndarray, attention_mask: np.ndarray, dtype: str) -> Points:
    """Run a checkpoint in transformers and record every named point, in the forward pass's order."""
    return dict(transformers_points(e5ref.read_checkpoint(folder), None, dtype)(input_ids, attention_mask))


def transformers_run_of_texts(folder: Path, input_ids: np.ndarray, attention_mask: np.ndarray, dtype: str) -> Points:
    """Run each text of a packed batch in a row of its own, and put what comes out where the text stands; 0 elsewhere.

    Texts of one length are run together. A text begins with its first token; the first of a row with the row.
    """
    points = transformers_points(e5ref.read_checkpoint(folder), None, dtype)
    alike: dict[int, list[tuple[int, int, slice]]] = {}
    lengths = text_lengths(attention_mask)  # [B, K]
    for row, number in np.argwhere(lengths):
        places = np.flatnonzero(attention_mask[row] == number + 1)
        span = slice(places[0] if number else 0, places[-1] + 1)
        alike.setdefault(span.stop - span.start, []).append((row, number, span))
    run: Points = {}
    for texts in alike.values():
        ids = np.stack([input_ids[row, span] for row, _, span in texts])
        masks = np.stack([attention_mask[row, span] == number + 1 for row, number, span in texts])
        for name, arrays in points(ids, masks.astype(np.int64)).items():
            shapes = {
                2: (*lengths.shape, arrays.shape[-1]),  # [B, K, D]
                3: (*input_ids.shape, arrays.shape[-1]),  # [B, T, n]
                4: (len(input_ids), arrays.shape[1], *2 * input_ids.shape[1:]),  # [B, N, T, T]
            }
            whole = run.setdefault(name, np.zeros(shapes[arrays.ndim], arrays.dtype))
            for (row, number, span), mask, array in zip(texts, masks, arrays, strict=True):
                if array.ndim == 1:
                    whole[row, number] = array
                elif array.ndim == 2:
                    whole[row, span][mask] = array[mask]
                else:
                    pairs = np.outer(mask, mask)
                    whole[row, :, span, span][:, pairs] = array[:, pairs]
    for name in ("pooled", "normalized"):
        run[name] = run[name].reshape(-1, run[name].shape[-1])  # [B, K, D] -> [B · K, D]
    return run


def first_departure(run: Points, reference: Points, attention_mask: np.ndarray, dtype: str) -> str | None:
    """Name the first point where a run leaves the reference by more than its tolerance, and by how much.

    What stands at padding is not compared: transformers computes something there, we put 0. Of texts packed into a row
    it is compared that none attends to another.
    """
    if list(run) != list(reference):
        return f"names: {sorted(run.keys() ^ reference.keys()) or 'in another order'}"
    real = attention_mask > 0
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


def reference_run(
    folder: Path,
    input_ids: np.ndarray,
    attention_mask: np.ndarray,
    *,
    texts: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
) -> Run:
    """The float64 run of a checkpoint, with what rounding costs."""
    checkpoint = e5ref.read_checkpoint(folder, dtype="float64")
    metadata = {"dtype": "float64"} | ({} if texts is None else {"texts": json.dumps(texts)})
    metadata["rounding"] = json.dumps(rounding_costs(checkpoint, input_ids, attention_mask, only=only))
    points = run_reference(checkpoint, input_ids, attention_mask, only=only)
    return Run({"input_ids": input_ids, "attention_mask": attention_mask} | points, metadata)


def run_of(points: Mapping[str, np.ndarray], reference: Run, dtype: str = "float32") -> Run:
    """A run of the reference's inputs."""
    ids = {name: reference.arrays[name] for name in ("input_ids", "attention_mask")}
    texts = {name: reference.metadata[name] for name in ("texts", "tokens") if name in reference.metadata}
    return Run(ids | dict(points), texts | {"dtype": dtype})
