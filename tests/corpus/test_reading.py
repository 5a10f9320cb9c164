"""Rows of a corpus from every format, and what is said of those that are bad."""

import bz2
import gzip
import json
import re

import pytest

pa = pytest.importorskip("pyarrow", reason="a corpus needs the extra corpus")
import pyarrow.csv as arrow_csv  # noqa: E402
import pyarrow.feather as feather  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from e5ref.corpus.reading import find_sources, read_rows, resolve_columns  # noqa: E402
from e5ref.corpus.survey import survey  # noqa: E402

TABLE = {"_id": ["a", "b", "7"], "title": ["", "Cats", ""], "text": ["the sun", 'hunt, "mice"\nat night', "café"]}
TEXTS = ["the sun", 'Cats hunt, "mice"\nat night', "café"]


def write(path, table=TABLE):
    """Write a table in the format that the name says."""
    name = path.name
    table = pa.table(table)
    if ".parquet" in name:
        pq.write_table(table, path, row_group_size=2)
    elif ".arrow" in name or ".feather" in name:
        feather.write_feather(table, path, compression="uncompressed")
    else:
        if ".jsonl" in name:
            content = "".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode()
        else:
            sink = pa.BufferOutputStream()
            options = arrow_csv.WriteOptions(delimiter="\t" if ".tsv" in name else ",")
            arrow_csv.write_csv(table, sink, options)
            content = sink.getvalue().to_pybytes()
        if name.endswith((".zst", ".lz4")):
            with pa.output_stream(str(path), compression="detect") as file:
                file.write(content)
        else:
            packed = {"gz": gzip.compress, "z2": bz2.compress}.get(name[-2:], bytes)(content)
            path.write_bytes(packed)
    return path


def read(source, **columns):
    """Return ids, texts and faults of all rows."""
    sources = find_sources(source)
    found = resolve_columns(sources[0], **columns)
    rows = [rows for one in sources for rows in read_rows(one, found)]
    faults = {row.places[index]: fault for row in rows for index, fault in row.faults.items()}
    return [name for row in rows for name in row.ids], [text for row in rows for text in row.texts], faults


ENDINGS = "parquet arrow feather csv tsv jsonl csv.gz tsv.bz2 jsonl.gz jsonl.zst csv.lz4".split()


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_gives_the_same_rows(tmp_path, ending):
    assert read(write(tmp_path / f"in.{ending}")) == (["a", "b", "7"], TEXTS, {})


def test_lines_of_text_are_rows_without_ids(tmp_path):
    (tmp_path / "in.txt").write_text("a\n\nb\n")
    assert read(tmp_path / "in.txt") == ([None] * 3, ["a", "", "b"], {})


def test_columns_may_be_named(tmp_path):
    path = write(tmp_path / "in.csv", {"url": ["u"], "head": ["h"], "body": ["b"], "n": [7]})
    assert read(path, id_column="url", text_column=["head", "body"]) == (["u"], ["h b"], {})
    source = find_sources(path)[0]
    (rows,) = read_rows(source, resolve_columns(source, "url", ["body"], ["n"]))
    assert rows.kept == {"n": ["7"]}


def test_parquet_keeps_types_and_whole_numbers_as_ids(tmp_path):
    path = write(tmp_path / "in.parquet", {"id": [3, 5], "text": ["a", "b"], "when": [1.5, None]})
    source = find_sources(path)[0]
    columns = resolve_columns(source, keep=["when"])
    (rows,) = read_rows(source, columns)
    assert rows.ids == [3, 5]
    assert columns.types == {"when": pa.float64(), "id": pa.int64()}
    assert rows.kept["when"].to_pylist() == [1.5, None]


def test_a_kept_value_of_json_that_is_no_string_is_json(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"id": 7, "text": "a", "tags": ["b", 1], "x": null}\n')
    source = find_sources(tmp_path / "in.jsonl")[0]
    (rows,) = read_rows(source, resolve_columns(source, keep=["tags", "x"]))
    assert rows.ids == ["7"]
    assert rows.kept == {"tags": ['["b", 1]'], "x": [None]}


def test_a_folder_and_a_glob_are_read_in_the_order_of_names(tmp_path):
    for name in "ba":
        write(tmp_path / f"{name}.csv", {"id": [name], "text": [name]})
    (tmp_path / "_notes.csv").write_text("not read")
    assert read(tmp_path)[0] == ["a", "b"]
    assert read(tmp_path / "[ab].csv")[0] == ["a", "b"]
    write(tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"holds files of several formats \(csv, parquet\); choose some with a glob$"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file has such a name$"):
        read(tmp_path / "*.tsv")


def test_of_a_folder_of_beir_the_corpus_is_read(tmp_path):
    write(tmp_path / "corpus.jsonl")
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "not read"}\n')
    assert read(tmp_path) == (["a", "b", "7"], TEXTS, {})


