"""A run: the named arrays of one forward pass of any implementation, and the file that holds them.

The format is safetensors, so that a program in any language can write it. docs/port/judge.md describes it.
"""

import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from e5ref.files.lines import foreign_file
from e5ref.files.tensors import map_tensors, safetensors_header
from e5ref.files.whole import written_whole
from e5ref.operations import Ids
from e5ref.parity.runs import check
from e5ref.parity.runs.check import FLOATS, FORMAT, WHOLE

# NumPy's name of a dtype → safetensors'.
STORED = {np.dtype(kind).name: name for name, kind in (FLOATS | WHOLE).items() if name != "BF16"}

# Point of a layer → the points that it is computed from; "input" is the output of the layer before. They stand
# in the forward pass's order, which a safetensors file does not keep.
FEEDS = {
    "query": ("input",),
    "key": ("input",),
    "value": ("input",),
    "attention_probabilities": ("query", "key"),
    "context": ("attention_probabilities", "value"),
    "attention_output": ("context", "input"),
    "feed_forward_activation": ("attention_output",),
    "output": ("feed_forward_activation", "attention_output"),
}

LAYER_POINTS = tuple(FEEDS)


class RunError(ValueError):
    """A run cannot be judged; the message says what is wrong with it and what to do.

    Attributes:
        verdict: the verdict on a batch of a golden kit whose run this is.
    """

    verdict = "UNREADABLE"


class MissingRunError(RunError):
    """The file does not exist."""

    verdict = "MISSING"


class Run(check.Run):
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

    reader, refusal = "this e5ref", RunError

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
        return {name: self.arrays[name] for name in self.in_order(self.arrays.keys() - {"input_ids", "attention_mask"})}

    @cached_property
    def modules(self) -> dict[str, dict[str, Any]]:
        """Of a tree of modules: point → "kind" of its module and the points it is made "from", in order; else empty."""
        return self.entry("modules") or {}

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Put points in the order in which they are computed; unknown names come last."""
        place = {name: index for index, name in enumerate(self.modules)}
        return sorted(names, key=lambda name: (place.get(name, len(place)), forward_order(name)))

    @cached_property
    def provenance(self) -> dict[str, str]:
        """Where the values come from: model, hashes, versions; empty if the run does not say."""
        return self.entry("provenance") or {}

    @cached_property
    def rounding(self) -> dict[str, dict[str, dict[str, float]]]:
        """What rounding costs: dtype → point → "max" and "rms" → error; empty if it was not measured."""
        return self.entry("rounding") or {}


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


def read_run(path: str | Path) -> Run:
    """Read a run from a safetensors file. Its arrays are read-only views, so little of it is in memory at a time.

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
