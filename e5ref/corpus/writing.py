"""Parquet with vectors: a column of fixed-size lists, in files that are written whole or not at all."""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from e5ref.corpus.quantization import STORED, OutputDtype, stored_width
from e5ref.corpus.reading import Columns
from e5ref.files.whole import written_whole

# Rows of a row group: what is written, and read, at a time.
GROUP_ROWS = 16384

# The keys of a file's metadata.
FACTS, ROWS = b"e5ref", b"e5ref_rows"


class Part(NamedTuple):
    """A finished file: which rows of the input it covers, from `start` to before `stop`."""

    path: Path
    start: int
    stop: int
    rows: int  # fewer if some were left out


def make_schema(columns: Columns, dimensions: int, dtype: OutputDtype, facts: Mapping[str, Any]) -> pa.Schema:
    """Return the columns of a file of vectors: `id`, what is kept, `embedding`; and in the metadata the facts."""
    number = pa.from_numpy_dtype(np.dtype(STORED[dtype]))
    id_type = columns.types[columns.id] if columns.id else pa.int64()
    return pa.schema(
        [
            ("id", id_type),
            *((name, columns.types[name]) for name in columns.keep),
            pa.field(
                "embedding", pa.list_(pa.field("element", number, nullable=False), stored_width(dimensions, dtype))
            ),
        ],
        metadata={FACTS: json.dumps(facts)},
    )


class PartWriter:
    """Writes rows to an open file; a thread does so while the next are computed.

    Attributes:
        bytes: how many bytes of rows there are so far, before compression.
    """

    def __init__(self, file: BinaryIO, schema: pa.Schema) -> None:
        """Begin with no rows."""
        self.bytes = 0
        self._schema = schema
        # Neither is of use to vectors.
        others = [name for name in schema.names if name != "embedding"]
        codecs = dict.fromkeys(others, "zstd") | {"embedding.list.element": "none"}
        self._writer = pq.ParquetWriter(file, schema, compression=codecs, use_dictionary=others)
        self._thread = ThreadPoolExecutor(1, "e5ref-writer")
        self._written: Future[None] | None = None
        self._waiting: list[pa.Table] = []

    def add(self, rows: pa.Table, stored: NDArray[Any]) -> None:
        """Write some rows, and their vectors as `quantize` returns them."""
        field = self._schema.field("embedding")
        embedding = pa.FixedSizeListArray.from_arrays(pa.array(stored.ravel()), type=field.type)
        table = rows.append_column(field, embedding).select(self._schema.names)
        self.bytes += table.nbytes
        self._waiting.append(table)
        if sum(map(len, self._waiting)) >= GROUP_ROWS:
            self._write()

    def finish(self, start: int, stop: int) -> None:
        """Write what is left, and which rows of the input these are."""
        self._write()
        self._wait()
        self._writer.add_key_value_metadata({ROWS: f"{start}-{stop}"})
        self._writer.close()

    def close(self) -> None:
        """Let the thread end."""
        self._thread.shutdown(cancel_futures=True)

    def _write(self) -> None:
        self._wait()
        if self._waiting:
            table = pa.concat_tables(self._waiting).cast(self._schema)
            self._waiting = []
            self._written = self._thread.submit(self._writer.write_table, table, row_group_size=GROUP_ROWS)

    def _wait(self) -> None:
        if self._written is not None:
            self._written.result()


@contextmanager
def written_part(path: Path, schema: pa.Schema) -> Iterator[PartWriter]:
    """Open a part; it gets its name when it is finished."""
    with written_whole(path) as file:
        writer = PartWriter(file, schema)
        try:
            yield writer
        finally:
            writer.close()


def part_path(folder: Path, start: int) -> Path:
    """Name a part by the number of its first row."""
    return folder / f"part-{start:012}.parquet"


def find_parts(folder: Path) -> list[Part]:
    """Find the finished parts of a folder, in order.

    Raises:
        ValueError: a file of such a name that e5ref did not write.
    """
    parts = []
    for path in sorted(folder.glob("part-*.parquet")):
        try:
            footer = pq.read_metadata(path)
            start, stop = (footer.metadata or {})[ROWS].decode().split("-")
        except (pa.ArrowInvalid, KeyError, ValueError):
            raise ValueError(f"{path}: is damaged, or not a part that e5ref wrote; remove it") from None
        parts.append(Part(path, int(start), int(stop), footer.num_rows))
    return parts


def gaps(parts: list[Part], start: int, stop: int) -> list[tuple[int, int]]:
    """Return which rows from `start` to before `stop` no part covers, as ranges."""
    found = []
    for part in parts:
        if part.start > start:
            found.append((start, min(part.start, stop)))
        start = max(start, part.stop)
        if start >= stop:
            break
    if start < stop:
        found.append((start, stop))
    return [(first, last) for first, last in found if first < last]
