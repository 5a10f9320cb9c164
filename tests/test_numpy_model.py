"""The forward pass against transformers, point by point, and against numbers worked out by hand."""

import inspect
import math
from pathlib import Path

import numpy as np
import pytest

import e5ref
from e5ref import numpy_model
from e5ref.checkpoint.params import Affine
from e5ref.operations import rows
from e5ref.operations.probes import rows_are_independent
from e5ref.operations.rows import text_lengths
from tests.tools.batches import one_text_a_row, packed_batch, ragged_batch
from tests.tools.checkpoints import E5_SMALL, tiny_config, write_random_bert
from tests.tools.runs import first_departure, our_run, transformers_run
from tests.tools.tolerances import LAYER_NORM_ULP, VECTORS


def assert_parity(folder: Path, input_ids: np.ndarray, attention_mask: np.ndarray, dtype: str) -> None:
    ours = our_run(e5ref.read_checkpoint(folder, dtype=dtype), input_ids, attention_mask)
    theirs = transformers_run(folder, input_ids, attention_mask, dtype)
    assert first_departure(ours, theirs, attention_mask, dtype) is None
    assert np.abs(ours["normalized"] - theirs["normalized"]).max() <= VECTORS[dtype]


# Odd shapes, e5-small's and trained weights: in twin/test_twins.py, where the JAX twin is compared too.


@pytest.mark.slow
@pytest.mark.parametrize("size", ["base", "large"])
def test_other_sizes_of_e5(size, tmp_path):
    """The widths of base and large, with two of their layers."""
    width, heads = {"base": (768, 12), "large": (1024, 16)}[size]
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads}
    folder = write_random_bert(tmp_path, **E5_SMALL | sizes | {"num_hidden_layers": 2, "vocab_size": 1000})
    assert_parity(folder, *ragged_batch([30, 512, 1, 7], 1000), "float32")


