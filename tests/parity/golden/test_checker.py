"""What passes and what fails; the kit's own checker comes to the verdict of `e5ref check`."""

import json
import math
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import e5ref
from e5ref.parity import Run, RunError, read_run, write_run
from e5ref.parity.altered.models import model_copy, padded_model, round_params, rounded_model, run_reference
from e5ref.parity.golden.kit import check_kit
from e5ref.parity.runs.recording import record
from tests.parity.golden.checker import assert_judged_alike, own_error, own_verdicts, verdicts

pytestmark = pytest.mark.filterwarnings("ignore:1 of 3 texts are longer:e5ref.E5Warning")  # a kit has such a one


@pytest.mark.peer
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        *(("transformers", dtype) for dtype in ("float64", "float32", "bfloat16", "float16")),
        *(("numpy", "float32"), ("sentence-transformers", "float32"), ("jax", "bfloat16")),
    ],
)
def test_right_runs_pass(backend, dtype, kit, batches, tiny_bert, tmp_path):
    for batch, entry in batches.items():
        recorded = record(tiny_bert, entry["texts"], backend=backend, dtype=dtype)
        write_run(recorded, tmp_path / f"{batch}.safetensors")
    assert_judged_alike(kit, tmp_path, passes=True)


def test_bfloat16_arrays_and_padding_elsewhere(kit, batches, tiny_bert, tmp_path):
    """As a port in torch may write them: bfloat16 stored as such, texts padded on the left, to another length."""
    import torch
    from safetensors.torch import save_file as save_torch

    for batch, entry in batches.items():
        recorded = record(tiny_bert, entry["texts"], backend="transformers", dtype="bfloat16")
        mask = recorded.attention_mask
        widths = {3: ((0, 0), (3, 0), (0, 0)), 4: ((0, 0), (0, 0), (3, 0), (3, 0))}
        arrays = {
            name: torch.from_numpy(np.pad(array, widths[array.ndim]) if array.ndim > 2 else array).to(torch.bfloat16)
            for name, array in recorded.points.items()
        }
        ids = {"input_ids": recorded.input_ids, "attention_mask": mask}
        arrays |= {name: torch.from_numpy(np.pad(array, ((0, 0), (3, 0)))) for name, array in ids.items()}
        save_torch(arrays, tmp_path / f"{batch}.safetensors")
    assert_judged_alike(kit, tmp_path, passes=True)


def tanh_gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


