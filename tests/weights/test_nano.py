"""e5ref-nano, the checkpoint that comes with e5ref, and `e5ref demo`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import e5ref
from e5ref import demo
from e5ref.checkpoint.hub import BUNDLED_CHECKPOINT, weights_folder
from e5ref.evaluation import evaluate_sts
from tests.tools.texts import AWKWARD
from tests.tools.tolerances import VECTORS

FOLDER = weights_folder() / BUNDLED_CHECKPOINT
DEMO = [sys.executable, "-c", "from e5ref.cli import main; main()", "demo"]
NO_SOCKET = """
import sys
def refuse(event, arguments):
    if event.startswith("socket."):
        raise RuntimeError(event)
sys.addaudithook(refuse)
"""


@pytest.fixture(scope="module")
def nano() -> e5ref.E5:
    return e5ref.load("e5ref-nano")


def test_the_folder_is_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 12_000_000


def test_the_table_of_checkpoints_says_what_it_is(nano):
    row = e5ref.known_checkpoints()["e5ref-nano"]
    config = nano.checkpoint.config
    assert {key: row[key] for key in row.keys() & vars(config).keys()}.items() <= vars(config).items()
    assert row["prompts"] == nano.checkpoint.settings.prompts
    assert nano.checkpoint.settings.max_length == config.max_position_embeddings


@pytest.mark.peer
def test_transformers_reads_it(nano):
    import torch
    from transformers import AutoModel, AutoTokenizer

    texts = [f"query: {text}" for text in AWKWARD.values()]
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    np.testing.assert_array_equal(batch["input_ids"], nano.tokenize(texts)["input_ids"])
    model = AutoModel.from_pretrained(FOLDER, dtype=torch.float32, add_pooling_layer=False).eval()
    with torch.inference_mode():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1).numpy()
    assert np.abs(vectors - nano.encode(texts, truncation="allow")).max() <= VECTORS["float32"]


@pytest.mark.peer
def test_sentence_transformers_reads_it(nano):
    from sentence_transformers import SentenceTransformer

    texts = ["how do plants eat", "Leaves turn light into sugar.", "", "naïve café, 日本語 and 🙂"]
    model = SentenceTransformer(str(FOLDER), device="cpu")
    assert model.max_seq_length == nano.tokenizer.max_length
    for ours, theirs in (
        (nano.encode_query(texts), model.encode_query(texts)),
        (nano.encode_document(texts), model.encode_document(texts)),
    ):
        assert np.abs(ours - theirs).max() <= VECTORS["float32"]


def test_a_prompt_is_few_tokens(nano):
    """The recipe makes a token of each prompt's word, so that little of the average is the prompt's."""
    for prompt in nano.checkpoint.settings.prompts.values():
        assert nano.tokenize([prompt])["n_tokens"] == [4]  # [CLS] query : [SEP]


def test_demo_ranks_each_querys_own_passage_first():
    scores = demo.score()
    assert (scores.argmax(axis=1) == [0, 1]).all()
    assert (np.sort(scores, axis=1)[:, 1] - np.sort(scores, axis=1)[:, 0] >= 10).all()  # of 100


def test_demo_needs_no_network_and_only_the_core():
    code = f"{NO_SOCKET}\nfrom e5ref.cli import main\nsys.argv = ['e5ref', 'demo']\nmain()"
    blocked = "\n".join(f"sys.modules[{name!r}] = None" for name in ("jax", "torch", "transformers", "scipy", "optax"))
    result = subprocess.run(
        [sys.executable, "-c", f"import sys\n{blocked}\n{code}"], capture_output=True, encoding="utf-8", check=False
    )
    assert result.returncode == 0, result.stderr
    assert "| query: summit define" in result.stdout
    assert "e5ref rank" in result.stdout


def test_demo_as_json():
    result = subprocess.run([*DEMO, "--json"], capture_output=True, encoding="utf-8", check=True)
    content = json.loads(result.stdout)
    assert np.argmax(content["scores"], axis=1).tolist() == [0, 1]
    assert content["queries"] == list(demo.QUERIES)


def test_it_has_no_revision():
    with pytest.raises(ValueError, match="comes with e5ref"):
        e5ref.load("e5ref-nano", revision="main")


def test_a_folder_of_its_name_goes_first(tmp_path, monkeypatch, tiny_bert):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e5ref-nano").symlink_to(tiny_bert)
    assert e5ref.load("e5ref-nano").checkpoint.config.hidden_size == 32
    with pytest.raises(e5ref.CheckpointError, match="no such folder"):
        e5ref.load(Path("e5ref-mini"))


def test_nothing_falls_back_to_it():
    """Without a hub the default is an error, which names nano and how to bring a checkpoint by hand."""
    assert e5ref.load.__defaults__ == ("intfloat/e5-small-v2",)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent"}
    command = [sys.executable, "-c", "from e5ref.cli import main; main()", "embed", "a"]
    result = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "'e5ref-nano'" in result.stderr
    assert "hf download intfloat/e5-small-v2" in result.stderr


@pytest.mark.slow
def test_scores(shared, nano):
    """What its model card says; tests/evaluation has its score on MS MARCO."""
    (sts,) = evaluate_sts(nano, shared / "stsb" / "sts-dev.tsv")
    assert sts["scores"]["spearman"] >= 0.74
