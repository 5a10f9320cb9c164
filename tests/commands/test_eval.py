"""`e5ref eval …`, from arguments to output and exit code."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.numpy import load_file

from e5ref.extras import install_command
from tests.tools.beir import write_beir
from tests.tools.processes import COMMAND, fails, run

PAIRS = "cat\tdog\t1\nsun\tgreen light\t2\nthe man\ta dog\t3\nplants\ta plant\t4\n"


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text(PAIRS)
    return path


def test_sts(tiny_bert, pairs):
    table = run("eval", "sts", pairs, "--model", tiny_bert).stdout.decode()
    (report,) = json.loads(run("eval", "sts", pairs, "--model", tiny_bert, "--json").stdout)
    assert f"| Spearman             | {100 * report['scores']['spearman']:9.3f} |" in table
    assert "| prompt of a sentence |" in table
    assert report["protocol"] == "authors"


def test_compare_protocols(tiny_bert, pairs):
    reports = json.loads(run("eval", "sts", pairs, "--model", tiny_bert, "--compare-protocols", "--json").stdout)
    assert [report["protocol"] for report in reports] == ["authors", "mteb"]
    lines = run("eval", "sts", pairs, "--model", tiny_bert, "--compare-protocols").stdout.decode().splitlines()
    assert lines[1] == "pairs.tsv: 4 pairs, 0 sentences cut"
    assert lines[3].split() == ["|", "x", "100", "|", "authors", "|", "mteb", "|"]
    assert [cell.strip() for cell in lines[5].split("|")[2:4]] == ["'query: '", "none"]


def test_retrieval(tiny_bert, tmp_path):
    folder, output = write_beir(tmp_path / "set"), tmp_path / "report.json"
    options = ["--model", tiny_bert, "-k", 1, "-k", 3, "--cache", tmp_path / "cache", "--protocol", "mteb"]
    result = run("eval", "retrieval", folder, *options, "-o", output)
    (report,) = json.loads(output.read_text())
    assert report["protocol"] == "mteb"
    assert list(report["scores"]) == [f"{name}@{k}" for name in ("ndcg", "map", "recall", "mrr") for k in (1, 3)]
    for facts in report["provenance"].values():
        assert len(facts["weights_sha256"]) == len(facts["tokenizer_sha256"]) == 64
    assert set(report["dataset"]["sha256"]) == {"corpus.jsonl", "queries.jsonl", "test.tsv"}
    assert "set test: 2 queries, 0 queries cut, 5 documents, 0 documents cut" in result.stdout.decode()
    assert len(list((tmp_path / "cache").iterdir())) == 2
    again = run("eval", "retrieval", folder, *options, "--json")
    assert json.loads(again.stdout)[0]["scores"] == report["scores"]


def test_a_published_score_stands_beside(tiny_bert, tmp_path):
    (tmp_path / "e5-small").symlink_to(tiny_bert)
    path = tmp_path / "sts-test.tsv"
    path.write_text(PAIRS)
    lines = run("eval", "sts", path, "--model", tmp_path / "e5-small").stdout.decode().splitlines()
    assert [line.split()[-2] for line in lines if line.startswith("| published Spearman ")] == ["86.36"]
    assert any("difference" in line for line in lines)
    assert lines[-1] == "published: the authors' model cards and the paper, arXiv:2212.03533; protocol authors"


@pytest.mark.slow
def test_with_jax(tiny_bert, pairs):
    arguments = ["eval", "sts", pairs, "--model", tiny_bert, "--json"]
    ours, jax = (
        json.loads(run(*arguments, "--backend", backend, own_process=True).stdout)[0] for backend in ("numpy", "jax")
    )
    assert jax["provenance"]["sentence"]["backend"] == "jax"
    assert jax["scores"]["pearson"] == pytest.approx(ours["scores"]["pearson"], abs=1e-5)


def test_warnings_go_to_standard_error(tiny_bert, pairs):
    pairs.write_text(PAIRS + "\tcat\t1\n")
    result = run("eval", "sts", pairs, "--model", tiny_bert, "--json")
    assert result.stderr.decode().startswith(f"Warning: {pairs}: 1 of 10 sentences are empty")
    assert json.loads(result.stdout)[0]["warnings"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sts", "none.tsv"], "File 'none.tsv' does not exist"),
        (["sts", "."], "is a directory"),
        (["retrieval", "pairs.tsv"], "is a file"),
        (["retrieval", "."], "has no qrels/test.tsv; it must be a folder in BEIR's layout"),
        (["sts", "bad.tsv"], "bad.tsv, line 2: has 2 columns, but must have 3"),
        (["sts", "pairs.tsv", "--task", "STS99"], "task 'STS99' is not one of STS12, "),
        (["sts", "pairs.tsv", "--protocol", "authors", "--compare-protocols"], "not both"),
        (["sts", "pairs.tsv", "-o", "no/folder/report.json"], "no/folder: no such folder; make it first"),
        (["sts", "pairs.tsv", "-o", "."], "is a folder"),
        (["sts", "pairs.tsv", "-o", "../{}/pairs.tsv"], "is part of the input, and would be lost"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(tiny_bert, pairs, arguments, message, monkeypatch):
    monkeypatch.chdir(pairs.parent)
    (pairs.parent / "bad.tsv").write_text("a\tb\t1\nc\td\n")
    arguments = [argument.format(pairs.parent.name) for argument in arguments]
    assert message in fails("eval", *arguments, "--model", tiny_bert)
    assert sorted(os.listdir()) == ["bad.tsv", "pairs.tsv"]
    assert pairs.read_text() == PAIRS


@pytest.mark.parametrize("file", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_a_report_does_not_overwrite_the_data(tiny_bert, tmp_path, file):
    folder = write_beir(tmp_path / "set")
    before = (folder / file).read_bytes()
    assert "would be lost" in fails("eval", "retrieval", folder, "--model", tiny_bert, "-o", folder / file)
    assert (folder / file).read_bytes() == before


@pytest.mark.parametrize(("command", "module"), [("sts", "scipy"), ("retrieval", "pytrec_eval")])
def test_a_missing_extra_says_what_to_install(tiny_bert, pairs, command, module):
    data = pairs if command == "sts" else write_beir(pairs.parent / "set")
    code = f"""
import importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == {module!r} else found(name, *rest)
from e5ref.cli import main
main()
"""
    arguments = ["eval", command, str(data), "--model", str(tiny_bert)]
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert result.stderr == f"Error: evaluation needs {module}: {install_command('eval')}\n"
    assert result.returncode == 2


def test_stopped_from_the_keyboard(tiny_bert, tmp_path):
    """Ctrl-C: a word, exit code 130, and what the next run continues from."""
    documents = {f"d{number}": ("", f"cat {'a dog ' * (number % 25)}{number}") for number in range(20000)}
    folder, cache = write_beir(tmp_path / "set", documents), tmp_path / "cache"
    command = [*COMMAND, "eval", "retrieval", str(folder), "--model", str(tiny_bert), "--cache", str(cache)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not (cache.is_dir() and len([path for path in cache.iterdir() if path.suffix == ".safetensors"]) > 1):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output, message = process.communicate()
    assert (process.returncode, output, message.strip()) == (130, b"", b"Stopped.")
    assert {len(load_file(path)["embeddings"]) for path in cache.iterdir()} == {2, 2048}
