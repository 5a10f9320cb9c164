"""Recorded runs: the same names, shapes and ids whatever computes them, and next to the same numbers."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

import e5ref
from e5ref import extras, numpy_model
from e5ref.extras import install_command
from e5ref.parity.runs import recording
from e5ref.parity.runs.recording import choose_points, point_shapes, record
from e5ref.parity.runs.run import read_run
from tests.tools.checkpoints import write_random_bert
from tests.tools.processes import fails, run
from tests.tools.runs import first_departure

TEXTS = ["how much protein", "", "the cat and the dog eat what a female should eat", "a"]
FULL_BACKENDS = ["jax", "transformers", "sentence-transformers"]


def points(recorded) -> dict[str, np.ndarray]:
    return {name: array for name, array in recorded.arrays.items() if name not in ("input_ids", "attention_mask")}


@pytest.fixture(scope="module")
def truth(tiny_bert):
    return record(tiny_bert, TEXTS, dtype="float64", prompt_name="query")


def test_the_reference_is_the_forward_pass(truth, tiny_bert):
    model = e5ref.load(tiny_bert, dtype="float64")
    tokens = model.tokenize([f"query: {text}" for text in TEXTS])
    expected: dict[str, np.ndarray] = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
    checkpoint = model.checkpoint
    ids_and_mask = tuple(expected.values())
    numpy_model.embed(checkpoint.params, *ids_and_mask, config=checkpoint.config, tap=expected.__setitem__)
    assert list(truth.arrays) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(truth.arrays[name], array, err_msg=name)


def test_it_says_where_it_comes_from(truth, tiny_bert):
    assert truth.metadata["dtype"] == "float64"
    assert json.loads(truth.metadata["texts"])[0] == "query: how much protein"
    assert json.loads(truth.metadata["tokens"])[0] == ["[CLS]", *"query : how much protein".split(), "[SEP]"]
    provenance = json.loads(truth.metadata["provenance"])
    assert provenance["prompt"] == "query: "
    assert provenance["weights_sha256"] == e5ref.load(tiny_bert).provenance("")["weights_sha256"]


@pytest.mark.peer
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", FULL_BACKENDS)
def test_peers_give_the_same_points(backend, dtype, truth, tiny_bert):
    recorded = record(tiny_bert, TEXTS, backend=backend, dtype=dtype, prompt_name="query")
    np.testing.assert_array_equal(recorded.arrays["input_ids"], truth.arrays["input_ids"])
    reference = {name: array.astype(dtype) for name, array in points(truth).items()}
    assert first_departure(points(recorded), reference, truth.arrays["attention_mask"], dtype) is None
    assert json.loads(recorded.metadata["provenance"])["backend"] == backend


@pytest.mark.peer
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("backend", FULL_BACKENDS)
def test_half_precision_is_recorded_as_such(backend, dtype, truth, tiny_bert):
    recorded = record(tiny_bert, TEXTS, backend=backend, dtype=dtype, prompt_name="query")
    assert recorded.metadata["dtype"] == dtype
    states = recorded.arrays["layers.0.output"]
    if dtype == "float16":
        assert states.dtype == np.float16
    else:  # the upper half of a float32
        assert not (states.view(np.uint32) & 0xFFFF).any()
    assert 1e-5 < np.abs(recorded.arrays["normalized"] - truth.arrays["normalized"]).max() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["numpy", *FULL_BACKENDS])
def test_batches_change_nothing(backend, tiny_bert, monkeypatch):
    """Of two texts each, padded to the longer of them, or with JAX to the longest of all."""
    together = record(tiny_bert, [*TEXTS, "dog"], backend=backend, dtype="float64")
    monkeypatch.setattr(recording, "BATCH_TOKENS", 2 * together.arrays["input_ids"].shape[1])
    apart = record(tiny_bert, [*TEXTS, "dog"], backend=backend, dtype="float64")
    assert list(apart.arrays) == list(together.arrays)
    mask = together.arrays["attention_mask"]
    assert first_departure(points(apart), points(together), mask, "float64") is None


@pytest.mark.peer
@pytest.mark.parametrize("backend", ["transformers", "sentence-transformers"])
def test_trained_weights_with_a_tokenizer_of_their_own(backend, minilm):
    """sentence-transformers' folder layout, modules.json and all; fused attention, as nobody asks for probabilities."""
    texts = ["naïve café, 日本語 and 🙂", "a", "word " * 300]
    only = ["layers.*.output", "last_hidden_state", "pooled", "normalized"]
    with pytest.warns(e5ref.E5Warning, match="1 of 3 texts are longer than 256 tokens"):
        reference = record(minilm, texts, only=only)
    with pytest.warns(e5ref.E5Warning):
        recorded = record(minilm, texts, backend=backend, only=only)
    np.testing.assert_array_equal(recorded.arrays["input_ids"], reference.arrays["input_ids"])
    mask = reference.arrays["attention_mask"]
    assert first_departure(points(recorded), points(reference), mask, "float32") is None
    assert json.loads(recorded.metadata["provenance"])["attention"] == "sdpa"


