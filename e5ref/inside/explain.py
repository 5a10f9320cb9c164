"""Why two texts are near: their cosine as a sum over pairs of tokens.

The vector of a text is a weighted average of its tokens' last hidden states, divided by its norm. So it is a sum of
parts, one for each token, and the dot product of two such sums is the sum of the dot products of their parts.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from e5ref.inside.reference import Reference, reference_of
from e5ref.inside.run import Model, Trace, pooling_weights, run
from e5ref.operations.similarity import pairwise_cosines


class Pair(NamedTuple):
    """A token of the first text, one of the second, and what the two add to the cosine."""

    first: int  # the token's place in its text
    second: int
    value: float


class Explanation(NamedTuple):
    """The cosine of two texts, of n and m tokens, as a sum over pairs of tokens."""

    tokens: tuple[list[str], list[str]]  # [n] and [m]
    groups: tuple[list[str], list[str]]  # [n] and [m]: "[CLS]", "prefix", "words" or "[SEP]"
    cosine: float  # of the two vectors
    matrix: NDArray[np.float64]  # [n, m]; adds up to `cosine`
    centred_cosine: float  # of the two vectors after the mean of the reference texts is taken off both
    centred_matrix: NDArray[np.float64]  # [n, m]; adds up to `centred_cosine`
    average_cosine: float  # of two different reference texts, which have nothing to do with each other

    @property
    def rows(self) -> NDArray[np.float64]:
        """What each token of the first text adds to the cosine. [n]."""
        return self.matrix.sum(axis=1)

    @property
    def columns(self) -> NDArray[np.float64]:
        """What each token of the second text adds to the cosine. [m]."""
        return self.matrix.sum(axis=0)

    def top(self, k: int = 10, *, centred: bool = False) -> list[Pair]:
        """Return the k pairs that count most, by magnitude, the greatest first."""
        matrix = self.centred_matrix if centred else self.matrix
        order = np.argsort(-np.abs(matrix), axis=None, kind="stable")[:k]
        places = zip(*(axis.tolist() for axis in np.unravel_index(order, matrix.shape)), strict=True)
        return [Pair(i, j, float(matrix[i, j])) for i, j in places]

    def shares(self, *, centred: bool = False) -> dict[str, dict[str, float]]:
        """Add up the matrix by groups of tokens: group of the first text → group of the second → its part."""
        matrix = self.centred_matrix if centred else self.matrix
        first, second = (np.array(groups) for groups in self.groups)
        return {
            a: {b: float(matrix[np.ix_(first == a, second == b)].sum()) for b in dict.fromkeys(self.groups[1])}
            for a in dict.fromkeys(self.groups[0])
        }


def explain(model: Model, a: str, b: str) -> Explanation:
    """Explain the cosine of two texts, as they are.

    Args:
        model: any model.
        a: the first text, with its prefix.
        b: the second text, with its prefix.

    Raises:
        TypeError, ValueError: as `E5.encode`.
    """
    return explanation_of(run(model, a), run(model, b), model.checkpoint.settings.pooling, reference_of(model))


def explanation_of(a: Trace, b: Trace, pooling: str, reference: Reference) -> Explanation:
    """Explain the cosine of two texts from their runs."""
    mean = reference.mean
    first, second = a.vector, b.vector
    return Explanation(
        (a.tokens, b.tokens),
        (a.groups, b.groups),
        float(pairwise_cosines(first, second)[0]),
        token_parts(a, pooling) @ token_parts(b, pooling).T,
        float(pairwise_cosines(first - mean, second - mean)[0]),
        token_parts(a, pooling, mean) @ token_parts(b, pooling, mean).T,
        reference.average_cosine,
    )


def token_parts(run: Trace, pooling: str, mean: NDArray[np.float64] | float = 0.0) -> NDArray[np.float64]:
    """Take a text's vector apart into one part for each token.

    Args:
        run: the text's run.
        pooling: "mean" or "cls".
        mean: what is taken off the vector, [D]. The weights add up to 1, so each token takes its share of it.

    Returns:
        [T, D]; the rows add up to the text's vector less `mean`, scaled to unit L2 norm.
    """
    weights = pooling_weights(run, pooling)  # [T]
    states = run.points["last_hidden_state"][:, : len(run.vector)].astype(np.float64)  # [T, D]
    parts = weights[:, None] * (states / np.linalg.norm(weights @ states) - mean)
    return parts / np.linalg.norm(parts.sum(axis=0))
