"""Evaluation: E5's published scores, reproduced under the protocol that they follow; see docs/measure/evaluation.md.

`evaluate_sts` and `evaluate_retrieval` read files; `e5ref.evaluation.mteb` brings a model into mteb. They need the
extra `eval` or `mteb`.
"""

from e5ref.evaluation.protocols import Protocol, published_scores
from e5ref.evaluation.report import table
from e5ref.evaluation.retrieval import evaluate_retrieval
from e5ref.evaluation.sts import evaluate_sts

__all__ = ["Protocol", "evaluate_retrieval", "evaluate_sts", "published_scores", "table"]
