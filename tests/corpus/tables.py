"""What a corpus holds, as a table."""

import numpy as np
import pyarrow.parquet as pq

from e5ref.corpus.writing import find_parts


def read(folder):
    return pq.read_table([part.path for part in find_parts(folder)])


def vectors_of(table):
    return np.stack(table["embedding"].to_numpy(zero_copy_only=False))
