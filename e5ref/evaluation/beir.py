"""Folders in BEIR's layout: documents, queries and judgments, each checked."""

import os
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from e5ref.files.lines import decoded_lines, json_objects, json_string, opened
from e5ref.terminal.progress import progress_bar

# How relevance is written. trec_eval's memory grows with the greatest, and where it has none its scores are 0.
LEVEL = r" *-?[0-9]{1,6} *"

# Query → document → how relevant; 0 and less: not.
Qrels = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Dataset:
    """A checked folder in BEIR's layout, for one split. The documents stay on disk.

    Attributes:
        folder: holds `corpus.jsonl`, `queries.jsonl` and `qrels/`.
        split: which of the judgments.
        queries: id → text, of the queries that are judged in this split, in the file's order.
        qrels: the judgments of these queries.
        missing_queries: how many more queries are judged, and not there.
        documents: how many there are.
        identical_ids: how many of the queries share their id with a document.
        notes: what is more likely a mistake than meant.
    """

    folder: Path
    split: str
    queries: Mapping[str, str]
    qrels: Qrels
    missing_queries: int
    documents: int
    identical_ids: int
    notes: Sequence[str]

    @property
    def files(self) -> list[Path]:
        """All that was read."""
        return [find_file(self.folder, name) for name in ("corpus.jsonl", "queries.jsonl", f"qrels/{self.split}.tsv")]


def read_dataset(folder: Path, split: str) -> Dataset:
    """Read and check a folder in BEIR's layout, before anything is embedded.

    Raises:
        ValueError: a malformed line or an id that is there twice (named by its number), an empty file, or judgments of
            queries, or of documents, none of which is there.
        OSError: a file that is not there.
    """
    judgments = read_qrels(folder, split)
    qrels_path, queries_path, path = (
        find_file(folder, name) for name in (f"qrels/{split}.tsv", "queries.jsonl", "corpus.jsonl")
    )
    texts: dict[str, str] = {}
    for number, identifier, _, text in entries(queries_path):
        if identifier in texts:
            raise ValueError(
                f"{queries_path}, line {number}: the id {identifier!r} is there twice; each must be another"
            )
        texts[identifier] = text
    queries = {query: text for query, text in texts.items() if query in judgments}
    qrels = {query: row for query, row in judgments.items() if query in texts}
    if not qrels:
        raise ValueError(f"{qrels_path}: none of the judged queries is in {queries_path}; are the two of one data set?")
    missing = len(judgments) - len(qrels)

    judged = {document for row in qrels.values() for document in row}
    found, identical, empty = set(), 0, 0
    hashes = array("q")  # 8 bytes a document, where the ids themselves could be a gigabyte
    for _, identifier, title, text in entries(path, progress=True):
        hashes.append(hash(identifier))
        identical += identifier in queries
        empty += not (title + text).strip()
        if identifier in judged:
            found.add(identifier)
    _check_unique(path, hashes)

    notes = []
    if not found:
        raise ValueError(f"{qrels_path}: none of the judged documents is in {path}; are the two of one data set?")
    if missing:
        notes.append(
            f"{qrels_path}: {missing} of {len(judgments)} judged queries are not in {queries_path}; scores are the "
            f"mean over the {len(qrels)} that are there"
        )
    if len(found) < len(judged):
        notes.append(
            f"{qrels_path}: {len(judged) - len(found)} of {len(judged)} judged documents are not in {path}; they count "
            "as not found, as trec_eval has it"
        )
    if empty:
        notes.append(f"{path}: {empty} of {len(hashes)} documents are empty; they are embedded as any other")
    blank = sum(not text.strip() for text in queries.values())
    if blank:
        notes.append(f"{queries_path}: {blank} of {len(queries)} queries are empty; they count as any other")
    without = sum(max(row.values()) < 1 for row in qrels.values())
    if without:
        notes.append(f"{qrels_path}: {without} of {len(qrels)} queries have no relevant document; they count as 0")
    return Dataset(folder, split, queries, qrels, missing, len(hashes), identical, notes)


