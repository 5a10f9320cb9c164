"""Judge a port by this golden kit: `python check.py RUNS`. It needs only NumPy and judges as `e5ref check` does.

RUNS is a folder with a run for each batch of the kit, under the same name; README.md says what is in a run. Exit code
0: everything is within rounding. 1: something is not, is missing, or cannot be read. 2: nothing could be judged.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

FORMAT = "e5ref-run 1"
IDS = ("input_ids", "attention_mask")

# safetensors' name of a dtype → NumPy's. NumPy has no bfloat16: its two bytes are the upper half of a float32.
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
WHOLE = {"BOOL": "?"} | {f"{kind.upper()}{8 * size}": f"<{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)}

# The dtypes that a model can compute in, the most exact first.
DTYPES = ("float64", "float32", "float16", "bfloat16")

Verdict = tuple[str, str, str]  # what was judged, the verdict, a detail
Tolerances = dict[str, dict[str, dict[str, float]]]  # dtype → point → "max" and "rms"


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read a safetensors file: 8 bytes with the length of the header, the header in JSON, the values.

    Returns:
        Name → array, bfloat16 as float32; and the metadata, whose "dtype" then says bfloat16.

    Raises:
        OSError: the file does not exist or cannot be read.
        ValueError: the file is cut short, has extra bytes at its end, or is not in the safetensors format.
    """
    content = path.read_bytes()
    try:
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        metadata, arrays = dict(header.pop("__metadata__", {})), {}
        for name, entry in header.items():
            begin, end = (start + offset for offset in entry["data_offsets"])
            array = np.frombuffer(content[begin:end], (FLOATS | WHOLE)[entry["dtype"]]).reshape(entry["shape"])
            if entry["dtype"] == "BF16":
                array = (array.astype("u4") << 16).view("f4")
                metadata = {"dtype": "bfloat16"} | metadata
            arrays[name] = array
        if len(content) != start + max((entry["data_offsets"][1] for entry in header.values()), default=0):
            raise ValueError("it does not end where its last array does")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: cannot be read as a safetensors file ({error!r}); write it again") from None
    return arrays, metadata


