"""Retrieval: data is checked, search is exact, ties go by the rule, measures are trec_eval's, the known score."""

import dataclasses
import gzip
import hashlib
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from tqdm import tqdm

import e5ref
from e5ref.evaluation import evaluate_retrieval, search
from e5ref.evaluation.beir import read_dataset, read_qrels
from e5ref.evaluation.protocols import find_rule
from e5ref.evaluation.retrieval import measure
from e5ref.evaluation.search import Best
from e5ref.terminal import progress
from tests.evaluation.folders import DOCUMENTS, QRELS, QUERIES, write_beir
from tests.evaluation.measures import reference
from tests.tolerances import EVALUATION

# What is embedded of each document where the title counts.
TEXTS = ["Cats the cat eats", "a dog plays", "Plants green plants need light", "The sun", "water and light"]


@pytest.fixture(scope="module")
def model(tiny_bert):
    return e5ref.load(tiny_bert)


@pytest.fixture
def folder(tmp_path):
    return write_beir(tmp_path / "set")


def test_measures_by_hand():
    """The run is c, b, a, x: b before a because of equal scores; x is not judged, z is relevant and not found."""
    qrels = {"q": {"a": 1, "b": 2, "c": 0, "z": 3}}
    run = {"q": {"a": 0.5, "b": 0.5, "c": 0.9, "x": 0.1}}
    best = 3 / math.log2(2) + 2 / math.log2(3) + 1 / math.log2(4)
    expected = pytest.approx(
        {
            **{"ndcg@1": 0, "ndcg@2": (2 / math.log2(3)) / (3 / math.log2(2) + 2 / math.log2(3))},
            "ndcg@10": (2 / math.log2(3) + 1 / math.log2(4)) / best,
            **{"map@1": 0, "map@2": (1 / 2) / 3, "map@10": (1 / 2 + 2 / 3) / 3},
            **{"recall@1": 0, "recall@2": 1 / 3, "recall@10": 2 / 3},
            **{"mrr@1": 0, "mrr@2": 1 / 2, "mrr@10": 1 / 2},
        }
    )
    assert measure(run, qrels, [1, 2, 10]) == expected
    assert reference(run, qrels, [1, 2, 10]) == expected


def test_what_counts_as_0():
    """A query without a relevant document, one that found nothing, and levels below 0, of which trec_eval crashes."""
    qrels = {
        "found": {"a": 1},
        "none relevant": {"a": 0},
        "no run": {"a": 1},
        "empty run": {"a": 1},
        "below": {"a": -1},
        "far below": {"a": -2, "b": -100},
    }
    run = {query: {"a": 1.0} for query in qrels} | {"empty run": {}}
    del run["no run"]
    assert list(measure(run, qrels, [5]).values()) == pytest.approx([1 / 6] * 4)


@pytest.mark.parametrize("query", ["no query", "no_query"])
def test_a_query_may_be_called_anything(query):
    """In trec_eval these two stand for no query yet: it would give scores of 0, or of 10 digits."""
    for _ in range(3):
        assert set(measure({query: {"a": 1.0}}, {query: {"a": 1}}, [5]).values()) == {1}


def test_measures_of_whatever_is_accepted_are_right():
    """Levels below 0 and of 6 digits, nothing found, ties, odd ids, huge k: right numbers, and no crash.

    glibc overwrites what is freed, so that what reads it afterwards is not right by chance.
    """
    command = [sys.executable, "-m", "tests.evaluation.measures", "200"]
    environment = os.environ | {"MALLOC_PERTURB_": "165"}
    root = Path(__file__).parents[2]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "200 cases\n"), result.stderr


@pytest.mark.parametrize("rank", [49, 93])
def test_the_reciprocal_rank_is_cut_where_division_rounds(rank):
    """In floating point 1/49 · 49 is less than 1, and 1 / (1/93) less than 93."""
    run = {"q": {f"d{place:03}": -float(place) for place in range(1, 120)}}
    scores = measure(run, {"q": {f"d{rank:03}": 1}}, [rank - 1, rank, rank + 1])
    assert list(scores.values())[-3:] == [0, 1 / rank, 1 / rank]