def test_cls_pooling_without_norm(cls_checkpoint):
    """What the checkpoint's own modules say, in every backend."""
    reference = record(cls_checkpoint, TEXTS, dtype="float64")
    assert list(reference.arrays)[-1] == "pooled"
    np.testing.assert_array_equal(reference.arrays["pooled"], reference.arrays["last_hidden_state"][:, 0])
    for backend in FULL_BACKENDS:
        recorded = record(cls_checkpoint, TEXTS, backend=backend, dtype="float64")
        mask = reference.arrays["attention_mask"]
        assert first_departure(points(recorded), points(reference), mask, "float64") is None


def test_xlm_roberta(tmp_path):
    folder = write_random_bert(tmp_path, model_type="xlm-roberta")
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}'
    )
    reference = record(folder, TEXTS, dtype="float64")
    recorded = record(folder, TEXTS, backend="transformers", dtype="float64")
    mask = reference.arrays["attention_mask"]
    assert first_departure(points(recorded), points(reference), mask, "float64") is None


def test_only_chooses_names_in_order(tiny_bert):
    recorded = record(tiny_bert, "cat", only=["normalized", "layers.*.query"])
    assert list(points(recorded)) == ["layers.0.query", "layers.1.query", "normalized"]
    with pytest.raises(ValueError, match=r"no point 'layers\.2\.query'; this model has embeddings, layers\.0\.query, "):
        record(tiny_bert, "cat", only=["layers.2.query"])


@pytest.mark.parametrize(
    ("texts", "kept"),
    [(1, 20), (10_000, 6), (1 << 20, 2)],
)
def test_large_runs_keep_fewer_points(texts, kept, tiny_bert):
    shapes = point_shapes(e5ref.read_checkpoint(tiny_bert), texts, 64)
    names, left_out = choose_points(shapes, None)
    assert len(names) == kept
    assert names + left_out == sorted(shapes, key=(names + left_out).index)
    assert "normalized" in names


def test_what_is_left_out_is_said(tiny_bert, monkeypatch):
    monkeypatch.setattr(recording, "DEFAULT_VALUES", 8000)
    with pytest.warns(e5ref.E5Warning, match="14 of 20 points are left out to keep"):
        recorded = record(tiny_bert, TEXTS)
    assert list(points(recorded)) == [
        "embeddings",
        "layers.0.output",
        "layers.1.output",
        "last_hidden_state",
        "pooled",
        "normalized",
    ]


@pytest.fixture(scope="module")
def graph(tiny_bert, tmp_path_factory):
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason="graphs need `pip install '.[bench]'`")
    from e5ref.bench.prepare import write_exports

    folder = tmp_path_factory.mktemp("graph")
    write_exports(e5ref.load(tiny_bert), ["onnxruntime"], folder)
    return folder / "model.onnx"


def renamed(graph, output: str, folder):
    """A copy of a graph whose output has another name."""
    import onnx

    model = onnx.load(graph)
    (node,) = [node for node in model.graph.node if "last_hidden_state" in node.output]
    node.output[:] = [output]
    model.graph.output[0].name = output
    onnx.save(model, folder / "renamed.onnx")
    return folder / "renamed.onnx"


