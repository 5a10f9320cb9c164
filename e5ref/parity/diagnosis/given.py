"""The given vectors, and what their digits and bytes show."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from e5ref.parity.altered.models import round_to

Floats = NDArray[np.floating]

# Embeddings hold no larger number than LARGEST. Numbers whose bytes are in the wrong order have any bits where the
# exponent is expected, so some are larger than ABSURD.
LARGEST = 1e6
ABSURD = 1e15


@dataclass(frozen=True)
class Given:
    """The given vectors, and what their digits show.

    Attributes:
        vectors: [n, d], float64.
        directions: the same with unit L2 norm.
        norms: [n].
        lengths: characters of each text.
        stored: how the values were rounded, such as "stored as float16"; "" if not coarser than float32.
        stored_level: how far this rounding moves a direction.
        swapped: whether the bytes of each number were in the wrong order, and have been put right.
    """

    vectors: Floats
    directions: Floats
    norms: Floats
    lengths: NDArray[np.int64]
    stored: str = ""
    stored_level: float = 0.0
    swapped: bool = False

    @property
    def width(self) -> int:
        """The number of dimensions of a vector."""
        return self.vectors.shape[1]

    @classmethod
    def check(cls, texts: Sequence[str], vectors: ArrayLike) -> "Given":
        """Check the vectors; raise `ValueError` if there is not a finite one other than zero for each text.

        Before that, numbers are mended that make sense only with their bytes in the opposite order.
        """
        array = np.asarray(vectors)
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError("texts must be a list of str")
        if array.ndim != 2 or array.dtype.kind not in "fiu" or array.shape[1] < 2:
            raise ValueError(f"vectors must be numbers [n, d], but are {array.dtype} {list(array.shape)}")
        if len(array) != len(texts) or not len(texts):
            raise ValueError(f"there are {len(texts)} texts and {len(array)} vectors; give one vector for each text")
        mended = _bytes_swapped(array)
        if mended is not None and array.dtype.itemsize > mended.dtype.itemsize and np.isnan(array).any():
            raise ValueError("the vectors' bytes are in the wrong order; give them in float32, as they were decoded")
        with np.errstate(invalid="ignore"):  # some kinds of NaN warn
            array = (array if mended is None else mended).astype(np.float64)
        bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
        if len(bad):
            raise ValueError(f"vectors[{bad[0]}] holds NaN or infinity, and so do {len(bad) - 1} more")
        norms = np.linalg.norm(array, axis=1)
        if not norms.all():
            raise ValueError(f"vectors[{int(np.argmin(norms))}] is all zeros")
        lengths = np.array([len(text) for text in texts], np.int64)
        return cls(array, array / norms[:, None], norms, lengths, *_storage(array, norms), mended is not None)


def _bytes_swapped(array: NDArray[np.generic]) -> Floats | None:
    """Swap the bytes of absurd numbers; None if they are not absurd, or do not make sense then either.

    Numbers that stand in float64 may have been decoded as float32, which base64 has.
    """
    if array.dtype.kind != "f" or array.dtype.itemsize < 4 or _magnitude(array) <= ABSURD:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        native = [array.astype(kind) for kind in (np.float32, np.float64) if np.dtype(kind).itemsize <= array.itemsize]
    for numbers in native:
        swapped: NDArray[Any] = numbers.byteswap()
        if np.median(np.abs(swapped)) > 1 / LARGEST and _magnitude(swapped) <= LARGEST:
            return swapped
    return None


def _magnitude(array: NDArray[np.generic]) -> float:
    """Return the largest absolute value; infinity if a value is not finite."""
    with np.errstate(invalid="ignore"):
        return float(np.abs(array).max()) if np.isfinite(array).all() else float("inf")


def _storage(vectors: Floats, norms: Floats) -> tuple[str, float]:
    """Find the coarsest rounding that would leave every value as it is, and how far it moves a direction."""
    uniform = 12**-0.5  # the root mean square of a rounding error, uniform within half a unit

    def cost(unit: Floats | float) -> float:
        return float(np.median(uniform * np.sqrt(np.sum(np.broadcast_to(unit, vectors.shape) ** 2, axis=1)) / norms))

    if np.abs(vectors).max() <= 255 and np.array_equal(vectors, np.rint(vectors)):
        return "stored as int8", cost(1.0)
    found = []
    for what, unit_of in (("decimals", _decimal_unit), ("significant digits", _digit_unit)):
        number = next((number for number in range(1, 8) if _is_rounded(vectors, unit_of, number)), None)
        if number is not None:
            found.append((cost(unit_of(vectors, number)), f"rounded to {number} {what}"))
    if found:
        level, stored = max(found)
        return stored, level
    powers = 2.0 ** np.floor(np.log2(np.abs(vectors) + 1e-30))
    if np.array_equal(vectors, round_to(vectors, "bfloat16")):
        return "stored as bfloat16", cost(powers * 2.0**-7)
    if np.abs(vectors).max() < 65504 and np.array_equal(vectors, round_to(vectors, "float16")):
        return "stored as float16", cost(powers * 2.0**-10)
    return "", 0.0


def _decimal_unit(vectors: Floats, number: int) -> Floats:
    return np.full((1, 1), 0.1**number)


def _digit_unit(vectors: Floats, number: int) -> Floats:
    """Return the unit of each value's last significant digit, [n, d]. Trained models have dimensions of about 1e-33."""
    return 10.0 ** (np.floor(np.log10(np.maximum(np.abs(vectors), 1e-100))) + 1 - number)


def _is_rounded(vectors: Floats, unit_of: Callable[[Floats, int], Floats], number: int) -> bool:
    """Tell whether every value is a multiple of its unit. float32 itself rounds the decimal number."""
    for some in (vectors[:4], vectors):  # a few rows are enough to say no
        unit = unit_of(some, number)
        if (np.abs(some - np.rint(some / unit) * unit) > 6.1e-8 * np.abs(some)).any():
            return False
    return True
