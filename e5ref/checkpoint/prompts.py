"""What stands before a text: "query: " and "passage: ", and how a caller names them."""

import warnings
from collections.abc import Iterable, Iterator, Mapping

# What every E5 checkpoint was trained with (Wang et al., section 3).
E5_PROMPTS = {"query": "query: ", "passage": "passage: "}

# Names under which sentence-transformers looks for the prompt of a document, in this order.
DOCUMENT_NAMES = ("document", "passage", "corpus")


def find_prompt(prompts: Mapping[str, str], prompt_name: str | None, prompt: str | None) -> str:
    """Find what to put before each text.

    Args:
        prompts: the checkpoint's prompts by name.
        prompt_name: one of their names. The names for documents ("document", "passage", "corpus") stand for each
            other, because E5 says passage where sentence-transformers says document.
        prompt: the prompt itself, instead of a name.

    Returns:
        The prompt; "" if neither is given.

    Raises:
        ValueError: both are given, or the name is unknown.
    """
    if prompt is not None:
        if prompt_name is not None:
            raise ValueError("give prompt or prompt_name, not both")
        return prompt
    if prompt_name is None:
        return ""
    for name in (prompt_name, *(DOCUMENT_NAMES if prompt_name in DOCUMENT_NAMES else ())):
        if name in prompts:
            return prompts[name]
    raise ValueError(f"unknown prompt_name {prompt_name!r}: this checkpoint has {sorted(prompts) or 'no prompts'}")


def count_doubled(prompt: str, texts: Iterable[str]) -> int:
    """Count the texts that start with a prompt already, before it is put there."""
    return sum(text.startswith(prompt) for text in texts) if prompt else 0


def notes_on_doubled_prompts(what: str, prompt: str, doubled: int, texts: int | str) -> list[str]:
    """Say, if so, that texts started with their prompt already."""
    return [f"{doubled} of {texts} {what} start with {prompt!r} already, and get it twice"] if doubled else []


# Texts after which `warn_of_prompts` says what it has seen.
FIRST_TEXTS = 1000


def warn_of_prompts(
    texts: Iterable[str], prompts: Mapping[str, str], prompt_name: str | None, model: str
) -> Iterator[str]:
    """Pass texts on. After the first thousand, or all, warn of those that have no prompt, or get it twice.

    `prompt_name` says which of a model's prompts will be put before each text; None for none.
    """
    starts = tuple(filter(None, prompts.values()))
    prefix = find_prompt(prompts, prompt_name, None)

    def warn(bare: int, doubled: int, total: str) -> None:
        if bare:
            warnings.warn(
                f"{bare} of {total} texts start with none of the prompts that {model} was trained with "
                f"({', '.join(map(repr, starts))}); begin texts with one, or let --prompt of embed and record do it",
                stacklevel=1,
            )
        for note in notes_on_doubled_prompts("texts", prefix, doubled, total):
            warnings.warn(note, stacklevel=1)

    bare = doubled = count = 0
    for count, text in enumerate(texts, 1):
        bare += prompt_name is None and bool(starts) and not text.startswith(starts)
        doubled += count_doubled(prefix, [text])
        yield text
        if count == FIRST_TEXTS:
            warn(bare, doubled, f"the first {count:,}")
    if count < FIRST_TEXTS:
        warn(bare, doubled, str(count))
