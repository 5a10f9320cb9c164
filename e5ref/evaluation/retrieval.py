"""Retrieval on a folder in BEIR's layout: exact search, then trec_eval's measures."""

import heapq
import os
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from e5ref.encoder import E5
from e5ref.evaluation.embedding import embed, embedding_bar
from e5ref.evaluation.protocols import IDENTICAL_IDS, SPLITS, Protocol, Role, Rule, find_rule, find_task
from e5ref.evaluation.report import make_report, warn
from e5ref.extras import require
from e5ref.files import decoded_lines, json_objects, json_string, opened
from e5ref.progress import progress_bar
from e5ref.prompts import doubled_prompts
from e5ref.similarity import dots

# Documents embedded, searched and kept together, and queries that are compared with them at a time. A run that is
# stopped loses the block that it is in: on a laptop's CPU, about a minute of e5-small.
BLOCK_DOCUMENTS, BLOCK_QUERIES = 2048, 256

# How relevance is written. trec_eval's memory grows with the greatest, and where it has none its scores are 0.
LEVEL = r" *-?[0-9]{1,6} *"

# How many of the best documents may count. trec_eval takes 19 digits for another number.
MAX_K = 1_000_000_000

# Query → document → how relevant; 0 and less: not.
Qrels = Mapping[str, Mapping[str, int]]

# Query → its best documents with their scores.
Run = Mapping[str, Mapping[str, float]]


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


class Found(NamedTuple):
    """What a search found."""

    run: Run
    counts: dict[str, int]  # how many texts there were, and how many of them were cut
    notes: list[str]  # what is more likely a mistake than meant


