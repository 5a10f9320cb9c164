"""Texts to test with: those that tokenizers and models trip over, everyday ones, and where real data lies."""

import os
from pathlib import Path

import pytest

# Real data, where a developer has it: a tokenizer of e5-small-v2, the Declaration of Human Rights in 388 languages.
SHARED = Path(os.environ.get("E5REF_SHARED", Path(__file__).parents[3] / "shared")) / "data"

# For what is too long for every change: a developer runs it when the room that it tests has changed.
takes_minutes = pytest.mark.skipif("E5REF_MINUTES" not in os.environ, reason="takes minutes; E5REF_MINUTES=1 runs it")


# What tokenizers and models trip over.
AWKWARD = {
    "empty": "",
    "blank": " ",
    "one letter": "a",
    "prompt": "query: how much protein should a female eat",
    "two prompts": "query: passage: query: ",
    "no space after the colon": "query:eat",
    "capitals": "HOW MUCH Protein?",
    "accents": "naïve café, señor Ångström, Trần Hưng Đạo",
    "accents apart from their letters": "nai\u0308ve cafe\u0301",
    "CJK": "日本語の文章と中文句子、한국어",
    "CJK beyond the first plane": "𠀀𪚥",
    "right to left": "مرحبا بالعالم שלום עולם",
    "emoji": "I ❤️ transformers 🙂👩‍👩‍👧‍👦🏳️‍🌈",
    "control characters": "a\x00b\x01c\x7fd\x85e\ufffdf",
    "line ends": "one\ntwo\r\nthree\tfour\u2028five",
    "zero width": "a\u200bb\u200dc\ufeffd\u00ade",
    "other spaces": "a\u00a0b\u3000c\u2003d",
    "special tokens in the text": "[CLS] hello [SEP] [PAD] <s> </s> <pad> [MASK] [UNK]",
    "half a special token": "[CLS [SEP ]PAD[",
    "digits and punctuation": "3.14159 -- $1,000.00 (50%) <html> a_b#c",
    "ligatures and widths": "ﬁne ① Ⅳ ｆｕｌｌ ㎏",
    "Turkish i": "İstanbul ıssız",
    "German s": "STRASSE straße ẞ",
    "a word of 99 letters": "a" * 99,
    "a word of 101 letters": "a" * 101,
    "long": "protein " * 700,
    "private use": "\ue000\U000f0000",
    "unassigned": "\u0378\U0003ffff",
}

# The four texts of the model card's example (huggingface.co/intfloat/e5-small-v2).
CARD_QUERIES = ["how much protein should a female eat", "summit define"]
CARD_PASSAGES = [
    "As a general guideline, the CDC's average requirement of protein for women ages 19 to 70 is 46 grams per day. "
    "But, as you can see from this chart, you'll need to increase that if you're expecting or training for a "
    "marathon. Check out the chart below to see how much protein you should be eating each day.",
    "Definition of summit for English Language Learners. : 1  the highest point of a mountain : the top of a mountain. "
    ": 2  the highest level. : 3  a meeting or series of meetings between the leaders of two or more governments.",
]


LICENSE = " ".join((Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8").split())  # some 200 tokens

# As people embed them: short and long, with capitals, accents, digits.
EVERYDAY = [
    "how long does it take to boil an egg",
    "The kettle whistled twice before anybody got up.",
    "What is the boiling point of water at 3,000 metres?",
    "Ferries leave the harbour every forty minutes, except on Sundays.",
    "Le café de la place ferme à vingt-deux heures.",
    "A lichen is a partnership between a fungus and an alga.",
    "who wrote the first dictionary of English",
    "Rust forms where iron, water and oxygen meet; salt makes it quicker.",
    "Ångström and Røntgen both gave their names to units.",
    "NASA launched the probe in 1977, and it is still sending data.",
    "The bridge was closed for repairs, so the buses took the long way round by the old mill.",
    "Which vitamins are lost when vegetables are cooked?",
    "She sold the orchard but kept the bees.",
    "Tides are higher at full moon and at new moon, when sun and moon pull along one line.",
    "cheap flights to Reykjavík in March",
    "An octave is the interval between a tone and one of twice its frequency.",
    "Invoices are due within 30 days of receipt (see section 4.2).",
    "Glaciers move a few centimetres to a few metres a day, carrying rock that grinds the valley below.",
    LICENSE,
    f"{LICENSE} {LICENSE}",
]
