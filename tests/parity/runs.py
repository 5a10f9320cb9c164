"""Runs to be judged: the reference with its costs, and runs of anything that gives named points."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import e5ref
from e5ref.parity import Run
from e5ref.parity.altered.models import run_reference
from e5ref.parity.runs.rounding import rounding_costs


def run_of(points: Mapping[str, np.ndarray], reference: Run, dtype: str = "float32") -> Run:
    """A run of the reference's inputs."""
    ids = {name: reference.arrays[name] for name in ("input_ids", "attention_mask")}
    texts = {name: reference.metadata[name] for name in ("texts", "tokens") if name in reference.metadata}
    return Run(ids | dict(points), texts | {"dtype": dtype})


def reference_run(
    folder: Path,
    input_ids: np.ndarray,
    attention_mask: np.ndarray,
    *,
    texts: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
) -> Run:
    """The float64 run of a checkpoint, with what rounding costs."""
    checkpoint = e5ref.read_checkpoint(folder, dtype="float64")
    metadata = {"dtype": "float64"} | ({} if texts is None else {"texts": json.dumps(texts)})
    metadata["rounding"] = json.dumps(rounding_costs(checkpoint, input_ids, attention_mask, only=only))
    points = run_reference(checkpoint, input_ids, attention_mask, only=only)
    return Run({"input_ids": input_ids, "attention_mask": attention_mask} | points, metadata)
