"""Kinds of vectors that look like different ones: made with transformers, named, or called unknown."""

import base64
import html
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

import e5ref
from e5ref.parity import diagnose
from e5ref.parity.diagnosis.given import Given
from tests.parity.diagnosis.conftest import make_case
from tests.parity.diagnosis.peers import chunk_ids, marked_ids, mean_vectors, peer_vectors, renormalized, write_revision
from tests.tools.checkpoints import edit_json, write_random_bert, write_unigram


@pytest.fixture(scope="module", params=["nano", "random"])
def case(request, tmp_path_factory):
    """Real texts and all-MiniLM-L6-v2 take minutes; `python -m tests.measure.parity.diagnosed` has them."""
    return make_case(request, tmp_path_factory)


def deviations(case, vectors) -> list[str]:
    """Return what is found; [] if the vectors are right."""
    diagnosis = diagnose(case.texts, vectors, [case.model])
    assert diagnosis.verdict in ("found", "correct"), str(diagnosis)
    return list(diagnosis.findings[0].deviations)


@pytest.mark.peer
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_tanh_gelu_is_not_taken_for_rounding(activation, dtype, case, peer):
    """In float32 it is exact, and in float16 the direction of the error tells, if there is enough of it."""
    diagnosis = diagnose(case.texts, peer(activation=activation, dtype=dtype), [case.model])
    right = ["tanh GELU"] if activation == "gelu_new" else []
    if dtype == "float32":
        assert diagnosis.verdict == ("found" if right else "correct"), str(diagnosis)
        assert list(diagnosis.findings[0].deviations) == right
        return
    named = list(diagnosis.findings[0].deviations)
    assert diagnosis.verdict == "found", str(diagnosis)
    if any("from: tanh GELU; add more texts" in note for note in diagnosis.notes):
        assert named == [dtype]
        assert dtype == "bfloat16" or case.folder.name != "real"  # all-MiniLM-L6-v2 shows it with 20 texts
    else:
        assert named == [*right, dtype], str(diagnosis)


def as_json(vectors, digits: str):
    return np.array([[float(format(value, digits)) for value in row] for row in vectors.tolist()])


@pytest.mark.peer
@pytest.mark.parametrize("prompt", ["query: ", ""])
def test_rounded_json(prompt, case, peer):
    vectors = peer(prompt=prompt)
    wrong = [] if prompt else ["prefix missing"]
    for number in (3, 5):
        assert deviations(case, as_json(vectors, f".{number}g")) == [*wrong, f"rounded to {number} significant digits"]
        assert deviations(case, as_json(vectors, f".{number}f")) == [*wrong, f"rounded to {number} decimals"]
    assert deviations(case, as_json(vectors, ".9g")) == wrong


def test_digits_of_values_of_every_size():
    """all-MiniLM-L6-v2 has a dimension of about 1e-33."""
    values = np.random.default_rng(0).standard_normal((4, 64)) * 10.0 ** np.linspace(-40, 0, 64)
    values[0, :2] = 0, 1e-5
    assert Given.check(["a"] * 4, as_json(values, ".4g")).stored == "rounded to 4 significant digits"
    assert Given.check(["a"] * 4, values).stored == ""


@pytest.mark.peer
def test_base64_of_the_wrong_byte_order(case, peer):
    for vectors, wrong in ((peer(), []), (peer(prompt=""), ["prefix missing"])):
        answer = base64.b64encode(vectors.astype(">f4").tobytes())
        decoded = np.frombuffer(base64.b64decode(answer), "<f4").reshape(vectors.shape)
        assert deviations(case, decoded) == [*wrong, "wrong byte order"]
    with np.errstate(invalid="ignore"):
        doubles = decoded.astype(np.float64)
    with pytest.raises(ValueError, match="wrong order; give them in float32"):
        diagnose(case.texts, doubles, [case.model])
    with pytest.raises(ValueError, match="holds NaN"):  # absurd with their bytes in either order
        diagnose(case.texts, np.where(np.arange(vectors.shape[1]) == 3, np.nan, 1e30 * vectors), [case.model])


@pytest.mark.peer
def test_texts_cleaned_beforehand(case, peer):
    texts = list(case.texts)
    texts[::3] = [f"{html.escape(text)} &ndash; it&#39;s" for text in texts[::3]]
    clean = [html.unescape(text) for text in texts]
    for prompt, wrong in (("query: ", []), ("", ["prefix missing"])):
        diagnosis = diagnose(texts, peer(clean, prompt), [case.model])
        assert diagnosis.verdict == "found", str(diagnosis)
        assert list(diagnosis.findings[0].deviations) == [*wrong, "HTML unescaped"], str(diagnosis)
    for vectors in (peer(texts), peer([f" {text.lower()} " for text in texts])):  # the tokenizer does that itself
        assert diagnose(texts, vectors, [case.model]).verdict == "correct"


