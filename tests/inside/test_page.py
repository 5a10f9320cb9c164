"""The page of `look`: its numbers are the run's, it is one file, and it stays small."""

import base64
import html
import inspect
import json
import re

import numpy as np
import pytest

import e5ref
from e5ref import numpy_model
from e5ref.inside import changes, data
from e5ref.inside.changes import changes_of, kept_tokens
from e5ref.inside.data import DETAILS, encoded, page_data, row_starts
from e5ref.inside.page import page_html
from e5ref.inside.reference import reference_of
from e5ref.inside.run import run as run_text
from tests.tools.checkpoints import E5_SMALL, write_random_bert, write_unigram
from tests.tools.processes import fails, run
from tests.tools.tolerances import EXPLAINED, SUM_TO_ONE

QUERY, PASSAGE = "query: how do plants eat", "passage: Leaves turn light into sugar."
PROMPTS = {"query": "query: ", "passage": "passage: "}


def decoded(data):
    """Read what `encoded` wrote; what was rounded comes as float64."""
    array = np.frombuffer(base64.b64decode(data["bytes"]), f"<{data['coding']}").reshape(data["shape"])
    return array * data["scale"] if data["coding"].startswith("i") else array


@pytest.fixture(scope="module")
def nano():
    return e5ref.load("e5ref-nano", truncation="allow")


@pytest.fixture(scope="module")
def shown(nano):
    """What the page of two short texts shows."""
    return json.loads(page_data(nano, [QUERY, PASSAGE], reference_of(nano)))


def test_numbers_are_those_of_the_forward_pass(nano, shown):
    batch = nano.tokenize(PASSAGE)
    points = {}
    params, config = nano.checkpoint.params, nano.checkpoint.config
    numpy_model.embed(
        params, batch["input_ids"], batch["attention_mask"], config=config, tap=lambda name, x: points.update({name: x})
    )
    text = shown["texts"][1]
    assert set(text["points"]) == set(points) - {"pooled", "normalized"}
    for name, entry in text["points"].items():
        assert np.array_equal(decoded(entry), points[name][0]), name
    assert np.array_equal(decoded(text["vector"]), points["normalized"][0])
    assert np.array_equal(decoded(text["pooled"]), points["pooled"][0])
    for name, entry in text["norms"].items():
        assert decoded(entry) == pytest.approx(np.linalg.norm(points[name][0], axis=-1)), name


def test_the_sum_of_three_is_what_layer_norm_gets(nano, shown):
    text, embeddings = shown["texts"][0], nano.checkpoint.params.embeddings
    parts = {name: decoded(entry) for name, entry in text["summands"].items()}
    assert np.array_equal(parts["word"] + parts["position"] + parts["token_type"], parts["sum"])
    normalised = numpy_model.layer_norm(
        parts["sum"].copy(), *embeddings.layer_norm, nano.checkpoint.config.layer_norm_eps
    )
    assert normalised == pytest.approx(decoded(text["points"]["embeddings"]), abs=1e-5)


def test_positions_of_xlm_roberta_count_from_behind_the_padding_id(tmp_path):
    folder = write_random_bert(tmp_path / "xlm", model_type="xlm-roberta")
    write_unigram(folder)
    model = e5ref.load(folder)
    text = json.loads(page_data(model, ["the cat"], reference_of(model)))["texts"][0]
    expected = model.checkpoint.params.embeddings.position[2 : 2 + len(text["tokens"])]
    assert np.array_equal(decoded(text["summands"]["position"]), expected)


def test_updates_and_what_came_in_make_what_goes_out(nano):
    """LayerNorm of the sum of what came in and the update is the next named point."""
    traced = run_text(nano, QUERY)
    incoming = traced.points["embeddings"]
    for index, (layer, updates) in enumerate(zip(nano.checkpoint.params.layers, traced.updates, strict=True)):
        norms = layer.attention_layer_norm, layer.output_layer_norm
        for update, norm, point in zip(updates, norms, ("attention_output", "output"), strict=True):
            out = numpy_model.layer_norm(incoming + update, *norm, nano.checkpoint.config.layer_norm_eps)
            incoming = traced.points[f"layers.{index}.{point}"]
            assert out == pytest.approx(incoming, abs=1e-5)


def test_shares_of_the_average_add_up_to_one(shown):
    for text in shown["texts"]:
        assert decoded(text["shares"]).sum() == pytest.approx(1, abs=SUM_TO_ONE["float32"])


def test_cells_of_the_pairs_add_up_to_the_cosine(nano, shown):
    explanation = nano.explain(QUERY, PASSAGE)
    for name, cosine in (("as_is", explanation.cosine), ("centred", explanation.centred_cosine)):
        assert shown["pairs"][name]["cosine"] == cosine
        assert decoded(shown["pairs"][name]["matrix"]).sum() == pytest.approx(cosine, abs=EXPLAINED["float32"])


def test_the_least_size_is_that_of_the_heat_maps(nano):
    traced, detail = run_text(nano, QUERY), DETAILS[2]
    shown = data.text_data(nano, traced, detail)
    written = sum(len(entry["bytes"]) for entry in shown["points"].values())
    padding = 3 * len(shown["points"])  # base64 fills up each to a multiple of 4
    assert written - padding <= data.least_size([traced], [], detail) <= written


@pytest.mark.parametrize("coding", ["i1", "i2"])
def test_rounded_numbers_are_off_by_half_a_step(coding):
    array = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    step = np.abs(array).max() / np.iinfo(coding).max
    difference = np.abs(decoded(encoded(array, coding)) - array).max()
    assert 0 < difference <= step / 2 * 1.001
    assert not decoded(encoded(0 * array, coding)).any()


