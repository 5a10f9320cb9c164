"""Small data sets in BEIR's layout."""

import json
from collections.abc import Mapping
from pathlib import Path

DOCUMENTS = {
    "d1": ("Cats", "the cat eats"),
    "d2": ("", "a dog plays"),
    "d3": ("Plants", "green plants need light"),
    "d4": ("The sun", ""),
    "d5": ("", "water and light"),
}
QUERIES = {"q1": "what do cats eat", "q2": "what do plants need", "q3": "of no split"}
QRELS = {"q1": {"d1": 2, "d2": 1}, "q2": {"d3": 3, "d5": 1, "d1": 0}}


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
