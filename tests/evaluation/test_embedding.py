"""Vectors for an evaluation, and the cache: found only where all that they depend on is the same."""

import dataclasses
import os

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import e5ref
from e5ref.evaluation import embedding, evaluate_retrieval, search
from tests.tools.beir import DOCUMENTS, write_beir
from tests.tools.checkpoints import edit_json, write_random_bert

TEXTS = ["cat", "the dog", "a " * 99]


@pytest.fixture
def embedded(monkeypatch):
    """The texts that a model embeds, in the order that they come."""
    embedded = []
    encode = e5ref.E5.encode_stream

    def record(self, texts, **options):
        embedded.extend(texts)
        return encode(self, texts, **options)

    monkeypatch.setattr(e5ref.E5, "encode_stream", record)
    return embedded


def test_vectors_are_those_of_encode(model, monkeypatch):
    monkeypatch.setattr(model.engine, "first_texts", 2)
    monkeypatch.setattr(model.engine, "window_texts", 2)
    vectors, cut, doubled = embedding.embed(model, TEXTS, "query: ")
    np.testing.assert_array_equal(vectors, model.encode_query(TEXTS, truncation="allow"))
    assert (cut, doubled) == (1, 0)
    assert embedding.embed(model, ["query: a", "b"], "query: ").doubled == 1
    assert embedding.embed(model, [], "query: ").vectors.shape == (0, 32)


def test_vectors_are_normalised_whatever_the_checkpoint_does(model):
    settings = dataclasses.replace(model.checkpoint.settings, normalize=False)
    raw = e5ref.E5(dataclasses.replace(model.checkpoint, settings=settings))
    np.testing.assert_allclose(np.linalg.norm(embedding.embed(raw, TEXTS, "").vectors, axis=1), 1, rtol=0, atol=1e-6)


def test_vectors_are_found_again(model, tmp_path, embedded):
    first = embedding.embed(model, TEXTS, "query: ", cache=tmp_path / "new" / "cache")
    assert embedded == TEXTS
    again = embedding.embed(model, TEXTS, "query: ", cache=tmp_path / "new" / "cache")
    assert embedded == TEXTS
    np.testing.assert_array_equal(first.vectors, again.vectors)
    assert again[1:] == first[1:] == (1, 0)


def test_the_file_says_where_it_comes_from(model, tmp_path):
    embedding.embed(model, TEXTS, "query: ", cache=tmp_path)
    (path,) = tmp_path.iterdir()
    with safe_open(path, "numpy") as file:
        facts = file.metadata()
    expected = model.provenance("query: ")
    assert {key: facts[key] for key in expected if key in facts} == {
        key: value for key, value in expected.items() if key not in embedding.PLACES
    }
    assert len(facts["texts_sha256"]) == 64


@pytest.mark.parametrize(
    "what", ["a text", "order", "prompt", "max_length", "dtype", "backend", "weights", "tokenizer"]
)
def test_vectors_of_something_else_are_not_found(tiny_bert, tiny_copy, tmp_path, embedded, what):
    """Each change alone makes all texts be embedded again."""
    cache, texts, prompt, options = tmp_path / "cache", ["cat", "the dog"], "query: ", {}
    embedding.embed(e5ref.load(tiny_bert), texts, prompt, cache=cache)
    embedded.clear()
    if what == "a text":
        texts = ["cat", "the dogs"]
    elif what == "order":
        texts = ["the dog", "cat"]
    elif what == "prompt":
        prompt = "passage: "
    elif what == "max_length":
        options = {"max_length": 10}
    elif what == "dtype":
        options = {"dtype": "float64"}
    elif what == "backend":
        options = {"backend": "jax"}
    elif what == "weights":
        tiny_copy = write_random_bert(tmp_path / "other", seed=1)
    elif what == "tokenizer":
        edit_json(tiny_copy / "tokenizer.json", version="1.0", padding=None, truncation=None)
        (tiny_copy / "tokenizer.json").write_text((tiny_copy / "tokenizer.json").read_text() + "\n")
    embedding.embed(e5ref.load(tiny_copy, **options), texts, prompt, cache=cache)
    assert embedded == texts


def test_a_copy_of_the_checkpoint_finds_them(tiny_bert, tiny_copy, tmp_path, embedded):
    for folder in (tiny_bert, tiny_copy):
        embedding.embed(e5ref.load(folder), TEXTS, "", cache=tmp_path / "cache")
    assert embedded == TEXTS


@pytest.mark.parametrize("damage", ["cut short", "empty", "other vectors under this name"])
def test_a_damaged_file_is_made_anew(model, tmp_path, embedded, damage):
    first = embedding.embed(model, TEXTS, "", cache=tmp_path)
    (path,) = tmp_path.iterdir()
    if damage == "other vectors under this name":
        save_file({"embeddings": np.zeros((3, 32), np.float32)}, path, {"cut": "0", "prompt": "query: "})
    else:
        path.write_bytes(path.read_bytes()[:100] if damage == "cut short" else b"")
    with pytest.warns(UserWarning, match="is damaged .* made again"):
        again = embedding.embed(model, TEXTS, "", cache=tmp_path)
    assert embedded == 2 * TEXTS
    np.testing.assert_array_equal(again.vectors, first.vectors)
    assert embedding.embed(model, TEXTS, "", cache=tmp_path).cut == 1
    assert embedded == 2 * TEXTS


def test_a_run_that_was_stopped_continues(model, tmp_path, embedded, monkeypatch):
    """Stopped in the third block of documents: the next run embeds that and what follows, and finds the same."""
    monkeypatch.setattr(search, "BLOCK_DOCUMENTS", 2)
    documents = DOCUMENTS | {f"e{number}": ("", f"green {'plant ' * number}") for number in range(5)}
    folder = write_beir(tmp_path / "set", documents)
    expected = evaluate_retrieval(model, folder)[0]["scores"]
    embedded.clear()

    encode = e5ref.E5.encode_stream

    def stop(self, texts, **options):
        if "water and light" in texts:
            raise KeyboardInterrupt
        return encode(self, texts, **options)

    cache = tmp_path / "cache"
    with monkeypatch.context() as patched:
        patched.setattr(e5ref.E5, "encode_stream", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate_retrieval(model, folder, cache=cache)
    assert len(embedded) == 2 + 4
    assert len(list(cache.iterdir())) == 3
    embedded.clear()
    assert evaluate_retrieval(model, folder, cache=cache)[0]["scores"] == expected
    assert embedded[0] == "water and light"
    assert len(embedded) == 6
    embedded.clear()
    assert evaluate_retrieval(model, folder, cache=cache, k=[1])[0]["scores"]["ndcg@1"] >= 0
    assert embedded == []


def test_a_changed_document_changes_its_block_only(model, tmp_path, embedded, monkeypatch):
    monkeypatch.setattr(search, "BLOCK_DOCUMENTS", 2)
    cache = tmp_path / "cache"
    evaluate_retrieval(model, write_beir(tmp_path / "set"), cache=cache)
    embedded.clear()
    changed = write_beir(tmp_path / "set", DOCUMENTS | {"d3": ("", "the sun")})
    scores = evaluate_retrieval(model, changed, cache=cache)[0]["scores"]
    assert embedded == ["the sun", "The sun"]
    assert scores == evaluate_retrieval(model, changed)[0]["scores"]


def test_a_cache_that_cannot_be_written_says_so(model, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OSError, match="cache"):
        embedding.embed(model, TEXTS, "", cache=tmp_path / "cache")
    assert os.listdir(tmp_path) == ["cache"]
