"""What stands before a text: "query: " and "passage: ", and how a caller names them."""

from collections.abc import Iterable, Mapping

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


def doubled_prompts(what: str, prompt: str, doubled: int, texts: int | str) -> list[str]:
    """Say, if so, that texts started with their prompt already."""
    return [f"{doubled} of {texts} {what} start with {prompt!r} already, and get it twice"] if doubled else []
