"""Search many vectors on disk, beside FAISS's flat index in memory, in one run.

python -m tests.measure.corpus.search_speed VECTORS QUERIES
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa

from e5ref.corpus.reading import Columns
from e5ref.corpus.search import nearest, open_vectors
from e5ref.corpus.writing import GROUP_ROWS, make_schema, part_path, written_part
from e5ref.numpy_model import l2_normalize

DIMENSIONS = 384
FACTS = {
    "columns": {"keep": []},
    "ranges": None,
    "output_dtype": "float32",
    "dimensions": DIMENSIONS,
    "normalized": "true",
}


def write(folder: Path, count: int) -> None:
    """Write random unit vectors as a job would."""
    random = np.random.default_rng(0)
    schema = make_schema(Columns(None, ("text",), (), {}), DIMENSIONS, "float32", FACTS)
    with written_part(part_path(folder, 0), schema) as part:
        for first in range(0, count, GROUP_ROWS):
            vectors = random.standard_normal((min(GROUP_ROWS, count - first), DIMENSIONS), dtype=np.float32)
            ids = pa.table({"id": pa.array(range(first, first + len(vectors)), pa.int64())})
            part.add(ids, l2_normalize(vectors))
        part.finish(0, count)


def main(count: int, queries: int, folder: Path) -> dict[str, float]:
    """Return seconds of both, and the megabytes that ours needed at most; raise if they find different vectors."""
    write(folder, count)
    asked = l2_normalize(np.random.default_rng(1).standard_normal((queries, DIMENSIONS), dtype=np.float32))
    vectors = open_vectors(folder)
    begun = time.perf_counter()
    ours = nearest(vectors, asked, 10)
    seconds = time.perf_counter() - begun
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    index = faiss.IndexFlatIP(DIMENSIONS)
    for _, block in vectors.blocks():
        index.add(np.ascontiguousarray(block))
    begun = time.perf_counter()
    _, rows = index.search(asked, 10)
    theirs = time.perf_counter() - begun
    assert [[*row] for row in ours] == [[str(number) for number in row] for row in rows.tolist()]
    return {"seconds": seconds, "faiss_seconds": theirs, "megabytes": megabytes}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        print(main(int(sys.argv[1]), int(sys.argv[2]), Path(place)))
