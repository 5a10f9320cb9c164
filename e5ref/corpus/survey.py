"""A look at all rows before any work: how many there are, and which of them cannot be embedded."""

import json
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from e5ref.checkpoint.hub import file_sha256
from e5ref.corpus.reading import Columns, Rows, Source, place, read_rows
from e5ref.files.whole import written_whole
from e5ref.terminal.progress import progress_bar

BadRows = Literal["error", "skip"]


class Survey(NamedTuple):
    """What an input holds.

    Attributes:
        counts: how many rows each file has.
        skipped: the numbers of those that are left out, from 0, in order.
        reasons: for each of these, its file, its place there, and what is wrong.
    """

    counts: list[int]
    skipped: list[int]
    reasons: list[dict[str, Any]]


def fingerprint(sources: Sequence[Source]) -> list[str]:
    """Hash each file of an input: SHA-256 in hexadecimal."""
    with progress_bar(len(sources), "reading", "file") as bar:
        hashes = []
        for source in sources:
            hashes.append(file_sha256(source.path))
            bar.update()
        return hashes


def survey(sources: Sequence[Source], columns: Columns, bad_rows: BadRows) -> Survey:
    """Read all rows once, and check each: its text, its id, and that no other row before it has that id.

    Memory holds some rows at a time. Ids are compared by hashes, 8 bytes each, in a temporary file.

    Raises:
        ValueError: a row that is bad, if `bad_rows` is "error"; the message names it.
    """
    faults: dict[int, dict[str, Any]] = {}

    def bad(number: int, source: Source, line: int, reason: str) -> None:
        if bad_rows == "error":
            raise ValueError(f"{place(source, line)}: {reason} (--bad-rows skip leaves such rows out)")
        faults.setdefault(number, {"file": source.name, "place": line, "reason": reason})

    counts = dict.fromkeys(sources, 0)
    with tempfile.TemporaryFile() as file, progress_bar(None, "checking", "row") as bar:
        for first, source, rows in numbered(sources, columns):
            for index, reason in rows.faults.items():
                bad(first + index, source, rows.places[index], reason)
            if columns.id:
                array("q", map(hash, rows.ids)).tofile(file)
            counts[source] += len(rows.ids)
            bar.update(len(rows.ids))
        suspects = _repeated(file) if columns.id else set()
        seen: dict[Any, str] = {}
        for first, source, rows in numbered(sources, columns) if suspects else ():
            for index, identifier in enumerate(rows.ids):
                if hash(identifier) in suspects and index not in rows.faults:
                    here = place(source, rows.places[index])
                    if identifier in seen:
                        bad(
                            first + index,
                            source,
                            rows.places[index],
                            f"has the id {identifier!r}, as {seen[identifier]}",
                        )
                    seen.setdefault(identifier, here)
    skipped = sorted(faults)
    return Survey(list(counts.values()), skipped, [faults[number] for number in skipped])


def numbered(
    sources: Sequence[Source], columns: Columns, *, start: int = 0, counts: Sequence[int] = ()
) -> Iterator[tuple[int, Source, Rows]]:
    """Read the rows of all files, some at a time.

    Args:
        sources: the files.
        columns: what to read of them.
        start: the number of the first row that is wanted.
        counts: how many rows each file has; those that end before `start` are not read then.

    Yields:
        The number of the first of some rows, from 0, their file, and the rows.
    """
    number = 0
    for index, source in enumerate(sources):
        if counts and number + counts[index] <= start:
            number += counts[index]
            continue
        for rows in read_rows(source, columns):
            yield number, source, rows
            number += len(rows.ids)


def write_skipped(path: Path, reasons: Sequence[dict[str, Any]]) -> None:
    """Write which rows were left out, a JSON object a line."""
    with written_whole(path) as file:
        for reason in reasons:
            file.write((json.dumps(reason, ensure_ascii=False) + "\n").encode(errors="replace"))


def _repeated(file: Any) -> set[int]:
    """Find the numbers that a file of int64 holds more than once. Sorted in the file, it need not fit into memory."""
    file.flush()
    if not file.tell():
        return set()
    numbers = np.memmap(file, np.int64, "r+")
    numbers.sort()
    found: set[int] = set()
    for start in range(0, len(numbers) - 1, 1 << 20):
        some = numbers[start : start + (1 << 20) + 1]
        found.update(some[1:][some[1:] == some[:-1]].tolist())
    return found
