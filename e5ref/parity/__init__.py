"""The judge: record a run of any implementation, and say where it departs from the reference."""

from e5ref.parity.compare import Comparison, PointVerdict, assert_parity, compare
from e5ref.parity.recording import record
from e5ref.parity.run import Run, RunError, read_run, write_run

__all__ = [
    "Comparison",
    "PointVerdict",
    "Run",
    "RunError",
    "assert_parity",
    "compare",
    "read_run",
    "record",
    "write_run",
]
