"""Measure where the NumPy twin's time goes: `python -m tests.measure.operations FOLDER TEXTS`.

docs/measure/performance.md has the table.

One thread runs the forward pass over a file of texts, a line each, and every operation is timed on its own.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

import e5ref
from e5ref import numpy_model

# What is timed, by its name in numpy_model; operations called from inside another are taken off it.
OPERATIONS = ("embed_tokens", "layer_norm", "matmul_rows", "gelu", "softmax", "self_attention", "feed_forward", "embed")


def timed(name: str, operation: Callable, seconds: dict[str, float], inside: list[float]) -> Callable:
    """Wrap an operation so that its own time, without that of those it calls, is added up."""

    def run(*arguments, **options):
        inside.append(0.0)
        start = time.perf_counter()
        result = operation(*arguments, **options)
        taken = time.perf_counter() - start
        seconds[name] += taken - inside.pop()
        if inside:
            inside[-1] += taken
        return result

    return run


def main(folder: str, source: str) -> None:
    """Print microseconds per token for each operation."""
    model = e5ref.load(folder, threads=1, truncation="allow")
    texts = Path(source).read_text(encoding="utf-8").splitlines()
    tokens = len(model.tokenizer(texts).ids)
    model.encode(texts[:50])
    seconds: dict[str, float] = defaultdict(float)
    inside: list[float] = []
    for name in OPERATIONS:
        setattr(numpy_model, name, timed(name, getattr(numpy_model, name), seconds, inside))
    start = time.perf_counter()
    model.encode(texts)
    whole = time.perf_counter() - start
    print(f"{tokens} tokens, {tokens / whole:.0f} tokens/s on one thread, NumPy {np.__version__}")
    for name, taken in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"{name:16}{1e6 * taken / tokens:8.1f} µs a token {taken / whole:6.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
