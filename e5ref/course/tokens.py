"""The exercises of docs/learn/1-tokens.md."""

import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from e5ref.course import Verdict, compared
from e5ref.operations import Ids

VOCABULARY = ("[UNK]", "play", "playing", "##ing", "##i", "##n", "##g", "un", "unh", "##happy", "##able")
# In this one "unhappy" can be cut, yet not from the longest beginning on; with the rest added, it can be either way.
DEAD_END = ("[UNK]", "un", "unh", "##happy")
DETOUR = (*DEAD_END, "##a", "##p", "##y")

Cut = Callable[[str, Collection[str]], list[str]]


def pieces(word: str, vocabulary: Collection[str]) -> list[str]:
    """Cut a word into pieces of the vocabulary, each as long as can be; ["[UNK]"] if one is missing."""
    found: list[str] = []
    start = 0
    while start < len(word):
        mark = "##" if start else ""
        ends = [end for end in range(len(word), start, -1) if mark + word[start:end] in vocabulary]
        if not ends:
            return ["[UNK]"]
        found.append(mark + word[start : ends[0]])
        start = ends[0]
    return found


def all_cuts(word: str, vocabulary: Collection[str], mark: str = "") -> list[list[str]]:
    """Return every way to cut a word."""
    if not word:
        return [[]]
    beginnings = [end for end in range(1, len(word) + 1) if mark + word[:end] in vocabulary]
    return [[mark + word[:end], *rest] for end in beginnings for rest in all_cuts(word[end:], vocabulary, "##")]


def shortest_first(word: str, vocabulary: Collection[str]) -> list[str]:
    """Cut a word into the shortest pieces that fit."""
    return min(all_cuts(word, vocabulary), key=lambda cut: [len(piece) for piece in cut])


def fewest(word: str, vocabulary: Collection[str]) -> list[str]:
    """Cut a word into as few pieces as can be."""
    return min(all_cuts(word, vocabulary), key=len)


def unmarked(word: str, vocabulary: Collection[str]) -> list[str]:
    """Cut a word and leave the marks out."""
    return [piece.removeprefix("##") for piece in pieces(word, vocabulary)]


CUTS: list[tuple[str, Collection[str], Mapping[str, Cut]]] = [
    (
        "playing",
        VOCABULARY,
        {
            "Each piece is the longest that fits: try the whole word first, then shorter beginnings.": shortest_first,
            "A known word stays whole: try the whole word before its beginnings.": lambda word, vocabulary: pieces(
                word, [piece for piece in vocabulary if piece != word]
            ),
        },
    ),
    (
        "unplaying",
        ("[UNK]", "un", "##play", "##ing", "##i", "##n", "##g"),
        {
            "Pieces that continue a word keep their ##.": unmarked,
            "You find no piece after the first: look up the rest with ## in front of it.": lambda word, vocabulary: [
                "[UNK]"
            ],
            "Each piece is the longest that fits: that is true of the later ones, too.": shortest_first,
            "Only the first piece is there: go on with the rest of the word.": lambda word, vocabulary: ["un"],
        },
    ),
    (
        "playzing",
        VOCABULARY,
        {
            "If one piece is unknown, the whole word is [UNK]: the pieces before it do not stay.": lambda word, _: [
                "play",
                "[UNK]",
            ],
            "A word that cannot be cut to its end is [UNK]: the pieces before the end do not stay.": lambda word, _: [
                "play"
            ],
            "A word that cannot be cut is the one token [UNK]; yours is no token at all.": lambda word, vocabulary: [],
        },
    ),
    (
        "unhappy",
        DETOUR,
        {"WordPiece does not look for the fewest pieces: it takes the longest beginning and never goes back.": fewest},
    ),
    (
        "unhappy",
        DEAD_END,
        {"WordPiece never goes back: after the longest beginning, unh, nothing fits, so the word is [UNK].": fewest},
    ),
]


def check_pieces(answer: object) -> str | None:
    """Exercise 1.1: WordPiece of one word."""
    for word, vocabulary, mistakes in CUTS:
        ids = {piece: index for index, piece in enumerate(vocabulary)}
        if said := compared(answer, pieces, [(word, ids)], mistakes):
            return f"For {word!r}: {said}" if callable(answer) else said
    return None


def plain(text: str) -> str:
    """Lower-case a text and take the accents off."""
    return "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")


def split(text: str) -> list[str]:
    """Split a text into words of letters and digits, and single other characters."""
    return re.findall(r"[^\W_]+|[^\w\s]|_", plain(text))


