"""Texts → token ids. How many tokens a text has, and whether it was cut, is reported and never hidden."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import BertWordPieceTokenizer, Encoding
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.normalizers import BertNormalizer

from e5ref.config import BertConfig, CheckpointError, read_json
from e5ref.files import foreign_file


class TokenizedText(NamedTuple):
    """One text as the encoder gets it."""

    ids: list[int]  # with [CLS] and [SEP], cut to max_length
    n_tokens: int  # how many the text has uncut
    truncated: bool


class Tokenizer:
    """A checkpoint's tokenizer, with padding and truncation settings of ours in place of those in its file.

    Attributes:
        path: the file that it was read from.
        max_length: the most tokens of a text, [CLS] and [SEP] counted; the rest is cut off.
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
        if not isinstance(max_length, int) or not self._specials < max_length <= config.max_tokens:
            raise ValueError(
                f"max_length is {max_length!r}, but must lie between {self._specials + 1} ({self._specials} special "
                f"tokens and one of the text) and {config.max_tokens} (the checkpoint's positions)"
            )
        self.max_length = max_length
        pad_ids = (self._tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>"))
        self.pad_id = next((pad_id for pad_id in pad_ids if pad_id is not None), config.pad_token_id)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length)

    def __call__(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Tokenize texts. Anything but text that can be written as UTF-8 must have been refused before."""
        return self.read(self.encode(texts))

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Do the part of the work that runs on all cores and needs no Python: a thread of its own can do it."""
        encodings: list[Encoding] = self._tokenizer.encode_batch_fast(texts)
        return encodings

    def read(self, encodings: Sequence[Encoding]) -> list[TokenizedText]:
        """Read what `encode` made."""
        return [self._tokenized(encoding) for encoding in encodings]

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Return the tokens that ids stand for, such as "[CLS]" and "##ing"; "" for an id that stands for none."""
        return [self._tokenizer.id_to_token(token_id) or "" for token_id in ids]

    def save(self, path: Path) -> None:
        """Write a tokenizer.json from which other libraries cut and pad as e5ref does."""
        tokenizer = FastTokenizer.from_str(self._tokenizer.to_str())
        tokenizer.enable_padding(pad_id=self.pad_id, pad_token=tokenizer.id_to_token(self.pad_id) or "[PAD]")
        tokenizer.save(str(path))

    def _tokenized(self, encoding: Encoding) -> TokenizedText:
        ids = encoding.ids
        if len(ids) < self.max_length:  # only a text that fills its room can have been cut
            return TokenizedText(ids, len(ids), False)
        # What was cut off comes in pieces with their own specials.
        cut = sum(len(piece.ids) - self._specials for piece in encoding.overflowing)
        return TokenizedText(ids, len(ids) + cut, cut > 0)


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
