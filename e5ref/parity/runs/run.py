"""A run: the named arrays of one forward pass of any implementation, and the file that holds them.

The file is one of safetensors, so that a program in any language can write it; docs/judge.md describes it.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from e5ref.files.lines import foreign_file
from e5ref.files.tensors import map_tensors, safetensors_header
from e5ref.files.whole import written_whole
from e5ref.operations import Ids

FORMAT = "e5ref-run 1"

# What a model can have computed in, the most exact first.
DTYPES = ("float64", "float32", "float16", "bfloat16")

# How safetensors names what a tensor is made of, and how NumPy reads it. NumPy has no bfloat16: its two bytes are the
# upper half of a float32.
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "uint16"}
WHOLE = {"BOOL": "bool"} | {
    f"{kind[0].upper()}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)
}
STORED = {dtype: name for name, dtype in (FLOATS | WHOLE).items() if name != "BF16"}

# The forward pass's order, in which a safetensors file does not keep its names.
LAYER_POINTS = (
    "query",
    "key",
    "value",
    "attention_probabilities",
    "context",
    "attention_output",
    "feed_forward_activation",
    "output",
)


class RunError(ValueError):
    """Something is no run that can be judged; the message says what is wrong with it and what to do.

    Attributes:
        verdict: what a batch of a golden kit gets that has no other run.
    """

    verdict = "UNREADABLE"


class MissingRunError(RunError):
    """There is no such file."""

    verdict = "MISSING"


@dataclass(frozen=True, eq=False)
class Run:
    """What an implementation computed for some texts.

    Attributes:
        arrays: "input_ids" and "attention_mask" [B, T], whole numbers; then any of the names that
            `e5ref.numpy_model.embed` gives its tap, in the shapes given there. bfloat16 is held as float32 of the same
            values.
        metadata: "dtype", "texts", "tokens", "provenance" and "rounding", all optional: see docs/judge.md.

    Raises:
        RunError: ids or mask are missing or are not those of texts, there is no point, a point is not of floats, or
            metadata cannot be read.
    """

    arrays: Mapping[str, NDArray[Any]]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that this is a run at all; shapes and values of the points are for the judge."""
        for name in ("input_ids", "attention_mask"):
            if name not in self.arrays:
                _refuse(f"has no {name!r}, without which nobody knows what was computed; record it too")
        ids, mask = self.input_ids, self.attention_mask
        if ids.dtype.kind not in "iu" or mask.dtype.kind not in "biu" or ids.ndim != 2 or ids.shape != mask.shape:
            _refuse(
                f"input_ids and attention_mask must be whole numbers [B, T], but are {ids.dtype} {list(ids.shape)} and "
                f"{mask.dtype} {list(mask.shape)}"
            )
        if not ids.size or not np.isin(mask, (0, 1)).all() or not mask.any(axis=1).all():
            _refuse("attention_mask must have 1 for real tokens and 0 for padding, and each text a real token")
        if not self.points:
            _refuse("holds ids alone; record at least one point, such as 'normalized'")
        for name, array in self.points.items():
            if str(array.dtype) not in DTYPES:
                _refuse(f"{name!r} is of {array.dtype}, but must be of {', '.join(DTYPES)}")
        if self.dtype not in DTYPES:
            _refuse(f"says that it was computed in {self.dtype!r}, but dtype must be one of {', '.join(DTYPES)}")
        for name, values in (("texts", self.texts), ("tokens", self.tokens)):
            if values is not None and len(values) != len(ids):
                _refuse(f"has {len(values)} {name} in its metadata for {len(ids)} rows of input_ids")
        _ = self.rounding, self.provenance

    @property
    def input_ids(self) -> Ids:
        """Token ids, [B, T]."""
        return self.arrays["input_ids"]

    @property
    def attention_mask(self) -> Ids:
        """1 for a real token and 0 for padding, [B, T]."""
        return self.arrays["attention_mask"]

    @cached_property
    def points(self) -> dict[str, NDArray[Any]]:
        """The arrays but for ids and mask, in the forward pass's order; unknown names last."""
        names = self.arrays.keys() - {"input_ids", "attention_mask"}
        return {name: self.arrays[name] for name in sorted(names, key=forward_order)}

    @cached_property
    def dtype(self) -> str:
        """What the model computed in; if that is not said, the least exact dtype of the points."""
        own = (str(array.dtype) for array in self.points.values())
        return self.metadata.get("dtype") or max(own, key=DTYPES.index, default="")

    @cached_property
    def texts(self) -> list[str] | None:
        """The texts as given to the tokenizer, prompt included; None if that is not said."""
        return self._read("texts", "a list of strings", _is_list_of_str)

    @cached_property
    def tokens(self) -> list[list[str]] | None:
        """The tokens of each text as strings; None if that is not said."""
        return self._read(
            "tokens",
            "a list of lists of strings",
            lambda rows: isinstance(rows, list) and all(map(_is_list_of_str, rows)),
        )

    @cached_property
    def provenance(self) -> dict[str, str]:
        """Where the numbers come from: model, hashes, versions; empty if that is not said."""
        return self._read("provenance", "an object", lambda value: isinstance(value, dict)) or {}

    @cached_property
    def rounding(self) -> dict[str, dict[str, dict[str, float]]]:
        """What rounding costs: dtype → point → "max" and "rms" → error; empty if that was not measured."""
        return self._read("rounding", "an object of dtype → point → max and rms", _is_rounding) or {}

    def token(self, text: int, token: int) -> str | None:
        """Return the string of a real token of a text, if it is known."""
        row = self.tokens[text] if self.tokens is not None else []
        return row[token] if token < len(row) else None

    def _read(self, name: str, what: str, fits: Callable[[Any], bool]) -> Any:
        """Read an entry of the metadata that is JSON."""
        if name not in self.metadata:
            return None
        try:
            value = json.loads(self.metadata[name])
        except (ValueError, TypeError, RecursionError):
            value = None
        if not fits(value):
            _refuse(f"{name!r} in the metadata must be {what}, in JSON")
        return value


