"""Tokenizers of each kind."""

import shutil
import sys

import pytest

from e5ref.tokenizer import Tokenizer
from tests.tokenizer.tokenized import CONFIG, KINDS
from tests.tools.checkpoints import add_tokens, write_tokenizer, write_unigram, write_unigram_of_words


@pytest.fixture
def e5_tokenizer(shared, tmp_path):
    """The folder of e5-small-v2's tokenizer, with what its tokenizer_config.json says of its class."""
    shutil.copy(shared / "e5-small-v2" / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    return tmp_path


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
