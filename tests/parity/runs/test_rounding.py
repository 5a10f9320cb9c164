"""What rounding costs, and how far the smallest mistakes are from it."""

import math

import numpy as np
import pytest

import e5ref
from e5ref.parity import compare
from e5ref.parity.altered.models import padded_model, round_params, round_to, rounded_model, run_reference
from e5ref.parity.runs.rounding import FACTOR, ErrorSum, cost_at, least_costs, rounding_costs, token_values
from tests.measure.parity.small_mistakes import PLAIN_LOOPS, SMALL, judged, reference_of
from tests.tools.batches import ragged_batch
from tests.tools.runs import reference_run, run_of


@pytest.fixture(scope="module")
def reference(minilm):
    return reference_of(minilm)


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
    assert token_values(states, mask, 1).tolist() == [[8, 9], [10, 11]]
    assert token_values(states[:, 0], mask, 1).tolist() == [[6, 7]]
    squares = np.arange(36.0).reshape(2, 2, 3, 3)  # texts, heads, queries, keys
    assert token_values(squares, mask, 1).tolist() == [[22, 23, 31, 32], [25, 26, 34, 35]]
    errors = ErrorSum()
    assert errors.rms == errors.max == 0
    errors.add(np.array([3.0]))
    errors.add(np.array([[-4.0, 0.0]]))
    assert (errors.max, errors.rms) == (4, pytest.approx(math.sqrt(25 / 3)))


@pytest.mark.parametrize("mistake", SMALL)
def test_small_mistakes_are_far_from_rounding(mistake, minilm, reference):
    replacements, point = SMALL[mistake]
    comparison = judged(e5ref.read_checkpoint(minilm), reference, replacements)
    assert comparison.first_departure.name == point
    assert comparison.first_departure.factor > 20 * FACTOR


def test_plain_loops_pass(minilm, reference):
    """Sums in the worst order are rounding, too."""
    assert judged(e5ref.read_checkpoint(minilm), reference, PLAIN_LOOPS).passed


def test_plain_loops_pass_on_a_single_word(minilm):
    """A dimension of [CLS] is far larger than all else there, and happens to be rounded well in the reference."""
    tokens = e5ref.load(minilm).tokenize(["hello"])
    reference = reference_run(minilm, tokens["input_ids"], tokens["attention_mask"])
    assert judged(e5ref.read_checkpoint(minilm), reference, PLAIN_LOOPS).passed


def test_the_largest_number_costs_at_least_as_much_of_it_as_the_others():
    scale = ErrorSum()
    scale.add(np.array([1.0] * 99 + [20.0]))
    peak = 20 / math.sqrt(4.99)
    assert least_costs(3e-7, 2e-7, scale, 2**-24) == (pytest.approx(2e-7 * peak, rel=1e-9), 2e-7)
    assert least_costs(3e-6, 2e-7, scale, 2**-24) == (3e-6, 2e-7)
    assert least_costs(0, 0, scale, 2**-24) == pytest.approx((2**-24 * 20, 2**-24 * math.sqrt(4.99)), rel=1e-9)
    assert least_costs(0, 0, ErrorSum(), 2**-24) == (0, 0)


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


def test_a_signalling_nan_is_nan_without_a_warning():
    """A damaged file may hold one; that warnings are errors here makes this fail otherwise."""
    array = np.full((1, 2, 3), 0x7FA00000, np.uint32).view(np.float32)
    assert np.isnan(token_values(array, np.ones((1, 2), int), 0)).all()
