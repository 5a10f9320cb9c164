"""The job: rows in, parts out; what is finished is not done again."""

import json
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from e5ref.checkpoint.prompts import find_prompt, warn_of_prompts
from e5ref.corpus.quantization import STORED, OutputDtype, find_ranges, quantize, stored_width
from e5ref.corpus.reading import Columns, Source
from e5ref.corpus.survey import BadRows, fingerprint, numbered, survey, write_skipped
from e5ref.corpus.writing import find_parts, gaps, make_schema, part_path, written_part
from e5ref.encoder import E5
from e5ref.files.vectors import write_json_lines, write_vectors
from e5ref.files.whole import locked, written_whole
from e5ref.terminal.progress import RowProgress

T = TypeVar("T")

# A part is finished when it has so many bytes, or after so many seconds: no more than these is lost to a kill.
PART_BYTES, PART_SECONDS = 256 << 20, 300.0

# Rows, spread evenly over the input, whose vectors give the ranges of int8 and uint8.
CALIBRATION_ROWS = 4096

# What lies in the folder beside the parts. Readers of Parquet pass over names that begin so.
PLAN, SKIPPED = "_provenance.json", "_skipped.jsonl"

# What of a vector's provenance may change while a job goes on: where the model lay, and versions of libraries, whose
# results are compared at each start of a process or differ by rounding at most.
MAY_DIFFER = (
    "model",
    "revision",
    "tokenized_by",
    "numpy_version",
    "tokenizers_version",
    "nanotoken_version",
    "jax_version",
)

# What of a plan a look at all rows has found.
FOUND = ("files", "counts", "rows", "skipped", "ranges")

# What differs → how errors call it.
NAMES = {
    "weights_sha256": "model (its weights)",
    "config_sha256": "model (its config.json)",
    "tokenizer_sha256": "tokenizer",
    "sha256": "input",
    "e5ref_version": "version of e5ref",
}


