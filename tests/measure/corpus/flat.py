"""Embed many short rows from Parquet to Parquet: memory, and how fast the last tenth is beside the first.

python -m tests.measure.corpus.flat ROWS
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import e5ref
from e5ref.corpus.job import Job, embed_folder
from e5ref.corpus.reading import find_sources, resolve_columns
from e5ref.terminal.progress import RowProgress


def megabytes() -> float:
    """Return what the process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def main(rows: int, place: Path, seen: list[tuple[int, float, float]]) -> float:
    """Embed so many rows into a folder, and again from a list; return the seconds of the latter.

    Args:
        rows: how many.
        place: an empty folder.
        seen: gets, at each window, how many rows are done, the CPU seconds and the megabytes.
    """
    path = place / "rows.parquet"
    with pq.ParquetWriter(path, pa.schema([("id", pa.int64()), ("text", pa.string())])) as writer:
        for first in range(0, rows, 50_000):
            numbers = range(first, min(first + 50_000, rows))
            writer.write_table(pa.table({"id": [*numbers], "text": [f"the sun {number % 977}" for number in numbers]}))
    model = e5ref.load("e5ref-nano", threads=1)
    update = RowProgress.update
    begun = time.process_time()
    done = 0

    def watch(progress: RowProgress, count: int, tokens: int) -> None:
        nonlocal done
        done += count
        seen.append((done, time.process_time() - begun, megabytes()))
        update(progress, count, tokens)

    RowProgress.update = watch
    try:
        sources = find_sources(path)
        embed_folder(Job(model, sources, resolve_columns(sources[0]), "passage"), place / "out")
    finally:
        RowProgress.update = update
    some = [f"the sun {number % 977}" for number in range(min(rows, 100_000))]
    begun = time.process_time()
    model.encode_document(some)
    return (time.process_time() - begun) * rows / len(some)


def summary(seen: list[tuple[int, float, float]]) -> tuple[float, float, float, float]:
    """Return rows a CPU second of the second and of the last tenth, and the megabytes at a tenth and at the end."""
    tenths = [next(row for row in seen if row[0] >= seen[-1][0] * tenth / 10) for tenth in (1, 2, 9)] + [seen[-1]]
    (n1, t1, m1), (n2, t2, _), (n9, t9, _), (n10, t10, _) = tenths
    return (n2 - n1) / (t2 - t1), (n10 - n9) / (t10 - t9), m1, max(row[2] for row in seen)


if __name__ == "__main__":
    found: list[tuple[int, float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        alone = main(int(sys.argv[1]), Path(folder), found)
    early, late, at_first, most = summary(found)
    print(f"{early:,.0f} rows a CPU second in the second tenth, {late:,.0f} in the last")
    print(f"{at_first:,.0f} MB after a tenth, at most {most:,.0f} MB")
    print(f"{found[-1][1]:,.0f} CPU seconds with reading and writing; encode of a list would take {alone:,.0f}")
