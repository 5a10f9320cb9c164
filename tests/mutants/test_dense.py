"""Mistakes with the Dense layer after pooling: the twins' comparison, the judge and the diagnosis notice each."""

import numpy as np
import pytest

import e5ref
from e5ref import jax_model, numpy_model
from e5ref.parity import compare, diagnose, record
from e5ref.parity.altered.changes import DENSE_MISTAKES
from e5ref.parity.altered.models import model_copy
from tests.mutants.judged import Judged
from tests.mutants.planting import Mutant, copy_of
from tests.tools.checkpoints import write_dense, write_random_bert
from tests.tools.runs import first_departure, jax_run, our_run, run_of, transformers_run

NORMALISED_BEFORE = "vectors = dense(params.dense, l2_normalize(vectors))"

# By the names that the judge and the diagnosis have for them.
NUMPY_MUTANTS = {
    "the Dense layer left out": Mutant("embed", "vectors = dense", ""),
    "no activation after the Dense layer": Mutant("dense", "return", "return vectors"),
    "no bias in the Dense layer": Mutant(
        "dense", "linear(", "linear(rows_of(vectors, alone), params.weight, 0 * params.bias)"
    ),
    "normalised before the Dense layer": Mutant("embed", "vectors = dense", NORMALISED_BEFORE),
}
JAX_MUTANTS = NUMPY_MUTANTS | {
    "no bias in the Dense layer": Mutant("dense", "linear(", "linear(vectors, params.weight, 0 * params.bias)")
}


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> Judged:
    """As wide behind the Dense layer as before it, so that only the numbers tell."""
    folder = write_random_bert(tmp_path_factory.mktemp("dense") / "model")
    write_dense(folder, 32)
    return Judged(folder)


@pytest.fixture(scope="module")
def expected(judged):
    return transformers_run(judged.folder, *judged.batch, "float64")


def test_the_twins_agree_with_torch(judged, expected):
    for run in (our_run, jax_run):
        assert first_departure(run(judged.double, *judged.batch), expected, judged.batch[1], "float64") is None


@pytest.mark.slow
@pytest.mark.parametrize("name", DENSE_MISTAKES)
def test_mutant_is_noticed_where_it_is(name, judged, expected):
    for run, model, mutants in ((our_run, numpy_model, NUMPY_MUTANTS), (jax_run, jax_model, JAX_MUTANTS)):
        points = run(judged.double, *judged.batch, model=copy_of(model, mutants[name]))
        assert first_departure(points, expected, judged.batch[1], "float64").startswith("dense:")


def test_the_judge_passes_what_is_right(judged):
    comparison, explanations = judged.judge(judged.run(numpy_model))
    assert comparison.passed
    assert explanations == []
    assert comparison.feeds("normalized") == {"dense": "OK"}
    assert comparison.feeds("dense") == {"pooled": "OK"}


@pytest.mark.parametrize("name", DENSE_MISTAKES)
def test_the_judge_names_it(name, judged):
    comparison, explanations = judged.judge(judged.run(copy_of(numpy_model, NUMPY_MUTANTS[name])))
    assert comparison.first_departure.name == "dense"
    assert explanations[0].mistake == name
    assert explanations[0].explains


def test_the_judge_names_a_dense_layer_that_has_no_point(judged):
    """A port that knows nothing of the layer records nothing there."""
    run = judged.run(copy_of(numpy_model, NUMPY_MUTANTS["the Dense layer left out"]))
    points = {name: array for name, array in run.points.items() if name != "dense"}
    comparison, explanations = judged.judge(run_of(points, judged.reference))
    assert comparison.first_departure.name == "normalized"
    assert explanations[0].mistake == "the Dense layer left out"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_rounding_costs_there(judged, dtype):
    cost = judged.reference.rounding[dtype]["dense"]
    assert 0 < cost["rms"] < cost["max"] < {"float32": 1e-5, "float16": 0.1, "bfloat16": 0.5}[dtype]


@pytest.mark.parametrize("features", [24, 32, 40])
@pytest.mark.parametrize("name", [None, *DENSE_MISTAKES])
def test_the_diagnosis_names_it(name, features, tmp_path):
    folder = write_random_bert(tmp_path)
    write_dense(folder, features)
    model = e5ref.load(folder)
    change = model_copy() if name is None else model_copy(dense=DENSE_MISTAKES[name])
    texts = [f"query: {text}" for text in ("naïve Café", "a", "what is the light of the sun?", "dog, cat and man play")]
    batch = model.tokenize(texts)
    settings = {"config": model.checkpoint.config, "pooling": model.checkpoint.settings.pooling}
    vectors = change.embed(model.checkpoint.params, batch["input_ids"], batch["attention_mask"], **settings)
    found = diagnose(texts, np.asarray(vectors), [model])
    assert found.verdict == ("correct" if name is None else "found"), str(found)
    if name is not None:
        assert name in found.findings[0].deviations


@pytest.mark.peer
@pytest.mark.parametrize("backend", ["jax", "transformers", "sentence-transformers"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_every_backend_records_it(backend, dtype, tmp_path):
    folder = write_random_bert(tmp_path)
    write_dense(folder, 40)
    reference = record(folder, ["a cat", "the light of the sun"], dtype="float64")
    run = record(folder, ["a cat", "the light of the sun"], backend=backend, dtype=dtype)
    assert list(run.points)[-3:] == ["pooled", "dense", "normalized"]
    assert run.points["dense"].shape == run.points["normalized"].shape == (2, 40)
    assert compare(run, reference).passed
