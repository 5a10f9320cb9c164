"""Ids against transformers' own tokenizers; counts and truncation."""

import json
import math
import shutil
import sys
import unicodedata
import zipfile
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as FastTokenizer
from transformers import AutoTokenizer

import e5ref
from e5ref import tokenizer as tokenizer_module
from e5ref.checkpoint.config import BertConfig
from e5ref.tokenizer import Tokenizer
from tests.awkward import TEXTS
from tests.conftest import WORDS, edit_json, write_tokenizer

CONFIG = BertConfig("bert", 30522, 384, 12, 12, 1536, 512, 2, 1e-12, 0)


def theirs(folder, texts, max_length):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer(texts, max_length=max_length, truncation=True)["input_ids"]


class Text(NamedTuple):
    ids: list[int]
    n_tokens: int
    truncated: bool
    exact: bool


def one_by_one(tokens):
    facts = (lists(tokens), tokens.n_tokens.tolist(), tokens.truncated.tolist(), tokens.exact.tolist())
    return [Text(*text) for text in zip(*facts, strict=True)]


def assert_equal(ours, expected):
    for array, expected_array in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(array, expected_array, strict=True)


def lists(tokens):
    return [ids.tolist() for ids in tokens.texts()]


@pytest.mark.parametrize("max_length", [3, 4, 7, 64, 512])
def test_awkward_texts_in_minilms_vocabulary(minilm, max_length):
    ours = Tokenizer(minilm, CONFIG, max_length)(list(TEXTS.values()))
    assert dict(zip(TEXTS, lists(ours), strict=True)) == dict(
        zip(TEXTS, theirs(minilm, list(TEXTS.values()), max_length), strict=True)
    )


@pytest.fixture
def e5_tokenizer(shared, tmp_path):
    """The folder of e5-small-v2's tokenizer, with what its tokenizer_config.json says of its class."""
    shutil.copy(shared / "e5-small-v2" / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    return tmp_path


def test_awkward_texts_in_e5s_vocabulary(e5_tokenizer):
    ours = Tokenizer(e5_tokenizer, CONFIG, 512)(list(TEXTS.values()))
    assert lists(ours) == theirs(e5_tokenizer, list(TEXTS.values()), 512)


def human_rights(shared):
    with zipfile.ZipFile(shared / "udhr" / "udhr2.zip") as archive:
        declarations = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".txt")]
    assert len(declarations) >= 388
    return declarations + [paragraph for text in declarations for paragraph in text.split("\n")]


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
    assert_equal(*(Tokenizer(folder, CONFIG, 512)(list(TEXTS.values())) for folder in (tmp_path, minilm)))


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


def write_unigram_of_words(folder):
    """As XLM-RoBERTa's has it: characters are normalised, white space counts once, and a word is of several pieces."""
    pieces = [("<unk>", 0), ("▁", -3), ("▁query", -4), (":", -4), ("▁the", -3), ("▁cat", -5), ("s", -4), ("ing", -4)]
    more = ["中文", "字", "中", "!", "▁a", "กข", "e", "[", "]", "S", "E", "P", "he", "t", "ca"]
    tokenizer = FastTokenizer(models.Unigram([*pieces, *((piece, -6.0) for piece in more)], unk_id=0))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.add_special_tokens(["<unk>"])
    tokenizer.save(str(folder / "tokenizer.json"))


def add_tokens(folder, *contents):
    tokenizer = FastTokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(content, lstrip=True, rstrip=True) for content in contents])
    tokenizer.save(str(folder / "tokenizer.json"))


KINDS = ("minilm", "vocab.txt", "letters", "words", "added", "added words", "added space")


