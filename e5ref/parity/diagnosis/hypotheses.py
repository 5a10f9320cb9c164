"""What may have been done to texts on their way to vectors: the prefixes, tokens and poolings that people get wrong.

A `Hypothesis` is one way of doing it; `Predictions` gives the vectors that it leads to. Hidden states are computed
once for each sequence of ids, and all poolings taken from them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.normalizers import BertNormalizer

from e5ref import numpy_model
from e5ref.checkpoint.prompts import E5_PROMPTS, find_prompt
from e5ref.encoder import E5
from e5ref.engines.batching import pad_ids, token_batches
from e5ref.parity.altered.models import int8_model, padded_model
from e5ref.tokenizer import read_tokenizer

Floats = NDArray[np.floating]
Ids = tuple[int, ...]

BATCH_TOKENS = 2048
STAGES = 5
INT8_KINDS = ("onnxruntime", "onnxruntime by channel", "torch")
LENGTHS = (64, 128, 256, 384, 512)

# Pooling → what it is called where the card says otherwise.
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
class TextVariant:
    """What the tokenizer got: the card's prefix, or something else.

    Attributes:
        prefix: what stands before the texts, for people to read.
        deviation: how that departs from the card; None where it does not.
        texts: one for each of the user's.
    """

    prefix: str
    deviation: str | None
    texts: tuple[str, ...]


@dataclass(frozen=True)
class TokenVariant:
    """How the tokenizer went about it; `deviation` is None for the card's way."""

    deviation: str | None
    max_length: int
    normalizer: tuple[tuple[str, bool], ...] = ()
    lower: bool = False  # lower-cased before the tokenizer, for one that keeps case
    front: bool = True  # [CLS]
    back: bool = True  # [SEP]


@dataclass(frozen=True)
class Hypothesis:
    """One way from texts to vectors, up to their scale, their order and their width, which vectors tell by themselves.

    Attributes:
        text, token: what the encoder got.
        run: "plain"; "padded" (padding hidden from attention, as is usual) or "unmasked" (padding attended to); or
            "int8 " and a kind (`int8_model`).
        length: how far texts are padded; 0 for the longest of them.
        pooling: a key of POOLINGS or of OVER_PADDING.
    """

    text: TextVariant
    token: TokenVariant
    run: str = "plain"
    length: int = 0
    pooling: str = "mean"

    def deviations(self, pooling: str, longest: int) -> tuple[str, ...]:
        """Name what departs from the card, whose pooling is given, and so is how far texts are padded."""
        padding = f" (padded to {longest} tokens)"
        unmasked = f"padding attended to{padding}" if self.run == "unmasked" else None
        pooled = (POOLINGS | OVER_PADDING)[self.pooling] if self.pooling != pooling else None
        if pooled and self.run == "padded":
            pooled += padding
        int8 = "int8" if self.run.startswith("int8") else None
        return tuple(filter(None, (self.text.deviation, self.token.deviation, unmasked, pooled, int8)))


