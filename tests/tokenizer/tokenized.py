"""What is compared of tokenized texts."""

import zipfile
from typing import NamedTuple

import numpy as np

from e5ref.checkpoint.config import BertConfig

CONFIG = BertConfig("bert", 30522, 384, 12, 12, 1536, 512, 2, 1e-12, 0)


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


def human_rights(shared):
    with zipfile.ZipFile(shared / "udhr" / "udhr2.zip") as archive:
        declarations = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".txt")]
    assert len(declarations) >= 388
    return declarations + [paragraph for text in declarations for paragraph in text.split("\n")]


KINDS = ("minilm", "vocab.txt", "letters", "words", "added", "added words", "added space")
