"""Data sets in BEIR's layout, and trec_eval's measures in plain Python: `python -m tests.tools.beir CASES` compares.

That is a process of its own, because trec_eval, in C, may end the process that it is in.
"""

import json
import math
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from e5ref.evaluation.retrieval import Qrels, measure
from e5ref.evaluation.search import Ranking

DOCUMENTS = {
    "d1": ("Cats", "the cat eats"),
    "d2": ("", "a dog plays"),
    "d3": ("Plants", "green plants need light"),
    "d4": ("The sun", ""),
    "d5": ("", "water and light"),
}
QUERIES = {"q1": "what do cats eat", "q2": "what do plants need", "q3": "of no split"}
QRELS = {"q1": {"d1": 2, "d2": 1}, "q2": {"d3": 3, "d5": 1, "d1": 0}}

# trec_eval starts with "no query", and goes on with "no_query", as the query that it has seen last.
ODD_QUERIES = ["q", "Q", "q 1", "é", "\u2028", "😀", "0", "1", "-1", "no query", "no_query", "all", "%s%n", "q" * 3000]
ODD_DOCUMENTS = ["d", "D", "d 1", "é", "e\u0301", "\ue000", "😀", " ", "0", "00", "-1", "%s%n", "d" * 3000]
LEVELS = [-999_999, -100, -2, -1, 0, 1, 2, 3, 4, 100, 999_999]


def write_beir(
    folder: Path,
    documents: Mapping[str, tuple[str, str]] = DOCUMENTS,
    queries: Mapping[str, str] = QUERIES,
    qrels: Mapping[str, Mapping[str, int]] = QRELS,
    split: str = "test",
) -> Path:
    """Write a data set; documents are id → (title, text)."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    rows = [{"_id": key, "title": title, "text": text} for key, (title, text) in documents.items()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"_id": key, "text": text} for key, text in queries.items()]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [f"{query}\t{document}\t{level}\n" for query, row in qrels.items() for document, level in row.items()]
    (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder


def plain_measures(run: Ranking, qrels: Qrels, k: Sequence[int]) -> dict[str, float]:
    """As `measure`, in plain Python."""
    sums = {f"{name}@{cut}": 0.0 for name in ("ndcg", "map", "recall", "mrr") for cut in k}
    for query, levels in qrels.items():
        scores = run.get(query, {})
        order = sorted(scores, key=lambda document: (np.float32(scores[document]), document.encode()), reverse=True)
        gains = [max(levels.get(document, 0), 0) for document in order]
        best = sorted((level for level in levels.values() if level > 0), reverse=True)
        ranks = [rank for rank, gain in enumerate(gains, 1) if gain]
        for cut in k if best else ():
            sums[f"ndcg@{cut}"] += discounted(gains[:cut]) / discounted(best[:cut])
            sums[f"map@{cut}"] += sum(found / rank for found, rank in enumerate(ranks, 1) if rank <= cut) / len(best)
            sums[f"recall@{cut}"] += sum(rank <= cut for rank in ranks) / len(best)
            sums[f"mrr@{cut}"] += 1 / ranks[0] if ranks and ranks[0] <= cut else 0
    return {name: total / len(qrels) for name, total in sums.items()}


def discounted(gains: Sequence[int]) -> float:
    """Sum gains, each divided by the logarithm of its rank."""
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))


def random_case(dice: random.Random) -> tuple[Ranking, Qrels, list[int]]:
    """Draw a run, judgments and cuts: a run may lack a query, or have nothing for it; scores tie."""
    levels = dice.sample(LEVELS, dice.randint(1, len(LEVELS)))
    qrels = {query: draw(dice, levels) for query in dice.sample(ODD_QUERIES, dice.randint(1, len(ODD_QUERIES)))}
    run = {query: draw(dice, [-1.0, 0.1, 0.1 + 1e-9, 0.5, 1.0]) for query in qrels if dice.random() < 0.9}
    run = {query: row if dice.random() < 0.9 else {} for query, row in run.items()}
    return run, qrels, sorted(dice.sample([1, 2, 3, 5, 10, 100, 10**9], dice.randint(1, 4)))


def draw(dice: random.Random, values: list) -> dict:
    """Draw documents, each with one of the values."""
    documents = dice.sample(ODD_DOCUMENTS, dice.randint(1, len(ODD_DOCUMENTS)))
    return {document: dice.choice(values) for document in documents}


if __name__ == "__main__":
    for seed in range(int(sys.argv[1])):
        case = random_case(random.Random(seed))
        ours, theirs = plain_measures(*case), measure(*case)
        assert ours.keys() == theirs.keys(), seed
        assert all(math.isclose(ours[name], theirs[name], abs_tol=1e-9) for name in ours), (seed, ours, theirs)
    print(seed + 1, "cases")
