"""Judge a port by this golden kit: `python check.py RUNS`. It needs only NumPy and judges as `e5ref check` does.

RUNS is a folder with a run for each batch of the kit, under the same name; README.md says what is in a run. Exit code
0: everything is within rounding. 1: something is not, is missing, or cannot be read. 2: nothing could be judged.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

# What a run is, and how the ids of two differ, `e5ref check` takes from here.
FORMAT = "e5ref-run 1"
IDS = ("input_ids", "attention_mask")

# safetensors' name of a dtype → NumPy's. NumPy has no bfloat16: its two bytes are the upper half of a float32.
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
WHOLE = {"BOOL": "?"} | {f"{kind.upper()}{8 * size}": f"<{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)}

# The dtypes that a model can compute in, the most exact first.
DTYPES = ("float64", "float32", "float16", "bfloat16")

Verdict = tuple[str, str, str]  # what was judged, the verdict, a detail
Tolerances = dict[str, dict[str, dict[str, float]]]  # dtype → point → "max" and "rms"


def read_safetensors(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
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


def matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Return the names that fit a pattern, such as "normalized" or "layers.*.output", in their order."""
    patterns = list(patterns)
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def are_strings(value: Any) -> bool:
    """Tell whether this is a list of strings."""
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def are_costs(value: Any) -> bool:
    """Tell whether this is an object of dtype → point → "max" and "rms", both numbers."""
    return isinstance(value, dict) and all(
        isinstance(points, dict)
        and all(
            isinstance(cost, dict) and all(isinstance(cost.get(key), int | float) for key in ("max", "rms"))
            for cost in points.values()
        )
        for points in value.values()
    )


# What the metadata may hold in JSON: name → what it must be, in words and as a test.
ENTRIES = {
    "texts": ("a list of strings", are_strings),
    "tokens": ("a list of lists of strings", lambda texts: isinstance(texts, list) and all(map(are_strings, texts))),
    "rounding": ("an object of dtype → point → max and rms", are_costs),
    "provenance": ("an object", lambda value: isinstance(value, dict)),
    "modules": ("an object of point → kind and from", lambda value: isinstance(value, dict)),
}


def flaws(run: "Run") -> Iterator[str]:
    """Yield what is wrong with a run. Stop at the first: later checks rely on it."""
    arrays, metadata = run.arrays, run.metadata
    if metadata.get("format", FORMAT) != FORMAT:
        yield f"has format {metadata['format']!r}, but {run.reader} reads {FORMAT!r}; record it again"
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
    if run.dtype not in DTYPES:
        yield f"says that it was computed in {run.dtype!r}, but dtype must be one of {', '.join(DTYPES)}"
    for name, (what, fits) in ENTRIES.items():
        if name in metadata and not fits(run.entry(name)):
            yield f"{name!r} in the metadata must be {what}, in JSON"
    for name, values in (("texts", run.texts), ("tokens", run.tokens)):
        if values is not None and len(values) != len(ids):
            yield f"has {len(values)} {name} in its metadata, but {len(ids)} texts in input_ids"


@dataclass(frozen=True, eq=False)
class Run:
    """A run as NumPy alone can read it. `e5ref.parity.Run` is one of these, and says what is in it.

    Raises:
        ValueError: it is none.
    """

    arrays: Mapping[str, NDArray[Any]]
    metadata: Mapping[str, str] = field(default_factory=dict)
    reader: ClassVar[str] = "this kit"
    refusal: ClassVar[type[ValueError]] = ValueError

    def __post_init__(self) -> None:
        """Check that this is a run. The judge checks shapes and values of the points."""
        if flaw := next(flaws(self), None):
            raise self.refusal(flaw)

    @cached_property
    def dtype(self) -> str:
        """The dtype that the model computed in; if the run does not say, the least exact dtype of the points."""
        stored = {array.dtype.name for array in self.arrays.values()}
        return self.metadata.get("dtype") or max(stored.intersection(DTYPES), key=DTYPES.index)

    @cached_property
    def texts(self) -> list[str] | None:
        """The texts as given to the tokenizer, prompt included; None if the run does not say."""
        return self.entry("texts")

    @cached_property
    def tokens(self) -> list[list[str]] | None:
        """The tokens of each text as strings; None if the run does not say."""
        return self.entry("tokens")

    @property
    def ids(self) -> list[list[int]]:
        """The ids of each text's real tokens, wherever its padding stands."""
        masked = zip(*(self.arrays[name] for name in IDS), strict=True)
        return [ids[mask == 1].tolist() for ids, mask in masked]

    def token(self, text: int, token: int) -> str | None:
        """Return the string of a real token of a text, if it is known."""
        strings = self.tokens[text] if self.tokens is not None else []
        return strings[token] if token < len(strings) else None

    def entry(self, name: str) -> Any:
        """Read an entry of the metadata, which must be JSON; None if it is not there, or is something else."""
        try:
            return json.loads(self.metadata.get(name, "null"))
        except (ValueError, TypeError, RecursionError):
            return None


