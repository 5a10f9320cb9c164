"""The exercises of docs/learn: `check` says whether an answer is right, and if not, what is wrong with it."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from importlib import import_module
from typing import Any

import numpy as np

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
        wrong = f"Your code raises {type(error).__name__}: {error}"
    print(f"{exercise}: right" if wrong is None else f"{exercise}: not yet. {wrong}")


def compared(
    answer: Any,
    right: Callable[..., Any],
    cases: Sequence[tuple[Any, ...]],
    mistakes: Mapping[str, Callable[..., Any]],
) -> str | None:
    """Compare a reader's function with the right one.

    Args:
        answer: what the reader gave.
        right: gives the right result: numbers of any shape.
        cases: what to call both with; each call gets a copy.
        mistakes: for each usual mistake the sentence that names it, and a function that makes it. It may raise for a
            case, and then it does not match the answer.

    Returns:
        None if the results agree within 1e-5 of the right ones, or a sentence that says what is wrong.
    """
    if not callable(answer):
        return f"This exercise wants a function, but got {described(answer)}."
    results = []
    for case in cases:
        arguments = deepcopy(case)
        result = answer(*arguments)
        if result is None:
            return "Your function returns nothing: it lacks a `return`."
        if any(isinstance(x, np.ndarray) and not same(x, before) for x, before in zip(arguments, case, strict=True)):
            return "Your function changes the array that it is given: let it work on a new one."
        results.append(np.asarray(result))
    expected = [np.asarray(right(*deepcopy(case))) for case in cases]
    if all(map(same, results, expected)):
        return None
    for sentence, mistake in mistakes.items():
        if all(made(mistake, case, result) for case, result in zip(cases, results, strict=True)):
            return sentence
    return next(
        difference(result, wanted) for result, wanted in zip(results, expected, strict=True) if not same(result, wanted)
    )


def made(mistake: Callable[..., Any], case: tuple[Any, ...], result: Any) -> bool:
    """Say whether a mistake, made on a case, gives a result."""
    try:
        with np.errstate(all="ignore"):
            return same(result, np.asarray(mistake(*deepcopy(case))))
    except Exception:  # such as shapes that do not fit: then the answer, which has a result, does something different
        return False


def same(one: Any, other: Any) -> bool:
    """Say whether two results have the same shape and agree within 1e-5; nan agrees with nan."""
    one, other = np.asarray(one), np.asarray(other)
    if one.shape != other.shape:
        return False
    if one.dtype.kind not in "biuf" or other.dtype.kind not in "biuf":
        return np.array_equal(one, other)
    return np.allclose(one, other, rtol=1e-5, atol=1e-7, equal_nan=True)


def difference(result: Any, expected: Any) -> str:
    """Say where a result departs from the right one."""
    if expected.dtype.kind not in "biuf":
        return f"Your result is {result.tolist()}, but should be {expected.tolist()}."
    if result.shape != expected.shape:
        return f"Your result has the shape {list(result.shape)}, but should have {list(expected.shape)}."
    if result.dtype.kind not in "biuf":
        return f"Your result holds {result.dtype} instead of numbers."
    distance = np.abs(np.asarray(result, np.float64) - expected)
    if not np.isfinite(distance).all():
        return "Your result holds nan or infinity."
    place = np.unravel_index(distance.argmax(), distance.shape)
    at = f" at {[int(index) for index in place]}" if place else ""
    return f"Your result is {result[place]:.6g}{at}, but should be {expected[place]:.6g}."


def described(answer: Any) -> str:
    """Say what an answer is, in a few words."""
    return f"an array of shape {list(answer.shape)}" if isinstance(answer, np.ndarray) else type(answer).__name__
