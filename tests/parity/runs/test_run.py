"""The file format of a run: what is written is read, by others too, and what is no run is refused in a sentence."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from e5ref.parity.runs.run import MissingRunError, Run, RunError, forward_order, read_run, write_run
from tests.tools.batches import ragged_batch
from tests.tools.runs import our_run

IDS = {"input_ids": np.array([[2, 7, 3], [2, 3, 0]]), "attention_mask": np.array([[1, 1, 1], [1, 1, 0]])}
VECTORS = {"pooled": np.ones((2, 4), np.float32)}


def test_a_run_is_read_as_it_was_written(tmp_path):
    run = Run(
        IDS | {"embeddings": np.random.default_rng(0).random((2, 3, 5))} | VECTORS,
        {"texts": json.dumps(["é", ""]), "tokens": json.dumps([["[CLS]", "a", "[SEP]"], ["[CLS]", "[SEP]"]])},
    )
    write_run(run, tmp_path / "run.safetensors")
    read = read_run(tmp_path / "run.safetensors")
    assert list(read.arrays) == list(run.arrays)
    for name, array in run.arrays.items():
        assert read.arrays[name].dtype == array.dtype
        assert np.array_equal(read.arrays[name], array)
    assert read.texts == ["é", ""]
    assert (read.token(0, 1), read.token(1, 1), read.token(1, 2)) == ("a", "[SEP]", None)
    assert read.dtype == "float32"
    with safe_open(tmp_path / "run.safetensors", framework="numpy") as file:
        assert np.array_equal(file.get_tensor("embeddings"), run.arrays["embeddings"])
    before = (tmp_path / "run.safetensors").read_bytes()
    write_run(run, tmp_path / "run.safetensors")
    assert (tmp_path / "run.safetensors").read_bytes() == before


def test_names_are_put_in_the_forward_pass_s_order(tiny_bert):
    import e5ref

    names = list(our_run(e5ref.read_checkpoint(tiny_bert), *ragged_batch([3, 2], 40)))
    assert sorted(sorted(names), key=forward_order) == names
    assert sorted(["other", "layers.10.key", "layers.2.key"], key=forward_order) == [
        *("layers.2.key", "layers.10.key", "other")
    ]


def test_bfloat16_is_read_and_remembered(tmp_path):
    states = torch.randn(2, 4).to(torch.bfloat16)
    ids = {name: torch.from_numpy(array) for name, array in IDS.items()}
    save_torch_file(ids | {"pooled": states}, tmp_path / "run.safetensors")
    run = read_run(tmp_path / "run.safetensors")
    assert run.dtype == "bfloat16"
    assert np.array_equal(run.points["pooled"], states.float().numpy())


BROKEN = {
    "no ids": ({"pooled": np.ones((2, 4))}, {}, "has no 'input_ids'"),
    "no mask": ({"input_ids": IDS["input_ids"], **VECTORS}, {}, "has no 'attention_mask'"),
    "ids of floats": (IDS | {"input_ids": np.ones((2, 3))} | VECTORS, {}, "must be whole numbers"),
    "ids of another shape": (IDS | {"input_ids": np.ones((2, 4), int)} | VECTORS, {}, "must be whole numbers"),
    "mask all zero": (IDS | {"attention_mask": np.zeros((2, 3), int)} | VECTORS, {}, "each text must have"),
    "mask of twos": (IDS | {"attention_mask": np.full((2, 3), 2)} | VECTORS, {}, "1 for real tokens"),
    "no texts": ({name: array[:0] for name, array in (IDS | VECTORS).items()}, {}, "each text must have"),
    "no points": (IDS, {}, "holds only ids"),
    "a point of whole numbers": (IDS | {"pooled": np.ones((2, 4), int)}, {}, "'pooled' is int64"),
    "another format": (IDS | VECTORS, {"format": "e5ref-run 2"}, "reads 'e5ref-run 1'"),
    "an unknown dtype": (IDS | VECTORS, {"dtype": "int8"}, "computed in 'int8'"),
    "texts that are no JSON": (IDS | VECTORS, {"texts": "a, b"}, "'texts' in the metadata must be"),
    "texts too few": (IDS | VECTORS, {"texts": '["a"]'}, "has 1 texts in its metadata, but 2 texts"),
    "tokens that are no lists": (IDS | VECTORS, {"tokens": '["a", "b"]'}, "'tokens' in the metadata"),
    "rounding without numbers": (IDS | VECTORS, {"rounding": '{"float32": {"pooled": {}}}'}, "'rounding' in the"),
}


@pytest.mark.parametrize(("arrays", "metadata", "message"), BROKEN.values(), ids=BROKEN)
def test_what_is_no_run_is_refused(arrays, metadata, message, tmp_path):
    save_file(arrays, tmp_path / "run.safetensors", metadata)
    with pytest.raises(RunError, match=message) as caught:
        read_run(tmp_path / "run.safetensors")
    assert str(caught.value).startswith(f"{tmp_path / 'run.safetensors'}: ")


def test_files_that_are_cut_or_something_else_are_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    save_file(IDS | VECTORS, path)
    content = path.read_bytes()
    for broken in (b"", content[:7], content[:100], content[:-1], content + b"\0", b"{}" * 50):
        path.write_bytes(broken)
        with pytest.raises(RunError, match="cannot be read as a safetensors file"):
            read_run(path)
    path.write_bytes(b"\x80\x04pickle" * 9)
    with pytest.raises(RunError, match="is a pickle, which e5ref never opens"):
        read_run(path)
    with pytest.raises(RunError, match="cannot be read"):
        read_run(tmp_path)
    with pytest.raises(MissingRunError, match=r"absent: no such file$"):
        read_run(tmp_path / "absent")
