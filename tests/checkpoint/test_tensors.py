"""Weights: what is read from their files, and what is refused."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch_file

import e5ref
from e5ref.checkpoint.params import build_params, leaves
from e5ref.checkpoint.tensors import read_tensors
from tests.tools.checkpoints import edit_json, write_random_bert


def all_equal(first, second) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(leaves(first), leaves(second), strict=True))


def rewrite(folder, change) -> None:
    """Save a checkpoint's tensors again after `change(tensors)`."""
    tensors = {name: np.array(tensor) for name, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_every_tensor_arrives_in_its_place(tiny_bert):
    tensors = load_file(tiny_bert / "model.safetensors")
    checkpoint = e5ref.read_checkpoint(tiny_bert)
    names = build_params(lambda name, shape: name, checkpoint.config)
    for name, array in zip(leaves(names), leaves(checkpoint.params), strict=True):
        np.testing.assert_array_equal(array, tensors[name])
    assert len(set(leaves(names))) == len(list(leaves(names)))


def rename(new_name):
    def change(tensors):
        for name in list(tensors):
            tensors[new_name(name)] = tensors.pop(name)

    return change


@pytest.mark.parametrize("prefix", ["bert.", "roberta.", "model.", "0.auto_model.", "0.model."])
def test_names_with_a_prefix(tiny_bert, tiny_copy, prefix):
    rewrite(tiny_copy, rename(lambda name: prefix + name))
    assert all_equal(e5ref.read_checkpoint(tiny_copy).params, e5ref.read_checkpoint(tiny_bert).params)


def older(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_names_of_checkpoints_from_tensorflow(tiny_bert, tiny_copy, prefix):
    rewrite(tiny_copy, rename(lambda name: prefix + older(name)))
    assert all_equal(e5ref.read_checkpoint(tiny_copy).params, e5ref.read_checkpoint(tiny_bert).params)


@pytest.mark.parametrize(
    ("model_type", "head", "left_out"),
    [
        ("Bert", "PreTraining", r"cls\.predictions\.\*, cls\.seq_relationship\.\*"),
        ("Bert", "SequenceClassification", r"classifier\.\*"),
        ("XLMRoberta", "MaskedLM", r"lm_head\.\*"),
        ("XLMRoberta", "QuestionAnswering", r"qa_outputs\.\*"),
    ],
)
def test_a_head_is_left_out_with_a_warning(tmp_path, model_type, head, left_out):
    """As transformers saves it; its encoder alone gives the same tree without a word."""
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = getattr(transformers, f"{model_type}Config")(**sizes, intermediate_size=8)
    model = getattr(transformers, f"{model_type}For{head}")(config)
    model.save_pretrained(tmp_path / "head")
    model.base_model.save_pretrained(tmp_path / "encoder")
    with pytest.warns(UserWarning, match=f"hold a head beside the encoder, which is left out: {left_out}$"):
        with_head = e5ref.read_checkpoint(tmp_path / "head").params
    assert all_equal(with_head, e5ref.read_checkpoint(tmp_path / "encoder").params)


@pytest.mark.parametrize("layers", [1, 3, 10**6])
def test_a_head_does_not_hide_too_few_or_too_many_layers(tiny_copy, layers):
    rewrite(tiny_copy, lambda tensors: tensors.update({"classifier.weight": np.zeros(2, np.float32)}))
    edit_json(tiny_copy / "config.json", num_hidden_layers=layers)
    with pytest.raises(e5ref.CheckpointError, match=r"(have no tensor|hold) 'encoder\.layer\.[12]\."):
        e5ref.read_checkpoint(tiny_copy)


@pytest.mark.parametrize(
    ("new_name", "missing", "nearest"),
    [
        (
            lambda name: f"module.{name}",
            "embeddings.word_embeddings.weight",
            "module.embeddings.word_embeddings.weight",
        ),
        (
            lambda name: name.replace("self.key", "self.k"),
            "encoder.layer.0.attention.self.key.weight",
            "encoder.layer.0.attention.self.k.weight",
        ),
    ],
)
def test_the_nearest_name_is_told_where_one_is_missing(tiny_copy, new_name, missing, nearest):
    rewrite(tiny_copy, rename(new_name))
    with pytest.raises(e5ref.CheckpointError, match=rf"have no tensor '{missing}' \(the nearest is '{nearest}'\); are"):
        e5ref.read_checkpoint(tiny_copy)


def test_unused_tensors_are_known_by_name(tiny_bert, tiny_copy):
    def add_unused(tensors):
        tensors["pooler.dense.weight"] = np.zeros((32, 32), np.float32)
        tensors["pooler.dense.bias"] = np.zeros(32, np.float32)
        tensors["embeddings.position_ids"] = np.arange(64)[None]

    rewrite(tiny_copy, add_unused)
    assert all_equal(e5ref.read_checkpoint(tiny_copy).params, e5ref.read_checkpoint(tiny_bert).params)


def test_shards(tmp_path):
    whole = e5ref.read_checkpoint(write_random_bert(tmp_path / "whole"))
    sharded = e5ref.read_checkpoint(write_random_bert(tmp_path / "sharded", shard_size="10KB"))
    assert len(sharded.weight_files) > 2
    assert all_equal(whole.params, sharded.params)
    assert sharded.weights_sha256 != whole.weights_sha256


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_half_precision_is_widened_exactly(tiny_copy, stored, dtype):
    tensors = {
        name: torch.from_numpy(tensor.copy()).to(getattr(torch, stored))
        for name, tensor in load_file(tiny_copy / "model.safetensors").items()
    }
    save_torch_file(tensors, tiny_copy / "model.safetensors")
    checkpoint = e5ref.read_checkpoint(tiny_copy, dtype=dtype)
    names = build_params(lambda name, shape: name, checkpoint.config)
    for name, array in zip(leaves(names), leaves(checkpoint.params), strict=True):
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, tensors[name].to(torch.float64).numpy().astype(dtype))


def test_tensors_at_odd_addresses(tiny_bert, tiny_copy):
    """A file may place a tensor at any byte: here behind a header of a length that is not a multiple of 4."""
    path = tiny_copy / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].rstrip() + b" " * (1 + length - len(content[8 : 8 + length].rstrip()))
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    params = e5ref.read_checkpoint(tiny_copy).params
    assert all(array.flags.aligned for array in leaves(params))
    assert all_equal(params, e5ref.read_checkpoint(tiny_bert).params)


