"""Vectors in fewer bits, with the names and the arithmetic of sentence-transformers' `quantize_embeddings`."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
OutputDtype = Literal["float32", "float64", "float16", "int8", "uint8", "binary", "ubinary"]

# Which NumPy dtype each is stored in. Of "binary" and "ubinary", a number holds eight dimensions.
STORED = {
    "float32": "float32",
    "float64": "float64",
    "float16": "float16",
    "int8": "int8",
    "uint8": "uint8",
    "binary": "int8",
    "ubinary": "uint8",
}


def find_ranges(vectors: Floats) -> Floats:
    """Return the least and the greatest value of each dimension. [n, D] -> [2, D]."""
    return np.stack([vectors.min(axis=0), vectors.max(axis=0)])


def stored_width(dimensions: int, dtype: OutputDtype) -> int:
    """Return how many numbers a stored vector has."""
    return -(-dimensions // 8) if dtype in ("binary", "ubinary") else dimensions


def quantize(vectors: Floats, dtype: OutputDtype, ranges: Floats | None = None) -> NDArray[Any]:
    """Store vectors in fewer bits.

    Args:
        vectors: [n, D].
        dtype: "int8" and "uint8" divide each dimension's range into 256 steps, and what lies outside goes to the
            nearest; "binary" and "ubinary" keep whether a number is above 0.
        ranges: of the dimensions, [2, D]; for "int8" and "uint8".

    Returns:
        [n, D], or [n, D / 8] for "binary" and "ubinary".
    """
    if dtype.startswith("float"):
        return vectors.astype(dtype)
    if dtype in ("binary", "ubinary"):
        bits = np.packbits(vectors > 0, axis=-1)
        return (bits - 128).astype(np.int8) if dtype == "binary" else bits
    assert ranges is not None
    start, step = _steps(ranges)
    levels = np.clip(np.floor((vectors - start) / step), 0, 255)
    return (levels - 128).astype(np.int8) if dtype == "int8" else levels.astype(np.uint8)


def restore(stored: NDArray[Any], dtype: OutputDtype, dimensions: int, ranges: Floats | None = None) -> Floats:
    """Turn what `quantize` stored back into vectors, [n, D]: the middle of a step; of bits, 1 and -1."""
    if dtype.startswith("float"):
        return stored.astype(np.float32) if dtype == "float16" else stored
    if dtype in ("binary", "ubinary"):
        bits = (stored + np.int16(128)).astype(np.uint8) if dtype == "binary" else stored
        return np.unpackbits(bits, axis=-1, count=dimensions).astype(np.float32) * 2 - 1
    assert ranges is not None
    start, step = _steps(ranges)
    levels = stored.astype(np.float32) + (128 if dtype == "int8" else 0)
    return start + (levels + np.float32(0.5)) * step


def _steps(ranges: Floats) -> tuple[Floats, Floats]:
    ranges = ranges.astype(np.float32)
    steps = (ranges[1] - ranges[0]) / 255
    return ranges[0], np.where(steps == 0, 1, steps)  # a dimension that never changes has no range
