"""The judge's verdicts: what is rounding passes, what is not is found where it is, and nothing broken passes."""

import json
from dataclasses import replace

import numpy as np
import pytest

import e5ref
from e5ref import numpy_model
from e5ref.parity import Run, RunError, assert_parity, compare, write_run
from e5ref.parity.altered.models import model_copy, run_reference
from e5ref.parity.judge.comparison import feeds
from e5ref.parity.judge.report import html_report, json_report, text_report
from e5ref.parity.runs.rounding import FACTOR
from tests.tools.batches import ragged_batch
from tests.tools.runs import reference_run, run_of

IDS, MASK = ragged_batch([9, 1, 30, 2], 40)
TEXTS = ["one", "two", "three", "four"]


@pytest.fixture(scope="module")
def reference(tiny_bert) -> Run:
    run = reference_run(tiny_bert, IDS, MASK, texts=TEXTS)
    tokens = [[f"<{token}>" for token in row[mask == 1]] for row, mask in zip(IDS, MASK, strict=True)]
    return Run(run.arrays, {**run.metadata, "tokens": json.dumps(tokens)})


@pytest.fixture(scope="module")
def checkpoint(tiny_bert):
    return e5ref.read_checkpoint(tiny_bert)


@pytest.fixture(scope="module")
def right(checkpoint, reference) -> Run:
    return run_of(run_reference(checkpoint, IDS, MASK), reference)


def changed(run: Run, **arrays) -> Run:
    """A run with some arrays changed, or left out where they are None."""
    merged = {**run.arrays, **{name.replace("__", "."): array for name, array in arrays.items()}}
    return Run({name: array for name, array in merged.items() if array is not None}, run.metadata)


def verdict(comparison, name):
    return next(verdict for verdict in comparison.verdicts if verdict.name == name)


def test_a_right_run_passes(right, reference):
    comparison = compare(right, reference)
    assert comparison.passed
    assert comparison.first_departure is None
    assert [verdict.name for verdict in comparison.verdicts] == list(reference.points)
    assert all(verdict.factor <= FACTOR / 2 for verdict in comparison.verdicts)
    assert all(verdict.cosine > 1 - 1e-6 for verdict in comparison.verdicts)
    assert_parity(right, reference)


def test_the_figures_are_those_of_the_one_number_that_is_off(right, reference):
    array = right.points["layers.1.key"].copy()
    array[2, 17, 5] += 0.5
    array[0, 20, 0] += 9  # padding, which does not count
    comparison = compare(changed(right, layers__1__key=array), reference)
    found = comparison.first_departure
    assert (found.name, found.verdict) == ("layers.1.key", "DIFF")
    assert [v.name for v in comparison.verdicts if v.verdict != "OK"] == ["layers.1.key"]
    place = found.worst[0]
    assert (place.text, place.token, place.index) == (2, 17, (5,))
    assert place.string == f"<{IDS[2, 17]}>"
    assert place.value - place.expected == pytest.approx(0.5, abs=1e-4)
    expected = reference.points["layers.1.key"]
    scale, cost = np.abs(expected).max(), reference.rounding["float32"]["layers.1.key"]
    count = MASK.sum() * expected.shape[-1]
    assert found.max_error == pytest.approx(0.5, rel=1e-4)
    assert found.rms_error == pytest.approx(0.5 / count**0.5, rel=1e-4)
    assert found.relative == pytest.approx(0.5 / scale, rel=1e-4)
    assert found.ulps == pytest.approx(0.5 / np.spacing(np.float32(scale)), rel=1e-4)
    assert found.factor == pytest.approx(max(0.5 / cost["max"], 0.5 / count**0.5 / cost["rms"]), rel=1e-4)
    assert found.allowed == pytest.approx(FACTOR * cost["max"])
    wrong, truth = expected[2, 17].copy(), expected[2, 17]
    wrong[5] += 0.5
    assert found.cosine == pytest.approx(wrong @ truth / np.linalg.norm(wrong) / np.linalg.norm(truth), rel=1e-6)


