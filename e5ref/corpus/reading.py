"""Rows of a corpus, from files of every common format: an id, a text, and the columns to keep."""

import csv
import glob
import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, cast

import pyarrow as pa
import pyarrow.dataset

from e5ref.files.lines import MAX_LINE_BYTES, decoded_lines, foreign_file, json_object, json_string, opened
from e5ref.files.texts import line_format

Kind = Literal["text", "jsonl", "csv", "tsv", "parquet", "arrow"]

ENDINGS: Mapping[str, Kind] = {
    ".txt": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}

# Endings after those: what gzip makes is told by its first bytes, the others are pyarrow's to open.
COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")

# Rows that are read at a time.
BATCH_ROWS = 1024

# Columns in the folder that a kept column may not be called as.
OURS = ("row", "id", "embedding")


class Source(NamedTuple):
    """A file of the input, and what errors call it."""

    path: Path
    kind: Kind
    name: str


@dataclass(frozen=True)
class Columns:
    """Which columns are read.

    Attributes:
        id: the column of ids; None numbers the rows from 1.
        text: the columns that are joined by spaces to the text.
        keep: the columns that are written beside the vectors.
        types: of `id` and `keep`, as they are written. The text formats give strings.
    """

    id: str | None
    text: tuple[str, ...]
    keep: tuple[str, ...]
    types: Mapping[str, pa.DataType]


class Rows(NamedTuple):
    """Some rows of one file, in order."""

    ids: list[Any]  # str or int; None for a fault, and for all if rows are numbered
    texts: list[str | None]  # None for a fault
    kept: dict[str, Any]  # column → values: a list, or an array of Arrow
    places: Sequence[int]  # the numbers of the rows or lines in the file, from 1
    faults: dict[int, str]  # index → what is wrong


def find_sources(source: str | Path, kind: Kind | None = None) -> list[Source]:
    """Find the files of an input, in the order of their names.

    Args:
        source: a file, a folder (of BEIR: its corpus; else all in it whose names end as `ENDINGS`) or a glob.
        kind: of all files; None goes by their names, and then by their first bytes.

    Raises:
        ValueError: a folder of different formats, or of none.
        OSError: there is no such file.
    """
    path = Path(source)
    if path.is_dir():
        corpus = [
            path / f"corpus.jsonl{ending}" for ending in ("", ".gz") if (path / f"corpus.jsonl{ending}").is_file()
        ]
        paths = corpus[:1] or [
            file
            for file in sorted(path.rglob("*"))
            if file.is_file() and not file.name.startswith((".", "_")) and _ending(file) in ENDINGS
        ]
        kinds = sorted({ENDINGS[_ending(file)] for file in paths})
        if not paths:
            raise ValueError(f"{path}: holds no file that ends in {', '.join(ENDINGS)}")
        if len(kinds) > 1 and kind is None:
            raise ValueError(f"{path}: holds files of several formats ({', '.join(kinds)}); choose some with a glob")
    elif not path.exists() and glob.has_magic(str(source)):
        paths = [Path(name) for name in sorted(glob.glob(str(source), recursive=True)) if Path(name).is_file()]
        if not paths:
            raise FileNotFoundError(f"{source}: no file has such a name")
    else:
        with opened(path):
            paths = [path]
    return [Source(file, kind or _kind(file), str(file)) for file in paths]


def resolve_columns(
    source: Source, id_column: str | None = None, text_column: Sequence[str] = (), keep: Sequence[str] = ()
) -> Columns:
    """Find which columns to read, by the first file.

    Args:
        source: the file.
        id_column: None for `id` or `_id`, or for numbers if there is neither.
        text_column: none for `text`, with `title` before it if there is one.
        keep: the columns to keep.

    Raises:
        ValueError: a column is missing, of a type that it cannot be, or kept twice.
    """
    schema = _schema(source)
    names = schema.names
    id_column = id_column or next((name for name in ("id", "_id") if name in names), None)
    text_column = tuple(text_column) or (("title", "text") if "title" in names else ("text",))
    for option, name in (
        ("--id-column", id_column),
        *(("--text-column", n) for n in text_column),
        *(("--keep", n) for n in keep),
    ):
        if name is not None and name not in names:
            raise ValueError(f"{source.name}: has no column {name!r}; {option} must be of {', '.join(names) or 'none'}")
    for name in keep:
        if name in OURS or keep.count(name) > 1:
            raise ValueError(f"{source.name}: --keep {name} would write two columns of this name; leave it out")
    for name in text_column:
        if not _is_string(schema.field(name).type):
            raise ValueError(
                f"{source.name}: column {name!r} is {schema.field(name).type}, but a text must be a string"
            )
    types = {name: schema.field(name).type for name in (*keep, *([id_column] if id_column else ()))}
    types = {name: pa.string() if _is_string(kind) else kind for name, kind in types.items()}
    if id_column and not (pa.types.is_integer(kind := types[id_column]) or _is_string(kind)):
        raise ValueError(f"{source.name}: column {id_column!r} is {kind}, but an id must be a string or whole number")
    return Columns(id_column, text_column, tuple(keep), types)


