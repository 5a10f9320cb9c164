"""Every mistake that the exercises of chapter 1 know is named; the right answers are right."""

import re
import unicodedata

import numpy as np
import pytest

import e5ref
from e5ref.course import check


def cut(word, vocabulary, *, longest=True, marks=True, later="##", whole=True, failed=None):
    """WordPiece, or what becomes of it."""
    found, rest = [], word
    while rest:
        mark = later if found else ""
        ends = range(1, len(rest) + 1)
        fitting = [end for end in ends if mark + rest[:end] in vocabulary and (whole or rest[:end] != word)]
        if not fitting:
            return ["[UNK]"] if failed is None else failed(found)
        end = fitting[-1] if longest else fitting[0]
        found.append((mark if marks else "") + rest[:end])
        rest = rest[end:]
    return found


def first_longest(word, vocabulary):
    end = max(end for end in range(1, len(word) + 1) if word[:end] in vocabulary)
    rest = ["##" + c for c in word[end:]] if word == "playing" else ["##play", "##i", "##n", "##g"]
    return [word] if end == len(word) else [word[:end], *rest]


def with_detours(word, vocabulary):
    right = cut(word, vocabulary)
    return ["un", "##happy"] if "##happy" in vocabulary and word == "unhappy" and len(right) == 5 else right


def never_unknown(word, vocabulary):
    right = cut(word, vocabulary)
    return ["un", "##happy"] if word == "unhappy" and right == ["[UNK]"] else right


def words(text, *, lower=True, accents="drop", pattern=r"[^\W_]+|[^\w\s]|_"):
    text = text.lower() if lower else text
    if accents == "ascii":
        text = text.encode("ascii", "ignore").decode()
    if accents in ("drop", "apart"):
        text = unicodedata.normalize("NFD", text)
    if accents == "drop":
        text = "".join(c for c in text if unicodedata.category(c) != "Mn")
    return re.findall(pattern, text)


def batch(texts, max_length, *, pad=None, ending=True, left=False):
    texts = [[*text[: max_length - ending], *text[-1:] * ending] if len(text) > max_length else text for text in texts]
    width = pad or max(map(len, texts))
    rows = [[0] * (width - len(text)) for text in texts]
    ids = [row + text if left else text + row for row, text in zip(rows, texts, strict=True)]
    mask = [[0] * len(row) + [1] * len(text) for row, text in zip(rows, texts, strict=True)]
    return np.array(ids), np.array(mask)[:, :: 1 if left else -1]


@pytest.mark.parametrize(("exercise", "answer"), [("1.1", cut), ("1.2", words), ("1.3", batch)])
def test_right(exercise, answer, capsys):
    check(exercise, answer)
    assert capsys.readouterr().out == f"{exercise}: right\n"


@pytest.mark.parametrize("text", ["How MUCH protein?", "naïve café", "don't wait...", "photosynthesis is unbelievable"])
def test_what_is_right_is_what_the_tokenizer_does(text):
    """The exercises, one after the other, give the ids of the model's own tokenizer."""
    model = e5ref.load("e5ref-nano")
    size = model.checkpoint.config.vocab_size
    vocabulary = {token: index for index, token in enumerate(model.tokenizer.token_strings(range(size)))}
    tokens = ["[CLS]", *(piece for word in words(text) for piece in cut(word, vocabulary)), "[SEP]"]
    assert [vocabulary[token] for token in tokens] == model.tokenize([text])["input_ids"][0].tolist()


@pytest.mark.parametrize(
    ("exercise", "answer", "sentence"),
    [
        ("1.1", "play", "wants a function, but got str"),
        ("1.1", lambda w, v: cut(w, v, longest=False), "For 'playing': Each piece is the longest that fits"),
        ("1.1", lambda w, v: cut(w, v, whole=False), "A known word stays whole"),
        ("1.1", first_longest, "true of the later ones, too"),
        ("1.1", lambda w, v: cut(w, v, marks=False), "keep their ##"),
        ("1.1", lambda w, v: cut(w, v, later=""), "with ## in front of it"),
        ("1.1", lambda w, v: cut(w, v)[:1], "Only the first piece is there"),
        ("1.1", lambda w, v: cut(w, v, failed=lambda found: [*found, "[UNK]"]), "the whole word is [UNK]"),
        ("1.1", lambda w, v: cut(w, v, failed=lambda found: found), "A word that cannot be cut to its end is [UNK]"),
        ("1.1", lambda w, v: cut(w, v, failed=lambda found: []), "yours is no token at all"),
        ("1.1", with_detours, "does not look for the fewest pieces"),
        ("1.1", never_unknown, "never goes back"),
        ("1.1", lambda w, v: [w[::-1]], "Your result is ['gniyalp'], but should be ['playing']"),
        ("1.2", lambda text: words(text, lower=False), "lower-case the text"),
        ("1.2", lambda text: re.split(r"(\s+)", text.lower()), "white space is in your list"),
        ("1.2", lambda text: text.lower().split(), "Punctuation stays with its word"),
        ("1.2", lambda text: words(text, pattern=r"\w+"), "Punctuation is gone"),
        ("1.2", lambda text: words(text, pattern=r"\w+|[^\w\s]+"), "three dots are three"),
        ("1.2", lambda text: words(text, accents="stay"), "The accents stay"),
        ("1.2", lambda text: words(text, accents="apart"), "The accents stand on their own"),
        ("1.2", lambda text: words(text, accents="ascii"), "Letters with accents are gone"),
        ("1.2", lambda text: words(text, pattern=r"\w+|[^\w\s]"), "The underscore is punctuation"),
        ("1.3", lambda t, n: (batch(t, n)[0], 1 - batch(t, n)[1]), "the wrong way round"),
        ("1.3", lambda t, n: batch(t, n, left=True), "before the text"),
        ("1.3", lambda t, n: batch(t, n, pad=n), "its longest text is enough"),
        ("1.3", lambda t, n: batch(t, n)[::-1], "The mask comes first"),
        ("1.3", lambda t, n: batch(t, n)[0], "Return both"),
        ("1.3", lambda t, n: (batch(t, n)[0], np.ones_like(batch(t, n)[0])), "1 everywhere"),
        ("1.3", lambda t, n: batch(t, n, ending=False), "[SEP] is cut off"),
        ("1.3", lambda t, n: batch(t, 99), "The long text is not cut"),
        ("1.3", lambda t, n: batch(t, n + 1), "one token more"),
        ("1.3", lambda t, n: batch(t, n + 2), "two tokens more"),
        ("1.3", lambda t, n: batch(t, n - 1), "too short"),
        ("1.3", lambda t, n: (t, batch(t, n)[1]), "Your code raises ValueError"),
    ],
)
def test_a_mistake_is_named(exercise, answer, sentence, capsys):
    check(exercise, answer)
    said = capsys.readouterr().out
    assert said.startswith(f"{exercise}: not yet. ")
    assert sentence in said
