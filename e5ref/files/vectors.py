"""Files of vectors: .npy, .safetensors and JSON lines, written as the vectors come, whole or not at all."""

import io
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from e5ref.files.tensors import safetensors_header
from e5ref.files.whole import written_whole

Floats = NDArray[np.floating]
Part = tuple[Sequence[Mapping[str, Any]], NDArray[Any]]  # what is said of some texts, and their vectors [n, D]

SUFFIXES = (".npy", ".safetensors", ".jsonl")

# How safetensors names what vectors are made of.
STORED = {"float32": "F32", "float64": "F64", "float16": "F16", "int8": "I8", "uint8": "U8"}


def with_texts(encode: Callable[[Iterable[str]], Iterator[Floats]], texts: Iterable[str]) -> Iterator[Part]:
    """Embed texts as they are read, with `E5.encode_stream` or the like; yield each part's texts with its vectors."""
    read: deque[str] = deque()  # and not embedded yet

    def kept() -> Iterator[str]:
        for text in texts:
            read.append(text)
            yield text

    for vectors in encode(kept()):
        yield [{"text": read.popleft()} for _ in vectors], vectors


def write_vectors(
    path: Path, parts: Iterable[Part], *, width: int, dtype: np.dtype[Any], provenance: Mapping[str, str]
) -> int:
    """Write vectors to a file as they come; memory holds one part.

    Args:
        path: ends in one of `SUFFIXES`.
        parts: what is said of some texts, for JSON lines, and their vectors, [n, D].
        width: D.
        dtype: of the vectors.
        provenance: where they come from. It goes into the metadata of a .safetensors file, and for the others into a
            file beside, `path` + .provenance.json.

    Returns:
        How many vectors there are.
    """
    with ExitStack() as files:
        # What comes from where is in place before what it is about.
        file = files.enter_context(written_whole(path))
        for name in written_names(path)[1:]:
            beside = files.enter_context(written_whole(name))
            beside.write((json.dumps(provenance, indent=2) + "\n").encode())
        if path.suffix == ".jsonl":
            text_file = io.TextIOWrapper(file, encoding="utf-8", newline="\n")
            count = write_json_lines(text_file, parts)
            text_file.detach()
            return count

        header = _npy_header if path.suffix == ".npy" else partial(_safetensors_header, provenance)
        file.write(header((0, width), dtype))
        count = 0
        for _, vectors in parts:
            count += len(vectors)
            file.write(np.ascontiguousarray(vectors).data)
        file.seek(0)
        file.write(header((count, width), dtype))  # as long as the first was
        return count


def written_names(path: Path) -> list[Path]:
    """Return the files that are written for `path`: itself, and one beside it if it cannot say where it comes from."""
    says_itself = path.suffix in (".safetensors", ".parquet")
    return [path] if says_itself else [path, path.with_name(path.name + ".provenance.json")]


def write_json_lines(file: TextIO, parts: Iterable[Part]) -> int:
    """Write a line per text, with its "embedding"; return how many.

    Numbers are the shortest that read back as the same float32 or float64. Each part goes out at once: whoever reads
    the other end of a pipe need not wait for the next.
    """
    count = 0
    for rows, vectors in parts:
        count += len(rows)
        for row, vector in zip(rows, vectors, strict=True):
            file.write(f'{json.dumps(row, default=str)[:-1]}, "embedding": [{", ".join(map(str, vector))}]}}\n')
        file.flush()
    return count


def _npy_header(shape: tuple[int, int], dtype: np.dtype[Any]) -> bytes:
    """Make the header of a .npy file. NumPy leaves room in it for the first axis to grow."""
    file = io.BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def _safetensors_header(metadata: Mapping[str, str], shape: tuple[int, int], dtype: np.dtype[Any]) -> bytes:
    """Make the header of a .safetensors file, with room for more rows; its package wants all numbers at once."""

    def header(rows: int, least: int) -> bytes:
        tensor = STORED[dtype.name], (rows, shape[1]), rows * shape[1] * dtype.itemsize
        return safetensors_header({"embeddings": tensor}, metadata, least=least)

    return header(shape[0], least=len(header(10**12, least=0)) - 8)
