"""The recipe of e5ref-nano, on a small scale: the documentation that comes with Python stands in for textbooks.

The teacher is e5ref-nano itself: a trained model, and the quickest at hand.
"""

import gzip
import itertools
import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest

import e5ref
from weights import train_nano

STEPS, SCORE_EVERY = 120, 100
SMALL = replace(
    train_nano.CONFIG,
    vocab_size=4000,
    hidden_size=128,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=256,
    max_position_embeddings=32,
)


def write_lines(path: Path, rows: list[dict]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module", autouse=True)
def one_length():
    """Pad all to the most tokens: a program of training for each pair of lengths takes long to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_nano, "LENGTHS", (SMALL.max_position_embeddings,))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    paragraphs = [
        {"book": "Python", "title": title, "section": "", "text": " ".join(text.split())}
        for title, topic in sorted(topics.items())
        for text in topic.split("\n\n")
        if 12 <= len(text.split()) <= 60
    ]
    # Some paragraphs stand there twice; excerpts of different lengths would hide it.
    unique = {" ".join(paragraph["text"].split()[:12]): paragraph for paragraph in paragraphs}
    write_lines(folder / "openstax.jsonl.gz", list(unique.values())[:700])
    meanings = [
        {"terms": ["cat", "puss"], "pos": "n", "definition": "an animal that hunts mice", "examples": ["the cat sat"]},
        {"terms": ["run"], "pos": "v", "definition": "move fast on foot", "examples": ["do not run in the hall"]},
    ]
    write_lines(folder / "wordnet.jsonl.gz", meanings)
    facts = [f"Leaf {number} turns light into sugar, which is what plant {number} eats." for number in range(20)]
    questions = [
        {"question": "What is (are) Leaves ?", "focus": "Leaves", "answer": "\n".join(facts[:3])},
        {"question": "How do plants eat ?", "focus": "Plants", "answer": " ".join(facts[3:])},
        {"question": "What are the treatments ?", "focus": "", "answer": f"{train_nano.LINKS} it. See the library."},
    ]
    write_lines(folder / "medquad.jsonl.gz", questions)
    entries = [{"country": "Chad", "section": "Geography", "field": "Area - land", "text": "1,259,200 sq km"}]
    write_lines(folder / "factbook.jsonl.gz", entries)
    return folder


@pytest.fixture(scope="module")
def teacher() -> e5ref.E5:
    """What it says to some texts it says again without computing it anew."""
    model = e5ref.load("e5ref-nano", truncation="allow")
    encode = cache(model.encode)
    model.encode = lambda texts: encode(tuple(texts))
    return model


@pytest.fixture(scope="module")
def trained(data, teacher, tmp_path_factory) -> tuple[Path, list[dict], Path]:
    """A run to its end: its folder and its lines; and the folder as it was after `SCORE_EVERY` steps."""
    folder, stopped = tmp_path_factory.mktemp("trained"), tmp_path_factory.mktemp("stopped")
    write_state = train_nano.write_state

    def copy(path, state, lines, settings):
        write_state(path, state, lines, settings)
        if lines[-1]["step"] == SCORE_EVERY:
            shutil.copytree(folder, stopped, dirs_exist_ok=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_nano, "write_state", copy)
        lines = train_nano.train(folder, data, teacher, config=SMALL, steps=STEPS, score_every=SCORE_EVERY)
    return folder, lines, stopped


@pytest.mark.slow
def test_it_learns(trained):
    """The loss falls, and pairs that it has not seen are told apart better than at its start."""
    folder, lines, _ = trained
    assert [line["step"] for line in lines] == [0, SCORE_EVERY, STEPS]
    assert lines[2]["loss"] < lines[1]["loss"]
    assert lines[2]["distance"] < lines[1]["distance"]
    assert lines[2]["held_out"] > lines[0]["held_out"]
    assert [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()] == lines


@pytest.mark.slow
def test_it_goes_on_where_it_stopped_with_the_same_result(trained, data, teacher, monkeypatch):
    whole, lines, stopped = trained
    arguments = {"config": SMALL, "steps": STEPS, "score_every": SCORE_EVERY}
    batch, steps = train_nano.Data.batch, itertools.count()

    def stop(self, *pairs_and_lengths):
        if next(steps) == 5:
            raise KeyboardInterrupt
        return batch(self, *pairs_and_lengths)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_nano.Data, "batch", stop)
        with pytest.raises(KeyboardInterrupt):
            train_nano.train(stopped, data, teacher, **arguments)
    taken = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_nano.Data, "batch", lambda *arguments: taken.append(1) or batch(*arguments))
        assert train_nano.train(stopped, data, teacher, **arguments) == lines
    assert len(taken) == STEPS - SCORE_EVERY
    for name in ("model.safetensors", "tokenizer.json", "config.json", "training.jsonl"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()
    # Another seed asks for other texts. What the teacher says to them does not matter.
    monkeypatch.setattr(teacher, "encode", lambda texts: np.ones((len(texts), SMALL.hidden_size), np.float32))
    with pytest.raises(ValueError, match="other settings"):
        train_nano.train(stopped, data, teacher, **arguments, seed=1)


@pytest.mark.slow
def test_a_start_of_chance_is_worse(trained, data, teacher, tmp_path, monkeypatch):
    """Planted: token embeddings that the teacher has not given."""
    first_params = train_nano.first_params

    def of_chance(config, token_vectors, seed):
        return first_params(config, np.random.default_rng(0).normal(size=token_vectors.shape), seed)

    monkeypatch.setattr(train_nano, "first_params", of_chance)
    monkeypatch.setattr(train_nano, "dev_scores", lambda *_: {"held_out": 0.0})
    lines = train_nano.train(tmp_path, data, teacher, config=SMALL, steps=STEPS, score_every=SCORE_EVERY)
    assert lines[-1]["distance"] > 1.2 * trained[1][-1]["distance"]


def test_batches_hold_pairs_of_like_lengths_each_once_an_epoch(monkeypatch):
    monkeypatch.setattr(train_nano, "LENGTHS", (16, 32))
    monkeypatch.setattr(train_nano, "BATCH_TOKENS", 128)  # two pairs of the longest
    ids = [[text] * (1 + text % 32) for text in range(64)]
    pairs = np.random.default_rng(0).integers(64, size=(120, 2))
    examples = train_nano.Data(ids, ids, np.eye(64, dtype=np.float32), pairs, np.arange(120) % 2)
    seen = Counter()
    for batch in itertools.islice(examples.batches(0), 300):
        made = batch()
        lengths = made.query_ids.shape[1], made.passage_ids.shape[1]
        assert len(made.natural) == 128 // sum(lengths)
        longest = made.query_mask.sum(axis=1), made.passage_mask.sum(axis=1)
        for length, tokens in zip(lengths, longest, strict=True):
            assert length == 16 or tokens.min() > 16
            assert tokens.max() <= length
        seen.update(zip(made.query_ids[:, 0].tolist(), made.passage_ids[:, 0].tolist(), strict=True))
        np.testing.assert_array_equal(made.query_targets.argmax(axis=1), made.query_ids[:, 0])
        np.testing.assert_array_equal(made.passage_targets.argmax(axis=1), made.passage_ids[:, 0])
    assert seen.keys() == set(map(tuple, pairs.tolist()))
    drawn = Counter(map(tuple, pairs.tolist()))
    epochs = [seen[pair] / drawn[pair] for pair in drawn]
    assert max(epochs) - min(epochs) <= 1


@pytest.mark.slow
def test_held_out_pairs_are_not_trained_on(data, teacher, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(train_nano, "dev_scores", lambda folder, held_out, *_: seen.extend(held_out) or {})
    examples = []
    monkeypatch.setattr(train_nano.Data, "batches", lambda self, seed: examples.append(self) or iter([]))
    train_nano.train(tmp_path, data, teacher, config=SMALL, steps=1)
    tokenizer = e5ref.load(tmp_path, truncation="allow").tokenizer
    trained = {tuple(examples[0].query_ids[text]) for pair in examples[0].pairs for text in pair}
    assert len(seen) > 10
    tokens = tokenizer([f"query: {text}" for pair in seen for text in (pair.query, pair.passage)])
    for ids, count in zip(tokens.texts(), tokens.n_tokens, strict=True):
        if count > 12:  # two short texts may well have the same tokens
            assert tuple(ids.tolist()) not in trained


def test_pairs(data):
    pairs = train_nano.read_pairs(data, 0)
    assert pairs == train_nano.read_pairs(data, 0) != train_nano.read_pairs(data, 1)
    kinds = {pair.kind for pair in pairs}
    # Of the one synonym that there is, chance decides.
    textbook = {"heading", "sentence", "next sentence", "next paragraph"}
    assert kinds | {"synonym"} == textbook | {"definition", "example", "synonym", "changed", "question", "entry"}
    for pair in pairs:
        if pair.kind == "question":
            assert pair.query.removesuffix("?") in ("What is Leaves", "What are Leaves", "How do plants eat") or (
                "Plants" in pair.query
            )
            assert "library" not in pair.passage
        if pair.kind == "entry":
            assert "area land" in pair.query
            assert "1,259,200 sq km" in pair.passage
        if pair.kind == "sentence":
            assert pair.query in pair.passage
        if pair.kind == "changed":
            assert pair.query != pair.passage


def test_excerpts():
    """Whole sentences in a row, of about as many words as one of the lengths, or one that is longer."""
    rng = random.Random(0)
    sentences = [f"{number} {'word ' * 18}end." for number in range(20)] + ["long " * 300]
    found = [train_nano.excerpt(sentences, rng) for _ in range(300)]
    lengths = {len(text.split()) for text in found}
    assert max(lengths - {300}) == 160
    assert lengths >= {40, 80, 160, 300}
    assert all(text in " ".join(sentences) for text in found)
    assert len({text.split()[0] for text in found}) > 10
    assert train_nano.excerpt(["Short."], rng) == "Short."


def test_the_vocabulary_is_what_the_teacher_uses_most():
    vocab = ["[PAD]", "[unused0]", "[CLS]", "!", "é", "ß", "a", "##a", "the", "##ing", "ab c", "query", "zebra"]
    texts = ["straße " * train_nano.MIN_LETTER_COUNT + "café"]
    chosen = train_nano.choose_tokens(vocab, texts, 100)
    assert chosen == [*train_nano.SPECIAL_TOKENS, "query", "!", "ß", "a", "##a", "the", "##ing", "zebra"]
    assert train_nano.choose_tokens(vocab, texts, 8) == chosen[:8]


def test_without_texts(tmp_path, teacher):
    with pytest.raises(ValueError, match="must have openstax"):
        train_nano.train(tmp_path / "out", tmp_path, teacher, steps=1)


def test_the_command_says_what_it_wants():
    command = [sys.executable, str(train_nano.__file__), "out", "--data", "nowhere", "--teacher", "x"]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert result.returncode == 2
    assert "Directory 'nowhere' does not exist" in result.stderr
