"""Texts → token ids, in one flat array. How many tokens a text has, and whether it was cut, is never hidden."""

import itertools
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray
from tokenizers import BertWordPieceTokenizer
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer

from e5ref.checkpoint.config import BertConfig, CheckpointError, read_json
from e5ref.files.lines import foreign_file

# A text of up to this many characters for each token of max_length is tokenized whole: 65,536 characters for 512
# tokens. Only the first part, of this size, of a longer text is tokenized. Prose has about 5 characters a token.
WHOLE_CHARACTERS = 128

# If the first part has too few tokens, up to 16 parts are tokenized. What has too few even then is not text.
MOST_PARTS = 16

# The last tokens of a cut text can differ from those of the whole: the tokens of the last word, of which WordPiece
# makes at most 100, and of a special token that was cut. Unigram chooses all tokens of a word together. What follows
# changes a choice hundreds of tokens before only in a word that repeats a pattern from there to its end.
UNSURE_TOKENS = 512

# Fewer texts at once go through `tokenizers`: nanotoken takes 50 ms to start and to be checked.
MANY_TEXTS = 256

# nanotoken must read these as `tokenizers` does; also long words, much of the vocabulary and added tokens.
AWKWARD = (
    "| |a|HOW MUCH Protein?|3.14159 -- $1,000.00 (50%) <html> a_b#c`~^+=|don't e-mail@x.org “”…–—|naïve café, Trần Hưng"
    "|nai\u0308ve cafe\u0301|\u0301| \u0323\u0301a\u0328|ÀÉÎõü|日本語の文章と中文句子、한국어|𠀀𪚥|ＦＵ ① Ⅳ ㎏|กิน|हिन्दी"
    "|مرحبا שָׁלוֹם|Ελλάς ΣΑΣ Σ|Привет Йод|I ❤️ 🙂👩\u200d👩\u200d👧🏳️\u200d🌈|İstanbul ıssız|STRASSE straße ẞ|ﬁne ﷺ Ǆ ŉ"
    "|a\0b\1c\x7fd\x85e\ufffdf|\0|one\ntwo\r\nthree\tfour\u2028five\x0bsix\x0cseven\x1ceight|a\u200bb\u200dc\ufeffd\u00ade"
    "|a\u00a0b\u3000c\u2003d|[CLS] hello [SEP] [PAD][MASK]x[UNK] <s> </s>|[CLS [SEP ]PAD[ [sep]|\ue000\U000f0000|\u0378"
)


class TokenIds(NamedTuple):
    """Token ids of texts, text after text."""

    ids: NDArray[np.int32]  # [tokens], with [CLS] and [SEP], each text cut to max_length
    offsets: NDArray[np.int64]  # [texts + 1]; text i has ids[offsets[i] : offsets[i + 1]]
    n_tokens: NDArray[np.int64]  # [texts], how many each has uncut; 0, and no ids, if too little of a long text is text
    exact: NDArray[np.bool_]  # [texts], whether n_tokens is exact; a text that is too long to count has more

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How many ids each text has. [texts]."""
        return np.diff(self.offsets)

    @property
    def truncated(self) -> NDArray[np.bool_]:
        """Whether each text was cut. [texts]."""
        return ~self.exact | (self.n_tokens > self.lengths)

    def texts(self) -> list[NDArray[np.int32]]:
        """Return each text's ids, as views."""
        return [self.ids[start:stop] for start, stop in itertools.pairwise(self.offsets.tolist())]


class Tokens(TypedDict):
    """What `E5.tokenize` returns; the first two entries are what the model card's code calls `batch_dict`."""

    input_ids: NDArray[np.int64]  # [B, T]
    attention_mask: NDArray[np.int64]  # [B, T], 1 for a real token
    n_tokens: NDArray[np.int64]  # [B], tokens of each text uncut, with [CLS] and [SEP]; a very long one may have more
    truncated: NDArray[np.bool_]  # [B], whether the text was cut to max_length


class Piece(NamedTuple):
    """Which part of a text a token is."""

    word: int | None  # which word of the text, from 0 on; None for a special token, which is no part of it
    start: int  # of its characters
    stop: int  # behind the last of them


