"""The judge: record a run of any implementation, say where it departs from the reference, and recognise mistakes."""

from e5ref.parity.diagnosis.diagnose import Diagnosis, Finding, diagnose
from e5ref.parity.judge.compare import Comparison, PointVerdict, assert_parity, compare
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
