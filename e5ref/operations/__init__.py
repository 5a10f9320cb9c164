"""What stands beneath the twins: rows, products, kernels, exact cosines."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]  # float32 or float64
Ids = NDArray[np.integer]  # token ids, or an attention mask
Tap = Callable[[str, Array], None]  # gets (name, array) at every named point


def prefixed(tap: Tap | None, prefix: str) -> Tap | None:
    """Return `tap`, if there is one, with `prefix` put before the name of each point."""
    return None if tap is None else lambda name, array: tap(prefix + name, array)
