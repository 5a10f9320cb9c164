"""What `e5ref embed` reads and writes: lines, JSON lines, arrays, streams; and files that are none of these."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from tests.tools.processes import fails, run, shell


def test_standard_input(tiny_bert):
    lines = "query: cat\nquery: the\u2028dog\r\n\nquery: eat".encode()
    result = run("embed", "-i", "-", "--model", tiny_bert, stdin=lines)
    assert [json.loads(row)["text"] for row in result.stdout.splitlines()] == [
        *("query: cat", "query: the\u2028dog", "", "query: eat")
    ]


def test_no_input_at_all_is_no_vectors_and_is_said(tiny_bert, tmp_path):
    result = run("embed", "-i", "-", "--model", tiny_bert)
    assert (result.stdout, result.stderr) == (b"", b"0 texts\n")
    assert run("rank", "cat", "-i", "-", "--model", tiny_bert).stderr == b"0 texts\n"
    for suffix in ("npy", "safetensors", "jsonl"):
        assert run("embed", "-i", "-", "-o", tmp_path / f"none.{suffix}", "--model", tiny_bert).stderr == b"0 texts\n"
    assert np.load(tmp_path / "none.npy").shape == (0, 32)
    assert load_file(tmp_path / "none.safetensors")["embeddings"].shape == (0, 32)
    assert (tmp_path / "none.jsonl").read_text() == ""


@pytest.mark.parametrize("suffix", ["npy", "safetensors", "jsonl"])
def test_output_that_is_there_is_replaced_only_by_force(tiny_bert, tmp_path, suffix):
    output = tmp_path / f"out.{suffix}"
    run("embed", "query: cat", "-o", output, "--model", tiny_bert)
    before = output.read_bytes()
    message = fails("embed", "query: dog", "query: cat", "-o", output, "--model", tiny_bert)
    assert f"Error: {output}: is there already; give another name, or --force to replace it" in message
    assert output.read_bytes() == before
    run("embed", "query: dog", "query: cat", "-o", output, "--model", tiny_bert, "--force")
    assert output.read_bytes() != before
    if suffix != "safetensors":  # what stands beside is output too
        output.unlink()
        message = fails("embed", "query: dog", "-o", output, "--model", tiny_bert)
        assert f"{output}.provenance.json: is there already" in message


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_a_file_of_many_parts_has_them_all(tiny_bert, model, tmp_path, suffix):
    """More than one window; the file's header is written before it is known how many there are."""
    texts = [f"query: cat {'a ' * (number % 7)}" for number in range(1500)]
    (tmp_path / "in.txt").write_text("\n".join(texts))
    run("embed", "-i", tmp_path / "in.txt", "-o", tmp_path / f"out.{suffix}", "--model", tiny_bert)
    read = {"npy": np.load, "safetensors": lambda path: load_file(path)["embeddings"]}[suffix]
    np.testing.assert_array_equal(read(tmp_path / f"out.{suffix}"), model.encode(texts))


def test_json_lines_in_and_out(tiny_bert, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"text": "query: cat", "id": 7}\n{"text": "query: two\\nlines"}\n')
    run("embed", "-i", source, "-o", output, "--model", tiny_bert)
    again = tmp_path / "again.jsonl"
    run("embed", "-i", output, "-o", again, "--model", tiny_bert)
    assert output.read_bytes() == again.read_bytes()
    assert [json.loads(line)["text"] for line in output.read_text().splitlines()] == ["query: cat", "query: two\nlines"]


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_files(tiny_bert, model, tmp_path, suffix):
    output = tmp_path / f"out.{suffix}"
    run("embed", "cat", "dog", "--prompt", "passage", "-o", output, "--model", tiny_bert)
    if suffix == "npy":
        vectors = np.load(output)
        provenance = json.loads((tmp_path / "out.npy.provenance.json").read_text())
    else:
        with safe_open(output, framework="numpy") as file:
            vectors, provenance = file.get_tensor("embeddings"), file.metadata()
    np.testing.assert_array_equal(vectors, model.encode_document(["cat", "dog"]))
    assert provenance == model.provenance("passage: ")


