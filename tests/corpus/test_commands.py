"""`e5ref embed` of a corpus and `e5ref search`, from arguments to files and exit code."""

import json

import numpy as np
import pytest
from safetensors import safe_open

pa = pytest.importorskip("pyarrow", reason="a corpus needs the extra corpus")
import pyarrow.parquet as pq  # noqa: E402

from tests.corpus.tables import read, vectors_of  # noqa: E402
from tests.tools.processes import fails, run  # noqa: E402

CSV = 'url,body,lang\nu1,"the sun, plants",en\nu2,the dog,de\nu3,a cat,\n'
OPTIONS = ["--prompt", "passage", "--id-column", "url", "--text-column", "body", "--keep", "lang"]


@pytest.fixture
def table(tmp_path):
    (tmp_path / "in.csv").write_text(CSV)
    return tmp_path / "in.csv"


@pytest.fixture
def folder(table, tiny_bert, tmp_path):
    run("embed", "-i", table, "-o", tmp_path / "out", *OPTIONS, "--model", tiny_bert)
    return tmp_path / "out"


def test_a_table_becomes_a_folder(folder):
    found = read(folder)
    assert found.drop_columns("embedding").to_pylist() == [
        *({"id": "u1", "lang": "en"}, {"id": "u2", "lang": "de"}, {"id": "u3", "lang": None})
    ]


@pytest.mark.parametrize("name", ["out.parquet", "out.npy", "out.safetensors", "out.jsonl"])
def test_a_table_becomes_one_file(table, folder, tiny_bert, tmp_path, name):
    output = tmp_path / name
    run("embed", "-i", table, "-o", output, *OPTIONS, "--model", tiny_bert)
    expected = vectors_of(read(folder))
    if name.endswith("parquet"):
        assert pq.read_table(output).equals(read(folder))
    elif name.endswith("npy"):
        assert np.array_equal(np.load(output), expected)
    elif name.endswith("safetensors"):
        with safe_open(output, framework="numpy") as file:
            assert np.array_equal(file.get_tensor("embeddings"), expected)
            assert file.metadata()["prompt"] == "passage: "
    else:
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        assert [(row["id"], row["lang"]) for row in rows] == [("u1", "en"), ("u2", "de"), ("u3", None)]
        assert np.array_equal(np.array([row["embedding"] for row in rows], np.float32), expected)
    assert "is there already" in fails("embed", "-i", table, "-o", output, *OPTIONS, "--model", tiny_bert)


def test_a_table_is_printed(table, tiny_bert):
    rows = run("embed", "-i", table, *OPTIONS, "--output-dtype", "int8", "--model", tiny_bert).stdout.splitlines()
    assert json.loads(rows[1])["id"] == "u2"
    assert all(type(number) is int for number in json.loads(rows[1])["embedding"])


def test_standard_input_is_a_corpus_too(table, folder, tiny_bert, tmp_path):
    command = ["embed", "-i", "-", "--format", "csv", "-o", tmp_path / "piped", *OPTIONS, "--model", tiny_bert]
    run(*command, stdin=CSV.encode())
    assert read(tmp_path / "piped").drop_columns("embedding").equals(read(folder).drop_columns("embedding"))
    assert run(*command, stdin=CSV.encode()).stderr == b"3 of 3 rows are there already\n"


def test_ranges_are_kept_with_the_vectors(table, tiny_bert, tmp_path):
    run(
        "embed",
        "-i",
        table,
        "-o",
        tmp_path / "out.safetensors",
        *OPTIONS,
        "--output-dtype",
        "uint8",
        "--model",
        tiny_bert,
    )
    with safe_open(tmp_path / "out.safetensors", framework="numpy") as file:
        assert file.get_tensor("embeddings").dtype == np.uint8
        assert np.array(json.loads(file.metadata()["ranges"])).shape == (2, 32)


def test_bad_rows(tiny_bert, tmp_path):
    (tmp_path / "in.tsv").write_text("id\ttext\n1\tthe sun\n1\tthe dog\n2\t\n")
    words = ["embed", "-i", tmp_path / "in.tsv", "-o", tmp_path / "out", "--prompt", "passage", "--model", tiny_bert]
    assert fails(*words) == (
        f'Error: {tmp_path}/in.tsv, line 4: "text" is null, but must be a string '
        "(--bad-rows skip leaves such rows out)\n"
    )
    found = run(*words, "--bad-rows", "skip")
    assert found.stderr.decode() == f"2 bad rows were left out: see {tmp_path}/out/_skipped.jsonl\n"
    assert read(tmp_path / "out")["id"].to_pylist() == ["1"]


def test_shares_of_a_folder(table, folder, tiny_bert, tmp_path):
    for share in ("0/2", "1/2"):
        run("embed", "-i", table, "-o", tmp_path / "two", *OPTIONS, "--share", share, "--model", tiny_bert)
    assert read(tmp_path / "two")["id"].equals(read(folder)["id"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", "a", "-o", "out"], "a corpus is read from files: give -i FILE"),
        (["embed", "-i", "IN", "-o", "out.txt"], "the name must end in .npy, .safetensors, .jsonl, .parquet, or be"),
        (["embed", "-i", "IN", "-o", "out.npy", "--ray", "local"], "--ray writes to a folder, whole"),
        (["embed", "-i", "nowhere.csv", "-o", "out"], "nowhere.csv: no such file"),
        (["search", "nowhere", "a"], "nowhere: no such folder"),
        (["search", "nowhere"], "give QUERIES or -i FILE, one of the two"),
        (["search", "nowhere", "a", "-o", "out.txt"], "out.txt: the name must end in .parquet or .jsonl"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(table, tiny_bert, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ["--model", tiny_bert, *([] if arguments[0] == "search" else ["--prompt", "passage"])]
    arguments = [str(table) if word == "IN" else word for word in arguments]
    keep = ["--text-column", "body"] if str(table) in arguments else []
    assert message in fails(*arguments, *keep, *model)


def test_search_prints_ids_scores_and_kept_columns(folder):
    lines = run("search", folder, "the dog", "-k", 2).stdout.decode().splitlines()
    assert len(lines) == 2
    score, name, language = lines[0].split()
    assert (name, language) in (("u1", "en"), ("u2", "de"), ("u3", "None"))
    first = json.loads(run("search", folder, "the dog", "-k", 2, "--json").stdout.splitlines()[0])
    assert (first["query"], first["rank"], first["id"]) == ("the dog", 1, name)
    assert f"{first['score']:.2f}" == score
    shown = run("search", folder, "the dog", "a cat", "-k", 1).stdout.decode()
    assert [line for line in shown.splitlines() if line.endswith(":")] == ["the dog:", "a cat:"]


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_search_of_a_file_of_queries(folder, tmp_path, ending):
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "the dog"}\n{"_id": "q2", "text": "a cat"}\n')
    output = tmp_path / f"out.{ending}"
    run("search", folder, "-i", tmp_path / "queries.jsonl", "-k", 2, "-o", output)
    rows = (
        pq.read_table(output).to_pylist()
        if ending == "parquet"
        else [json.loads(line) for line in output.read_text().splitlines()]
    )
    assert [(row["query"], row["rank"]) for row in rows] == [("q1", 1), ("q1", 2), ("q2", 1), ("q2", 2)]
    assert "is there already" in fails("search", folder, "a", "-o", output)


def test_without_pyarrow_the_sentence_says_what_to_install(table, tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    message = fails("embed", "-i", table, "-o", tmp_path / "out", *OPTIONS, "--model", tiny_bert)
    assert "reading tables and writing Parquet needs pyarrow: pip install" in message
