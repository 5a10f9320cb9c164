"""What rounding costs, and how far the smallest mistakes are from it."""

import math

import numpy as np
import pytest

import e5ref
from e5ref import numpy_model
from e5ref.parity import compare
from e5ref.parity.compare import FACTOR
from e5ref.parity.reference import model_copy, padded_model, round_params, round_to, rounded_model, run_reference
from e5ref.parity.rounding import ErrorSum, cost_at, rounding_costs, text_rows
from tests.parity.runs import reference_run, run_of
from tests.test_numpy_model import ragged_batch

TEXTS = ["query: how much protein should a female eat", "a", "passage: naïve café, 日本語", "passage: " + "green " * 30]


@pytest.fixture(scope="module")
def reference(minilm):
    tokens = e5ref.load(minilm).tokenize(TEXTS)
    return reference_run(minilm, tokens["input_ids"], tokens["attention_mask"])


def test_costs_are_errors_from_float64_over_real_tokens(tiny_bert):
    ids, mask = ragged_batch([9, 1, 30, 2], 40)
    exact, single = (e5ref.read_checkpoint(tiny_bert, dtype=dtype) for dtype in ("float64", "float32"))
    costs = rounding_costs(exact, ids, mask, only=["layers.1.key", "pooled"])
    assert set(costs) == {"float32", "float16", "bfloat16"}
    truth = run_reference(exact, ids, mask)
    for dtype, weights in (("float32", single.params), ("bfloat16", round_params(single.params, "bfloat16"))):
        points = run_reference(single, ids, mask, model=rounded_model(dtype), params=weights)
        errors = (points["layers.1.key"] - truth["layers.1.key"])[mask == 1]
        assert costs[dtype]["layers.1.key"]["max"] == pytest.approx(np.abs(errors).max())
        assert costs[dtype]["layers.1.key"]["rms"] == pytest.approx(np.sqrt(np.mean(errors**2)))
        assert list(costs[dtype]) == ["layers.1.key", "pooled"]
    assert cost_at(costs, "float64", "pooled")[0] == pytest.approx(costs["float32"]["pooled"]["max"] * 2.0**-29)
    with pytest.raises(ValueError, match="truth is float64"):
        rounding_costs(single, ids, mask)


def test_rows_of_a_text():
    mask = np.array([[1, 1, 1], [0, 1, 1]])
    states = np.arange(12.0).reshape(2, 3, 2)
    assert text_rows(states, mask, 1).tolist() == [[8, 9], [10, 11]]
    assert text_rows(states[:, 0], mask, 1).tolist() == [[6, 7]]
    squares = np.arange(36.0).reshape(2, 2, 3, 3)  # texts, heads, queries, keys
    assert text_rows(squares, mask, 1).tolist() == [[22, 23, 31, 32], [25, 26, 34, 35]]
    errors = ErrorSum()
    assert errors.rms == errors.max == 0
    errors.add(np.array([3.0]))
    errors.add(np.array([[-4.0, 0.0]]))
    assert (errors.max, errors.rms) == (4, pytest.approx(math.sqrt(25 / 3)))


def tanh_gelu(x):
    return x * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3))) / 2


def epsilon_of_1e5(x, weight, bias, eps):
    return numpy_model.layer_norm(x, weight, bias, 1e-5)


def variance_over_n_minus_1(x, weight, bias, eps):
    return numpy_model.layer_norm(x, weight * np.float32(math.sqrt(1 - 1 / x.shape[1])), bias, eps)


def products_of_tf32(x, weight, bias):
    """As an NVIDIA card multiplies float32 unless it is told otherwise: 10 bits after the point."""
    return numpy_model.linear(_tf32(x), _tf32(weight), bias)


def _tf32(x):
    return ((x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


# The mistakes that change numbers least: what is done wrong, and at which point that is to be noticed first.
SMALL = {
    "tanh GELU": (lambda: model_copy(gelu=tanh_gelu), "layers.0.feed_forward_activation"),
    "epsilon of 1e-5": (lambda: model_copy(layer_norm=epsilon_of_1e5), "embeddings"),
    "variance over n - 1": (lambda: model_copy(layer_norm=variance_over_n_minus_1), "embeddings"),
    "products of TF32": (lambda: model_copy(linear=products_of_tf32), "layers.0.query"),
    "mask of -10": (lambda: padded_model(-10.0), "layers.0.attention_probabilities"),
}


@pytest.mark.parametrize("mistake", [*SMALL, "weights of float16"])
def test_small_mistakes_are_far_from_rounding(mistake, minilm, reference):
    checkpoint, model, params, point = e5ref.read_checkpoint(minilm), numpy_model, None, "embeddings"
    if mistake in SMALL:
        make, point = SMALL[mistake]
        model = make()
    else:
        params = round_params(checkpoint.params, "float16")
    ids, mask = reference.input_ids, reference.attention_mask
    comparison = compare(run_of(run_reference(checkpoint, ids, mask, model=model, params=params), reference), reference)
    assert comparison.first_departure.name == point
    assert comparison.first_departure.factor > 20 * FACTOR


def in_plain_loops(x, weight, bias):
    """A product as a port writes it first: one term after another, added up in float32."""
    result = np.zeros((len(x), len(weight)), np.float32)
    for column in range(x.shape[1]):
        result += x[:, column, None] * weight[None, :, column]
    return result + bias


def layer_norm_in_plain_loops(x, weight, bias, eps):
    centred = x - np.add.accumulate(x, axis=1)[:, -1:] / np.float32(x.shape[1])
    variance = np.add.accumulate(centred * centred, axis=1)[:, -1:] / np.float32(x.shape[1])
    return centred / np.sqrt(variance + np.float32(eps)) * weight + bias


def test_plain_loops_pass(minilm, reference):
    """Sums in the worst order are rounding, too."""
    plain = {"linear": in_plain_loops, "layer_norm": layer_norm_in_plain_loops}
    model = model_copy(average_pool=rounded_model("float32").average_pool, **plain)
    checkpoint = e5ref.read_checkpoint(minilm)
    points = run_reference(checkpoint, reference.input_ids, reference.attention_mask, model=model)
    assert compare(run_of(points, reference), reference).passed


def test_a_single_short_text_leaves_room_for_rounding(minilm):
    """Few numbers, of which some cost nothing by chance: one token attends to itself with 1 exactly."""
    ids, mask = np.array([[101]]), np.array([[1]])
    reference = reference_run(minilm, ids, mask)
    assert reference.rounding["float32"]["layers.0.attention_probabilities"]["max"] == 0
    points = run_reference(e5ref.read_checkpoint(minilm), ids, mask, model=padded_model())
    assert compare(run_of(points, reference), reference).passed
    nearly = {name: array * np.float32(1 - 2**-24) for name, array in points.items() if "probabilities" in name}
    assert compare(run_of(points | nearly, reference), reference).passed
    half = {name: round_to(array, "float16") for name, array in points.items()}
    assert not compare(run_of(half, reference), reference).passed
