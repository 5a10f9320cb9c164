"""The progress bar."""

import sys

import pytest

import e5ref
from e5ref.terminal.progress import progress_bar


@pytest.fixture(scope="module", autouse=True)
def blas_threads():
    """As many as there are: what they must not change is tested here."""


@pytest.fixture(scope="module")
def tiny(tiny_bert):
    return e5ref.load(tiny_bert)


def test_a_progress_bar_in_a_notebook(tiny, capsys, monkeypatch):
    """Standard error is no terminal there."""
    monkeypatch.setitem(sys.modules, "ipykernel", None)
    with progress_bar(3, "embedding", "text", delay=0) as bar:
        bar.update(3)
    assert "embedding: 100%" in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "ipykernel")
    with progress_bar(3, "embedding", "text", delay=0) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""
