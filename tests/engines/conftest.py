"""A model whose texts share matrix products."""

import pytest

import e5ref
from tests.tools.checkpoints import write_random_bert


@pytest.fixture(scope="module", params=["float32", "float64"])
def wide(request, tmp_path_factory):
    """A model of e5-small's widths, whose texts go through matrix products together (those of the tiny one cannot)."""
    sizes = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536, "num_hidden_layers": 1}
    model = e5ref.load(write_random_bert(tmp_path_factory.mktemp("wide"), **sizes), dtype=request.param)
    if not model.engine.rows_are_independent:
        pytest.skip("this machine's BLAS rounds a row by its place: e5ref gives it one text at a time")
    return model
