"""The exercises of docs/learn: `check` says whether an answer is right, and if not, what is wrong with it."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

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
