"""Texts, and the vectors that somebody's service or library gave for them: what was done?"""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from e5ref import numpy_model
from e5ref.checkpoint.hub import DEFAULT_CHECKPOINT, is_on_this_machine, known_checkpoints
from e5ref.encoder import E5, load
from e5ref.parity.diagnosis.fitting import (
    FACTORS,
    LEAST,
    STORED_FACTORS,
    Fit,
    Given,
    Levels,
    fit,
    measure_levels,
    tell_apart,
)
from e5ref.parity.diagnosis.hypotheses import STAGES, Hypothesis, Predictions
from e5ref.terminal.progress import progress_bar

Verdict = Literal["correct", "found", "mixed", "undecided", "unknown"]

# The most texts that are looked at; more of them say no more.
MAX_TEXTS = 64

# Texts that every hypothesis is tried on first: the shortest, which cost least and show most, and one of middle length.
FIRST_TEXTS = 4

# The most hypotheses of a stage that are then tried on all texts, and the most short texts for those with padding.
FINALISTS = 12
PADDED_TEXTS = 4

# A distance that no rounding causes; unrelated vectors are at 1.41.
FAR = 0.6

COARSE = {"float16", "bfloat16", "int8"}

# What tells 8 bits: vectors are moved by them in about the direction of our simulation (the median cosine between the
# two; 0.6 and more for torch's and onnxruntime's, near 0 for all else), and not much further than that.
INT8_AGREEMENT = 0.4
INT8_MOST = 2.5