def flaws(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> Iterator[str]:
    """Yield what is wrong with a run, in the words of `e5ref check`. Stop at the first: later checks rely on it."""
    if metadata.get("format", FORMAT) != FORMAT:
        yield f"has format {metadata['format']!r}, but this kit reads {FORMAT!r}; record it again"
    for name in IDS:
        if name not in arrays:
            yield f"has no {name!r}, so nobody knows what was computed; record it too"
    ids, mask = (arrays[name] for name in IDS)
    if ids.dtype.kind not in "iu" or mask.dtype.kind not in "biu" or ids.ndim != 2 or ids.shape != mask.shape:
        yield (
            f"input_ids and attention_mask must be whole numbers [B, T], but are {ids.dtype} {list(ids.shape)} and "
            f"{mask.dtype} {list(mask.shape)}"
        )
    if not ids.size or not np.isin(mask, (0, 1)).all() or not mask.any(axis=1).all():
        yield "attention_mask must be 1 for real tokens and 0 for padding, and each text must have a real token"
    points = {name: array.dtype.name for name, array in arrays.items() if name not in IDS}
    if not points:
        yield "holds only ids; record at least one point, such as 'normalized'"
    for name, dtype in points.items():
        if dtype not in DTYPES:
            yield f"{name!r} is {dtype}, but must be one of {', '.join(DTYPES)}"
    if metadata.get("dtype", "float32") not in DTYPES:
        yield f"says that it was computed in {metadata['dtype']!r}, but dtype must be one of {', '.join(DTYPES)}"
    for name, what in (("texts", "a list of strings"), ("tokens", "a list of lists of strings")):
        try:
            values = json.loads(metadata.get(name, "null"))
        except (ValueError, TypeError):
            values = 0
        if name in metadata and not isinstance(values, list):
            yield f"{name!r} in the metadata must be {what}, in JSON"
        if name in metadata and len(values) != len(ids):
            yield f"has {len(values)} {name} in its metadata, but {len(ids)} texts in input_ids"


class Run:
    """A run, the same thing as `e5ref.parity.Run`, but read with NumPy alone.

    Attributes:
        arrays: name → array; bfloat16 as float32.
        dtype: the dtype that was computed in; if the file does not say, the least exact dtype of a point.
        mask: True for real tokens, [B, T].
        tokens: the tokens of each text as strings; None if the file does not say.
    """

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            OSError: the file does not exist or cannot be read.
            ValueError: it does not hold a run.
        """
        self.arrays, metadata = read_safetensors(path)
        if flaw := next(flaws(self.arrays, metadata), None):
            raise ValueError(f"{path}: {flaw}")
        stored = {array.dtype.name for array in self.arrays.values()}
        self.dtype: str = metadata.get("dtype") or max(stored.intersection(DTYPES), key=DTYPES.index)
        self.mask = self.arrays["attention_mask"] == 1
        self.tokens: list[list[str]] | None = json.loads(metadata.get("tokens", "null"))

    @property
    def ids(self) -> list[list[int]]:
        """The ids of each text's real tokens, wherever its padding stands."""
        return [text[real].tolist() for text, real in zip(self.arrays["input_ids"], self.mask, strict=True)]

    def values(self, name: str) -> np.ndarray:
        """The real tokens' values of a point, [B, D], [B, T, n] or [B, N, T, T], as a flat array in float64."""
        array = self.arrays[name]
        parts = []
        for text, real in zip(array, self.mask, strict=True):
            parts.append(text if array.ndim == 2 else text[real] if array.ndim == 3 else text[:, real][:, :, real])
        with np.errstate(invalid="ignore"):  # a signalling NaN becomes an ordinary one
            return np.concatenate([part.ravel() for part in parts]).astype(np.float64)


def difference_in_ids(run: Run, truth: Run) -> str:
    """Say where the ids of two runs differ first, in the words of `e5ref check`; "" if they do not."""
    ours, theirs = run.ids, truth.ids
    if ours == theirs:
        return ""
    if len(ours) != len(theirs):
        return f"{len(ours)} texts instead of {len(theirs)}"
    if sorted(ours) == sorted(theirs):
        return "the same texts in a different order"
    text = next(text for text, ids in enumerate(ours) if ids != theirs[text])
    ids, right = ours[text], theirs[text]
    least = min(len(ids), len(right))
    # The last token is left out: it is [SEP] even if the text was cut.
    if len(ids) != len(right) and ids[: least - 1] == right[: least - 1]:
        return f"text {text} has {len(ids)} real tokens instead of {len(right)}: it is cut or masked differently"
    token = next(token for token in range(least) if ids[token] != right[token])
    string = f" ({truth.tokens[text][token]})" if truth.tokens else ""
    return f"text {text}, token {token} is {ids[token]} instead of {right[token]}{string}"


def judge(run: Run, truth: Run, names: list[str], tolerances: Tolerances) -> Iterator[Verdict]:
    """Yield the verdict on each named point, or one verdict on the ids if they are wrong."""
    if difference := difference_in_ids(run, truth):
        yield "input_ids", "DIFF", difference
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
        yield name, "OK" if ratio <= 1 else "DIFF", f"error {error.max():.1e}, {ratio:.2g} of what passes"


def verdicts(kit: Path, runs: Path, patterns: list[str]) -> Iterator[Verdict]:
    """Judge every batch that has points which fit these patterns.

    Raises:
        OSError: a file of the kit is missing.
        ValueError: the kit is damaged.
    """
    try:
        batches = json.loads((kit / "kit.json").read_text(encoding="utf-8"))["batches"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{kit / 'kit.json'}: is cut short, or does not belong to a golden kit ({error!r})") from None
    for batch, entry in batches:
        names = [name for name in entry["points"] if any(fnmatchcase(name, pattern) for pattern in patterns)]
        if not names:
            continue
        truth = Run(kit / f"{batch}.safetensors")
        path = runs / f"{batch}.safetensors"
        try:
            run = Run(path)
        except FileNotFoundError:
            yield batch, "MISSING", f"{path}: no such file"
        except (OSError, ValueError) as error:
            yield batch, "UNREADABLE", str(error)
        else:
            for name, verdict, detail in judge(run, truth, names, entry["tolerances"]):
                yield f"{batch}: {name}", verdict, detail


def main() -> int:
    """Judge every batch, print a line per point, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, metavar="RUNS")
    parser.add_argument("--only", metavar="NAME,…", default="*", help="judge only these points, such as normalized")
    arguments = parser.parse_args()
    if not arguments.runs.is_dir():
        parser.error(f"{arguments.runs}: no such folder")
    try:
        lines = list(verdicts(Path(__file__).parent, arguments.runs, arguments.only.split(",")))
    except (OSError, ValueError) as error:  # the kit's own: an error in a run is a verdict
        parser.error(str(error))
    if not lines:
        parser.error(f"no point of the kit is one of {arguments.only}")
    width = max(len(name) for name, _, _ in lines)
    for name, verdict, detail in lines:
        print(f"{f'[{verdict}]':13}{name:{width}}  {detail}")
    failed = sum(verdict != "OK" for _, verdict, _ in lines)
    print(f"FAILED: {failed} of {len(lines)}" if failed else f"PASSED: {len(lines)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