def test_weights_are_read_only(tiny_bert):
    with pytest.raises(ValueError, match="read-only"):
        e5ref.read_checkpoint(tiny_bert).params.embeddings.word[0, 0] = 1.0


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from Linux's /proc")
def test_weights_are_mapped_not_copied(minilm):
    """Loading 90 MB of weights takes next to no memory that is the process's own."""
    code = f"""
import e5ref
own = lambda: next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
before = own()
checkpoint = e5ref.read_checkpoint({str(minilm)!r})
print((own() - before) / 1024)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 9


def damaged(content: bytes, kind: str) -> bytes:
    return {
        "cut in the numbers": content[:-100],
        "cut in the header": content[:50],
        "empty": b"",
        "too long": content + b"\0",
        "header of a huge length": b"\xff" * 8 + content[8:],
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["cut in the numbers", "cut in the header", "empty", "too long", "header of a huge length"],
)
def test_damaged_weights(tiny_copy, kind):
    path = tiny_copy / "model.safetensors"
    path.write_bytes(damaged(path.read_bytes(), kind))
    with pytest.raises(e5ref.CheckpointError, match=r"model.safetensors: cut short or damaged .* fetch the file anew"):
        e5ref.read_checkpoint(tiny_copy)


def test_damaged_weights_whose_header_has_the_length_of_a_pickle_are_no_pickle(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04" + bytes(6) + b'{"a": ')
    with pytest.raises(e5ref.CheckpointError, match="cut short or damaged"):
        read_tensors(tmp_path)


QUERY = "encoder.layer.1.attention.self.query.weight"


def set_value(value):
    def change(tensors):
        tensors[QUERY][3, 5] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(QUERY), f"have no tensor '{QUERY}'"),
        (lambda tensors: tensors.update({QUERY: np.zeros((32, 31), np.float32)}), r"is \[32, 31\], but .* \[32, 32\]"),
        (lambda tensors: tensors.update({QUERY: tensors[QUERY].astype("f8")}), "stored as F64"),
        (lambda tensors: tensors.update({QUERY: tensors[QUERY].astype("i8")}), "stored as I64"),
        (
            lambda tensors: tensors.update({"2.linear.weight": np.zeros(2, np.float32)}),
            "hold '2.linear.weight', which",
        ),
        (lambda tensors: tensors.update({"x": np.zeros(2, "f4"), "y": np.zeros(2, "f4")}), "hold 'x' and 1 more"),
        (
            lambda tensors: tensors.update({"embeddings.LayerNorm.gamma": np.ones(32, np.float32)}),
            r"hold 'embeddings\.LayerNorm\.weight' and 'embeddings\.LayerNorm\.gamma'",
        ),
        (set_value(np.nan), f"'{QUERY}' holds NaN or infinity"),
        (set_value(-np.inf), f"'{QUERY}' holds NaN or infinity"),
    ],
)
def test_weights_that_do_not_fit(tiny_copy, change, message):
    rewrite(tiny_copy, change)
    with pytest.raises(e5ref.CheckpointError, match=message):
        e5ref.read_checkpoint(tiny_copy)


def test_more_layers_in_the_weights_than_in_the_config(tiny_copy):
    edit_json(tiny_copy / "config.json", num_hidden_layers=1)
    with pytest.raises(e5ref.CheckpointError, match=r"hold 'encoder.layer.1.* as many layers as config.json says"):
        e5ref.read_checkpoint(tiny_copy)


def test_a_pickle_is_never_opened(tiny_copy):
    (tiny_copy / "model.safetensors").rename(tiny_copy / "pytorch_model.bin")
    with pytest.raises(e5ref.CheckpointError, match=r"holds pytorch_model.bin but no model.safetensors.*never opens"):
        e5ref.read_checkpoint(tiny_copy)


def test_no_weights_at_all(tiny_copy):
    (tiny_copy / "model.safetensors").unlink()
    with pytest.raises(e5ref.CheckpointError, match=r"holds no model\.safetensors"):
        e5ref.read_checkpoint(tiny_copy)


@pytest.fixture
def sharded(tmp_path):
    return write_random_bert(tmp_path / "sharded", shard_size="10KB")


def test_a_missing_shard(sharded):
    shard = sorted(sharded.glob("model-*"))[1]
    shard.unlink()
    with pytest.raises(e5ref.CheckpointError, match=f"holds no {shard.name}"):
        read_tensors(sharded)


@pytest.mark.parametrize("weight_map", [None, [], ["a"], {}, {"a": 1}])
def test_a_broken_index(sharded, weight_map):
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(e5ref.CheckpointError, match="weight_map must name"):
        read_tensors(sharded)


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/model.safetensors"])
def test_an_index_cannot_leave_its_folder(sharded, file):
    edit_json(sharded / "model.safetensors.index.json", weight_map={"a": file})
    with pytest.raises(e5ref.CheckpointError, match="weight_map must name"):
        read_tensors(sharded)


def test_an_index_that_promises_too_much(sharded):
    path = sharded / "model.safetensors.index.json"
    weight_map = json.loads(path.read_text())["weight_map"]
    edit_json(path, weight_map=weight_map | {"ghost": next(iter(weight_map.values()))})
    with pytest.raises(e5ref.CheckpointError, match="promises 'ghost', which no file holds"):
        read_tensors(sharded)


def test_an_index_that_contradicts_its_files(sharded):
    path = sharded / "model.safetensors.index.json"
    weight_map = json.loads(path.read_text())["weight_map"]
    files = list(weight_map.values())
    crowded = next(name for name, file in weight_map.items() if files.count(file) > 1)
    edit_json(path, weight_map=weight_map | {crowded: next(file for file in files if file != weight_map[crowded])})
    with pytest.raises(e5ref.CheckpointError, match="which the index places elsewhere"):
        read_tensors(sharded)