@pytest.fixture(scope="module")
def tokenizers(minilm, tmp_path_factory):
    """Of each kind, a tokenizer that calls texts long from 513 characters on, and one that calls none long."""
    folders = {kind: tmp_path_factory.mktemp("tokenizer") for kind in KINDS}
    shutil.copy(minilm / "tokenizer.json", folders["minilm"])
    shutil.copy(minilm / "vocab.txt", folders["vocab.txt"])
    write_unigram(folders["letters"])
    write_unigram_of_words(folders["words"])
    for kind in ("added", "added words", "added space"):
        write_tokenizer(folders[kind])
    for kind in ("letters", "words", "added"):
        add_tokens(folders[kind], "<mask>", "[two words]")
    add_tokens(folders["added words"], "<mask>", "two words", "ACG-")
    add_tokens(folders["added space"], "<mask>", "\n-")
    made = {}
    for kind, folder in folders.items():
        cut, whole = made[kind] = Tokenizer(folder, CONFIG, 8), Tokenizer(folder, CONFIG, 8)
        cut.long_text, whole.long_text = 512, sys.maxsize
    return made


def check_long_text(tokenizers, text):
    """Compare with the text uncut, by all implementations; return what it is tokenized to."""
    cut, whole = tokenizers
    expected, neighbour = one_by_one(whole([text, "a cat"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "UNSURE_TOKENS", 120)
        patch.setattr(tokenizer_module, "MOST_PARTS", 5)
        tokens = cut([text, "a cat", text])
        patch.setattr(tokenizer_module, "MANY_TEXTS", 0)
        assert_equal(cut([text, "a cat", text]), tokens)
    ours = one_by_one(tokens)[0]
    assert one_by_one(tokens) == [ours, neighbour, ours]
    if ours.exact:
        assert ours == expected
    elif ours.ids:
        assert ours.truncated
        assert ours.ids == expected.ids
        assert 8 < ours.n_tokens < expected.n_tokens
    else:
        assert len(text) > 5 * 512
    return ours


ATOMS = """cat a ing query: [SEP] [S <mask> [two words] two words ACG- ACGT eat e\u0301 \u0323\u0301 \u0301 中 中文字 กข
กิ 🙂 👩\u200d👧 ! -. ; \0 \0\ufeff\u200b é ß ﬁ ﷺ""".split()
ATOMS += [" ", "\n", "\x0b", "\x1c", "\r\n", "\t ", "cat ", " eat", "two words", "[two words]", " <mask> ", "\n-"]
SIZES = [1, 1, 1, 9, 100, 256, 512, 700, 2500]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50, deadline=None)
@given(runs=st.lists(st.tuples(st.sampled_from(ATOMS), st.sampled_from(SIZES)), max_size=10))
def test_long_texts_have_the_ids_of_the_uncut(tokenizers, kind, runs):
    check_long_text(tokenizers[kind], "".join(atom * math.ceil(size / len(atom)) for atom, size in runs))


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_text_may_be_cut_anywhere(tokenizers, kind):
    """Also within a word, a letter and its accent, or a special token, and so near to what is kept as it may be."""
    words = "ACG- plants eating e\u0301\u0323! <mask> [SEP][two words] two words  日本 (ACGTACGTACGT) \n-"
    for shift in range(len(words)):
        check_long_text(tokenizers[kind], " " * (512 - shift) + words * 10)
        check_long_text(tokenizers[kind], "x" * (2048 - shift) + words * 10)
        check_long_text(tokenizers[kind], "\t" * (2048 - shift) + "\n-" + words * 10)


@pytest.mark.parametrize("kind", KINDS)
def test_what_hides_in_a_run_is_found(tokenizers, kind):
    for run, hidden in [("xyz", "abeting"), ("\n\t", "    "), ("\x0b\x1c", " \t"), ("абв", "中")]:
        check_long_text(tokenizers[kind], f"eat{run * (1100 // len(run))}{hidden * 50}{run * (1100 // len(run))}eat")
    check_long_text(tokenizers[kind], "a" + " " * 1000 + "<mask>")  # which swallows white space
    check_long_text(tokenizers[kind], "wxyz" * 512 + " " * 600 + "<mask>")


ONE_TOKEN_OR_NONE = {
    "one letter": "a",
    "one letter, beyond the first plane": "𐐀",
    "spaces": " ",
    "line ends": "\r\n",
    "indented lines": "\t \n",
    "zeros": "\0",
    "byte order marks": "\ufeff",
    "one accent": "\u0301",
    "bases": "ACGTTGCA",
}


@pytest.mark.parametrize("content", ONE_TOKEN_OR_NONE.values(), ids=ONE_TOKEN_OR_NONE)
def test_long_runs_are_seen_through(tokenizers, content):
    """Their tokens are counted exactly, and so are those of what comes before and after."""
    for text in (content * 5000, f"eat {content * 5000}cat", f"{content * 5000} a cat's {content * 5000}"):
        tokenized = check_long_text(tokenizers["minilm"], text)
        assert tokenized.exact
        assert not tokenized.truncated


MORE_TOKENS = {"words": "cat ", "ideographs": "中", "emoji": "🙂 ", "punctuation": "!", "special tokens": "[SEP]"}


@pytest.mark.parametrize("content", MORE_TOKENS.values(), ids=MORE_TOKENS)
@pytest.mark.parametrize("start", ["", "\r\n" * 2500, "\0\ufeff" * 500])
def test_what_fills_a_text_is_found(tokenizers, start, content):
    tokenized = check_long_text(tokenizers["minilm"], start + content * 5000)
    assert (tokenized.truncated, tokenized.exact) == (True, False)


@pytest.mark.parametrize("content", ["\0\ufeff", "\u0301\u0323", "абв", "กา", "\0 "])
def test_a_long_text_with_hardly_a_token_has_no_ids(tokenizers, content):
    assert check_long_text(tokenizers["minilm"], content * 2500) == ([], 0, True, False)
    assert check_long_text(tokenizers["minilm"], content * 750).exact  # not so long


def test_long_texts_at_their_real_size(minilm):
    cut, whole = Tokenizer(minilm, CONFIG, 512), Tokenizer(minilm, CONFIG, 512)
    whole.long_text = sys.maxsize
    texts = ["cat " * 16_384, "cat " * 16_384 + ".", "", "a" * 100_000, " " * 65_000 + "a cat's " * 2000]
    ours, expected = one_by_one(cut(texts)), one_by_one(whole(texts))
    assert [text.ids for text in ours] == [text.ids for text in expected]
    assert [text.exact for text in ours] == [True, False, True, True, True]
    assert ours[1].n_tokens == 16_384 + 2 - 512


@pytest.fixture
def nanotoken(monkeypatch):
    """Give the module, and let it tokenize all texts, however few."""
    monkeypatch.setattr(tokenizer_module, "MANY_TEXTS", 0)
    return pytest.importorskip("nanotoken", reason="the fast tokenizer comes with `pip install '.[fast]'`")


def test_nanotoken_is_used_for_many_texts(minilm, nanotoken, monkeypatch):
    monkeypatch.undo()
    tokenizer = Tokenizer(minilm, CONFIG, 512)
    tokenizer(["cat"] * 255)
    assert "_fast" not in vars(tokenizer)  # it takes a while to start
    tokenizer(["cat"] * 256)
    assert isinstance(vars(tokenizer)["_fast"], nanotoken.WordPieceTokenizer)
    assert tokenizer.implementation == "nanotoken"


def both(tokenizer, texts):
    """Tokenize by nanotoken, if it is used, and by `tokenizers`; `nanotoken` must be among the fixtures."""
    ours = tokenizer(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "MANY_TEXTS", sys.maxsize)
        return ours, tokenizer(texts)


def test_nanotoken_gives_the_same_ids_of_human_rights(e5_tokenizer, shared, nanotoken):
    tokenizer = Tokenizer(e5_tokenizer, CONFIG, 512)
    assert tokenizer.implementation == "nanotoken"
    assert_equal(*both(tokenizer, human_rights(shared)))


SPECIAL = ["[CLS]", "[SEP]", "[MASK]", "[UNK]", "[PAD]", "##ing", " ", "\n", "\u0301", "\0", "a", "!", "中", "ẞ", "İ"]


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.lists(st.text() | st.sampled_from(SPECIAL)).map("".join)), max_length=st.integers(3, 20))
def test_nanotoken_gives_the_same_ids_of_any_text(tokenizers, nanotoken, texts, max_length):
    for kind in ("minilm", "added"):
        tokenizer = tokenizers[kind][1]
        assert tokenizer.implementation == "nanotoken"
        tokenizer.max_length = max_length
        assert_equal(*both(tokenizer, texts))
        tokenizer.max_length = 8


