"""The exercises of docs/learn/2-embeddings.md."""

import numpy as np
from numpy.typing import NDArray

from e5ref.course import Verdict, compared
from e5ref.operations import Array, Ids

RANDOM = np.random.default_rng(2)
IDS = np.array([2, 5, 5, 0, 7])
# Rows of different lengths: else a dot product would rank them as the cosine does.
TABLE = RANDOM.normal(size=(9, 4)) * RANDOM.uniform(0.2, 3, size=(9, 1))
POSITIONS = RANDOM.normal(size=(8, 4))
TYPES = RANDOM.normal(size=(2, 4))


def one_hot(ids: Ids, size: int) -> Array:
    """A row for each id, with 1 in the column of the id and 0 elsewhere. [T] -> [T, size]."""
    return np.eye(size)[ids]


def at_positions(ids: Ids, size: int) -> Array:
    """A row for each id, with 1 in the column of its position."""
    return np.eye(len(ids), size)


def check_one_hot(answer: object) -> str | None:
    """Exercise 2.1: looking up as a product."""
    return compared(
        answer,
        one_hot,
        [(IDS, 9), (np.array([3, 1]), 4)],
        {
            "Tokens stand across and the vocabulary down: it should be [T, V].": lambda ids, size: one_hot(ids, size).T,
            "The 1 stands at the token's place in the text: it should stand at its id.": at_positions,
            "The ids themselves stand in the rows: a row holds a single 1.": lambda ids, size: (
                one_hot(ids, size) * ids[:, None]
            ),
            "All tokens are in one row, which forgets their order: each gets a row of its own.": lambda ids, size: (
                one_hot(ids, size).sum(axis=0)
            ),
            "All tokens are in one row, which forgets their order and number: each gets a row.": lambda ids, size: (
                one_hot(ids, size).max(axis=0)
            ),
            "The columns are counted from 1: id 0 is the first column.": lambda ids, size: np.roll(
                one_hot(ids, size), 1, axis=1
            ),
        },
    )


def cosines(table: Array, row: int) -> Array:
    """The cosine of each row of a table with one of them."""
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    return np.asarray(unit @ unit[row])


def best(scores: Array, row: int, n: int) -> NDArray[np.int64]:
    """The n rows with the highest scores, the highest first, without `row`."""
    order = np.argsort(-scores)
    return order[order != row][:n]


def nearest(table: Array, row: int, n: int) -> NDArray[np.int64]:
    """The n rows that are nearest to one by cosine, the nearest first."""
    return best(cosines(table, row), row, n)


def check_nearest(answer: object) -> str | None:
    """Exercise 2.2: the nearest rows by cosine."""
    return compared(
        answer,
        nearest,
        [(TABLE, row, 3) for row in range(9)],
        {
            "The row itself is in the list: leave it out.": lambda table, row, n: np.argsort(-cosines(table, row))[:n],
            "The row itself is in the list, and is one of the n besides: leave it out.": lambda table, row, n: (
                np.argsort(-cosines(table, row))[: n + 1]
            ),
            "These are the farthest rows: sort from the highest cosine down.": lambda table, row, n: np.argsort(
                cosines(table, row)
            )[:n],
            "The right rows, but the nearest comes last.": lambda table, row, n: nearest(table, row, n)[::-1],
            "This ranks by dot product, which favours long rows: divide by the norms.": lambda table, row, n: best(
                table @ table[row], row, n
            ),
            "This ranks by dot product, and the row itself is in the list.": lambda table, row, n: np.argsort(
                -(table @ table[row])
            )[:n],
            "This ranks by distance, which favours short rows: use the cosine.": lambda table, row, n: best(
                -np.linalg.norm(table - table[row], axis=1), row, n
            ),
            "These are the cosines: return the numbers of the rows.": lambda table, row, n: cosines(table, row)[
                nearest(table, row, n)
            ],
        },
    )


def summed(ids: Ids, word: Array, position: Array, token_type: Array) -> Array:
    """The three embeddings of each token, added up. [T] -> [T, D]."""
    return word[ids] + position[: len(ids)] + token_type[0]


def check_summed(answer: object) -> str | None:
    """Exercise 2.3: the sum of the three tables."""
    return compared(
        answer,
        summed,
        [(IDS, TABLE, POSITIONS, TYPES), (IDS[:2], TABLE, POSITIONS, TYPES)],
        {
            "The position is missing.": lambda ids, word, position, token_type: word[ids] + token_type[0],
            "The token type is missing: add its row 0 to each token.": lambda ids, word, position, token_type: (
                word[ids] + position[: len(ids)]
            ),
            "The token type is row 1: all of an E5 text is of type 0.": lambda ids, word, position, token_type: (
                word[ids] + position[: len(ids)] + token_type[1]
            ),
            "Both rows of token types are added: all of an E5 text is of type 0.": (
                lambda ids, word, position, token_type: word[ids] + position[: len(ids)] + token_type.sum(axis=0)
            ),
            "The positions are counted from 1: the first token has row 0.": lambda ids, word, position, token_type: (
                word[ids] + position[1 : len(ids) + 1] + token_type[0]
            ),
            "The position is looked up by the token's id: it is the token's place in the text.": (
                lambda ids, word, position, token_type: word[ids] + position[ids] + token_type[0]
            ),
            "The word rows are multiplied by √D: that is another model's way, not BERT's.": (
                lambda ids, word, position, token_type: (
                    word[ids] * np.sqrt(word.shape[1]) + position[: len(ids)] + token_type[0]
                )
            ),
            "The three are averaged: add them up.": lambda *tables: summed(*tables) / 3,
            "The tokens are added up, too: the result has a row for each of them.": lambda *tables: summed(*tables).sum(
                axis=0
            ),
        },
    )


EXERCISES: dict[str, Verdict] = {"2.1": check_one_hot, "2.2": check_nearest, "2.3": check_summed}