SPLITS: list[tuple[str, Mapping[str, Callable[[str], list[str]]]]] = [
    (
        "How MUCH\tprotein",
        {
            "Capital letters stay: lower-case the text.": str.split,
            "The white space is in your list: it only separates words.": lambda text: re.split(r"(\s+)", text.lower()),
        },
    ),
    (
        "eat, or not?",
        {
            "Punctuation stays with its word: it is a word of its own.": str.split,
            "Punctuation is gone: it is a word of its own.": lambda text: re.findall(r"\w+", text),
        },
    ),
    (
        "don't wait...",
        {
            "Each mark of punctuation is a word of its own: three dots are three.": lambda text: re.findall(
                r"\w+|[^\w\s]+", text
            )
        },
    ),
    (
        "naïve café",
        {
            "The accents stay: decompose with unicodedata.normalize('NFD', ...), and drop category Mn.": str.split,
            "The accents stand on their own: drop the characters of category Mn.": lambda text: re.findall(
                r"\w+|[^\w\s]", unicodedata.normalize("NFD", text)
            ),
            "Letters with accents are gone: decompose first, then drop the accents alone.": lambda text: (
                text.encode("ascii", "ignore").decode().split()
            ),
        },
    ),
    (
        "a_b",
        {"The underscore is punctuation, though \\w of regular expressions takes it for a letter.": str.split},
    ),
]


def check_split(answer: object) -> str | None:
    """Exercise 1.2: words and punctuation."""
    for text, mistakes in SPLITS:
        if said := compared(answer, split, [(text,)], mistakes):
            return f"For {text!r}: {said}" if callable(answer) else said
    return None


TEXTS = [[2, 11, 12, 3], [2, 21, 22, 23, 24, 25, 26, 27, 3], [2, 3]]


def batch(texts: Sequence[Sequence[int]], max_length: int) -> tuple[Ids, Ids]:
    """Cut, pad and stack ids: what the model takes, input_ids and attention_mask, [B, T] each."""
    cut = [[*text[: max_length - 1], text[-1]] if len(text) > max_length else text for text in texts]
    input_ids = np.zeros((len(cut), max(map(len, cut))), np.int64)
    attention_mask = np.zeros_like(input_ids)
    for row, text in enumerate(cut):
        input_ids[row, : len(text)] = text
        attention_mask[row, : len(text)] = 1
    return input_ids, attention_mask


def on_the_left(texts: Sequence[Sequence[int]], max_length: int) -> tuple[Ids, Ids]:
    """Pad on the wrong side."""
    input_ids, attention_mask = batch([text[::-1] for text in texts], max_length)
    return input_ids[:, ::-1], attention_mask[:, ::-1]


def to_max_length(texts: Sequence[Sequence[int]], max_length: int) -> tuple[Ids, Ids]:
    """Pad further than the longest text."""
    input_ids, attention_mask = batch([*texts, [2] * max_length], max_length)
    return input_ids[:-1], attention_mask[:-1]


def check_batch(answer: object) -> str | None:
    """Exercise 1.3: input_ids and attention_mask of texts."""
    said = compared(
        answer,
        batch,
        [(TEXTS, 10)],
        {
            "The mask is the wrong way round: 1 is for a token, 0 for padding.": lambda texts, n: (
                batch(texts, n)[0],
                1 - batch(texts, n)[1],
            ),
            "The padding stands before the text: it goes behind it.": on_the_left,
            "The batch is as wide as max_length: its longest text is enough.": to_max_length,
            "The mask comes first: input_ids should.": lambda texts, n: batch(texts, n)[::-1],
            "Return both: input_ids and attention_mask.": lambda texts, n: batch(texts, n)[0],
            "The mask is 1 everywhere: it is 0 at padding.": lambda texts, n: (
                batch(texts, n)[0],
                np.ones_like(batch(texts, n)[1]),
            ),
        },
    )
    return said or compared(
        answer,
        batch,
        [(TEXTS, 5)],
        {
            "[SEP] is cut off: it stays last, so of a long text keep one token less.": lambda texts, n: batch(
                [text[:n] for text in texts], n
            ),
            "The long text is not cut.": lambda texts, n: batch(texts, 10),
            "A text is cut to one token more: [CLS] and [SEP] count in max_length.": lambda texts, n: batch(
                texts, n + 1
            ),
            "A text is cut to two tokens more: [CLS] and [SEP] count in max_length.": lambda texts, n: batch(
                texts, n + 2
            ),
            "A text is cut too short: [CLS] and [SEP] are part of max_length, not on top of it.": lambda texts, n: (
                batch(texts, n - 1)
            ),
        },
    )


EXERCISES: dict[str, Verdict] = {"1.1": check_pieces, "1.2": check_split, "1.3": check_batch}
