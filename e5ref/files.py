"""Files: text by the line, with errors that say where; safetensors mapped; writing whole or not at all."""

import codecs
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open


class StoredTensor(NamedTuple):
    """A tensor of a safetensors file."""

    dtype: str  # as safetensors names it: "F32", "BF16", …
    shape: tuple[int, ...]
    content: NDArray[np.uint8]  # its bytes, a read-only view of the file


def decoded_lines(lines: Iterable[bytes], name: str | Path) -> Iterator[tuple[int, str]]:
    """Decode the lines of a file opened in binary, which end at line feeds only.

    Opened as text they would end at other characters too, such as U+2028 with `str.splitlines`, that a text may hold.

    Args:
        lines: with their ends.
        name: what errors call the file.

    Yields:
        The number of the line, from 1, and its text without its end; a byte order mark is no part of the first.

    Raises:
        ValueError: a line that is not UTF-8.
    """
    for number, line in enumerate(lines, 1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
            if not line:  # that mark is all there is
                return
        try:
            yield number, line.removesuffix(b"\n").removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{name}, line {number}: is not UTF-8 (byte {error.start}); convert the file") from None


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside `path`, and give it that name once all is written; a failure leaves `path` as it was."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def map_tensors(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Map a safetensors file into memory: 8 bytes of header length, the header in JSON, then the numbers.

    Args:
        path: the file.

    Returns:
        Its tensors by name, of which nothing is read yet, and its metadata.

    Raises:
        ValueError: the file is missing, cut short or damaged, or no safetensors file; the message is the reason alone.
    """
    try:
        with safe_open(path, framework="numpy"):
            pass  # safetensors itself checks the header, and that it accounts for every byte of the file
        content = np.asarray(np.memmap(path, np.uint8, mode="r"))
    except (SafetensorError, OSError) as error:
        raise ValueError(str(error)) from None
    start = 8 + int(content[:8].view("<u8")[0])
    header = json.loads(content[8:start].tobytes())
    metadata = header.pop("__metadata__", None) or {}
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = StoredTensor(entry["dtype"], tuple(entry["shape"]), content[start + begin : start + end])
    return tensors, metadata
