"""Exact search: the nearest documents of each query, block by block."""

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from e5ref.checkpoint.prompts import notes_on_doubled_prompts
from e5ref.encoder import E5
from e5ref.evaluation.beir import Dataset, entries, find_file
from e5ref.evaluation.embedding import embed, embedding_bar
from e5ref.evaluation.protocols import Rule
from e5ref.operations.similarity import dots

# Documents that are embedded, searched and cached together, and queries that are compared with them at a time. A run
# that is stopped loses its current block: on a laptop's CPU, about a minute of e5-small.
BLOCK_DOCUMENTS, BLOCK_QUERIES = 2048, 256

# Query → its best documents with their scores.
Ranking = Mapping[str, Mapping[str, float]]


class Found(NamedTuple):
    """The result of a search."""

    run: Ranking
    counts: dict[str, int]  # texts, and cut texts
    notes: list[str]  # what looks like a mistake


def search(
    model: E5,
    dataset: Dataset,
    prompts: Mapping[str, str],
    rule: Rule,
    k: int,
    *,
    ignore_identical_ids: bool = False,
    cache: Path | None = None,
) -> Found:
    """Find the k documents with the greatest cosine for each query, by comparing it with all documents."""
    best = Best(list(dataset.queries), k + ignore_identical_ids)
    cut, doubled = 0, 0
    with embedding_bar(len(dataset.queries) + dataset.documents) as bar:
        queries = embed(model, list(dataset.queries.values()), prompts["query"], cache=cache, progress=bar)
        for ids, texts in _blocks(dataset, rule):
            documents = embed(model, texts, prompts["document"], cache=cache, progress=bar)
            cut, doubled = cut + documents.cut, doubled + documents.doubled
            best.add(queries.vectors, ids, documents.vectors)
    notes = notes_on_doubled_prompts("queries", prompts["query"], queries.doubled, len(dataset.queries))
    notes += notes_on_doubled_prompts("documents", prompts["document"], doubled, dataset.documents)
    counts = {"queries": len(dataset.queries), "queries_cut": queries.cut}
    counts |= {"documents": dataset.documents, "documents_cut": cut}
    return Found(best.run(k, ignore_identical_ids=ignore_identical_ids), counts, notes)


class Best:
    """The best documents of each query so far.

    Equal vectors have equal scores, whatever block they are in. Scores are float32 as in trec_eval, so it sees the same
    ties. Of tied documents, the one with the greater id goes first.
    """

    def __init__(self, queries: Sequence[str], depth: int) -> None:
        """Keep `depth` documents for each of these queries."""
        self.queries, self.depth = queries, depth
        self._kept: list[list[tuple[float, str]]] = [[] for _ in queries]
        self._floor = np.full(len(queries), -np.inf, np.float32)  # the least score that is kept

    def add(self, queries: NDArray[np.floating], ids: Sequence[str], documents: NDArray[np.floating]) -> None:
        """Compare all queries, [Q, D], with more documents, [n, D]."""
        for start in range(0, len(queries), BLOCK_QUERIES):
            some = slice(start, start + BLOCK_QUERIES)
            near = self._near(queries[some], documents, self._floor[some])  # [m]
            scores = dots(queries[some], documents[near]).astype(np.float32)  # [q, D], [m, D] -> [q, m]
            enough = scores >= self._floors(scores, self._floor[some])[:, None]
            for query in np.flatnonzero(enough.any(axis=1)).tolist():
                places = np.flatnonzero(enough[query]).tolist()
                self._keep(start + query, [(float(scores[query, place]), ids[near[place]]) for place in places])

    def _near(
        self, queries: NDArray[np.floating], documents: NDArray[np.floating], floor: NDArray[np.float32]
    ) -> NDArray[np.int64]:
        """Find the documents that may be among the best of any query, by rounded products, which are faster.

        A sum of D products, rounded in any order, is off by at most D roundings of the norms' product; a score has one
        more, that to float32.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # a product that is not finite decides nothing
            rounded = queries @ documents.T  # [q, D] @ [D, n] -> [q, n]
            score = np.finfo(np.float32)
            roundings = queries.shape[1] * np.finfo(rounded.dtype).eps + score.eps
            norms = (_greatest_norm(vectors) for vectors in (queries, documents))
            error = roundings * math.prod(norms) + score.tiny
            is_far = rounded < (self._floors(rounded, floor) - 2 * error)[:, None]
        return np.flatnonzero(~is_far.all(axis=0))

    def _floors(self, scores: NDArray[np.floating], floor: NDArray[np.float32]) -> NDArray[np.floating]:
        """Raise the least score that a query keeps, [q], by the best of these scores, [q, n]."""
        place = scores.shape[1] - self.depth
        return floor if place <= 0 else np.maximum(floor, np.partition(scores, place, axis=1)[:, place])

    def _keep(self, query: int, found: list[tuple[float, str]]) -> None:
        # Pairs compare by score, then by id. Python compares str by code points, which is the order of UTF-8's bytes.
        kept = heapq.nlargest(self.depth, self._kept[query] + found)
        self._kept[query] = kept
        if len(kept) == self.depth:
            self._floor[query] = kept[-1][0]

    def run(self, k: int, *, ignore_identical_ids: bool) -> Ranking:
        """Return the k best documents of each query."""
        return {
            query: {
                document: score
                for score, document in [pair for pair in kept if not (ignore_identical_ids and pair[1] == query)][:k]
            }
            for query, kept in zip(self.queries, self._kept, strict=True)
        }


def _greatest_norm(vectors: NDArray[np.floating]) -> float:
    """Return a number that is a little greater than any vector's L2 norm. [n, D]."""
    greatest = float(np.vecdot(vectors, vectors, dtype=np.float32).max(initial=0))
    if not 1e-30 < greatest < 1e30:  # for all others float64 would take as long as the rest of a search
        greatest = float(np.vecdot(vectors, vectors, dtype=np.float64).max(initial=0))
    return math.sqrt(greatest * (1 + 2 * vectors.shape[1] * float(np.finfo(np.float32).eps)))


def _blocks(dataset: Dataset, rule: Rule) -> Iterator[tuple[list[str], list[str]]]:
    """Yield ids and texts of the documents, block by block."""
    ids: list[str] = []
    texts: list[str] = []
    for _, identifier, title, text in entries(find_file(dataset.folder, "corpus.jsonl")):
        ids.append(identifier)
        texts.append(rule.document_text(title, text))
        if len(ids) == BLOCK_DOCUMENTS:
            yield ids, texts
            ids, texts = [], []
    if ids:
        yield ids, texts
