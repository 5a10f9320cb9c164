"""Ids against transformers' own tokenizers; counts and truncation."""

import shutil
import zipfile

import numpy as np
import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer

import e5ref
from e5ref.config import BertConfig
from e5ref.tokenizer import Tokenizer
from tests.awkward import TEXTS
from tests.conftest import WORDS, edit_json, write_tokenizer

CONFIG = BertConfig("bert", 30522, 384, 12, 12, 1536, 512, 2, 1e-12, 0)


def theirs(folder, texts, max_length):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer(texts, max_length=max_length, truncation=True)["input_ids"]


def test_awkward_texts_in_minilms_vocabulary(minilm):
    ours = Tokenizer(minilm, CONFIG, 512)(list(TEXTS.values()))
    assert dict(zip(TEXTS, (text.ids for text in ours), strict=True)) == dict(
        zip(TEXTS, theirs(minilm, list(TEXTS.values()), 512), strict=True)
    )


@pytest.fixture
def e5_tokenizer(shared, tmp_path):
    """The folder of e5-small-v2's tokenizer, with what its tokenizer_config.json says of its class."""
    shutil.copy(shared / "e5-small-v2" / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    return tmp_path


def test_awkward_texts_in_e5s_vocabulary(e5_tokenizer):
    ours = Tokenizer(e5_tokenizer, CONFIG, 512)(list(TEXTS.values()))
    assert [text.ids for text in ours] == theirs(e5_tokenizer, list(TEXTS.values()), 512)


def test_human_rights_in_all_languages(e5_tokenizer, shared):
    with zipfile.ZipFile(shared / "udhr" / "udhr2.zip") as archive:
        declarations = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".txt")]
    paragraphs = [paragraph for text in declarations for paragraph in text.split("\n")]
    assert len(declarations) >= 388
    ours = Tokenizer(e5_tokenizer, CONFIG, 512)(declarations + paragraphs)
    expected = theirs(e5_tokenizer, declarations + paragraphs, 512)
    assert [text.ids for text in ours] == expected


def test_known_ids(e5_tokenizer):
    """ "query: hi" is five tokens: [CLS] query : hi [SEP]."""
    (text,) = Tokenizer(e5_tokenizer, CONFIG, 512)(["query: hi"])
    assert text.ids == [101, 23032, 1024, 7632, 102]


def test_settings_inside_the_file_are_overridden(minilm):
    """all-MiniLM's tokenizer.json pads to 128 and truncates at 128."""
    short, long = Tokenizer(minilm, CONFIG, 512)(["a", "word " * 300])
    assert (len(short.ids), len(long.ids)) == (3, 302)


def test_vocab_txt_alone(minilm, tmp_path):
    shutil.copy(minilm / "vocab.txt", tmp_path)
    ours = Tokenizer(tmp_path, CONFIG, 512)(list(TEXTS.values()))
    assert ours == Tokenizer(minilm, CONFIG, 512)(list(TEXTS.values()))


def test_vocab_txt_of_a_cased_model(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*WORDS, "Cat", "é"]))
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    (cased,) = Tokenizer(tmp_path, CONFIG, 512)(["Cat cat é"])
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (uncased,) = Tokenizer(tmp_path, CONFIG, 512)(["Cat cat é"])
    cls, sep, cat, e = (WORDS.index(word) for word in ("[CLS]", "[SEP]", "cat", "e"))
    assert cased.ids == [cls, len(WORDS), cat, len(WORDS) + 1, sep]
    assert uncased.ids == [cls, cat, cat, e, sep]


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


def write_unigram(folder):
    """A tokenizer in XLM-RoBERTa's form: SentencePiece's Unigram, <s> and </s>, its padding id 1."""
    pieces = [("<s>", 0), ("<pad>", 0), ("</s>", 0), ("<unk>", 0), ("▁", -2), ("▁query", -3), (":", -3), ("▁eat", -4)]
    tokenizer = FastTokenizer(models.Unigram([*pieces, *((letter, -8.0) for letter in "abcdefghi")], unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.save(str(folder / "tokenizer.json"))


def test_xlm_robertas_tokenizer(tmp_path):
    write_unigram(tmp_path)
    tokenizer = Tokenizer(tmp_path, CONFIG, 6)
    short, long = tokenizer(["query: eat", "query: abcdefg"])
    assert tokenizer.pad_id == 1
    assert short == ([0, 5, 6, 7, 2], 5, False)
    assert long == ([0, 5, 6, 4, 8, 2], 12, True)


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


def test_a_tokenizer_of_another_checkpoint(tiny_copy):
    write_tokenizer(tiny_copy, [*WORDS, "one", "more"])
    with pytest.raises(e5ref.CheckpointError, match=f"has {len(WORDS) + 2} tokens, but .* only {len(WORDS)} rows"):
        e5ref.load(tiny_copy)


def test_tokenizer_and_config_are_checked_together(tiny_copy):
    edit_json(tiny_copy / "config.json", max_position_embeddings=32)
    with pytest.raises(e5ref.CheckpointError, match=r"is \[64, 32\], but by config\.json it must be \[32, 32\]"):
        e5ref.load(tiny_copy)
