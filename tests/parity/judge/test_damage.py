"""Files of runs that are damaged at random: an error in a sentence, a failure, or damage to what does not count."""

import random

import numpy as np
import pytest

from e5ref.parity import RunError, compare, read_run, record, write_run
from tests.tools.tolerances import POINTS

TEXTS = ["query: cat dog", "passage: why do plants need light", "a"]


@pytest.fixture(scope="module")
def runs(tiny_bert, tmp_path_factory):
    file = tmp_path_factory.mktemp("damage") / "run.safetensors"
    write_run(record(tiny_bert, TEXTS), file)
    return record(tiny_bert, TEXTS, dtype="float64"), file


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Cut a file short, turn a bit, blank 16 bytes, or exchange two."""
    data, i, j = bytearray(content), chance.randrange(len(content)), chance.randrange(len(content))
    match chance.randrange(4):
        case 0:
            del data[i:]
        case 1:
            data[i] ^= 1 << chance.randrange(8)
        case 2:
            data[i : i + 16] = bytes(len(data[i : i + 16]))
        case 3:
            data[i], data[j] = data[j], data[i]
    return bytes(data)


def at_real_tokens(point: np.ndarray, mask: np.ndarray) -> np.ndarray:
    if point.ndim == 4:  # [B, N, T, T]
        return point.transpose(0, 2, 3, 1)[mask[:, :, None] & mask[:, None, :]]
    return point[mask] if point.ndim == 3 else point


@pytest.mark.parametrize("seed", range(4))
def test_what_passes_is_right_where_it_counts(seed, runs, tmp_path):
    reference, file = runs
    whole = read_run(file)
    mask = whole.attention_mask == 1
    chance = random.Random(seed)
    said = {"error": 0, "failed": 0, "passed": 0}
    for _ in range(100):
        path = tmp_path / "damaged.safetensors"
        path.write_bytes(damaged(file.read_bytes(), chance))
        try:
            passed = compare(path, reference).passed
        except RunError:
            said["error"] += 1
            continue
        said["passed" if passed else "failed"] += 1
        if passed:
            run = read_run(path)
            assert run.points.keys() == whole.points.keys()
            np.testing.assert_array_equal(run.input_ids[mask], whole.input_ids[mask])
            for name, point in whole.points.items():
                ours, theirs = at_real_tokens(run.points[name], mask), at_real_tokens(point, mask)
                assert np.abs(ours - theirs).max() <= POINTS["float32"] * np.abs(theirs).max()
    assert min(said.values()) > 0
