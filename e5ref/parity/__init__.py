"""The judge: record a run of any implementation, find where it departs from the reference, and recognise mistakes."""

from e5ref.parity.diagnosis.conclusion import Diagnosis
from e5ref.parity.diagnosis.diagnosis import diagnose
from e5ref.parity.diagnosis.trial import Finding
from e5ref.parity.judge.comparison import Comparison, PointVerdict, compare
from e5ref.parity.judge.report import assert_parity
from e5ref.parity.modules.identify import explain_modules
from e5ref.parity.modules.recording import record_modules
from e5ref.parity.modules.tree import Tree, open_tree, tree_of
from e5ref.parity.runs.recording import record
from e5ref.parity.runs.run import Run, RunError, read_run, write_run

__all__ = [
    "Comparison",
    "Diagnosis",
    "Finding",
    "PointVerdict",
    "Run",
    "RunError",
    "Tree",
    "assert_parity",
    "compare",
    "diagnose",
    "explain_modules",
    "open_tree",
    "read_run",
    "record",
    "record_modules",
    "tree_of",
    "write_run",
]