def _check_unique(path: Path, hashes: "array[int]") -> None:
    """Refuse ids that are there twice, given the hash of each: only those of equal hashes are looked at again."""
    values, counts = np.unique(np.frombuffer(hashes, np.int64), return_counts=True)
    suspects = set(values[counts > 1].tolist())
    seen: dict[str, int] = {}
    for number, identifier, _, _ in entries(path) if suspects else ():
        if hash(identifier) in suspects:
            if identifier in seen:
                raise ValueError(
                    f"{path}, line {number}: the id {identifier!r} is that of line {seen[identifier]} too; each must "
                    "be another"
                )
            seen[identifier] = number


def find_file(folder: Path, name: str) -> Path:
    """Return where a file of a folder in BEIR's layout is: under its name, or compressed by gzip.

    Raises:
        FileNotFoundError: neither is there.
    """
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder}: has no {name}; it must be a folder in BEIR's layout")


def _splits(folder: Path) -> list[str]:
    """Return the splits that there are judgments for."""
    return sorted(
        {
            file.name.removesuffix(ending)
            for ending in (".tsv", ".tsv.gz")
            for file in (folder / "qrels").glob(f"*{ending}")
        }
    )


def split_to_take(folder: Path, usual: str) -> str:
    """Return the usual split, or if it is not there the only one that is."""
    splits = _splits(folder)
    return splits[0] if len(splits) == 1 else usual


def read_qrels(folder: Path, split: str) -> Qrels:
    """Read the judgments of a split: query, document and relevance, separated by tabs, with a header or without.

    Raises:
        ValueError: a malformed line or two judgments that contradict each other (named by the line's number), or no
            judgment at all.
        FileNotFoundError: there is no such split; the message says which there are.
    """
    name = f"qrels/{split}.tsv"
    try:
        path = find_file(folder, name)
    except FileNotFoundError:
        splits = _splits(folder)
        if not splits:
            raise
        raise FileNotFoundError(f"{folder}: has no {name}; choose a split that is there: {', '.join(splits)}") from None
    qrels: dict[str, dict[str, int]] = {}
    with opened(path) as file:
        for number, line in decoded_lines(file, path):
            cells = line.split("\t")
            if not line.strip() or (number == 1 and cells[-1].strip().lower() == "score"):
                continue
            try:
                query, document, level = cells
                if not query or not document or "\0" in line or not re.fullmatch(LEVEL, level):
                    raise ValueError
            except ValueError:
                raise ValueError(
                    f"{path}, line {number}: must be a query's id, a document's id and a whole number of at most "
                    "6 digits, with a tab between each"
                ) from None
            if qrels.setdefault(query, {}).setdefault(document, int(level)) != int(level):
                raise ValueError(
                    f"{path}, line {number}: judges document {document!r} for query {query!r} a second time, and "
                    "otherwise; remove one"
                )
    if not qrels:
        raise ValueError(f"{path}: holds no judgment")
    return qrels


def entries(path: Path, *, progress: bool = False) -> Iterator[tuple[int, str, str, str]]:
    """Yield line number, id, title and text of the JSON lines of a file."""
    size = path.stat().st_size
    empty = True
    with (
        opened(path) as file,
        progress_bar(size, f"checking {path.name}", "B", show=None if progress else False, unit_scale=True) as bar,
    ):
        for number, entry in json_objects(decoded_lines(file, path), path):
            bar.update(os.lseek(file.fileno(), 0, os.SEEK_CUR) - bar.n)  # as it lies on disk, compressed or not
            if type(entry.get("_id")) is int:
                entry["_id"] = str(entry["_id"])
            if entry.get("title") is None:
                entry["title"] = ""
            try:
                identifier = json_string(entry, "_id", "a string or a whole number")
                title, text = json_string(entry, "title"), json_string(entry, "text")
                if not identifier or "\0" in identifier:  # trec_eval, in C, would take what stands before NUL for all
                    raise ValueError(f'"_id" {"holds NUL" if identifier else "is empty"}; give it another')
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            empty = False
            yield number, identifier, title, text
        bar.update(size - bar.n)
    if empty:
        raise ValueError(f"{path}: is empty; it must hold a JSON object a line")