def test_nanotoken_gives_the_same_ids_of_every_character(minilm, nanotoken):
    letters = [
        chr(point) for point in range(sys.maxunicode) if unicodedata.category(chr(point)) not in ("Cn", "Co", "Cs")
    ]
    texts = [
        " ".join(f"a{letter}E\u0301{letter}" for letter in letters[n : n + 99]) for n in range(0, len(letters), 99)
    ]
    assert_equal(*both(Tokenizer(minilm, CONFIG, 512), texts))


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("strip_accents", [None, True, False])
@pytest.mark.parametrize("option", [None, "clean_text", "handle_chinese_chars"])
def test_nanotoken_reads_all_options_of_the_normalizer(tmp_path, nanotoken, lowercase, strip_accents, option):
    write_tokenizer(tmp_path, [*WORDS, "é", "É", "ı", "中", "##中"])
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["normalizer"] |= {"lowercase": lowercase, "strip_accents": strip_accents} | (
        {option: False} if option else {}
    )
    edit_json(tmp_path / "tokenizer.json", **content)
    tokenizer = Tokenizer(tmp_path, CONFIG, 64)
    assert tokenizer.implementation == "nanotoken"
    assert_equal(*both(tokenizer, [*TEXTS.values(), "É é E\u0301 中中 a中 \0a cat"]))


