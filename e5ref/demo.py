"""What `e5ref demo` shows: the example of E5's model cards, with the model that comes with e5ref."""

import textwrap

import numpy as np
from numpy.typing import NDArray

from e5ref.checkpoint.hub import BUNDLED_CHECKPOINT
from e5ref.encoder import load
from e5ref.terminal.table import aligned

# The example of https://huggingface.co/intfloat/e5-small-v2, without its prompts; the passages are from MS MARCO.
QUERIES = ("how much protein should a female eat", "summit define")
PASSAGES = (
    "As a general guideline, the CDC's average requirement of protein for women ages 19 to 70 is 46 grams per day. But,"
    " as you can see from this chart, you'll need to increase that if you're expecting or training for a marathon."
    " Check out the chart below to see how much protein you should be eating each day.",
    "Definition of summit for English Language Learners. : 1  the highest point of a mountain : the top of a mountain."
    " : 2  the highest level. : 3  a meeting or series of meetings between the leaders of two or more governments.",
)


def score() -> NDArray[np.floating]:
    """Return the cosine x 100 of each query with each passage, [2, 2]."""
    model = load(BUNDLED_CHECKPOINT)
    return 100 * model.similarity(model.encode_query(QUERIES), model.encode_document(PASSAGES))


def explain(scores: NDArray[np.floating]) -> str:
    """Say what the scores are, which passage is the best for each query, and what to do next."""
    rows = [
        {"cosine x 100": f"query: {query}", **{f"passage {n}": f"{value:.1f}" for n, value in enumerate(row, 1)}}
        for query, row in zip(QUERIES, scores, strict=True)
    ]
    answers = [
        f"{query}\n    -> {textwrap.shorten(PASSAGES[row.argmax()], 90, placeholder=' …')}"
        for query, row in zip(QUERIES, scores, strict=True)
    ]
    return f"""\
{aligned(rows)}

{chr(10).join(answers)}

{BUNDLED_CHECKPOINT} turned the four texts into unit vectors of 256 numbers, in NumPy alone. The cosine of two vectors
says how well the one text answers the other; the best passage of each query stands below the table. This model is
small, for trying things. Next, with E5 itself (130 MB from the Hugging Face hub, once):

    e5ref rank "how do plants eat" "Leaves turn light into sugar." "Cats hunt mice at night."
"""
