"""The bench: contenders compute the same, a wrong one is found out and not timed, and ratios are those of rounds."""

import json
import math

import numpy as np
import pytest

from e5ref import E5, bench, read_checkpoint
from e5ref.bench import Contender, flops_per_token, product_rates, speed_ratio, table, write_random_checkpoint

TINY = {
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 300,
    "max_position_embeddings": 64,
}
TEXTS = [f"passage: {'how much protein a female eats ' * (1 + number % 12)}" for number in range(40)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(bench, "PAUSE", 0)
    monkeypatch.setattr(bench, "FIXED_TOKENS", 256)
    monkeypatch.setattr(bench, "LATENCY_CALLS", 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random")
    write_random_checkpoint(folder, TINY, TEXTS)
    return folder


def planted(name, change, **facts):
    """Make a peer that computes what e5ref does, then changes it."""

    def make(encoder):
        yield Contender(
            name,
            lambda texts: change(encoder.encode(texts)),
            lambda ids: change(bench._run_engine(encoder, ids)),
            **facts,
        )

    return make


def test_all_installed_contenders_agree_and_are_timed():
    result = bench.bench(TINY, ["numpy", "jax-highest", "transformers"], texts=TEXTS, lengths=(16, 64), rounds=2)
    assert [inputs["name"] for inputs in result["inputs"]] == ["texts", "16 tokens", "64 tokens"]
    assert [inputs["tokens"] for inputs in result["inputs"][1:]] == [256, 256]
    for inputs in result["inputs"]:
        names = [row["contender"] for row in inputs["rows"]]
        assert names == ["e5ref numpy", "e5ref jax highest", "transformers float32"]
        for row in inputs["rows"]:
            assert row["right"]
            assert row["max_abs"] < 5e-7
            speed = row["tokens_per_second"]
            assert 0 < speed["min"] <= speed["median"] <= speed["max"]
            assert 0 < row["share"] < 1
            assert (row["latency_ms"] is not None) == (inputs["name"] == "texts")
    assert json.loads(json.dumps(result)) == result
    assert len({len(line) for line in table(result).splitlines() if line.startswith("|")}) <= 3  # a width per table


def test_sentence_transformers_takes_texts_only():
    result = bench.bench(TINY, ["sentence-transformers", "numpy"], texts=TEXTS, lengths=(16,), rounds=1)
    rows = [[row["contender"] for row in inputs["rows"] if row["right"]] for inputs in result["inputs"]]
    assert rows == [["e5ref numpy", "sentence-transformers"], ["e5ref numpy"]]


def test_onnxruntime_agrees():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    result = bench.bench(TINY, ["onnxruntime"], texts=TEXTS, lengths=(16,), rounds=1)
    assert [row["right"] for inputs in result["inputs"] for row in inputs["rows"]] == [True, True]


@pytest.mark.parametrize(
    ("change", "precision", "right"),
    [
        (lambda vectors: vectors, "float32", True),
        (lambda vectors: vectors + 2e-5, "float32", False),
        (lambda vectors: vectors + 2e-5, "bfloat16", True),
        (lambda vectors: vectors + 4e-2, "bfloat16", False),
        (lambda vectors: np.full_like(vectors, np.nan), "bfloat16", False),
        (lambda vectors: vectors[::-1], "float32", False),
    ],
)
def test_who_is_wrong_is_not_timed(change, precision, right, monkeypatch):
    calls = []
    change_and_count = lambda vectors: (calls.append(len(vectors)), change(vectors))[1]  # noqa: E731
    monkeypatch.setitem(bench.CONTENDERS, "planted", planted("planted", change_and_count, precision=precision))
    result = bench.bench(TINY, ["numpy", "planted"], lengths=(16,), rounds=3)
    ours, theirs = result["inputs"][0]["rows"]
    assert ours["right"]
    assert theirs["right"] is right
    assert len(calls) == (4 if right else 1)
    assert ("tokens_per_second" in theirs) is right
    assert ("planted" in ours["ratios"]) is right
    assert ("wrong" in table(result)) is not right


def test_a_random_checkpoint_gives_transformers_our_vectors(folder):
    """Through transformers' own tokenizer too, which the bench does not use."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    inputs = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, truncation=True, return_tensors="pt")
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True).eval()
    with torch.inference_mode():
        states = model(**inputs).last_hidden_state.numpy()
    mask = inputs["attention_mask"].numpy()
    expected = (states * mask[..., None]).sum(axis=1)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    vectors = E5(read_checkpoint(folder), truncation="allow").encode(TEXTS)
    np.testing.assert_allclose(vectors, expected, atol=5e-7)
    assert np.ptp(mask.sum(axis=1)) > 40  # the texts differ in length, and some are cut
    assert vectors.std(axis=0).max() > 1e-3  # and in their vectors, so that a mix-up shows


def test_ratios_are_those_of_rounds():
    """The machine slows down fivefold and more, for both; the ratio of medians would be 1."""
    assert speed_ratio([1.0, 5.0, 20.0], [2.0, 10.0, 5.0]) == 2.0
    assert speed_ratio([2.0], [1.0]) == 0.5


def test_a_run_gives_the_ratios_of_its_rounds(monkeypatch):
    """Round by round ours takes 1, 5 and 2 s, theirs 2, 10 and 20: also where the order turns round."""
    seconds = iter([1.0, 2.0, 10.0, 5.0, 2.0, 20.0])
    monkeypatch.setitem(bench.CONTENDERS, "planted", planted("planted", lambda vectors: vectors))
    monkeypatch.setattr(bench, "product_rates", lambda contenders: [])
    monkeypatch.setattr(bench, "_seconds", lambda call, times: [next(seconds)])
    result = bench.bench(TINY, ["planted", "numpy"], lengths=(16,), rounds=3)
    ours, theirs = result["inputs"][0]["rows"]
    assert ours["ratios"] == {"planted": 2.0}
    assert theirs["ratios"] == {"planted": 1.0}
    assert ours["tokens_per_second"] == {"median": 128.0, "min": 51.2, "max": 256.0}
    assert ours["texts_per_second"] == 8.0
    assert ours["share"] is None


def test_flops_of_e5_small(folder):
    config = read_checkpoint(folder).config
    assert flops_per_token(config, np.array(10)) == 8 * 32 * 32 + 4 * 32 * 64 + 4 * 10 * 32


def test_half_precisions_share_a_ceiling():
    def contender(precision):
        return Contender("", lambda texts: np.zeros(0), None, precision=precision)

    assert contender("float16").ceiling == contender("bfloat16").ceiling == ("cpu", "bfloat16")
    assert contender("high").ceiling == ("cpu", "high")
    (rate,) = product_rates([contender("float32")])
    assert (rate["library"], rate["device"], rate["precision"]) == ("numpy", "cpu", "float32")
    assert math.isfinite(rate["teraflops"])


def test_attention_is_timed_in_both_forms(folder, monkeypatch):
    monkeypatch.setattr(bench, "GPU_BATCH_TOKENS", 512)
    rows = bench.attention_times(read_checkpoint(folder).config)
    assert [row["tokens"] for row in rows] == [64, 128, 512]
    assert all(row["plain_ms"] > 0 and row["fast_ms"] > 0 for row in rows)


def test_a_missing_peer_says_what_to_install(monkeypatch):
    found = bench.find_spec
    monkeypatch.setattr(bench, "find_spec", lambda name: None if name.startswith("onnx") else found(name))
    monkeypatch.setattr(bench, "write_random_checkpoint", None)  # nothing is written before
    with pytest.raises(ModuleNotFoundError, match=r"'onnxruntime' .*pip install onnx onnxruntime$"):
        bench.bench(TINY, ["numpy", "onnxruntime"])


def test_an_unknown_contender_is_refused():
    with pytest.raises(ValueError, match="'fastembed' is not one of numpy, jax-highest"):
        bench.bench(TINY, ["fastembed"])


def test_other_pooling_is_refused(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "modules.json").write_text(
        json.dumps(
            [{"type": f"s.{kind}", "path": path} for kind, path in (("Transformer", ""), ("Pooling", "p"))]
        ).replace("s.", "sentence_transformers.models.")
    )
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    with pytest.raises(ValueError, match="must pool by mean and normalise"):
        bench.bench(tmp_path, ["numpy"])
