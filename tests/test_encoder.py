"""From text to vector: against sentence-transformers, options, bad input."""

import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

import e5ref
from e5ref import numpy_model
from tests.tools.checkpoints import E5_SMALL, write_random_bert, write_sentence_transformer, write_unigram
from tests.tools.texts import AWKWARD, CARD_PASSAGES, CARD_QUERIES
from tests.tools.tolerances import POINTS, SCORES, SUM_TO_ONE, VECTORS, VECTORS_OWN_ROUNDING


@pytest.fixture(scope="module", autouse=True)
def blas_threads():
    """As many as there are: what they must not change is tested here."""


@pytest.fixture(scope="module")
def model(minilm):
    return e5ref.load(minilm)


@pytest.mark.peer
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_whole_path_against_sentence_transformers(minilm, dtype):
    texts = [*AWKWARD.values(), *CARD_QUERIES, *CARD_PASSAGES]
    peer = SentenceTransformer(str(minilm), device="cpu").to(getattr(torch, dtype))
    expected = peer.encode(texts, convert_to_tensor=True).numpy()
    ours = e5ref.load(minilm, dtype=dtype, truncation="allow").encode(texts)
    assert ours.dtype == dtype
    assert np.abs(ours - expected).max() <= VECTORS[dtype]


def test_float32_against_our_float64(minilm):
    texts = list(AWKWARD.values())
    single, double = (e5ref.load(minilm, dtype=dtype, truncation="allow") for dtype in ("float32", "float64"))
    assert np.abs(single.encode(texts) - double.encode(texts)).max() <= VECTORS_OWN_ROUNDING


@pytest.mark.peer
@pytest.mark.parametrize("modules", [("Transformer", "Pooling"), ("Transformer", "Pooling", "Normalize")])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_other_sentence_transformers(tiny_copy, pooling, modules):
    """Mean or CLS pooling, with or without normalisation, prompts of their own."""
    write_sentence_transformer(
        tiny_copy,
        pooling={"word_embedding_dimension": 32, f"pooling_mode_{pooling}_token{'s' * (pooling == 'mean')}": True},
        modules=modules,
        prompts={"query": "what: ", "document": ""},
        default_prompt_name="query",
        __version__={"sentence_transformers": "3.0.0"},
    )
    texts = ["how much protein", "cat", ""]
    peer, ours = SentenceTransformer(str(tiny_copy), device="cpu"), e5ref.load(tiny_copy)
    for method in ("encode", "encode_query", "encode_document"):
        expected = getattr(peer, method)(texts)
        actual = getattr(ours, method)(texts)
        difference = np.abs(actual - expected).max()
        if "Normalize" in modules:
            assert difference <= VECTORS["float32"], method
        else:  # a point inside the model, and no vector of unit length
            assert difference <= POINTS["float32"] * np.abs(expected).max(), method