def test_a_tokenizer_that_nanotoken_does_not_read(tmp_path, nanotoken):
    write_tokenizer(tmp_path)
    tokenizer = FastTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(nanotoken.UnsupportedTokenizerError):
        nanotoken.WordPieceTokenizer.from_json(tokenizer.to_str())
    tokenizer = Tokenizer(tmp_path, CONFIG, 64)
    assert tokenizer.implementation == "tokenizers"
    assert tokenizer(["a"] * 2).lengths.tolist() == [3, 3]


class Nanotoken:
    """Does as nanotoken's tokenizer, by `tokenizers`, but for one mistake."""

    def __init__(self, mistake):
        self.mistake, self.seen = mistake, False

    def from_json(self, text):
        if self.mistake == "the file is refused":
            raise ValueError
        self.tokenizer = FastTokenizer.from_str(text)
        return self

    def encode_batch(self, texts, parallel):
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        if self.mistake == "it fails":
            raise RuntimeError
        if self.mistake in texts:  # that awkward one is misread
            ids[texts.index(self.mistake)][-1] += 1
        if self.mistake == "boundaries":
            ids[1], ids[2] = [*ids[1], ids[2][0]], ids[2][1:]
        if self.mistake == "the second time" and texts.count("") > 1:
            ids[-1][1] += 1
        if self.mistake in ("<mask>", "green"):  # read as [UNK]
            wrong = {self.tokenizer.token_to_id(self.mistake): 1}
            ids = [[wrong.get(token, token) for token in text] for text in ids]
        return np.concatenate(ids).astype(np.uint32), np.cumsum([0, *map(len, ids)])


AWKWARD = tokenizer_module.AWKWARD.split("|")
MISTAKES = ["the file is refused", "it fails", "boundaries", "the second time", "<mask>", "green", "a" * 101]


@pytest.mark.parametrize("mistake", [None, *MISTAKES, *AWKWARD])
def test_another_implementation_must_give_the_same_ids(monkeypatch, tmp_path, mistake):
    monkeypatch.setitem(sys.modules, "nanotoken", SimpleNamespace(WordPieceTokenizer=Nanotoken(mistake)))
    words = [word for word in WORDS if word != "green"]
    others = [f"word{n}" for n in range(50 - len(words))]
    write_tokenizer(tmp_path, [*words, *others, "green"])  # every 50th of the vocabulary is read
    add_tokens(tmp_path, "<mask>")
    tokenizer = Tokenizer(tmp_path, CONFIG, 5)
    assert tokenizer.implementation == ("tokenizers" if mistake in (*MISTAKES, *AWKWARD) else "nanotoken")
    tokens = tokenizer(["a", "", "a <mask> eat cat"] * tokenizer_module.MANY_TEXTS)
    expected = tokenizer(["a", "", "a <mask> eat cat"])
    assert lists(tokens) == lists(expected) * tokenizer_module.MANY_TEXTS
