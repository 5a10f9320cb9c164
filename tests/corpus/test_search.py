"""Search over what a job wrote: exact, with the ties of evaluation."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow", reason="a corpus needs the extra corpus")
import pyarrow.parquet as pq  # noqa: E402

import e5ref  # noqa: E402
from e5ref.corpus.job import Job, embed_file, embed_folder  # noqa: E402
from e5ref.corpus.reading import find_sources, resolve_columns  # noqa: E402
from e5ref.corpus.search import open_vectors, search  # noqa: E402
from e5ref.evaluation.beir import read_dataset  # noqa: E402
from e5ref.evaluation.protocols import find_rule  # noqa: E402
from e5ref.evaluation.search import search as evaluation_search  # noqa: E402
from tests.tools.checkpoints import write_random_bert  # noqa: E402

ROOT = Path(__file__).parents[2]
QUERIES = ["what plants need", "the dog", "cat", "sun light water"]


@pytest.fixture(scope="module")
def model(tiny_bert):
    return e5ref.load(tiny_bert, truncation="allow")


@pytest.fixture
def beir(tmp_path):
    """A folder of BEIR; every passage is there four times."""
    words = "the sun is what plants need and dog man cat play water".split()
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    corpus = [
        {"_id": f"d{number * 7919 % 1000}", "title": words[number % 5], "text": " ".join(words[: 1 + number % 11])}
        for number in range(220)
    ]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus))
    queries = [{"_id": f"q{number}", "text": text} for number, text in enumerate(QUERIES)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    (folder / "qrels" / "test.tsv").write_text("".join(f"q{number}\td0\t1\n" for number in range(len(QUERIES))))
    return folder


def embedded(model, source, output, dtype="float32", keep=()):
    sources = find_sources(source)
    job = Job(model, sources, resolve_columns(sources[0], keep=keep), "passage", dtype)
    (embed_file if output.suffix else embed_folder)(job, output)
    return open_vectors(output)


def test_the_ranking_is_that_of_eval_retrieval_with_its_ties(model, beir, tmp_path, monkeypatch):
    rule = find_rule("mteb", "Retrieval")
    prompts = {role: rule.prompt(model.checkpoint.settings, role) for role in ("query", "document")}
    run = evaluation_search(model, read_dataset(beir, "test"), prompts, rule, 50).run
    for group_rows in (16384, 7):  # blocks of all rows, and of few
        monkeypatch.setattr("e5ref.corpus.writing.GROUP_ROWS", group_rows)
        vectors = embedded(model, beir, tmp_path / f"out{group_rows}")
        found = search(vectors, model, QUERIES, 50).to_pylist()
        ours = [[(row["id"], row["score"]) for row in found if row["query"] == number] for number in range(4)]
        theirs = [[(key, np.float32(100 * score)) for key, score in run[f"q{number}"].items()] for number in range(4)]
        assert ours == theirs
    scores = [row["score"] for row in found]
    assert len(set(scores)) < len(scores), "there are no ties"


def test_rows_hold_kept_columns_and_whole_numbers_stay_so(model, tmp_path):
    table = {"id": [30, 4, 5], "text": ["the sun", "the dog", "a cat"], "lang": ["en", "de", None]}
    pq.write_table(pa.table(table), tmp_path / "in.parquet")
    vectors = embedded(model, tmp_path / "in.parquet", tmp_path / "out.parquet", keep=["lang"])
    first, *_, last = search(vectors, model, ["the sun", "x"], 9).to_pylist()
    assert (first["query"], first["rank"]) == (0, 1)
    assert (last["query"], last["rank"]) == (1, 3)
    expected = model.similarity(model.encode_query(["the sun"]), model.encode_document(table["text"]))[0]
    assert first["id"] == table["id"][expected.argmax()]
    assert first["lang"] == table["lang"][expected.argmax()]
    assert first["score"] == pytest.approx(100 * expected.max(), abs=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "int8", "uint8", "binary", "ubinary"])
def test_vectors_in_fewer_bits_are_searched_too(model, beir, tmp_path, dtype):
    exact = search(embedded(model, beir, tmp_path / "exact"), model, QUERIES, 5)
    found = search(embedded(model, beir, tmp_path / "out", dtype), model, QUERIES, 5)
    difference = np.abs(exact["score"].to_numpy() - found["score"].to_numpy()).max()
    assert difference < {"float16": 0.1, "int8": 1, "uint8": 1}.get(dtype, 60)


def test_a_model_that_did_not_make_the_vectors_is_refused(model, beir, tmp_path):
    vectors = embedded(model, beir, tmp_path / "out")
    other = e5ref.load(write_random_bert(tmp_path / "other", seed=1))
    with pytest.raises(
        ValueError, match=r"other is a different model \(its weights_sha256\); queries must be embedded"
    ):
        search(vectors, other, QUERIES, 5)


def test_a_job_that_is_not_finished_is_said(model, beir, tmp_path, monkeypatch):
    monkeypatch.setattr("e5ref.corpus.job.PART_BYTES", 1)
    parts = embedded(model, beir, tmp_path / "out").paths
    parts[-1].unlink()
    with pytest.warns(UserWarning, match=r"out: holds \d+ of 220 rows; the same e5ref embed goes on with the rest$"):
        open_vectors(tmp_path / "out")


def test_what_holds_no_vectors_is_refused(model, beir, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder$"):
        open_vectors(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no vectors; make some with e5ref embed -o"):
        open_vectors(tmp_path)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "in.parquet")
    with pytest.raises(ValueError, match=r"in\.parquet: is no file of vectors that e5ref wrote$"):
        open_vectors(tmp_path / "in.parquet")
    first = embedded(model, beir, tmp_path / "out").paths[0]
    second = embedded(model, beir, tmp_path / "half", "float16").paths[0]
    second.rename(first.with_name("part-000000000777.parquet"))
    with pytest.raises(ValueError, match=r"comes from a different job than part-000000000000\.parquet"):
        open_vectors(tmp_path / "out")


@pytest.mark.slow
def test_memory_is_bounded_by_the_block(tmp_path):
    """Of 160 and 245 MB on disk, Arrow holds little at a time, both when it reads rows and when it reads vectors."""
    code = """
import os, sys, pyarrow as pa, pyarrow.parquet as pq
from pathlib import Path
from e5ref.corpus.reading import find_sources, read_rows, resolve_columns
from e5ref.corpus.search import open_vectors
from tests.measure.corpus import search_speed
place, what = Path(sys.argv[1]), sys.argv[2]
if what == "write":
    search_speed.write(place, 160_000)
    with pq.ParquetWriter(place / "rows.parquet", pa.schema([("text", pa.string())]), use_dictionary=False) as writer:
        for _ in range(40):
            writer.write_table(pa.table({"text": [os.urandom(1000).hex() for _ in range(2000)]}))
elif what == "search":
    for _ in open_vectors(place / "part-000000000000.parquet").blocks(): pass
else:
    source = find_sources(place / "rows.parquet")[0]
    for _ in read_rows(source, resolve_columns(source)): pass
print(pa.default_memory_pool().max_memory())
"""
    for what in ("write", "read", "search"):
        words = [sys.executable, "-c", code, str(tmp_path), what]
        most = int(subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
        if what != "write":
            assert most < {"read": 90e6, "search": 170e6}[what], what