def test_a_long_text_is_shown_in_rows_of_neighbours(nano):
    detail = DETAILS[-1]
    traced = run_text(nano, "query: " + "plants eat light " * 40)
    text = data.text_data(nano, traced, detail)
    starts = row_starts(len(traced.ids), detail)
    assert len(starts) <= detail.rows
    attention = decoded(text["points"]["layers.0.attention_probabilities"])
    assert attention.sum(axis=2) == pytest.approx(
        1, abs=len(starts) * text["points"]["layers.0.attention_probabilities"]["scale"]
    )
    entry = text["points"]["layers.2.output"]
    assert len(entry["columns"]) == detail.columns
    last = traced.points["layers.2.output"][starts[-1] :, entry["columns"]].mean(axis=0)
    assert decoded(entry)[-1] == pytest.approx(last, abs=entry["scale"])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Random weights of e5-small's shape."""
    folder = write_random_bert(tmp_path_factory.mktemp("small") / "model", **E5_SMALL | {"vocab_size": 1000})
    return e5ref.load(folder, truncation="allow")


@pytest.mark.slow
@pytest.mark.parametrize("words", [2, 30, 600])
def test_a_page_stays_below_two_megabytes(small, words):
    page = e5ref.look(small, ["query: " + "cat dog " * words, "passage: " + "the sun " * words])
    assert len(page.html.encode()) <= 2_000_000


def test_a_page_that_cannot_be_small_is_refused(nano, monkeypatch):
    monkeypatch.setattr(data, "BUDGET", 1000)
    with pytest.raises(ValueError, match="more layers and heads than a page can show"):
        e5ref.look(nano, QUERY)


def test_code_beside_a_panel_is_the_code_that_runs(shown):
    function = shown["panels"]["attention"]["functions"][0]
    assert function["name"] == "self_attention"
    assert function["file"] == "e5ref/numpy_model.py"
    source, line = inspect.getsourcelines(numpy_model.self_attention)
    assert function["line"] == line
    assert function["code"] == "".join(source)
    for panel in shown["panels"].values():
        assert panel["equations"].startswith("<math")
        assert panel["shapes"]
        assert panel["functions"]


def test_the_page_names_nothing_outside_itself(nano):
    page = e5ref.look(nano, QUERY).html
    assert not re.search(r'(src|href)="(?!data:,|#|\$)', page)
    assert "default-src 'none'" in page
    assert "connect-src 'none'" in page


def test_a_text_cannot_end_the_script(nano):
    text = "query: </script><script>alert(1)</script>"
    page = e5ref.look(nano, text).html
    assert "<script>alert" not in page
    data_of_page = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1]
    assert json.loads(data_of_page)["texts"][0]["text"] == text


def test_at_signs_of_a_text_are_no_gap_of_the_page():
    assert '"@@STYLE@@"' in page_html('"@@STYLE@@"')


def test_a_notebook_shows_the_page_in_a_frame(nano):
    page = e5ref.look(nano, [QUERY, PASSAGE])
    frame = page._repr_html_()
    assert html.unescape(re.search('srcdoc="([^"]*)"', frame)[1]) == page.html


@pytest.mark.parametrize("texts", [[], ["a", "b", "c"]])
def test_one_or_two_texts(nano, texts):
    with pytest.raises(ValueError, match=f"one or two texts, but {len(texts)} are given"):
        e5ref.look(nano, texts)


def test_what_is_not_text_is_refused(nano):
    with pytest.raises(TypeError, match="not int"):
        e5ref.look(nano, [1])


def test_changes():
    assert changes_of(QUERY, PROMPTS) == [
        ("the prefix away", "how do plants eat"),
        ("“passage:” for “query:”", "passage: how do plants eat"),
        ("without “plants”", "query: how do eat"),
        ("the words backwards", "query: eat plants do how"),
    ]
    assert [change.text for change in changes_of("cat", PROMPTS)] == ["query: cat", "passage: cat"]
    assert changes_of("cat", {}) == []


def test_kept_tokens_by_hand():
    before, after = np.array([1, 7, 5, 7, 2]), np.array([1, 7, 7, 7, 2])
    assert kept_tokens(before, after) == [(0, 0), (1, 1), (3, 2), (4, 4)]


def test_a_text_that_did_not_change_has_not_moved(nano):
    before, after = run_text(nano, QUERY), run_text(nano, QUERY + " ")
    compared = changes.compared(before, after, [])
    assert not np.any(compared["moved"])
    assert compared["cosine"] == pytest.approx(1)
    changed = changes.compared(before, run_text(nano, "query: how do plants"), [before])
    assert np.any(changed["moved"])
    assert changed["cosines"][0][0] == pytest.approx(1)


def test_command(tmp_path):
    path = tmp_path / "look.html"
    output = run("look", QUERY, PASSAGE, "--model", "e5ref-nano", "-o", path, "--no-open").stdout.decode()
    assert output == f"{path}\n"
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "is there already" in fails("look", QUERY, "--model", "e5ref-nano", "-o", path, "--no-open")


def test_command_opens_the_page(monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    path = run("look", QUERY, "--model", "e5ref-nano").stdout.decode().strip()
    assert opened == [f"file://{path}"]


def test_command_with_what_does_not_go_together():
    assert "leave out one" in fails("look", QUERY, "--model", "e5ref-nano", "--live", "-o", "page.html")
    assert "one or two texts" in fails("look", "a", "b", "c", "--model", "e5ref-nano", "--no-open")
