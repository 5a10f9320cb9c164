"""Files: text by the line, with errors that say where; safetensors mapped; writing whole or not at all."""

import codecs
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

# How files begin that people give by mistake → what they are, and what to do.
KINDS = {
    b"\x1f\x8b": "is compressed by gzip; decompress it with gzip -dc",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd; decompress it with zstd -dc",
    b"\xfd7zXZ": "is compressed by xz; decompress it with xz -dc",
    b"BZh91AY&SY": "is compressed by bzip2; decompress it with bzip2 -dc",
    b"PK\x03\x04": "is a zip archive (as .npz and .xlsx files are); take out of it what is needed",
    b"PAR1\x15": "is a Parquet file; write its texts as JSON lines",
    b"ARROW1\0": "is an Arrow file; write its texts as JSON lines",
    b"FEA1\0": "is a Feather file; write its texts as JSON lines",
    b"\x93NUMPY": "is an array of NumPy (.npy)",
    b"\x80\x02": "is a pickle, which e5ref never opens because it can run code",
    b"\x80\x04": "is a pickle, which e5ref never opens because it can run code",
    b"\x80\x05": "is a pickle, which e5ref never opens because it can run code",
    b"%PDF-": "is a PDF; take its text out",
    b"SQLite format 3\0": "is a database of SQLite; write its texts as JSON lines",
    b"version https://git-lfs.github.com/spec/": "is a pointer of git-LFS in place of the file; fetch the file with "
    "`git lfs pull`, or with `hf download`",
    codecs.BOM_UTF16_LE: "is UTF-16; convert it to UTF-8",
    codecs.BOM_UTF16_BE: "is UTF-16; convert it to UTF-8",
}

# What values in JSON are called, apart from null, true and false.
JSON_TYPES = {int: "a whole number", float: "a decimal number", str: "a string", list: "an array", dict: "an object"}

# The longest line that is read. A text of which a model takes some thousand characters has no use for more.
MAX_LINE_BYTES = 1 << 28


def foreign_kind(head: bytes) -> str | None:
    """Say what kind of file begins with `head` and what to do about it; None if e5ref may be able to read it."""
    return next((kind for start, kind in KINDS.items() if head.startswith(start)), None)


def foreign_file(path: Path) -> str | None:
    """Say as `foreign_kind` what a file is that cannot be read; None also if its beginning cannot be read either."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return None
    if head[8:9] == b"{":  # a safetensors file begins with the length of its header, which may look like any kind
        return None
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "is a page of HTML in place of the file; fetch the file anew"
    return foreign_kind(head)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for `decoded_lines`; one that gzip has compressed is decompressed on the way.

    Raises:
        OSError: there is no such file, it is a folder, or it may not be read; the message is a sentence.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise IsADirectoryError(f"{path}: is a folder; give a file") from None
    except PermissionError:
        raise PermissionError(f"{path}: may not be read; change its permissions") from None
    with file:
        if file.peek(2).startswith(b"\x1f\x8b"):
            with gzip.open(file) as content:
                yield cast(BinaryIO, content)
        else:
            yield file


def decoded_lines(file: BinaryIO, name: str | Path, *, errors: str = "strict") -> Iterator[tuple[int, str]]:
    """Decode the lines of a file opened in binary, which end at line feeds only, as they come.

    `str.splitlines` would end lines at U+2028 and others too, which a text may hold.

    Args:
        file: what is read.
        name: what errors call the file.
        errors: "surrogateescape" lets bytes pass that are not UTF-8; `json_string` finds them.

    Yields:
        The number of the line, from 1, and its text without its end; a byte order mark is no part of the first.

    Raises:
        ValueError: a file of another kind (see `KINDS`), a line that is not UTF-8 or longer than `MAX_LINE_BYTES`.
    """
    number = 0
    while line := _next_line(file, name):
        number += 1
        if number == 1:
            if kind := foreign_kind(line):
                raise ValueError(f"{name}: {kind}")
            line = line.removeprefix(codecs.BOM_UTF8)
            if not line:  # that mark is all there is
                return
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"{name}, line {number}: has more than {MAX_LINE_BYTES:,} bytes; is this a file of text?")
        if 3 * line.count(0) > len(line):
            raise ValueError(f"{name}, line {number}: holds NUL in most places, as UTF-16 does; convert it to UTF-8")
        try:
            yield number, line.decode(errors=errors)
        except UnicodeDecodeError as error:
            raise ValueError(f"{name}, line {number}: is not UTF-8 (byte {error.start}); convert the file") from None


def json_objects(lines: Iterable[tuple[int, str]], name: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read what `decoded_lines` yields as JSON lines, an object each; blank ones are left out. -> number, object.

    Raises:
        ValueError: a line that is no JSON object.
    """
    for number, line in lines:
        if not line.strip():
            continue
        try:
            value = json_object(line)
        except ValueError as error:
            raise ValueError(f"{name}, line {number}: {error}") from None
        yield number, value


def json_object(line: str) -> dict[str, Any]:
    """Parse a line of JSON lines.

    Raises:
        ValueError: it is no JSON object; the message says what it is, not where.
    """
    value = parsed_json(line)
    if isinstance(value, dict):
        return value
    if line.lstrip().startswith("["):
        raise ValueError("starts a JSON array; make a line of each element with jq -c '.[]'")
    raise ValueError("is not a JSON object; each line must be a whole one")


def parsed_json(text: str) -> Any:
    """Parse JSON; None for anything else."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def json_string(value: Mapping[str, Any], field: str, wanted: str = "a string") -> str:
    """Return the string that a JSON object has in a field; an error says that it must be `wanted`.

    Raises:
        ValueError: it is no string, or not a valid one; the message names the field, and says what it is, not where.
    """
    text = value.get(field)
    if not isinstance(text, str):
        raise ValueError(f'"{field}" is {json_kind(value, field)}, but must be {wanted}')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        if "\udc80" <= text[error.start] <= "\udcff":  # what "surrogateescape" makes of a byte
            raise ValueError(f'"{field}" is not UTF-8; convert the file') from None
        half = ascii(text[error.start])[1:-1]
        raise ValueError(f'"{field}" holds half a character ({half}); write it whole') from None
    return text


def json_kind(value: Mapping[str, Any], field: str) -> str:
    """Say what a JSON object has in a field."""
    if field not in value:
        return "missing"
    return JSON_TYPES.get(type(value[field])) or json.dumps(value[field])


def _next_line(file: BinaryIO, name: str | Path) -> bytes:
    try:
        return file.readline(MAX_LINE_BYTES + 2)  # its end counts too
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{name}: is compressed by gzip, and cut short or damaged ({error})") from None