@pytest.mark.peer
def test_the_model_cards_example(shared, tmp_path):
    """The card's own code, line by line, on random weights of e5-small's shape and the real tokenizer."""
    folder = write_random_bert(tmp_path, **E5_SMALL)
    (folder / "tokenizer.json").write_bytes((shared / "e5-small-v2" / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    texts = [f"query: {text}" for text in CARD_QUERIES] + [f"passage: {text}" for text in CARD_PASSAGES]

    tokenizer = AutoTokenizer.from_pretrained(folder)
    peer = AutoModel.from_pretrained(folder)
    batch = tokenizer(texts, max_length=512, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        states = peer(**batch).last_hidden_state
    states = states.masked_fill(~batch["attention_mask"][..., None].bool(), 0.0)
    vectors = torch.nn.functional.normalize(states.sum(dim=1) / batch["attention_mask"].sum(dim=1)[..., None])
    expected = (vectors[:2] @ vectors[2:].T * 100).numpy()

    model = e5ref.load(folder)
    scores = 100 * model.similarity(model.encode_query(CARD_QUERIES), model.encode_document(CARD_PASSAGES))
    assert np.abs(scores - expected).max() <= SCORES

    # The same in the functional layer, named as on the card.
    batch_dict = model.tokenize(texts)
    input_ids, attention_mask = batch_dict["input_ids"], batch_dict["attention_mask"]
    np.testing.assert_array_equal(input_ids, batch["input_ids"].numpy())
    checkpoint = model.checkpoint
    outputs = numpy_model.forward(checkpoint.params, input_ids, attention_mask, config=checkpoint.config)
    embeddings = numpy_model.l2_normalize(numpy_model.average_pool(outputs, attention_mask))
    assert np.abs((embeddings[:2] @ embeddings[2:].T) * 100 - expected).max() <= SCORES


def test_real_sentences_through_trained_weights(model):
    """The main job: each query finds its own passage."""
    scores = model.similarity(model.encode_query(CARD_QUERIES), model.encode_document(CARD_PASSAGES))
    assert scores.shape == (2, 2)
    assert scores.argmax(axis=1).tolist() == [0, 1]
    assert scores.diagonal().min() > 0.6 > 0.2 > (scores - np.diag(scores.diagonal())).max()


def test_shapes_and_dtypes(tiny):
    assert tiny.encode("cat").shape == (32,)
    assert tiny.encode(["cat"]).shape == (1, 32)
    assert tiny.encode(("cat", "dog")).shape == (2, 32)
    assert tiny.encode(iter(["cat", "dog", ""])).shape == (3, 32)
    assert tiny.encode([]).shape == (0, 32)
    assert tiny.encode([]).dtype == tiny.encode("cat").dtype == np.float32


def test_prompts(tiny):
    np.testing.assert_array_equal(tiny.encode_query(["cat"]), tiny.encode(["query: cat"]))
    np.testing.assert_array_equal(tiny.encode_document(["cat"]), tiny.encode(["passage: cat"]))
    np.testing.assert_array_equal(tiny.encode(["cat"], prompt_name="passage"), tiny.encode(["passage: cat"]))
    np.testing.assert_array_equal(tiny.encode_query("cat", prompt="what "), tiny.encode("what cat"))
    np.testing.assert_array_equal(tiny.encode_document("cat", prompt_name="query"), tiny.encode("query: cat"))
    assert not np.array_equal(tiny.encode_query("cat"), tiny.encode("cat"))


def test_vectors_have_norm_one(tiny):
    norms = np.linalg.norm(tiny.encode(["cat", "dog", ""]), axis=1)
    assert np.abs(norms - 1).max() <= SUM_TO_ONE["float32"]
    assert (np.linalg.norm(tiny.encode(["cat", "dog"], normalize_embeddings=False), axis=1) > 2).all()


def test_every_cut_is_told(tiny_bert):
    """Also the second one from the same line, and at the line of the caller."""
    code = f"""
import e5ref
model = e5ref.load({str(tiny_bert)!r}, max_length=5)
for text in ("a " * 9, "b " * 9):
    model.encode_query(text)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.count("<string>:5: E5Warning: 1 of 1 texts are longer than 5 tokens") == 2


def test_truncate_dim_warns_and_renormalises(tiny):
    with pytest.warns(UserWarning, match="keeps 8 of 32 dimensions; E5 is not trained for that"):
        cut = tiny.encode(["cat", "dog"], truncate_dim=8)
    expected = numpy_model.l2_normalize(tiny.encode(["cat", "dog"])[:, :8])
    np.testing.assert_array_equal(cut, expected)


@pytest.mark.peer
def test_xlm_roberta_from_text(tmp_path):
    """The whole path with XLM-RoBERTa's kind of tokenizer, against sentence-transformers."""
    folder = write_random_bert(tmp_path, model_type="xlm-roberta")
    write_unigram(folder)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "model_max_length": 62}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    write_sentence_transformer(folder, pooling={"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True})
    texts = ["query: eat", "", "abc def <pad> ghi", "query: abcdefghi eat", "日本 🙂"]
    peer, ours = SentenceTransformer(str(folder), device="cpu"), e5ref.load(folder)
    ids = AutoTokenizer.from_pretrained(folder)(texts)["input_ids"]
    assert [text.tolist() for text in ours.tokenizer(texts).texts()] == ids
    assert np.abs(ours.encode(texts) - peer.encode(texts)).max() <= VECTORS["float32"]


def test_similarity_by_hand(tiny):
    a, b = np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 2.0], [-6.0, -8.0]])
    np.testing.assert_allclose(tiny.similarity(a, b), [[0.6, 0.8, -1], [1, 0, -0.6]], atol=SUM_TO_ONE["float64"])
    assert tiny.similarity(a[0], b).shape == (1, 3)
    assert tiny.similarity(a[0], b[0]).shape == (1, 1)
    with pytest.raises(ValueError, match=r"but are \(2, 2\) and \(2, 3\)"):
        tiny.similarity(a, np.ones((2, 3)))


def test_truncation(tiny_bert):
    texts = ["cat", "a " * 9, "b " * 20]
    model = e5ref.load(tiny_bert, max_length=8)
    with pytest.warns(UserWarning, match=r"2 of 3 texts are longer than 8 tokens .* longest, texts\[2\], has 22"):
        vectors = model.encode(texts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(model.encode(texts, truncation="allow"), vectors)
        np.testing.assert_array_equal(model.encode("a " * 6), vectors[1])
    with pytest.raises(ValueError, match=r"texts\[2\] has 22 tokens, more than max_length 8"):
        model.encode(texts, truncation="error")
    with pytest.raises(ValueError, match="more than max_length"):
        e5ref.load(tiny_bert, max_length=8, truncation="error").encode(texts)


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        (None, TypeError, "texts must be a str or an iterable of str in order, not NoneType"),
        (b"bytes", TypeError, "not bytes"),
        (7, TypeError, "not int"),
        ({"a": "b"}, TypeError, "not dict"),
        ({"a", "b"}, TypeError, "not set"),
        ([None], TypeError, r"texts\[0\] is NoneType, not str"),
        (["a", b"bytes"], TypeError, r"texts\[1\] is bytes, not str"),
        (["a", "b", 3.5], TypeError, r"texts\[2\] is float, not str"),
        (np.array("a"), TypeError, "must be a str or an iterable of str in order, not ndarray"),
        (np.array([["a", "b"]]), TypeError, r"texts\[0\] is ndarray, not str"),
        (["a", ["b"]], TypeError, r"texts\[1\] is list, not str"),
        (["a", "b\ud800c"], ValueError, r"texts\[1\] is not valid Unicode: a lone surrogate at position 1"),
        ("\udfff", ValueError, r"texts\[0\] is not valid Unicode"),
    ],
)
@pytest.mark.parametrize("method", ["encode", "encode_query", "tokenize"])
def test_bad_texts_are_named(tiny, method, texts, error, message):
    with pytest.raises(error, match=message) as caught:
        getattr(tiny, method)(texts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"truncate_dim": "8"}, "truncate_dim is '8'"),
        ({"truncation": ""}, "truncation is ''"),
        ({"prompt": "\ud800"}, "prompt is not valid Unicode"),
        ({"truncate_dim": 0}, "truncate_dim is 0, but must be a whole number from 1 to 32"),
        ({"truncate_dim": 33}, "truncate_dim is 33"),
        ({"truncation": "cut"}, "truncation is 'cut'"),
        ({"prompt_name": "question"}, "unknown prompt_name 'question'"),
        ({"prompt_name": "query", "prompt": "query: "}, "not both"),
    ],
)
def test_bad_options(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        tiny.encode(["cat"], **options)


@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document"])
def test_unknown_options_are_refused(tiny, method):
    with pytest.raises(TypeError, match="convert_to_tensor"):
        getattr(tiny, method)(["cat"], convert_to_tensor=True)


def test_ten_megabytes_without_a_space(model):
    """WordPiece makes one [UNK] of it, as of any word of more than 100 letters."""
    vectors = model.encode(["a" * 10_000_000, "ab" * 5_000_000, "[UNK]"])
    np.testing.assert_array_equal(vectors[0], vectors[2])
    np.testing.assert_array_equal(vectors[1], vectors[2])


def test_ten_megabytes_of_ideographs(model):
    with pytest.warns(UserWarning, match=r"texts\[0\], has more than 65026 "):
        assert model.encode("日" * 3_333_333).shape == (384,)
    with pytest.raises(ValueError, match=r"texts\[1\] has more than 65026 tokens, more than max_length 256; split it"):
        model.encode(["cat", "日" * 3_333_333], truncation="error")


def test_two_hundred_megabytes_in_little_memory():
    code = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30, 2 * 2**30))
