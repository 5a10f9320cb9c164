"""One mistake at a time, in float32: the judge fails it, says where it is, and calls it by its name."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import e5ref
import e5ref.parity
from e5ref.batching import pad_ids
from e5ref.parity.compare import compare
from e5ref.parity.explain import explain
from e5ref.parity.reference import run_reference
from tests.conftest import write_random_bert
from tests.mutants.planted import NEEDS_EPSILON, PLANTED, planted
from tests.parity.runs import reference_run, run_of
from tests.peers import transformers_run

TEXTS = ["query: naïve Café", "passage: How much protein should a female eat, and why", "a"]

# Models to plant mistakes in; e5ref-nano belongs here once it is there.
MODELS = ["random", "trained"]


def make_model(name: str, folder: Path, minilm: Path) -> Path:
    """A checkpoint with MiniLM's tokenizer."""
    if name == "trained":
        return minilm
    write_random_bert(
        folder,
        vocab_size=30522,
        hidden_size=384,
        num_attention_heads=12,
        intermediate_size=1536,
        initializer_range=0.06,
    )
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(minilm / file, folder / file)
    return folder


class Judged:
    """A checkpoint, its reference run, and what judges a mutant of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.single = e5ref.read_checkpoint(folder)
        self.double = e5ref.read_checkpoint(folder, dtype="float64")
        self.tokenizer = e5ref.load(folder).tokenizer
        self.batch = pad_ids([text.ids for text in self.tokenizer(TEXTS)], self.tokenizer.pad_id)
        self.reference = reference_run(folder, *self.batch, texts=TEXTS)

    def run(self, model):
        return run_of(run_reference(self.single, *self.batch, model=model), self.reference)

    def judge(self, run):
        comparison = compare(run, self.reference)
        return comparison, explain(run, self.reference, self.double, comparison)


@pytest.fixture(scope="module", params=MODELS)
def judged(request, tmp_path_factory, minilm) -> Judged:
    return Judged(make_model(request.param, tmp_path_factory.mktemp("judged") / "model", minilm))


def test_unchanged_passes(judged):
    comparison, explanations = judged.judge(judged.run(e5ref.numpy_model))
    assert comparison.passed
    assert explanations == []


@pytest.mark.parametrize("name", PLANTED)
def test_mistake(name, judged):
    _, _, point, known = PLANTED[name]
    comparison, explanations = judged.judge(judged.run(planted(name)))
    if name in NEEDS_EPSILON:
        assert comparison.passed
        return
    assert not comparison.passed
    assert comparison.first_departure.name == point
    explaining = [one for one in explanations if one.explains]
    if known is None:
        assert explaining == []
        return
    assert explaining, [str(one) for one in explanations[:3]]
    assert explaining[0].mistake == known, [str(one) for one in explaining]
    assert explaining[0].after < explaining[0].before / 10


def test_mask_ignored_by_transformers(judged):
    """Made by another library: all tokens attend to padding."""
    ids, mask = judged.batch
    points = transformers_run(judged.folder, ids, np.ones_like(mask), "float32")
    pooled = (points["last_hidden_state"] * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    pooled = pooled.astype(np.float32)
    points |= {"pooled": pooled, "normalized": e5ref.numpy_model.l2_normalize(pooled)}
    comparison, explanations = judged.judge(run_of(points, judged.reference))
    assert comparison.first_departure.name == "layers.0.attention_probabilities"
    assert explanations[0].mistake == "attention mask ignored"
    assert explanations[0].explains


@pytest.mark.parametrize(
    ("name", "texts", "change"),
    [
        ("cased", TEXTS, {"lowercase": False}),
        ("accents kept", TEXTS, {"strip_accents": False}),
        ("no [CLS] and no [SEP]", TEXTS, {"add_special_tokens": False}),
    ],
)
def test_tokens(name, texts, change, judged):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(judged.folder / "tokenizer.json"))
    tokenizer.no_padding()
    normalizer = tokenizer.normalizer
    for option, value in change.items():
        if option != "add_special_tokens":
            setattr(normalizer, option, value)
    tokenizer.normalizer = normalizer
    special = change.get("add_special_tokens", True)
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=special)]
    input_ids, attention_mask = pad_ids(ids, 0)
    points = run_reference(judged.single, input_ids, attention_mask)
    run = e5ref.parity.Run(
        {"input_ids": input_ids, "attention_mask": attention_mask} | points,
        {"dtype": "float32", "texts": json.dumps(texts)},
    )
    comparison, explanations = judged.judge(run)
    assert comparison.first_departure.name == "input_ids"
    assert explanations[0].mistake == name


def test_there_are_forty():
    assert len(PLANTED) + 4 >= 50