def read_run(path: Path) -> Run:
    """Read a run.

    Raises:
        OSError: the file does not exist or cannot be read.
        ValueError: it does not hold a run.
    """
    arrays, metadata = read_safetensors(path)
    try:
        return Run(arrays, metadata)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def real_values(run: Run, name: str) -> NDArray[np.float64]:
    """Return the real tokens' values of a point, [B, D], [B, T, n] or [B, N, T, T], as a flat array."""
    array = run.arrays[name]
    parts = []
    for text, real in zip(array, run.arrays["attention_mask"] == 1, strict=True):
        parts.append(text if array.ndim == 2 else text[real] if array.ndim == 3 else text[:, real][:, :, real])
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes an ordinary one
        return np.concatenate([part.ravel() for part in parts]).astype(np.float64)


def difference_in_ids(run: Run, truth: Run) -> str:
    """Say how the ids of two runs differ, at the first text that does; "" if they do not. Padding does not count."""
    ours, theirs = run.ids, truth.ids
    if ours == theirs:
        return ""
    if len(ours) != len(theirs):
        return f"{len(ours)} texts instead of {len(theirs)}"
    if sorted(ours) == sorted(theirs):
        return "the same texts in a different order"
    text = next(text for text, ids in enumerate(ours) if ids != theirs[text])
    if run.texts and truth.texts and run.texts[text] != truth.texts[text]:
        said, expected = (
            repr(one if len(one) <= 60 else one[:59] + "…") for one in (run.texts[text], truth.texts[text])
        )
        return f"text {text} is {said} instead of {expected}"
    ids, right = ours[text], theirs[text]
    least = min(len(ids), len(right))
    # The last token is left out: it is [SEP] even if the text was cut.
    if len(ids) != len(right) and ids[: least - 1] == right[: least - 1]:
        return f"text {text} has {len(ids)} real tokens instead of {len(right)}: it is cut or masked differently"
    token = next(token for token in range(least) if ids[token] != right[token])
    strings = (one.token(text, token) for one in (run, truth))
    said, expected = ("" if string is None else f" ({string})" for string in strings)
    return f"text {text}, token {token} is {ids[token]}{said} instead of {right[token]}{expected}"


def judge(run: Run, truth: Run, names: list[str], tolerances: Tolerances) -> Iterator[Verdict]:
    """Yield the verdict on each named point, or one verdict on the ids if they are wrong."""
    if difference := difference_in_ids(run, truth):
        yield "input_ids", "DIFF", difference
        return
    for name in names:
        if name not in tolerances[run.dtype]:  # too much for this dtype when the kit was made
            continue
        if name not in run.arrays:
            yield name, "MISSING", ""
            continue
        shape, length = list(truth.arrays[name].shape), run.arrays["attention_mask"].shape[1]
        for axis in {3: (1,), 4: (2, 3)}.get(len(shape), ()):
            shape[axis] = length
        if list(run.arrays[name].shape) != shape:
            yield name, "SHAPE", f"{list(run.arrays[name].shape)}, but must be {shape}"
            continue
        values = real_values(run, name)
        if not np.isfinite(values).all():
            yield name, "NAN", ""
            continue
        error = np.abs(values - real_values(truth, name))
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
        names = matching(entry["points"], patterns)
        if not names:
            continue
        truth = read_run(kit / f"{batch}.safetensors")
        path = runs / f"{batch}.safetensors"
        try:
            run = read_run(path)
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
