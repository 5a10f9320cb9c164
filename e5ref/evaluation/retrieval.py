"""Retrieval on a folder in BEIR's layout: exact search, then trec_eval's measures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from e5ref.encoder import E5
from e5ref.evaluation.beir import Qrels, read_dataset, split_to_take
from e5ref.evaluation.protocols import IDENTICAL_IDS, SPLITS, Protocol, Role, find_rule, find_task
from e5ref.evaluation.report import make_report, warn
from e5ref.evaluation.search import Found, Ranking, search
from e5ref.extras import require

# How many of the best documents may count. trec_eval takes 19 digits for another number.
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
    dataset = read_dataset(folder, split or split_to_take(folder, usual_split))
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


def measure(run: Ranking, qrels: Qrels, k: Sequence[int]) -> dict[str, float]:
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
