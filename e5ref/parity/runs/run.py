"""A run: the named arrays of one forward pass of any implementation, and the file that holds them.

The format is safetensors, so that a program in any language can write it. docs/port/judge.md describes it.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
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

# The dtypes that a model can compute in, the most exact first.
DTYPES = ("float64", "float32", "float16", "bfloat16")

# safetensors' name of a dtype → NumPy's. NumPy has no bfloat16: its two bytes are the upper half of a float32.
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "uint16"}
WHOLE = {"BOOL": "bool"} | {
    f"{kind[0].upper()}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)
}
STORED = {dtype: name for name, dtype in (FLOATS | WHOLE).items() if name != "BF16"}

# The points of a layer in the forward pass's order. A safetensors file does not keep an order.
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
    """A run cannot be judged; the message says what is wrong with it and what to do.

    Attributes:
        verdict: the verdict on a batch of a golden kit whose run this is.
    """

    verdict = "UNREADABLE"


class MissingRunError(RunError):
    """The file does not exist."""

    verdict = "MISSING"


@dataclass(frozen=True, eq=False)
class Run:
    """What an implementation computed for some texts.

    Attributes:
        arrays: "input_ids" and "attention_mask" [B, T], whole numbers; then any of the points that
            `e5ref.numpy_model.embed` gives its tap, under the same names and in the same shapes. bfloat16 is held as
            float32 of the same values.
        metadata: "dtype", "texts", "tokens", "provenance" and "rounding", all optional: see docs/port/judge.md.

    Raises:
        RunError: the ids or the mask are missing or malformed, there is no point, a point does not hold floats, or the
            metadata cannot be read.
    """

    arrays: Mapping[str, NDArray[Any]]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that this is a run. The judge checks shapes and values of the points."""
        for name in ("input_ids", "attention_mask"):
            if name not in self.arrays:
                _refuse(f"has no {name!r}, so nobody knows what was computed; record it too")
        ids, mask = self.input_ids, self.attention_mask
        if ids.dtype.kind not in "iu" or mask.dtype.kind not in "biu" or ids.ndim != 2 or ids.shape != mask.shape:
            _refuse(
                f"input_ids and attention_mask must be whole numbers [B, T], but are {ids.dtype} {list(ids.shape)} and "
                f"{mask.dtype} {list(mask.shape)}"
            )
        if not ids.size or not np.isin(mask, (0, 1)).all() or not mask.any(axis=1).all():
            _refuse("attention_mask must be 1 for real tokens and 0 for padding, and each text must have a real token")
        if not self.points:
            _refuse("holds only ids; record at least one point, such as 'normalized'")
        for name, array in self.points.items():
            if str(array.dtype) not in DTYPES:
                _refuse(f"{name!r} is {array.dtype}, but must be one of {', '.join(DTYPES)}")
        if self.dtype not in DTYPES:
            _refuse(f"says that it was computed in {self.dtype!r}, but dtype must be one of {', '.join(DTYPES)}")
        for name, values in (("texts", self.texts), ("tokens", self.tokens)):
            if values is not None and len(values) != len(ids):
                _refuse(f"has {len(values)} {name} in its metadata, but {len(ids)} texts in input_ids")
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
        """All arrays but ids and mask, in the forward pass's order; unknown names last."""
        names = self.arrays.keys() - {"input_ids", "attention_mask"}
        return {name: self.arrays[name] for name in sorted(names, key=forward_order)}

    @cached_property
    def dtype(self) -> str:
        """The dtype that the model computed in; if the run does not say, the least exact dtype of the points."""
        stored = (str(array.dtype) for array in self.points.values())
        return self.metadata.get("dtype") or max(stored, key=DTYPES.index, default="")

    @cached_property
    def texts(self) -> list[str] | None:
        """The texts as given to the tokenizer, prompt included; None if the run does not say."""
        return self._read("texts", "a list of strings", _is_list_of_str)

    @cached_property
    def tokens(self) -> list[list[str]] | None:
        """The tokens of each text as strings; None if the run does not say."""
        return self._read(
            "tokens",
            "a list of lists of strings",
            lambda texts: isinstance(texts, list) and all(map(_is_list_of_str, texts)),
        )

    @cached_property
    def provenance(self) -> dict[str, str]:
        """Where the values come from: model, hashes, versions; empty if the run does not say."""
        return self._read("provenance", "an object", lambda value: isinstance(value, dict)) or {}

    @cached_property
    def rounding(self) -> dict[str, dict[str, dict[str, float]]]:
        """What rounding costs: dtype → point → "max" and "rms" → error; empty if it was not measured."""
        return self._read("rounding", "an object of dtype → point → max and rms", _is_rounding) or {}

    def token(self, text: int, token: int) -> str | None:
        """Return the string of a real token of a text, if it is known."""
        strings = self.tokens[text] if self.tokens is not None else []
        return strings[token] if token < len(strings) else None

    def _read(self, name: str, what: str, fits: Callable[[Any], bool]) -> Any:
        """Read an entry of the metadata, which must be JSON."""
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
    """Return a sort key that puts names in the forward pass's order, unknown ones last."""
    before = ("input_ids", "attention_mask", "embeddings")
    after = ("last_hidden_state", "pooled", "dense", "normalized")
    layer = re.fullmatch(r"layers\.(\d+)\.(\w+)", name)
    if layer and layer[2] in LAYER_POINTS:
        return len(before), int(layer[1]), LAYER_POINTS.index(layer[2])
    if name in before:
        return (before.index(name),)
    return (len(before) + 1 + (after.index(name) if name in after else len(after)), name)


def matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Return the names that fit a pattern, such as "normalized" or "layers.*.output", in their order."""
    patterns = list(patterns)
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def read_run(path: str | Path) -> Run:
    """Read a run.

    Args:
        path: a safetensors file.

    Returns:
        The run. Its arrays are read-only views of the file, so little of it is in memory at a time.

    Raises:
        MissingRunError: the file does not exist.
        RunError: the file is cut short, is damaged, or does not hold a run.
    """
    path = Path(path)
    if not path.exists():
        raise MissingRunError(f"{path}: no such file")
    try:
        tensors, metadata = map_tensors(path)
    except ValueError as error:
        reason = foreign_file(path) or f"cannot be read as a safetensors file ({error}); record it again"
        raise RunError(f"{path}: {reason}") from None
    written = metadata.get("format", FORMAT)
    if written != FORMAT:
        raise RunError(f"{path}: has format {written!r}, but this e5ref reads {FORMAT!r}; record it again")
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
    """Write a run. The same run gives the same bytes, which safetensors' own writer does not promise.

    Args:
        run: the run to write.
        path: a file whose name ends in .safetensors. An existing file is replaced once everything is written.

    Raises:
        OSError: the file cannot be written.
    """
    with written_whole(Path(path).resolve()) as file:
        write_run_content(run, file)


def write_run_content(run: Run, file: BinaryIO) -> None:
    """Write the content of a run's file to an open file."""
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
