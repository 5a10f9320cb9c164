"""The report of an evaluation, with provenance: as data for JSON, and as a table."""

import importlib.metadata
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from e5ref.checkpoint.hub import file_sha256
from e5ref.encoder import E5
from e5ref.evaluation.embedding import provenance
from e5ref.evaluation.protocols import Protocol, Role, Rule, find_published, published_scores
from e5ref.terminal.table import aligned

# Type of task → the score that is published.
MAIN_SCORES = {"STS": "spearman", "Retrieval": "ndcg@10"}

# Key of a score → its name in tables.
TITLES = {"spearman": "Spearman", "pearson": "Pearson", "ndcg": "nDCG", "map": "MAP", "recall": "Recall", "mrr": "MRR"}


def warn(notes: Sequence[str]) -> None:
    """Warn of what looks like a mistake. The report has it too."""
    for note in notes:
        warnings.warn(note, stacklevel=3)


class Measured(NamedTuple):
    """What an evaluation found under one protocol."""

    counts: Mapping[str, int]
    scores: Mapping[str, Any]  # between 0 and 1
    notes: list[str]  # what looks like a mistake


def make_reports(
    model: E5,
    path: Path,
    rules: Mapping[Protocol, Rule],
    measure: Callable[[Rule, dict[str, str]], Measured],
    *,
    roles: Mapping[str, Role | None],
    task_type: str,
    task: str | None,
    split: str | None,
    comparable: bool,
    files: Sequence[Path],
    library: str,
    notes: list[str],
) -> list[dict[str, Any]]:
    """Measure a model under each protocol, once if two ask in the same way, and report.

    Args:
        path: the file or folder that was given.
        rules: how the model is asked.
        measure: gets a rule and its prompts, by role of a text.
        roles: the roles of texts, as reports and as rules name them.
        task_type: "STS" or "Retrieval".
        task: the task's name in mteb, if e5ref knows the task.
        split: the part of the data that is used.
        comparable: whether the settings allow a published score beside the result.
        files: all files that were read.
        library: the package that computes the scores.
        notes: the warnings that were given.

    Returns:
        A report per protocol, ready for `json.dump`. "published" is None if no score of this checkpoint on this task is
        known.
    """
    main = MAIN_SCORES[task_type]
    asked: dict[tuple[Any, ...], Measured] = {}
    reports = []
    for protocol, rule in rules.items():
        prompts = {name: rule.prompt(model.checkpoint.settings, role) for name, role in roles.items()}
        way = (*prompts.values(), rule.title)
        if way not in asked:
            asked[way] = measure(rule, prompts)
            warn(asked[way].notes)
        counts, scores, own_notes = asked[way]
        found = find_published(model.checkpoint.name, task) if comparable and main in scores else None
        published = None
        if found is not None:
            published = {
                "model": found[0],
                "protocol": "authors",
                "score": main,
                "value": found[1],
                "difference": scores[main] - found[1],
                "source": published_scores()["source"],
            }
        reports.append(
            {
                "task_type": task_type,
                "task": task,
                "split": split,
                "protocol": protocol,
                "prompts": prompts,
                "scores": dict(scores),
                "published": published,
                "counts": dict(counts),
                "warnings": notes + own_notes,
                "dataset": {"path": str(path), "sha256": {file.name: file_sha256(file) for file in files}},
                "provenance": {role: provenance(model, prompt) for role, prompt in prompts.items()},
                "scores_computed_by": f"{library} {importlib.metadata.version(library)}",
            }
        )
    return reports


def table(reports: Sequence[Mapping[str, Any]]) -> str:
    """Lay out the reports of one evaluation, a column per protocol; scores are x 100."""
    first = reports[0]
    data = " ".join(filter(None, [first["task"] or Path(first["dataset"]["path"]).name, first["split"]]))
    counts = ", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in first["counts"].items())
    columns = {report["protocol"]: _cells(report) for report in reports}
    titles = dict.fromkeys(title for cells in columns.values() for title in cells)
    rows = [{"x 100": title} | {name: cells.get(title, "") for name, cells in columns.items()} for title in titles]
    lines = [next(iter(first["provenance"].values()))["model"], f"{data}: {counts}", "", aligned(rows)]
    if any(report["published"] for report in reports):
        lines += ["", f"published: {published_scores()['source']}; protocol authors"]
    return "\n".join(lines)


def _cells(report: Mapping[str, Any]) -> dict[str, str]:
    """Format a report: title → cell."""
    decimals = 3 if report["task_type"] == "STS" else 2
    cells = {f"prompt of a {role}": repr(prompt) if prompt else "none" for role, prompt in report["prompts"].items()}
    for key, value in report["scores"].items():
        metric, _, rest = key.partition("_")
        if rest == "interval":
            cells["  95 % interval"] = (
                f"{100 * value[0]:.{decimals}f} to {100 * value[1]:.{decimals}f}" if value else ""
            )
        else:
            metric, at, k = key.partition("@")
            cells[TITLES[metric] + at + k] = f"{100 * value:.{decimals}f}"
    published = report["published"]
    if published:
        metric, at, k = published["score"].partition("@")
        cells[f"published {TITLES[metric]}{at}{k}"] = f"{100 * published['value']:.2f}"
        cells["  difference"] = f"{100 * published['difference']:+.2f}"
    return cells