def text_variants(texts: Sequence[str], prompts: Mapping[str, str], prompt_name: str | None) -> list[TextVariant]:
    """List what may have stood before the texts, which may or may not have their prefixes already.

    Args:
        texts: the user's.
        prompts: the checkpoint's, by name.
        prompt_name: the one that the user believes was used; None if any of them will do.

    Returns:
        The card's way or ways first (with no `deviation`), each different for at least one text.
    """
    known = tuple(dict.fromkeys(filter(None, prompts.values())))
    variants: list[TextVariant] = []

    def add(prefix: str, deviation: str | None, changed: Iterator[str]) -> None:
        new = TextVariant(prefix, deviation, tuple(changed))
        if all(new.texts != variant.texts for variant in variants):
            variants.append(new)

    if not known:
        add("no prefix", None, iter(texts))
        for prompt in E5_PROMPTS.values():
            add(repr(prompt), f"{prompt!r} before every text", (prompt + text for text in texts))
        return variants

    own = [next((prompt for prompt in known if text.startswith(prompt)), "") for text in texts]
    bare = [text.removeprefix(prompt) for text, prompt in zip(texts, own, strict=True)]
    if prompt_name is not None:
        prompt = find_prompt(prompts, prompt_name, None)
        right = {repr(prompt): [prompt] * len(texts)}
    elif all(own):
        kinds = sorted(set(own))
        right = {repr(kinds[0]) if len(kinds) == 1 else "each text's own prefix": own}
    else:
        right = {repr(prompt): [mine or prompt for mine in own] for prompt in known}

    def each(prompts: Sequence[str], change: Callable[[str], str] = str) -> Iterator[str]:
        return (change(prompt) + text for prompt, text in zip(prompts, bare, strict=True))

    for name, given in right.items():
        add(name, None, each(given))
    add("no prefix", "prefix missing", iter(bare))
    for prompt in known:
        add(repr(prompt), f"always {prompt!r}", each([prompt] * len(bare)))
    for name, given in right.items():
        for prompt in known:
            add(f"{prompt!r} and {name}", "prefix twice", (prompt + text for text in each(given)))
        add(f"{name} without its space", "no space after the colon", each(given, str.rstrip))
    return variants


