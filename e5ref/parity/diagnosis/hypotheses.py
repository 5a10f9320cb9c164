"""Hypotheses about the way from texts to vectors: the prefixes, tokens and poolings that people get wrong.

A `Hypothesis` is one such way; `Predictions` computes the vectors that it leads to. Hidden states are computed once for
each sequence of ids, and all poolings are taken from them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from itertools import chain, product

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.normalizers import BertNormalizer

from e5ref import numpy_model
from e5ref.encoder import E5
from e5ref.engines.batching import pad_ids, token_batches
from e5ref.parity.altered.changes import DENSE_LEFT_OUT, DENSE_MISTAKES, tanh_gelu
from e5ref.parity.altered.models import int8_model, model_copy, padded_model
from e5ref.parity.diagnosis.texts import Chunks, TextVariant, cleaned_variants, text_variants
from e5ref.tokenizer import read_tokenizer

Floats = NDArray[np.floating]
TextIds = tuple[int, ...]  # the ids of one text

BATCH_TOKENS = 2048
STAGES = 6
LENGTHS = (64, 128, 256, 384, 512)


class Computation(Enum):
    """How the encoder computed."""

    PLAIN = auto()  # in float32, without padding
    PADDED = auto()  # padding was computed, and hidden from attention as usual
    UNMASKED = auto()  # padding was computed, and attended to
    TANH_GELU = auto()  # as PLAIN, with GELU's approximation by tanh
    INT8_ONNXRUNTIME = auto()
    INT8_ONNXRUNTIME_BY_CHANNEL = auto()
    INT8_TORCH = auto()


WITH_PADDING = (Computation.PADDED, Computation.UNMASKED)

# Computation in 8 bits → the kind of `int8_model`.
INT8_KINDS = {
    Computation.INT8_ONNXRUNTIME: "onnxruntime",
    Computation.INT8_ONNXRUNTIME_BY_CHANNEL: "onnxruntime by channel",
    Computation.INT8_TORCH: "torch",
}

# Pooling → its name if it departs from the card.
POOLINGS = {
    "mean": "mean pooling",
    "cls": "[CLS] pooling",
    "max": "max pooling",
    "last": "last-token pooling",
    "mean-inner": "mean pooling without [CLS] and [SEP]",
}
OVER_PADDING = {
    "mean-padded": "mean pooling over padding too",
    "max-padded": "max pooling over padding too",
    "last-padded": "last-token pooling that takes padding",
}


@dataclass(frozen=True)
class TokenVariant:
    """How the tokenizer was used."""

    deviation: str | None  # how that departs from the card; None if it does not
    max_length: int  # the most tokens of a text
    normalizer: tuple[tuple[str, bool], ...] = ()  # options of the normalizer that are changed
    lower: bool = False  # whether texts are lower-cased before the tokenizer, if it keeps case
    cls: bool = True  # whether [CLS] stands before a text
    sep: bool = True  # whether [SEP] stands after it
    marked: bool = False  # whether each word has "▁" before it, as SentencePiece has it
    ends: tuple[int, int] | None = None  # the ids that stand for [CLS] and [SEP]; None for the tokenizer's


@dataclass(frozen=True)
class Hypothesis:
    """One way from texts to vectors. Scale, order and width are left open: the vectors show them."""

    text: TextVariant
    token: TokenVariant
    computation: Computation = Computation.PLAIN
    length: int = 0  # the length that texts are padded to; 0 for the longest of them
    pooling: str = "mean"  # a key of POOLINGS or of OVER_PADDING
    dense: str | None = None  # a key of DENSE_MISTAKES; None if a Dense layer is as the card says
    chunks: Chunks | None = None  # how long texts were cut; None if they were not

    def deviations(self, pooling: str, longest: int) -> tuple[str, ...]:
        """Name what departs from the card, given the card's pooling and the length that texts are padded to."""
        padding = f" (padded to {longest} tokens)"
        unmasked = f"padding attended to{padding}" if self.computation is Computation.UNMASKED else None
        pooled = (POOLINGS | OVER_PADDING)[self.pooling] if self.pooling != pooling else None
        if pooled and self.computation is Computation.PADDED:
            pooled += padding
        inside = "tanh GELU" if self.computation is Computation.TANH_GELU else None
        if self.computation in INT8_KINDS:
            inside = "int8"
        text = (self.text.deviation, *self.text.cleaned, *(self.chunks.deviations if self.chunks else ()))
        return tuple(filter(None, (*text, self.token.deviation, unmasked, pooled, self.dense, inside)))


