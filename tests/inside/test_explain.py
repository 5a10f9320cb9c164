"""Why two texts are near: the matrix adds up to the cosine, and its parts are what they are called."""

import json

import numpy as np
import pytest

import e5ref
from e5ref.inside import explain as explaining
from e5ref.inside.reference import QUESTIONS, STATEMENTS, reference_of
from e5ref.inside.run import run as run_text
from tests.tools.processes import fails, run
from tests.tools.tolerances import EXPLAINED

QUERY, PASSAGE = "query: how do plants eat", "passage: Leaves turn light into sugar."


@pytest.fixture(scope="module")
def nano():
    return e5ref.load("e5ref-nano")


def folder_of(name: str, request) -> str:
    return "e5ref-nano" if name == "nano" else request.getfixturevalue(name)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["nano", "minilm", "tiny_bert", "cls_checkpoint"])
def test_the_cells_add_up_to_the_cosine(name, dtype, request):
    model = e5ref.load(folder_of(name, request), dtype=dtype)
    for a, b in [(QUERY, PASSAGE), (QUERY, QUERY), ("", "!"), ("query: " + "sun " * 70, "cat")]:
        model.truncation = "allow"
        explanation = model.explain(a, b)
        cosine = model.similarity(model.encode(a), model.encode(b)).item()
        assert explanation.matrix.sum() == pytest.approx(cosine, abs=EXPLAINED[dtype])
        assert explanation.cosine == pytest.approx(cosine, abs=EXPLAINED[dtype])
        assert explanation.centred_matrix.sum() == pytest.approx(explanation.centred_cosine, abs=EXPLAINED[dtype])
        assert explanation.rows.sum() == pytest.approx(cosine, abs=EXPLAINED[dtype])
        assert explanation.columns.sum() == pytest.approx(cosine, abs=EXPLAINED[dtype])
        assert explanation.matrix.shape == tuple(map(len, explanation.tokens))


def test_a_wrong_weight_is_noticed(nano, monkeypatch):
    """Planted mistake: an average that leaves out [CLS]."""
    weights = explaining.pooling_weights
    monkeypatch.setattr(explaining, "pooling_weights", lambda run, pooling: weights(run, pooling) * (run.ids > 3))
    explanation = nano.explain(QUERY, PASSAGE)
    assert explanation.matrix.sum() != pytest.approx(explanation.cosine, abs=100 * EXPLAINED["float32"])


def test_of_cls_pooling_one_pair_is_all(cls_checkpoint):
    explanation = e5ref.load(cls_checkpoint).explain("query: cat", "query: dog")
    assert np.flatnonzero(explanation.matrix).tolist() == [0]
    assert explanation.top(1) == [(0, 0, pytest.approx(explanation.cosine, abs=EXPLAINED["float32"]))]


def test_a_matrix_by_hand(nano):
    """Two texts of two and of one token, in two dimensions."""
    states = np.array([[4.0, 0.0], [2.0, 8.0]]), np.array([[0.0, 2.0]])
    vectors = np.array([0.6, 0.8]), np.array([0.0, 1.0])  # [3, 4] is the average of the first text's states
    template = run_text(nano, "")
    first, second = (
        template._replace(ids=np.zeros(len(rows)), points={"last_hidden_state": rows}, vector=vector)
        for rows, vector in zip(states, vectors, strict=True)
    )
    explanation = explaining.explanation_of(first, second, "mean", explaining.Reference(np.array([0.0, 0.5]), 0.25, 2))
    assert explanation.matrix.tolist() == [[0.0], [pytest.approx(0.8)]]  # 1/2 · 8/5 · 1
    # Less [0, 1/2] the vectors are [0.6, 0.3] and [0, 0.5]: a cosine of 1/√5. The parts have -1/4 and 0.55 for it.
    assert explanation.centred_cosine == pytest.approx(5**-0.5)
    assert explanation.centred_matrix.ravel() == pytest.approx(np.array([-0.25, 0.55]) / np.hypot(0.6, 0.3))


def test_groups_and_shares(nano):
    explanation = nano.explain(QUERY, PASSAGE)
    assert explanation.groups[0] == ["[CLS]", "prefix", "prefix", *["words"] * 4, "[SEP]"]
    assert explanation.groups[1][:4] == ["[CLS]", "prefix", "prefix", "words"]
    total = sum(sum(row.values()) for row in explanation.shares().values())
    assert total == pytest.approx(explanation.cosine, abs=EXPLAINED["float32"])
    assert explanation.shares()["[CLS]"]["[CLS]"] == pytest.approx(explanation.matrix[0, 0])


def test_top_pairs_go_down_in_size(nano):
    sizes = [abs(pair.value) for pair in nano.explain(QUERY, PASSAGE).top(100)]
    assert len(sizes) == 8 * 10
    assert sizes == sorted(sizes, reverse=True)


def test_the_reference_is_the_average_of_its_texts(nano):
    reference = reference_of(nano)
    vectors = np.concatenate([nano.encode_query(QUESTIONS), nano.encode_document(STATEMENTS)])
    cosines = nano.similarity(vectors, vectors)
    others = ~np.eye(reference.texts, dtype=bool)
    assert reference.average_cosine == pytest.approx(cosines[others].mean(), abs=EXPLAINED["float32"])
    assert reference.mean == pytest.approx(vectors.mean(axis=0), abs=EXPLAINED["float32"])


def test_fewer_dimensions(nano):
    with pytest.warns(UserWarning, match="not trained for that"):
        model = e5ref.load("e5ref-nano", truncate_dim=64)
    explanation = model.explain(QUERY, PASSAGE)
    cosine = model.similarity(model.encode(QUERY), model.encode(PASSAGE)).item()
    assert explanation.matrix.sum() == pytest.approx(cosine, abs=EXPLAINED["float32"])


def test_a_text_that_is_too_long_is_told(tiny_bert):
    with pytest.warns(UserWarning, match="has 103 tokens, but the model takes 64: its end was cut off"):
        e5ref.load(tiny_bert).explain("query: " + "cat " * 99, "cat")
    with pytest.raises(ValueError, match="takes 64; shorten it"):
        e5ref.load(tiny_bert, truncation="error").explain("query: " + "cat " * 99, "cat")


def test_command():
    output = run("explain", QUERY, PASSAGE, "--model", "e5ref-nano", "-k", 3).stdout.decode()
    table = output.split("\n\n")[2].splitlines()
    assert len(table) == 2 + 3
    result = json.loads(run("explain", QUERY, PASSAGE, "--model", "e5ref-nano", "--json").stdout)
    first = result["top"][0]["first"]
    assert f"| {result['tokens'][0][first]} ({first})" in output
    assert np.sum(result["matrix"]) == pytest.approx(result["cosine"], abs=EXPLAINED["float32"])
    assert len(result["top"]) == 10
    assert f"cosine   {result['cosine']:.6f}" in output


def test_command_warns_of_texts_without_prefix():
    assert b"2 of 2 texts start with none" in run("explain", "a", "b", "--model", "e5ref-nano").stderr


def test_command_without_a_second_text():
    assert "Missing argument 'B'" in fails("explain", QUERY)
