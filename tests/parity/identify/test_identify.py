"""Mistakes of every kind of operation, planted in a small model: what is said of each, and what is not said."""

import re

import numpy as np
import pytest

import e5ref
from e5ref.parity import compare
from e5ref.parity.altered.models import run_reference
from e5ref.parity.identify.identify import described_points, identify
from e5ref.parity.judge.explain import explain
from tests.parity.identify.further import FURTHER
from tests.parity.identify.reported import REPORTED, planted
from tests.tools.batches import ragged_batch
from tests.tools.runs import reference_run, run_of

IDS, MASK = ragged_batch([9, 4, 30, 12, 6], 40)
IDS = IDS * MASK  # id 0 is padding
BY_NAME = {mistake.name: mistake for mistake in [*REPORTED, *FURTHER]}

# One or two of each operation; tests/measure/parity/identify.py has them all, on three models.
NAMES = [
    "positions stop at 7",
    "position added after the LayerNorm",
    "the closing token takes row 0 of the word embeddings",
    "epsilon 1e-4",
    "LayerNorm multiplies by 1 + weight",
    "the key's bias for the query",
    "fused query, key and value split head by head",
    "feed_forward_up read as [in, out]",
    "weights of 8 bits, one scale each",
    "inputs of products in bfloat16",
    "the last 8 inputs of a product left out",
    "exp2 for exp",
    "a window of 4 tokens on either side",
    "ALiBi",
    "dropout of 10 % left on",
    "values of the next token",
    "GELU stops at 1.5",
    "bias after GELU",
    "the residual counted twice",
    "later tokens weigh more",
    "every text has the vector of the text before it",
    "divided by the norm plus 0.01",
    "only the first text is normalised",
    *(mistake.name for mistake in FURTHER),
]


@pytest.fixture(scope="module")
def double(tiny_bert):
    return e5ref.read_checkpoint(tiny_bert, dtype="float64")


@pytest.fixture(scope="module")
def single(tiny_bert):
    return e5ref.read_checkpoint(tiny_bert)


@pytest.fixture(scope="module")
def reference(tiny_bert):
    return reference_run(tiny_bert, IDS, MASK)


def found(run, reference, checkpoint):
    """All that is identified in a run."""
    comparison = compare(run, reference)
    first = comparison.first_departure
    names = [verdict.name for verdict in comparison.verdicts if verdict.verdict in ("OK", "DIFF")]
    return identify(run, reference, checkpoint, names[names.index(first.name) :], first.worst[0].text)


def run_with(reference, checkpoint, *names):
    model, changed = planted(*(BY_NAME[name] for name in names), checkpoint=checkpoint, input_ids=IDS)
    return run_of(run_reference(changed, IDS, MASK, model=model), reference)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_named_and_nothing_else_is(name, reference, single, double):
    identification = found(run_with(reference, single, name), reference, double)
    assert identification.holds
    assert identification.findings[0].points[0] == BY_NAME[name].point
    for finding in identification.findings:
        assert re.search(BY_NAME[name].says, f"{', '.join(finding.points)}: {finding.says}"), finding


def test_two_mistakes_are_both_named(reference, single, double):
    pair = "the query's bias added twice", "divided by the squared norm"
    identification = found(run_with(reference, single, *pair), reference, double)
    assert [finding.says for finding in identification.findings] == [
        "the bias is added twice",
        "vectors are divided by their squared norm",
    ]
    assert identification.holds


def test_what_has_no_name_is_measured_and_not_named(reference, single, double):
    """A weight that no rule gives, with too few tokens to solve for it: what is measured is true, and is no name."""
    identification = found(run_with(reference, single, "value plus a matrix of rank 1"), reference, double)
    assert not identification.holds
    assert [finding.named for finding in identification.findings] == [False]
    assert "W′ − W has rank 1" in identification.findings[0].says
    run = run_of(run_reference(single, IDS, MASK), reference)
    noise = np.random.default_rng(0).normal(size=run.points["layers.0.context"].shape).astype(np.float32)
    points = {**run.points, "layers.0.context": run.points["layers.0.context"] + noise / 10}
    explanations = explain(run_of(points, reference), reference, double)
    assert not any(one.explains for one in explanations)


def test_a_layer_with_the_weights_of_another_layer(reference, single, double):
    layers = single.params.layers
    points = run_reference(single, IDS, MASK, params=single.params._replace(layers=(layers[0], layers[0])))
    (finding,) = found(run_of(points, reference), reference, double).findings
    assert finding.says == "the weights of layer 0 are used"
    assert described_points(finding.points, 2) == "layer 1"


def test_only_a_part_of_the_batch(reference, single, double):
    """The keys of tokens from the tenth on are 0."""
    run = run_of(run_reference(single, IDS, MASK), reference)
    key = run.points["layers.1.key"].copy()
    key[:, 10:] = 0
    identification = found(run_of({**run.points, "layers.1.key": key}, reference), reference, double)
    assert identification.findings[0].says == "the values are 0, for token 10 and more alone"


def test_points_in_words():
    every = [f"layers.{index}.query" for index in range(3)]
    assert described_points(every, 3) == "query in every layer"
    assert described_points(["embeddings", *every[:2]], 3) == "embeddings, query in layers 0, 1"
    assert described_points(["layers.1.query", "layers.1.key"], 3) == "query and key in layer 1"
