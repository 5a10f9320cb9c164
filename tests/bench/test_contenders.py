"""Contenders compute the same, and say what they need."""

import importlib.util
import json
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest

from e5ref import E5, bench, read_checkpoint
from e5ref.bench import contenders, measure
from e5ref.bench.contenders import CONTENDERS
from e5ref.bench.prepare import write_exports
from e5ref.bench.report import tables
from e5ref.engines.engine import Precision
from tests.bench.planted import TEXTS, TINY


@pytest.mark.peer
def test_all_installed_contenders_agree_and_are_timed(in_process):
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
            assert ("part_of_ids" in row) == (inputs["name"] == "texts" and not row["is_peer"])
    assert json.loads(json.dumps(result)) == result
    titles = [part for part in tables(result) if " texts, " in part]
    assert ["end to end: from a list of str" in title for title in titles] == [True, False, False]
    assert ["from token ids: the engine alone" in title for title in titles] == [False, True, True]
    for part in tables(result):
        assert len({len(line) for line in part.splitlines() if line.startswith("|")}) <= 1  # the columns are aligned


@pytest.mark.peer
def test_sentence_transformers_takes_texts_only(in_process, no_rates):
    result = bench.bench(TINY, ["sentence-transformers", "numpy"], texts=TEXTS, lengths=(16,), rounds=1)
    rows = [[row["contender"] for row in inputs["rows"] if row["right"]] for inputs in result["inputs"]]
    assert rows == [["e5ref numpy", "sentence-transformers"], ["e5ref numpy"]]


@pytest.mark.peer
def test_the_model_cards_code_agrees(in_process, no_rates):
    result = bench.bench(TINY, ["model-card"], texts=TEXTS, lengths=(), rounds=1)
    (row,) = result["inputs"][0]["rows"]
    assert (row["contender"], row["right"]) == ("model card's code", True)


@pytest.mark.peer
@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-fused", "onnxruntime-int8", "fastembed"])
def test_exported_graphs_agree(name, prepared):
    if name == "fastembed":
        pytest.importorskip("fastembed", reason="comes with `pip install '.[bench]'`")
    (contender,) = CONTENDERS[name](*prepared)
    (again,) = CONTENDERS[name](*prepared)  # fastembed keeps a list of names
    expected = E5(read_checkpoint(prepared[0]), truncation="allow").encode(TEXTS)
    error = np.abs(contender.of_texts(TEXTS) - expected).max()
    assert error < 5e-7 if contender.precision == "float32" else 1e-4 < error < measure.BOUNDS["int8"] / 3
    np.testing.assert_array_equal(again.of_texts(TEXTS[:3]), contender.of_texts(TEXTS[:3]))


def test_contenders_are_those_of_all_precisions():
    assert [name for name in CONTENDERS if name.startswith("jax")] == [f"jax-{name}" for name in get_args(Precision)]
    assert set(contenders.PACKAGES) == {name for name in CONTENDERS if not name.startswith(("numpy", "jax"))}


@pytest.mark.peer
def test_transformers_takes_three_forms_on_a_gpu_and_a_process_is_one(folder, tmp_path, monkeypatch, capsys):
    """A GPU is pretended: what goes there stays."""
    import torch

    move, loaded = torch.Tensor.to, []
    load_network = contenders.load_network

    def load(checkpoint, attention, precision):
        loaded.append(precision)
        return load_network(checkpoint, attention, precision)

    def to(tensor, device, *arguments, **options):
        return tensor if str(device) == "cuda" else move(tensor, device, *arguments, **options)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch, "compile", lambda network: loaded.append("compiled") or network)
    monkeypatch.setattr(contenders, "load_network", load)
    encoder = E5(read_checkpoint(folder), truncation="allow")
    write_exports(encoder, ["transformers"], tmp_path)
    forms = list(CONTENDERS["transformers"](folder, tmp_path))
    names = ["transformers float32", "transformers bfloat16", "transformers bfloat16, compiled"]
    assert [form.name for form in forms] == names
    assert [(form.device, form.precision, form.compiles) for form in forms] == [
        ("gpu", "float32", False),
        ("gpu", "bfloat16", False),
        ("gpu", "bfloat16", True),
    ]
    assert loaded == []
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps(TEXTS[:2]))
    for name, expected in zip(names, (["float32"], ["bfloat16"], ["bfloat16", "compiled"]), strict=True):
        loaded.clear()
        contenders.main(["transformers", name, str(folder), str(tmp_path), str(texts), str(texts)])
        assert loaded == expected
        assert capsys.readouterr().out.splitlines()[:-1] == [contenders.READY] * 2
    expected = encoder.encode(TEXTS)
    for form in forms:
        assert np.abs(form.of_texts(TEXTS) - expected).max() < measure.BOUNDS[form.precision]


@pytest.mark.peer
def test_peers_start_without_e5ref_and_the_exporter(prepared, tmp_path):
    (tmp_path / "texts.json").write_text(json.dumps([contenders.QUERY]))
    code = "import runpy, sys; runpy.run_path(sys.argv[0], run_name='__main__'); print(*sys.modules)"
    arguments = [contenders.__file__, "onnxruntime", "onnxruntime", *map(str, prepared), str(tmp_path / "texts.json")]
    code = f"import sys; sys.argv = {arguments!r}; {code}"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = {name.split(".")[0] for name in output.splitlines()[-1].split()}
    assert "onnxruntime" in loaded
    assert not {"e5ref", "torch", "transformers", "onnx", "safetensors", "jax"} & loaded


@pytest.mark.peer
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


def test_a_missing_peer_says_what_to_install(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else found(name))
    monkeypatch.setattr(bench, "write_random_checkpoint", None)  # nothing is written before
    with pytest.raises(ModuleNotFoundError, match=r"'onnxruntime' needs onnx and onnxruntime: pip install"):
        bench.bench(TINY, ["numpy", "onnxruntime"])


def test_an_unknown_contender_is_refused():
    with pytest.raises(ValueError, match="'tensorflow' is not one of numpy, jax-highest"):
        bench.bench(TINY, ["tensorflow"])


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
