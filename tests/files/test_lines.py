"""Reading text by the line: what else a file can be, and where it is damaged."""

import gzip
import io
import json

import pytest

from e5ref.files import lines as files
from e5ref.files.lines import decoded_lines, foreign_kind, json_objects, json_string, opened


def lines(content: bytes) -> list[str]:
    return [text for _, text in decoded_lines(io.BytesIO(content), "in.txt")]


def test_lines_end_at_line_feeds_only():
    assert lines(b"\xef\xbb\xbfa\r\n\nb\xe2\x80\xa8c\n") == ["a", "", "b\u2028c"]
    assert lines(b"\xef\xbb\xbf") == lines(b"") == []


def test_a_file_that_gzip_compressed_is_read_as_it_was(tmp_path):
    path = tmp_path / "in.txt.gz"
    path.write_bytes(gzip.compress(b"a\nb\n"))
    with opened(path) as file:
        assert [*decoded_lines(file, path)] == [(1, "a"), (2, "b")]
    path.write_bytes(gzip.compress("".join(map(str, range(9000))).encode())[:5000])
    with opened(path) as file, pytest.raises(ValueError, match=r"in\.txt\.gz: is compressed by gzip, and cut short"):
        [*decoded_lines(file, path)]


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"PAR1\x15\x04", "is a Parquet file"),
        (b"\x1f\x8b\x08", "is compressed by gzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "is a pointer of git-LFS"),
        ("h\n".encode("utf-16"), "is UTF-16"),
        (b"\x93NUMPY\x01\x00", "is an array of NumPy"),
    ],
)
def test_other_kinds_of_files_are_told_by_how_they_begin(head, kind):
    assert foreign_kind(head).startswith(kind)
    with pytest.raises(ValueError, match=rf"^in\.txt: {kind}"):
        lines(head)


@pytest.mark.parametrize("head", [b"", b"PAR1 is a gene", b"<html> is a tag", b"BZh is text", b"ARROW1", b"version 1"])
def test_text_is_no_other_kind(head):
    assert foreign_kind(head) is None
    assert lines(head) == ([head.decode()] if head else [])


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_refused(encoding):
    with pytest.raises(ValueError, match=r"in\.txt, line 1: holds NUL in most places, as UTF-16 does"):
        lines("how do plants eat\n".encode(encoding))
    assert lines(b"a \0 in a text\n") == ["a \0 in a text"]


def test_a_line_has_a_greatest_length(monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 10)
    assert lines(b"ten bytes!\nten bytes!") == ["ten bytes!", "ten bytes!"]
    with pytest.raises(ValueError, match=r"in\.txt, line 2: has more than 10 bytes"):
        lines(b"short\neleven byte\n")


def test_what_cannot_be_opened_is_said_in_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt: no such file$"), opened(tmp_path / "nowhere.txt"):
        pass
    with pytest.raises(IsADirectoryError, match=r"is a folder; give a file$"), opened(tmp_path):
        pass


def objects(*content: str) -> list[tuple[int, dict]]:
    return [*json_objects(enumerate(content, 1), "in.jsonl")]


def test_json_lines_are_an_object_each():
    assert objects('{"a": 1}', " ", '{"b": "\\u00e9"}') == [(1, {"a": 1}), (3, {"b": "é"})]
    for line in ("{", '{"a": 1', "a", "7", "null", '"a"', '{"a": 1} {"a": 2}', '{"a":' * 9999):
        with pytest.raises(
            ValueError, match=r"^in\.jsonl, line 2: is not a JSON object; each line must be a whole one$"
        ):
            objects("", line)
    for line in ("[", " [", '[{"a": 1},', '[{"a": 1}]'):
        with pytest.raises(
            ValueError,
            match=r"^in\.jsonl, line 1: starts a JSON array; make a line of each element with jq -c '\.\[\]'$",
        ):
            objects(line)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        *(("null", "null"), ("true", "true"), ("false", "false"), ("7", "a whole number"), ("7.0", "a decimal number")),
        *(("NaN", "a decimal number"), ('["a"]', "an array"), ("{}", "an object")),
    ],
)
def test_a_field_that_is_no_string_is_named_with_what_it_is(value, kind):
    ((_, found),) = objects(f'{{"a": "text", "b": {value}}}')
    assert json_string(found, "a") == "text"
    with pytest.raises(ValueError, match=rf'^"b" is {kind}, but must be a string$'):
        json_string(found, "b")
    with pytest.raises(ValueError, match=r'^"c" is missing, but must be a name$'):
        json_string(found, "c", "a name")


def test_half_a_character_is_no_text():
    with pytest.raises(ValueError, match=r'^"a" holds half a character \(\\ud83d\); write it whole$'):
        json_string({"a": "x\ud83d"}, "a")
    assert json_string(json.loads('{"a": "\\ud83d\\ude00"}'), "a") == "😀"
