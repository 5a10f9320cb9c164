"""The fast tokenizer gives the same ids, or is not used."""

import json
import sys
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import pre_tokenizers

from e5ref import tokenizer as tokenizer_module
from e5ref.tokenizer import Tokenizer
from tests.tokenizer.tokenized import CONFIG, assert_equal, human_rights, lists
from tests.tools.checkpoints import WORDS, add_tokens, edit_json, write_tokenizer
from tests.tools.texts import AWKWARD


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


@pytest.mark.slow
def test_nanotoken_gives_the_same_ids_of_human_rights(e5_tokenizer, shared, nanotoken):
    tokenizer = Tokenizer(e5_tokenizer, CONFIG, 512)
    assert tokenizer.implementation == "nanotoken"
    assert_equal(*both(tokenizer, human_rights(shared)))


SPECIAL = ["[CLS]", "[SEP]", "[MASK]", "[UNK]", "[PAD]", "##ing", " ", "\n", "\u0301", "\0", "a", "!", "中", "ẞ", "İ"]


@pytest.mark.slow
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
    assert_equal(*both(tokenizer, [*AWKWARD.values(), "É é E\u0301 中中 a中 \0a cat"]))


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


TRIED = tokenizer_module.AWKWARD.split("|")
MISTAKES = ["the file is refused", "it fails", "boundaries", "the second time", "<mask>", "green", "a" * 101]


@pytest.mark.parametrize("mistake", [None, *MISTAKES, *TRIED])
def test_another_implementation_must_give_the_same_ids(monkeypatch, tmp_path, mistake):
    monkeypatch.setitem(sys.modules, "nanotoken", SimpleNamespace(WordPieceTokenizer=Nanotoken(mistake)))
    words = [word for word in WORDS if word != "green"]
    others = [f"word{n}" for n in range(50 - len(words))]
    write_tokenizer(tmp_path, [*words, *others, "green"])  # every 50th of the vocabulary is read
    add_tokens(tmp_path, "<mask>")
    tokenizer = Tokenizer(tmp_path, CONFIG, 5)
    assert tokenizer.implementation == ("tokenizers" if mistake in (*MISTAKES, *TRIED) else "nanotoken")
    tokens = tokenizer(["a", "", "a <mask> eat cat"] * tokenizer_module.MANY_TEXTS)
    expected = tokenizer(["a", "", "a <mask> eat cat"])
    assert lists(tokens) == lists(expected) * tokenizer_module.MANY_TEXTS