def test_a_graph_gives_what_outputs_it_has(graph, truth, tiny_bert):
    recorded = record(tiny_bert, TEXTS, backend=f"onnx:{graph}", prompt_name="query")
    assert list(points(recorded)) == ["last_hidden_state"]
    assert recorded.metadata["dtype"] == "float32"
    reference = {"last_hidden_state": truth.arrays["last_hidden_state"].astype("f4")}
    assert first_departure(points(recorded), reference, truth.arrays["attention_mask"], "float32") is None


def test_outputs_are_known_by_several_names(graph, truth, tiny_bert, tmp_path):
    recorded = record(tiny_bert, TEXTS, backend=f"onnx:{renamed(graph, 'token_embeddings', tmp_path)}")
    assert list(points(recorded)) == ["last_hidden_state"]
    recorded = record(tiny_bert, TEXTS, backend=f"onnx:{renamed(graph, 'layers.1.output', tmp_path)}")
    assert list(points(recorded)) == ["layers.1.output"]


def test_a_graph_without_a_known_output(graph, tiny_bert, tmp_path):
    file = renamed(graph, "logits", tmp_path)
    (tmp_path / "texts.txt").write_text("cat\n")
    command = ["record", tiny_bert, "-i", tmp_path / "texts.txt", "-o", tmp_path / "run.safetensors"]
    assert "none of its outputs (logits) is a point to record" in fails(*command, "--backend", f"onnx:{file}")
    (tmp_path / "no.onnx").write_text("no graph")
    assert "onnxruntime cannot load it" in fails(*command, "--backend", f"onnx:{tmp_path / 'no.onnx'}")


def test_the_command(tiny_bert, tmp_path):
    (tmp_path / "texts.txt").write_text("cat\nquery: dog\n")
    output = tmp_path / "run.safetensors"
    command = ["record", tiny_bert, "-i", tmp_path / "texts.txt", "-o", output, "--only", "pooled,layers.1.*"]
    result = run(*command, "--prompt", "query")
    assert result.stdout == b""
    assert b"1 of 2 texts start with 'query: ' already, and get it twice" in result.stderr
    recorded = read_run(output)
    assert json.loads(recorded.metadata["texts"]) == ["query: cat", "query: query: dog"]
    assert list(points(recorded))[-1] == "pooled"
    assert len(points(recorded)) == 9
    assert b"1 of 2 texts start with none of the prompts" in run(*command, "--force").stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backend", "tensorflow"], "backend is 'tensorflow', but must be one of numpy, jax, transformers"),
        (["--backend", "onnx:"], "backend is 'onnx:', but must be"),
        (["--backend", "onnx:nowhere.onnx"], "nowhere.onnx: no such file"),
        (["--dtype", "bfloat16"], "dtype is 'bfloat16', but backend 'numpy' has float32, float64"),
        (["--only", "layers.9.output"], "there is no point 'layers.9.output'"),
        (["--prompt", "query: "], "'query: ' is not one of"),
        (["-o", "run.npy"], "run.npy: the name must end in .safetensors"),
    ],
)
def test_wrong_options_are_explained(options, message, tiny_bert, tmp_path):
    (tmp_path / "texts.txt").write_text("cat\n")
    output = tmp_path / "run.safetensors"
    assert message in fails("record", tiny_bert, "-i", tmp_path / "texts.txt", "-o", output, *options)
    assert not output.exists()


def test_no_texts(tiny_bert, tmp_path):
    assert "there are no texts" in fails("record", tiny_bert, "-i", "-", "-o", tmp_path / "run.safetensors")


@pytest.mark.parametrize("backend", ["transformers", "sentence-transformers", "onnx:{graph}"])
def test_a_missing_package_is_named(backend, tiny_bert, tmp_path, monkeypatch):
    graph = tmp_path / "model.onnx"
    graph.touch()  # where it is missing, that is said first
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=re.escape(install_command("parity"))):
        record(tiny_bert, "cat", backend=backend.format(graph=graph))


def test_nothing_heavy_comes_with_the_reference(tiny_bert):
    code = f"import sys; from e5ref.parity import record; record({str(tiny_bert)!r}, 'cat'); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"jax", "torch", "transformers", "onnxruntime"} & set(result.split())