def read_rows(source: Source, columns: Columns) -> Iterator[Rows]:
    """Read the rows of a file, some at a time, in order; what is wrong with a row is said in `faults`.

    Raises:
        ValueError: a file that cannot be read as what it is, or columns that are not those of the first file.
    """
    if source.kind in ("parquet", "arrow"):
        yield from _table_rows(source, columns)
        return
    fields = {*columns.text, *columns.keep, *([columns.id] if columns.id else [])}
    with _opened(source.path) as file:
        records = _records(source, file)
        while some := list(itertools.islice(records, BATCH_ROWS)):
            rows = Rows([], [], {name: [] for name in columns.keep}, [place for place, _ in some], {})
            for index, (_, record) in enumerate(some):
                try:
                    values = _checked_record(record, columns, fields)
                except ValueError as error:
                    rows.faults[index] = str(error)
                    values = dict.fromkeys(fields)
                rows.ids.append(values[columns.id] if columns.id else None)
                rows.texts.append(None if index in rows.faults else _joined([values[name] for name in columns.text]))
                for name in columns.keep:
                    rows.kept[name].append(values[name])
            yield rows


def place(source: Source, number: int) -> str:
    """Say where a row is."""
    return f"{source.name}, {'row' if source.kind in ('parquet', 'arrow') else 'line'} {number}"


def _ending(path: Path) -> str:
    """Return how a file's name ends, without what compressed it."""
    name = path.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return Path(name).suffix


def _kind(path: Path) -> Kind:
    """Tell the format of a file by its name, or else by its first line."""
    with path.open("rb") as file:
        head = file.read(8)
    if head.startswith((b"PAR1", b"ARROW1")):
        return "parquet" if head.startswith(b"PAR1") else "arrow"
    if _ending(path) in ENDINGS:
        return ENDINGS[_ending(path)]
    with _opened(path) as lines:
        _, line = next(decoded_lines(lines, path), (1, ""))
    return line_format(str(path), line)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file of lines, decompressed."""
    if path.suffix.lower() in COMPRESSED and path.suffix.lower() != ".gz":
        with pa.input_stream(str(path), compression="detect") as content:
            yield cast(BinaryIO, io.BufferedReader(content))
    else:
        with opened(path) as file:
            yield file


def _schema(source: Source) -> pa.Schema:
    """Return the columns of a file and their types; of JSON lines, those of the first object."""
    if source.kind in ("parquet", "arrow"):
        return _dataset(source).schema
    with _opened(source.path) as file:
        if source.kind in ("csv", "tsv"):
            names = _header(source, decoded_lines(file, source.name))[1]
        else:
            names = next((list(one) for _, one in _records(source, file) if isinstance(one, dict)), ["text"])
    return pa.schema([(name, pa.string()) for name in names])


def _is_string(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _dataset(source: Source) -> pa.dataset.Dataset:
    try:
        return pa.dataset.dataset(source.path, format="ipc" if source.kind == "arrow" else "parquet")
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(source, error) from None


def _damaged(source: Source, error: Exception) -> ValueError:
    kind = foreign_file(source.path)
    reason = str(error).splitlines()[0]
    if kind and source.kind not in kind.lower():
        return ValueError(f"{source.name}: {kind}")
    return ValueError(f"{source.name}: cannot be read as {source.kind} ({reason}); write it anew")


def _table_rows(source: Source, columns: Columns) -> Iterator[Rows]:
    """Read the rows of a Parquet or Arrow file."""
    dataset = _dataset(source)
    for name in (*columns.types, *columns.text):
        if name not in dataset.schema.names:
            raise ValueError(f"{source.name}: has no column {name!r}, which the first file has")
    for name, kind in columns.types.items():
        found = dataset.schema.field(name).type
        if found != kind and not (_is_string(found) and _is_string(kind)):
            raise ValueError(f"{source.name}: column {name!r} is {found}, in the first file {kind}; make them equal")
    number = 1
    # Few batches ahead, and nothing kept that was read: memory is bounded by these.
    wanted = list(dict.fromkeys([*columns.types, *columns.text]))
    options: dict[str, Any] = {"batch_size": BATCH_ROWS, "batch_readahead": 4, "fragment_readahead": 1}
    if source.kind == "parquet":
        options["fragment_scan_options"] = pa.dataset.ParquetFragmentScanOptions(pre_buffer=False)
    batches = dataset.to_batches(columns=wanted, **options)
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowInvalid, OSError) as error:
            raise _damaged(source, error) from None
        if batch is None:
            return
        faults: dict[int, str] = {}
        values = {name: _strings(batch.column(name), name, faults) for name in columns.text}
        texts = [_joined(row) for row in zip(*values.values(), strict=True)]
        ids: list[Any] = [None] * len(texts)
        if columns.id:
            column = batch.column(columns.id)
            ids = _strings(column, columns.id, faults) if _is_string(column.type) else column.to_pylist()
        for index, text in enumerate(values[columns.text[-1]]):
            if text is None:
                faults.setdefault(index, f'"{columns.text[-1]}" is null')
        for index, identifier in enumerate(ids) if columns.id else ():
            if identifier is None or identifier == "":
                faults.setdefault(index, f'"{columns.id}" is {"null" if identifier is None else "empty"}')
        kept = {name: batch.column(name).cast(columns.types[name]) for name in columns.keep}
        yield Rows(ids, texts, kept, range(number, number + len(texts)), faults)
        number += len(texts)


def _strings(column: pa.Array, name: str, faults: dict[int, str]) -> list[str | None]:
    """Make strings of a column; one that is not UTF-8, which Parquet does not check, is a fault and becomes None."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        strings: list[str | None] = []
        for index, value in enumerate(column):
            try:
                strings.append(value.as_py())
            except UnicodeDecodeError:
                faults[index] = f'"{name}" is not valid UTF-8'
                strings.append(None)
        return strings


