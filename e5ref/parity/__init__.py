"""The judge: record a run of any implementation, find where it departs from the reference, and recognise mistakes."""

from e5ref.parity.diagnosis.conclusion import Diagnosis
from e5ref.parity.diagnosis.diagnosis import diagnose
from e5ref.parity.diagnosis.trial import Finding
from e5ref.parity.judge.comparison import Comparison, PointVerdict, compare
from e5ref.parity.judge.report import assert_parity
from e5ref.parity.runs.recording import record
from e5ref.parity.runs.run import Run, RunError, read_run, write_run

__all__ = [
    "Comparison",
    "Diagnosis",
    "Finding",
    "PointVerdict",
    "Run",
    "RunError",
    "assert_parity",
    "compare",
    "diagnose",
    "read_run",
    "record",
    "write_run",
]
