"""Ids against transformers' own tokenizers; counts and truncation."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, processors
from transformers import AutoTokenizer

import e5ref
from e5ref import tokenizer as tokenizer_module
from e5ref.tokenizer import Tokenizer
from tests.tokenizer.tokenized import CONFIG, assert_equal, human_rights, lists
from tests.tools.checkpoints import WORDS, edit_json, write_tokenizer, write_unigram
from tests.tools.texts import AWKWARD


def theirs(folder, texts, max_length):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer(texts, max_length=max_length, truncation=True)["input_ids"]


@pytest.mark.peer
@pytest.mark.parametrize("max_length", [3, 4, 7, 64, 512])
def test_awkward_texts_in_minilms_vocabulary(minilm, max_length):
    ours = Tokenizer(minilm, CONFIG, max_length)(list(AWKWARD.values()))
    assert dict(zip(AWKWARD, lists(ours), strict=True)) == dict(
        zip(AWKWARD, theirs(minilm, list(AWKWARD.values()), max_length), strict=True)
    )


@pytest.mark.peer
def test_awkward_texts_in_e5s_vocabulary(e5_tokenizer):
    ours = Tokenizer(e5_tokenizer, CONFIG, 512)(list(AWKWARD.values()))
    assert lists(ours) == theirs(e5_tokenizer, list(AWKWARD.values()), 512)


@pytest.mark.peer
def test_human_rights_in_all_languages(e5_tokenizer, shared):
    texts = human_rights(shared)
    assert lists(Tokenizer(e5_tokenizer, CONFIG, 512)(texts)) == theirs(e5_tokenizer, texts, 512)


def test_known_ids(e5_tokenizer):
    """ "query: hi" is five tokens: [CLS] query : hi [SEP]."""
    assert Tokenizer(e5_tokenizer, CONFIG, 512)(["query: hi"]).ids.tolist() == [101, 23032, 1024, 7632, 102]


def test_settings_inside_the_file_are_overridden(minilm):
    """all-MiniLM's tokenizer.json pads to 128 and truncates at 128."""
    assert Tokenizer(minilm, CONFIG, 512)(["a", "word " * 300]).lengths.tolist() == [3, 302]


def test_vocab_txt_alone(minilm, tmp_path):
    shutil.copy(minilm / "vocab.txt", tmp_path)
    assert_equal(*(Tokenizer(folder, CONFIG, 512)(list(AWKWARD.values())) for folder in (tmp_path, minilm)))


def test_vocab_txt_of_a_cased_model(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*WORDS, "Cat", "é"]))
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = Tokenizer(tmp_path, CONFIG, 512)(["Cat cat é"])
    (tmp_path / "tokenizer_config.json").write_text("{}")
    uncased = Tokenizer(tmp_path, CONFIG, 512)(["Cat cat é"])
    cls, sep, cat, e = (WORDS.index(word) for word in ("[CLS]", "[SEP]", "cat", "e"))
    assert cased.ids.tolist() == [cls, len(WORDS), cat, len(WORDS) + 1, sep]
    assert uncased.ids.tolist() == [cls, cat, cat, e, sep]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "sep_token not found"),
        (b"[PAD]\n[SEP]\n[CLS]\na", "it has no .UNK."),
        (b"[UNK]\n[PAD]\n[CLS]\na", "sep_token not found"),
        (b"[UNK]\n[SEP]\n[CLS]\na", "it has no .PAD."),
        (b"\xfc", "UTF-8"),
    ],
)
def test_a_broken_vocab_txt(tmp_path, content, message):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(e5ref.CheckpointError, match=rf"vocab\.txt: is not BERT's vocabulary .*{message}"):
        Tokenizer(tmp_path, CONFIG, 512)


def test_files_that_contradict_each_other(tiny_copy):
    """transformers goes by tokenizer_config.json here, other libraries by tokenizer.json."""
    (tiny_copy / "tokenizer_config.json").write_text('{"do_lower_case": true, "strip_accents": null}')
    e5ref.load(tiny_copy)
    (tiny_copy / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    with pytest.raises(e5ref.CheckpointError, match=r"do_lower_case is False, but lowercase of tokenizer\.json True"):
        e5ref.load(tiny_copy)


def test_xlm_robertas_tokenizer(tmp_path):
    write_unigram(tmp_path)
    tokenizer = Tokenizer(tmp_path, CONFIG, 6)
    tokens = tokenizer(["query: eat", "query: abcdefg"])
    assert tokenizer.pad_id == 1
    assert tokens.ids.tolist() == [0, 5, 6, 7, 2, 0, 5, 6, 4, 8, 2]
    assert tokens.offsets.tolist() == [0, 5, 11]
    assert tokens.n_tokens.tolist() == [5, 12]
    assert tokens.truncated.tolist() == [False, True]
    assert tokens.exact.all()
    assert [array.dtype for array in tokens] == [np.int32, np.int64, np.int64, np.bool_]


@pytest.mark.parametrize("many_texts", [0, 256])
def test_no_texts(minilm, monkeypatch, many_texts):
    monkeypatch.setattr(tokenizer_module, "MANY_TEXTS", many_texts)
    tokens = Tokenizer(minilm, CONFIG, 512)([])
    assert [array.shape for array in tokens] == [(0,), (1,), (0,), (0,)]
    assert [array.dtype for array in tokens] == [np.int32, np.int64, np.int64, np.bool_]
    assert tokens.texts() == []


@pytest.mark.parametrize("template", ["<s> $A </s>", "<s> <s> $A", "$A </s> <unk> </s>", "$A"])
@pytest.mark.parametrize("max_length", [4, 5, 11, 12])
def test_special_tokens_stay_where_a_text_is_cut(tmp_path, template, max_length):
    write_unigram(tmp_path)
    tokenizer = FastTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 0), ("</s>", 2), ("<unk>", 3)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokenizer.enable_truncation(max_length)
    texts = ["", "a", "query: eat", "query: abcdefg", "<s> eat </s> a"]
    encodings = tokenizer.encode_batch(texts)
    tokens = Tokenizer(tmp_path, CONFIG, max_length)(texts)
    assert lists(tokens) == [encoding.ids for encoding in encodings]
    assert tokens.truncated.tolist() == [bool(encoding.overflowing) for encoding in encodings]