class Tokenizer:
    """A checkpoint's tokenizer, with padding and truncation settings of ours in place of those in its file.

    Attributes:
        path: the file that it was read from.
        max_length: the most tokens of a text, [CLS] and [SEP] counted; the rest is cut off.
        long_text: the characters up to which a text is tokenized whole.
        pad_id: the id that fills short rows of a batch.
    """

    def __init__(self, folder: Path, config: BertConfig, max_length: int) -> None:
        """Read `tokenizer.json` of a folder, or `vocab.txt` and, if there is one, `tokenizer_config.json`.

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
        specials = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        if not isinstance(max_length, int | np.integer) or not specials < max_length <= config.max_tokens:
            raise ValueError(
                f"max_length is {max_length!r}, but must lie between {specials + 1} ({specials} special tokens and one "
                f"of the text) and {config.max_tokens} (the checkpoint's positions)"
            )
        self.max_length = int(max_length)
        self.long_text = WHOLE_CHARACTERS * max(max_length, UNSURE_TOKENS)
        pad_ids = (self._tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>"))
        self.pad_id = next((pad_id for pad_id in pad_ids if pad_id is not None), config.pad_token_id)
        # WordPiece makes one [UNK] of a long run of letters, and nothing of white space, if no added token begins or
        # ends in one.
        self._added = [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]
        self._wordpiece = isinstance(self._tokenizer.model, WordPiece)
        self._runs_are_unknown = self._wordpiece and not any(
            edge.isalnum() or edge.isspace() for content in self._added for edge in (content[:1], content[-1:])
        )
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        try:  # the special tokens that end a text, which stay when it is cut
            self._ending = self._tokenizer.encode("a").special_tokens_mask[::-1].index(0)
        except Exception as error:  # tokenizers raises Exception itself
            raise CheckpointError(f"{self.path}: makes no token of 'a' ({error}); fetch the file anew") from None

    @property
    def implementation(self) -> str:
        """The package that tokenizes many texts: "tokenizers", or "nanotoken", which gives the same ids."""
        return "nanotoken" if self._fast else "tokenizers"

    def __call__(self, texts: Sequence[str]) -> TokenIds:
        """Tokenize texts. Anything but text that can be written as UTF-8 must have been refused before."""
        fast = self._fast if len(texts) >= MANY_TEXTS else None
        beginnings = list(texts)
        long_rows = [row for row, text in enumerate(texts) if len(text) > self.long_text]
        for row in long_rows:  # a special token after the cut may swallow the white space before it
            beginnings[row] = texts[row][: self.long_text].rstrip()
        exact = np.ones(len(texts), np.bool_)
        exact[long_rows] = False
        ids, offsets = self._encode(beginnings, fast)
        too_few = self.max_length + UNSURE_TOKENS
        if short_rows := [row for row in long_rows if offsets[row + 1] - offsets[row] <= too_few]:
            whole = {}
            for row in short_rows:
                beginnings[row], whole[row] = shorten(texts[row], self.long_text, wordpiece=self._runs_are_unknown)
            ids, offsets = self._encode(beginnings, fast)
            for row in short_rows:
                unchanged = len(beginnings[row]) == len(texts[row])
                exact[row] = whole[row] and (unchanged or offsets[row + 1] - offsets[row] <= too_few)

        n_tokens = offsets[1:] - offsets[:-1]
        rows_to_cut = np.flatnonzero((n_tokens > self.max_length) | ~exact).tolist()
        if not rows_to_cut:
            return TokenIds(ids, offsets, n_tokens, exact)
        kept, lengths = np.ones(len(ids), np.bool_), n_tokens.copy()
        for row in rows_to_cut:
            lengths[row] = self.max_length if exact[row] or n_tokens[row] > too_few else 0
            ending = self._ending if lengths[row] else 0
            kept[offsets[row] + lengths[row] - ending : offsets[row + 1] - ending] = False
        n_tokens[~exact] -= UNSURE_TOKENS
        n_tokens[lengths == 0] = 0
        return TokenIds(ids[kept], np.concatenate([[0], np.cumsum(lengths)]), n_tokens, exact)

    def _encode(self, texts: list[str], fast: Any) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return the ids of texts uncut [tokens], and the offsets [texts + 1]; by `fast` if it is not None."""
        if fast is not None:  # one thread of it is faster than any device, and leaves the cores to the NumPy twin
            fast_ids, offsets = fast.encode_batch(texts, parallel=False)
            return fast_ids.view(np.int32), offsets
        ids = [np.empty(0, np.int32)]
        lengths: list[int] = []
        # An Encoding takes hundreds of bytes a token, so those of a million characters are let go of before the next.
        characters = itertools.accumulate(map(len, texts))
        for _, piece in itertools.groupby(texts, lambda _: next(characters) >> 20):
            encodings = self._tokenizer.encode_batch_fast(list(piece))
            ids.append(np.fromiter(itertools.chain.from_iterable(encoding.ids for encoding in encodings), np.int32))
            lengths += map(len, encodings)
        return np.concatenate(ids), np.fromiter(itertools.accumulate(lengths, initial=0), np.int64)

    @cached_property
    def _fast(self) -> Any:
        """nanotoken's form of this tokenizer; None if it is not installed, or refuses or misreads it."""
        if not self._wordpiece:
            return None
        try:
            from nanotoken import WordPieceTokenizer

            fast = WordPieceTokenizer.from_json(self._tokenizer.to_str())
            words = [letter * n for letter in ("a", "é", "e\u0301", "中", " ", "a ") for n in (50, 99, 100, 101, 1000)]
            vocabulary = " ".join(self.token_strings(range(0, self._tokenizer.get_vocab_size(), 50)))
            added = [f"a{token}b {token.title()}, {token}{token} {token[:-1]}" for token in self._added]
            texts = [*AWKWARD.split("|"), *words, vocabulary, *added] * 2  # the second time out of nanotoken's cache
            (ids, offsets), (true_ids, true_offsets) = self._encode(texts, fast), self._encode(texts, None)
            return fast if np.array_equal(ids, true_ids) and np.array_equal(offsets, true_offsets) else None
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # a panic of Rust is one; after any failure, `tokenizers` does without nanotoken
            return None

    def token_strings(self, ids: Iterable[int]) -> list[str]:
        """Return the tokens that ids stand for, such as "[CLS]" and "##ing"; "" for an id that stands for none."""
        return [self._tokenizer.id_to_token(token_id) or "" for token_id in ids]

    def pieces(self, text: str) -> list[Piece]:
        """Return which part of a text each of its tokens is; where the text is cut, of the tokens that stay."""
        encoding = self._tokenizer.encode(text)
        pieces = [Piece(word, *span) for word, span in zip(encoding.word_ids, encoding.offsets, strict=True)]
        ending = len(pieces) - self._ending
        return pieces[: min(ending, self.max_length - self._ending)] + pieces[ending:]

    def save(self, path: Path) -> None:
        """Write a tokenizer.json with which any library cuts and pads as e5ref does."""
        tokenizer = FastTokenizer.from_str(self._tokenizer.to_str())
        tokenizer.enable_truncation(self.max_length)
        tokenizer.enable_padding(pad_id=self.pad_id, pad_token=tokenizer.id_to_token(self.pad_id) or "[PAD]")
        tokenizer.save(str(path))


def shorten(text: str, size: int, *, wordpiece: bool) -> tuple[str, bool]:
    """Shorten the long runs of a text, and cut the text if it is still too long.

    A run keeps at least `size` of its characters. Either they fill a text, since no vocabulary has a token of 64 equal
    characters. Or they are at most one token, such as [UNK], and more of them would be no more.

    Args:
        text: of any length.
        size: the characters of a part.
        wordpiece: whether any long run of letters is one token, and white space no token.

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
    """Name what all of a part of a text is: one character, or one kind of character; "" if it is mixed."""
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
        # transformers goes by tokenizer_config.json, the rest by tokenizer.json.
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
