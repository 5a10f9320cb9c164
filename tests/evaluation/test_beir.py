"""BEIR's folders: what may stand in them, and what is broken."""

import gzip
import hashlib
import io

import numpy as np
import pytest
from tqdm import tqdm

from e5ref.evaluation import evaluate_retrieval
from e5ref.evaluation.beir import read_dataset, read_qrels
from e5ref.terminal import progress
from tests.tools.beir import DOCUMENTS, QRELS, QUERIES, write_beir


def edit(path, old: str, new: str) -> None:
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("corpus.jsonl", '{"_id": "d2"', "{_id", "corpus.jsonl, line 2: is not a JSON object"),
        ("corpus.jsonl", '"_id": "d2", ', "", 'line 2: "_id" is missing, but must be a string or a whole number'),
        ("corpus.jsonl", '"d2"', "null", 'line 2: "_id" is null, but must be a string or a whole number'),
        ("corpus.jsonl", '"d2"', "true", 'line 2: "_id" is true, but must be a string or a whole number'),
        ("corpus.jsonl", '"d2"', "2.0", 'line 2: "_id" is a decimal number, but must be a string or a whole number'),
        ("corpus.jsonl", '"d2"', '""', 'line 2: "_id" is empty; change it'),
        ("corpus.jsonl", '"d2"', '"d1\\u0000"', 'line 2: "_id" holds NUL; change it'),
        ("corpus.jsonl", '"a dog plays"', '["a dog"]', 'line 2: "text" is an array, but must be a string'),
        ("corpus.jsonl", '"a dog plays"', "null", 'line 2: "text" is null, but must be a string'),
        ("corpus.jsonl", "a dog", "a \\ud800", r'line 2: "text" holds half a character \(\\ud800\); write it whole'),
        ("corpus.jsonl", '"title": ""', '"title": 0', 'line 2: "title" is a whole number, but must be a string'),
        ("corpus.jsonl", '"title": "Cats"', '"title": {}', 'line 1: "title" is an object, but must be a string'),
        ("corpus.jsonl", '"d4"', '"d2"', "line 4: repeats the id 'd2' of line 2"),
        ("corpus.jsonl", '"d', '"e', "do both belong together"),
        ("queries.jsonl", '"q2"', '"q1"', "queries.jsonl, line 2: repeats the id 'q1'"),
        ("queries.jsonl", '"q', '"p', "none of the judged queries is in .*queries.jsonl; do both belong together"),
        (
            "queries.jsonl",
            '{"_id": "q1"',
            "[[",
            "queries.jsonl, line 1: starts a JSON array; make a line",
        ),
        (
            "qrels/test.tsv",
            "q1\td1\t2",
            "q1 d1 2",
            "test.tsv, line 2: must be a query's id, a document's id and a whole",
        ),
        ("qrels/test.tsv", "q1\td1\t2", "q1\td1\t2.5", "line 2: must be"),
        ("qrels/test.tsv", "q1\td1\t2", "q1\td1\t1_0", "line 2: must be"),
        ("qrels/test.tsv", "q1\td1\t2", "q1\td1\t1000000000000", "line 2: must be"),
        ("qrels/test.tsv", "q1\td1\t2", "q1\td1\0\t2", "line 2: must be"),
        ("qrels/test.tsv", "q1\td1\t2", "q1\t0\td1\t2", "line 2: must be"),
        ("qrels/test.tsv", "q1\td1\t2", "q1\td1", "line 2: must be"),
        ("qrels/test.tsv", "q1\td2\t1", "q1\td1\t1", "line 3: judges document 'd1' for query 'q1' a second time"),
    ],
)
def test_broken_data(model, folder, file, old, new, message):
    if old in ('"d', '"q'):
        (folder / file).write_text((folder / file).read_text().replace(old, new))
    else:
        edit(folder / file, old, new)
    with pytest.raises(ValueError, match=message):
        evaluate_retrieval(model, folder)