def _records(source: Source, file: BinaryIO) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield the records of a file of lines, each with its line's number; of a bad line, what is wrong."""
    lines = decoded_lines(file, source.name, errors="surrogateescape")
    if source.kind == "text":
        yield from ((number, {"text": line}) for number, line in lines)
    elif source.kind == "jsonl":
        for number, line in lines:
            if line.strip():
                try:
                    yield number, json_object(line)
                except ValueError as error:
                    yield number, str(error)
    else:
        yield from _cells(source, lines)


def _cells(source: Source, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield the rows of a CSV or TSV file, whose header names the columns. An empty cell is null."""
    reader, header = _header(source, lines)
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield reader.line_num, f"is not a row of {source.kind.upper()} ({error})"
            continue
        if cells is None:
            return
        if cells and len(cells) != len(header):
            yield reader.line_num, f"has {len(cells)} cells, but the header has {len(header)}"
        elif cells:
            yield reader.line_num, {name: cell or None for name, cell in zip(header, cells, strict=True)}


def _header(source: Source, lines: Iterator[tuple[int, str]]) -> tuple[Any, list[str]]:
    """Return a reader of CSV or TSV, and the names of the columns, which it has read."""
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(
        (line + "\n" for _, line in lines), delimiter="\t" if source.kind == "tsv" else ",", strict=True
    )
    header = next(reader, [])
    if len(set(header)) < len(header):
        raise ValueError(f"{source.name}, line 1: names a column twice; each must be different")
    return reader, header


def _checked_record(record: dict[str, Any] | str, columns: Columns, fields: set[str]) -> dict[str, str | None]:
    """Check a record: what is read of it is a string. A kept value that is not one is written as JSON."""
    if isinstance(record, str):
        raise ValueError(record)
    if columns.id and type(record.get(columns.id)) is int:
        record[columns.id] = str(record[columns.id])
    for name in columns.keep:
        if not isinstance(record.get(name), str | None):
            record[name] = json.dumps(record[name], ensure_ascii=False)
    wanted = {columns.text[-1], columns.id}
    values = {name: json_string(record, name) if name in wanted or record.get(name) else None for name in fields}
    if columns.id and not values[columns.id]:
        raise ValueError(f'"{columns.id}" is empty')
    return values


def _joined(values: Sequence[str | None]) -> str | None:
    """Join what is there of a title and a text, as E5's authors do; None if the text, the last, is not there."""
    if values[-1] is None or len(values) == 1:
        return values[-1]
    return " ".join(value or "" for value in values).strip()
