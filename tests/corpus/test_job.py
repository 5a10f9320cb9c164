"""A job: what it writes, that it goes on, and what it refuses."""

import errno
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow", reason="a corpus needs the extra corpus")
import pyarrow.parquet as pq  # noqa: E402

import e5ref  # noqa: E402
from e5ref.corpus import job as job_module  # noqa: E402
from e5ref.corpus.job import Job, embed_folder, read_ahead  # noqa: E402
from e5ref.corpus.reading import find_sources, resolve_columns  # noqa: E402
from e5ref.corpus.writing import ROWS, Part, find_parts, gaps  # noqa: E402
from e5ref.files.whole import locked  # noqa: E402
from tests.corpus.tables import read, vectors_of  # noqa: E402
from tests.measure.corpus import kills  # noqa: E402

WORDS = "the sun is what plants need and the dog man cat play water".split()


@pytest.fixture(scope="module")
def model(tiny_bert):
    return e5ref.load(tiny_bert, truncation="allow")


@pytest.fixture
def rows(tmp_path):
    """A file of 3,000 rows, of different lengths."""
    texts = [" ".join(WORDS[: 1 + number % 9]) + f" {number}" for number in range(3000)]
    table = {"id": [f"i{number}" for number in range(3000)], "text": texts, "n": list(range(3000))}
    pq.write_table(pa.table(table), tmp_path / "rows.parquet", row_group_size=700)
    return tmp_path / "rows.parquet"


@pytest.fixture
def small_parts(monkeypatch):
    """Finish a part after each window."""
    monkeypatch.setattr(job_module, "PART_BYTES", 1)


def make(model, path, *, keep=("n",), prompt="passage", **options):
    sources = find_sources(path)
    return Job(model, sources, resolve_columns(sources[0], keep=keep), prompt, **options)


def test_a_folder_holds_ids_kept_columns_and_the_vectors_of_encode(model, rows, tmp_path):
    done = embed_folder(make(model, rows), tmp_path / "out")
    assert done == (3000, 0, 0)
    table = read(tmp_path / "out")
    assert table.column_names == ["id", "n", "embedding"]
    assert table["embedding"].type == pa.list_(pa.field("element", pa.float32(), nullable=False), 32)
    texts = pq.read_table(rows)
    assert table["id"].equals(texts["id"])
    assert table["n"].equals(texts["n"])
    assert np.array_equal(vectors_of(table), model.encode_document(texts["text"].to_pylist()))
    facts = json.loads(table.schema.metadata[b"e5ref"])
    assert facts["prompt"] == "passage: "
    assert facts["weights_sha256"] == model.checkpoint.weights_sha256
    plan = json.loads((tmp_path / "out" / "_provenance.json").read_text())
    assert {name: plan[name] for name in facts} == facts


def test_rows_without_ids_are_numbered(model, tmp_path):
    (tmp_path / "in.txt").write_text("a\nb\n")
    embed_folder(make(model, tmp_path / "in.txt", keep=()), tmp_path / "out")
    assert read(tmp_path / "out")["id"].to_pylist() == [1, 2]


@pytest.mark.usefixtures("small_parts")
def test_a_job_goes_on_after_the_last_part(model, rows, tmp_path, capsys):
    folder = tmp_path / "out"
    embed_folder(make(model, rows), folder)
    parts, whole = find_parts(folder), read(folder)
    assert len(parts) > 3
    for part in parts[1:3]:
        part.path.unlink()
    done = embed_folder(make(model, rows), folder)
    assert done.before == 3000 - parts[1].rows - parts[2].rows
    assert f"{done.before:,} of 3,000 rows are there already" in capsys.readouterr().err
    assert read(folder).sort_by("n").equals(whole)
    assert embed_folder(make(model, rows), folder).before == 3000


