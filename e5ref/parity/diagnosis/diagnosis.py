"""Diagnosis: from texts and the vectors that a service or library gave for them, find what was done."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from e5ref.checkpoint.hub import DEFAULT_CHECKPOINT, is_on_this_machine, known_checkpoints
from e5ref.encoder import E5, load
from e5ref.parity.diagnosis.conclusion import COARSE, Diagnosis, conclude
from e5ref.parity.diagnosis.given import Given
from e5ref.parity.diagnosis.hypotheses import STAGES, Predictions
from e5ref.parity.diagnosis.trial import Candidate, Trial
from e5ref.terminal.progress import progress_bar

# The most texts that are looked at; more of them say no more.
MAX_TEXTS = 64

# The most hypotheses of a stage that are tried on all texts.
FINALISTS = 12


def diagnose(
    texts: Sequence[str],
    vectors: ArrayLike,
    models: Sequence[str | Path | E5] | None = None,
    *,
    prompt_name: str | None = None,
    show_progress_bar: bool | None = None,
) -> Diagnosis:
    """Find how vectors were made from texts: as the model card says, or with which of the usual mistakes.

    Args:
        texts: n texts, with or without their prefix.
        vectors: [n, d], any real dtype.
        models: hub names, folders or loaded models (float32) that may have been used, the expected one first. None for
            e5-small-v2. Known checkpoints that are on this machine are tried too.
        prompt_name: the prompt that was probably used ("query", "passage"). None if the texts bring their own, or if
            any of the checkpoint's prompts is right.
        show_progress_bar: None shows one in a terminal once the work has taken 2 seconds.

    Returns:
        The verdict, the explanations with the likeliest first, and what these texts cannot tell.

    Raises:
        ValueError: there are no texts, not one vector for each, a value that is not finite, or a vector of zeros.
            Numbers whose bytes are in the wrong order are put right first.
        CheckpointError: a model cannot be loaded.
    """
    given = Given.check(texts, vectors)
    indices = _chosen(len(texts))
    trials: list[Trial] = []
    notes: list[str] = []
    with progress_bar(None, "hypotheses", "it", show=show_progress_bar) as progress:
        candidates: list[Candidate] = []
        for encoder in _encoders(models, given.width):
            width = max(encoder.checkpoint.dimensions, encoder.checkpoint.config.hidden_size)  # a Dense may be left out
            if width < given.width:
                notes.append(f"{encoder.checkpoint.name} has {width} dimensions, and these vectors have {given.width}")
                continue
            chosen = [texts[index] for index in indices]
            candidates.append(Candidate(Predictions(encoder, chosen, prompt_name), expected=not candidates))
        stages = [candidate.predictions.stages() for candidate in candidates]
        found: set[str] = set()
        for number, stage in enumerate(zip(*stages, strict=True)):
            # If only coarse rounding explains the vectors, it may be tanh GELU or 8 bits, which the last stage tries.
            if found and 1 < number < STAGES - 1:
                continue
            for candidate, hypotheses in zip(candidates, stage, strict=True):
                progress.total = (progress.total or 0) + len(hypotheses)
                fitting = [one for one in hypotheses if candidate.predictions.width(one) >= given.width]
                wanted = [(one, tried) for one in fitting if (tried := candidate.first_texts(one))]
                candidate.predictions.prepare(wanted)
                for hypothesis, tried in wanted:
                    trials.append(Trial(candidate, hypothesis, given, indices, tried))
                progress.update(len(hypotheses))
            finalists = [one for one in trials if one.promising and not one.complete]
            # Those that may explain all vectors go before those that may explain a few.
            for one in sorted(finalists, key=lambda one: (one.rounding[0] == "", one.fit.median))[:FINALISTS]:
                one.try_all()
            found = {one.rounding[0] for one in trials if one.explains}
            if found - COARSE:
                break
    if not any(one.explains for one in trials):
        for one in trials:  # some of the texts may be as the card says, and none of the first
            if not one.deviations:
                one.try_all()
    if given.swapped:
        notes.append("the numbers make sense only with the bytes of each in the opposite order, and were read so")
    if len(texts) > MAX_TEXTS:
        notes.append(f"looked at {MAX_TEXTS} of the {len(texts)} texts")
    return conclude(trials, notes)


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
        for name, known in known_checkpoints().items()
        if name not in given and known.get("hidden_size") == width and is_on_this_machine(name, known)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [model if isinstance(model, E5) else load(model) for model in names]
