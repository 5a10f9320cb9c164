"""transformers, run so that it yields the same named points as our forward pass, and the comparison of two runs."""

from pathlib import Path

import numpy as np

import e5ref
from e5ref.operations.rows import text_lengths
from e5ref.parity.runs.peers import transformers_points
from tests.tolerances import POINTS

Run = dict[str, np.ndarray]


def transformers_run(folder: Path, input_ids: np.ndarray, attention_mask: np.ndarray, dtype: str) -> Run:
    """Run a checkpoint in transformers and record every named point, in the forward pass's order."""
    return dict(transformers_points(e5ref.read_checkpoint(folder), None, dtype)(input_ids, attention_mask))


def transformers_run_of_texts(folder: Path, input_ids: np.ndarray, attention_mask: np.ndarray, dtype: str) -> Run:
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
    run: Run = {}
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


def first_departure(run: Run, reference: Run, attention_mask: np.ndarray, dtype: str) -> str | None:
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