def test_a_failure_leaves_the_old_file_as_it_was(tiny_bert, tmp_path):
    output = tmp_path / "out.npy"
    output.write_bytes(b"old")
    (tmp_path / "bad.txt").write_bytes(b"query: cat\nquery: \xff\n")
    message = fails("embed", "-i", tmp_path / "bad.txt", "-o", output, "--model", tiny_bert, "--force")
    assert "bad.txt, line 2: is not UTF-8" in message
    assert output.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.txt", "out.npy"]


def test_a_full_disk_leaves_nothing_half_written(tiny_bert, tmp_path):
    """The file size limit stands for the disk: writing fails after 100 bytes."""
    output = tmp_path / "out.npy"
    limited = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); from e5ref.cli import main; main()"
    arguments = ["embed", "cat", "--prompt", "query", "-o", str(output), "--model", str(tiny_bert)]
    result = subprocess.run([sys.executable, "-c", limited, *arguments], capture_output=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith(b"Error: ")
    assert list(tmp_path.iterdir()) == []


def test_output_and_provenance_come_together(tiny_bert, tmp_path):
    """Where the one cannot be written, the other is not either."""
    (tmp_path / "out.npy.provenance.json").mkdir()
    fails("embed", "query: cat", "-o", tmp_path / "out.npy", "--model", tiny_bert)
    assert [path.name for path in tmp_path.iterdir()] == ["out.npy.provenance.json"]


def test_a_link_is_followed(tiny_bert, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "out.npy").symlink_to(tmp_path / "there" / "real.npy")
    run("embed", "query: cat", "-o", tmp_path / "out.npy", "--model", tiny_bert)
    assert (tmp_path / "out.npy").is_symlink()
    assert np.load(tmp_path / "there" / "real.npy").shape == (1, 32)


def test_a_byte_order_mark_is_no_text(tiny_bert, tmp_path):
    for name, line in (("in.txt", "query: cat"), ("in.jsonl", '{"text": "query: cat"}\n')):
        (tmp_path / name).write_text(line + "\n", encoding="utf-8-sig")
        result = run("embed", "-i", tmp_path / name, "--model", tiny_bert)
        assert [json.loads(row)["text"] for row in result.stdout.splitlines()] == ["query: cat"]


def test_the_input_is_not_overwritten(tiny_bert, tmp_path):
    source = tmp_path / "texts.jsonl"
    source.write_text('{"text": "query: cat", "id": 7}\n')
    (tmp_path / "link.jsonl").symlink_to(source)
    for output in ("texts.jsonl", "link.jsonl"):
        assert "is part of the input" in fails("embed", "-i", source, "-o", tmp_path / output, "--model", tiny_bert)
    assert source.read_text() == '{"text": "query: cat", "id": 7}\n'


def test_the_first_line_tells_json_lines_from_texts(tiny_bert):
    result = run("rank", "cat", "-i", "-", "--json", "--model", tiny_bert, stdin=b'{"text": "dog"}\n')
    assert b"Warning: standard input is taken as JSON lines" in result.stderr
    assert json.loads(result.stdout)["text"] == "dog"
    options = ["--json", "--model", tiny_bert, "--format"]
    result = run("rank", "cat", "-i", "-", *options, "text", stdin=b'{"text": "dog"}\n')
    assert (json.loads(result.stdout)["text"], result.stderr) == ('{"text": "dog"}', b"")
    result = run("rank", "cat", "-i", "-", *options, "jsonl", stdin=b'\n{"text": "dog"}\n')
    assert (json.loads(result.stdout)["text"], result.stderr) == ("dog", b"")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"not json", "line 2: is not a JSON object"),
        (b"[1]", "line 2: starts a JSON array"),
        (b'{"body": "a"}', 'line 2: "text" is missing, but must be a string'),
        (b'{"text": 7}', 'line 2: "text" is a whole number, but must be a string'),
        (b'{"text": "\xff"}', "line 2: is not UTF-8"),
        (b'{"text": "\\ud800"}', 'line 2: "text" holds half a character'),
    ],
)
def test_bad_json_lines_are_named(tiny_bert, tmp_path, line, message):
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"text": "query: a"}\n' + line + b"\n")
    result = run("embed", "-i", source, "--model", tiny_bert, code=2)
    assert message in result.stderr.decode()
    assert result.stdout.count(b"\n") == 1  # the first vector, which did not wait for the second line


