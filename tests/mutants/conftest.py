"""Copies with a mistake, and what they are judged by."""

import numpy as np
import pytest

import e5ref
from tests.tools.batches import packed_batch, ragged_batch
from tests.tools.checkpoints import write_random_bert
from tests.tools.runs import Points, transformers_run, transformers_run_of_texts

Reference = tuple[e5ref.Checkpoint, tuple[np.ndarray, np.ndarray], Points]


@pytest.fixture(scope="session")
def reference(tmp_path_factory) -> Reference:
    folder = write_random_bert(tmp_path_factory.mktemp("mutants"), layer_norm_eps=1e-3)
    batch = ragged_batch([9, 1, 30, 2], 40)
    return e5ref.read_checkpoint(folder, dtype="float64"), batch, transformers_run(folder, *batch, "float64")


@pytest.fixture(scope="session")
def packed_references(tmp_path_factory) -> dict[str, Reference]:
    """A checkpoint, packed rows and what transformers makes of each text alone, for either way to count positions."""
    references = {}
    for kind in ("bert", "xlm-roberta"):
        folder = write_random_bert(tmp_path_factory.mktemp("packed"), model_type=kind)
        batch = packed_batch([[3, 9, 1, -2, 4], [7, 12], [1] * 19, [-2, 5, -1, 8, 2]], 40)
        batch[1][0, 6:8] = 0  # inside a text
        expected = transformers_run_of_texts(folder, *batch, "float64")
        references[kind] = e5ref.read_checkpoint(folder, dtype="float64"), batch, expected
    return references