@pytest.mark.parametrize(
    ("name", "content", "place", "fault"),
    [
        ("in.csv", b"id,text\n1,a\n2,\n", 3, '"text" is null, but must be a string'),
        ("in.csv", b"id,text\n1,a\n,b\n", 3, '"id" is null, but must be a string'),
        ("in.csv", b'id,text\n1,"a\nb"\n2,a,b\n', 4, "has 3 cells, but the header has 2"),
        ("in.csv", b'id,text\n1,"a"b\n', 2, "is not a row of CSV (',' expected after '\"')"),
        ("in.csv", b'id,text\n1,"a\n', 2, "is not a row of CSV (unexpected end of data)"),
        ("in.csv", b"id,text\n1,caf\xe9\n", 2, '"text" is not UTF-8; convert the file'),
        ("in.jsonl", b'{"id": "1", "text": "a"}\n\n{"id": "2"}\n', 3, '"text" is missing, but must be a string'),
        (
            "in.jsonl",
            b'{"id": "1", "text": "a"}\n{"id": "2", "text": 7}\n',
            2,
            '"text" is a whole number, but must be a string',
        ),
        ("in.jsonl", b'{"id": "1", "text": "a"}\n{"id": "", "text": "b"}\n', 2, '"id" is empty'),
        ("in.jsonl", b'{"id": "1", "text": "a"}\n{"id"\n', 2, "is not a JSON object; each line must be a whole one"),
        (
            "in.jsonl",
            b'{"id": "1", "text": "a"}\n{"id": "2", "text": "\\ud83d"}\n',
            2,
            '"text" holds half a character (\\ud83d); write it whole',
        ),
        ("in.txt", b"a\ncaf\xe9\n", 2, '"text" is not UTF-8; convert the file'),
    ],
)
def test_a_bad_row_is_named(tmp_path, name, content, place, fault):
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name)[2] == {place: fault}
    sources = find_sources(tmp_path / name)
    columns = resolve_columns(sources[0])
    message = f"{tmp_path / name}, line {place}: {fault} (--bad-rows skip leaves such rows out)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        survey(sources, columns, "error")
    assert len(survey(sources, columns, "skip").skipped) == 1


def test_a_null_in_parquet_is_named(tmp_path):
    path = write(tmp_path / "in.parquet", {"id": ["a", None, ""], "text": [None, "b", "c"]})
    assert read(path)[2] == {1: '"text" is null', 2: '"id" is null', 3: '"id" is empty'}


def test_bytes_in_parquet_that_are_no_text_are_named(tmp_path):
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"a", b"caf\xe9"]).buffers())
    path = write(tmp_path / "in.parquet", {"id": ["a", "b"], "text": broken})
    assert read(path)[2] == {2: '"text" is not valid UTF-8'}


@pytest.mark.parametrize(
    ("name", "table", "columns", "message"),
    [
        ("in.parquet", {"id": ["a"], "body": ["b"]}, {}, "has no column 'text'; --text-column must be of id, body"),
        ("in.csv", {"id": ["a"], "body": ["b"]}, {}, "has no column 'text'; --text-column must be of id, body"),
        ("in.csv", TABLE, {"id_column": "url"}, "has no column 'url'; --id-column must be of _id, title, text"),
        ("in.csv", TABLE, {"keep": ["lang"]}, "has no column 'lang'; --keep must be of _id, title, text"),
        ("in.parquet", {"id": ["a"], "text": [7]}, {}, "column 'text' is int64, but a text must be a string"),
        ("in.parquet", {"id": [1.5], "text": ["a"]}, {}, "column 'id' is double, but an id must be a string or whole"),
        ("in.csv", TABLE, {"keep": ["text", "text"]}, "--keep text would write two columns of this name; leave it out"),
    ],
)
def test_a_column_that_is_not_there_or_no_text_is_named(tmp_path, name, table, columns, message):
    with pytest.raises(ValueError, match=f"^{re.escape(f'{tmp_path / name}: {message}')}"):
        read(write(tmp_path / name, table), **columns)


def test_a_later_file_must_have_the_same_columns(tmp_path):
    write(tmp_path / "a.parquet", {"id": ["a"], "text": ["a"]})
    write(tmp_path / "b.parquet", {"id": [7], "text": ["a"]})
    with pytest.raises(
        ValueError, match=r"b\.parquet: column 'id' is int64, in the first file string; make them equal$"
    ):
        read(tmp_path)
    write(tmp_path / "b.parquet", {"id": ["b"]})
    with pytest.raises(ValueError, match=r"b\.parquet: has no column 'text', which the first file has$"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.csv", "id,text\n1,a\n".encode("utf-16"), "is UTF-16; convert it to UTF-8"),
        ("in.parquet", b"PAR1 and no more", "cannot be read as parquet"),
        ("in.parquet", b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of git-LFS"),
        (
            "in.csv.gz",
            gzip.compress(b"id,text\n1,a\n" * 999, mtime=0)[:-30],
            "is compressed by gzip, and cut short or damaged",
        ),
        ("in.csv", b"id,id\n1,a\n", "names a column twice; each must be different"),
        ("in", b"id,text\n1,a\n", "is a table"),
    ],
)
def test_a_file_that_is_something_else_is_told(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}(, line 1)?: {message}"):
        read(tmp_path / name)


def look(path, bad_rows):
    sources = find_sources(path)
    return survey(sources, resolve_columns(sources[0]), bad_rows)


def test_an_id_that_is_there_twice_is_named_with_both_places(tmp_path):
    write(tmp_path / "a.csv", {"id": ["x", "y"], "text": ["a", "b"]})
    write(tmp_path / "b.csv", {"id": ["z", "x", "x"], "text": ["c", "d", "e"]})
    with pytest.raises(ValueError, match=r"b\.csv, line 3: has the id 'x', as .*a\.csv, line 2 \(--bad-rows skip"):
        look(tmp_path, "error")
    found = look(tmp_path, "skip")
    assert (found.counts, found.skipped) == ([2, 3], [3, 4])
    assert [reason["place"] for reason in found.reasons] == [3, 4]


def test_equal_hashes_are_not_taken_for_equal_ids(tmp_path):
    assert hash(-1) == hash(-2)  # as it happens in CPython
    write(tmp_path / "in.parquet", {"id": [-1, -2], "text": ["a", "b"]})
    assert look(tmp_path, "error").skipped == []
