"""Retrieval on a folder in BEIR's layout: exact search and trec_eval's measures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from e5ref.encoder import E5
from e5ref.evaluation.beir import Qrels, read_dataset, split_to_take
from e5ref.evaluation.protocols import IDENTICAL_IDS, SPLITS, Protocol, Role, Rule, find_rule, find_task
from e5ref.evaluation.report import Measured, make_reports, warn
from e5ref.evaluation.search import Ranking, search
from e5ref.extras import require

# The largest cut-off k. trec_eval misreads a number of 19 digits.
MAX_K = 1_000_000_000


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
    """Search the documents of a folder for each of its queries, and measure the result.

    Documents are embedded and searched in blocks, so memory holds one block and 8 bytes a document.

    Scores are the mean over the judged queries that exist. If a judged query is missing, there is a warning, and the
    report has no published score.

    Args:
        model: the model.
        folder: in BEIR's layout: `corpus.jsonl`, `queries.jsonl`, `qrels/SPLIT.tsv`, each as it is or with `.gz`.
        protocols: how to ask the model.
        task: the task of `protocols.TASKS` that the data belongs to; None to go by the folder's name. It decides
            `split`, `ignore_identical_ids`, the published score and, for Quora, the prompts.
        split: the judgments to use; None for "test" (for MSMARCO "dev"), or for the only split if there is one.
        k: the cut-offs of each measure: how many of the best documents count.
        ignore_identical_ids: whether to leave out a document with the query's own id; None to do so, as BEIR does, in
            the tasks where it is the query itself.
        cache: a folder that keeps vectors for later runs; see `embedding.embed`.

    Returns:
        A report per protocol, by `report.make_reports`. Its scores are "ndcg@K", "map@K", "recall@K", "mrr@K".

    Raises:
        ValueError: the data is malformed, the task is unknown, or a k is below 1 or above `MAX_K`.
        OSError: a file does not exist.
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
    dataset = read_dataset(folder, split or split_to_take(folder, usual_split))
    notes = list(dataset.notes)
    if split is None and dataset.split != usual_split:
        notes.append(f"{folder}: has no qrels/{usual_split}.tsv; its only split, {dataset.split}, is used")
    if dataset.identical_ids and not ignore_identical_ids:
        notes.append(
            f"{folder}: {dataset.identical_ids} queries have the id of a document; if that is the query itself, leave "
            "it out with ignore_identical_ids"
        )
    warn(notes)

    def searched(rule: Rule, prompts: dict[str, str]) -> Measured:
        found = search(model, dataset, prompts, rule, max(k), ignore_identical_ids=ignore_identical_ids, cache=cache)
        return Measured(found.counts, measure(found.run, dataset.qrels, k), found.notes)

    as_usual = dataset.split == usual_split and ignore_identical_ids == (task in IDENTICAL_IDS)
    return make_reports(
        model,
        folder,
        rules,
        searched,
        roles={role: role for role in get_args(Role)},
        task_type="Retrieval",
        task=task,
        split=dataset.split,
        comparable=as_usual and not dataset.missing_queries,
        files=dataset.files,
        library="pytrec_eval-terrier",
        notes=notes,
    )


def measure(run: Ranking, qrels: Qrels, k: Sequence[int]) -> dict[str, float]:
    """Compute trec_eval's measures, each the mean over the queries of `qrels`.

    A query without a relevant document counts as 0, and so does a query that is not in `run`. A document without a
    judgment is not relevant. nDCG uses the relevance itself as gain. MAP and Recall divide by all relevant documents.
    Of documents with equal scores, compared in float32, the one with the greater id (in UTF-8, byte by byte) stands
    first.

    Returns:
        "ndcg@K", "map@K", "recall@K", "mrr@K" → between 0 and 1, for each cut-off `k`.
    """
    from pytrec_eval import RelevanceEvaluator

    # trec_eval, in C, overwrites memory if all levels of a query are below -1, and confuses a query called "no_query"
    # with the last one. So it gets levels from 0 up, and numbers for the names of queries.
    judged = {
        str(number): {document: max(level, 0) for document, level in levels.items()}
        for number, levels in enumerate(qrels.values())
    }
    found = {str(number): run[query] for number, query in enumerate(qrels) if run.get(query)}
    cuts = ",".join(map(str, k))
    # trec_eval has no cut-off for the reciprocal rank.
    evaluator = RelevanceEvaluator(judged, {f"ndcg_cut.{cuts}", f"map_cut.{cuts}", f"recall.{cuts}", "recip_rank"})
    measured = list(evaluator.evaluate(found).values())
    for scores in measured:
        rank = round(1 / scores["recip_rank"]) if scores["recip_rank"] else 0
        scores.update({f"mrr_{cut}": scores["recip_rank"] if 0 < rank <= cut else 0.0 for cut in k})
    names = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "mrr": "mrr"}
    return {
        f"{name}@{cut}": sum(scores[f"{key}_{cut}"] for scores in measured) / len(qrels)
        for name, key in names.items()
        for cut in k
    }
