"""safetensors files: mapped into memory, and their headers written."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open


class StoredTensor(NamedTuple):
    """A tensor of a safetensors file."""

    dtype: str  # as safetensors names it: "F32", "BF16", …
    shape: tuple[int, ...]
    content: NDArray[np.uint8]  # its bytes, a read-only view of the file


def safetensors_header(
    tensors: Mapping[str, tuple[str, Sequence[int], int]], metadata: Mapping[str, str], *, least: int = 0
) -> bytes:
    """Make what a safetensors file begins with: the length of the JSON in 8 bytes, then the JSON.

    `tensors` has name → dtype as safetensors names it, shape, and bytes; in the order in which their numbers follow.
    Spaces fill the JSON up to `least` bytes.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    stop = 0
    for name, (dtype, shape, size) in tensors.items():
        start, stop = stop, stop + size
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(least)
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    return len(text).to_bytes(8, "little") + text


def map_tensors(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Map a safetensors file into memory: its tensors by name, of which nothing is read yet, and its metadata.

    Raises:
        ValueError: the file is missing, cut short or damaged, or no safetensors file; the message is the reason alone.
    """
    try:
        with safe_open(path, framework="numpy"):
            pass  # safetensors itself checks the header, and that it accounts for every byte of the file
        content = np.asarray(np.memmap(path, np.uint8, mode="r"))
    except (SafetensorError, OSError) as error:
        raise ValueError(str(error)) from None
    start = 8 + int(content[:8].view("<u8")[0])  # 8 bytes of header length, the header in JSON, then the numbers
    header = json.loads(content[8:start].tobytes())
    metadata = header.pop("__metadata__", None) or {}
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = StoredTensor(entry["dtype"], tuple(entry["shape"]), content[start + begin : start + end])
    return tensors, metadata