def test_an_error_of_many_small_parts_is_found_by_its_mean(right, reference):
    """Each part stays within what passes at most; rounding would not err so everywhere."""
    cost = reference.rounding["float32"]["pooled"]
    array = reference.points["pooled"] + 1.01 * FACTOR * cost["rms"]
    assert 1.01 * cost["rms"] < 0.9 * cost["max"]
    found = verdict(compare(changed(right, pooled=array), reference), "pooled")
    assert found.verdict == "DIFF"
    assert found.max_error < found.allowed


def test_a_place_in_the_attention_is_head_and_token(right, reference):
    array = right.points["layers.0.attention_probabilities"].copy()
    array[2, 3, 11, 7] += 0.1
    found = compare(changed(right, layers__0__attention_probabilities=array), reference).first_departure
    assert (found.worst[0].text, found.worst[0].token, found.worst[0].index) == (2, 11, (3, 7))


def test_padding_may_be_elsewhere_and_longer(right, reference):
    """Left padding, and more of it: the same real tokens, so the same run."""

    def moved(array, fill=0):
        if array.ndim == 2 and array.shape != MASK.shape:
            return array
        square = array.ndim == 4
        width = 7
        shape = [
            size + width if axis in ((2, 3) if square else (1,)) else size for axis, size in enumerate(array.shape)
        ]
        result = np.full(shape, fill, array.dtype)
        for text, length in enumerate(MASK.sum(axis=1)):
            if square:
                result[text, :, -length:, -length:] = array[text, :, :length, :length]
            else:
                result[text, -length:] = array[text, :length]
        return result

    arrays = {name: moved(array, np.nan) for name, array in right.points.items()}
    ids = {"input_ids": moved(IDS), "attention_mask": moved(MASK)}
    assert compare(Run(ids | arrays), reference).passed


MISTAKES = {
    "epsilon of 1e-5": (
        {"layer_norm": lambda x, weight, bias, eps: numpy_model.layer_norm(x, weight, bias, 1e-5)},
        "embeddings",
    ),
    "tanh GELU": (
        {"gelu": lambda x: x * (1 + np.tanh(np.float32(0.79788456) * (x + np.float32(0.044715) * x**3))) / 2},
        "layers.0.feed_forward_activation",
    ),
    "[CLS] for the average": ({"average_pool": numpy_model.cls_pool}, "pooled"),
}


