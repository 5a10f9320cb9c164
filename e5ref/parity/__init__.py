"""The judge: record a run, compare two runs, recognise mistakes."""

from e5ref.parity.diagnose import Diagnosis, Finding, diagnose

__all__ = ["Diagnosis", "Finding", "diagnose"]
