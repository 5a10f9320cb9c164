"""Texts that have nothing to do with each other: what their vectors share says nothing about any of them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from e5ref.inside.run import Model

QUESTIONS = (
    "how do plants eat",
    "who painted the ceiling of the chapel",
    "what is the fastest train in the world",
    "why does bread rise",
    "when was the printing press invented",
    "how many bones does a hand have",
    "can dogs see colours",
    "what does a notary do",
    "how to remove coffee stains from wool",
    "which planet has the most moons",
    "why is the sea salty",
    "how does a refrigerator work",
    "what is the offside rule in football",
    "how to tune a guitar by ear",
    "what causes inflation",
    "where do swallows go in winter",
    "how deep is the deepest lake",
    "what language is spoken in Iceland",
    "how to write a letter of resignation",
    "why do we dream",
    "what is a prime number",
    "how is glass recycled",
    "who decides the price of electricity",
    "what should I pack for a week in the mountains",
)

STATEMENTS = (
    "The bridge was closed for repairs until the end of May.",
    "Add the onions and stir until they are golden.",
    "A solar eclipse happens when the moon passes in front of the sun.",
    "The council voted to plant two hundred trees along the river.",
    "Our shop opens at nine and closes at six, except on Sundays.",
    "Antibiotics kill bacteria and do nothing against a virus.",
    "She learned to play the violin at the age of five.",
    "The treaty was signed by eleven countries after a year of talks.",
    "Sort the list first, and a search takes far fewer steps.",
    "Penguins keep their eggs warm on their feet.",
    "The tenant must give notice three months before moving out.",
    "Iron rusts faster where the air is damp and salty.",
    "The second half of the novel takes place in a lighthouse.",
    "Turn the key to the left to lock the door.",
    "Rice has been grown in terraces on these hills for centuries.",
    "The goalkeeper saved two penalties in the final.",
    "A stroke needs treatment within a few hours.",
    "Sound travels more slowly than light.",
    "The company sold its last factory in the spring.",
    "Wash the jumper by hand in cold water.",
    "The painter mixed his own colours from crushed stones.",
    "Two parallel lines never meet in a plane.",
    "The ferry to the island takes forty minutes.",
    "Bees tell each other where the flowers are by dancing.",
)


class Reference(NamedTuple):
    """What the vectors of `QUESTIONS` and `STATEMENTS` have in common."""

    mean: NDArray[np.float64]  # [D], the average of the vectors
    average_cosine: float  # of two different texts
    texts: int  # how many there are


def reference_of(model: Model) -> Reference:
    """Embed the reference texts: questions as queries, statements as documents."""
    encoded = model.encode_query(QUESTIONS, truncation="allow"), model.encode_document(STATEMENTS, truncation="allow")
    vectors = np.concatenate(encoded).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    mean = vectors.mean(axis=0)
    n = len(vectors)
    return Reference(mean, float((n * n * mean @ mean - n) / (n * (n - 1))), n)
