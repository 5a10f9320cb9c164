"""Judge the runs of a port by this golden kit: `python check.py RUNS`. Needs NumPy alone.

RUNS is a folder that holds a run for each batch of the kit, named as there; README.md says what a run is. The verdict is
that of `e5ref check`. Exit code 0: all is within rounding. 1: something is not. 2: the kit itself cannot be read.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

# How safetensors names what a tensor is made of, and how NumPy reads it. NumPy has no bfloat16: its two bytes are the
# upper half of a float32.
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
WHOLE = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1"}
NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def main() -> int:
    """Judge every batch, print a line for each point, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, metavar="RUNS")
    parser.add_argument("--only", metavar="NAME,…", default="*", help="judge these points alone, such as normalized")
    arguments = parser.parse_args()
    folder, patterns = Path(__file__).parent, arguments.only.split(",")
    verdicts = []
    kit = json.loads((folder / "kit.json").read_text(encoding="utf-8"))
    for batch, entry in kit["batches"].items():
        names = [name for name in entry["points"] if any(fnmatchcase(name, pattern) for pattern in patterns)]
        for name, verdict, detail in judge_batch(
            arguments.runs / f"{batch}.safetensors", folder / f"{batch}.safetensors", names, entry["tolerances"]
        ):
            verdicts.append(verdict)
            print(f"{f'[{verdict}]':10}{batch}: {name}  {detail}")
    failed = sum(verdict != "OK" for verdict in verdicts)
    print(f"FAILED: {failed} of {len(verdicts)}" if failed or not verdicts else f"passed: all {len(verdicts)}")
    return 0 if verdicts and not failed else 1


def judge_batch(path: Path, reference: Path, names: list[str], tolerances: Tolerances) -> Iterator[Line]:
    """Yield a line for the token ids of a run, and if those are right for each named point.

    Args:
        path: the port's run.
        reference: the kit's.
        names: the points to judge.
        tolerances: dtype → point → the largest and the root mean square error that rounding accounts for.
    """
    expected = read_run(reference)[0]
    if not path.exists():
        yield "run", "MISSING", f"there is no {path}"
        return
    try:
        arrays, dtypes, metadata = read_run(path)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        yield "run", "BROKEN", f"{path}: cut short, or no safetensors file ({error!r})"
        return
    mask = expected["attention_mask"] == 1
    for name in ("attention_mask", "input_ids"):
        verdict, detail = judge_ids(arrays.get(name), expected[name], mask)
        yield name, verdict, detail
        if verdict != "OK":
            return  # of other tokens everything differs
    for name in names:
        if name not in arrays:
            yield name, "MISSING", "the run has no such point"
            continue
        dtype = metadata.get("dtype", dtypes[name])
        if dtype not in tolerances:
            yield name, "DIFF", f"is of {dtype or 'whole numbers'}, but must be of {', '.join(tolerances)}"
            continue
        yield name, *judge_point(arrays[name], expected[name], mask, tolerances[dtype][name])


def judge_ids(actual: np.ndarray | None, expected: np.ndarray, mask: np.ndarray) -> tuple[str, str]:
    """Compare input_ids or attention_mask [B, T]; what stands at padding does not matter, the mask itself does."""
    if actual is None:
        return "MISSING", "the run does not have it"
    if actual.shape != expected.shape:
        return "SHAPE", f"{actual.shape}, but must be {expected.shape}"
    wrong = np.argwhere((actual != expected) & (mask | (expected <= 1) ...
    if len(wrong):
        text, token = wrong[0]
        return "DIFF", f"text {text}, token {token}: {actual[text, token]}, but must be {expected[text, token]}"
    return "OK", ""


def judge_point(actual: np.ndarray, expected: np.ndarray, mask: np.ndarray, tolerance: dict[str, float]) -> tuple[str, str]:
    """Compare a point [B, T, n], [B, N, T, T] or [B, D] over the real tokens."""
    if actual.shape != expected.shape:
        return "SHAPE", f"{actual.shape}, but must be {expected.shape}"
    if actual.ndim == 4:  # [B, N, T, T] -> [pairs of real tokens, N]
        pairs = mask[:, :, None] & mask[:, None, :]
        actual, expected = (array.transpose(0, 2, 3, 1)[pairs] for array in (actual, expected))
    elif actual.ndim == 3:  # [B, T, n] -> [real tokens, n]
        actual, expected = actual[mask], expected[mask]
    if not np.isfinite(actual).all():
        return "NAN", "holds NaN or infinity"
    error = np.abs(actual.astype(np.float64) - expected)
    largest, rms = error.max(), np.sqrt(np.mean(error * error))
    ratio = max(largest / tolerance["max"], rms / tolerance["rms"])
    return "OK" if ratio <= 1 else "DIFF", f"error {largest:.1e}, {ratio:.2g} of what rounding may cost"


def read_run(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, str]]:
    """Read a safetensors file: 8 bytes of header length, the header in JSON, the numbers.

    Returns:
        Name → array, name → what it is made of, and the metadata.
    """
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    metadata = header.pop("__metadata__", {})
    arrays, dtypes = {}, {}
    for name, entry in header.items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        array = np.frombuffer(content[begin:end], (FLOATS | WHOLE)[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        arrays[name], dtypes[name] = array, NAMES.get(entry["dtype"], "")
    return arrays, dtypes, metadata


if __name__ == "__main__":
    sys.exit(main())