@pytest.mark.usefixtures("small_parts")
def test_a_part_says_which_rows_it_covers(model, tmp_path):
    lines = [{"id": number, "text": None if number % 5 == 0 else "the sun"} for number in range(700)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    job = make(model, tmp_path / "in.jsonl", keep=(), bad_rows="skip")
    assert embed_folder(job, tmp_path / "out") == (700, 0, 140)
    parts = find_parts(tmp_path / "out")
    assert gaps(parts, 0, 700) == []
    assert sum(part.rows for part in parts) == 560
    skipped = [json.loads(line) for line in (tmp_path / "out" / "_skipped.jsonl").read_text().splitlines()]
    assert [one["place"] for one in skipped] == [*range(1, 701, 5)]
    assert skipped[0]["reason"] == '"text" is null, but must be a string'
    ids = read(tmp_path / "out")["id"].to_pylist()
    assert ids == [str(number) for number in range(700) if number % 5]


@pytest.mark.parametrize("covered", [[], [(0, 4)], [(2, 4)], [(0, 2), (5, 7)], [(0, 10)], [(8, 12)]])
def test_gaps_are_the_rows_that_no_part_covers(covered):
    parts = [Part(None, start, stop, 0) for start, stop in covered]
    missing = {row for first, last in gaps(parts, 1, 9) for row in range(first, last)}
    assert missing == set(range(1, 9)) - {row for start, stop in covered for row in range(start, stop)}


@pytest.mark.slow
@pytest.mark.usefixtures("small_parts")
def test_shares_write_to_one_folder(model, rows, tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    embed_folder(make(model, rows), alone)
    for index in (2, 0, 1):
        assert embed_folder(make(model, rows), together, share=(index, 3)).rows == 1000
    assert read(together).equals(read(alone).cast(read(together).schema))
    with pytest.raises(ValueError, match=r"was made with a different shares: 3, and now 1"):
        embed_folder(make(model, rows), together)


@pytest.mark.slow
def test_a_different_job_is_refused(model, rows, tiny_bert, tmp_path):
    folder = tmp_path / "out"
    embed_folder(make(model, rows), folder)
    other = e5ref.load(tiny_bert, max_length=16)
    for different, message in (
        (make(model, rows, prompt="query"), r"different prompt: 'passage: ', and now 'query: '"),
        (make(model, rows, keep=()), r"different columns: .*'keep': \['n'\]"),
        (make(model, rows, output_dtype="float16"), r"different output_dtype: 'float32', and now 'float16'"),
        (make(model, rows, bad_rows="skip"), r"different bad_rows"),
        (make(other, rows), r"different max_length: '64', and now '16'"),
    ):
        with pytest.raises(ValueError, match=rf"out: was made with a {message}.*; give a different folder, or --force"):
            embed_folder(different, folder)
    table = pq.read_table(rows)
    pq.write_table(table.set_column(1, "text", [[*table["text"].to_pylist()[:-1], "changed"]]), rows)
    with pytest.raises(ValueError, match=r"different input; give a different folder"):
        embed_folder(make(model, rows), folder)
    assert embed_folder(make(model, rows), folder, force=True) == (3000, 0, 0)
    assert len(read(folder)) == 3000


def test_different_weights_are_refused(model, rows, tiny_copy, tmp_path):
    from safetensors.numpy import load_file, save_file

    embed_folder(make(model, rows), tmp_path / "out")
    weights = load_file(tiny_copy / "model.safetensors")
    weights["embeddings.LayerNorm.bias"] = weights["embeddings.LayerNorm.bias"] + 1
    save_file(weights, tiny_copy / "model.safetensors")
    with pytest.raises(ValueError, match=r"different model \(its weights\); give"):
        embed_folder(make(e5ref.load(tiny_copy), rows), tmp_path / "out")


def test_a_folder_of_something_else_is_refused(model, rows, tmp_path):
    with pytest.raises(ValueError, match=r"holds something that `e5ref embed` did not write; give a different folder$"):
        embed_folder(make(model, rows), tmp_path)
    (tmp_path / "out").mkdir()
    embed_folder(make(model, rows), tmp_path / "out")
    (tmp_path / "out" / "part-000000009999.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"part-000000009999.parquet: is damaged, or not a part that e5ref wrote"):
        embed_folder(make(model, rows), tmp_path / "out")


def test_a_second_writer_is_refused(model, rows, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    code = "import sys; from pathlib import Path; from e5ref.files.whole import locked\n"
    code += "with locked(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", code, str(folder / ".lock-00000-of-00001")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match=r"out: another e5ref writes there; wait for it, or stop it$"):
            embed_folder(make(model, rows), folder)
        other.kill()
    embed_folder(make(model, rows), folder)
    with locked(folder / ".lock-00000-of-00001"):
        pass


@pytest.mark.slow
@pytest.mark.usefixtures("small_parts")
def test_a_full_disk_loses_nothing(model, rows, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    whole = tmp_path / "whole"
    embed_folder(make(model, rows), whole)
    finish, written = job_module.written_part, []

    def full(path, schema):
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path)
        return finish(path, schema)

    with monkeypatch.context() as patch:
        patch.setattr(job_module, "written_part", full)
        with pytest.raises(OSError, match="No space left on device"):
            embed_folder(make(model, rows), folder)
    assert len(find_parts(folder)) == 3
    embed_folder(make(model, rows), folder)
    assert read(folder).equals(read(whole))


@pytest.mark.slow
def test_kills_lose_nothing(tmp_path):
    """The small version of the measurement in docs/laboratory/corpus.md."""
    found = kills.measure(tmp_path, rows=1200, kills=1)
    assert found["kills"] >= 1


def test_a_part_whose_end_is_wrong_is_noticed(model, rows, tmp_path, monkeypatch):
    """What the measurement compares would show a row that is done twice."""
    monkeypatch.setattr(job_module, "PART_BYTES", 1)
    embed_folder(make(model, rows), tmp_path / "out")
    part = find_parts(tmp_path / "out")[1]
    table = pq.read_table(part.path)
    wrong = {**table.schema.metadata, ROWS: f"{part.start}-{part.stop - 1}".encode()}
    pq.write_table(table.replace_schema_metadata(wrong), part.path)
    embed_folder(make(model, rows), tmp_path / "out")
    assert len(read(tmp_path / "out")) == 3001


def test_ctrl_c_ends_within_two_seconds(tmp_path):
    kills.write_rows(tmp_path / "rows.parquet", 20_000)
    words = kills.command(tmp_path / "rows.parquet", tmp_path / "out")
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        while not [*tmp_path.glob("out/.part-*.part")]:
            assert process.poll() is None
            time.sleep(0.05)
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert time.monotonic() - begun < 2
    assert [file for file in (tmp_path / "out").iterdir() if file.name.endswith(".part")] == []


def test_reading_ahead_gives_all_items_in_order_and_their_error():
    assert [*read_ahead(iter(range(100)))] == [*range(100)]

    def broken():
        yield 1
        raise ValueError("broken off")

    items = read_ahead(broken())
    assert next(items) == 1
    with pytest.raises(ValueError, match="broken off"):
        next(items)
