"""What stands beneath the twins: rows, products, kernels, exact cosines."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]  # float32 or float64
Ids = NDArray[np.integer]  # token ids, or an attention mask
