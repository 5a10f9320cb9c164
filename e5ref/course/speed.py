"""Chapter 8, docs/learn/8-speed.md: what a token costs, rows full of texts, and what bounds a product."""

from collections.abc import Callable
from typing import Any

import numpy as np

from e5ref.course import Verdict, compared
from e5ref.engines.batching import pack

# Layers, D, F and T: e5-small, e5-large and e5ref-nano.
SIZES = [(12, 384, 1536, 84), (24, 1024, 4096, 512), (3, 256, 512, 11)]


def flops(layers: int, hidden: int, feed_forward: int, tokens: int) -> int:
    """Count the floating-point operations of one token's products, in a text of so many tokens."""
    return layers * (8 * hidden**2 + 4 * hidden * feed_forward + 4 * hidden * tokens)


def cost(answer: Any) -> str | None:
    """Judge 8.1, the operations of one token: layers, D, F, T -> a number."""
    mistakes: dict[str, Callable[[int, int, int, int], float]] = {
        "A multiplication and an addition are two operations: multiply by 2.": lambda n, d, f, t: flops(n, d, f, t) / 2,
        "That is one layer; there are several.": lambda n, d, f, t: flops(1, d, f, t),
        "Attention's two products with the text's T tokens are missing: 4 · D · T a layer.": (
            lambda n, d, f, t: flops(n, d, f, 0)
        ),
        "Attention has two products, scores and context; you count one.": (
            lambda n, d, f, t: flops(n, d, f, 0) + n * 2 * d * t
        ),
        "That is a whole text; divide by T, or count the rows of one token only.": (
            lambda n, d, f, t: flops(n, d, f, t) * t
        ),
        "Attention costs 4 · D · T for one token, not for each pair of tokens.": (
            lambda n, d, f, t: flops(n, d, f, 0) + n * 4 * d * t * t
        ),
        "Four matrices are D × D: query, key, value and attention's output. You count three.": (
            lambda n, d, f, t: flops(n, d, f, t) - n * 2 * d * d
        ),
        "Four matrices are D × D: query, key, value and attention's output. You count one.": (
            lambda n, d, f, t: flops(n, d, f, t) - n * 6 * d * d
        ),
        "Feed-forward has two matrices, up and down; you count one.": (
            lambda n, d, f, t: flops(n, d, f, t) - n * 2 * d * f
        ),
        "Feed-forward is missing: two matrices, D × F and F × D.": lambda n, d, f, t: flops(n, d, 0, t),
    }
    return compared(answer, flops, SIZES, mistakes)


def packing(answer: Any) -> str | None:
    """Judge 8.2, packing: lengths, tokens of a row -> rows, each a list of texts; as few rows as e5ref needs."""
    random = np.random.default_rng(8)
    cases = [([4, 3, 2, 3], 6), ([11, 7, 79, 52, 30], 90), (random.integers(3, 60, 50).tolist(), 64)]
    for lengths, size in cases:
        rows = answer(list(lengths), size)
        if rows is None:
            return "Your function returns nothing: it lacks a `return`."
        placed = [int(text) for row in rows for text in row]
        if missing := set(range(len(lengths))) - set(placed):
            return f"Of texts of {lengths} tokens, number {min(missing)} is in no row."
        if len(placed) != len(set(placed)):
            twice = next(text for text in placed if placed.count(text) > 1)
            return f"Text number {twice} stands in more than one place."
        if unknown := set(placed) - set(range(len(lengths))):
            return f"A row has {max(unknown)}, but texts are numbered from 0 to {len(lengths) - 1}."
        for number, row in enumerate(rows):
            if (total := sum(lengths[text] for text in row)) > size:
                return f"Row {number} has {total} tokens; {size} fit."
        fewest = rows_needed(lengths, size)
        if sum(len(row) > 0 for row in rows) > fewest:
            return (
                f"Every text has its place, but you use {len(rows)} rows where {fewest} are enough: fill each row with "
                "the longest text that still fits, again and again."
            )
    return None


def rows_needed(lengths: list[int], size: int) -> int:
    """Count the rows that e5ref's own packing needs."""
    return int(pack(np.sort(lengths), (len(lengths), size), len(lengths)).rows.max()) + 1


def seconds(rows: int, inputs: int, outputs: int, rate: float, bandwidth: float, *, number: int = 4) -> float:
    """Bound the time of a product of rows with a weight: by its operations, or by the bytes that must move."""
    moved = number * (rows * inputs + inputs * outputs + rows * outputs)
    return max(2 * rows * inputs * outputs / rate, moved / bandwidth)


def bound(answer: Any) -> str | None:
    """Judge 8.3, the least time of a product: rows, in, out, operations and bytes a second -> seconds."""
    # Near the point where both bounds are equal, on its two sides, and for sizes that tell the three arrays apart.
    cases = [(4, 384, 1536, 3e11, 2e10), (4096, 384, 1536, 3e11, 2e10), (600, 20, 30, 3e11, 2e10)]

    def parts(rows: int, inputs: int, outputs: int, rate: float, bandwidth: float) -> tuple[float, float]:
        moved = 4 * (rows * inputs + inputs * outputs + rows * outputs)
        return 2 * rows * inputs * outputs / rate, moved / bandwidth

    def without(*arrays: int) -> Callable[..., float]:
        def time(rows: int, inputs: int, outputs: int, rate: float, bandwidth: float) -> float:
            sizes = [rows * inputs, inputs * outputs, rows * outputs]
            moved = sum(size for array, size in enumerate(sizes) if array not in arrays)
            return max(2 * rows * inputs * outputs / rate, 4 * moved / bandwidth)

        return time

    mistakes: dict[str, Callable[..., float]] = {
        "You add both times; computing and moving happen at once, so the longer one counts.": lambda *a: sum(parts(*a)),
        "You take the shorter time; the product must wait for the longer one.": lambda *a: min(parts(*a)),
        "You leave out the time to move the arrays.": lambda *a: parts(*a)[0],
        "You leave out the time to compute.": lambda *a: parts(*a)[1],
        "A number of float32 has 4 bytes.": lambda *a: max(parts(*a)[0], parts(*a)[1] / 4),
        "A number of float32 has 4 bytes, not 8.": lambda *a: max(parts(*a)[0], parts(*a)[1] * 2),
        "A multiplication and an addition are two operations: multiply by 2.": (
            lambda *a: max(parts(*a)[0] / 2, parts(*a)[1])
        ),
        "Only the weight is moved in your count; the rows must be read, and the result written.": without(0, 2),
        "The weight is missing in your count of bytes; it must be read, too.": without(1),
        "The result is missing in your count of bytes; it must be written.": without(2),
        "The rows are missing in your count of bytes; they must be read.": without(0),
    }
    return scaled(answer, seconds, cases, mistakes)


def scaled(
    answer: Any, right: Callable[..., float], cases: list[tuple[Any, ...]], mistakes: dict[str, Callable[..., float]]
) -> str | None:
    """Compare as `compared` does, but in microseconds: seconds are so few that all of them would count as equal."""

    def microseconds(function: Any) -> Any:
        def timed(*arguments: Any) -> Any:
            result = function(*arguments)
            return None if result is None else 1e6 * np.asarray(result)

        return timed if callable(function) else function

    named = {sentence: microseconds(mistake) for sentence, mistake in mistakes.items()}
    return compared(microseconds(answer), microseconds(right), cases, named)


EXERCISES: dict[str, Verdict] = {"8.1": cost, "8.2": packing, "8.3": bound}
