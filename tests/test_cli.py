"""The command line, from arguments and standard input to exit code and output."""

import io
import json
import os
import subprocess
import sys
import warnings
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import e5ref
from e5ref import bench, cli
from e5ref.cli import main
from tests.conftest import write_random_bert
from tests.tolerances import VECTORS

COMMAND = [sys.executable, "-c", "from e5ref.cli import main; main()"]


def run(
    *arguments: object, stdin: bytes = b"", code: int = 0, own_process: bool = False
) -> subprocess.CompletedProcess:
    """Run the command line in this process, which is quicker, or in one of its own, where it sets what stays set."""
    words = [*map(str, arguments)]
    if own_process:
        result = subprocess.run([*COMMAND, *words], input=stdin, capture_output=True, check=False)
    else:
        result = run_here(words, stdin)
    assert result.returncode == code, result.stderr.decode()
    return result


def run_here(words: list[str], stdin: bytes) -> subprocess.CompletedProcess:
    """Run the command line in this process; its standard streams are files, as they are to a shell."""
    with TemporaryDirectory() as folder:
        files = Path(folder, "output"), Path(folder, "errors")
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(sys, "argv", ["e5ref", *words])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            patch.setattr(sys, "stdout", stack.enter_context(files[0].open("w")))
            patch.setattr(sys, "stderr", stack.enter_context(files[1].open("w")))
            with pytest.raises(SystemExit) as exited:
                main()
        return subprocess.CompletedProcess(words, exited.value.code or 0, *(file.read_bytes() for file in files))


def fails(*arguments: object, stdin: bytes = b"", own_process: bool = False) -> str:
    """Run what must fail: exit code 2, a sentence on standard error nothing on standard output. Return the former."""
    result = run(*arguments, stdin=stdin, code=2, own_process=own_process)
    message = result.stderr.decode()
    assert result.stdout == b""
    assert "Traceback" not in message
    assert message.splitlines()[-1].startswith("Error: ")
    return message


@pytest.fixture(scope="module")
def model(tiny_bert):
    return e5ref.load(tiny_bert)


def test_embed_prints_json_lines(tiny_bert, model):
    result = run("embed", "query: cat", "passage: the dog", "--model", tiny_bert)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["text"] for row in rows] == ["query: cat", "passage: the dog"]
    vectors = np.array([row["embedding"] for row in rows], np.float32)
    np.testing.assert_array_equal(vectors, model.encode(["query: cat", "passage: the dog"]))
    assert result.stderr == b""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_printed_numbers_read_back_exactly(tiny_bert, dtype):
    result = run("embed", "cat", "--prompt", "query", "--model", tiny_bert, "--dtype", dtype)
    vector = np.array(json.loads(result.stdout)["embedding"], dtype)
    np.testing.assert_array_equal(vector, e5ref.load(tiny_bert, dtype=dtype).encode_query("cat"))


@pytest.mark.parametrize(("prompt", "start"), [("query", "query: "), ("passage", "passage: "), ("none", "")])
def test_prompt(tiny_bert, model, prompt, start):
    result = run("embed", "cat", "--prompt", prompt, "--model", tiny_bert)
    vector = np.array(json.loads(result.stdout)["embedding"], np.float32)
    np.testing.assert_array_equal(vector, model.encode(start + "cat"))


def test_a_forgotten_prompt_is_pointed_out(tiny_bert):
    result = run("embed", "cat", "query: dog", "--model", tiny_bert)
    assert result.stderr.decode().startswith("Warning: 1 of 2 texts start with none of the prompts")
    assert len(result.stdout.splitlines()) == 2


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


def test_a_doubled_prompt_is_pointed_out(tiny_bert):
    result = run("embed", "query: cat", "dog", "--prompt", "query", "--model", tiny_bert)
    assert result.stderr.decode() == "Warning: 1 of 2 texts start with 'query: ' already, and get it twice\n"
    result = run("rank", "query: cat", "passage: dog", "--model", tiny_bert)
    assert result.stderr.decode().count("get it twice") == 2


