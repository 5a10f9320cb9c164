"""Judge a port by this golden kit: `python check.py RUNS`. Needs NumPy alone; the verdict is that of `e5ref check`.

RUNS is a folder with a run for each batch of the kit, named as there; README.md says what is in a run. Exit code 0: all
is within rounding. 1: something is not, is missing, or cannot be read. 2: nothing could be judged.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

# What safetensors calls floats, the most exact first, and whole numbers; and how NumPy reads them. NumPy has no
# bfloat16: its two bytes are the upper half of a float32.
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
WHOLE = {"BOOL": "?"} | {f"{kind.upper()}{8 * size}": f"<{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)}
STORED = WHOLE | {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}

Verdict = tuple[str, str, str]  # of what, the verdict, a detail
Tolerances = dict[str, dict[str, dict[str, float]]]  # dtype → point → "max" and "rms"


class Run:
    """A run's file.

    Attributes:
        arrays: name → array; bfloat16 as float32.
        dtype: what was computed in: as the file says, else the least exact dtype of a point.
        mask: where there are real tokens, [B, T].
    """

    def __init__(self, path: Path) -> None:
        """Read a safetensors file: 8 bytes of header length, the header in JSON, the numbers.

        Raises:
            ValueError: the file is cut short, or no run.
        """
        content = path.read_bytes()
        try:
            start = 8 + int.from_bytes(content[:8], "little")
            header = json.loads(content[8:start])
            metadata = header.pop("__metadata__", {})
            self.arrays = {}
            for name, entry in header.items():
                begin, end = (start + offset for offset in entry["data_offsets"])
                array = np.frombuffer(content[begin:end], STORED[entry["dtype"]]).reshape(entry["shape"])
                self.arrays[name] = (array.astype("u4") << 16).view("f4") if entry["dtype"] == "BF16" else array
            ids, mask = self.arrays["input_ids"], self.arrays["attention_mask"]
            stored = {name: entry["dtype"] for name, entry in header.items()}
            whole = [stored.pop(name) in WHOLE for name in ("input_ids", "attention_mask")]
            lists = [json.loads(metadata[name]) for name in ("texts", "tokens") if name in metadata]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path.name}: cut short, or no run in a safetensors file ({error!r})") from None
        if not all(whole) or not all(kind in FLOATS for kind in stored.values()):
            raise ValueError(f"{path.name}: ids and mask must be of whole numbers, and all else of floats")
        least = max(stored.values(), key=list(FLOATS).index, default="")
        self.dtype: str = metadata.get("dtype") or FLOATS.get(least, "")
        self.mask = mask == 1
        if self.dtype not in FLOATS.values() or metadata.get("format", "e5ref-run 1") != "e5ref-run 1":
            raise ValueError(f"{path.name}: dtype or format in the metadata is none that this kit knows")
        if (
            mask.ndim != 2
            or mask.shape != ids.shape
            or not np.isin(mask, (0, 1)).all()
            or any(len(values) != len(ids) for values in lists)
        ):
            raise ValueError(f"{path.name}: input_ids, attention_mask, texts and tokens are not of the same texts")

    @property
    def ids(self) -> list[list[int]]:
        """The ids of each text's real tokens; how far and on which side texts are padded does not matter."""
        return [row[real].tolist() for row, real in zip(self.arrays["input_ids"], self.mask, strict=True)]

    def values(self, name: str) -> np.ndarray:
        """All numbers of a point, [B, D], [B, T, n] or [B, N, T, T], that belong to real tokens, in float64."""
        array = self.arrays[name]
        parts = []
        for text, real in zip(array, self.mask, strict=True):
            parts.append(text if array.ndim == 2 else text[real] if array.ndim == 3 else text[:, real][:, :, real])
        return np.concatenate([part.ravel() for part in parts]).astype(np.float64)


def judge(run: Run, truth: Run, names: list[str], tolerances: Tolerances) -> Iterator[Verdict]:
    """Yield the verdict of a run's ids, and if those are right, of each named point."""
    if len(run.ids) != len(truth.ids):
        yield "input_ids", "DIFF", f"{len(run.ids)} texts, but must be {len(truth.ids)}"
        return
    if run.ids != truth.ids:
        text = next(text for text, ids in enumerate(run.ids) if ids != truth.ids[text])
        yield "input_ids", "DIFF", f"the ids of text {text} are others; nothing else is compared"
        return
    for name in names:
        if name not in run.arrays:
            yield name, "MISSING", ""
            continue
        shape, length = list(truth.arrays[name].shape), run.mask.shape[1]
        for axis in {3: (1,), 4: (2, 3)}.get(len(shape), ()):
            shape[axis] = length
        if list(run.arrays[name].shape) != shape:
            yield name, "SHAPE", f"{list(run.arrays[name].shape)}, but must be {shape}"
            continue
        values = run.values(name)
        if not np.isfinite(values).all():
            yield name, "NAN", ""
            continue
        error = np.abs(values - truth.values(name))
        allowed = tolerances[run.dtype][name]
        ratio = max(error.max() / allowed["max"], np.sqrt(np.mean(error**2)) / allowed["rms"])
        yield name, "OK" if ratio <= 1 else "DIFF", f"error {error.max():.1e}, {ratio:.2g} of what may pass"


def main() -> int:
    """Judge every batch, print a line for each point, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, metavar="RUNS")
    parser.add_argument("--only", metavar="NAME,…", default="*", help="judge these points alone, such as normalized")
    arguments = parser.parse_args()
    folder, patterns = Path(__file__).parent, arguments.only.split(",")
    kit = json.loads((folder / "kit.json").read_text(encoding="utf-8"))
    lines: list[Verdict] = []
    for batch, entry in kit["batches"].items():
        names = [name for name in entry["points"] if any(fnmatchcase(name, pattern) for pattern in patterns)]
        file = f"{batch}.safetensors"
        try:
            found = judge(Run(arguments.runs / file), Run(folder / file), names, entry["tolerances"]) if names else ()
            lines += [(f"{batch}: {name}", verdict, detail) for name, verdict, detail in found]
        except FileNotFoundError:
            lines.append((batch, "MISSING", f"there is no {arguments.runs / file}"))
        except ValueError as error:
            lines.append((batch, "BROKEN", str(error)))
    width = max((len(name) for name, _, _ in lines), default=0)
    for name, verdict, detail in lines:
        print(f"{f'[{verdict}]':10}{name:{width}}  {detail}")
    failed = sum(verdict != "OK" for _, verdict, _ in lines)
    print(f"FAILED: {failed} of {len(lines)}" if failed else f"PASSED: {len(lines)}")
    return 1 if failed else 0 if lines else 2


if __name__ == "__main__":
    sys.exit(main())
