"""Compare `e5ref search` with the ranking of `e5ref eval retrieval`, id by id and score by score.

python -m tests.measure.corpus.ranking FOLDER [K]     # FOLDER in BEIR's layout, with judgments called "test"
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import e5ref
from e5ref.corpus.job import Job, embed_folder
from e5ref.corpus.reading import find_sources, resolve_columns
from e5ref.corpus.search import open_vectors, search
from e5ref.evaluation.beir import read_dataset
from e5ref.evaluation.protocols import find_rule
from e5ref.evaluation.search import search as evaluation_search


def main(folder: Path, k: int, place: Path) -> str:
    model = e5ref.load("e5ref-nano", truncation="allow")
    dataset = read_dataset(folder, "test")
    rule = find_rule("mteb", "Retrieval")
    prompts = {role: rule.prompt(model.checkpoint.settings, role) for role in ("query", "document")}
    theirs = evaluation_search(model, dataset, prompts, rule, k).run
    sources = find_sources(folder)
    embed_folder(Job(model, sources, resolve_columns(sources[0]), "passage"), place / "out")
    found = search(open_vectors(place / "out"), model, list(dataset.queries.values()), k).to_pylist()
    ties = 0
    for number, query in enumerate(dataset.queries):
        ours = [(row["id"], row["score"]) for row in found if row["query"] == number]
        assert ours == [(key, np.float32(100 * score)) for key, score in theirs[query].items()], query
        ties += len(ours) - len({score for _, score in ours})
    return f"{len(dataset.queries)} queries, {dataset.documents:,} documents, the best {k} of each: equal; {ties} ties"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        print(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 100, Path(place)))