def test_memory_does_not_grow_with_encodings(minilm):
    """An Encoding takes hundreds of bytes a token, an id four."""
    texts, pieces = ["the cat " * 200] * 1000, []
    tokenizer = Tokenizer(minilm, CONFIG, 512)
    encode = tokenizer._tokenizer.encode_batch_fast
    tokenizer._tokenizer = SimpleNamespace(encode_batch_fast=lambda piece: pieces.append(len(piece)) or encode(piece))
    assert tokenizer._encode(texts, None)[1][-1] == 1000 * 402
    assert sum(pieces) == 1000
    assert max(pieces) * len(texts[0]) <= 2**20 + len(texts[0])


def test_counts_and_truncation(tiny_bert):
    model = e5ref.load(tiny_bert, max_length=5)
    tokens = model.tokenize(["eat", "a a a", "a a a a", "a " * 100, ""])
    assert tokens["n_tokens"].tolist() == [3, 5, 6, 102, 2]
    assert tokens["truncated"].tolist() == [False, False, True, True, False]
    assert tokens["attention_mask"].sum(axis=1).tolist() == [3, 5, 5, 5, 2]
    assert tokens["input_ids"].shape == (5, 5)
    cls, sep, pad, a = (WORDS.index(word) for word in ("[CLS]", "[SEP]", "[PAD]", "a"))
    assert tokens["input_ids"][0].tolist() == [cls, WORDS.index("eat"), sep, pad, pad]
    assert tokens["input_ids"][3].tolist() == [cls, a, a, a, sep]


def test_tokenize_one_and_none(tiny_bert):
    model = e5ref.load(tiny_bert)
    assert model.tokenize("eat")["input_ids"].shape == (1, 3)
    none = model.tokenize([])
    assert [array.shape for array in none.values()] == [(0, 0), (0, 0), (0,), (0,)]
    assert none["input_ids"].dtype == np.int64


@pytest.mark.parametrize("max_length", [0, 2, -1, 65, 4096])
def test_max_length_out_of_range(tiny_bert, max_length):
    with pytest.raises(ValueError, match=rf"max_length is {max_length}, but must lie between 3 .* and 64"):
        e5ref.load(tiny_bert, max_length=max_length)


def test_no_tokenizer(tiny_copy):
    (tiny_copy / "tokenizer.json").unlink()
    with pytest.raises(e5ref.CheckpointError, match=r"holds neither tokenizer\.json nor vocab\.txt"):
        e5ref.load(tiny_copy)


@pytest.mark.parametrize("content", ["", "{}", '{"version": "1.0"', "[]"])
def test_a_broken_tokenizer(tiny_copy, content):
    (tiny_copy / "tokenizer.json").write_text(content)
    with pytest.raises(e5ref.CheckpointError, match=r"tokenizer\.json: cannot be read as a tokenizer"):
        e5ref.load(tiny_copy)


def test_a_tokenizer_without_an_unknown_token(tmp_path):
    FastTokenizer(models.WordPiece({"b": 0}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(e5ref.CheckpointError, match=r"makes no token of 'a' \(.*UNK.*\); fetch the file anew"):
        Tokenizer(tmp_path, CONFIG, 512)


def test_a_tokenizer_of_another_checkpoint(tiny_copy):
    write_tokenizer(tiny_copy, [*WORDS, "one", "more"])
    with pytest.raises(e5ref.CheckpointError, match=f"has {len(WORDS) + 2} tokens, but .* only {len(WORDS)} rows"):
        e5ref.load(tiny_copy)


def test_tokenizer_and_config_are_checked_together(tiny_copy):
    edit_json(tiny_copy / "config.json", max_position_embeddings=32)
    with pytest.raises(e5ref.CheckpointError, match=r"is \[64, 32\], but by config\.json it must be \[32, 32\]"):
        e5ref.load(tiny_copy)
