"""`e5ref bench`: what it prints and writes."""

import json

import pytest

from e5ref import bench
from tests.tools.processes import fails, run


@pytest.fixture
def short_bench(monkeypatch):
    """Leave out what takes long and is in test_bench.py: much to embed, large products, processes of their own."""
    for name, value in {"PAUSE": 0, "FIXED_TOKENS": 256, "LATENCY_CALLS": 3}.items():
        monkeypatch.setattr(bench.measure, name, value)
    monkeypatch.setattr(bench, "measure_processes", lambda *_: [])
    monkeypatch.setattr(bench, "product_rates", lambda _: [])


@pytest.mark.peer
def test_bench(tiny_bert, tmp_path, short_bench):
    texts = tmp_path / "texts.txt"
    texts.write_text("query: cat\nquery: the dog\n")
    options = ["--model", tiny_bert, "--texts", texts, "--rounds", 1]
    with_tables = run("bench", *options, "--against", "transformers").stdout.decode()
    assert "| e5ref jax highest " in with_tables
    assert "| transformers float32 " in with_tables
    written = tmp_path / "bench" / "small"
    options += ["--model", "e5ref-nano"]
    result, other = json.loads(run("bench", *options, "--ours", "numpy", "--json", "-o", written).stdout)
    assert json.loads((written / "bench.json").read_text()) == [result, other]
    assert [inputs["name"] for inputs in other["inputs"]] == ["texts", "64 tokens", "128 tokens"]  # nano takes 256
    assert (written / "bench.svg").read_text().startswith("<svg ")
    assert len(list(written.iterdir())) == 2
    assert [inputs["name"] for inputs in result["inputs"]] == ["texts", "64 tokens"]
    assert all(row["right"] for inputs in [*result["inputs"], *other["inputs"]] for row in inputs["rows"])


def test_a_bench_that_is_broken_off_leaves_what_it_found(tiny_bert, tmp_path, short_bench, monkeypatch):
    measure = bench.measure_inputs

    def measure_texts_only(inputs, *arguments):
        if inputs.name != "texts":
            raise ValueError("broken off")
        return measure(inputs, *arguments)

    monkeypatch.setattr(bench, "measure_inputs", measure_texts_only)
    options = ["--model", tiny_bert, "--texts", "-", "--ours", "numpy", "--rounds", 1, "-o", tmp_path / "found"]
    shown = run("bench", *options, stdin=b"query: cat\n", code=2)
    assert "texts: 1 texts" in shown.stdout.decode()
    assert "broken off" in shown.stderr.decode()
    (result,) = json.loads((tmp_path / "found" / "bench.json").read_text())
    assert [inputs["name"] for inputs in result["inputs"]] == ["texts"]


def test_bench_against_nobody_known(tiny_bert):
    assert "contender 'torchh' is not one of" in fails("bench", "--model", tiny_bert, "--against", "torchh")
