"""The diagnosis that follows from all trials."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from e5ref.parity.diagnosis.fitting import FACTORS, tell_apart
from e5ref.parity.diagnosis.hypotheses import Computation
from e5ref.parity.diagnosis.trial import FAR, Finding, Trial

Verdict = Literal["correct", "found", "mixed", "undecided", "unknown"]

# Rounding that is coarser than float32.
COARSE = {"float16", "bfloat16", "int8"}

# A second model is told from damage if there are at least so many texts of each of the two.
LEAST_TEXTS = 3

# The share of pairs in which a text with the one kind of vector is longer than one with the other: beyond this share it
# is their length that sets the texts apart.
LONGER = 0.9


@dataclass(frozen=True)
class Diagnosis:
    """What was done to make some vectors.

    Attributes:
        verdict: "correct" (as the card says), "found" (a known deviation), "undecided" (several explanations that
            these texts cannot tell apart), "mixed" (not the same for all texts), "unknown" (nothing that e5ref knows).
        answer: the same in a sentence.
        findings: explanations, the likeliest first; if the verdict is "unknown", the nearest, none of which explains.
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


def conclude(trials: list[Trial], notes: list[str]) -> Diagnosis:
    """Weigh all trials; `notes` come before those that follow from them."""
    ranked = sorted(trials, key=lambda one: (not one.explains, one.fit.median, len(one.deviations)))
    explaining = [one for one in ranked if one.explains]
    # A mixture of exact explanations is no coincidence: it goes before coarse rounding.
    if all(one.rounding[0] in COARSE for one in explaining) and (mixed := _mixture(ranked)) is not None:
        return Diagnosis("mixed", mixed, _findings(ranked), tuple(notes))
    if not explaining:
        answer = "Unknown: nothing that e5ref knows explains these vectors"
        if ranked and ranked[0].fit.median <= FAR:
            nearest = ranked[0].finding()
            answer += f"; the nearest, {nearest}, is at a distance of {nearest.distance:.2g}, and rounding explains "
            answer += f"{nearest.expected:.1e}"
        return Diagnosis("unknown", f"{answer}.", _findings(ranked), tuple(notes))

    best = explaining[0]
    equals = [best, *(one for one in explaining[1:] if not _told_apart(best, one))]
    least = min(len(one.deviations) for one in equals)
    winners = [one for one in equals if len(one.deviations) == least]
    others = [one for one in equals if len(one.deviations) > least]
    findings = _findings([*winners, *others, *(one for one in ranked if one not in equals)])
    what = list(dict.fromkeys(one.deviations for one in winners))
    notes = list(dict.fromkeys([*notes, *_notes(winners[0], others)]))
    if not what[0]:
        return Diagnosis("correct", f"Correct: as the card says ({_where(findings[0])}).", findings, tuple(notes))
    if len(what) == 1:
        answer = f"Not as the card says: {', '.join(what[0])} ({_where(findings[0])})."
        return Diagnosis("found", answer, findings, tuple(notes))
    answer = "Undecided: these texts cannot tell " + " from ".join(repr(", ".join(names)) for names in what) + "."
    return Diagnosis("undecided", answer, findings, tuple(notes))


def _told_apart(one: Trial, other: Trial) -> bool:
    shared = sorted(set(one.texts) & set(other.texts))
    fits = (each.fit.only([each.texts.index(text) for text in shared]) for each in (one, other))
    return tell_apart(*fits)


def _where(finding: Finding) -> str:
    return f"{finding.model}, {finding.prefix}"


def _findings(ranked: list[Trial]) -> tuple[Finding, ...]:
    """Return the five best findings, each with a different text."""
    findings: dict[tuple[str, ...], Finding] = {}
    for one in ranked:
        finding = one.finding()
        findings.setdefault((finding.model, finding.prefix, *finding.deviations), finding)
        if len(findings) == 5:
            break
    return tuple(findings.values())


