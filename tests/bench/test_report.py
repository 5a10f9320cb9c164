"""Tables and the chart."""

import itertools
import json
import time
from xml.etree import ElementTree

import pytest

from e5ref import bench
from e5ref.bench.report import INT8_NOTE, chart, tables
from tests.bench.planted import TEXTS, TINY, planted


def test_what_is_found_grows_input_by_input(in_process, no_rates):
    steps = bench.bench_step_by_step(TINY, ["numpy"], lengths=(8, 16), rounds=1)
    results = [json.loads(json.dumps(step)) for step in steps]
    assert len(results) == 3  # after each input, and at the end
    for result in results:  # as on an accelerator, and with int8 beside
        result["attention"] = [{"tokens": 8, "plain_ms": 2.0, "fast_ms": 1.0}]
        for inputs in result["inputs"]:
            inputs["rows"].append(inputs["rows"][0] | {"precision": "int8", "is_peer": True})
    process = {"contender": "e5ref numpy", "is_peer": False, "precision": "float32", "peak_mib": 5.0, "ratios": {}}
    figures = {"first_vector_s": {"median": 1.0, "min": 1.0, "max": 1.0}, "cold_first_vector_s": None}
    results[-1]["processes"] = [process | figures]
    seen = [tables(result) for result in results]
    for less, more in itertools.pairwise(seen):
        assert more[: len(less)] == less
        assert len(more) > len(less)
    assert seen[-1].count(INT8_NOTE) == 1


def test_int8_is_marked_and_no_best_peer(monkeypatch, in_process, no_rates):
    monkeypatch.setitem(bench.CONTENDERS, "exact", planted("exact", lambda vectors: time.sleep(0.05) or vectors))
    monkeypatch.setitem(bench.CONTENDERS, "coarse", planted("coarse", lambda vectors: vectors, precision="int8"))
    lines = "\n".join(tables(bench.bench(TINY, ["exact", "coarse"], lengths=(16,), rounds=1))).splitlines()
    ratios = {line.split("|")[1].strip(): line.split("|")[5].strip() for line in lines if line.startswith("| ")}
    assert ratios["exact"] == "1.00"
    assert float(ratios["coarse"]) > 1
    assert lines[-1] == INT8_NOTE


def test_the_chart_shows_each_input_and_contender(monkeypatch, in_process, no_rates):
    monkeypatch.setitem(bench.CONTENDERS, "planted", planted("A & B", lambda vectors: vectors))
    monkeypatch.setitem(bench.CONTENDERS, "wrong", planted("wrong", lambda vectors: -vectors))
    result = bench.bench(TINY, ["numpy", "planted", "wrong"], texts=TEXTS, lengths=(16,), rounds=2)
    image = ElementTree.fromstring(chart([result, result]))
    written = [element.text for element in image.findall(".//{*}text")]
    assert written.count("e5ref numpy") == written.count("A & B") == 4
    assert written.count("from their ids") == 2  # ours, on the texts
    assert "random weights, 1 layers of 32. 16 tokens: 16 texts, 256 tokens" in written
    assert "wrong" not in written
    bars = [element for element in image.findall(".//{*}rect") if element.get("class") in ("ours", "peer")]
    rows = [row for row in result["inputs"][0]["rows"] if row["right"]]
    speeds = [row["tokens_per_second"] for row in rows]
    top = max(speed["max"] for speed in [*speeds, rows[0]["ids_tokens_per_second"]])
    widths = [float(bar.get("width")) for bar in bars[:2]]
    assert widths == pytest.approx([400 * speed["median"] / top for speed in speeds], abs=0.1)
    height = float(image.get("height"))
    assert all(float(element.get("y")) < height for element in image.findall(".//{*}text"))