def forward_order(name: str) -> tuple[Any, ...]:
    """Return what to sort names by to have them in the forward pass's order, unknown ones last."""
    first = ("input_ids", "attention_mask", "embeddings")
    last = ("last_hidden_state", "pooled", "normalized")
    layer = re.fullmatch(r"layers\.(\d+)\.(\w+)", name)
    if layer and layer[2] in LAYER_POINTS:
        return len(first), int(layer[1]), LAYER_POINTS.index(layer[2])
    if name in first:
        return (first.index(name),)
    return (len(first) + 1 + (last.index(name) if name in last else len(last)), name)


def read_run(path: str | Path) -> Run:
    """Read a run.

    Args:
        path: a safetensors file.

    Returns:
        The run; its arrays are read-only views of the file, so that little of it need be in memory at a time.

    Raises:
        MissingRunError: there is no such file.
        RunError: the file is cut short or damaged, or holds something else than a run.
    """
    path = Path(path)
    if not path.exists():
        raise MissingRunError(f"{path}: no such file")
    try:
        tensors, metadata = map_tensors(path)
    except ValueError as error:
        reason = foreign_file(path) or f"cannot be read as a safetensors file ({error}); record it anew"
        raise RunError(f"{path}: {reason}") from None
    written = metadata.get("format", FORMAT)
    if written != FORMAT:
        raise RunError(f"{path}: is of format {written!r}, but this e5ref reads {FORMAT!r}; record it anew")
    arrays, dtypes = {}, []
    for name, (stored, shape, content) in tensors.items():
        if stored not in FLOATS | WHOLE:
            raise RunError(f"{path}: {name!r} is stored as {stored}, but a run holds {', '.join(FLOATS | WHOLE)}")
        array = np.require(content.view((FLOATS | WHOLE)[stored]).reshape(shape), requirements="A")
        if stored == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
            dtypes.append("bfloat16")
        arrays[name] = array
    if dtypes and "dtype" not in metadata:
        metadata = metadata | {"dtype": dtypes[0]}
    try:
        return Run(arrays, metadata)
    except RunError as error:
        raise RunError(f"{path}: {error}") from None


def write_run(run: Run, path: str | Path) -> None:
    """Write a run; the same run gives the same bytes, which safetensors' own writer does not promise.

    Args:
        run: what to write, array by array.
        path: a file whose name ends in .safetensors; one that is there is replaced once all is written.

    Raises:
        OSError: the file cannot be written.
    """
    with written_whole(Path(path).resolve()) as file:
        write_run_content(run, file)


def write_run_content(run: Run, file: BinaryIO) -> None:
    """Write what a run's file holds to a file that is open."""
    tensors = {name: (STORED[str(array.dtype)], array.shape, array.nbytes) for name, array in run.arrays.items()}
    file.write(safetensors_header(tensors, {"format": FORMAT, **run.metadata}))
    for array in run.arrays.values():
        file.write(np.ascontiguousarray(array).data)


def _is_list_of_str(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_rounding(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(points, dict)
        and all(
            isinstance(cost, dict) and all(isinstance(cost.get(key), int | float) for key in ("max", "rms"))
            for cost in points.values()
        )
        for points in value.values()
    )


def _refuse(reason: str) -> NoReturn:
    raise RunError(reason)