def test_padding_and_neighbours_change_nothing(tiny_bert):
    checkpoint = e5ref.read_checkpoint(tiny_bert)
    input_ids, attention_mask = ragged_batch([5, 12, 3], 40)
    together = our_run(checkpoint, input_ids, attention_mask)["last_hidden_state"]
    assert not together[attention_mask == 0].any()
    alone = our_run(checkpoint, input_ids[:1, :5], attention_mask[:1, :5])["last_hidden_state"]
    np.testing.assert_array_equal(together[0, :5], alone[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_point_keeps_the_dtype(tiny_bert, dtype):
    run = our_run(e5ref.read_checkpoint(tiny_bert, dtype=dtype), *ragged_batch([5, 3], 40))
    assert {name: str(array.dtype) for name, array in run.items()} == dict.fromkeys(run, dtype)


def test_tap_does_not_change_the_result(tiny_bert):
    checkpoint = e5ref.read_checkpoint(tiny_bert)
    batch = ragged_batch([5, 3], 40)
    untapped = numpy_model.embed(checkpoint.params, *batch, config=checkpoint.config)
    np.testing.assert_array_equal(untapped, our_run(checkpoint, *batch)["normalized"])


def test_linear_by_hand():
    x = np.array([[1.0, 2.0]])
    weight = np.array([[1.0, 0.0], [0.0, 10.0], [3.0, 4.0]])  # [out 3, in 2]
    np.testing.assert_array_equal(numpy_model.linear(x, weight, np.array([0.5, 0.0, -1.0])), [[1.5, 20.0, 10.0]])


def test_layer_norm_by_hand():
    """1 and 3 have mean 2 and variance 1; with an epsilon of 3 the divisor is 2."""
    x = np.array([[1.0, 3.0], [5.0, 5.0]])
    result = numpy_model.layer_norm(x, np.array([2.0, 4.0]), np.array([10.0, 20.0]), 3.0)
    np.testing.assert_array_equal(result, [[9.0, 22.0], [10.0, 20.0]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_layer_norm_adds_up_well(dtype):
    """The variance as math.fsum has it: in float64 this is the truth that others are judged by.

    Weights kept in float16 are the worst case: squares on a coarse grid are rounded the same way again and again.
    """
    width = 1024
    rows = np.random.default_rng(0).normal(size=(50, width)).astype(np.float16).astype(dtype)
    scaled = numpy_model.layer_norm(rows.copy(), np.ones(width, dtype), np.zeros(width, dtype), 1e-12)
    for row, ours in zip(rows.astype(np.float64), scaled.astype(np.float64), strict=True):
        centred = row - math.fsum(row) / width
        expected = centred / math.sqrt(math.fsum(centred**2) / width + 1e-12)
        assert np.abs(ours - expected).max() < LAYER_NORM_ULP * np.finfo(dtype).eps * np.abs(expected).max()


def test_average_pool_by_hand():
    states = np.array([[[1.0, 2.0], [3.0, 6.0], [99.0, 99.0]], [[5.0, 7.0], [99.0, 99.0], [99.0, 99.0]]])
    attention_mask = np.array([[1, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(numpy_model.average_pool(states, attention_mask), [[2.0, 4.0], [5.0, 7.0]])


def test_cls_pool_takes_the_first_real_token():
    states = np.arange(12.0).reshape(2, 3, 2)
    attention_mask = np.array([[1, 1, 0], [0, 1, 1]])
    np.testing.assert_array_equal(numpy_model.cls_pool(states, attention_mask), [[0.0, 1.0], [8.0, 9.0]])


def test_l2_normalize_by_hand():
    np.testing.assert_array_equal(
        numpy_model.l2_normalize(np.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0.0, 0.0]]
    )


def test_average_of_packed_texts_by_hand():
    """Two texts, with padding between; one, whose row is full; none."""
    states = np.array([[[1.0], [3.0], [99.0], [5.0]], [[2.0], [4.0], [6.0], [8.0]], [[99.0], [99.0], [99.0], [99.0]]])
    attention_mask = np.array([[1, 1, 0, 2], [1, 1, 1, 1], [0, 0, 0, 0]])
    pooled = numpy_model.average_pool(states, attention_mask, 3)
    np.testing.assert_array_equal(pooled[:, 0], [2, 5, 0, 5, 0, 0, 0, 0, 0])


def test_first_tokens_of_packed_texts_by_hand():
    states = np.arange(8.0).reshape(2, 4, 1)
    attention_mask = np.array([[0, 1, 1, 2], [1, 0, 2, 3]])
    assert numpy_model.cls_pool(states, attention_mask, 3)[[0, 1, 3, 4, 5], 0].tolist() == [1, 3, 4, 6, 7]


@pytest.mark.parametrize("pool", [numpy_model.average_pool, numpy_model.cls_pool])
def test_more_texts_than_said_are_refused(pool):
    with pytest.raises(ValueError, match="numbers 3 texts of a row, but texts_per_row is 2"):
        pool(np.ones((1, 3, 2)), np.array([[1, 2, 3]]), 2)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_packed_is_padded_is_row_by_row(dtype):
    """To the bit, where the BLAS gives a row's products the same bits whatever stands beside it."""
    config = e5ref.BertConfig("bert", 40, 384, 1, 12, 1536, 64, 2, 1e-12, 0)
    random = np.random.default_rng(0)
    params = e5ref.build_params(lambda _name, shape: random.normal(0, 0.1, shape).astype(dtype), config)
    batch = packed_batch([[1, 40, 3], [-2, 5, -1, 17, 4, -3], [3] * 20, [64]], 40)
    texts = text_lengths(batch[1]).ravel() > 0
    packed = numpy_model.embed(params, *batch, config=config, texts_per_row=20)[texts]
    ids, mask = one_text_a_row(*batch)
    ids[3], mask[3] = np.roll(ids[3], 2), np.roll(mask[3], 2)  # padding on the left moves a text's positions
    padded = numpy_model.embed(params, ids, mask, config=config)
    alone = np.vstack(
        [
            numpy_model.embed(params, row[None, : last + 1], real[None, : last + 1], config=config)
            for row, real in zip(ids, mask, strict=True)
            for last in [np.flatnonzero(real)[-1]]
        ]
    )
    shapes = [(384, 384), (384, 1536), (1536, 384)]
    if all(rows_are_independent(*shape, dtype) for shape in shapes):
        np.testing.assert_array_equal(packed, padded)
        np.testing.assert_array_equal(packed, alone)
    assert np.abs(packed - padded).max() <= VECTORS[dtype]
    assert np.abs(packed - alone).max() <= VECTORS[dtype]


@pytest.mark.parametrize("alternate", [False, True])
@pytest.mark.parametrize("mask", [[[1, 1], [1, 0]], [[1, 1, 2]], [[1, 0, 1, 0, 2]]])
def test_attention_by_hand(monkeypatch, mask, alternate):
    """Scores of 0 attend to all tokens alike, so the context is the average of the values, the output its double."""
    zero, one = np.zeros((2, 2)), np.eye(2)
    layer = e5ref.build_params(lambda _name, shape: np.zeros(shape), config := tiny_config()).layers[0]
    layer = layer._replace(
        query=Affine(zero, np.zeros(2)), value=Affine(one, np.zeros(2)), attention_output=Affine(2 * one, np.zeros(2))
    )
    monkeypatch.setattr(rows, "rows_alternate", lambda: alternate)
    mask = np.array(mask)  # two texts, of two tokens and of one
    states = rows.rows_of(np.array([[1.0, 10.0], [3.0, 30.0], [7.0, 70.0]]), mask)
    if alternate:
        states[np.delete(np.arange(12), rows.token_rows(mask))] = np.nan  # rows of no token, which must not matter
    result = numpy_model.self_attention(layer, states, mask, config=config)
    np.testing.assert_array_equal(rows.tokens_of(result, mask), [[4.0, 40.0], [4.0, 40.0], [14.0, 140.0]])


@pytest.mark.parametrize(
    ("input_ids", "attention_mask", "message"),
    [
        ([[1, 2]], [[1, 1, 1]], r"shapes \(1, 2\) and \(1, 3\)"),
        ([1, 2], [1, 1], "must both be"),
        ([[1, 2]], [[1, 3]], "must hold 0 for padding and 1, 2"),
        ([[1, 2]], [[2, 2]], "must hold 0 for padding and 1, 2"),
        ([[1, 2, 3]], [[1, 2, 1]], "must hold 0 for padding and 1, 2"),
        ([[1, 2]], [[1, -1]], "must hold 0 for padding and 1, 2"),
        (np.zeros((1, 0), int), np.zeros((1, 0), int), "row 0 without"),
        ([[1.0, 2.0]], [[1, 1]], "must be whole numbers, but are float64 and int64"),
        ([[1, 2]], [[1.0, 1.0]], "must be whole numbers, but are int64 and float64"),
        ([[1, 2], [1, 2]], [[1, 1], [0, 0]], "row 1 without"),
        ([[1, 5]], [[1, 1]], r"input_ids\[0, 1\] is 5, outside"),
        ([[1, -1]], [[1, 1]], r"input_ids\[0, 1\] is -1, outside"),
        ([[1] * 5], [[1] * 5], "a text of 5 tokens, but the model 4 positions"),
        ([[1] * 8], [[1, 1, 1, 2, 2, 2, 2, 2]], "a text of 5 tokens, but the model 4 positions"),
    ],
)
def test_bad_batches_are_refused(input_ids, attention_mask, message):
    params = e5ref.build_params(lambda _name, shape: np.ones(shape), config := tiny_config())
    with pytest.raises(ValueError, match=message):
        numpy_model.forward(params, np.array(input_ids), np.array(attention_mask), config=config)


def test_unknown_pooling_is_refused():
    params = e5ref.build_params(lambda _name, shape: np.ones(shape), config := tiny_config())
    with pytest.raises(ValueError, match="pooling is 'max'"):
        numpy_model.embed(params, np.array([[1]]), np.array([[1]]), config=config, pooling="max")


@pytest.mark.parametrize("kind", [bool, np.int32, np.uint8, np.uint64])
def test_other_kinds_of_whole_numbers(tiny_bert, kind):
    checkpoint = e5ref.read_checkpoint(tiny_bert)
    rows = [[5], [-3, 9], [3]] if kind is bool else [[5, 4], [12], [-1, 3, 2, -1, 1]]
    input_ids, attention_mask = packed_batch(rows, 40)
    expected = our_run(checkpoint, input_ids, attention_mask)["normalized"]
    ids = np.asfortranarray(input_ids.astype(np.int32 if kind is bool else kind))
    actual = our_run(checkpoint, ids, attention_mask.astype(kind))["normalized"]
    np.testing.assert_array_equal(actual, expected)


def test_no_texts(tiny_bert):
    run = our_run(e5ref.read_checkpoint(tiny_bert), np.zeros((0, 3), int), np.zeros((0, 3), int))
    assert run["normalized"].shape == (0, 32)
    assert run["layers.0.attention_probabilities"].shape == (0, 4, 3, 3)


def test_a_recorder_that_is_empty_is_a_recorder_all_the_same(tiny_bert):
    class Recorder(dict):
        def __call__(self, name, array):
            if name.endswith("output"):
                self[name] = array

    checkpoint, recorder = e5ref.read_checkpoint(tiny_bert), Recorder()
    numpy_model.forward(checkpoint.params, *ragged_batch([2], 40), config=checkpoint.config, tap=recorder)
    assert next(iter(recorder)) == "layers.0.attention_output"


def test_reads_on_one_sitting():
    """The reference stays under 250 lines, and holds the functions of the design in the order of the forward pass."""
    source = inspect.getsource(numpy_model)
    assert source.count("\n") < 250
    names = [
        *("linear", "layer_norm", "gelu", "embed_tokens", "self_attention", "feed_forward", "encoder_layer"),
        *("forward", "average_pool", "cls_pool", "dense", "l2_normalize", "embed"),
    ]
    places = [source.index(f"\ndef {name}(") for name in names]
    assert places == sorted(places)
