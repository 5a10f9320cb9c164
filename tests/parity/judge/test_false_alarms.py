"""A few texts of the comparison that `python -m tests.measure.parity.false_alarms` does on hundreds."""

import pytest

import e5ref
from e5ref.parity.runs.recording import point_shapes
from tests.measure.parity.false_alarms import TOKENS, batches, comparisons, table
from tests.tools.texts import AWKWARD


@pytest.mark.peer
def test_whatever_is_right_passes(minilm):
    texts = [AWKWARD[name] for name in ("empty", "prompt", "accents", "CJK", "emoji", "digits and punctuation")]
    rows = table("awkward", comparisons(minilm, texts, ["*"]))
    assert {row["library"] for row in rows} >= {"e5ref, NumPy", "e5ref, JAX", "transformers", "sentence-transformers"}
    assert {row["dtype"] for row in rows} == {"float64", "float32", "bfloat16", "float16"}
    assert [row for row in rows if row["false alarms"] != "0"] == []
    every = len(point_shapes(e5ref.read_checkpoint(minilm), 1, 1))
    fused = every - 6  # the probabilities of six layers
    assert {row["points"] for row in rows if row["library"] != "sentence-transformers"} == {str(every)}
    assert {row["points"] for row in rows if row["library"] == "sentence-transformers"} == {str(fused)}


@pytest.mark.parametrize(("tokens", "count"), [(TOKENS, 1), (0, 60)])
def test_batches_hold_every_text_once(tokens, count, minilm):
    encoder = e5ref.load(minilm)
    texts = [f"{'the cat ' * n}" for n in range(60)]
    found = list(batches(encoder, texts, tokens))
    assert len(found) >= count
    rows = [row[mask == 1].tolist() for ids, masks in found for row, mask in zip(ids, masks, strict=True)]
    assert sorted(rows) == sorted(ids.tolist() for ids in encoder.tokenizer(texts).texts())
