"""Semantic textual similarity: files read as they are meant, correlations as SciPy has them, the known score."""

import gzip
import math

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

import e5ref
from e5ref.evaluation import evaluate_sts
from e5ref.evaluation.sts import correlations, read_pairs
from tests.tools.tolerances import EVALUATION


def write(folder, content: str | bytes, name: str = "pairs.tsv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


STSB = (
    'main-news\tdeft\t2012test\t0001\t4.5\tHe said "no\t"Yes."\nmain-news\tdeft\t2014\t2\t0.000\ta cat\ta dog\tx\ty\n'
)

JSON = b'{"sentence1": "a", "sentence2": "b", "score": 1}\n'

# The same three pairs, one of which holds a comma and a quotation mark.
FIRST, SECOND, SCORES = ["a, b", "the cat", ""], ['say "x"', "a dog", "green"], [1.0, 2.5, 3.0]
SAME = {
    "tabs": 'a, b\tsay "x"\t1\nthe cat\ta dog\t2.5\n\tgreen\t3\n',
    "tabs and names": 'sentence1\tsentence2\tscore\na, b\tsay "x"\t1\nthe cat\ta dog\t2.5\n\tgreen\t3\n',
    "other order": 'Score\tSentence2\tid\tSentence1\n1\tsay "x"\t\ta, b\n2.5\ta dog\t\tthe cat\n3\tgreen\t\t\n',
    "commas": '"a, b","say ""x""",1\r\nthe cat,a dog,2.5\r\n,green,3\r\n',
    "commas and names": 'sentence1,sentence2,score\n"a, b","say ""x""",1\nthe cat,a dog,2.5\n\n"",green,3',
    "a byte order mark": '\ufeffsentence1,sentence2,score\n"a, b","say ""x""",1\nthe cat,a dog,2.5\n,green,3\n',
    "blank lines first": '\n \na, b\tsay "x"\t1\nthe cat\ta dog\t2.5\n\tgreen\t3\n',
    "SICK": "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
    '1\ta, b\tsay "x"\t1\tNEUTRAL\n2\tthe cat\ta dog\t2.5\tNEUTRAL\n3\t\tgreen\t3\tENTAILMENT\n',
    "label": 'idx,sentence1,sentence2,label\n0,"a, b","say ""x""",1\n1,the cat,a dog,2.5\n2,,green,3\n',
    "similarity_score": 'similarity_score\tsentence1\tsentence2\n1\ta, b\tsay "x"\n2.5\tthe cat\ta dog\n3\t\tgreen\n',
    "a label besides": "label\tsentence2\tsentence1\tscore\n"
    'x\tsay "x"\ta, b\t1\ny\ta dog\tthe cat\t2.5\nz\tgreen\t\t3\n',
    "JSON lines": '\n{"sentence1": "a, b", "sentence2": "say \\"x\\"", "score": 1}\n\n'
    '{"score": 2.5, "sentence2": "a dog", "sentence1": "the cat"}\n{"sentence1":"","sentence2":"green","score":3}\n',
    "JSON lines of SICK": '{"sentence_A": "a, b", "sentence_B": "say \\"x\\"", "label": 0, "relatedness_score": 1}\n'
    '{"sentence_A": "the cat", "sentence_B": "a dog", "label": 0, "relatedness_score": 2.5}\n'
    '{"sentence_A": "", "sentence_B": "green", "label": 1, "relatedness_score": 3}\n',
}


@pytest.mark.parametrize("content", SAME.values(), ids=SAME)
def test_layouts(tmp_path, content):
    for path in (write(tmp_path, content), write(tmp_path, gzip.compress(content.encode()), "pairs.gz")):
        pairs = read_pairs(path)
        assert (pairs.first, pairs.second, pairs.scores.tolist()) == (FIRST, SECOND, SCORES)


def test_sts_benchmarks_own_layout(tmp_path):
    """Nothing is quoted there, whatever marks there are; some lines have two columns more."""
    pairs = read_pairs(write(tmp_path, STSB, "sts-test.csv"))
    assert pairs == (['He said "no', "a cat"], ['"Yes."', "a dog"], pytest.approx([4.5, 0]), [])


def test_more_cells_than_names_are_counted(tmp_path):
    """As in KorSTS, where the sources follow in some lines. Commas may be those of a sentence, and tabs are not."""
    content = "genre\tfilename\tyear\tid\tscore\tsentence1\tsentence2\n" + STSB
    pairs = read_pairs(write(tmp_path, content, "sts-dev.tsv"))
    assert pairs[:2] == read_pairs(write(tmp_path, STSB))[:2]
    (note,) = pairs.notes
    assert note.endswith("1 of 2 lines have more cells than names; the last are left out")
    with pytest.raises(
        ValueError, match="line 3: has 4 columns, but must have 3; a sentence with a comma must be quot"
    ):
        read_pairs(write(tmp_path, "score,sentence1,sentence2\n1,a,b\n2,a, b,c\n"))


def test_a_quoted_field_may_go_over_lines(tmp_path):
    pairs = read_pairs(write(tmp_path, 'sentence1,sentence2,score\n"one\ntwo",b,1\nc,d,2\n'))
    assert pairs.first == ["one\ntwo", "c"]
    with pytest.raises(ValueError, match="line 4: the score 'x' is not"):
        read_pairs(write(tmp_path, 'sentence1,sentence2,score\n"one\ntwo",b,1\nc,d,x\n'))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"sentence1\tsentence2\tscore\n", "no line after the names"),
        (b"a\tb\t1\nc\td\n", "line 2: has 2 columns, but must have 3"),
        (b"score\tsentence1\tsentence2\n1\ta\tb\n2\tc\n", "line 3: has 2 columns, but must have 3"),
        (b"a\tb\t1\nc\td\t2\te\n", "line 2: has 4 columns, but must have 3"),
        (b"a\tb\t1\nc\td\tgood\n", "line 2: the score 'good' is not a number"),
        (b"a\tb\t1\nc\td\tnan\n", "line 2: the score 'nan' is not a number"),
        (b"\n\nsentence1,sentence2,score\na,b,1\nc,d,x\n", "line 5: the score 'x' is not a number"),
        (b"a\tb\tscore\nc\td\t1\n", "line 1: must be two sentences and a score, or name the columns"),
        (b"score,sentence1,score,sentence2\n1,a,2,b\n", "line 1: must be .* each once"),
        (b"a\tb\n", "line 1: must be two sentences and a score"),
        (b",sentence1,score\n0,a,1\n", "line 1: must be two sentences and a score"),
        (b"one,two,three,four\n", "line 1: must be two sentences and a score"),
        (STSB.encode() + b"main\tx\t2012\t7\t1\tonly one\n", "line 3: has 6 columns, but must have 7"),
        (b"a,b,1\nc,d,2\n\"e,f,3\ng,h,4\n", "line 3: is not comma-separated text"),
        ("naïve\tcafé\t1\n".encode("cp1252"), r"pairs.tsv, line 1: is not UTF-8 \(byte 2\); convert the file"),
        ("a\tb\t1\n".encode("utf-16"), r"pairs.tsv: is UTF-16; convert it to UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "pairs.tsv: is a pointer of git-LFS"),
        (b"\n[\n  {\n", r"line 2: starts a JSON array; make a line of each element with jq -c '\.\[\]'"),
        (b'[{"sentence1": "a", "sentence2": "b", "score": 1}]', "line 1: starts a JSON array"),
        (b"[]", "line 1: starts a JSON array"),
        (b'{\n  "sentence1": "a",\n', "line 1: is not a JSON object; each line must be a whole one"),
        (b"{'sentence1': 'a', 'sentence2': 'b', 'score': 1}\n", "line 1: is not a JSON object; each line must be"),
        (b'{"text": "a"}\n', 'line 1: "sentence1" is missing, but must be a string'),
        (JSON + b'{"sentence1": "a", "sentence_b": "b", "score": 2}\n', 'line 2: "sentence2" is missing, but must be'),
        (JSON + b'{"sentence1": null, "sentence2": "b", "score": 2}\n', 'line 2: "sentence1" is null, but must be'),
        (JSON + b'{"sentence1": "a", "sentence2": "b"}\n', 'line 2: "score" is missing, but must be a number'),
        (JSON + b'{"sentence1": "a", "sentence2": "b", "score": "2"}\n', 'line 2: "score" is a string, but must be a'),
        (JSON + b'{"sentence1": "a", "sentence2": "b", "score": true}\n', 'line 2: "score" is true, but must be a num'),
        (JSON + b'{"sentence1": "a", "sentence2": "b", "score": NaN}\n', "line 2: the score 'nan' is not a number"),
        (JSON + b'{"sentence1": "a", "sentence2": "b", "score": 1' + 400 * b"0" + b"}\n", "line 2: the score '1000"),
    ],
)  # fmt: skip
def test_broken_files(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_pairs(write(tmp_path, content))


def test_oddities_are_counted(model, tmp_path):
    path = write(tmp_path, '"cat"\tdog\t1\n \tgreen\t2\nthe sun\tthe sun\t5\n')
    with pytest.warns(UserWarning, match="of 6 sentences") as seen:
        (report,) = evaluate_sts(model, path)
    assert [str(warning.message).split(": ")[1] for warning in seen] == [
        "1 of 6 sentences are empty; they are embedded like any other",
        "1 of 6 sentences have quotation marks around them, which are taken as text",
    ]
    assert report["warnings"] == [str(warning.message) for warning in seen]


def test_a_prompt_that_is_there_already(model, tmp_path):
    path = write(tmp_path, "query: cat\tdog\t1\na\tgreen\t2\nthe sun\tthe sun\t5\n")
    with pytest.warns(UserWarning, match="1 of 6 sentences start with 'query: ' already, and get it twice"):
        evaluate_sts(model, path, protocols=["authors", "mteb"])


def test_correlations_by_hand():
    """Ranks 1, 2, 3, 4 and 2, 1, 3, 4: Spearman is 1 - 6 · 2 / (4 · 15) = 0.8."""
    scores = correlations(np.array([0.1, 0.2, 0.3, 0.9]), np.array([2.0, 1.0, 3.0, 4.0]))
    assert scores["spearman"] == pytest.approx(0.8)
    assert scores["pearson"] == pytest.approx(np.corrcoef([0.1, 0.2, 0.3, 0.9], [2, 1, 3, 4])[0, 1])


def test_correlations_with_ties_are_scipys():
    random = np.random.default_rng(0)
    cosines, scores = random.random(200).round(1), random.integers(6, size=200).astype(float)
    result = correlations(cosines, scores)
    assert result["spearman"] == pytest.approx(spearmanr(cosines, scores).statistic, abs=1e-12)
    assert result["pearson"] == pytest.approx(pearsonr(cosines, scores).statistic, abs=1e-12)


def test_the_interval_holds_what_it_promises():
    """Of 100 samples from a normal distribution of known rank correlation, about 95 intervals hold it."""
    random, correlation = np.random.default_rng(1), 0.6
    truth = 6 / math.pi * math.asin(correlation / 2)
    held = 0
    for _ in range(100):
        a, noise = random.standard_normal((2, 80))
        interval = correlations(a, correlation * a + math.sqrt(1 - correlation**2) * noise)["spearman_interval"]
        held += interval[0] <= truth <= interval[1]
    assert 88 <= held <= 100


def test_too_few_pairs_for_an_interval():
    assert correlations(np.array([0.1, 0.2]), np.array([1.0, 2.0])) == {
        "spearman": pytest.approx(1),
        "spearman_interval": None,
        "pearson": pytest.approx(1),
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cat\tdog\t1\n", "needs 2 pairs or more, but there is 1"),
        ("cat\tdog\t3\nsun\tgreen\t3\n", "all 2 scores are 3, so no correlation is defined"),
        ("cat\tcat\t1\ndog dog\tdog dog\t3\nsun\tsun\t4\n", "all 3 cosines are 1, so no"),
    ],
)
def test_no_correlation_is_defined(model, tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        evaluate_sts(model, write(tmp_path, content))


def test_protocols_put_different_prompts(model, tmp_path):
    path = write(tmp_path, "cat\tdog\t1\nsun\tgreen light\t2\nthe man\ta dog\t3\nplants\ta plant\t4\n")
    reports = evaluate_sts(model, path, protocols=["authors", "mteb"])
    pairs = read_pairs(path)
    for report, prompt in zip(reports, ["query: ", ""], strict=True):
        assert report["prompts"] == {"sentence": prompt}
        assert report["provenance"]["sentence"]["prompt"] == prompt
        first, second = (model.encode([prompt + text for text in texts]) for texts in (pairs.first, pairs.second))
        cosines = (first.astype(np.float64) * second).sum(axis=1)
        assert report["scores"]["pearson"] == pytest.approx(pearsonr(cosines, pairs.scores).statistic, abs=1e-6)
    assert abs(reports[0]["scores"]["pearson"] - reports[1]["scores"]["pearson"]) > 1e-3


def test_cut_sentences_are_counted(model, tmp_path):
    path = write(tmp_path, f"{'a ' * 99}\tdog\t1\nsun\tgreen\t2\nman\tdog\t3\n")
    (report,) = evaluate_sts(model, path)
    assert report["counts"] == {"pairs": 3, "sentences_cut": 1}


@pytest.mark.peer
def test_sts_benchmark_dev_with_trained_weights(minilm, shared):
    """The known score to its last digit, and the same from sentence-transformers and SciPy."""
    path = shared / "stsb" / "sts-dev.tsv"
    (report,) = evaluate_sts(e5ref.load(minilm), path)
    assert round(100 * report["scores"]["spearman"], 3) == 86.716
    assert report["counts"] == {"pairs": 1500, "sentences_cut": 0}
    low, high = report["scores"]["spearman_interval"]
    assert low < report["scores"]["spearman"] < high

    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(minilm), device="cpu", local_files_only=True)
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    first, second = (theirs.encode([row[column] for row in rows], show_progress_bar=False) for column in (5, 6))
    cosines, scores = (first * second).sum(axis=1), [float(row[4]) for row in rows]
    assert report["scores"]["spearman"] == pytest.approx(spearmanr(cosines, scores).statistic, abs=EVALUATION)
    assert report["scores"]["pearson"] == pytest.approx(pearsonr(cosines, scores).statistic, abs=EVALUATION)
