"""Texts from a file or from standard input, one by one as they are read."""

import itertools
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

from e5ref.files.lines import decoded_lines, json_objects, json_string, opened, parsed_json

Format = Literal["text", "jsonl"]

# How the names of tables and documents end, whose lines are no texts.
TABLES = (".csv", ".tsv", ".json", ".parquet", ".arrow", ".feather", ".xlsx")

# Names of columns by which the first line of a table is known.
COLUMNS = {"text", "texts", "id", "_id", "title", "sentence", "sentence1", "query", "passage", "body", "content"}


def read_texts(source: str | Path, format: Format | None = None) -> Iterator[str]:
    """Read texts as they are asked for; memory holds one line.

    Args:
        source: a file, also one that gzip compressed; "-" is standard input.
        format: "text", a text a line, or "jsonl", JSON lines with a "text". None goes by the name, which ends in
            .jsonl or .ndjson, and else by the first line: a JSON object makes it JSON lines, with a warning.

    Yields:
        The texts.

    Raises:
        ValueError: a file of another kind, or a line that is not as it must be (named by its number).
        OSError: the file cannot be read.
    """
    name = "standard input" if source == "-" else str(source)
    with nullcontext(sys.stdin.buffer) if source == "-" else opened(Path(source)) as file:
        lines = decoded_lines(file, name)
        first = next(lines, None)
        if first is None:
            return
        lines = itertools.chain([first], lines)
        if (format or line_format(name, first[1])) == "text":
            yield from (line for _, line in lines)
            return
        for number, row in json_objects(lines, name):
            try:
                text = json_string(row, "text")
            except ValueError as error:
                raise ValueError(f"{name}, line {number}: {error}") from None
            yield text


def line_format(name: str, line: str) -> Format:
    """Tell the format by the name and the first line of a file; refuse a table and a JSON document."""
    ending = name.lower().removesuffix(".gz")
    if ending.endswith((".jsonl", ".ndjson")):
        return "jsonl"
    row = parsed_json(line)
    if isinstance(row, dict):
        warnings.warn(
            f"{name} is taken as JSON lines, since its first line is one; --format text takes each line as a text",
            stacklevel=1,
        )
        return "jsonl"
    cells = {cell.strip('"').lower() for cell in re.split(r"[,;\t]", line)}
    is_table = len(cells) > 1 and cells & COLUMNS and all(re.fullmatch(r"\w{1,30}", cell) for cell in cells)
    is_document = isinstance(row, list) or re.fullmatch(r'\s*(\[|\{|\[\s*["{].*)\s*', line)
    if ending.endswith(TABLES) or is_table or is_document:
        raise ValueError(
            f"{name}: is a {'JSON document' if is_document or ending.endswith('.json') else 'table'}, and e5ref reads "
            "a text a line, or JSON lines; write its texts so, or say --format text if each line is a text (a table: "
            "`e5ref embed --format csv`, or tsv)"
        )
    return "text"
