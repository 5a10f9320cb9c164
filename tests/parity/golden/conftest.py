"""A kit and runs that pass."""

import json
from pathlib import Path

import pytest

from e5ref.parity import write_run
from e5ref.parity.golden.kit import write_kit
from e5ref.parity.runs.recording import record


@pytest.fixture(scope="session")
def kit(tiny_bert, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("golden") / "kit"
    write_kit(tiny_bert, folder)
    return folder


@pytest.fixture(scope="session")
def batches(kit) -> dict:
    return json.loads((kit / "kit.json").read_text())["batches"]


@pytest.fixture(scope="session")
def right(tiny_bert, batches, tmp_path_factory) -> Path:
    """The runs of transformers in float32, of every point that it gives."""
    folder = tmp_path_factory.mktemp("right")
    for batch, entry in batches.items():
        write_run(record(tiny_bert, entry["texts"], backend="transformers"), folder / f"{batch}.safetensors")
    return folder