MISTAKES = {
    "tanh GELU": (model_copy(gelu=tanh_gelu), "alone: layers.0.feed_forward_activation"),
    "no mask": (padded_model(0.0), "ragged: layers.0.attention_probabilities"),
    "not normalised": (model_copy(l2_normalize=lambda vectors: vectors), "alone: normalized"),
    "CLS": (model_copy(average_pool=lambda states, *_: states[:, 0]), "alone: pooled"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_fail_where_they_are(mistake, kit, batches, tiny_bert, tmp_path):
    model, first = MISTAKES[mistake]
    encoder = e5ref.load(tiny_bert, truncation="allow")
    for batch, entry in batches.items():
        tokens = encoder.tokenize(entry["texts"])
        ids = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        points = run_reference(encoder.checkpoint, *ids.values(), model=model)
        write_run(Run(ids | points), tmp_path / f"{batch}.safetensors")
    assert assert_judged_alike(kit, tmp_path, passes=False)[0] == first


def test_half_precision_does_not_pass_for_float32(kit, batches, tiny_bert, tmp_path):
    """float16's numbers, said to be float32's."""
    encoder = e5ref.load(tiny_bert, truncation="allow")
    params = round_params(encoder.checkpoint.params, "float16")
    for batch, entry in batches.items():
        tokens = encoder.tokenize(entry["texts"])
        ids = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        points = run_reference(encoder.checkpoint, *ids.values(), model=rounded_model("float16"), params=params)
        for said, folder in (("float32", "single"), ("float16", "half")):
            (tmp_path / folder).mkdir(exist_ok=True)
            write_run(Run(ids | points, {"dtype": said}), tmp_path / folder / f"{batch}.safetensors")
    assert_judged_alike(kit, tmp_path / "half", passes=True)
    assert assert_judged_alike(kit, tmp_path / "single", passes=False)[0] == "alone: embeddings"


DAMAGES = {
    "a number": lambda arrays, _: arrays["layers.0.query"].__setitem__((0, 1, 2), 9),
    "NaN": lambda arrays, _: arrays["layers.0.query"].__setitem__((1, 1, 0), np.nan),
    "infinity": lambda arrays, _: arrays["pooled"].__setitem__((1, 0), np.inf),
    "a point is missing": lambda arrays, _: arrays.pop("layers.0.query"),
    "all points are missing": lambda arrays, _: [
        arrays.pop(name) for name in [*arrays] if name[-3:] not in ("ids", "ask")
    ],
    "ids are missing": lambda arrays, _: arrays.pop("input_ids"),
    "mask is missing": lambda arrays, _: arrays.pop("attention_mask"),
    "another shape": lambda arrays, _: arrays.update(pooled=arrays["pooled"][:, :5].copy()),
    "other dimensions": lambda arrays, _: arrays.update(pooled=arrays["pooled"][0].copy()),
    "another id": lambda arrays, _: arrays["input_ids"].__setitem__((0, 1), 7),
    "another mask": lambda arrays, _: arrays["attention_mask"].__setitem__((0, 1), 0),
    "a mask of 2": lambda arrays, _: arrays["attention_mask"].__setitem__((1, -1), 2),
    "a mask of one text of zeros": lambda arrays, _: arrays["attention_mask"].__setitem__(1, 0),
    "no batch axis": lambda arrays, _: arrays.update(
        {name: arrays[name][0].copy() for name in ("input_ids", "attention_mask")}
    ),
    "ids of booleans": lambda arrays, _: arrays.update(input_ids=arrays["input_ids"] > 0),
    "cut shorter": lambda arrays, _: arrays["attention_mask"].__setitem__((0, slice(5, None)), 0),
    "the order of texts": lambda arrays, _: arrays.update({name: array[::-1].copy() for name, array in arrays.items()}),
    "a text is missing": lambda arrays, _: arrays.update({name: array[:-1].copy() for name, array in arrays.items()}),
    "whole numbers": lambda arrays, _: arrays.update(pooled=arrays["pooled"].astype(np.int32)),
    "ids of floats": lambda arrays, _: arrays.update(input_ids=arrays["input_ids"].astype(np.float32)),
    "no known dtype": lambda _, metadata: metadata.update(dtype="int8"),
    "another format": lambda _, metadata: metadata.update(format="e5ref-run 2"),
    "texts are not those": lambda _, metadata: metadata.update(texts='["a"]'),
    "texts are no JSON": lambda _, metadata: metadata.update(texts="a, b"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_runs_fail(damage, kit, right, tmp_path):
    for path in right.iterdir():
        arrays = {name: array.copy() for name, array in load_file(path).items()}
        metadata: dict[str, str] = {}
        if path.stem == "ragged":
            DAMAGES[damage](arrays, metadata)
        save_file(arrays, tmp_path / path.name, metadata)
    assert all(name.startswith("ragged") for name in assert_judged_alike(kit, tmp_path, passes=False))


@pytest.mark.parametrize("left", [0, 5, 100, -1])
def test_files_that_are_cut_or_missing_fail(left, kit, right, tmp_path):
    for path in right.iterdir():
        content = path.read_bytes()
        if path.stem != "traps":
            (tmp_path / path.name).write_bytes(content[:left] if path.stem == "long" else content)
    assert assert_judged_alike(kit, tmp_path, passes=False) == ["traps", "long"]


def test_what_stands_at_padding_does_not_matter(kit, right, tmp_path):
    for path in right.iterdir():
        arrays = {name: array.copy() for name, array in load_file(path).items()}
        padding = arrays["attention_mask"] == 0
        arrays["input_ids"][padding] = 3
        arrays["layers.0.output"][padding] = np.nan
        save_file(arrays, tmp_path / path.name)
    assert_judged_alike(kit, tmp_path, passes=True)


def test_only_some_points(kit, right, tmp_path):
    for path in right.iterdir():
        arrays = {name: array for name, array in load_file(path).items() if "layers" not in name}
        save_file(arrays, tmp_path / path.name)
    assert own_verdicts(kit, tmp_path)[0] == 1
    code, lines, _ = own_verdicts(kit, tmp_path, "--only", "embeddings,normalized")
    assert code == 0
    assert ("OK", "alone: embeddings") in lines
    assert len(lines) == 7
    results = check_kit(kit, tmp_path, only=["embeddings", "normalized"])
    assert [verdict.name for verdict in results["alone"].verdicts] == ["embeddings", "normalized"]
    assert own_error(kit, tmp_path, "--only", "layers.7.*") == "no point of the kit is one of layers.7.*"
    with pytest.raises(ValueError, match="no point of the kit is one of layers"):
        check_kit(kit, tmp_path, only=["layers.7.*"])


def test_wrong_ids_are_said_where_they_differ_first(kit, batches, right, tmp_path):
    ids = load_file(kit / "ragged.safetensors")["input_ids"]
    token = json.loads(read_run(kit / "ragged.safetensors").metadata["tokens"])[2][1]
    for path in right.iterdir():
        arrays = {name: array.copy() for name, array in load_file(path).items()}
        if path.stem == "ragged":
            arrays["input_ids"][2, 1:3] = ids[2, 1] + 1
        save_file(arrays, tmp_path / path.name)
    detail = own_verdicts(kit, tmp_path)[2]["ragged: input_ids"]
    assert detail == f"text 2, token 1 is {ids[2, 1] + 1} instead of {ids[2, 1]} ({token})"


def test_what_follows_the_last_array_is_no_part_of_a_run(kit, right, tmp_path):
    shutil.copytree(right, tmp_path / "runs")
    with (tmp_path / "runs" / "long.safetensors").open("ab") as file:
        file.write(b"\0")
    assert assert_judged_alike(kit, tmp_path / "runs", passes=False) == ["long"]


def test_a_run_that_is_a_folder_is_no_run(kit, right, tmp_path):
    shutil.copytree(right, tmp_path / "runs")
    (tmp_path / "runs" / "long.safetensors").unlink()
    (tmp_path / "runs" / "long.safetensors").mkdir()
    for said in (own_verdicts, verdicts):
        assert said(kit, tmp_path / "runs")[1][-1] == ("UNREADABLE", "long")


def test_a_damaged_kit_is_not_taken_for_a_damaged_run(kit, right, tmp_path):
    shutil.copytree(kit, tmp_path / "kit")
    assert own_error(kit, right / "alone.safetensors") == f"{right / 'alone.safetensors'}: no such folder"
    assert own_error(kit, tmp_path / "absent") == f"{tmp_path / 'absent'}: no such folder"

    file = tmp_path / "kit" / "alone.safetensors"
    content = file.read_bytes()
    for left in (0, 5, 100, len(content) - 1):
        file.write_bytes(content[:left])
        assert own_error(tmp_path / "kit", right).startswith(f"{file}: cannot be read as a safetensors file")
    file.unlink()
    assert str(file) in own_error(tmp_path / "kit", right)
    truth = read_run(kit / "alone.safetensors")
    write_run(Run(truth.arrays, {"dtype": "float32"}), file)
    with pytest.raises(RunError, match="the reference must be a run of e5ref in float64"):
        check_kit(tmp_path / "kit", right)

    file = tmp_path / "kit" / "kit.json"
    content = file.read_bytes()
    for cut in (b"", content[:100], content[:-3], b"[]", b"{}"):
        file.write_bytes(cut)
        assert own_error(tmp_path / "kit", right).startswith(f"{file}: is cut short, or does not belong")


def test_a_kit_of_another_factor_is_not_judged_otherwise_than_it_judges(kit, right, tmp_path):
    (tmp_path / "kit.json").write_text(json.dumps(json.loads((kit / "kit.json").read_text()) | {"factor": 2.0}))
    with pytest.raises(RunError, match=r"it allows 2\.0 times what rounding costs"):
        check_kit(tmp_path, right)
