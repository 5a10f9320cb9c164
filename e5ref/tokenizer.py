"""Texts → token ids. How many tokens a text has, and whether it was cut, is reported and never hidden."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import BertWordPieceTokenizer, Encoding
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer

from e5ref.config import BertConfig, CheckpointError, read_json
from e5ref.files import foreign_file

# Characters for each token of max_length up to which a text is tokenized whole, and its tokens are all counted: 65,536
# for 512 tokens. Of a longer text only the first part, of this size, is tokenized. Prose has about 5 for each token.
WHOLE_CHARACTERS = 128

# If the first part has too few tokens, up to 16 parts are tokenized. What has too few even then is not text.
MOST_PARTS = 16

# The last tokens of a text that was cut can differ from those of the whole: the tokens of the last word, of which
# WordPiece makes at most 100, and of a special token that was cut. Unigram chooses all tokens of a word together, but
# what follows changes a choice hundreds of tokens before only in a word that repeats a pattern from there to its end.
UNSURE_TOKENS = 512


class TokenizedText(NamedTuple):
    """One text as the encoder gets it."""

    ids: list[int]  # with [CLS] and [SEP], cut to max_length; none if the beginning of a long text is not enough
    n_tokens: int  # how many the text has uncut
    truncated: bool
    exact: bool  # whether n_tokens is exact; a text that is too long to count has more


class Encoded(NamedTuple):
    """What the tokenizer made of texts."""

    encodings: list[Encoding]
    cut: set[int]  # rows of the texts of which only the beginning is encoded


class Tokenizer:
    """A checkpoint's tokenizer, with padding and truncation settings of ours in place of those in its file.

    Attributes:
        path: the file that it was read from.
        max_length: the most tokens of a text, [CLS] and [SEP] counted; the rest is cut off.
        long_text: the characters up to which a text is tokenized whole.
        pad_id: the id that fills short rows of a batch.
    """

    def __init__(self, folder: Path, config: BertConfig, max_length: int) -> None:
        """Read the tokenizer of a checkpoint folder.

        Args:
            folder: holds `tokenizer.json`, or `vocab.txt` and, if there is one, `tokenizer_config.json`.
            config: the checkpoint's configuration.
            max_length: the most tokens of a text, [CLS] and [SEP] counted.

        Raises:
            CheckpointError: no tokenizer, one that cannot be read, or one that does not fit the vocabulary.
            ValueError: `max_length` leaves no room for a token of the text, or exceeds the positions.
        """
        self.path, self._tokenizer = read_tokenizer(folder)
        size = self._tokenizer.get_vocab_size()
        if size > config.vocab_size:
            raise CheckpointError(
                f"{self.path}: has {size} tokens, but the word embedding only {config.vocab_size} rows (vocab_size in "
                "config.json); tokenizer and weights are of different checkpoints"
            )
        self._specials = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        if not isinstance(max_length, int | np.integer) or not self._specials < max_length <= config.max_tokens:
            raise ValueError(
                f"max_length is {max_length!r}, but must lie between {self._specials + 1} ({self._specials} special "
                f"tokens and one of the text) and {config.max_tokens} (the checkpoint's positions)"
            )
        self.max_length = int(max_length)
        self.long_text = WHOLE_CHARACTERS * max(max_length, UNSURE_TOKENS)
        pad_ids = (self._tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>"))
        self.pad_id = next((pad_id for pad_id in pad_ids if pad_id is not None), config.pad_token_id)
        # WordPiece makes one [UNK] of a long run of letters, and nothing of white space, if no added token begins or
        # ends in one.
        added = [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]
        self._runs_are_unknown = isinstance(self._tokenizer.model, WordPiece) and not any(
            edge.isalnum() or edge.isspace() for content in added for edge in (content[:1], content[-1:])
        )
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.max_length)

    def __call__(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Tokenize texts. Anything but text that can be written as UTF-8 must have been refused before."""
        return self.read(self.encode(texts))

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Do the part of the work that runs on all cores and needs no Python: a thread of its own can do it."""
        long_rows = [row for row, text in enumerate(texts) if len(text) > self.long_text]
        beginnings = list(texts)
        for row in long_rows:  # a special token after the cut may swallow the white space before it
            beginnings[row] = texts[row][: self.long_text].rstrip()
        encodings = self._tokenizer.encode_batch_fast(beginnings)
        cut = set(long_rows)
        for row in long_rows:
            if not self._fills(encodings[row]):
                shortened, whole = shorten(texts[row], self.long_text, wordpiece=self._runs_are_unknown)
                (encodings[row],) = self._tokenizer.encode_batch_fast([shortened])
                if whole and (len(shortened) == len(texts[row]) or not self._fills(encodings[row])):
                    cut.remove(row)
        return Encoded(encodings, cut)

    def read(self, encoded: Encoded) -> list[TokenizedText]:
        """Read what `encode` made."""
        return [self._tokenized(encoding, row in encoded.cut) for row, encoding in enumerate(encoded.encodings)]

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Return the tokens that ids stand for, such as "[CLS]" and "##ing"; "" for an id that stands for none."""
        return [self._tokenizer.id_to_token(token_id) or "" for token_id in ids]

    def save(self, path: Path) -> None:
        """Write a tokenizer.json from which other libraries cut and pad as e5ref does."""
        tokenizer = FastTokenizer.from_str(self._tokenizer.to_str())
        tokenizer.enable_padding(pad_id=self.pad_id, pad_token=tokenizer.id_to_token(self.pad_id) or "[PAD]")
        tokenizer.save(str(path))

    def _fills(self, encoding: Encoding) -> bool:
        return self._count(encoding) > self.max_length + UNSURE_TOKENS

    def _count(self, encoding: Encoding) -> int:
        # What was cut off comes in pieces with their own specials.
        return len(encoding) + sum(len(piece) - self._specials for piece in encoding.overflowing)

    def _tokenized(self, encoding: Encoding, cut: bool) -> TokenizedText:
        ids = encoding.ids
        if cut and not self._fills(encoding):
            return TokenizedText([], 0, truncated=True, exact=False)
        if cut:
            return TokenizedText(ids, self._count(encoding) - UNSURE_TOKENS, truncated=True, exact=False)
        # Only a text that fills its room can have been truncated.
        n_tokens = len(ids) if len(ids) < self.max_length else self._count(encoding)
        return TokenizedText(ids, n_tokens, n_tokens > len(ids), True)