def test_cleaning_that_a_tokenizer_does_not_do_itself(tmp_path):
    folder = write_random_bert(tmp_path / "cased")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    edit_json(folder / "tokenizer.json", normalizer=tokenizer["normalizer"] | {"lowercase": False})
    texts = ["How much is Water", "the Sun and the Dog", "what do plants need, Cat", "a man"]
    model = e5ref.load(folder)
    found = diagnose(texts, model.encode_query([text.lower() for text in texts]), [folder])
    assert found.findings[0].deviations == ("lower-cased",), str(found)
    assert diagnose(texts, model.encode_query(texts), [folder]).verdict == "correct"

    folder = write_random_bert(tmp_path / "xlm", model_type="xlm-roberta")
    write_unigram(folder)
    edit_json(folder / "config.json", pad_token_id=1)
    texts = ["  query eat ", "eat:  query", " eat&amp; query", "query: eat eat"]
    model = e5ref.load(folder)
    for clean, names in (
        (str, []),
        (str.strip, ["stripped"]),
        (html.unescape, ["HTML unescaped"]),
        (lambda text: html.unescape(text).strip(), ["HTML unescaped", "stripped"]),
    ):
        found = diagnose(texts, model.encode_query([clean(text) for text in texts]), [folder])
        assert list(found.findings[0].deviations) == names, str(found)


@pytest.mark.peer
@pytest.mark.parametrize("ends", [False, True])
def test_sentencepiece_words_on_berts_vocabulary(ends, case):
    """Every word becomes [UNK]: the vocabulary has no "▁"."""
    what = "ids 0 and 2 for [CLS] and [SEP]" if ends else "no [CLS] and no [SEP]"
    assert deviations(case, mean_vectors(case, marked_ids(case, ends))) == [f'"▁" before each word, {what}']


@pytest.mark.peer
@pytest.mark.parametrize(
    ("prefixed", "weighted", "normalized"),
    [(False, False, False), (False, True, True), (True, False, True), (True, True, False)],
)
def test_averages_over_chunks(prefixed, weighted, normalized, case):
    tokenizer = AutoTokenizer.from_pretrained(case.folder)
    vectors = []
    for text in case.texts:
        chunks = chunk_ids(tokenizer, text, 64, prefixed)
        of_chunks = mean_vectors(case, chunks, normalize=normalized)
        vectors.append(np.average(of_chunks, axis=0, weights=[len(ids) - 2 if weighted else 1 for ids in chunks]))
    named = deviations(case, renormalized(np.stack(vectors)))
    options = ["prefix before each chunk"] * prefixed + ["chunks weighted by their tokens"] * weighted
    options += ["chunks normalised first"] * normalized
    assert named == ["averaged over chunks of 64 tokens", *options]


@pytest.fixture(scope="module")
def revision(case, tmp_path_factory) -> Path:
    return write_revision(case.folder, tmp_path_factory.mktemp("revision") / case.folder.name)


@pytest.mark.peer
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_two_revisions_behind_one_balancer(share, case, peer, revision):
    rows = np.sort(np.random.default_rng(1).permutation(20)[: int(20 * share)])
    vectors = peer()
    vectors[rows] = peer_vectors(replace(case, folder=revision))[rows]
    diagnosis = diagnose(case.texts, vectors, [case.model])
    assert diagnosis.verdict == "mixed", str(diagnosis)
    assert f"{20 - len(rows)} of 20 texts as the card says" in diagnosis.answer
    assert f"{len(rows)} come from a second model" in diagnosis.answer
    assert f"texts {', '.join(map(str, rows))} (counted" in diagnosis.answer


@pytest.mark.peer
def test_what_is_no_second_model(case, peer, revision):
    """All vectors of the revision; the long texts' only; the vectors of different texts; rounding."""
    vectors, other = peer(), peer_vectors(replace(case, folder=revision))
    assert diagnose(case.texts, other, [case.model]).verdict == "unknown"
    long = np.argsort([len(text) for text in case.texts])[-6:]
    alternate = np.arange(20) % 2 == 1
    for rows, changed in (
        (long, other),
        (alternate, np.roll(other, 2, axis=0)),
        (alternate, peer(dtype="float16")),
    ):
        mixed = vectors.copy()
        mixed[rows] = changed[rows]
        diagnosis = diagnose(case.texts, mixed, [case.model])
        assert diagnosis.verdict in ("mixed", "unknown"), str(diagnosis)
        assert "second model" not in diagnosis.answer


@pytest.mark.peer
def test_neighbours_of_these_kinds_are_unknown(case, peer):
    """Chunks of a length that nobody expects, a different approximation of GELU, "▁" between [CLS] and [SEP], noise
    that is larger than float32's and smaller than float16's.
    """
    tokenizer = AutoTokenizer.from_pretrained(case.folder)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    chunked = [
        renormalized(mean_vectors(case, chunk_ids(tokenizer, text, 50, False)).mean(axis=0, keepdims=True))[0]
        for text in case.texts
    ]
    unexpected = [
        np.stack(chunked),
        # With random weights it moves vectors as far, and as evenly, as bfloat16, whose name it then gets.
        *([] if case.folder.name == "random" else [peer(activation="quick_gelu")]),
        mean_vectors(case, [[cls, *ids[:50], sep] for ids in marked_ids(case, False)]),
        renormalized(peer() + 2e-6 * np.random.default_rng(0).standard_normal(peer().shape)),
    ]
    for vectors in unexpected:
        diagnosis = diagnose(case.texts, vectors, [case.model])
        assert diagnosis.verdict in ("unknown", "mixed"), str(diagnosis)
        assert "second model" not in diagnosis.answer
