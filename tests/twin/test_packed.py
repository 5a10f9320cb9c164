"""Several texts in a row: both twins beside each other, and beside transformers with every text alone."""

import itertools
from functools import partial

import jax
import numpy as np
import pytest

import e5ref
from e5ref import jax_model, numpy_model
from e5ref.checkpoint.params import leaves
from e5ref.operations.rows import text_lengths
from tests.tools.batches import one_text_a_row, packed_batch
from tests.tools.checkpoints import write_random_bert
from tests.tools.runs import first_departure, jax_run, our_run, transformers_run_of_texts
from tests.tools.tolerances import GRADIENTS, VECTORS

pytestmark = pytest.mark.slow  # tests/mutants packs on a small scale

# Tokens of each row's texts, -n for padding. 1, 2, 17 and 100 texts; a single token of padding, or none; padding
# before, between and behind. All make one batch: so one program is compiled.
ROWS = [
    [512, 8],
    [512],
    [260, 259],
    [500, -2, 17, 1],
    [64, 65, 63, 96, 97, *[3] * 11, 102],
    [3, 4, 5, 6, 7] * 20 + [-19, 1],
    [-1, 30, -40, 128, -7, 3, -1, 3, -250, 57],
]
MOST = 101
SHORT_ROWS = [[1, 64, 3, 50], [3] * 42, [40, -9, 65, -8, 2], [70], [64, 63], [64, 64], [2, 1] * 42]


@pytest.fixture(scope="module", params=["bert", "xlm-roberta"])
def folder(request, tmp_path_factory):
    """Random weights of a few narrow layers, with positions for 512 tokens."""
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    positions = {"bert": 512, "xlm-roberta": 514}[request.param]
    path = tmp_path_factory.mktemp("packed")
    return write_random_bert(path, model_type=request.param, max_position_embeddings=positions, **sizes)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_packed_rows_at_every_point(folder, dtype):
    checkpoint = e5ref.read_checkpoint(folder, dtype=dtype)
    batch = packed_batch(ROWS, checkpoint.config.vocab_size)
    batch[1][4, 70:90] = 0  # padding inside a text that is not a row's first
    assert batch[1].max(axis=1).tolist() == [2, 1, 2, 3, 17, MOST, 5]
    runs = {
        "NumPy": our_run(checkpoint, *batch),
        "transformers": transformers_run_of_texts(folder, *batch, dtype),
        "JAX": jax_run(checkpoint, *batch),
    }
    for pair in itertools.combinations(runs, 2):
        reference, run = (runs[name] for name in pair)
        assert first_departure(run, reference, batch[1], dtype) is None, pair
        assert np.abs(run["normalized"] - reference["normalized"]).max() <= VECTORS[dtype], pair


def test_packed_is_one_text_a_row(folder):
    checkpoint = e5ref.read_checkpoint(folder, dtype="float64")
    batch = packed_batch(SHORT_ROWS, checkpoint.config.vocab_size)
    alone, most = one_text_a_row(*batch), batch[1].max()
    is_text = text_lengths(batch[1]).ravel() > 0
    with jax.enable_x64(True):
        for model, run in ((numpy_model, lambda function: function), (jax_model, jax.jit)):
            forward = run(partial(model.forward, checkpoint.params, config=checkpoint.config))
            states = forward(*batch), forward(*alone)
            packed = model.average_pool(states[0], batch[1], most)
            assert np.abs(packed[is_text] - model.average_pool(states[1], alone[1])).max() <= VECTORS["float64"]
            assert not packed[~is_text].any()
            packed = model.cls_pool(states[0], batch[1], most)[is_text]
            assert np.abs(packed - model.cls_pool(states[1], alone[1])).max() <= VECTORS["float64"]


@pytest.mark.parametrize("folder", ["bert"], indirect=True)
def test_packed_rows_without_recording(folder):
    """A CPU takes their attention in pieces."""
    checkpoint = e5ref.read_checkpoint(folder, dtype="float64")
    batch = packed_batch(ROWS, checkpoint.config.vocab_size)
    options = {"config": checkpoint.config, "texts_per_row": MOST}
    with jax.enable_x64(True):
        vectors = np.asarray(jax_model.compiled_embed(checkpoint.params, *batch, **options))
    assert np.abs(vectors - numpy_model.embed(checkpoint.params, *batch, **options)).max() <= VECTORS["float64"]


def test_gradients_through_packed_rows(tiny_bert):
    """Those of one text a row. A CPU takes attention in pieces."""
    checkpoint = e5ref.read_checkpoint(tiny_bert, dtype="float64")
    batch = packed_batch([[3, 50, 12, 1, -3, 59, 1, -1]], 40)
    is_text = text_lengths(batch[1]).ravel() > 0
    weights = np.random.default_rng(0).normal(size=(len(is_text), 32))

    def gradients(input_ids, attention_mask, weights, texts_per_row):
        def loss(params):
            options = {"config": checkpoint.config, "texts_per_row": texts_per_row}
            return (jax_model.embed(params, input_ids, attention_mask, **options) * weights).sum()

        return leaves(jax.jit(jax.grad(loss))(checkpoint.params))

    with jax.enable_x64(True):
        packed = gradients(*batch, weights, len(weights))
        alone = gradients(*one_text_a_row(*batch), weights[is_text], 1)
        for ours, expected in zip(packed, alone, strict=True):
            assert np.abs(ours - expected).max() <= GRADIENTS * max(np.abs(expected).max(), 1)