def test_the_first_line_tells_json_lines_from_texts(tiny_bert):
    result = run("rank", "cat", "-i", "-", "--json", "--model", tiny_bert, stdin=b'{"text": "dog"}\n')
    assert b"Warning: standard input is taken as JSON lines" in result.stderr
    assert json.loads(result.stdout)["text"] == "dog"
    options = ["--json", "--model", tiny_bert, "--format"]
    result = run("rank", "cat", "-i", "-", *options, "text", stdin=b'{"text": "dog"}\n')
    assert (json.loads(result.stdout)["text"], result.stderr) == ('{"text": "dog"}', b"")
    result = run("rank", "cat", "-i", "-", *options, "jsonl", stdin=b'\n{"text": "dog"}\n')
    assert (json.loads(result.stdout)["text"], result.stderr) == ("dog", b"")


def test_a_prompt_that_the_checkpoint_does_not_have(minilm):
    result = run("embed", "cat", "--prompt", "passage", "--model", minilm)
    assert result.stderr.decode() == f"Warning: {minilm} has no passage prompt: the texts are taken as they are\n"


def test_truncation(tiny_bert):
    long = "query: " + "a " * 99
    assert "1 of 1 texts are longer than 64 tokens" in run("embed", long, "--model", tiny_bert).stderr.decode()
    assert run("embed", long, "--truncation", "allow", "--model", tiny_bert).stderr == b""
    assert "more than max_length 64" in fails("embed", long, "--truncation", "error", "--model", tiny_bert)


def test_rank(tiny_bert, model):
    passages = ["the dog", "a cat", "green plants"]
    result = run("rank", "cat", *passages, "--model", tiny_bert)
    scores = 100 * model.similarity(model.encode_query("cat"), model.encode_document(passages))[0]
    expected = [f"{scores[index]:6.2f}  {passages[index]}" for index in np.argsort(-scores)]
    assert result.stdout.decode().splitlines() == expected

    rows = [
        json.loads(line) for line in run("rank", "cat", *passages, "--json", "--model", tiny_bert).stdout.splitlines()
    ]
    assert [row["index"] for row in rows] == np.argsort(-scores).tolist()
    assert [row["score"] for row in rows] == sorted((float(score) for score in scores), reverse=True)


def test_rank_a_file_and_keep_equal_passages_in_order(tiny_bert):
    result = run("rank", "cat", "-i", "-", "--json", "--model", tiny_bert, stdin=b"dog\ncat\ndog\n")
    rows = {row["index"]: row["score"] for row in map(json.loads, result.stdout.splitlines())}
    assert rows[0] == rows[2]
    assert [*rows].index(0) < [*rows].index(2)


def test_models():
    lines = run("models").stdout.decode().splitlines()
    assert len(lines) == 15
    rows = json.loads(run("models", "--json").stdout)
    assert rows[0]["name"] == "intfloat/e5-small-v2"
    assert all(isinstance(row["on_this_machine"], bool) for row in rows)


def test_inspect(tiny_bert):
    shown = run("inspect", tiny_bert).stdout.decode()
    facts = json.loads(run("inspect", tiny_bert, "--json").stdout)
    D, F, V, P = 32, 48, 50, 64
    layer = 4 * (D * D + D) + (F * D + F) + (D * F + D) + 4 * D
    assert facts["parameters"] == (V + P + 2) * D + 2 * D + 2 * layer
    assert facts["prompts"] == {"query": "query: ", "passage": "passage: "}
    assert facts["hidden_size"] == 32
    lines = dict(line.split(None, 1) for line in shown.splitlines())
    assert {
        key: json.dumps(value) if isinstance(value, dict) else str(value) or "none" for key, value in facts.items()
    } == lines