@dataclass(frozen=True)
class Job:
    """What is embedded, and how.

    Attributes:
        model: what embeds.
        sources: the files, in order.
        columns: what is read of them.
        prompt_name: which of the model's prompts stands before each text; None for none.
        output_dtype: what vectors are stored as.
        bad_rows: "error" refuses the input for one bad row, "skip" leaves such rows out.
    """

    model: E5
    sources: list[Source]
    columns: Columns
    prompt_name: str | None
    output_dtype: OutputDtype = "float32"
    bad_rows: BadRows = "error"

    @property
    def prompt(self) -> str:
        """What stands before each text."""
        return find_prompt(self.model.checkpoint.settings.prompts, self.prompt_name, None)

    def facts(self, shares: int = 1) -> dict[str, Any]:
        """Say what must be the same for a job to go on."""
        columns = {"id": self.columns.id, "text": list(self.columns.text), "keep": list(self.columns.keep)}
        return {
            **self.model.provenance(self.prompt),
            "sha256": fingerprint(self.sources),
            "columns": columns,
            "bad_rows": self.bad_rows,
            "output_dtype": self.output_dtype,
            "dimensions": self.model.dimensions,
            "shares": shares,
        }

    def plan(self, facts: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Look at all rows: return the facts with what was found, and why rows are left out."""
        found = survey(self.sources, self.columns, self.bad_rows)
        plan = {
            **facts,
            "files": [source.name for source in self.sources],
            "counts": found.counts,
            "rows": sum(found.counts),
            "skipped": found.skipped,
            "ranges": None,
        }
        if self.output_dtype in ("int8", "uint8") and plan["rows"] > len(found.skipped):
            step = max(1, plan["rows"] // CALIBRATION_ROWS)
            some = [
                text
                for rows, texts in self._batches(plan, 0, plan["rows"])
                for number, text in zip(rows["row"].to_pylist(), texts, strict=True)
                if number % step == 0
            ]
            vectors = self.model.encode(some, prompt=self.prompt, truncation="allow")
            plan["ranges"] = find_ranges(vectors.astype(np.float32)).tolist()
        return plan, found.reasons

    def schema(self, plan: Mapping[str, Any]) -> pa.Schema:
        """Return the columns of the output."""
        facts = {name: value for name, value in plan.items() if name != "skipped"}
        return make_schema(self.columns, self.model.dimensions, self.output_dtype, facts)

    def run(
        self, plan: Mapping[str, Any], start: int, stop: int, progress: RowProgress
    ) -> Iterator[tuple[pa.Table, NDArray[Any]]]:
        """Embed the rows from `start` to before `stop`: yield some (`row`, `id`, what is kept), and their vectors."""
        read: deque[pa.Table] = deque()  # and not embedded yet

        def texts() -> Iterator[str]:
            for table, some in read_ahead(self._batches(plan, start, stop)):
                read.append(table)
                yield from some

        ranges = None if plan["ranges"] is None else np.array(plan["ranges"], np.float32)
        checkpoint = self.model.checkpoint
        watched = warn_of_prompts(texts(), checkpoint.settings.prompts, self.prompt_name, checkpoint.name)
        stream = self.model.encode_stream(watched, prompt=self.prompt, show_progress_bar=False)
        for vectors in stream:
            tables, missing = [], len(vectors)
            while missing:
                table = read.popleft()
                tables.append(table[:missing])
                if len(table) > missing:
                    read.appendleft(table[missing:])
                missing -= len(tables[-1])
            progress.update(len(vectors), stream.cut_texts.tokens)
            yield pa.concat_tables(tables), quantize(vectors, self.output_dtype, ranges)

    def _batches(self, plan: Mapping[str, Any], start: int, stop: int) -> Iterator[tuple[pa.Table, list[str]]]:
        """Read rows: `row`, `id` and what is kept, and their texts."""
        skipped = set(plan["skipped"])
        columns = self.columns
        for first, _, rows in numbered(self.sources, columns, start=start, counts=plan["counts"]):
            if first >= stop:
                return
            end = min(first + len(rows.ids), stop)
            chosen = [number - first for number in range(max(first, start), end) if number not in skipped]
            if not chosen:
                continue
            numbers = pa.array(range(first, first + len(rows.ids)), pa.int64())
            ids = pa.array(rows.ids, columns.types[columns.id]) if columns.id else pa.compute.add(numbers, 1)
            kept = {
                name: pa.array(values, columns.types[name]) if isinstance(values, list) else values
                for name, values in rows.kept.items()
            }
            table = pa.table({"row": numbers, "id": ids, **kept})
            yield table.take(chosen), cast(list[str], [rows.texts[index] for index in chosen])


class Done(NamedTuple):
    """What a job did.

    Attributes:
        rows: how many rows of the input it was to cover.
        before: how many of these were there already.
        skipped: how many rows of the whole input are left out.
    """

    rows: int
    before: int
    skipped: int


def embed_folder(job: Job, folder: Path, *, share: tuple[int, int] = (0, 1), force: bool = False) -> Done:
    """Embed a corpus into a folder of Parquet; go on if some of it is there.

    Args:
        job: what to embed.
        folder: is made if it is not there.
        share: which share of how many, from 0; each is for a process, and all write to one folder.
        force: whether to replace other vectors that the folder holds.

    Raises:
        ValueError: another job writes there, the folder holds something else, or a row is bad.
        OSError: it cannot be written to.
    """
    with open_folder(job, folder, share, force=force) as plan:
        start, stop = _bounds(plan, share)
        missing = gaps(find_parts(folder), start, stop)
        before = stop - start - sum(last - first for first, last in missing)
        with closing(RowProgress(stop - start, before)) as progress:
            for first, last in missing:
                write_parts(job, plan, folder, first, last, progress)
        return Done(stop - start, before, len(plan["skipped"]))


def embed_file(job: Job, path: Path | None, *, share: tuple[int, int] = (0, 1)) -> Done:
    """Embed a corpus into one file: .parquet, or what `write_vectors` writes; None prints JSON lines."""
    plan, _ = job.plan(job.facts(share[1]))
    start, stop = _bounds(plan, share)
    with closing(RowProgress(stop - start)) as progress:
        embedded = job.run(plan, start, stop, progress)
        if path is not None and path.suffix == ".parquet":
            with written_part(path, job.schema(plan)) as part:
                for rows, stored in embedded:
                    part.add(rows, stored)
                part.finish(start, stop)
        else:
            is_text = path is None or path.suffix == ".jsonl"
            parts = ((rows.drop_columns("row").to_pylist() if is_text else [], stored) for rows, stored in embedded)
            if path is None:
                write_json_lines(sys.stdout, parts)
            else:
                provenance = job.model.provenance(job.prompt) | {"output_dtype": job.output_dtype}
                if plan["ranges"]:
                    provenance["ranges"] = json.dumps(plan["ranges"])
                width, dtype = stored_width(job.model.dimensions, job.output_dtype), np.dtype(STORED[job.output_dtype])
                write_vectors(path, parts, width=width, dtype=dtype, provenance=provenance)
    return Done(stop - start, 0, len(plan["skipped"]))


def _bounds(plan: Mapping[str, Any], share: tuple[int, int]) -> tuple[int, int]:
    """Return which rows a share has."""
    index, shares = share
    return plan["rows"] * index // shares, plan["rows"] * (index + 1) // shares


def write_parts(job: Job, plan: Mapping[str, Any], folder: Path, start: int, stop: int, progress: RowProgress) -> None:
    """Embed the rows from `start` to before `stop`, and write them as parts, one after another."""
    schema = job.schema(plan)
    embedded = job.run(plan, start, stop, progress)
    for first in embedded:
        with written_part(part_path(folder, start), schema) as part:
            begun, end = time.monotonic(), stop
            for rows, stored in chain([first], embedded):
                part.add(rows, stored)
                if part.bytes >= PART_BYTES or time.monotonic() - begun > PART_SECONDS:
                    end = rows["row"][-1].as_py() + 1
                    break
            part.finish(start, end)
        start = end


@contextmanager
def open_folder(
    job: Job, folder: Path, share: tuple[int, int] = (0, 1), *, force: bool = False
) -> Iterator[dict[str, Any]]:
    """Lock a folder for a share of a job, and give the plan: the one that is there, or a new one.

    Raises:
        ValueError: as `embed_folder`.
    """
    index, shares = share
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / f".lock-{index:05}-of-{shares:05}"):
        facts = job.facts(shares)
        with locked(folder / ".lock", wait=True):  # shares that begin together make one plan
            plan = _plan(job, folder, facts, force)
        yield plan


def _plan(job: Job, folder: Path, facts: Mapping[str, Any], force: bool) -> dict[str, Any]:
    """Read the plan of a folder, and check that the job is the same; or make one."""
    path = folder / PLAN
    if path.exists():
        plan = json.loads(path.read_text(encoding="utf-8"))
        names = sorted((facts.keys() | plan.keys()) - {*FOUND, *MAY_DIFFER})
        different = next((name for name in names if plan.get(name) != facts.get(name)), None)
        if different is None:
            return plan
        if not force:
            was = "" if different.endswith("sha256") else f": {plan.get(different)!r}, and now {facts.get(different)!r}"
            raise ValueError(
                f"{folder}: was made with a different {NAMES.get(different, different)}{was}; give a different folder, "
                "or --force to replace what is there"
            )
        path.unlink()
        for part in folder.glob("part-*.parquet"):
            part.unlink()
    elif any(not file.name.startswith(".") for file in folder.iterdir()):
        raise ValueError(f"{folder}: holds something that `e5ref embed` did not write; give a different folder")
    plan, reasons = job.plan(facts)
    (folder / SKIPPED).unlink(missing_ok=True)
    if reasons:
        write_skipped(folder / SKIPPED, reasons)
    with written_whole(path) as file:
        file.write((json.dumps(plan, indent=2) + "\n").encode())
    return plan


def read_ahead(items: Iterator[T], most: int = 4) -> Iterator[T]:
    """Let a thread take items of an iterator before they are wanted, a few at most."""
    end: Any = object()
    thread = ThreadPoolExecutor(1, "e5ref-reader")
    try:
        ahead = deque(thread.submit(next, items, end) for _ in range(most))
        while (item := ahead.popleft().result()) is not end:
            ahead.append(thread.submit(next, items, end))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)