class Predictions:
    """The vectors that hypotheses lead to, for one checkpoint and the user's texts.

    Attributes:
        encoder: the checkpoint.
        texts, tokens: the variants of what the encoder may have got, those of the card first.
    """

    def __init__(self, encoder: E5, texts: Sequence[str], prompt_name: str | None) -> None:
        """Prepare; nothing is computed yet."""
        self.encoder = encoder
        self.config = encoder.checkpoint.config
        self.texts = text_variants(texts, encoder.checkpoint.settings.prompts, prompt_name)
        self._text = read_tokenizer(encoder.checkpoint.folder)[1].to_str()
        self._tokenizers: dict[tuple[tuple[str, bool], ...], FastTokenizer] = {}
        self.tokens = self._token_variants()
        self._whole: dict[tuple[TextVariant, TokenVariant], list[list[int]]] = {}
        self._ids: dict[tuple[TextVariant, TokenVariant], list[TextIds]] = {}
        self._parts: dict[tuple[TextVariant, int, bool], list[tuple[TextIds, ...]]] = {}
        self._pooled: dict[tuple[Computation, int, TextIds], dict[str, Floats]] = {}
        self._models = {
            Computation.PLAIN: numpy_model,
            Computation.PADDED: padded_model(),
            Computation.UNMASKED: numpy_model,
            Computation.TANH_GELU: model_copy(gelu=tanh_gelu),
        } | {computation: int8_model(kind) for computation, kind in INT8_KINDS.items()}

    def _token_variants(self) -> list[TokenVariant]:
        card = self.encoder.tokenizer.max_length
        normalizer = self._tokenizer(()).normalizer
        variants = [TokenVariant(None, card)]
        if not isinstance(normalizer, BertNormalizer):
            variants.append(TokenVariant("lower-cased", card, lower=True))
        elif normalizer.lowercase:
            variants.append(TokenVariant("cased", card, (("lowercase", False),)))
            if normalizer.strip_accents is not False:
                variants.append(TokenVariant("accents kept", card, (("strip_accents", False),)))
        else:
            variants.append(TokenVariant("lower-cased", card, (("lowercase", True),)))
            variants.append(TokenVariant("lower-cased", card, lower=True))  # beforehand: accents are kept
        variants += [
            TokenVariant(f"truncated at {length}", length)
            for length in LENGTHS
            if length != card and length <= self.config.max_tokens
        ]
        if self._tokenizer(()).token_to_id("▁") is None:  # 0 and 2 are XLM-RoBERTa's, seen in a published engine
            mark = '"▁" before each word'
            variants.append(
                TokenVariant(f"{mark}, no [CLS] and no [SEP]", card, cls=False, sep=False, marked=True),
            )
            variants.append(TokenVariant(f"{mark}, ids 0 and 2 for [CLS] and [SEP]", card, marked=True, ends=(0, 2)))
        return [
            *variants,
            TokenVariant("no [CLS]", card, cls=False),
            TokenVariant("no [SEP]", card, sep=False),
            TokenVariant("no [CLS] and no [SEP]", card, cls=False, sep=False),
        ]

    def _tokenizer(self, options: tuple[tuple[str, bool], ...]) -> FastTokenizer:
        """Return the checkpoint's tokenizer with changed options of its normalizer. Reading one is slow, so keep it."""
        if options not in self._tokenizers:
            tokenizer = FastTokenizer.from_str(self._text)
            tokenizer.no_padding()
            tokenizer.no_truncation()
            if options:
                normalizer = tokenizer.normalizer
                for name, value in options:
                    setattr(normalizer, name, value)
                tokenizer.normalizer = normalizer
            self._tokenizers[options] = tokenizer
        return self._tokenizers[options]

    def ids(self, text: TextVariant, token: TokenVariant) -> list[TextIds]:
        """Return the ids that the encoder gets for each text."""
        key = (text, token)
        if key not in self._ids:
            before, after = self._ends(token)
            room = token.max_length - len(before) - len(after)
            self._ids[key] = [
                (*before, *whole[:room], *after) or (self.encoder.tokenizer.pad_id,)
                for whole in self._whole_ids(text, token)
            ]
        return self._ids[key]

    def _ends(self, token: TokenVariant) -> tuple[TextIds, TextIds]:
        """Return the ids before and after every text."""
        cls, sep = token.ends or (self._tokenizer(token.normalizer).encode("").ids * 2)[:2]
        return (cls,) * token.cls, (sep,) * token.sep

    def _whole_ids(self, text: TextVariant, token: TokenVariant) -> list[list[int]]:
        """Return the ids of each text without truncation and ends."""
        key = (text, replace(token, deviation=None, max_length=0, cls=True, sep=True, ends=None))
        if key not in self._whole:
            texts = [text.lower() if token.lower else text for text in text.texts]
            if token.marked:
                texts = [" ".join(f"▁{word}" for word in text.split()) for text in texts]
            encodings = self._tokenizer(token.normalizer).encode_batch(texts, add_special_tokens=False)
            self._whole[key] = [encoding.ids for encoding in encodings]
        return self._whole[key]

    def parts(self, hypothesis: Hypothesis) -> list[tuple[TextIds, ...]]:
        """Return what the encoder gets for each text: its ids, or those of its chunks."""
        text, token, chunks = hypothesis.text, hypothesis.token, hypothesis.chunks
        if chunks is None:
            return [(ids,) for ids in self.ids(text, token)]
        key = (text, chunks.tokens, chunks.prefixed)
        if key not in self._parts:
            before, after = self._ends(token)
            tokenizer = self._tokenizer(token.normalizer)
            self._parts[key] = []
            for prefix, whole in zip(text.prefixes, self._whole_ids(text, token), strict=True):
                count = len(tokenizer.encode(prefix, add_special_tokens=False).ids) if chunks.prefixed else 0
                first, rest = whole[:count], whole[count:]
                step = chunks.tokens - len(before) - len(after) - count
                starts = range(0, max(len(rest), 1), step)
                self._parts[key].append(tuple((*before, *first, *rest[at : at + step], *after) for at in starts))
        return self._parts[key]

    def longest(self, hypothesis: Hypothesis) -> int:
        """Return the number of tokens that the texts of a hypothesis have with padding."""
        ids = self.ids(hypothesis.text, hypothesis.token)
        return min(max(hypothesis.length, *map(len, ids), 0), self.config.max_tokens)

    def prepare(self, wanted: Iterable[tuple[Hypothesis, Sequence[int]]]) -> None:
        """Compute what several hypotheses need for some of the texts, in full batches."""
        missing: dict[tuple[Computation, int, TextVariant | None], dict[TextIds, None]] = {}
        for hypothesis, indices in wanted:
            computation, length = hypothesis.computation, self._padded_length(hypothesis)
            parts = self.parts(hypothesis)
            # In 8 bits a whole batch shares one scale, so it must hold these texts and no others.
            together = hypothesis.text if computation in INT8_KINDS else None
            new = missing.setdefault((computation, length, together), {})
            for ids in chain.from_iterable(parts[index] for index in indices):
                if (computation, length, ids) not in self._pooled:
                    new[ids] = None
        for (computation, length, together), new in missing.items():
            texts = list(new)
            lengths = np.array([length or len(ids) for ids in texts])
            for batch in token_batches(lengths, tokens=lengths.sum() if together else BATCH_TOKENS):
                self._compute(computation, length, [texts[index] for index in batch])

    def __call__(self, hypothesis: Hypothesis, indices: Sequence[int]) -> Floats:
        """Predict the vectors of some texts, not normalised. -> [len(indices), `width`], float64."""
        self.prepare([(hypothesis, indices)])
        parts, chunks = self.parts(hypothesis), hypothesis.chunks
        key = hypothesis.computation, self._padded_length(hypothesis)
        parts = [parts[index] for index in indices]
        vectors = np.stack([self._pooled[*key, ids][hypothesis.pooling] for ids in chain.from_iterable(parts)])
        dense = self.encoder.checkpoint.params.dense
        compute = numpy_model.dense if hypothesis.dense is None else DENSE_MISTAKES[hypothesis.dense]
        vectors = compute(dense, vectors) if dense else vectors
        if chunks is None:
            return vectors
        if chunks.normalized:
            vectors = numpy_model.l2_normalize(vectors)
        averages, start = [], 0
        for of_text in parts:
            weights = [max(len(ids) - 2, 1) if chunks.weighted else 1 for ids in of_text]
            averages.append(np.average(vectors[start : start + len(of_text)], axis=0, weights=weights))
            start += len(of_text)
        return np.stack(averages)

    def width(self, hypothesis: Hypothesis) -> int:
        """Return how many dimensions the vectors of a hypothesis have."""
        left_out = hypothesis.dense == DENSE_LEFT_OUT
        return self.config.hidden_size if left_out else self.encoder.checkpoint.dimensions

    def _padded_length(self, hypothesis: Hypothesis) -> int:
        """Return the length that texts are padded to; 0 without padding."""
        return self.longest(hypothesis) if hypothesis.computation in WITH_PADDING else 0

    def _compute(self, computation: Computation, length: int, batch: list[TextIds]) -> None:
        shape = (len(batch), length) if length else None
        input_ids, attention_mask = pad_ids(batch, self.encoder.tokenizer.pad_id, shape)
        params, config = self.encoder.checkpoint.params, self.config
        seen = np.ones_like(attention_mask) if computation is Computation.UNMASKED else attention_mask
        states = self._models[computation].forward(params, input_ids, seen, config=config)
        for ids, states_of_text in zip(batch, states, strict=True):
            self._pooled[computation, length, ids] = _poolings(states_of_text, len(ids), bool(length))

    def stages(self) -> Iterator[list[Hypothesis]]:
        """Yield hypotheses to try together, the cheap and likely ones first, each with all poolings that apply.

        The stages: the card's way; one change to texts, to tokens or to a Dense layer; padding; changes to texts and
        tokens; texts cleaned beforehand or cut into chunks; tanh GELU and 8 bits.
        """
        card = self.tokens[0]
        right = [text for text in self.texts if text.deviation is None]
        likely = [text for text in self.texts if text.deviation in (None, "prefix missing")]
        lengths = (0, self.encoder.tokenizer.max_length)

        def plain(pairs: Iterable[tuple[TextVariant, TokenVariant]]) -> list[Hypothesis]:
            return [Hypothesis(*pair, pooling=pooling) for pair, pooling in product(pairs, POOLINGS)]

        dense = [
            Hypothesis(text, card, pooling=pooling, dense=mistake)
            for text, pooling, mistake in product(likely, POOLINGS, DENSE_MISTAKES)
            if self.encoder.checkpoint.params.dense
        ]
        yield plain((text, card) for text in right)
        yield dense + plain(
            [(text, card) for text in self.texts if text not in right] + [*product(right, self.tokens[1:])],
        )
        padded = [
            Hypothesis(text, card, computation, length, pooling)
            for text, computation, length in product(likely, WITH_PADDING, lengths)
            for pooling in (*(POOLINGS if computation is Computation.UNMASKED else ()), *OVER_PADDING)
        ]
        yield [one for one in padded if one.length == 0 or self.longest(replace(one, length=0)) < one.length]
        yield plain(product([text for text in self.texts if text not in right], self.tokens[1:]))
        lower = [token for token in self.tokens if token.deviation in (None, "lower-cased")]
        yield plain(product(self._cleaned(likely), lower)) + self._chunked(likely)
        yield [
            Hypothesis(text, card, computation, 0, pooling)
            for text, computation, pooling in product(likely, (Computation.TANH_GELU, *INT8_KINDS), POOLINGS)
        ]

    def _cleaned(self, texts: Iterable[TextVariant]) -> Iterator[TextVariant]:
        """Yield texts that were cleaned beforehand, if that changes their tokens."""
        card = self.tokens[0]
        for text in texts:
            seen = [self.ids(text, card)]
            for cleaned in cleaned_variants(text):
                if (ids := self.ids(cleaned, card)) not in seen:
                    seen.append(ids)
                    yield cleaned

    def _chunked(self, texts: Iterable[TextVariant]) -> list[Hypothesis]:
        """List the ways of averaging over chunks that cut at least one text."""
        card = self.tokens[0]
        found = []
        for text in texts:
            longest = max(map(len, self._whole_ids(text, card))) + sum(map(len, self._ends(card)))
            sizes = {size for size in (*LENGTHS, card.max_length) if size < longest and size <= self.config.max_tokens}
            for size, prefixed, *rest in product(sorted(sizes), (False, True), (False, True), (False, True)):
                if not prefixed or any(text.prefixes):
                    chunks = Chunks(size, prefixed, *rest)
                    found.append(
                        Hypothesis(text, card, pooling=self.encoder.checkpoint.settings.pooling, chunks=chunks)
                    )
        return found


def _poolings(states: Floats, real: int, padded: bool) -> dict[str, Floats]:
    """Take every pooling of one text's states, [T, D]; the first `real` tokens are not padding."""
    own = states[:real]
    inner = own[1:-1] if real > 2 else own
    pooled = {
        "mean": own.mean(axis=0, dtype=np.float64),
        "cls": own[0],
        "max": own.max(axis=0),
        "last": own[-1],
        "mean-inner": inner.mean(axis=0, dtype=np.float64),
    }
    if padded:
        pooled |= {
            "mean-padded": states.mean(axis=0, dtype=np.float64),
            "max-padded": states.max(axis=0),
            "last-padded": states[-1],
        }
    return {name: np.asarray(value, np.float64) for name, value in pooled.items()}
