"""What the error for a missing extra tells people to run, by how e5ref was installed."""

import importlib.metadata
import json
from pathlib import Path

import pytest

from e5ref.extras import install_command, require

ROOT = Path(__file__).parents[1]


@pytest.fixture
def installed(monkeypatch):
    """Say where pip installed e5ref from, as its `direct_url.json` does; None for a package index."""

    def install(origin: dict | None) -> None:
        text = None if origin is None else json.dumps(origin)
        distribution = type("Distribution", (), {"read_text": staticmethod(lambda name: text)})
        monkeypatch.setattr(importlib.metadata, "distribution", lambda name: distribution)

    return install


def test_a_checkout(installed, tmp_path, monkeypatch):
    checkout = tmp_path / "my e5ref"
    checkout.mkdir()
    (checkout / "pyproject.toml").touch()
    installed({"url": checkout.as_uri(), "dir_info": {}})
    assert install_command("eval") == f"pip install '{checkout}[eval]'"
    installed({"url": checkout.as_uri(), "dir_info": {"editable": True}})
    monkeypatch.chdir(checkout)
    assert install_command("eval") == "pip install -e '.[eval]'"


def test_a_checkout_that_is_gone(installed, tmp_path):
    installed({"url": (tmp_path / "gone").as_uri(), "dir_info": {}})
    assert install_command("eval") == "pip install '.[eval]' in a checkout of e5ref"


def test_a_repository_and_a_file(installed):
    installed({"url": "https://example.org/e5ref.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}})
    assert install_command("jax") == "pip install 'e5ref[jax] @ git+https://example.org/e5ref.git@abc'"
    installed({"url": "file:///tmp/e5ref-0.1.0-py3-none-any.whl", "archive_info": {}})
    assert install_command("jax") == "pip install 'e5ref[jax] @ file:///tmp/e5ref-0.1.0-py3-none-any.whl'"


def test_a_source_tree_that_is_not_installed(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    monkeypatch.chdir(ROOT / "docs")
    assert install_command("bench") == f"pip install '{ROOT}[bench]'"
    monkeypatch.chdir(ROOT)
    assert install_command("bench") == "pip install '.[bench]'"


def test_what_is_missing_is_named():
    require("eval", "evaluation", "numpy")
    with pytest.raises(ModuleNotFoundError, match=r"^evaluation needs no-such-package and nor-such: pip install "):
        require("eval", "evaluation", "numpy", "no-such-package", "nor-such")