@dataclass(frozen=True)
class Finding:
    """One explanation, and how well it explains the vectors.

    Attributes:
        model: the checkpoint.
        prefix: what stood before the texts.
        deviations: what departs from the card; none where nothing does.
        explains: whether the distance that is left is no more than rounding.
        rounding: the coarsest rounding that has to be assumed: "float32", "float16", "bfloat16", "int8", or what the
            numbers were rounded to afterwards, such as "stored as float16" or "rounded to 6 decimals".
        distance: between predicted and given directions, the median over the texts (0 the same, 1.41 unrelated).
        worst: the largest such distance.
        expected: the distance that rounding explains.
        cosine: the least cosine between predicted and given vectors.
        texts: on how many texts it was tried.
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
        """Say it in one line."""
        what = ", ".join(self.deviations) or "as the card says"
        return f"{what} ({self.model}, {self.prefix})"


@dataclass(frozen=True)
class Diagnosis:
    """What was done to make some vectors.

    Attributes:
        verdict: "correct" (as the card says), "found" (something else, which is known), "undecided" (several things
            that these texts cannot tell apart), "mixed" (not the same for all texts), "unknown" (nothing that e5ref
            knows of).
        answer: the same in a sentence.
        findings: explanations, the likeliest first; where the verdict is "unknown", the nearest, none of which
            explains.
        notes: what these texts cannot tell, and which text would.
    """

    verdict: Verdict
    answer: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """Return the report for people."""
        lines = [self.answer, ""]
        lines.append(f"{'':13}{'distance':>9}{'worst':>9}{'rounding':>9}{'cosine':>10}")
        for finding in self.findings:
            lines.append(
                f"{'explains' if finding.explains else 'does not':13}{finding.distance:9.1e}{finding.worst:9.1e}"
                f"{finding.expected:9.1e}{finding.cosine:10.6f}  {finding}"
            )
        lines += [f"Note: {note}." for note in self.notes]
        return "\n".join(lines)


def diagnose(
    texts: Sequence[str],
    vectors: ArrayLike,
    models: Sequence[str | Path | E5] | None = None,
    *,
    prompt_name: str | None = None,
    show_progress_bar: bool | None = None,
) -> Diagnosis:
    """Say how vectors were made from texts: as the model card says, or with which of the usual mistakes.

    Args:
        texts: n of them, with or without their prefix.
        vectors: [n, d], any real dtype.
        models: hub names, folders or loaded models (float32) that it may have been, the expected one first. None for
            e5-small-v2. Known checkpoints that are on this machine are tried too.
        prompt_name: the prompt that the vectors are believed to have ("query", "passage"). None for texts that bring
            their own, or where any of the checkpoint's prompts is right.
        show_progress_bar: None shows one in a terminal once the work has taken 2 seconds.

    Returns:
        The verdict, the explanations with the likeliest first, and what these texts cannot tell.

    Raises:
        ValueError: not one vector for each text, numbers that are no numbers, a vector of zeros, no texts.
        CheckpointError: a model that cannot be loaded.
    """
    given = Given.check(texts, vectors)
    indices = _chosen(len(texts))
    tried: list[_Tried] = []
    refused: list[str] = []
    with progress_bar(None, "hypotheses", "it", show=show_progress_bar) as progress:
        candidates: list[_Candidate] = []
        for encoder in _encoders(models, given.width):
            if encoder.checkpoint.config.hidden_size < given.width:
                width = encoder.checkpoint.config.hidden_size
                refused.append(f"{encoder.checkpoint.name} gives {width} numbers, and these vectors have {given.width}")
                continue
            chosen = [texts[index] for index in indices]
            candidates.append(_Candidate(Predictions(encoder, chosen, prompt_name), expected=not candidates))
        stages = [candidate.predictions.stages() for candidate in candidates]
        found: set[str] = set()
        for number, stage in enumerate(zip(*stages, strict=True)):
            # What looks like rounding to 16 bits is that or rounding to 8, which come last.
            if found and 1 < number < STAGES - 1:
                continue
            for candidate, hypotheses in zip(candidates, stage, strict=True):
                progress.total = (progress.total or 0) + len(hypotheses)
                wanted = [(one, first) for one in hypotheses if (first := candidate.first_texts(one))]
                candidate.predictions.prepare(wanted)
                for hypothesis, first in wanted:
                    tried.append(_Tried(candidate, hypothesis, given, indices, first))
                progress.update(len(hypotheses))
            finalists = [one for one in tried if one.promising and not one.complete]
            for one in sorted(finalists, key=lambda one: one.fit.median)[:FINALISTS]:
                one.try_all()
            found = {one.rounding[0] for one in tried if one.explains}
            if found - COARSE:
                break
    return _conclude(tried, refused, len(texts))


def _chosen(count: int) -> list[int]:
    """Choose the texts to look at, evenly among all."""
    if count <= MAX_TEXTS:
        return list(range(count))
    return np.linspace(0, count - 1, MAX_TEXTS).astype(int).tolist()


def _encoders(models: Sequence[str | Path | E5] | None, width: int) -> list[E5]:
    names = [DEFAULT_CHECKPOINT] if models is None else list(models)
    given = {str(name) for name in names}
    names += [
        name
        for name, row in known_checkpoints().items()
        if name not in given and row.get("hidden_size") == width and is_on_this_machine(name, row)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [model if isinstance(model, E5) else load(model) for model in names]


class _Candidate:
    """A checkpoint, and what is known of its rounding."""

    def __init__(self, predictions: Predictions, *, expected: bool) -> None:
        self.predictions = predictions
        self.expected = expected
        settings = predictions.encoder.checkpoint.settings
        self.name, self.pooling, self.normalize = (
            predictions.encoder.checkpoint.name,
            settings.pooling,
            settings.normalize,
        )
        card = predictions.ids(predictions.texts[0], predictions.tokens[0])
        self.shortest = sorted(range(len(card)), key=lambda index: len(card[index]))
        self._levels: Levels | None = None

    @property
    def levels(self) -> Levels:
        """What rounding costs, measured on the shortest texts."""
        if self._levels is None:
            ids = self.predictions.ids(self.predictions.texts[0], self.predictions.tokens[0])
            shortest = [ids[index] for index in self.shortest[:FIRST_TEXTS]]
            self._levels = measure_levels(self.predictions.encoder, shortest)
        return self._levels

    def first_texts(self, hypothesis: Hypothesis) -> list[int]:
        """Choose the texts to try a hypothesis on first: some short ones (of padding, which costs most, one), and one
        where its tokens are its own. In 8 bits, whose scale is that of a whole batch, all of them.

        None where its tokens are never its own: the same hypothesis with the card's tokens stands for it.
        """
        if hypothesis.run.startswith("int8"):
            return self.shortest
        first = self.shortest[:1]
        if hypothesis.run == "plain":  # the middle one too: short texts may be queries, and the others passages
            first = sorted({*self.shortest[: FIRST_TEXTS - 1], self.shortest[len(self.shortest) // 2]})
        if hypothesis.token.deviation is None:
            return first
        differing = self.differing(hypothesis)
        return sorted({*first, *differing[:1]}) if differing else []

    def differing(self, hypothesis: Hypothesis) -> list[int]:
        """List the texts, short ones first, that get other tokens than by the card's way from the same text."""
        ids = self.predictions.ids(hypothesis.text, hypothesis.token)
        card = self.predictions.ids(hypothesis.text, self.predictions.tokens[0])
        return [index for index in self.shortest if ids[index] != card[index]]