@pytest.mark.parametrize("file", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_empty_and_windows_files(model, folder, file):
    for content, message in (
        (b"", "is empty|holds no judgment"),
        (b"\n", "is empty|holds no judgment"),
        ((folder / file).read_text().replace("q1", "é").replace("d1", "é").encode("cp1252"), "is not UTF-8"),
        ((folder / file).read_text().encode("utf-16"), "is UTF-16; convert it to UTF-8"),
    ):
        (folder / file).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            evaluate_retrieval(model, folder)
        write_beir(folder)
    (folder / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"set: has no {file}; it must be a folder in BEIR's"):
        evaluate_retrieval(model, folder)


@pytest.mark.parametrize("file", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_a_pointer_in_place_of_a_file_is_told(model, folder, file):
    (folder / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(ValueError, match=rf"{file}: is a pointer of git-LFS in place of the file; fetch the file"):
        evaluate_retrieval(model, folder)


def compress(path) -> None:
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def test_compressed_files_are_read_if_the_plain_ones_are_not_there(model, folder):
    (expected,) = evaluate_retrieval(model, folder)
    names = ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv")
    for name in names:
        compress(folder / name)
    (report,) = evaluate_retrieval(model, folder)
    assert (report["split"], report["scores"]) == ("test", expected["scores"])
    assert report["dataset"]["sha256"] == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / f"{name}.gz" for name in names)
    }
    with pytest.raises(FileNotFoundError, match=r"has no qrels/dev.tsv; choose one of its splits: test$"):
        evaluate_retrieval(model, folder, split="dev")
    write_beir(folder, queries={"q1": "another text", "q2": "of the plain file"})
    (plain,) = evaluate_retrieval(model, folder)
    assert plain["dataset"]["sha256"].keys() == expected["dataset"]["sha256"].keys()
    assert plain["scores"] != expected["scores"]


@pytest.mark.parametrize("compressed", [False, True])
def test_the_bar_of_checking_goes_by_what_lies_on_disk(tmp_path, monkeypatch, compressed):
    """From some to all of it: neither characters nor what gzip makes of a file are as many as its bytes."""
    random = np.random.default_rng(0)
    documents = {f"d{number}": ("", random.bytes(500).hex()) for number in range(1000)}
    path = write_beir(tmp_path, documents) / "corpus.jsonl"
    path.write_text(path.read_text().replace("a", "é"), encoding="utf-8")
    if compressed:
        compress(path)
        path = tmp_path / "corpus.jsonl.gz"
        path.write_bytes(path.read_bytes() + bytes(300_000))  # gzip lets a file end in zeros, after all of its text
    bars = []

    class Bar(tqdm):
        def update(self, n=1):
            super().update(n)
            if self.desc == f"checking {path.name}":
                bars.append((self.n, self.total))

    monkeypatch.setattr(progress, "tqdm", lambda **options: Bar(**options | {"disable": False, "file": io.StringIO()}))
    read_dataset(tmp_path, "test")
    size = path.stat().st_size
    assert {total for _, total in bars} == {size}
    assert bars[-1][0] == size
    assert 0 < bars[0][0] < bars[len(bars) // 2][0] < size


def test_whole_numbers_are_ids(model, tmp_path):
    """As their text: in the judgments they are nothing else."""
    folder = write_beir(
        tmp_path / "set", {"7": ("", "the cat eats"), "8": ("", "a dog")}, {"1": "cat"}, {"1": {"7": 1}}
    )
    expected = evaluate_retrieval(model, folder)[0]["scores"]
    for file, identifier in (("corpus.jsonl", "7"), ("corpus.jsonl", "8"), ("queries.jsonl", "1")):
        edit(folder / file, f'"{identifier}"', identifier)
    assert evaluate_retrieval(model, folder)[0]["scores"] == expected
    edit(folder / "corpus.jsonl", '"_id": 8', '"_id": "7"')
    with pytest.raises(ValueError, match="line 2: repeats the id '7' of line 1"):
        evaluate_retrieval(model, folder)


def test_scores_are_the_mean_over_the_judged_queries_that_are_there(model, folder, tmp_path):
    """Queries cut short, or as NFCorpus is published; a document that is judged for the others only is no matter."""
    write_beir(folder, qrels={"q2": QRELS["q2"]})
    expected = evaluate_retrieval(model, folder)[0]
    write_beir(folder, queries={"q2": QUERIES["q2"]}, qrels=QRELS | {"q4": {"gone": 1}})
    with pytest.warns(UserWarning, match="judged") as seen:
        (report,) = evaluate_retrieval(model, folder)
    assert report["scores"] == expected["scores"]
    assert report["counts"]["queries"] == 1
    (said,) = report["warnings"]
    assert said == str(seen[0].message)
    assert said.endswith("queries.jsonl; scores are the mean over the other 1")
    assert "test.tsv: 2 of 3 judged queries are not in" in said


def test_a_byte_order_mark_and_windows_line_ends_are_no_matter(model, folder):
    expected = evaluate_retrieval(model, folder)[0]["scores"]
    for path in (folder / "corpus.jsonl", folder / "queries.jsonl", folder / "qrels" / "test.tsv"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert evaluate_retrieval(model, folder)[0]["scores"] == expected


def test_a_repeated_judgment_and_a_missing_header(folder):
    path = folder / "qrels" / "test.tsv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]) + "q1\td1\t2\n")
    assert read_qrels(folder, "test") == QRELS


def test_what_is_odd_is_counted(model, tmp_path):
    documents = DOCUMENTS | {"d6": ("", " "), "d7": ("", "passage: a cat")}
    qrels = QRELS | {"q1": {"d1": 2, "gone": 1}, "q3": {"d1": 0}, "q4": {"d1": 1}}
    folder = write_beir(tmp_path / "odd", documents, QUERIES | {"q4": ""}, qrels)
    with pytest.warns(UserWarning, match="odd|documents") as seen:
        (report,) = evaluate_retrieval(model, folder)
    said = [str(warning.message) for warning in seen]
    assert report["warnings"] == said
    for part, message in zip(
        (
            "1 of 4 judged documents are not in",
            "1 of 7 documents are empty",
            "1 of 4 queries are empty",
            "1 of 4 queries have no relevant document; they count as 0",
            "1 of 7 documents start with 'passage: ' already",
        ),
        said,
        strict=True,
    ):
        assert part in message