def evaluate_retrieval(
    model: E5,
    folder: str | Path,
    *,
    protocols: Sequence[Protocol] = ("authors",),
    task: str | None = None,
    split: str | None = None,
    k: Sequence[int] = (10, 100),
    ignore_identical_ids: bool | None = None,
    cache: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Search the documents of a folder for each of its queries, and measure what is found.

    Documents are embedded and searched in blocks, so memory holds one block and 8 bytes a document.

    Scores are the mean over the queries that are judged and that are there. How many more are judged is warned of, and
    then no published score stands beside.

    Args:
        model: the model.
        folder: in BEIR's layout: `corpus.jsonl`, `queries.jsonl`, `qrels/SPLIT.tsv`, each as it is or with `.gz`.
        protocols: how to ask the model.
        task: which task of `protocols.TASKS` the data is; None to go by the folder's name. It decides about `split` and
            `ignore_identical_ids`, for Quora about prompts, and which published score stands beside.
        split: which judgments; None for "test", and for MSMARCO "dev", or else for the only ones there are.
        k: how many of the best documents count, for each measure.
        ignore_identical_ids: whether a document with the query's own id is left out; None to do as BEIR does for the
            tasks where it is the query itself, and else not.
        cache: a folder in which vectors are kept, and found again by a later run; see `embedding.embed`.

    Returns:
        A report for each protocol, as of `report.make_report`. Its scores are "ndcg@K", "map@K", "recall@K", "mrr@K".

    Raises:
        ValueError: data that is not as it must be, an unknown task, or a k below 1 or above `MAX_K`.
        OSError: a file that is not there.
        ModuleNotFoundError: pytrec_eval is not installed; the message says what to install.
    """
    require("eval", "evaluation", "pytrec_eval")
    folder, cache = Path(folder), None if cache is None else Path(cache)
    task = find_task("Retrieval", task, folder)
    rules = {protocol: find_rule(protocol, "Retrieval", task) for protocol in protocols}
    if not k or min(k) < 1 or max(k) > MAX_K:
        raise ValueError(f"k is {list(k)}, but must be whole numbers from 1 to {MAX_K:,}")
    if ignore_identical_ids is None:
        ignore_identical_ids = task in IDENTICAL_IDS
    usual_split = SPLITS.get(task or "", "test")
    dataset = read_dataset(folder, split or _split_to_take(folder, usual_split))
    notes = list(dataset.notes)
    if split is None and dataset.split != usual_split:
        notes.append(f"{folder}: has no qrels/{usual_split}.tsv; the only split there, {dataset.split}, was taken")
    if dataset.identical_ids and not ignore_identical_ids:
        notes.append(
            f"{folder}: {dataset.identical_ids} queries have the id of a document; where that is the query itself, "
            "ignore_identical_ids leaves it out"
        )
    warn(notes)

    runs: dict[tuple[Any, ...], tuple[Found, Mapping[str, float]]] = {}
    reports = []
    for protocol, rule in rules.items():
        prompts = {role: rule.prompt(model.checkpoint.settings, role) for role in get_args(Role)}
        asked = (*prompts.values(), rule.title)
        if asked not in runs:  # else a protocol before asked in the same way
            found = search(
                model, dataset, prompts, rule, max(k), ignore_identical_ids=ignore_identical_ids, cache=cache
            )
            warn(found.notes)
            runs[asked] = found, measure(found.run, dataset.qrels, k)
        found, scores = runs[asked]
        reports.append(
            make_report(
                model,
                folder,
                task_type="Retrieval",
                task=task,
                split=dataset.split,
                comparable=not dataset.missing_queries
                and dataset.split == usual_split
                and ignore_identical_ids == (task in IDENTICAL_IDS),
                files=dataset.files,
                protocol=protocol,
                prompts=prompts,
                counts=found.counts,
                scores=scores,
                library="pytrec_eval-terrier",
                notes=notes + found.notes,
            )
        )
    return reports


def measure(run: Run, qrels: Qrels, k: Sequence[int]) -> dict[str, float]:
    """Compute trec_eval's measures, each the mean over the queries of `qrels`.

    A query without a relevant document counts as 0, and so does one that is not in `run`. nDCG takes the relevance
    itself as gain; MAP and Recall divide by all relevant documents; what is not judged is not relevant. Of equal scores
    the document with the greater id (in UTF-8, byte by byte) stands first.

    Args:
        run: scores are compared in float32, as trec_eval holds them.
        qrels: the judgments.
        k: how many of the best documents count.

    Returns:
        "ndcg@K", "map@K", "recall@K", "mrr@K" → between 0 and 1.
    """
    from pytrec_eval import RelevanceEvaluator

    # trec_eval, in C, overwrites memory if all levels of a query are below -1, and takes a query called "no_query" for
    # the one that it has just seen. So it gets 0 for what is not relevant, and numbers for the names of queries.
    levels = [{document: max(level, 0) for document, level in row.items()} for row in qrels.values()]
    judged = {str(number): row for number, row in enumerate(levels)}
    found = {str(number): run[query] for number, query in enumerate(qrels) if run.get(query)}
    cuts = ",".join(map(str, k))
    # trec_eval cuts all but the reciprocal rank.
    evaluator = RelevanceEvaluator(judged, {f"ndcg_cut.{cuts}", f"map_cut.{cuts}", f"recall.{cuts}", "recip_rank"})
    rows = list(evaluator.evaluate(found).values())
    for row in rows:
        first = round(1 / row["recip_rank"]) if row["recip_rank"] else 0
        row.update({f"mrr_{cut}": row["recip_rank"] if 0 < first <= cut else 0.0 for cut in k})
    names = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "mrr": "mrr"}
    return {
        f"{name}@{cut}": sum(row[f"{key}_{cut}"] for row in rows) / len(qrels)
        for name, key in names.items()
        for cut in k
    }


def search(
    model: E5,
    dataset: Dataset,
    prompts: Mapping[Role, str],
    rule: Rule,
    k: int,
    *,
    ignore_identical_ids: bool = False,
    cache: Path | None = None,
) -> Found:
    """Find the k documents of the greatest cosine for each query, by comparing it with all of them."""
    best = Best(list(dataset.queries), k + ignore_identical_ids)
    cut, doubled = 0, 0
    with embedding_bar(len(dataset.queries) + dataset.documents) as bar:
        queries = embed(model, list(dataset.queries.values()), prompts["query"], cache=cache, progress=bar)
        for ids, texts in _blocks(dataset, rule):
            documents = embed(model, texts, prompts["document"], cache=cache, progress=bar)
            cut, doubled = cut + documents.cut, doubled + documents.doubled
            best.add(queries.vectors, ids, documents.vectors)
    notes = doubled_prompts("queries", prompts["query"], queries.doubled, len(dataset.queries))
    notes += doubled_prompts("documents", prompts["document"], doubled, dataset.documents)
    counts = {"queries": len(dataset.queries), "queries_cut": queries.cut}
    counts |= {"documents": dataset.documents, "documents_cut": cut}
    return Found(best.run(k, ignore_identical_ids=ignore_identical_ids), counts, notes)


class Best:
    """The best documents so far of each query.

    Equal vectors have equal scores in whatever block they stand, and trec_eval, which holds scores in float32, sees the
    same ties. Of these, the greater id goes first.
    """

    def __init__(self, queries: Sequence[str], depth: int) -> None:
        """Keep so many documents for each of these queries."""
        self.queries, self.depth = queries, depth
        self._kept: list[list[tuple[float, str]]] = [[] for _ in queries]
        self._floor = np.full(len(queries), -np.inf, np.float32)  # what a score must reach to be kept

    def add(self, queries: NDArray[np.floating], ids: Sequence[str], documents: NDArray[np.floating]) -> None:
        """Compare all queries, [Q, D], with some more documents, [n, D]."""
        for start in range(0, len(queries), BLOCK_QUERIES):
            some = slice(start, start + BLOCK_QUERIES)
            scores = dots(queries[some], documents).astype(np.float32)  # [q, D], [n, D] -> [q, n]
            floor = self._floor[some]
            if len(ids) > self.depth:
                place = len(ids) - self.depth
                floor = np.maximum(floor, np.partition(scores, place, axis=1)[:, place])
            enough = scores >= floor[:, None]
            for row in np.flatnonzero(enough.any(axis=1)).tolist():
                found = [(float(scores[row, column]), ids[column]) for column in np.flatnonzero(enough[row]).tolist()]
                self._keep(start + row, found)

    def _keep(self, query: int, found: list[tuple[float, str]]) -> None:
        # Pairs compare by score, then by id; and str by code points, in the same order as UTF-8 by bytes.
        kept = heapq.nlargest(self.depth, self._kept[query] + found)
        self._kept[query] = kept
        if len(kept) == self.depth:
            self._floor[query] = kept[-1][0]

    def run(self, k: int, *, ignore_identical_ids: bool) -> Run:
        """Return the k best documents of each query."""
        return {
            query: {
                document: score
                for score, document in [pair for pair in kept if not (ignore_identical_ids and pair[1] == query)][:k]
            }
            for query, kept in zip(self.queries, self._kept, strict=True)
        }


def _blocks(dataset: Dataset, rule: Rule) -> Iterator[tuple[list[str], list[str]]]:
    """Yield ids and texts of the documents, a block at a time."""
    ids: list[str] = []
    texts: list[str] = []
    for _, identifier, title, text in _entries(find_file(dataset.folder, "corpus.jsonl")):
        ids.append(identifier)
        texts.append(rule.document_text(title, text))
        if len(ids) == BLOCK_DOCUMENTS:
            yield ids, texts
            ids, texts = [], []
    if ids:
        yield ids, texts


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
    for number, identifier, _, text in _entries(queries_path):
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
    for _, identifier, title, text in _entries(path, progress=True):
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
    for number, identifier, _, _ in _entries(path) if suspects else ():
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


def _split_to_take(folder: Path, usual: str) -> str:
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


def _entries(path: Path, *, progress: bool = False) -> Iterator[tuple[int, str, str, str]]:
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