class _Tried:
    """A hypothesis, and how its vectors compare with the given ones."""

    def __init__(
        self, candidate: _Candidate, hypothesis: Hypothesis, given: Given, indices: list[int], first: list[int]
    ) -> None:
        self.candidate, self.hypothesis, self.given, self.indices = candidate, hypothesis, given, indices
        self.complete = False
        self.texts = first
        self._fit()

    def try_all(self) -> None:
        """Try it on all texts, unless that was done; with padding, which costs most, on the longest and a few more."""
        if not self.complete:
            shortest = self.candidate.shortest
            some = self.hypothesis.run in ("padded", "unmasked")
            self.complete, self.texts = True, sorted({*shortest[:PADDED_TEXTS], shortest[-1]} if some else shortest)
            self._fit()

    def _fit(self) -> None:
        predicted = self.candidate.predictions(self.hypothesis, self.texts)
        self.fit: Fit = fit(predicted, self.given, [self.indices[text] for text in self.texts])
        self.rounding = self._rounding()

    def _rounding(self) -> tuple[str, float]:
        """Return the finest rounding that explains the distances, and its level; "" if none does."""
        if self.fit.median > FAR:
            return "", self.given.stored_level
        if not self.hypothesis.run.startswith("int8"):
            return self.candidate.levels.explain(self.fit, self.given)
        # 8 bits move vectors far, but in a direction that can be computed.
        unrounded = self.candidate.predictions(replace(self.hypothesis, run="plain"), self.texts)
        plain = numpy_model.l2_normalize(unrounded[:, : self.given.width])
        simulated = self.fit.predicted - plain
        found = self.given.directions[[self.indices[text] for text in self.texts]] - plain
        cost, moved = np.linalg.norm(simulated, axis=1), np.linalg.norm(found, axis=1)
        agreement = float(np.median(np.sum(simulated * found, axis=1) / np.maximum(cost * moved, 1e-12)))
        alike = (moved <= INT8_MOST * cost.max()) & (moved >= LEAST * cost)
        return ("int8" if agreement >= INT8_AGREEMENT and alike.all() else ""), float(np.median(cost))

    @property
    def explains(self) -> bool:
        """Whether it was tried on all texts, and rounding explains what is left."""
        return self.complete and self.rounding[0] != ""

    @property
    def exact(self) -> NDArray[np.bool_]:
        """Which of `texts` it explains with rounding no coarser than float32."""
        if self.fit.median > FAR and self.fit.distances.min() > FAR / 10:
            return np.zeros(len(self.texts), bool)
        limit = FACTORS["float32"][1] * self.candidate.levels.of["float32"]
        return self.fit.distances <= limit + STORED_FACTORS[1] * self.given.stored_level

    @property
    def promising(self) -> bool:
        """Whether it may explain the vectors, or some of them, by the few texts that it was tried on."""
        return self.rounding[0] != "" or bool(self.exact.any())

    @property
    def deviations(self) -> tuple[str, ...]:
        """All that departs from the card."""
        names: tuple[str, ...] = ()
        if not self.candidate.expected:
            names = (f"another checkpoint: {self.candidate.name}",)
        longest = self.candidate.predictions.longest(self.hypothesis)
        names += self.hypothesis.deviations(self.candidate.pooling, longest)
        names += self.fit.deviations(self.candidate.normalize)
        rounding = self.rounding[0]
        return names if rounding in ("", "float32", *names) else (*names, rounding)

    def finding(self) -> Finding:
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


def _conclude(tried: list[_Tried], refused: list[str], count: int) -> Diagnosis:
    """Weigh what was tried."""
    ranked = sorted(tried, key=lambda one: (not one.explains, one.fit.median, len(one.deviations)))
    notes = list(refused)
    if count > MAX_TEXTS:
        notes.append(f"looked at {MAX_TEXTS} of the {count} texts")
    explaining = [one for one in ranked if one.explains]
    # No coarse rounding meets the same numbers by chance.
    if all(one.rounding[0] in COARSE for one in explaining) and (mixed := _mixture(ranked)) is not None:
        return Diagnosis("mixed", mixed, _findings(ranked), tuple(notes))
    if not explaining:
        answer = "Unknown: nothing that e5ref knows of explains these vectors"
        if ranked and ranked[0].fit.median <= FAR:
            nearest = ranked[0].finding()
            answer += f"; the nearest, {nearest}, is at a distance of {nearest.distance:.2g} where rounding explains "
            answer += f"{nearest.expected:.1e}"
        return Diagnosis("unknown", f"{answer}.", _findings(ranked), tuple(notes))

    best = explaining[0]
    equals = [best, *(one for one in explaining[1:] if not _told_apart(best, one))]
    least = min(len(one.deviations) for one in equals)
    winners = [one for one in equals if len(one.deviations) == least]
    others = [one for one in equals if len(one.deviations) > least]
    findings = _findings([*winners, *others, *(one for one in ranked if one not in equals)])
    what = list(dict.fromkeys(one.deviations for one in winners))
    notes += _notes(winners[0], others)
    if not what[0]:
        return Diagnosis("correct", f"Correct: as the card says ({_where(findings[0])}).", findings, tuple(notes))
    if len(what) == 1:
        answer = f"Not as the card says: {', '.join(what[0])} ({_where(findings[0])})."
        return Diagnosis("found", answer, findings, tuple(notes))
    answer = "Undecided: these texts cannot tell " + " from ".join(repr(", ".join(names)) for names in what) + "."
    return Diagnosis("undecided", answer, findings, tuple(notes))


