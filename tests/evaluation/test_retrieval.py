"""Retrieval: search is exact, ties go by the rule, measures are trec_eval's, the known score."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval

import e5ref
from e5ref.evaluation import evaluate_retrieval, search
from e5ref.evaluation.beir import read_dataset
from e5ref.evaluation.protocols import find_rule
from e5ref.evaluation.retrieval import measure
from e5ref.evaluation.search import Best
from e5ref.operations.similarity import dots
from tests.tools.beir import DOCUMENTS, QRELS, QUERIES, plain_measures, write_beir
from tests.tools.tolerances import EVALUATION

# What is embedded of each document where the title counts.
TEXTS = ["Cats the cat eats", "a dog plays", "Plants green plants need light", "The sun", "water and light"]


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
    assert plain_measures(run, qrels, [1, 2, 10]) == expected


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
    command = [sys.executable, "-m", "tests.tools.beir", "200"]
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


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rounded_products_leave_no_document_out(dtype, scale):
    """Documents that differ by roundings, and some far away, which are not compared exactly."""
    random = np.random.default_rng(0)
    queries = random.normal(size=(3, 384)).astype(dtype)
    near = queries[0] + 1e-7 * random.normal(size=(200, 384))
    documents = (scale * np.vstack([near, random.normal(size=(2000, 384))])).astype(dtype)
    ids = [str(number) for number in range(len(documents))]
    best = Best(["0", "1", "2"], depth=20)
    best.add(queries, ids, documents)
    scores = dots(queries, documents).astype(np.float32)
    for query, ranking in best.run(20, ignore_identical_ids=False).items():
        pairs = sorted(zip(map(float, scores[int(query)]), ids, strict=True), reverse=True)
        assert [*ranking.items()] == [(document, score) for score, document in pairs[:20]]
    assert len(best._near(queries[:1], documents, np.float32([-np.inf]))) <= 200


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_msmarco_with_trained_weights(shared):
    """The known score to its last digit: 5,000 passages, graded judgments."""
    (report,) = evaluate_retrieval(e5ref.load("e5ref-nano", truncation="allow"), shared / "msmarco", split="test")
    assert round(report["scores"]["ndcg@10"], 4) == 0.7230
    assert (report["counts"]["queries"], report["counts"]["documents"]) == (43, 5000)
    assert report["prompts"] == {"query": "query: ", "document": "passage: "}