def shorten(text: str, size: int, *, wordpiece: bool) -> tuple[str, bool]:
    """Shorten the long runs of a text, and cut what is too long even so.

    A run keeps at least `size` of its characters. They fill a text, since no vocabulary has a token of 64 equal
    characters; or they are one token ([UNK], say) or none, and so are more of them.

    Args:
        text: of any length.
        size: the characters of a part.
        wordpiece: whether a long run of letters is one token, whatever they are, and white space is none.

    Returns:
        `MOST_PARTS` parts at most, and whether they reach to the end of the text.
    """
    parts: list[str] = []
    run = ""
    for start in range(0, len(text), size):
        part = text[start : start + size]
        before, run = run, _run(part, wordpiece)
        if run and run == before:
            continue
        if len(parts) == MOST_PARTS:
            return "".join(parts).rstrip(), False
        parts.append(part)
    return "".join(parts), True


def _run(part: str, wordpiece: bool) -> str:
    """Say of what a part of a text is a run: one character, or one kind of them; "" if of nothing."""
    if wordpiece and part.isascii() and part.isalnum():
        return "letters and digits"
    if wordpiece and not part.strip(" \t\r\n"):
        return "white space"
    return part[0] if part == part[0] * len(part) else ""


def read_tokenizer(folder: Path) -> tuple[Path, FastTokenizer]:
    """Read a checkpoint's tokenizer as its file has it; return the file too. Raises `CheckpointError`."""
    path = folder / "tokenizer.json"
    settings = folder / "tokenizer_config.json"
    options = read_json(settings) if settings.exists() else {}
    if not path.exists():
        path = folder / "vocab.txt"
        if not path.exists():
            raise CheckpointError(
                f"{folder}: holds neither tokenizer.json nor vocab.txt; fetch one from the model's page"
            )
        try:
            return path, _wordpiece(path, options)
        except Exception as error:  # tokenizers raises Exception itself
            reason = foreign_file(path) or f"is not BERT's vocabulary ({error}); fetch the file anew"
            raise CheckpointError(f"{path}: {reason}") from None
    try:
        tokenizer = FastTokenizer.from_file(str(path))
    except Exception as error:  # here too, with the place in the file
        reason = foreign_file(path) or f"cannot be read as a tokenizer ({error}); fetch the file anew"
        raise CheckpointError(f"{path}: {reason}") from None
    for name, attribute in NORMALIZER_OPTIONS.items() if isinstance(tokenizer.normalizer, BertNormalizer) else ():
        value = getattr(tokenizer.normalizer, attribute)
        # transformers goes by tokenizer_config.json, other libraries by tokenizer.json.
        if options.get(name, value) != value:
            raise CheckpointError(
                f"{settings}: {name} is {options[name]!r}, but {attribute} of tokenizer.json {value!r}; fetch both anew"
            )
    return path, tokenizer


# What tokenizer_config.json calls the options of BERT's normaliser, and what tokenizer.json does.
NORMALIZER_OPTIONS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


def _wordpiece(path: Path, options: dict[str, Any]) -> FastTokenizer:
    """Build BERT's tokenizer from its vocabulary, a token a line."""
    tokenizer = BertWordPieceTokenizer(
        str(path),
        **{attribute: options[name] for name, attribute in NORMALIZER_OPTIONS.items() if name in options},
    )
    missing = [token for token in ("[UNK]", "[CLS]", "[SEP]", "[PAD]") if tokenizer.token_to_id(token) is None]
    if missing:
        raise ValueError(f"it has no {missing[0]}")
    return tokenizer._tokenizer
