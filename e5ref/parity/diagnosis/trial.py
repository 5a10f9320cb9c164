"""A hypothesis tried on texts: how well its vectors explain the given ones."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from e5ref.parity.diagnosis.fitting import FACTORS, LEAST, STORED_FACTORS, Fit, Levels, fit, measure_levels, tell_apart
from e5ref.parity.diagnosis.given import Given
from e5ref.parity.diagnosis.hypotheses import INT8_KINDS, WITH_PADDING, Computation, Hypothesis, Predictions

# Texts that every hypothesis is tried on first: the shortest, which cost least and show most, and one of middle length.
FIRST_TEXTS = 4

# The most short texts that a hypothesis with padding is tried on.
PADDED_TEXTS = 4

# A distance that no rounding causes; unrelated vectors are at 1.41.
FAR = 0.6

# Vectors were computed in 8 bits if they are moved in about the direction of our simulation, and not much further. The
# median cosine of the two moves is at least 0.6 for torch's and onnxruntime's, and near 0 for everything else.
INT8_AGREEMENT = 0.4
INT8_MOST = 2.5


@dataclass(frozen=True)
class Finding:
    """One explanation, and how well it explains the vectors.

    Attributes:
        model: the checkpoint.
        prefix: the prefix of the texts.
        deviations: what departs from the card; empty if nothing does.
        explains: whether the remaining distance is no more than rounding.
        rounding: the coarsest rounding that has to be assumed: "float32", "float16", "bfloat16", "int8", or how
            the values were rounded afterwards, such as "stored as float16" or "rounded to 6 decimals".
        distance: between predicted and given directions, the median over the texts (0 the same, 1.41 unrelated).
        worst: the largest such distance.
        expected: the distance that rounding explains.
        cosine: the least cosine between predicted and given vectors.
        texts: the number of texts that it was tried on.
    """

    model: str
    prefix: str
    deviations: tuple[str, ...]
    explains: bool
    rounding: str
    distance: float
    worst: float
    expected: float
    cosine: float
    texts: int

    def __str__(self) -> str:
        """Return the explanation as one line."""
        what = ", ".join(self.deviations) or "as the card says"
        return f"{what} ({self.model}, {self.prefix})"


class Candidate:
    """A checkpoint that may have been used, and the costs of its rounding."""

    def __init__(self, predictions: Predictions, *, expected: bool) -> None:
        """Prepare the checkpoint of `predictions`; `expected` if it is the one that the user believes in."""
        self.predictions = predictions
        self.expected = expected
        checkpoint = predictions.encoder.checkpoint
        self.name = checkpoint.name
        self.pooling, self.normalize = checkpoint.settings.pooling, checkpoint.settings.normalize
        self._ids = predictions.ids(predictions.texts[0], predictions.tokens[0])
        self.shortest = sorted(range(len(self._ids)), key=lambda index: len(self._ids[index]))

    @cached_property
    def levels(self) -> Levels:
        """What rounding costs, measured on the shortest texts."""
        return measure_levels(self.predictions.encoder, [self._ids[index] for index in self.shortest[:FIRST_TEXTS]])

    def first_texts(self, hypothesis: Hypothesis) -> list[int]:
        """Choose the texts to try a hypothesis on first.

        They are a few short ones (with padding, which costs most, only one), and one whose tokens the hypothesis
        changes. In 8 bits they are all texts, since the scale depends on the whole batch. Empty if this tokenization
        changes no text; the card's hypothesis covers it.
        """
        if hypothesis.computation in INT8_KINDS:
            return self.shortest
        chosen = self.shortest[:1]
        if hypothesis.computation not in WITH_PADDING:  # the middle one too: short texts may all be queries
            chosen = sorted({*self.shortest[: FIRST_TEXTS - 1], self.shortest[len(self.shortest) // 2]})
        if hypothesis.token.deviation is None and not hypothesis.text.cleaned and hypothesis.chunks is None:
            return chosen
        differing = self.differing(hypothesis)
        return sorted({*chosen, *differing[:1]}) if differing else []

    def differing(self, hypothesis: Hypothesis) -> list[int]:
        """List the texts, the shortest first, whose tokens differ from those that the card gives with this prefix."""
        predictions, text = self.predictions, hypothesis.text
        if text.cleaned:
            text = next(one for one in predictions.texts if one.prefixes == text.prefixes)
        parts, card = predictions.parts(hypothesis), predictions.ids(text, predictions.tokens[0])
        return [index for index in self.shortest if parts[index] != (card[index],)]


class Trial:
    """A hypothesis, and how its vectors compare with the given ones.

    Attributes:
        indices: which of the given texts each of the candidate's texts is.
        texts: those that it was tried on, as indices into the candidate's.
        complete: whether these are all that it is to be tried on.
    """

    def __init__(
        self, candidate: Candidate, hypothesis: Hypothesis, given: Given, indices: list[int], texts: list[int]
    ) -> None:
        """Try it on a few texts."""
        self.candidate, self.hypothesis, self.given, self.indices = candidate, hypothesis, given, indices
        self.complete = False
        self._fit(texts)

    def try_all(self) -> None:
        """Try it on all texts, if that was not done yet; with padding, which costs most, on the longest and a few."""
        if not self.complete:
            shortest = self.candidate.shortest
            padded = self.hypothesis.computation in WITH_PADDING
            self.complete = True
            self._fit(sorted({*shortest[:PADDED_TEXTS], shortest[-1]} if padded else shortest))

    def _fit(self, texts: list[int]) -> None:
        self.texts = texts
        predicted = self.candidate.predictions(self.hypothesis, texts)
        self.fit: Fit = fit(predicted, self.given, self._given_indices)
        self.rounding = self._rounding()

    @property
    def _given_indices(self) -> list[int]:
        return [self.indices[text] for text in self.texts]

    def _rounding(self) -> tuple[str, float]:
        """Return the finest rounding that explains the distances, and its level; "" if none does."""
        if self.fit.median > FAR:
            return "", self.given.stored_level
        if self.hypothesis.computation not in INT8_KINDS:
            rounding = self.candidate.levels.explain(self.fit, self.given)
            if self.hypothesis.computation is Computation.TANH_GELU and tell_apart(self._plain_fit(), self.fit):
                return "", rounding[1]  # rounding would have to undo what tanh does
            return rounding
        # 8 bits move vectors far, but in a direction that can be computed.
        plain = self._plain_fit().predicted
        simulated = self.fit.predicted - plain
        found = self.given.directions[self._given_indices] - plain
        cost, moved = np.linalg.norm(simulated, axis=1), np.linalg.norm(found, axis=1)
        agreement = float(np.median(np.sum(simulated * found, axis=1) / np.maximum(cost * moved, 1e-12)))
        alike = (moved <= INT8_MOST * cost.max()) & (moved >= LEAST * cost)
        return ("int8" if agreement >= INT8_AGREEMENT and alike.all() else ""), float(np.median(cost))

    def _plain_fit(self) -> Fit:
        """Return the fit of the same hypothesis, computed in float32 with the right GELU."""
        plain = replace(self.hypothesis, computation=Computation.PLAIN)
        return fit(self.candidate.predictions(plain, self.texts), self.given, self._given_indices)

    @property
    def explains(self) -> bool:
        """Whether it was tried on all texts, and only rounding is left."""
        return self.complete and self.rounding[0] != ""

    @property
    def exact(self) -> NDArray[np.bool_]:
        """For each of `texts`, whether rounding no coarser than float32 explains it."""
        if self.fit.median > FAR and self.fit.distances.min() > FAR / 10:
            return np.zeros(len(self.texts), bool)
        limit = FACTORS["float32"][1] * self.candidate.levels.of["float32"]
        return self.fit.distances <= limit + STORED_FACTORS[1] * self.given.stored_level

    @property
    def promising(self) -> bool:
        """Whether it may explain all vectors or some, judged by the texts that it was tried on."""
        return self.rounding[0] != "" or bool(self.exact.any())

    @property
    def deviations(self) -> tuple[str, ...]:
        """Everything that departs from the card."""
        names: tuple[str, ...] = ()
        if not self.candidate.expected:
            names = (f"another checkpoint: {self.candidate.name}",)
        longest = self.candidate.predictions.longest(self.hypothesis)
        names += self.hypothesis.deviations(self.candidate.pooling, longest)
        names += self.fit.deviations(self.candidate.normalize)
        names += ("wrong byte order",) * self.given.swapped
        rounding = self.rounding[0]
        return names if rounding in ("", "float32", *names) else (*names, rounding)

    def finding(self) -> Finding:
        """Return the result for people."""
        rounding, expected = self.rounding
        return Finding(
            model=self.candidate.name,
            prefix=self.hypothesis.text.prefix,
            deviations=self.deviations,
            explains=self.explains,
            rounding=rounding,
            distance=self.fit.median,
            worst=self.fit.worst,
            expected=expected,
            cosine=float(1 - self.fit.worst**2 / 2),
            texts=len(self.texts),
        )
