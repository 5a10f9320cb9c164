"""`e5ref models`, `inspect` and `warm-up`."""

import json

import pytest

from tests.tools.checkpoints import write_random_bert
from tests.tools.processes import run


def test_models():
    lines = run("models").stdout.decode().splitlines()
    assert len(lines) == 27
    rows = json.loads(run("models", "--json").stdout)
    assert rows[0]["name"] == "intfloat/e5-small-v2"
    assert all(isinstance(row["on_this_machine"], bool) for row in rows)


def test_inspect(tiny_bert):
    shown = run("inspect", tiny_bert).stdout.decode()
    facts = json.loads(run("inspect", tiny_bert, "--json").stdout)
    D, F, V, P = 32, 48, 50, 64
    layer = 4 * (D * D + D) + (F * D + F) + (D * F + D) + 4 * D
    assert facts["parameters"] == (V + P + 2) * D + 2 * D + 2 * layer
    assert facts["prompts"] == {"query": "query: ", "passage": "passage: "}
    assert facts["hidden_size"] == 32
    lines = dict(line.split(None, 1) for line in shown.splitlines())
    assert {
        key: json.dumps(value) if isinstance(value, dict) else str(value) or "none" for key, value in facts.items()
    } == lines


@pytest.mark.slow
def test_warm_up(tmp_path, kept_programs):
    folder = write_random_bert(tmp_path / "model", max_position_embeddings=9, num_hidden_layers=1)
    result = run("warm-up", "--model", folder, own_process=True)
    assert result.stdout.decode() == f"8 programs are ready in {kept_programs}\n"
    kept = sum("embed" in path.name and path.name.endswith("-cache") for path in kept_programs.iterdir())
    assert kept == 8
