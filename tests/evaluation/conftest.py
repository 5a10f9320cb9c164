"""A small model and a small data set."""

import pytest

import e5ref
from tests.tools.beir import write_beir


@pytest.fixture(scope="module")
def model(tiny_bert):
    return e5ref.load(tiny_bert)


@pytest.fixture
def folder(tmp_path):
    return write_beir(tmp_path / "set")