@pytest.mark.parametrize(("replacements", "point"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_found_where_it_is(replacements, point, checkpoint, reference):
    points = run_reference(checkpoint, IDS, MASK, model=model_copy(**replacements))
    comparison = compare(run_of(points, reference), reference)
    assert comparison.first_departure.name == point
    assert set(comparison.feeds(point).values()) <= {"OK"}
    with pytest.raises(AssertionError, match=f"First departure: {point}") as caught:
        assert_parity(run_of(points, reference), reference)
    assert "normalized" not in str(caught.value)


def test_what_feeds_a_point():
    assert feeds("embeddings", 3) == []
    assert feeds("layers.0.query", 3) == ["embeddings"]
    assert feeds("layers.2.context", 3) == ["layers.2.attention_probabilities", "layers.2.value"]
    assert feeds("layers.2.attention_output", 3) == ["layers.2.context", "layers.1.output"]
    assert feeds("last_hidden_state", 3) == ["layers.2.output"]
    assert feeds("normalized", 3) == ["pooled"]


def test_what_either_lacks_is_missing_unless_names_are_given(right, reference):
    less = Run({name: array for name, array in right.arrays.items() if name != "layers.1.value"}, right.metadata)
    for run, of, who in ((less, reference, "the run"), (right, changed(reference, layers__1__value=None), "reference")):
        comparison = compare(run, of)
        assert not comparison.passed
        assert verdict(comparison, "layers.1.value").verdict == "MISSING"
        assert who in verdict(comparison, "layers.1.value").detail
        assert comparison.first_departure.name == "layers.1.value"
        assert compare(run, of, only=["layers.0.*", "normalized"]).passed
    vectors = Run({name: right.arrays[name] for name in ("input_ids", "attention_mask", "normalized")}, right.metadata)
    assert not compare(vectors, reference).passed
    assert [v.name for v in compare(vectors, reference, only=["normalized"]).verdicts] == ["normalized"]
    # A point that departs is told before one that is not there.
    assert compare(changed(less, pooled=right.arrays["pooled"] + 1), reference).first_departure.name == "pooled"
    with pytest.raises(RunError, match=r"neither run has a point 'layers\.7\.\*'; they have embeddings, layers\.0"):
        compare(right, reference, only=["layers.7.*"])


def test_wrong_names_are_missing_on_both_sides(right, reference):
    comparison = compare(changed(right, embeddings=None, embedding=right.arrays["embeddings"]), reference)
    assert verdict(comparison, "embeddings").verdict == "MISSING"
    assert verdict(comparison, "embedding").verdict == "MISSING"


SHAPES = {
    "another width": lambda array: array[..., :-1],
    "a text less": lambda array: array[:-1],
    "flat": lambda array: array.reshape(len(array), -1),
    "one number": lambda array: np.array(1.0),
    "tokens and dimensions swapped": lambda array: array.swapaxes(1, 2),
    "no dimension at all": lambda array: array[..., :0],
}


@pytest.mark.parametrize("change", SHAPES.values(), ids=SHAPES)
def test_another_shape(change, right, reference):
    comparison = compare(changed(right, layers__0__output=change(right.points["layers.0.output"])), reference)
    assert (comparison.first_departure.name, comparison.first_departure.verdict) == ("layers.0.output", "SHAPE")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_a_number(value, right, reference):
    array = right.points["layers.0.output"].copy()
    array[2, 4, 6] = value
    comparison = compare(changed(right, layers__0__output=array), reference)
    assert (comparison.first_departure.name, comparison.first_departure.verdict) == ("layers.0.output", "NAN")
    assert comparison.first_departure.detail == f"{value} at text 2, token 4 (<{IDS[2, 4]}>), dimension 6"
    array[2, 4, 6] = 0
    array[0, 20] = value  # padding
    right_again = changed(right, layers__0__output=array)
    assert verdict(compare(right_again, reference), "layers.0.output").verdict == "DIFF"


def with_inputs(run: Run, ids=IDS, mask=MASK, texts=None) -> Run:
    metadata = {"dtype": "float32"} | ({} if texts is None else {"texts": json.dumps(texts)})
    rows = len(ids)
    points = {name: array[:rows] for name, array in run.points.items()}
    return Run({"input_ids": ids, "attention_mask": mask} | points, metadata)


OTHER_ID = np.where(np.arange(30) == 3, IDS + 1, IDS)
SHORTER = MASK * (np.arange(30) < 20)
INPUTS = {
    "other ids": ({"ids": OTHER_ID}, rf"text 0, token 3 is {IDS[0, 3] + 1} instead of {IDS[0, 3]} \(<{IDS[0, 3]}>\)"),
    "other texts": ({"ids": OTHER_ID, "texts": ["uno", "two", "three", "four"]}, "text 0 is 'uno' instead of 'one'"),
    "fewer texts": ({"ids": IDS[:3], "mask": MASK[:3]}, "3 texts instead of 4"),
    "another order": ({"ids": IDS[[1, 0, 2, 3]], "mask": MASK[[1, 0, 2, 3]]}, "the same texts in a different order"),
    "cut": ({"mask": SHORTER}, "text 2 has 20 real tokens instead of 30: it is cut or masked differently"),
    "padding taken for text": ({"mask": np.ones_like(MASK)}, "text 0 has 30 real tokens instead of 9"),
}


@pytest.mark.parametrize(("inputs", "message"), INPUTS.values(), ids=INPUTS)
def test_other_inputs_have_a_verdict_of_their_own(inputs, message, right, reference):
    comparison = compare(with_inputs(right, **inputs), reference)
    assert not comparison.passed
    (found,) = comparison.verdicts
    assert found.name == "input_ids"
    with pytest.raises(AssertionError, match="not have the same inputs.*" + message):
        assert_parity(with_inputs(right, **inputs), reference)


def test_half_precision_is_judged_as_what_it_says_it_is(right, reference):
    rounded = {name: array.astype(np.float16) for name, array in right.points.items()}
    assert compare(run_of(rounded, reference, "float16"), reference).passed
    assert not compare(run_of(rounded, reference, "float32"), reference).passed
    assert not compare(run_of(right.points, reference, "float64"), reference).passed
    stored = {name: array.astype(np.float32) for name, array in reference.points.items()}
    in_float32 = run_of(stored, reference, "float64")
    assert not compare(in_float32, reference).passed  # what is stored is no float64
    assert compare(run_of(reference.points, reference, "float64"), reference).passed
    # A reference that is kept in float32, as golden kits are, cannot be held against a run in float64.
    kept = Run(stored | {name: reference.arrays[name] for name in ("input_ids", "attention_mask")}, reference.metadata)
    assert compare(run_of(reference.points, reference, "float64"), kept).passed
    assert compare(right, kept).passed


def test_a_reference_must_be_one(right, reference):
    for bad in (right, Run(reference.arrays, {"dtype": "float64"})):
        with pytest.raises(RunError, match="the reference must be a run of e5ref in float64"):
            compare(right, bad)
    rounding = {"float32": {name: cost for name, cost in reference.rounding["float32"].items() if name != "pooled"}}
    partial = Run(reference.arrays, {**reference.metadata, "rounding": json.dumps(rounding)})
    with pytest.raises(RunError, match="what rounding to float32 costs at 'pooled'"):
        compare(right, partial)
    with pytest.raises(RunError, match="what rounding to float16 costs at 'embeddings'"):
        compare(Run(right.arrays, {"dtype": "float16"}), partial)
    array = reference.arrays["pooled"].copy()
    array[0, 0] = np.nan
    with pytest.raises(RunError, match="the reference holds NaN or infinity at 'pooled'"):
        compare(right, changed(reference, pooled=array))
    with pytest.raises(RunError, match="the reference's 'pooled' has the unknown shape"):
        compare(right, changed(reference, pooled=array[0]))


def test_reports(right, reference):
    broken = changed(right, layers__0__key=right.points["layers.0.key"] * 1.01, embeddings=None)
    for run in (right, broken):
        comparison = compare(run, reference)
        text = text_report(comparison)
        assert len(text.split("\n\n")[0].splitlines()) == 1 + len(comparison.verdicts)
        data = json.loads(json.dumps(json_report(comparison), allow_nan=False))
        assert data["passed"] == comparison.passed
        assert [point["verdict"] for point in data["points"]] == [v.verdict for v in comparison.verdicts]
        page = html_report(comparison, "<b>run</b>")
        assert page.count("<circle") == sum(not v.detail for v in comparison.verdicts)
        assert "&lt;b&gt;run" in page
        assert "script" not in page
        assert "http" not in page
    assert data["first_departure"] == {"name": "layers.0.key", "fed_by": {"embeddings": "MISSING"}}
    assert "fed by embeddings, which is not compared" in text
    other = compare(with_inputs(right, ids=OTHER_ID), reference)
    for report in (text_report(other), html_report(other, "run")):
        assert "do not have the same inputs" in report
    perfect = compare(run_of(reference.points, reference, "float64"), reference)
    assert "<svg" in html_report(perfect, "the reference beside itself")


def test_the_page_names_the_worst_tokens(right, reference):
    array = right.points["last_hidden_state"].copy()
    array[2, 17] += 1
    page = html_report(compare(changed(right, last_hidden_state=array), reference), "run")
    assert f"text 2, token 17 (&lt;{IDS[2, 17]}&gt;)" in page


def test_a_verdict_of_no_points_never_passes(right, reference):
    comparison = compare(right, reference)
    assert not replace(comparison, verdicts=()).passed


def test_files_are_compared_as_runs_are(right, reference, tmp_path):
    write_run(right, tmp_path / "run.safetensors")
    write_run(reference, tmp_path / "reference.safetensors")
    assert compare(tmp_path / "run.safetensors", str(tmp_path / "reference.safetensors")) == compare(right, reference)
