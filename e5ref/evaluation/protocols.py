"""How to ask an E5 model: the prompt before a text, task by task, under each named protocol.

"authors" is how the authors measured the scores of the paper and the model cards, with the scripts in
https://github.com/microsoft/unilm/tree/master/e5. "mteb" is what mteb's own wrapper of E5 does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from e5ref.checkpoint.hub import read_data
from e5ref.checkpoint.prompts import find_prompt
from e5ref.checkpoint.settings import EmbeddingSettings

Protocol = Literal["authors", "mteb"]
Role = Literal["query", "document"]


@dataclass(frozen=True)
class Rule:
    """What a protocol does with the texts of a task. Prompts are named as in the checkpoint.

    `text` is the prompt before a text that is neither query nor document; None is the checkpoint's default, which for
    E5 is no prompt.
    """

    text: str | None
    query: str  # the prompt before a query
    document: str  # the prompt before a document
    title: bool = True  # whether a document's title and a space stand before its text; both ends are stripped
    normalize: bool | None = None  # to unit L2 norm; None is the checkpoint's setting (E5: yes). Cosines stay the same

    def prompt(self, settings: EmbeddingSettings, role: Role | None) -> str:
        """Find the prompt for a text in this role; "" if it gets none.

        Raises:
            ValueError: the checkpoint has no prompt of the rule's name.
        """
        name = {None: self.text, "query": self.query, "document": self.document}[role]
        return find_prompt(settings.prompts, name or settings.default_prompt_name, None)

    def document_text(self, title: str, text: str) -> str:
        """Make the text that is embedded for a document, without its prompt."""
        return f"{title} {text}".strip() if self.title else text


QUERY_EVERYWHERE = Rule(text="query", query="query", document="query", normalize=True)
AS_RETRIEVAL = Rule(text="query", query="query", document="document", normalize=True)
BY_ROLE = Rule(text=None, query="query", document="document")

# Task or type of task, as mteb names them → protocol → rule. A task's own entry goes before its type's.
TABLE: Mapping[str, Mapping[Protocol, Rule]] = {
    "STS": {"authors": QUERY_EVERYWHERE, "mteb": BY_ROLE},
    "PairClassification": {"authors": QUERY_EVERYWHERE, "mteb": BY_ROLE},
    "Classification": {"authors": Rule("query", "query", "query", normalize=False), "mteb": BY_ROLE},
    "Clustering": {"authors": QUERY_EVERYWHERE, "mteb": BY_ROLE},
    "Reranking": {"authors": QUERY_EVERYWHERE, "mteb": BY_ROLE},
    "Retrieval": {"authors": AS_RETRIEVAL, "mteb": BY_ROLE},
    "InstructionRetrieval": {"authors": AS_RETRIEVAL, "mteb": BY_ROLE},
    "QuoraRetrieval": {"authors": Rule("query", "query", "query", title=False, normalize=True), "mteb": BY_ROLE},
    "every other": {"authors": QUERY_EVERYWHERE, "mteb": BY_ROLE},
}

# Type of task → task that `e5ref eval` knows → the name of its file or folder.
TASKS: Mapping[Literal["STS", "Retrieval"], Mapping[str, str]] = {
    "STS": {
        "STS12": "sts12",
        "STS13": "sts13",
        "STS14": "sts14",
        "STS15": "sts15",
        "STS16": "sts16",
        "STSBenchmark": "sts-test",
        "SICK-R": "sick-r",
    },
    "Retrieval": {
        "ArguAna": "arguana",
        "FEVER": "fever",
        "FiQA2018": "fiqa",
        "MSMARCO": "msmarco",
        "NFCorpus": "nfcorpus",
        "QuoraRetrieval": "quora",
        "SciFact": "scifact",
    },
}

# Task → the split that both protocols use; "test" for all other tasks.
SPLITS = {"MSMARCO": "dev"}

# Tasks in which a document with the query's own id is the query itself, not an answer. Both protocols leave it out.
IDENTICAL_IDS = {"ArguAna", "FEVER", "FiQA2018", "MSMARCO", "QuoraRetrieval"}


def find_rule(protocol: Protocol, task_type: str, task: str | None = None) -> Rule:
    """Find a protocol's rule for a task; task and type are named as in mteb ("STS", "Retrieval").

    Raises:
        ValueError: the protocol is unknown.
    """
    if protocol not in get_args(Protocol):
        raise ValueError(f"protocol is {protocol!r}, but must be one of {', '.join(get_args(Protocol))}")
    return next(TABLE[key] for key in (task or task_type, task_type, "every other") if key in TABLE)[protocol]


def find_task(task_type: Literal["STS", "Retrieval"], task: str | None, path: Path) -> str | None:
    """Find the task, as mteb names it, that a file or folder belongs to; None if it is not called like a known one.

    `task` is its name, or that of its file or folder, in any case; None goes by `path`.

    Raises:
        ValueError: `task` is unknown.
    """
    known = {alias: name for name, alias in TASKS[task_type].items()}
    known |= {name.lower(): name for name in TASKS[task_type]}
    if task is None:
        name = Path(path.name.removesuffix(".gz")).stem if path.is_file() else path.resolve().name
        return known.get(name.lower())
    if task.lower() not in known:
        raise ValueError(f"task {task!r} is not one of {', '.join(TASKS[task_type])}; leave it out for other data")
    return known[task.lower()]


def published_scores() -> dict[str, Any]:
    """Return the scores that the authors published: "scores" (checkpoint → task → score x 100), "tasks", "source"."""
    return read_data("published.toml")


def find_published(model: str, task: str | None) -> tuple[str, float] | None:
    """Find the published score, between 0 and 1, of a checkpoint on a task of mteb's; return its hub name too.

    `model` is that name, or a folder with the same last name. None if no score was published.
    """
    for name, scores in published_scores()["scores"].items():
        if task in scores and (name == model or name.split("/")[1] == Path(model).name):
            return name, round(scores[task] / 100, 6)
    return None