def _notes(winner: Trial, others: list[Trial]) -> Iterator[str]:
    """Yield what these texts cannot tell, and which text would."""
    candidate, hypothesis = winner.candidate, winner.hypothesis
    said = "what was found" if winner.deviations else "the card"
    predictions, card = candidate.predictions, candidate.predictions.tokens[0]
    ids = predictions.ids(hypothesis.text, hypothesis.token)
    for text in predictions.texts:
        if text.deviation and text != hypothesis.text and predictions.ids(text, hypothesis.token) == ids:
            yield f"{text.deviation} would give the same tokens here, and so the same vectors"
    rest = sorted({", ".join(sorted(set(one.deviations) - set(winner.deviations))) for one in others})
    same = {text.deviation for text in predictions.texts}
    if rest := [name for name in rest if name and name not in same]:
        more = "more texts" if any("tanh GELU" in name for name in rest) else "texts of different lengths"
        yield f"these texts cannot tell {said} from: {'; '.join(rest)}; add {more}"
    if len(set(map(len, ids))) == 1 and hypothesis.computation is Computation.PLAIN:
        yield "all texts have the same number of tokens, so they show nothing of padding; add a longer one"
    lengths = []
    for token in predictions.tokens[1:]:
        if predictions.ids(hypothesis.text, token) != predictions.ids(hypothesis.text, card):
            continue
        if token.max_length != card.max_length:
            lengths.append(token.max_length)
        else:
            letters = "accents" if token.normalizer == (("strip_accents", False),) else "capitals"
            yield f"these texts cannot tell {said} from: {token.deviation}; add one with {letters}"
    if lengths:
        listed = ", ".join(map(str, lengths))
        longest = max(map(len, predictions.ids(hypothesis.text, card)))
        yield (
            f"these texts cannot tell {said} from truncation at {listed}: the longest has {longest} tokens; add one "
            f"with more than {max(lengths)}"
        )


def _mixture(ranked: list[Trial]) -> str | None:
    """Explain some texts in one way and some in another.

    None if that leaves more than half of them unexplained, and they do not come from a second model.
    """
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
    if not parts:
        return None
    cards = [one for one in complete if not one.deviations and _second_model(one, left)]
    if len(parts) == 1 and cards:
        listed = ", ".join(str(cards[0].indices[text]) for text in sorted(left))
        parts.append(
            f"the vectors of {len(left)} come from a second model, or from the same one computed in a different way: "
            f"texts {listed} (counted from 0)"
        )
    elif len(left) > total / 2:
        return None
    elif left:
        listed = ", ".join(str(one.indices[text]) for text in sorted(left)[:8])
        parts.append(f"{len(left)} something else: texts {listed}{' …' if len(left) > 8 else ''} (counted from 0)")
    return "Not the same for all texts: " + "; ".join(parts) + "."


def _second_model(card: Trial, left: set[int]) -> bool:
    """Tell whether the vectors that are `left` come from a second model, while all others are as the card says.

    They depart by more than rounding. Each is nearer to what the card predicts for its text than for any other text.
    And neither length nor a letter or sign sets their texts apart: if one does, the texts were treated differently.
    """
    departs = np.array([text in left for text in card.texts])
    if not LEAST_TEXTS <= departs.sum() <= len(departs) - LEAST_TEXTS or not card.exact[~departs].all():
        return False
    level = card.candidate.levels.of["bfloat16"]
    if np.median(card.fit.distances[departs]) <= FACTORS["bfloat16"][0] * level:
        return False
    given = card.given.directions[[card.indices[text] for text in card.texts]][departs]
    nearest = np.argmax(given @ card.fit.predicted.T, axis=1)
    if not np.array_equal(nearest, np.flatnonzero(departs)):
        return False

    texts = [card.hypothesis.text.texts[text] for text in card.texts]
    lengths = np.array([len(text) for text in texts])
    longer = np.mean(np.sign(lengths[departs][:, None] - lengths[~departs])) / 2 + 0.5
    signs = [lambda text, sign=sign: sign in text for sign in set("".join(texts))]
    kinds = [str.isascii, *(lambda text, kind=kind: any(map(kind, text)) for kind in (str.isupper, str.isdigit))]
    for has in (*signs, *kinds):
        marked = np.array([has(text) for text in texts])
        if np.array_equal(marked, departs) or np.array_equal(marked, ~departs):
            return False
    return 1 - LONGER < longer < LONGER
