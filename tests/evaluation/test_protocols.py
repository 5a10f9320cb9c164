"""Protocols: each rule as the sources have it, the docs' tables as the data, what is published."""

import re
from pathlib import Path

import pytest

import e5ref
from e5ref.checkpoint.prompts import E5_PROMPTS
from e5ref.checkpoint.settings import EmbeddingSettings
from e5ref.evaluation.protocols import (
    IDENTICAL_IDS,
    SPLITS,
    TABLE,
    TASKS,
    Rule,
    find_published,
    find_rule,
    find_task,
    published_scores,
)

DOCS = (Path(__file__).parents[2] / "docs" / "measure" / "evaluation.md").read_text(encoding="utf-8")

E5 = EmbeddingSettings("mean", True, 512, E5_PROMPTS)
BARE = EmbeddingSettings("mean", True, 256, {"query": "", "document": ""})


def prompts(protocol, task_type, task=None, settings=E5) -> list[str]:
    rule = find_rule(protocol, task_type, task)
    return [rule.prompt(settings, role) for role in (None, "query", "document")]


def test_the_authors_ask_with_query_but_for_documents_of_retrieval():
    for task_type in ("STS", "PairClassification", "Classification", "Clustering", "Reranking", "Summarization"):
        assert prompts("authors", task_type) == ["query: "] * 3
    assert prompts("authors", "Retrieval") == ["query: ", "query: ", "passage: "]
    assert prompts("authors", "Retrieval", "SciFact") == ["query: ", "query: ", "passage: "]
    assert prompts("authors", "Retrieval", "QuoraRetrieval") == ["query: "] * 3


def test_mteb_asks_by_role():
    for task_type in (*TABLE, "Summarization"):
        assert prompts("mteb", task_type) == ["", "query: ", "passage: "]


def test_a_checkpoint_without_prompts_gets_none():
    for protocol in ("authors", "mteb"):
        assert {prompt for row in TABLE for prompt in prompts(protocol, row, settings=BARE)} == {""}


def test_a_default_prompt_is_what_a_bare_text_gets():
    settings = EmbeddingSettings("mean", True, 512, {"query": "q: ", "document": ""}, "query")
    assert prompts("mteb", "STS", settings=settings) == ["q: ", "q: ", ""]


def test_normalisation():
    assert [row for row, rules in TABLE.items() if rules["authors"].normalize is False] == ["Classification"]
    assert {rules["mteb"].normalize for rules in TABLE.values()} == {None}


@pytest.mark.parametrize(
    ("title", "text", "joined"),
    [("A title", "a text", "A title a text"), ("", " a text ", "a text"), ("A title", "", "A title"), ("", "", "")],
)
def test_titles(title, text, joined):
    assert find_rule("authors", "Retrieval").document_text(title, text) == joined
    assert find_rule("mteb", "Retrieval").document_text(title, text) == joined
    assert find_rule("authors", "Retrieval", "QuoraRetrieval").document_text(title, text) == text


def test_tasks_are_found_by_name(tmp_path):
    (tmp_path / "quora").mkdir()
    (tmp_path / "sts-test.tsv").touch()
    (tmp_path / "sts-test.csv.gz").touch()
    assert find_task("Retrieval", None, tmp_path / "quora") == "QuoraRetrieval"
    assert find_task("Retrieval", None, tmp_path) is None
    assert find_task("STS", None, tmp_path / "sts-test.tsv") == "STSBenchmark"
    assert find_task("STS", None, tmp_path / "sts-test.csv.gz") == "STSBenchmark"
    assert find_task("STS", "stsbenchmark", tmp_path) == "STSBenchmark"
    with pytest.raises(ValueError, match="task 'SciFact' is not one of STS12, "):
        find_task("STS", "SciFact", tmp_path)


@pytest.mark.peer
def test_tasks_are_mtebs():
    get_tasks = pytest.importorskip("mteb").get_tasks
    names = [name for tasks in TASKS.values() for name in tasks]
    tasks = {task.metadata.name: task for task in get_tasks(tasks=names)}
    assert set(tasks) == set(names)
    for task_type, known in TASKS.items():
        for name in known:
            assert tasks[name].metadata.type == task_type
            assert tasks[name].metadata.eval_splits == [SPLITS.get(name, "test")]
            if task_type == "Retrieval":
                assert tasks[name].ignore_identical_ids == (name in IDENTICAL_IDS)


def test_published_scores():
    assert find_published("intfloat/e5-small-v2", "SciFact") == ("intfloat/e5-small-v2", 0.6885)
    assert find_published("models/e5-small", "STSBenchmark") == ("intfloat/e5-small", 0.8636)
    assert find_published("intfloat/e5-small-v2", "STS12") is None
    assert find_published("intfloat/e5-small-v2", None) is None
    assert find_published("sentence-transformers/all-MiniLM-L6-v2", "SciFact") is None


def test_published_scores_are_of_known_checkpoints_and_tasks():
    published = published_scores()
    assert set(published["scores"]) <= set(e5ref.known_checkpoints())
    for scores in published["scores"].values():
        assert set(scores) <= set(published["tasks"])
        assert all(30 < score < 95 for score in scores.values())


def docs_table(heading: str) -> list[list[str]]:
    """Return the cells of the first table under a heading of docs/measure/evaluation.md."""
    part = DOCS.split(f"\n{heading}\n")[1]
    lines = re.search(r"(?:^\|.*\n)+", part, re.MULTILINE)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def described(rule: Rule, with_roles: bool) -> list[str]:
    """Write out a rule as the docs do."""
    roles = ("query", "document") if with_roles else (None,)
    asked = " / ".join(f"`{prompt}`" if (prompt := rule.prompt(E5, role)) else "none" for role in roles)
    asked += "" if rule.title else ", text only"
    return [asked, {True: "yes", False: "no", None: "as the checkpoint"}[rule.normalize]]


def test_the_docs_show_the_table():
    shown = docs_table("## The two protocols")
    assert shown[0] == ["task", "authors: prompt", "normalised", "mteb: prompt", "normalised"]
    expected = [
        [row, *(cell for rule in rules.values() for cell in described(rule, "Retrieval" in row or row == "Reranking"))]
        for row, rules in TABLE.items()
    ]
    assert shown[2:] == expected


def test_the_docs_show_what_is_published():
    shown = docs_table("## Published scores")
    published = published_scores()
    names = list(published["scores"])
    assert shown[0] == ["task", "score", *(name.removeprefix("intfloat/") for name in names)]
    assert shown[2:] == [
        [task, score, *(f"{row[task]:.2f}" if task in row else "" for row in published["scores"].values())]
        for task, score in published["tasks"].items()
    ]
