"""Long texts are cut before they are tokenized, and nothing else comes of it."""

import math
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e5ref import tokenizer as tokenizer_module
from e5ref.tokenizer import Tokenizer
from tests.tokenizer.tokenized import CONFIG, KINDS, assert_equal, one_by_one


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