def _told_apart(one: _Tried, other: _Tried) -> bool:
    shared = sorted(set(one.texts) & set(other.texts))
    fits = (each.fit.only([each.texts.index(text) for text in shared]) for each in (one, other))
    return tell_apart(*fits)


def _where(finding: Finding) -> str:
    return f"{finding.model}, {finding.prefix}"


def _findings(ranked: list[_Tried], most: int = 5) -> tuple[Finding, ...]:
    """Return the first few that differ in what they say."""
    findings: dict[tuple[str, ...], Finding] = {}
    for one in ranked:
        finding = one.finding()
        findings.setdefault((finding.model, finding.prefix, *finding.deviations), finding)
        if len(findings) == most:
            break
    return tuple(findings.values())


def _notes(winner: _Tried, others: list[_Tried]) -> list[str]:
    """Say what these texts cannot tell, and which text would."""
    candidate, hypothesis = winner.candidate, winner.hypothesis
    said = "what was found" if winner.deviations else "the card"
    notes = []
    predictions, card = candidate.predictions, candidate.predictions.tokens[0]
    ids = predictions.ids(hypothesis.text, hypothesis.token)
    for text in predictions.texts:
        if text.deviation and text != hypothesis.text and predictions.ids(text, hypothesis.token) == ids:
            notes.append(f"{text.deviation} would give the same tokens here, and so the same vectors")
    rest = sorted({", ".join(sorted(set(one.deviations) - set(winner.deviations))) for one in others})
    same = {text.deviation for text in predictions.texts}
    if rest := [name for name in rest if name and name not in same]:
        notes.append(f"these texts cannot tell {said} from: {'; '.join(rest)}; add texts of other lengths")
    if len(set(map(len, ids))) == 1 and hypothesis.run == "plain":
        notes.append("the texts have the same number of tokens, and so say nothing of padding; add a longer one")
    lengths = []
    for token in predictions.tokens[1:]:
        if candidate.differing(Hypothesis(hypothesis.text, token)):
            continue
        if token.deviation and token.deviation.startswith("truncated"):
            lengths.append(token.max_length)
        else:
            letters = "accents" if token.deviation == "accents kept" else "capitals"
            notes.append(f"these texts cannot tell {said} from: {token.deviation}; add one with {letters}")
    if lengths:
        listed = ", ".join(map(str, lengths))
        longest = max(map(len, predictions.ids(hypothesis.text, card)))
        notes.append(
            f"these texts cannot tell {said} from truncation at {listed}: the longest has {longest} tokens; add one "
            f"with more than {max(lengths)}"
        )
    return notes


def _mixture(ranked: list[_Tried]) -> str | None:
    """Explain some texts in one way and others in another, if that accounts for at least half of them."""
    complete = [one for one in ranked if one.complete]
    left = {text for one in complete for text in one.texts}
    total = len(left)
    parts: list[str] = []
    while left:
        counted = []
        for one in complete:
            explained = left & {text for text, exact in zip(one.texts, one.exact, strict=True) if exact}
            counted.append((len(explained), -len(one.deviations), explained, one))
        number, _, explained, one = max(counted, key=lambda entry: entry[:2])
        if number == 0 or (number == 1 and not parts):
            break
        what = ", ".join(one.deviations) or "as the card says"
        parts.append(f"{number} of {total} texts {what} ({_where(one.finding())})")
        left -= explained
    if not parts or len(left) > total / 2:
        return None
    if left:
        listed = ", ".join(str(one.indices[text]) for text in sorted(left)[:8])
        parts.append(f"{len(left)} something else: texts {listed}{' …' if len(left) > 8 else ''} (counted from 0)")
    return "Not the same for all texts: " + "; ".join(parts) + "."
