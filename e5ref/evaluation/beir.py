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

# The form of a relevance. trec_eval's memory grows with the largest one, and without memory its scores are 0.
LEVEL = r" *-?[0-9]{1,6} *"

# Query → document → relevance; 0 or less means not relevant.
Qrels = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Dataset:
    """A checked folder in BEIR's layout, for one split. The documents stay on disk."""

    folder: Path  # holds `corpus.jsonl`, `queries.jsonl` and `qrels/`
    split: str  # the name of the judgments
    queries: Mapping[str, str]  # id → text of the queries that are judged in this split, in the file's order
    qrels: Qrels  # the judgments of these queries
    missing_queries: int  # the number of judged queries that the folder lacks
    documents: int  # the number of documents
    identical_ids: int  # the number of queries that share their id with a document
    notes: Sequence[str]  # what looks like a mistake

    @property
    def files(self) -> list[Path]:
        """All files that were read."""
        return [find_file(self.folder, name) for name in ("corpus.jsonl", "queries.jsonl", f"qrels/{self.split}.tsv")]


def read_dataset(folder: Path, split: str) -> Dataset:
    """Read and check a folder in BEIR's layout, before anything is embedded.

    Raises:
        ValueError: a line is malformed or repeats an id (the message has its number), a file is empty, or none of the
            judged queries or documents exists.
        OSError: a file does not exist.
    """
    judgments = read_qrels(folder, split)
    qrels_path, queries_path, path = (
        find_file(folder, name) for name in (f"qrels/{split}.tsv", "queries.jsonl", "corpus.jsonl")
    )
    texts: dict[str, str] = {}
    for number, identifier, _, text in entries(queries_path):
        if identifier in texts:
            raise ValueError(f"{queries_path}, line {number}: repeats the id {identifier!r}; give each query its own")
        texts[identifier] = text
    queries = {query: text for query, text in texts.items() if query in judgments}
    qrels = {query: levels for query, levels in judgments.items() if query in texts}
    if not qrels:
        raise ValueError(f"{qrels_path}: none of the judged queries is in {queries_path}; do both belong together?")
    missing = len(judgments) - len(qrels)

    judged = {document for levels in qrels.values() for document in levels}
    found, identical, empty = set(), 0, 0
    hashes = array("q")  # 8 bytes a document; the ids themselves could take a gigabyte
    for _, identifier, title, text in entries(path, progress=True):
        hashes.append(hash(identifier))
        identical += identifier in queries
        empty += not (title + text).strip()
        if identifier in judged:
            found.add(identifier)
    _check_unique(path, hashes)

    notes = []
    if not found:
        raise ValueError(f"{qrels_path}: none of the judged documents is in {path}; do both belong together?")
    if missing:
        notes.append(
            f"{qrels_path}: {missing} of {len(judgments)} judged queries are not in {queries_path}; scores are the "
            f"mean over the other {len(qrels)}"
        )
    if len(found) < len(judged):
        notes.append(
            f"{qrels_path}: {len(judged) - len(found)} of {len(judged)} judged documents are not in {path}; they count "
            "as not found, as in trec_eval"
        )
    if empty:
        notes.append(f"{path}: {empty} of {len(hashes)} documents are empty; they are embedded like any other")
    blank = sum(not text.strip() for text in queries.values())
    if blank:
        notes.append(f"{queries_path}: {blank} of {len(queries)} queries are empty; they count like any other")
    without = sum(max(levels.values()) < 1 for levels in qrels.values())
    if without:
        notes.append(f"{qrels_path}: {without} of {len(qrels)} queries have no relevant document; they count as 0")
    return Dataset(folder, split, queries, qrels, missing, len(hashes), identical, notes)


def _check_unique(path: Path, hashes: "array[int]") -> None:
    """Refuse repeated ids, given the hash of each. Only ids with equal hashes are read again."""
    values, counts = np.unique(np.frombuffer(hashes, np.int64), return_counts=True)
    suspects = set(values[counts > 1].tolist())
    seen: dict[str, int] = {}
    for number, identifier, _, _ in entries(path) if suspects else ():
        if hash(identifier) in suspects:
            if identifier in seen:
                raise ValueError(
                    f"{path}, line {number}: repeats the id {identifier!r} of line {seen[identifier]}; give each "
                    "document its own"
                )
            seen[identifier] = number


def find_file(folder: Path, name: str) -> Path:
    """Find a file of a folder in BEIR's layout: under its name, or with `.gz`.

    Raises:
        FileNotFoundError: neither exists.
    """
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder}: has no {name}; it must be a folder in BEIR's layout")


def _splits(folder: Path) -> list[str]:
    """Return the splits that have judgments."""
    files = (file for pattern in ("*.tsv", "*.tsv.gz") for file in (folder / "qrels").glob(pattern))
    return sorted({file.name.removesuffix(".gz").removesuffix(".tsv") for file in files})


def split_to_take(folder: Path, usual: str) -> str:
    """Return the usual split, or if there is only one split, that one."""
    splits = _splits(folder)
    return splits[0] if len(splits) == 1 else usual


def read_qrels(folder: Path, split: str) -> Qrels:
    """Read the judgments of a split: query, document and relevance, separated by tabs, with or without a header.

    Raises:
        ValueError: a line is malformed or contradicts an earlier one (the message has its number), or there is no
            judgment.
        FileNotFoundError: the split does not exist; the message lists those that do.
    """
    name = f"qrels/{split}.tsv"
    try:
        path = find_file(folder, name)
    except FileNotFoundError:
        splits = _splits(folder)
        if not splits:
            raise
        raise FileNotFoundError(f"{folder}: has no {name}; choose one of its splits: {', '.join(splits)}") from None
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
                    "6 digits, separated by tabs"
                ) from None
            if qrels.setdefault(query, {}).setdefault(document, int(level)) != int(level):
                raise ValueError(
                    f"{path}, line {number}: judges document {document!r} for query {query!r} a second time and "
                    "differently; remove one"
                )
    if not qrels:
        raise ValueError(f"{path}: holds no judgment")
    return qrels


def entries(path: Path, *, progress: bool = False) -> Iterator[tuple[int, str, str, str]]:
    """Yield line number, id, title and text of each JSON line of a file."""
    size = path.stat().st_size
    empty = True
    with (
        opened(path) as file,
        progress_bar(size, f"checking {path.name}", "B", show=None if progress else False, unit_scale=True) as bar,
    ):
        for number, entry in json_objects(decoded_lines(file, path), path):
            bar.update(os.lseek(file.fileno(), 0, os.SEEK_CUR) - bar.n)  # bytes on disk, compressed or not
            if type(entry.get("_id")) is int:
                entry["_id"] = str(entry["_id"])
            if entry.get("title") is None:
                entry["title"] = ""
            try:
                identifier = json_string(entry, "_id", "a string or a whole number")
                title, text = json_string(entry, "title"), json_string(entry, "text")
                if not identifier or "\0" in identifier:  # for trec_eval, in C, an id ends at NUL
                    raise ValueError(f'"_id" {"holds NUL" if identifier else "is empty"}; change it')
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            empty = False
            yield number, identifier, title, text
        bar.update(size - bar.n)
    if empty:
        raise ValueError(f"{path}: is empty; it must hold a JSON object per line")