import e5ref
model = e5ref.load("e5ref-nano", truncation="allow")
words, letters = (model.encode([text * 50_000_000]) for text in ("cat ", "aaaa"))
print((words == model.encode(["cat " * 1000])).all(), (letters == model.encode(["[UNK]"])).all())
"""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # each thread takes address space
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("True True\n", "")


@pytest.mark.parametrize("method", ["encode", "tokenize"])
def test_a_long_text_with_hardly_a_token_is_named(tiny, method):
    texts = ["cat", "a", "\0\ufeff" * 600_000, "dog"]
    with pytest.raises(
        ValueError, match=r"texts\[2\] has hardly a token in a million characters; take out what is not"
    ):
        getattr(tiny, method)(texts)


def test_provenance(tiny, tiny_bert):
    provenance = tiny.provenance("query: ")
    assert provenance["model"] == str(tiny_bert)
    assert provenance["prompt"] == "query: "
    assert len(provenance["weights_sha256"]) == len(provenance["tokenizer_sha256"]) == 64
    assert all(isinstance(value, str) for value in provenance.values())


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_a_table_is_refused_and_its_column_taken(tiny, library):
    frames = pytest.importorskip(library, reason="comes with pip install mteb")
    columns = {"id": [1, 2], "text": ["query: cat", "query: dog"]}
    table = frames.table(columns) if library == "pyarrow" else frames.DataFrame(columns)
    message = r"texts is a (DataFrame|Table) with the columns id, text; give one of them, such as texts\['text'\]"
    for call in (tiny.encode, tiny.encode_query, tiny.encode_stream, tiny.tokenize):
        with pytest.raises(TypeError, match=message):
            call(table)
    with pytest.raises(TypeError, match=r"texts\[0\] is (int|int64), not str"):
        tiny.encode(table["id"])
    expected = tiny.encode(columns["text"])
    np.testing.assert_array_equal(tiny.encode(table["text"]), expected)
    if library == "pyarrow":
        np.testing.assert_array_equal(tiny.encode(table["text"].chunk(0)), expected)
        with pytest.raises(TypeError, match=r"texts\[1\] is NoneType, not str"):
            tiny.encode(frames.array(["a", None]))


def test_it_says_what_it_is(tiny_bert):
    assert repr(e5ref.load(tiny_bert)) == (
        f"E5({str(tiny_bert)!r}, backend='numpy', dtype='float32', dimensions=32, max_length=64)"
    )
    with pytest.warns(UserWarning, match="keeps 8 of 32"):
        model = e5ref.load(tiny_bert, dtype="float64", backend="jax", max_length=9, truncate_dim=8)
    assert "backend='jax', precision='highest', platform='cpu', dtype='float64', dimensions=8, max_length=9)" in repr(
        model
    )


def test_settings_of_the_model_are_those_of_each_call(tiny_bert, tiny):
    with pytest.warns(UserWarning, match="keeps 8 of 32"):
        model = e5ref.load(tiny_bert, batch_size=2, truncate_dim=8)
    texts = ["cat", "dog", "a b c"]
    with pytest.warns(UserWarning, match="keeps 8 of 32"):
        expected = tiny.encode(texts, truncate_dim=8)
    np.testing.assert_array_equal(model.encode(texts), expected)
    np.testing.assert_array_equal(model.encode(text for text in texts), expected)
    assert model.dimensions == 8
    assert model.provenance("")["truncate_dim"] == "8"
    with pytest.warns(UserWarning, match="keeps 16 of 32"):
        np.testing.assert_array_equal(model.encode(texts, truncate_dim=16), tiny.encode(texts, truncate_dim=16))
    for options in ({"batch_size": 0}, {"truncate_dim": 33}):
        with pytest.raises(ValueError, match=r"must be a whole number"):
            e5ref.load(tiny_bert, **options)


def test_a_warning_where_there_is_no_module(tiny):
    with pytest.warns(e5ref.E5Warning, match="1 of 1 texts"):
        exec("model.encode('a ' * 999)", {"model": tiny})


def test_known_answer_of_e5_small_v2():
    """Four numbers that transformers gives for the real weights, where they are on this machine."""
    try:
        model = e5ref.load("intfloat/e5-small-v2")
    except e5ref.CheckpointError as reason:
        pytest.skip(str(reason))
    vector = model.encode("query: I love transformers.")
    expected = [-0.0663562790, 0.0153982891, -0.0412562378, -0.0130311009]
    assert np.abs(vector[[0, 1, 382, 383]] - expected).max() <= VECTORS["float32"]


def test_token_embeddings_are_those_of_sentence_transformers(minilm):
    from sentence_transformers import SentenceTransformer

    texts = ["a cat", "the dog of a man, who plays"]
    theirs = SentenceTransformer(str(minilm), device="cpu").encode(texts, output_value="token_embeddings")
    ours = e5ref.load(minilm).encode(texts, output_value="token_embeddings", convert_to_numpy=True)
    for our, their in zip(ours, theirs, strict=True):
        assert our.shape == their.shape
        assert np.abs(our - their.numpy()).max() < POINTS["float32"] * np.abs(our).max()


def test_token_embeddings_pool_to_the_vector(tiny):
    (states,) = tiny.encode(["cat"], prompt_name="query", output_value="token_embeddings")
    assert len(states) == tiny.tokenize("query: cat")["n_tokens"][0]
    pooled = states.mean(axis=0) / np.linalg.norm(states.mean(axis=0))
    assert np.abs(pooled - tiny.encode_query("cat")).max() < VECTORS["float32"]
    assert np.array_equal(tiny.encode("query: cat", output_value="token_embeddings"), states)


def test_token_embeddings_say_what_was_cut(tiny):
    long = "cat " * 99
    with pytest.warns(UserWarning, match="1 of 1 texts are longer than 64 tokens and were cut"):
        (states,) = tiny.encode([long], output_value="token_embeddings")
    assert states.shape == (64, 32)
    with pytest.raises(ValueError, match=r"texts\[0\] has 101 tokens, more than max_length 64"):
        tiny.encode([long], output_value="token_embeddings", truncation="error")


def test_what_encode_does_not_give_is_said(tiny, tiny_bert):
    with pytest.raises(ValueError, match="convert_to_numpy is False, but must be True"):
        tiny.encode("cat", convert_to_numpy=False)
    with pytest.raises(ValueError, match="output_value is None, but must be 'sentence_embedding' or"):
        tiny.encode("cat", output_value=None)
    with pytest.raises(ValueError, match="output_value='token_embeddings' needs backend='numpy'"):
        e5ref.load(tiny_bert, backend="jax").encode("cat", output_value="token_embeddings")
