"""What the commands run, as Python has it."""

import pytest

import e5ref


@pytest.fixture(scope="module")
def model(tiny_bert):
    return e5ref.load(tiny_bert)


@pytest.fixture
def kept_programs(tmp_path, monkeypatch):
    """Keep JAX's compiled programs in a folder of the test's own."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "e5ref" / "jax"
