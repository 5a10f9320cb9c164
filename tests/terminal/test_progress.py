"""The progress bar."""

import sys

from e5ref.terminal.progress import progress_bar


def test_a_progress_bar_in_a_notebook(capsys, monkeypatch):
    """Standard error is no terminal there."""
    monkeypatch.setitem(sys.modules, "ipykernel", None)
    with progress_bar(3, "embedding", "text", delay=0) as bar:
        bar.update(3)
    assert "embedding: 100%" in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "ipykernel")
    with progress_bar(3, "embedding", "text", delay=0) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""
