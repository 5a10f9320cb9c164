"""Which prompt a name stands for."""

import pytest

from e5ref.checkpoint.prompts import E5_PROMPTS, find_prompt


@pytest.mark.parametrize(
    ("prompts", "name", "expected"),
    [
        (E5_PROMPTS, None, ""),
        (E5_PROMPTS, "query", "query: "),
        (E5_PROMPTS, "passage", "passage: "),
        (E5_PROMPTS, "document", "passage: "),
        ({"document": "d: ", "passage": "p: "}, "passage", "p: "),
        ({"corpus": "c: "}, "document", "c: "),
        ({"sts": ""}, "sts", ""),
    ],
)
def test_names(prompts, name, expected):
    assert find_prompt(prompts, name, None) == expected


def test_a_prompt_of_the_callers_own():
    assert find_prompt(E5_PROMPTS, None, "title: ") == "title: "


@pytest.mark.parametrize(
    ("prompts", "name", "prompt", "message"),
    [
        (E5_PROMPTS, "query", "query: ", "not both"),
        (E5_PROMPTS, "Query", None, r"unknown prompt_name 'Query': this checkpoint has \['passage', 'query'\]"),
        ({}, "query", None, "has no prompts"),
    ],
)
def test_refused(prompts, name, prompt, message):
    with pytest.raises(ValueError, match=message):
        find_prompt(prompts, name, prompt)
