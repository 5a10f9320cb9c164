"""What vectors in fewer bits cost in a search: nDCG@10 on a folder in BEIR's layout, for each output dtype.

python -m tests.measure.corpus.quantized FOLDER MODEL
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import e5ref
from e5ref.corpus.job import CALIBRATION_ROWS, Job, embed_folder
from e5ref.corpus.quantization import STORED, find_ranges, quantize, restore, stored_width
from e5ref.corpus.reading import find_sources, resolve_columns
from e5ref.corpus.search import open_vectors
from e5ref.evaluation.beir import read_dataset, split_to_take
from e5ref.evaluation.retrieval import measure
from e5ref.evaluation.search import Best
from e5ref.numpy_model import l2_normalize


def main(folder: Path, model: e5ref.E5, place: Path) -> dict[str, tuple[int, float]]:
    """Return for each output dtype the bytes of a vector and nDCG@10."""
    sources = find_sources(folder)
    embed_folder(Job(model, sources, resolve_columns(sources[0]), "passage"), place)
    dataset = read_dataset(folder, split_to_take(folder, "test"))
    queries = model.encode_query(list(dataset.queries.values()))
    blocks = [*open_vectors(place).blocks()]
    vectors = np.concatenate([block for _, block in blocks])
    ids = [name for names, _ in blocks for name in names]
    ranges = find_ranges(vectors[:: max(1, len(vectors) // CALIBRATION_ROWS)])
    found = {}
    for dtype in STORED:
        stored = quantize(vectors, dtype, ranges)
        best = Best([*dataset.queries], 10)
        best.add(queries, ids, l2_normalize(restore(stored, dtype, model.dimensions, ranges)))
        ndcg = measure(best.run(10, ignore_identical_ids=False), dataset.qrels, [10])["ndcg@10"]
        assert stored.shape[1] == stored_width(model.dimensions, dtype)
        found[dtype] = stored.shape[1] * stored.itemsize, ndcg
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        for dtype, (size, ndcg) in main(Path(sys.argv[1]), e5ref.load(sys.argv[2]), Path(place)).items():
            print(f"| {dtype:8} | {size:6,} | {100 * ndcg:8.2f} |")