class Predictions:
    """The vectors that hypotheses lead to, for one checkpoint and the user's texts.

    Attributes:
        encoder: the checkpoint.
        texts, tokens: what the encoder may have got; the card's way first.
    """

    def __init__(self, encoder: E5, texts: Sequence[str], prompt_name: str | None) -> None:
        """Prepare; nothing is computed yet."""
        self.encoder = encoder
        self.config = encoder.checkpoint.config
        self.texts = text_variants(texts, encoder.checkpoint.settings.prompts, prompt_name)
        self._text = read_tokenizer(encoder.checkpoint.folder)[1].to_str()
        self._tokenizers: dict[tuple[tuple[str, bool], ...], FastTokenizer] = {}
        self.tokens = self._token_variants()
        self._ids: dict[tuple[TextVariant, TokenVariant], list[Ids]] = {}
        self._pooled: dict[tuple[str, int, Ids], dict[str, Floats]] = {}
        self._models = {
            "plain": numpy_model,
            "padded": padded_model(),
            "unmasked": numpy_model,
        } | {f"int8 {kind}": int8_model(kind) for kind in INT8_KINDS}

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
        variants += [
            TokenVariant(f"truncated at {length}", length)
            for length in LENGTHS
            if length != card and length <= self.config.max_tokens
        ]
        return [
            *variants,
            TokenVariant("no [CLS]", card, front=False),
            TokenVariant("no [SEP]", card, back=False),
            TokenVariant("no [CLS] and no [SEP]", card, front=False, back=False),
        ]

    def _tokenizer(self, options: tuple[tuple[str, bool], ...]) -> FastTokenizer:
        """Return the checkpoint's tokenizer with other options of its normalizer; reading one takes long."""
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

    def ids(self, text: TextVariant, token: TokenVariant) -> list[Ids]:
        """Return what the encoder gets for each text."""
        key = (text, token)
        if key not in self._ids:
            tokenizer = self._tokenizer(token.normalizer)
            first, last = (tokenizer.encode("").ids * 2)[:2]
            front, back = (first,) * token.front, (last,) * token.back
            texts = [text.lower() if token.lower else text for text in text.texts]
            room = token.max_length - len(front) - len(back)
            self._ids[key] = [
                (*front, *encoding.ids[:room], *back) or (self.encoder.tokenizer.pad_id,)
                for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)
            ]
        return self._ids[key]

    def longest(self, hypothesis: Hypothesis) -> int:
        """Return how many tokens the padded texts of a hypothesis have."""
        ids = self.ids(hypothesis.text, hypothesis.token)
        return min(max(hypothesis.length, *map(len, ids), 0), self.config.max_tokens)

    def prepare(self, wanted: Iterable[tuple[Hypothesis, Sequence[int]]]) -> None:
        """Compute what several hypotheses need for some of the texts, in batches of good size."""
        missing: dict[tuple[str, int, TextVariant | None], dict[Ids, None]] = {}
        for hypothesis, indices in wanted:
            length = self.longest(hypothesis) if hypothesis.run in ("padded", "unmasked") else 0
            ids = self.ids(hypothesis.text, hypothesis.token)
            # In 8 bits states have one scale for the whole batch, and so no other texts may be in it.
            together = hypothesis.text if hypothesis.run.startswith("int8") else None
            new = missing.setdefault((hypothesis.run, length, together), {})
            for index in indices:
                if (hypothesis.run, length, ids[index]) not in self._pooled:
                    new[ids[index]] = None
        for (run, length, together), keys_of_run in missing.items():
            keys = list(keys_of_run)
            lengths = np.array([length or len(key) for key in keys])
            for batch in token_batches(lengths, tokens=lengths.sum() if together else BATCH_TOKENS):
                self._compute(run, length, [keys[index] for index in batch])

    def __call__(self, hypothesis: Hypothesis, indices: Sequence[int]) -> Floats:
        """Predict the vectors of some texts, not normalised. -> [len(indices), D], float64."""
        self.prepare([(hypothesis, indices)])
        ids = self.ids(hypothesis.text, hypothesis.token)
        length = self.longest(hypothesis) if hypothesis.run in ("padded", "unmasked") else 0
        return np.stack([self._pooled[hypothesis.run, length, ids[index]][hypothesis.pooling] for index in indices])

    def _compute(self, run: str, length: int, batch: list[Ids]) -> None:
        shape = (len(batch), length) if length else None
        input_ids, attention_mask = pad_ids(batch, self.encoder.tokenizer.pad_id, shape)
        params, config = self.encoder.checkpoint.params, self.config
        seen = np.ones_like(attention_mask) if run == "unmasked" else attention_mask
        states = self._models[run].forward(params, input_ids, seen, config=config)
        for key, rows in zip(batch, states, strict=True):
            self._pooled[run, length, key] = _poolings(rows, len(key), bool(length))

    def stages(self) -> Iterator[list[Hypothesis]]:
        """Yield hypotheses to be tried together, the cheap and likely ones first: the card's own, then one change to
        texts or tokens, padding, changes to both, 8 bits; of all but the first kind each with every pooling."""
        card = self.tokens[0]
        right = [text for text in self.texts if text.deviation is None]
        likely = [text for text in self.texts if text.deviation in (None, "prefix missing")]
        lengths = (0, self.encoder.tokenizer.max_length)

        def plain(pairs: Iterable[tuple[TextVariant, TokenVariant]]) -> list[Hypothesis]:
            return [Hypothesis(*pair, pooling=pooling) for pair, pooling in product(pairs, POOLINGS)]

        yield plain((text, card) for text in right)
        yield plain(
            [(text, card) for text in self.texts if text not in right] + [*product(right, self.tokens[1:])],
        )
        padded = [
            Hypothesis(text, card, run, length, pooling)
            for text, run, length in product(likely, ("padded", "unmasked"), lengths)
            for pooling in (*(POOLINGS if run == "unmasked" else ()), *OVER_PADDING)
        ]
        yield [one for one in padded if one.length == 0 or self.longest(replace(one, length=0)) < one.length]
        yield plain(product([text for text in self.texts if text not in right], self.tokens[1:]))
        yield [
            Hypothesis(text, card, f"int8 {kind}", 0, pooling)
            for text, kind, pooling in product(likely, INT8_KINDS, POOLINGS)
        ]


def _poolings(states: Floats, real: int, padded: bool) -> dict[str, Floats]:
    """Take every pooling of one text's states [T, D], of which the first `real` are its own."""
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