def test_help_and_version():
    assert b"embed" in run("--help").stdout
    assert e5ref.__version__.encode() in run("--version").stdout
    for command in ("embed", "rank", "models", "inspect"):
        assert b"Usage" in run(command, "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed"], "give TEXT arguments or -i FILE"),
        (["embed", "a", "-i", "-"], "one of the two"),
        (["embed", "-i", __file__, "--format", "text", "-o", "out.txt"], "must end in .npy, .safetensors, .jsonl"),
        (["embed", "a", "-o", "no/such/folder/out.npy"], "no/such/folder: no such folder; make it first"),
        (["embed", "-i", "no-such-file.txt"], "no-such-file.txt: no such file"),
        (["rank", "a", "-i", "."], ".: is a folder; give a file"),
        (["embed", "-i", "a.txt", "-i", "b.txt"], "give -i once"),
        (["embed", "a", "--dtype", "float16"], "'float16' is not one of"),
        (["embed", "a", "--model", "no/such/folder"], "no such folder, and not a hub name"),
        (["rank", "a"], "give PASSAGE arguments or -i FILE"),
        (["inspect", "."], "a checkpoint folder needs config.json"),
        (["embd"], "No such command"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in fails(*arguments)
    assert [path.name for path in tmp_path.iterdir() if path.suffix] == []


def test_a_checkpoint_that_is_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    message = fails("embed", "a", "--model", "intfloat/e5-large", own_process=True)
    assert "the hub cannot be reached" in message


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


def shell(command: str, stdin: bytes) -> subprocess.CompletedProcess:
    """Run `e5ref embed` in a shell line, with Python's ordinary buffers."""
    line = command.replace("e5ref", f"{sys.executable} -c 'from e5ref.cli import main; main()'")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(line, shell=True, input=stdin, env=environment, capture_output=True, check=False)


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


@pytest.fixture
def kept_programs(tmp_path, monkeypatch):
    """Keep JAX's compiled programs in a folder of the test's own."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "e5ref" / "jax"


def test_jax_backend(tiny_bert, model, tmp_path, kept_programs):
    output = tmp_path / "vectors.safetensors"
    run("embed", "query: cat", "query: dog", "--model", tiny_bert, "--backend", "jax", "-o", output, own_process=True)
    with safe_open(output, "numpy") as file:
        vectors, facts = file.get_tensor("embeddings"), file.metadata()
    np.testing.assert_allclose(vectors, model.encode(["query: cat", "query: dog"]), rtol=0, atol=VECTORS["float32"])
    assert (facts["backend"], facts["precision"]) == ("jax", "highest")
    assert any(kept_programs.iterdir())

    ranked = [
        run("rank", "cat", "the dog", "a cat", "--model", tiny_bert, "--backend", backend, own_process=True).stdout
        for backend in ("numpy", "jax")
    ]
    assert ranked[0] == ranked[1]


def test_jax_in_half_precision(tiny_bert, model):
    options = ["--model", tiny_bert, "--backend", "jax", "--precision", "bfloat16"]
    result = run("embed", "query: cat", *options, own_process=True)
    vector = np.array(json.loads(result.stdout)["embedding"], np.float32)
    assert 0 < np.abs(vector - model.encode("query: cat")).max() < 0.05


def test_precision_without_jax(tiny_bert):
    assert "precision is for backend='jax'" in fails("embed", "a", "--model", tiny_bert, "--precision", "highest")


def test_warm_up(tmp_path, kept_programs):
    folder = write_random_bert(tmp_path / "model", max_position_embeddings=9, num_hidden_layers=1)
    result = run("warm-up", "--model", folder, own_process=True)
    assert result.stdout.decode() == f"8 programs are ready in {kept_programs}\n"
    kept = sum("embed" in path.name and path.name.endswith("-cache") for path in kept_programs.iterdir())
    assert kept == 8


def test_a_share_of_the_texts(tiny_bert, model, tmp_path):
    texts = [f"query: cat {'a ' * number}" for number in range(5)]
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n")
    for index in range(2):
        run(
            *("embed", "-i", tmp_path / "in.txt", "-o", tmp_path / "out.npy"),
            *("--model", tiny_bert, "--share", f"{index}/2"),
        )
    parts = [np.load(tmp_path / f"out-{index:05}-of-00002.npy") for index in range(2)]
    assert [len(part) for part in parts] == [2, 3]
    np.testing.assert_array_equal(np.concatenate(parts), model.encode(texts))
    assert not (tmp_path / "out.npy").exists()


def test_a_share_of_what_can_be_read_once_only(tiny_bert, tmp_path):
    line = f"e5ref embed -i /dev/stdin --model {tiny_bert} --share 1/2 -o {tmp_path}/out.npy"
    assert shell(line, b"query: cat\nquery: dog\nquery: a\n").returncode == 0
    assert np.load(tmp_path / "out-00001-of-00002.npy").shape == (2, 32)


@pytest.mark.parametrize("share", ["2/2", "1", "a/b", "-1/2", "0/0"])
def test_a_share_that_is_none(tiny_bert, share):
    assert "must be I/N" in fails("embed", "cat", "--model", tiny_bert, "--share", share)


def test_an_automatic_share_needs_jax_and_other_processes(tiny_bert):
    assert "needs --backend jax" in fails("embed", "cat", "--model", tiny_bert, "--share", "auto")
    options = ["--model", tiny_bert, "--share", "auto", "--backend", "jax"]
    alone = fails("embed", "cat", *options, own_process=True)
    assert "write --share I/N" in alone


@pytest.fixture
def short_bench(monkeypatch):
    """Leave out what takes long and is in test_bench.py: much to embed, large products, processes of their own."""
    for name, value in {"PAUSE": 0, "FIXED_TOKENS": 256, "LATENCY_CALLS": 3}.items():
        monkeypatch.setattr(bench.measure, name, value)
    monkeypatch.setattr(bench, "measure_processes", lambda *_: [])
    monkeypatch.setattr(bench, "product_rates", lambda _: [])


def test_bench(tiny_bert, tmp_path, short_bench):
    texts = tmp_path / "texts.txt"
    texts.write_text("query: cat\nquery: the dog\n")
    options = ["--model", tiny_bert, "--texts", texts, "--rounds", 1]
    with_tables = run("bench", *options, "--against", "transformers").stdout.decode()
    assert "| e5ref jax highest " in with_tables
    assert "| transformers float32 " in with_tables
    written = tmp_path / "bench" / "small"
    options += ["--model", "e5ref-nano"]
    result, other = json.loads(run("bench", *options, "--ours", "numpy", "--json", "-o", written).stdout)
    assert json.loads((written / "bench.json").read_text()) == [result, other]
    assert [inputs["name"] for inputs in other["inputs"]] == ["texts", "64 tokens", "128 tokens"]  # nano takes 256
    assert (written / "bench.svg").read_text().startswith("<svg ")
    assert len(list(written.iterdir())) == 2
    assert [inputs["name"] for inputs in result["inputs"]] == ["texts", "64 tokens"]
    assert all(row["right"] for inputs in [*result["inputs"], *other["inputs"]] for row in inputs["rows"])


def test_a_bench_that_is_broken_off_leaves_what_it_found(tiny_bert, tmp_path, short_bench, monkeypatch):
    measure = bench.measure_inputs

    def measure_texts_only(inputs, *arguments):
        if inputs.name != "texts":
            raise ValueError("broken off")
        return measure(inputs, *arguments)

    monkeypatch.setattr(bench, "measure_inputs", measure_texts_only)
    options = ["--model", tiny_bert, "--texts", "-", "--ours", "numpy", "--rounds", 1, "-o", tmp_path / "found"]
    shown = run("bench", *options, stdin=b"query: cat\n", code=2)
    assert "texts: 1 texts" in shown.stdout.decode()
    assert "broken off" in shown.stderr.decode()
    (result,) = json.loads((tmp_path / "found" / "bench.json").read_text())
    assert [inputs["name"] for inputs in result["inputs"]] == ["texts"]


def test_bench_against_nobody_known(tiny_bert):
    assert "contender 'torchh' is not one of" in fails("bench", "--model", tiny_bert, "--against", "torchh")


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


def test_no_memory_is_said_in_a_sentence(tiny_bert, monkeypatch):
    def no_memory(*_, **__):
        raise MemoryError

    monkeypatch.setattr(e5ref.E5, "encode_stream", no_memory)
    assert fails("embed", "query: a", "--model", tiny_bert) == (
        "Error: out of memory; take a smaller --batch-size, or a machine with more\n"
    )


def test_what_nobody_thought_of_is_said_in_a_sentence_too(tiny_bert, monkeypatch):
    def broken(*_, **__):
        raise KeyError("nowhere")

    monkeypatch.setattr(e5ref.E5, "encode_stream", broken)
    assert "Error: KeyError: 'nowhere' (with E5REF_TRACEBACK=1" in fails("embed", "query: a", "--model", tiny_bert)
    monkeypatch.setenv("E5REF_TRACEBACK", "1")
    with pytest.raises(KeyError):
        run("embed", "query: a", "--model", tiny_bert)


def test_options_of_the_model_reach_it(tiny_bert, model, tmp_path):
    texts = ["query: cat " + "a " * 20, "query: dog"]
    options = ["--model", tiny_bert, "--dim", 8, "--max-length", 9, "--batch-size", 1, "--threads", 1]
    result = run("embed", *texts, *options, "--truncation", "allow", "-o", tmp_path / "out.npy")
    assert b"keeps 8 of 32 dimensions" in result.stderr
    expected = e5ref.load(tiny_bert, max_length=9, truncation="allow")
    with pytest.warns(UserWarning, match="keeps 8"):
        vectors = expected.encode(texts, truncate_dim=8)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), vectors)
    provenance = json.loads((tmp_path / "out.npy.provenance.json").read_text())
    assert (provenance["truncate_dim"], provenance["max_length"]) == ("8", "9")
    ranked = run("rank", "dog", *texts, *options, "-k", 1, "--truncation", "allow").stdout
    assert len(ranked.splitlines()) == 1


@pytest.mark.parametrize("command", ["embed", "rank", "eval sts", "eval retrieval"])
def test_every_command_that_runs_a_model_has_its_options(command):
    shown = run(*command.split(), "--help").stdout.decode()
    for option in ("--model", "--backend", "--threads", "--truncation", "--batch-size", "--dim", "--max-length"):
        assert f"  {option} " in shown


@pytest.mark.parametrize("command", ["inspect", "record", "golden"])
def test_a_model_is_an_option_and_may_be_an_argument(command, tiny_bert, tmp_path):
    (tmp_path / "in.txt").write_text("query: cat\n")
    suffix = {"inspect": [], "record": ["-i", tmp_path / "in.txt", "-o", "OUT.safetensors"], "golden": ["-o", "OUT"]}
    outputs = []
    for index, model in enumerate(([tiny_bert], ["--model", tiny_bert])):
        rest = [str(part).replace("OUT", str(tmp_path / f"out{index}")) for part in suffix[command]]
        outputs.append(run(command, *model, *rest).stdout.replace(b"out1", b"out0"))
    assert outputs[0] == outputs[1]
    assert "give the model once" in fails(command, tiny_bert, "--model", tiny_bert, *rest)
    usage = run(command, "--help").stdout.decode()
    assert "  --model TEXT" in usage
    assert "MODEL" not in usage


def test_help_stands_in_groups_whose_lines_fit(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = run("--help").stdout.decode()
    assert [line for line in shown.splitlines() if line.endswith(":")][1:] == [
        *("Use it:", "Measure it:", "Judge a port:")
    ]
    listed = shown[shown.index("Use it:") :].splitlines()
    assert not any("..." in line for line in listed)
    assert len([line for line in listed if line.startswith("  ")]) == len(cli.commands.commands)


def test_python_runs_the_package():
    result = subprocess.run([sys.executable, "-m", "e5ref", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"e5ref, version {e5ref.__version__}\n"
