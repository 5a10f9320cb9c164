"""What the encoder may have got for each text: the prefixes that people use, texts cleaned beforehand, chunks."""

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from e5ref.checkpoint.prompts import E5_PROMPTS, find_prompt

# What people do to texts before they embed them, in this order.
CLEANING: Mapping[str, Callable[[str], str]] = {"HTML unescaped": html.unescape, "stripped": str.strip}


@dataclass(frozen=True)
class TextVariant:
    """The texts that the tokenizer got, with the card's prefix or something else.

    Attributes:
        prefix: the prefix, for people to read.
        deviation: how it departs from the card; None if it does not.
        texts: one for each of the user's texts, with its prefix.
        prefixes: the prefix of each text; empty if they are not known.
        cleaned: what was done to the texts beforehand: keys of CLEANING.
    """

    prefix: str
    deviation: str | None
    texts: tuple[str, ...]
    prefixes: tuple[str, ...] = ()
    cleaned: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chunks:
    """How a long text was cut into chunks, whose vectors were averaged.

    Attributes:
        tokens: the most tokens of a chunk, with [CLS] and [SEP].
        prefixed: whether every chunk has the prefix, and not only the first.
        weighted: whether a chunk counts by its tokens without [CLS] and [SEP].
        normalized: whether the vectors of chunks were normalised before.
    """

    tokens: int
    prefixed: bool = False
    weighted: bool = False
    normalized: bool = False

    @property
    def deviations(self) -> tuple[str, ...]:
        """Name what was done."""
        names = (
            f"averaged over chunks of {self.tokens} tokens",
            "prefix before each chunk" if self.prefixed else "",
            "chunks weighted by their tokens" if self.weighted else "",
            "chunks normalised first" if self.normalized else "",
        )
        return tuple(filter(None, names))


def text_variants(texts: Sequence[str], prompts: Mapping[str, str], prompt_name: str | None) -> list[TextVariant]:
    """List the prefixes that the texts may have got. They may or may not bring their prefixes already.

    Args:
        texts: the user's texts.
        prompts: the checkpoint's prompts, by name.
        prompt_name: the prompt that the user believes was used; None if any of them will do.

    Returns:
        Variants that differ in at least one text; those that follow the card (without `deviation`) first.
    """
    known = tuple(dict.fromkeys(filter(None, prompts.values())))
    variants: list[TextVariant] = []

    def add(prefix: str, deviation: str | None, prefixes: Iterable[str]) -> None:
        before = tuple(prefixes)
        new = TextVariant(prefix, deviation, tuple(map(str.__add__, before, bare)), before)
        if all(new.texts != variant.texts for variant in variants):
            variants.append(new)

    own = [next((prompt for prompt in known if text.startswith(prompt)), "") for text in texts]
    bare = [text.removeprefix(prompt) for text, prompt in zip(texts, own, strict=True)]
    if not known:
        add("no prefix", None, own)
        for prompt in E5_PROMPTS.values():
            add(repr(prompt), f"{prompt!r} before every text", [prompt] * len(bare))
        return variants

    # Name → the prefix of each text, for every choice of prefixes that follows the card.
    if prompt_name is not None:
        prompt = find_prompt(prompts, prompt_name, None)
        right = {repr(prompt): [prompt] * len(texts)}
    elif all(own):
        name = repr(own[0]) if len(set(own)) == 1 else "each text's own prefix"
        right = {name: own}
    else:
        right = {repr(prompt): [mine or prompt for mine in own] for prompt in known}

    for name, given in right.items():
        add(name, None, given)
    add("no prefix", "prefix missing", [""] * len(bare))
    for prompt in known:
        add(repr(prompt), f"always {prompt!r}", [prompt] * len(bare))
    for name, given in right.items():
        for prompt in known:
            add(f"{prompt!r} and {name}", "prefix twice", (prompt + mine for mine in given))
        add(f"{name} without its space", "no space after the colon", map(str.rstrip, given))
    return variants


def cleaned_variants(variant: TextVariant) -> list[TextVariant]:
    """List the ways in which the texts of a variant, without their prefixes, may have been cleaned beforehand."""
    found: list[TextVariant] = []
    for number in range(1, len(CLEANING) + 1):
        for names in combinations(CLEANING, number):
            texts = []
            for prefix, text in zip(variant.prefixes, variant.texts, strict=True):
                body = text[len(prefix) :]
                for name in names:
                    body = CLEANING[name](body)
                texts.append(prefix + body)
            new = replace(variant, texts=tuple(texts), cleaned=names)
            if all(new.texts != one.texts for one in (variant, *found)):
                found.append(new)
    return found