def random_case(seed: int) -> tuple[dict, np.ndarray, list[str]]:
    """Graded judgments, scores with many ties [Q, n], and ids of documents."""
    random = np.random.default_rng(seed)
    queries, count = 6, int(random.integers(3, 40))
    ids = [f"{random.choice(['d', 'é', 'z', 'D'])}{number}" for number in random.permutation(count)]
    scores = random.integers(5, size=(queries, count)) / np.float32(7)
    qrels = {
        f"q{query}": {str(document): int(random.integers(0, 4)) for document in random.choice(ids, count // 2 + 1)}
        | {"not in the corpus": 1}
        for query in range(queries - 1)
    }
    return qrels | {f"q{queries - 1}": {ids[0]: 0}}, scores, ids


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("block", [1, 4, 100])
def test_search_and_measures_agree_with_trec_eval(seed, block, monkeypatch):
    """Ours keeps k documents, found block by block; trec_eval gets all documents, and breaks ties and cuts itself."""
    monkeypatch.setattr(search, "BLOCK_QUERIES", 4)
    qrels, scores, ids = random_case(seed)
    best = Best(list(qrels), depth=10)
    for start in range(0, len(ids), block):
        some = slice(start, start + block)
        best.add(np.eye(len(qrels), dtype=np.float32), ids[some], scores.T[some])
    ours = measure(best.run(10, ignore_identical_ids=False), qrels, [3, 10])

    everything = {query: dict(zip(ids, map(float, row), strict=True)) for query, row in zip(qrels, scores, strict=True)}
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.3,10", "map_cut.3,10", "recall.3,10"})
    theirs = evaluator.evaluate(everything)
    for name, key in {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall"}.items():
        for k in (3, 10):
            expected = np.mean([row[f"{key}_{k}"] for row in theirs.values()])
            assert ours[f"{name}@{k}"] == pytest.approx(expected, abs=1e-12)
    # trec_eval does not cut the reciprocal rank: it is that of the first relevant document in the order of the rule.
    for k in (3, 10):
        ranked = {query: sorted(ids, key=lambda document: (row[document], document), reverse=True)[:k]
                  for query, row in everything.items()}  # fmt: skip
        first = [
            next(
                (rank for rank, document in enumerate(ranked[query], 1) if qrels[query].get(document, 0) > 0), math.inf
            )
            for query in qrels
        ]
        assert ours[f"mrr@{k}"] == pytest.approx(np.mean([1 / rank for rank in first]), abs=1e-12)


def test_ties_at_the_cut_matter():
    """Of equal documents the greater id is kept; the lesser would give another score."""
    best = Best(["q"], depth=1)
    for document in ("a", "c", "b"):
        best.add(np.ones((1, 1), np.float32), [document], np.ones((1, 1), np.float32))
    assert best.run(1, ignore_identical_ids=False) == {"q": {"c": 1.0}}


def test_equal_texts_are_equal_wherever_they_stand(model, tmp_path, monkeypatch):
    documents = {f"d{number}": ("", "the cat eats" if number % 3 else "a dog plays") for number in range(40)}
    dataset = read_dataset(write_beir(tmp_path, documents), "test")
    runs = []
    for block in (40, 7):
        monkeypatch.setattr(search, "BLOCK_DOCUMENTS", block)
        rule = find_rule("authors", "Retrieval")
        runs.append(search.search(model, dataset, {"query": "", "document": ""}, rule, 30).run)
    assert runs[0] == runs[1]
    assert len(set(runs[0]["q1"].values())) == 2


def test_search_is_exact(model, folder):
    """Against the whole matrix of cosines."""
    reports = evaluate_retrieval(model, folder, k=[3])
    queries = model.encode_query([QUERIES["q1"], QUERIES["q2"]])
    cosines = model.similarity(queries, model.encode_document(TEXTS))
    run = {query: dict(zip(DOCUMENTS, map(float, row), strict=True)) for query, row in zip(QRELS, cosines, strict=True)}
    assert reports[0]["scores"] == pytest.approx(measure(run, QRELS, [3]))
    assert reports[0]["counts"] == {"queries": 2, "queries_cut": 0, "documents": 5, "documents_cut": 0}
    assert 0 < reports[0]["scores"]["ndcg@3"] < 1


def test_memory_holds_a_block(model, tmp_path, monkeypatch):
    documents = {f"d{number}": ("", f"cat {number}") for number in range(50)} | DOCUMENTS
    monkeypatch.setattr(search, "BLOCK_DOCUMENTS", 8)
    seen = []
    embed = search.embed
    monkeypatch.setattr(
        search, "embed", lambda model, texts, *a, **k: seen.append(len(texts)) or embed(model, texts, *a, **k)
    )
    evaluate_retrieval(model, write_beir(tmp_path, documents))
    assert seen == [2, 8, 8, 8, 8, 8, 8, 2]


@pytest.fixture
def asked(monkeypatch):
    """What is embedded: (prompt, texts) of each call."""
    asked = []
    embed = search.embed

    def record(model, texts, prompt, **options):
        asked.append((prompt, list(texts)))
        return embed(model, texts, prompt, **options)

    monkeypatch.setattr(search, "embed", record)
    return asked


def test_prompts_and_titles(model, folder, asked):
    evaluate_retrieval(model, folder)
    assert asked == [
        ("query: ", ["what do cats eat", "what do plants need"]),
        ("passage: ", TEXTS),
    ]


def test_quora_is_symmetric_for_the_authors(model, folder, asked):
    """Documents get "query: " and only their text; mteb treats them as any other."""
    reports = evaluate_retrieval(model, folder, task="quora", protocols=["authors", "mteb"])
    assert asked[1] == ("query: ", [text for _, text in DOCUMENTS.values()])
    assert asked[3] == ("passage: ", TEXTS)
    assert [report["prompts"]["document"] for report in reports] == ["query: ", "passage: "]
    assert reports[0]["scores"] != reports[1]["scores"]


def test_protocols_that_ask_in_the_same_way_are_run_once(model, folder, asked):
    reports = evaluate_retrieval(model, folder, protocols=["authors", "mteb"])
    assert len(asked) == 2
    assert [report["protocol"] for report in reports] == ["authors", "mteb"]
    assert reports[0]["scores"] == reports[1]["scores"]


def test_the_split(model, tmp_path):
    """ "test", and for MSMARCO "dev"; the folder's name or `task` says that it is MSMARCO."""
    folder = write_beir(tmp_path / "msmarco", split="dev")
    write_beir(folder, qrels={"q1": {"d4": 1}})
    judged = {"dev": 2, "test": 1}
    for options, split in (({}, "dev"), ({"split": "test"}, "test"), ({"task": "SciFact"}, "test")):
        (report,) = evaluate_retrieval(model, folder, **options)
        assert (report["split"], report["counts"]["queries"]) == (split, judged[split])
    other = folder.rename(tmp_path / "other")
    assert evaluate_retrieval(model, other)[0]["split"] == "test"
    assert evaluate_retrieval(model, other, task="MSMARCO")[0]["split"] == "dev"
    with pytest.raises(FileNotFoundError, match=r"has no qrels/train.tsv; choose one of its splits: dev, test"):
        evaluate_retrieval(model, other, split="train")


def test_the_only_split_is_taken_and_said(model, tmp_path):
    for name, split, usual in (("msmarco", "test", "dev"), ("other", "dev", "test")):
        folder = write_beir(tmp_path / name, split=split)
        with pytest.warns(UserWarning, match=f"has no qrels/{usual}.tsv; its only split, {split}, is used"):
            (report,) = evaluate_retrieval(model, folder)
        assert report["split"] == split
        assert len(report["warnings"]) == 1
        assert evaluate_retrieval(model, folder, split=split)[0]["warnings"] == []
        with pytest.raises(FileNotFoundError, match=f"has no qrels/{usual}.tsv"):
            evaluate_retrieval(model, folder, split=usual)
    write_beir(folder, split="train")
    with pytest.raises(FileNotFoundError, match=r"has no qrels/test.tsv; choose one of its splits: dev, train"):
        evaluate_retrieval(model, folder)


def test_a_document_that_is_the_query_itself(model, tmp_path):
    """Left out for ArguAna and where asked; else it counts as any other, and is pointed out."""
    documents = DOCUMENTS | {"q1": ("", QUERIES["q1"])}
    folder = write_beir(tmp_path / "own", documents, qrels={"q1": {"d1": 1, "q1": 0}})
    with pytest.warns(UserWarning, match="1 queries have the id of a document"):
        (kept,) = evaluate_retrieval(model, folder, k=[6])
    run = search.search(
        *(
            model,
            read_dataset(folder, "test"),
            {"query": "", "document": ""},
            find_rule("mteb", "Retrieval"),
            1,
        ),
        ignore_identical_ids=True,
    ).run
    assert len(run["q1"]) == 1
    (left_out,) = evaluate_retrieval(model, folder, k=[6], ignore_identical_ids=True)
    folder = folder.rename(tmp_path / "arguana")
    (arguana,) = evaluate_retrieval(model, folder, k=[6])
    assert left_out["scores"] == arguana["scores"]
    assert left_out["scores"]["mrr@6"] > kept["scores"]["mrr@6"]


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


def test_a_document_that_is_not_there_lowers_the_score(model, tmp_path):
    """It counts as relevant and not found, so that a corpus cut short cannot raise a score."""
    whole = evaluate_retrieval(model, write_beir(tmp_path / "whole"))[0]["scores"]
    short = {key: value for key, value in DOCUMENTS.items() if key != "d5"}
    with pytest.warns(UserWarning, match="1 of 4 judged documents"):
        cut = evaluate_retrieval(model, write_beir(tmp_path / "short", short))[0]["scores"]
    assert cut["recall@10"] == pytest.approx(whole["recall@10"] - 0.25)


def test_queries_with_the_same_text(model, tmp_path):
    queries = {"q1": "what do cats eat", "q2": "what do cats eat"}
    (report,) = evaluate_retrieval(
        model, write_beir(tmp_path, queries=queries, qrels={"q1": {"d1": 1}, "q2": {"d1": 1}})
    )
    assert report["counts"]["queries"] == 2


def test_long_texts_are_counted(model, tmp_path):
    documents = DOCUMENTS | {"d1": ("", "a " * 99)}
    (report,) = evaluate_retrieval(model, write_beir(tmp_path, documents))
    assert report["counts"]["documents_cut"] == 1


def test_arguments(model, folder):
    for k in (0, 10**19):
        with pytest.raises(ValueError, match=rf"k is \[{k}\], but must be whole numbers from 1 to 1,000,000,000"):
            evaluate_retrieval(model, folder, k=[k])
    with pytest.raises(ValueError, match="task 'sifact' is not one of ArguAna, "):
        evaluate_retrieval(model, folder, task="sifact")
    with pytest.raises(ValueError, match="protocol is 'author', but must be one of authors, mteb"):
        evaluate_retrieval(model, folder, protocols=["author"])


def test_with_jax(tiny_bert, model, folder):
    pytest.importorskip("jax")
    ours = evaluate_retrieval(model, folder)[0]
    jax = evaluate_retrieval(e5ref.load(tiny_bert, backend="jax"), folder)[0]
    assert jax["provenance"]["query"]["backend"] == "jax"
    assert jax["scores"] == pytest.approx(ours["scores"], abs=EVALUATION)


def test_the_published_score_stands_beside(model, folder, tmp_path):
    folder = folder.rename(tmp_path / "scifact")
    named = e5ref.E5(dataclasses.replace(model.checkpoint, name="intfloat/e5-small-v2"))
    (report,) = evaluate_retrieval(named, folder)
    assert report["published"]["value"] == 0.6885
    assert report["published"]["difference"] == pytest.approx(report["scores"]["ndcg@10"] - 0.6885)
    for options in ({"k": [5]}, {"ignore_identical_ids": True}, {"task": "NFCorpus", "k": [100]}):
        assert evaluate_retrieval(named, folder, **options)[0]["published"] is None
    write_beir(folder, split="train")
    assert evaluate_retrieval(named, folder, split="train")[0]["published"] is None
    write_beir(folder, qrels=QRELS | {"q4": {"d1": 1}})
    with pytest.warns(UserWarning, match="1 of 3 judged queries are not in"):
        assert evaluate_retrieval(named, folder)[0]["published"] is None
    json.dumps(report)


def test_msmarco_with_trained_weights(minilm, shared):
    """The known score to its last digit: 5,000 passages, graded judgments, no prompts."""
    (report,) = evaluate_retrieval(e5ref.load(minilm), shared / "msmarco", split="test")
    assert round(report["scores"]["ndcg@10"], 4) == 0.7977
    assert report["counts"] == {"queries": 43, "queries_cut": 0, "documents": 5000, "documents_cut": 0}
    assert report["prompts"] == {"query": "", "document": ""}
