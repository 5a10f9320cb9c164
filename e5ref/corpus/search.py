"""Exact search in the vectors that a job wrote: cosine with all of them, block by block."""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset
import pyarrow.parquet as pq
from numpy.typing import NDArray

from e5ref.corpus.job import PLAN
from e5ref.corpus.quantization import Floats, restore
from e5ref.corpus.writing import FACTS
from e5ref.encoder import E5
from e5ref.evaluation.search import Best
from e5ref.numpy_model import l2_normalize

# What must be the same in the model that embeds the queries as in the one that made the vectors.
SAME = ("weights_sha256", "config_sha256", "tokenizer_sha256", "pooling", "dimensions")


class Vectors(NamedTuple):
    """Vectors in Parquet, and what says where they come from.

    Attributes:
        paths: the files, in order.
        facts: the provenance, as each file has it in its metadata.
        rows: how many vectors there are.
    """

    paths: list[Path]
    facts: Mapping[str, Any]
    rows: int

    @property
    def kept(self) -> list[str]:
        """The columns beside id and vector."""
        return list(self.facts["columns"]["keep"])

    def blocks(self) -> Iterator[tuple[list[str], Floats]]:
        """Yield ids, as strings, and unit vectors, [n, D]; memory holds one block."""
        ranges = None if self.facts["ranges"] is None else np.array(self.facts["ranges"], np.float32)
        dtype, dimensions = self.facts["output_dtype"], self.facts["dimensions"]
        is_unit = dtype in ("float32", "float64") and self.facts["normalized"] == "true"
        for path in self.paths:
            file = pq.ParquetFile(path)
            for group in range(file.num_row_groups):  # `iter_batches` would keep what it has read
                rows = file.read_row_group(group, columns=["id", "embedding"])
                stored = rows["embedding"].combine_chunks().flatten().to_numpy().reshape(len(rows), -1)
                vectors = restore(stored, dtype, dimensions, ranges)
                yield rows["id"].cast(pa.string()).to_pylist(), vectors if is_unit else l2_normalize(vectors)


def open_vectors(path: str | Path) -> Vectors:
    """Find the vectors of a folder, or of one file.

    Raises:
        ValueError: there are none, they come from different models, or e5ref did not write them.
        OSError: there is no such folder.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder")
    paths = sorted(path.glob("part-*.parquet")) if path.is_dir() else [path]
    if not paths:
        raise ValueError(f"{path}: holds no vectors; make some with e5ref embed -o {path}/")
    rows, facts = 0, None
    for file in paths:
        try:
            footer = pq.read_metadata(file)
            found = json.loads((footer.metadata or {})[FACTS])
        except (pa.ArrowInvalid, KeyError, ValueError):
            raise ValueError(f"{file}: is no file of vectors that e5ref wrote") from None
        if facts is not None and found != facts:
            raise ValueError(f"{file}: comes from a different job than {paths[0].name}; keep each in its own folder")
        rows, facts = rows + footer.num_rows, found
    assert facts is not None
    if (path / PLAN).is_file():
        plan = json.loads((path / PLAN).read_text(encoding="utf-8"))
        wanted = plan["rows"] - len(plan["skipped"])
        if rows < wanted:
            warnings.warn(
                f"{path}: holds {rows:,} of {wanted:,} rows; the same e5ref embed goes on with the rest", stacklevel=2
            )
    return Vectors(paths, facts, rows)


def search(vectors: Vectors, model: E5, queries: Sequence[str], k: int) -> pa.Table:
    """Find the k vectors of the greatest cosine for each query, by comparing it with all of them.

    Args:
        vectors: of documents.
        model: the one that made them.
        queries: without prompts; the checkpoint's query prompt is put there.
        k: how many.

    Returns:
        Rows `query` (its number, from 0), `rank` (from 1), `id`, `score` (cosine x 100, float32), and the columns that
        were kept. Of equal scores, the greater id (as a string) goes first, as in evaluation.

    Raises:
        ValueError: a model that did not make the vectors.
    """
    check_model(vectors, model)
    found = nearest(vectors, model.encode_query(list(queries), normalize_embeddings=True), k)
    rows: list[dict[str, Any]] = [
        {"query": query, "rank": rank, "key": key, "score": 100 * score}
        for query, ranking in enumerate(found)
        for rank, (key, score) in enumerate(ranking.items(), 1)
    ]
    types = {"query": pa.int64(), "rank": pa.int64(), "key": pa.string(), "score": pa.float32()}
    table = pa.Table.from_pylist(rows, schema=pa.schema(list(types.items())))
    # The other columns of what was found are read now; ids are there once.
    dataset = pa.dataset.dataset([str(path) for path in vectors.paths])
    id_type = dataset.schema.field("id").type
    wanted = pa.array(sorted({row["key"] for row in rows}), pa.string()).cast(id_type)
    named = dataset.to_table(columns=["id", *vectors.kept], filter=pa.compute.field("id").isin(wanted))
    named = named.append_column("key", named["id"].cast(pa.string()))
    joined = table.join(named, "key").sort_by([("query", "ascending"), ("rank", "ascending")])
    return joined.select(["query", "rank", "id", "score", *vectors.kept])


def nearest(vectors: Vectors, queries: NDArray[np.floating], k: int) -> list[Mapping[str, float]]:
    """Find for each query, [Q, D] of unit L2 norm, the k nearest vectors: id, as a string → cosine."""
    names = [str(number) for number in range(len(queries))]
    best = Best(names, min(k, vectors.rows))
    for ids, block in vectors.blocks():
        best.add(queries, ids, block)
    run = best.run(k, ignore_identical_ids=False)
    return [run[name] for name in names]


def check_model(vectors: Vectors, model: E5) -> None:
    """Refuse a model that did not make the vectors.

    Raises:
        ValueError: it is a different one; the message says by what.
    """
    facts = model.provenance("") | {"dimensions": model.dimensions}
    for name in SAME:
        if facts[name] != vectors.facts[name]:
            raise ValueError(
                f"the vectors come from {vectors.facts['model']}, and {model.checkpoint.name} is a different model "
                f"(its {name}); queries must be embedded by the same one"
            )
