"""What the tokenizer may have got for each text: the prefixes that people use."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from e5ref.checkpoint.prompts import E5_PROMPTS, find_prompt


@dataclass(frozen=True)
class TextVariant:
    """The texts that the tokenizer got, with the card's prefix or something else.

    Attributes:
        prefix: the prefix, for people to read.
        deviation: how it departs from the card; None if it does not.
        texts: one for each of the user's texts.
    """

    prefix: str
    deviation: str | None
    texts: tuple[str, ...]


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
    # Name → the prefix of each text, for every choice of prefixes that follows the card.
    if prompt_name is not None:
        prompt = find_prompt(prompts, prompt_name, None)
        right = {repr(prompt): [prompt] * len(texts)}
    elif all(own):
        name = repr(own[0]) if len(set(own)) == 1 else "each text's own prefix"
        right = {name: own}
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
