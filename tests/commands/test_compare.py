"""`e5ref compare`: exit codes, output, and one sentence for whatever is no run."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import e5ref
from e5ref.parity import Run, write_run
from e5ref.parity.altered.models import run_reference
from tests.tools.batches import ragged_batch
from tests.tools.processes import fails, run
from tests.tools.runs import reference_run, run_of

BATCH = ragged_batch([9, 1, 30, 2], 40)


@pytest.fixture(scope="module")
def files(tiny_bert, tmp_path_factory):
    """A reference, a run that is right and one that is not."""
    folder = tmp_path_factory.mktemp("runs")
    reference = reference_run(tiny_bert, *BATCH)
    right = run_of(run_reference(e5ref.read_checkpoint(tiny_bert), *BATCH), reference)
    write_run(reference, folder / "reference.safetensors")
    write_run(right, folder / "right.safetensors")
    wrong = {**right.arrays, "pooled": right.arrays["pooled"] * np.float32(1.001)}
    write_run(Run(wrong, right.metadata), folder / "wrong.safetensors")
    return folder


def test_exit_code_and_table(files):
    right = run("compare", files / "right.safetensors", files / "reference.safetensors").stdout.decode()
    assert right.count("[OK]") == 20
    assert "Passed: all 20 points" in right
    wrong = run("compare", files / "wrong.safetensors", files / "reference.safetensors", code=1).stdout.decode()
    assert wrong.count("[DIFF]") == 1
    assert "First departure: pooled" in wrong
    assert "It is fed by last_hidden_state, which is right." in wrong
    assert (
        "normalized"
        in run(
            *("compare", files / "wrong.safetensors", files / "reference.safetensors", "--only", "layers.*,normalized")
        ).stdout.decode()
    )


def test_json_and_page(files, tmp_path):
    page = tmp_path / "page.html"
    arguments = ("compare", files / "wrong.safetensors", files / "reference.safetensors", "--json", "--html", page)
    data = json.loads(run(*arguments, code=1).stdout)
    assert data["first_departure"] == {"name": "pooled", "fed_by": {"last_hidden_state": "OK"}}
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_other_tokens_are_valid_json_too(tiny_bert, tmp_path):
    (tmp_path / "texts.txt").write_text("the dog\n")
    (tmp_path / "prompted.txt").write_text("query: the dog\n")
    for name, dtype in (("texts", "float32"), ("prompted", "float64")):
        run(
            "record",
            tiny_bert,
            "-i",
            tmp_path / f"{name}.txt",
            "-o",
            tmp_path / f"{name}.safetensors",
            "--dtype",
            dtype,
        )
    runs = tmp_path / "texts.safetensors", tmp_path / "prompted.safetensors"
    output = run("compare", *runs, "--model", tiny_bert, "--json", code=1).stdout

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    (explanation,) = json.loads(output, parse_constant=refuse)["explanations"]
    assert explanation["mistake"] == "prefix missing"
    assert explanation["before"] is None


def test_another_model_than_the_references_is_refused(tiny_bert, minilm, tmp_path):
    (tmp_path / "texts.txt").write_text("query: the dog\n")
    reference, right = tmp_path / "reference.safetensors", tmp_path / "right.safetensors"
    for output, dtype in ((reference, "float64"), (right, "float32")):
        run("record", tiny_bert, "-i", tmp_path / "texts.txt", "-o", output, "--dtype", dtype)
    run("compare", right, reference, "--model", tiny_bert)
    assert "is not the checkpoint of the reference" in fails("compare", right, reference, "--model", minilm)


def test_what_is_no_run_gets_a_sentence(files, tmp_path):
    reference, right = files / "reference.safetensors", files / "right.safetensors"
    broken = tmp_path / "broken.safetensors"
    for content in (b"", right.read_bytes()[:-5], b"not a run", right.read_bytes()[:50]):
        broken.write_bytes(content)
        assert "cannot be read as a safetensors file" in fails("compare", broken, reference)
        assert "cannot be read as a safetensors file" in fails("compare", right, broken)
    assert fails("compare", tmp_path / "absent", reference).endswith("absent: no such file\n")
    save_file({"pooled": np.ones((2, 3))}, broken)
    assert "has no 'input_ids'" in fails("compare", broken, reference)
    assert "the reference must be a run of e5ref in float64" in fails("compare", right, right)
    assert "neither run has a point 'pool'" in fails("compare", right, reference, "--only", "pool")
    before = right.read_bytes()
    assert "part of the input" in run("compare", right, reference, "--html", right, code=2).stderr.decode()
    assert right.read_bytes() == before
