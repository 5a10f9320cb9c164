"""Trees of PyTorch modules as references: what is recorded, what rounding costs, and what a port of one did wrong."""

import copy
import dataclasses
import itertools
import json
import re
import subprocess
import sys
import time
from functools import cache, partial

import numpy as np
import pytest

from e5ref.parity.golden.kit import check_kit, write_modules_kit
from e5ref.parity.judge.comparison import compare
from e5ref.parity.judge.report import text_report
from e5ref.parity.modules.identify import explain_modules
from e5ref.parity.modules.recording import record_modules
from e5ref.parity.modules.tree import open_tree, tree_of
from e5ref.parity.runs.run import write_run
from tests.parity.modules.models import ARCHITECTURES, write_model
from tests.tools.processes import fails

torch = pytest.importorskip("torch")

TEXTS = ["query: how do plants eat", f"passage: {'leaves turn light into sugar ' * 8}", "a", "Café 日本 🙂"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Architecture → its tree, and the reference."""
    folder = tmp_path_factory.mktemp("models")

    @cache
    def of(name):
        tree = open_tree(write_model(name, folder / name))
        return tree, record_modules(tree, TEXTS)

    return of


def port(tree, change):
    """Make a tree whose modules were changed, as a port computes it."""

    def build(dtype):
        module = tree.build(dtype)
        with torch.no_grad():
            change(module)
        return module

    return dataclasses.replace(tree, build=build)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_right_port_passes(recorded, name, dtype):
    tree, reference = recorded(name)
    assert compare(record_modules(tree, TEXTS[::-1], dtype=dtype), record_modules(tree, TEXTS[::-1])).passed
    comparison = compare(record_modules(tree, TEXTS, dtype=dtype), reference)
    assert comparison.passed, text_report(comparison)
    assert len(comparison.verdicts) == len(reference.modules) >= 30


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_reference_is_float64_throughout(recorded, name):
    """The norms of Qwen and Gemma ask for float32, and positions are computed before the first text."""
    _, reference = recorded(name)
    assert {array.dtype for point, array in reference.points.items()} == {np.dtype(np.float64)}
    for point, array in reference.points.items():
        if "Embedding" not in reference.modules[point]["kind"] or "Rotary" in reference.modules[point]["kind"]:
            assert np.mean(array != array.astype(np.float32)) > 0.1, point


def no_bias(path, module):
    module.get_submodule(path).bias.zero_()


def weight_of(path, other, module):
    module.get_submodule(path).weight.copy_(module.get_submodule(other).weight)


def activation(path, made, module):
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, made)


def set_attribute(path, name, value, module):
    setattr(module.get_submodule(path), name, value)


def rows_in_order(path, order, module):
    weight = module.get_submodule(path).weight
    parts = weight.chunk(len(order))
    weight.copy_(torch.cat([parts[part].clone() for part in order]))


def rounded(path, bits, module):
    weight = module.get_submodule(path).weight
    scale = weight.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
    weight.copy_((weight / scale).round() * scale)


MLP = "encoder.layer.1.intermediate"
PLANTED = [
    (
        "mpnet",
        "encoder.layer.1.attention.attn.q",
        partial(no_bias, "encoder.layer.1.attention.attn.q"),
        "the bias is missing",
    ),
    (
        "mpnet",
        "encoder.layer.0.attention.attn.k",
        partial(weight_of, "encoder.layer.0.attention.attn.k", "encoder.layer.0.attention.attn.v"),
        "the weight of encoder.layer.0.attention.attn.v is used",
    ),
    (
        "mpnet",
        f"{MLP}.intermediate_act_fn",
        partial(activation, f"{MLP}.intermediate_act_fn", torch.nn.GELU(approximate="tanh")),
        "the activation is GELU in its tanh form",
    ),
    (
        "mpnet",
        "encoder.layer.0.output.LayerNorm",
        partial(set_attribute, "encoder.layer.0.output.LayerNorm", "eps", 1e-3),
        "LayerNorm has epsilon 1e-3",
    ),
    (
        "modernbert",
        "layers.0.attn.Wqkv",
        partial(rows_in_order, "layers.0.attn.Wqkv", (1, 0, 2)),
        "the thirds of the rows are in the order 2, 1, 3",
    ),
    (
        "modernbert",
        "layers.1.mlp.Wi",
        partial(rows_in_order, "layers.1.mlp.Wi", (1, 0)),
        "the halves of the rows are in the order 2, 1",
    ),
    (
        "modernbert",
        "layers.1.mlp.Wo",
        partial(rounded, "layers.1.mlp.Wo", 8),
        "the weight is in 8-bit whole numbers with one scale for each row",
    ),
    (
        "qwen3",
        "layers.1.self_attn.q_norm",
        partial(weight_of, "layers.1.self_attn.q_norm", "layers.0.self_attn.k_norm"),
        "the norm has the weight of layers.0.self_attn.k_norm",
    ),
    (
        "qwen3",
        "layers.0.mlp.act_fn",
        partial(activation, "layers.0.mlp.act_fn", torch.nn.GELU()),
        "the activation is GELU with erf",
    ),
    (
        "gemma3",
        "layers.0.mlp.act_fn",
        partial(activation, "layers.0.mlp.act_fn", torch.nn.GELU()),
        "the activation is GELU with erf",
    ),
    (
        "gemma3",
        "embed_tokens",
        partial(set_attribute, "embed_tokens", "embed_scale", torch.tensor(1.0)),
        "the rows are multiplied by 0.125",
    ),
]


@pytest.mark.parametrize(("name", "path", "change", "says"), PLANTED, ids=[f"{one[0]} {one[1]}" for one in PLANTED])
def test_what_was_planted_is_identified(recorded, name, path, change, says):
    tree, reference = recorded(name)
    run = record_modules(port(tree, change), TEXTS, dtype="float32")
    comparison = compare(run, reference)
    assert comparison.first_departure.name == path
    found = explain_modules(run, reference, tree, comparison)
    assert [one.mistake for one in found] == [f"{path}: {says}"]


BETWEEN = [
    ("modernbert", "rotary_emb.full_attention", lambda module: module.rotary_emb.full_attention_inv_freq.mul_(1.01)),
    (
        "qwen3",
        "layers.0.self_attn.o_proj.input",
        lambda module: set_attribute("layers.0.self_attn", "scaling", 0.2, module),
    ),
    ("qwen3", "rotary_emb", lambda module: module.rotary_emb.inv_freq.mul_(1.01)),
]


@pytest.mark.parametrize(("name", "point", "change"), BETWEEN, ids=[one[1] for one in BETWEEN])
def test_what_stands_between_modules_is_located_and_not_named(recorded, name, point, change):
    tree, reference = recorded(name)
    run = record_modules(port(tree, change), TEXTS, dtype="float32")
    comparison = compare(run, reference)
    assert comparison.first_departure.name == point
    assert explain_modules(run, reference, tree, comparison) == []


def test_noise_is_measured_and_not_named(recorded):
    tree, reference = recorded("mpnet")
    path = "encoder.layer.1.output.dense"

    def noise(module):
        weight = module.get_submodule(path).weight
        weight += 0.01 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))

    run = record_modules(port(tree, noise), TEXTS, dtype="float32")
    (found,) = explain_modules(run, reference, tree, compare(run, reference))
    assert not found.explains
    noise_of = f"{re.escape(path)}: the product is that of a weight which differs by noise of relative size (0.9|1.0)%"
    assert re.match(noise_of, found.mistake)


def test_no_candidate_is_tried_when_the_time_is_over(recorded, monkeypatch):
    tree, reference = recorded("mpnet")
    path = "encoder.layer.1.output.dense"
    run = record_modules(port(tree, partial(weight_of, path, "encoder.layer.0.output.dense")), TEXTS, dtype="float32")
    comparison = compare(run, reference)
    seconds = itertools.count()
    monkeypatch.setattr(time, "monotonic", partial(next, seconds))
    assert not any(found.explains for found in explain_modules(run, reference, tree, comparison, seconds=1.5))
    assert next(seconds) < 6  # the beginning, one module, one candidate, and the end


class Doubled(torch.nn.Module):
    """In the place of the norm."""

    def forward(self, features):
        return features | {"sentence_embedding": 2 * features["sentence_embedding"]}


@pytest.mark.parametrize(
    ("point", "change"),
    [
        ("1", lambda module: setattr(module[1], "pooling_mode", "mean")),
        ("2.linear", lambda module: module[2].linear.weight.mul_(1.5)),
        ("3", partial(activation, "3", Doubled())),
    ],
    ids=["pooling", "dense", "norm"],
)
def test_what_sentence_transformers_adds(sentences, point, change):
    """Only the Dense layer has a name; nothing is said of the others, and nothing wrong."""
    folder, _ = sentences
    tree = open_tree(folder)
    reference = record_modules(tree, TEXTS)
    run = record_modules(port(tree, change), TEXTS, dtype="float32")
    comparison = compare(run, reference)
    assert comparison.first_departure.name == point
    found = [one.mistake for one in explain_modules(run, reference, tree, comparison) if one.point == point]
    assert found == (["2.linear: the weight is multiplied by 1.5"] if point == "2.linear" else [])


def test_positions_are_no_token_ids(recorded):
    """MPNet's positions begin at 2. They are ids of an embedding, but not the text's."""
    tree, reference = recorded("mpnet")

    def shifted(module):
        weight = module.embeddings.position_embeddings.weight
        weight.copy_(weight.roll(1, dims=0))

    run = record_modules(port(tree, shifted), TEXTS, dtype="float32")
    comparison = compare(run, reference)
    assert comparison.first_departure.name == "embeddings.position_embeddings"
    assert explain_modules(run, reference, tree, comparison) == []


def test_the_model_must_be_the_references(recorded):
    (tree, reference), (_, other) = recorded("qwen3"), recorded("gemma3")
    run = record_modules(port(tree, lambda module: module.norm.weight.mul_(2)), TEXTS, dtype="float32")
    different = port(tree, lambda module: [layer.self_attn.q_proj.weight.mul_(2) for layer in module.layers])
    with pytest.raises(ValueError, match="not that of the reference"):
        explain_modules(
            run,
            reference,
            port(different, lambda module: [one.mul_(2) for one in module.parameters()]),
            compare(run, reference),
        )
    assert other.modules


def test_what_changes_in_place(recorded):
    """The sum is made in the array that the linear layer gave, and the norm's input is the sum."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.l, self.n = torch.nn.Embedding(10, 6), torch.nn.Linear(6, 6), torch.nn.LayerNorm(6)

        def forward(self, input_ids):
            words = self.words(input_ids)
            states = self.l(words)
            states += words
            return self.n(states)

    net = Net()
    tree = tree_of(net, lambda text: {"input_ids": torch.arange(len(text))[None]})
    reference = record_modules(tree, ["abc", "abcde"])
    assert list(reference.modules) == ["words", "l", "n.input", "n"]
    assert reference.modules["n"]["from"] == ["n.input"]
    run = record_modules(port(tree, lambda net: net.l.weight.mul_(1.5)), ["abc", "abcde"], dtype="float32")
    found = [one.mistake for one in explain_modules(run, reference, tree, compare(run, reference))]
    assert found == ["l: the weight is multiplied by 1.5"]


def test_what_overflows_in_float16_is_left_out(tmp_path, recorded):
    tree, _ = recorded("mpnet")
    path = "encoder.layer.1.intermediate.dense"
    large = port(tree, lambda module: module.get_submodule(path).weight.mul_(1e6))
    reference = record_modules(large, TEXTS)
    assert path not in reference.rounding["float16"]
    run = record_modules(large, TEXTS, dtype="bfloat16")
    assert compare(run, reference).passed
    half = compare(record_modules(large, TEXTS, dtype="float16"), reference)
    assert half.passed
    assert path not in [verdict.name for verdict in half.verdicts]


def test_the_last_token_of_a_text_of_one(recorded):
    """[1, 1, n] and [1, n] are the same place in memory."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.last = torch.nn.Embedding(10, 6), Last()

        def forward(self, input_ids):
            return self.last(self.words(input_ids))

    class Last(torch.nn.Module):
        def forward(self, states):
            return states[:, -1]

    tree = tree_of(Net(), lambda text: {"input_ids": torch.arange(len(text))[None]})
    for texts in (["a"], ["a", "abc"]):
        assert record_modules(tree, texts).points["last"].shape == (len(texts), 6)


def test_any_module(recorded):
    """A tree that transformers knows nothing of."""
    ids = {"a": [5, 6, 7], "b": [8]}

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.linear, self.gelu = torch.nn.Embedding(10, 6), torch.nn.Linear(6, 4), torch.nn.GELU()

        def forward(self, input_ids):
            return self.gelu(self.linear(self.words(input_ids))).mean(dim=1)

    net = Net()
    tree = tree_of(net, lambda text: {"input_ids": torch.tensor([ids[text]])})
    reference = record_modules(tree, ["a", "b"])
    assert list(reference.modules) == ["words", "linear", "gelu"]
    assert reference.modules["linear"] == {"kind": "Linear", "from": ["words"]}
    assert reference.points["linear"].shape == (2, 3, 4)
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.linear.bias *= 2
    run = record_modules(dataclasses.replace(tree_of(other, tree.inputs)), ["a", "b"], dtype="float32")
    (found,) = explain_modules(run, reference, tree, compare(run, reference))
    assert found.mistake == "linear: the bias is added twice"
    assert next(net.parameters()).dtype == torch.float32


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """A folder with modules.json: Qwen3, its last token, a Dense, as EmbeddingGemma has, and a norm."""
    folder = tmp_path_factory.mktemp("sentences")
    package = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    transformer = modules.Transformer(str(write_model("qwen3", folder / "network")))
    pooling = modules.Pooling(transformer.get_embedding_dimension(), "lasttoken")
    parts = [transformer, pooling, modules.Dense(64, 32), modules.Normalize()]
    model = package.SentenceTransformer(modules=parts, device="cpu")
    model.save(str(folder / "model"))
    return folder / "model", model.encode(TEXTS)


def test_sentence_transformers_modules(sentences):
    folder, vectors = sentences
    reference = record_modules(open_tree(folder), TEXTS)
    *_, pooling, dense, _, norm = reference.points
    assert (pooling, dense, norm) == ("1", "2.linear", "3")
    np.testing.assert_allclose(reference.points[norm], vectors, atol=5e-7)
    assert json.loads(reference.metadata["provenance"])["backend"] == "sentence-transformers modules"


def test_a_kit(sentences, tmp_path):
    """The kit's own checker and e5ref's pass what the modules give in float32, and fail a port without its norm."""
    folder, _ = sentences
    write_modules_kit(folder, tmp_path / "kit")
    tree, content = open_tree(folder), json.loads((tmp_path / "kit" / "kit.json").read_text())
    wrong = port(tree, partial(activation, "3", torch.nn.Identity()))
    for name, one in (("right", tree), ("wrong", wrong)):
        (tmp_path / name).mkdir()
        for batch, entry in content["batches"].items():
            run = record_modules(one, entry["texts"], dtype="float32")
            write_run(run, tmp_path / name / f"{batch}.safetensors")
    assert {one.passed for one in check_kit(tmp_path / "kit", tmp_path / "right").values()} == {True}
    assert not any(one.passed for one in check_kit(tmp_path / "kit", tmp_path / "wrong").values())
    for name, code in (("right", 0), ("wrong", 1)):
        command = [sys.executable, str(tmp_path / "kit" / "check.py"), str(tmp_path / name)]
        assert subprocess.run(command, capture_output=True, check=False).returncode == code
    readme = (tmp_path / "kit" / "README.md").read_text()
    assert "| `0.model.layers.0.self_attn.q_proj` | [B, T, 64] | Linear |" in readme
    assert "--only 3` judges only what comes last" in readme
    assert len(content["batches"]["traps"]["points"]) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "nowhere: holds no model; give a folder with config.json, or modules.json"),
        (["e5ref-nano", "--prompt", "query"], "give a folder, and texts with their prompts"),
    ],
)
def test_the_command_says_what_it_wants(arguments, says, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("a\n")
    output = ["-o", str(tmp_path / "run.safetensors")]
    assert says in fails("record", *arguments, "-i", str(texts), "--backend", "modules", *output)


def test_a_folder_that_cannot_be_loaded(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "unheard of"}')
    with pytest.raises(ValueError, match="cannot be loaded"):
        open_tree(tmp_path)


@pytest.mark.parametrize(("text", "tokens", "name"), [("", 2, "k"), ("a a", 4, "q"), ("a " * 14, 16, "q")])
@pytest.mark.parametrize("others", [TEXTS, []], ids=["beside others", "alone"])
def test_as_many_tokens_as_heads(recorded, text, tokens, name, others):
    """How an array lies is not guessed from one shape. Gemma has two key heads and four query heads, of 16 numbers."""
    tree, _ = recorded("gemma3")
    assert tree.inputs(text)["input_ids"].shape[1] == tokens
    reference = record_modules(tree, [*others, text])
    points = {point: array[-1, :tokens] for point, array in reference.points.items()}
    weight = getattr(tree.build("float64").layers[0].self_attn, f"{name}_norm").weight.detach().numpy()
    projected = points[f"layers.0.self_attn.{name}_proj"].reshape(tokens, -1, 16)
    expected = projected / np.sqrt(np.square(projected).mean(axis=-1, keepdims=True)) * (1 + weight)
    np.testing.assert_allclose(points[f"layers.0.self_attn.{name}_norm"], expected.reshape(tokens, -1), rtol=1e-4)


def test_a_text_without_tokens(recorded):
    tree, _ = recorded("qwen3")
    with pytest.raises(ValueError, match="text 1 has no token"):
        record_modules(
            dataclasses.replace(tree, inputs=lambda text: {"input_ids": torch.zeros(1, len(text))}), ["a", ""]
        )


def test_unknown_points_dtypes_and_no_texts(recorded):
    tree, _ = recorded("mpnet")
    for arguments, says in (
        ((["a"], {"only": ["layers.*"]}), "there is no point 'layers\\.\\*'; this model has embeddings"),
        ((["a"], {"dtype": "int8"}), "dtype is 'int8', but must be one of float64"),
        (([], {}), "there are no texts to record"),
    ):
        texts, options = arguments
        with pytest.raises(ValueError, match=says):
            record_modules(tree, texts, **options)
