"""The exercises of docs/learn: `check` says whether an answer is right, and if not, what is wrong with it."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

# The chapters, in order; each is a module here with a dict EXERCISES.
CHAPTERS = ("tokens", "embeddings", "attention", "feed_forward", "layers", "pooling", "training", "speed")

# Takes an answer; returns one sentence that says what is wrong with it, or None if it is right.
Verdict = Callable[[Any], str | None]


def check(exercise: str, answer: Any) -> None:
    """Print whether an answer to an exercise of the course is right.

    Args:
        exercise: chapter and number, as "3.1".
        answer: what the exercise asks for: a number, an array or a function.

    Raises:
        KeyError: the course has no such exercise.
    """
    chapter, _, _ = exercise.partition(".")
    exercises: dict[str, Verdict] = {}
    if chapter.isdecimal() and 1 <= int(chapter) <= len(CHAPTERS):
        exercises = import_module(f"e5ref.course.{CHAPTERS[int(chapter) - 1]}").EXERCISES
    if exercise not in exercises:
        raise KeyError(f"no exercise {exercise!r}; the course has 1.1 to {len(CHAPTERS)}.3")
    try:
        wrong = exercises[exercise](answer)
    except Exception as error:  # the answer is the reader's code, which may do anything
        wrong = f"your code raises {type(error).__name__}: {error}"
    print(f"{exercise}: right" if wrong is None else f"{exercise}: not yet. {wrong}")


def compared(answer: Any, right: ArrayLike, mistakes: Mapping[str, ArrayLike], tolerance: float = 1e-5) -> str | None:
    """Compare an answer with the right one, and with what the usual mistakes give.

    Args:
        answer: a number or an array.
        right: what it should be.
        mistakes: what is wrong, in a sentence -> what this mistake gives; a mistake may have any shape.
        tolerance: the largest difference that counts as rounding, as a share of the largest right number.

    Returns:
        None if the answer is right; otherwise what is wrong with it.
    """
    right = np.asarray(right, np.float64)
    if answer is None:
        return "The answer is None: does your function end with `return`?"
    answer = np.asarray(answer)
    if answer.dtype.kind not in "biuf":
        return f"The answer must consist of numbers, but is of type {answer.dtype}."

    def is_answer(values: ArrayLike) -> bool:
        values = np.asarray(values)
        return values.shape == answer.shape and np.allclose(answer, values, tolerance, tolerance * np.abs(right).max())

    if is_answer(right):
        return None
    for sentence, values in mistakes.items():
        if is_answer(values):
            return sentence
    if answer.shape != right.shape:
        return f"The answer has the shape {answer.shape}, but must have {right.shape}."
    if not np.isfinite(answer).all():
        return "The answer has numbers that are not finite."
    return f"The largest difference from the right answer is {np.abs(answer - right).max():.2g}."
