"""Reading text files by the line, with errors that say where; writing files whole or not at all."""

import codecs
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


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
