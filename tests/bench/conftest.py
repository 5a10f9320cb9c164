"""The bench on a small scale."""

import pytest

from e5ref import E5, bench, read_checkpoint
from e5ref.bench import measure
from e5ref.bench.prepare import write_exports, write_random_checkpoint
from tests.bench.planted import TEXTS, TINY


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(measure, "PAUSE", 0)
    monkeypatch.setattr(measure, "FIXED_TOKENS", 256)
    monkeypatch.setattr(measure, "LATENCY_CALLS", 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random")
    write_random_checkpoint(folder, TINY, TEXTS)
    return folder


@pytest.fixture(scope="module")
def prepared(folder, tmp_path_factory):
    """The two folders that contenders load from."""
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason="comes with `pip install '.[bench]'`")
    exports = tmp_path_factory.mktemp("exports")
    write_exports(E5(read_checkpoint(folder)), ["onnxruntime-fused", "onnxruntime-int8"], exports)
    return folder, exports


@pytest.fixture
def in_process(monkeypatch):
    """Processes of their own are not started: in those there are no planted contenders."""
    monkeypatch.setattr(bench, "measure_processes", lambda *arguments: [])


@pytest.fixture
def no_rates(monkeypatch):
    """Large products, which take most of a small bench's time, are not timed: test_all_installed_contenders does it."""
    monkeypatch.setattr(bench, "product_rates", lambda contenders: [])