@pytest.mark.parametrize(("reader", "lines", "read"), [("head -1", 2000, 1), ("true", 1, 0)])
def test_a_reader_that_has_had_enough(tiny_bert, reader, lines, read):
    """`e5ref embed … | head -1` ends without a word."""
    result = shell(f"e5ref embed -i - --model {tiny_bert} | {reader}", b"query: cat\n" * lines)
    assert len(result.stdout.splitlines()) == read
    assert result.stderr == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_output_that_has_no_room(tiny_bert):
    result = shell(f"e5ref embed -i - --model {tiny_bert} >/dev/full", b"query: cat\n")
    assert result.returncode == 2
    assert result.stderr == b"Error: No space left on device\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.csv.txt", b"id,text\n1,query: a\n", "in.csv.txt: is a table"),
        ("in.txt", b"_id\ttitle\ttext\n1\ta\tb\n", "in.txt: is a table"),
        ("in.json", b'[\n{"text": "a"}\n]\n', "in.json: is a JSON document"),
        ("in.txt", b'[{"text": "a"}]\n', "in.txt: is a JSON document"),
        ("in.txt", b'{\n"text": "a"\n}\n', "in.txt: is a JSON document"),
        ("in.txt", b"PAR1\x15\x04\n", "in.txt: is a Parquet file"),
        ("in.txt", "query: how\n".encode("utf-16-le"), "in.txt, line 1: holds NUL in most places"),
    ],
)
def test_what_is_no_file_of_texts_is_refused(tiny_bert, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert message in fails("embed", "-i", tmp_path / name, "--model", tiny_bert)
    assert message.split(": ")[-1] in fails("embed", "-i", "-", "--model", tiny_bert, stdin=content)


def test_a_table_is_a_file_of_texts_if_the_caller_says_so(tiny_bert, tmp_path):
    (tmp_path / "in.csv").write_bytes(b"id,text\n1,query: a\n")
    result = run("embed", "-i", tmp_path / "in.csv", "--format", "text", "--model", tiny_bert)
    assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == ["id,text", "1,query: a"]


def limited(command: str, stdin: bytes = b"") -> subprocess.CompletedProcess:
    """Run a line of shell in 2 GB of memory, in a process of its own."""
    line = f"ulimit -v 2000000; {command}".replace("e5ref embed", f"{sys.executable} -m e5ref embed")
    return subprocess.run(["bash", "-c", line], input=stdin, capture_output=True, check=False)


def test_texts_stream_through(tmp_path):
    """Of endless texts the first vectors come at once, and memory does not grow."""
    result = limited("yes 'query: a' | e5ref embed -i - --model e5ref-nano | head -2")
    assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == ["query: a", "query: a"]
    assert result.stderr == b""


def test_a_line_without_an_end_is_refused():
    result = limited("tr '\\0' a </dev/zero | e5ref embed -i - --model e5ref-nano")
    assert result.stderr.startswith(b"Error: standard input, line 1: has more than")


def test_standard_streams_that_are_closed(tiny_bert):
    assert shell(f"e5ref embed 'query: a' --model {tiny_bert} >&-", b"").stderr == (
        b"Error: standard input or output is closed\n"
    )
    assert shell(f"e5ref embed -i - --model {tiny_bert} <&-", b"").stderr == (
        b"Error: standard input or output is closed\n"
    )
    assert shell(f"e5ref embed 'query: a' --model {tiny_bert} 2>&-", b"").stdout.startswith(b'{"text"')
