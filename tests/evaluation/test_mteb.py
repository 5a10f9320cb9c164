"""The adapter in the real mteb, on small tasks of every type."""

import dataclasses
import socket
import warnings

import numpy as np
import pytest

import e5ref
from e5ref.checkpoint.prompts import E5_PROMPTS
from tests.tools.tolerances import EVALUATION, VECTORS

mteb = pytest.importorskip("mteb")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from datasets import Dataset, DatasetDict
    from mteb.abstasks.classification import AbsTaskClassification
    from mteb.abstasks.clustering import AbsTaskClustering
    from mteb.abstasks.pair_classification import AbsTaskPairClassification
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
    from mteb.abstasks.sts import AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.abstasks.text.bitext_mining import AbsTaskBitextMining
    from mteb.abstasks.text.summarization import AbsTaskSummarization
    from mteb.models.models_protocols import EncoderProtocol
    from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
    from sentence_transformers import SentenceTransformer

    from e5ref.evaluation.mteb import Encoder

pytestmark = [
    pytest.mark.peer,
    pytest.mark.filterwarnings("default"),  # what mteb, datasets and scikit-learn warn of is not ours
]

CATS = ["a cat sat on the mat", "cats hunt mice", "my cat sleeps all day", "the kitten plays", "a cat drinks milk"]
STARS = ["the sun is a star", "stars shine at night", "a star is born of gas", "our galaxy", "light from a far star"]
ANIMALS = ["dogs bark", "a horse runs", "birds sing", "the cow eats grass", "fish swim"]
TEXTS, LABELS = CATS + STARS, [0] * 5 + [1] * 5


def metadata(task_type: str, name: str, main_score: str) -> TaskMetadata:
    return TaskMetadata(
        **{"name": name, "type": task_type, "main_score": main_score, "description": "a task of a test"},
        **{"dataset": {"path": "none", "revision": "none"}, "eval_splits": ["test"], "eval_langs": ["eng-Latn"]},
        **{"reference": None, "date": None, "domains": None, "license": None, "annotations_creators": None},
        **{"task_subtypes": None, "dialect": None, "sample_creation": None, "bibtex_citation": "", "category": "t2t"},
    )


class Local:
    """A task whose data is here."""

    def load_data(self, **_):
        self.dataset, self.data_loaded = self.make(), True


class STS(Local, AbsTaskSTS):
    metadata = metadata("STS", "LocalSTS", "cosine_spearman")

    def make(self):
        rows = {"sentence1": TEXTS, "sentence2": CATS[::-1] + ANIMALS, "score": [5, 3, 5, 2, 4, 0, 1, 0, 1, 0]}
        return DatasetDict(test=Dataset.from_dict(rows))


class PairClassification(Local, AbsTaskPairClassification):
    metadata = metadata("PairClassification", "LocalPairs", "similarity_ap")

    def make(self):
        rows = {"sentence1": TEXTS, "sentence2": CATS[::-1] + ANIMALS, "labels": [1] * 5 + [0] * 5}
        return DatasetDict(test=Dataset.from_dict(rows))


class Classification(Local, AbsTaskClassification):
    metadata = metadata("Classification", "LocalClasses", "accuracy")
    samples_per_label = 4

    def make(self):
        train = {"text": TEXTS, "label": LABELS}
        test = {"text": [*ANIMALS, "a cat and a star", "night", "mice"], "label": [0] * 5 + [1, 1, 0]}
        return DatasetDict(train=Dataset.from_dict(train), test=Dataset.from_dict(test))


class Clustering(Local, AbsTaskClustering):
    metadata = metadata("Clustering", "LocalClusters", "v_measure")
    max_fraction_of_documents_to_embed = None
    max_document_to_embed = 15

    def make(self):
        rows = {"sentences": TEXTS + ANIMALS, "labels": LABELS + [2] * 5}
        return DatasetDict(test=Dataset.from_dict(rows))


def retrieval_data(top_ranked=None) -> dict:
    documents = [
        {"id": f"d{number}", "title": "On animals" if number % 2 else "", "text": text}
        for number, text in enumerate(TEXTS + ANIMALS)
    ]
    queries = [{"id": "q0", "text": "what do cats do"}, {"id": "q1", "text": "what is a star"}]
    relevant = {"q0": {"d1": 1, "d2": 1, "d14": 1}, "q1": {"d5": 1, "d9": 1}}
    data = RetrievalSplitData(
        corpus=Dataset.from_list(documents),
        queries=Dataset.from_list(queries),
        relevant_docs=relevant,
        top_ranked=top_ranked,
    )
    return {"default": {"test": data}}


class Retrieval(Local, AbsTaskRetrieval):
    metadata = metadata("Retrieval", "LocalRetrieval", "ndcg_at_10")

    def make(self):
        return retrieval_data()


class Quora(Retrieval):
    metadata = metadata("Retrieval", "QuoraRetrieval", "ndcg_at_10")


class Reranking(Local, AbsTaskRetrieval):
    metadata = metadata("Reranking", "LocalReranking", "map_at_1000")

    def make(self):
        ranked = [f"d{number}" for number in range(15)]
        return retrieval_data({"q0": ranked, "q1": ranked[::-1]})


class Summarization(Local, AbsTaskSummarization):
    metadata = metadata("Summarization", "LocalSummaries", "cosine_spearman")
    min_score, max_score = 0, 5

    def make(self):
        rows = {"text": ["of cats", "of stars"], "human_summaries": [CATS[:2], STARS[:2]]}
        rows |= {"machine_summaries": [CATS[2:], STARS[2:]], "relevance": [[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]]}
        return DatasetDict(test=Dataset.from_dict(rows))


class BitextMining(Local, AbsTaskBitextMining):
    metadata = metadata("BitextMining", "LocalBitexts", "f1")

    def make(self):
        return DatasetDict(test=Dataset.from_dict({"sentence1": CATS, "sentence2": CATS[1:] + CATS[:1]}))


TASKS = [
    *(STS, PairClassification, Classification, Clustering, Retrieval, Quora, Reranking, Summarization, BitextMining)
]


@pytest.fixture(scope="module")
def model(minilm):
    """A trained model with E5's prompts, though it was not trained with them: so that the prompts matter."""
    checkpoint = e5ref.read_checkpoint(minilm)
    settings = dataclasses.replace(checkpoint.settings, prompts=E5_PROMPTS)
    return e5ref.E5(dataclasses.replace(checkpoint, settings=settings))


@pytest.fixture(scope="module")
def theirs(minilm):
    """The same weights in sentence-transformers, behind mteb's own wrapper with the prompts that it has for E5."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = SentenceTransformer(str(minilm), device="cpu", local_files_only=True)
        return SentenceTransformerEncoderWrapper(loaded, model_prompts={"query": "query: ", "document": "passage: "})


@pytest.fixture
def calls(monkeypatch):
    """What the adapter embeds: (prompt, texts, normalize_embeddings) of each call."""
    calls = []
    encode = e5ref.E5.encode

    def record(self, texts, **options):
        calls.append((options["prompt"], list(texts), options["normalize_embeddings"]))
        return encode(self, texts, **options)

    monkeypatch.setattr(e5ref.E5, "encode", record)
    return calls


@pytest.fixture(autouse=True)
def no_socket(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def main_score(model, task) -> float:
    (result,) = mteb.evaluate(model, task(), cache=None, show_progress_bar=False, co2_tracker=False).task_results
    return result.get_score()


def test_it_is_an_encoder(model):
    encoder = Encoder(model)
    assert isinstance(encoder, EncoderProtocol)
    assert encoder.mteb_model_meta.name == "e5ref/model"
    assert encoder.mteb_model_meta.revision == model.checkpoint.weights_sha256


def test_results_of_two_protocols_are_filed_apart(model):
    names = {Encoder(model, protocol=protocol).mteb_model_meta.experiment_name for protocol in ("authors", "mteb")}
    assert len(names) == 2
    assert all("float32" in name and "numpy" in name for name in names)


# Worked by hand from the authors' scripts: the prompts of all calls, and whether vectors are normalised.
AUTHORS = {
    STS: (["query: "] * 2, True),
    PairClassification: (["query: "] * 2, True),
    Classification: (None, False),
    Clustering: (None, True),
    Retrieval: (["query: ", "passage: "], True),
    Quora: (["query: ", "query: "], True),
    Reranking: (["query: ", "query: "], True),
    Summarization: (None, True),
    BitextMining: (None, True),
}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_the_authors_prompts(model, calls, task):
    main_score(Encoder(model), task)
    prompts, normalize = AUTHORS[task]
    assert {call[2] for call in calls} == {normalize}
    if prompts is None:
        assert {call[0] for call in calls} == {"query: "}
    else:
        assert [call[0] for call in calls] == prompts


def test_titles(model, calls):
    for task in (Retrieval, Quora):
        main_score(Encoder(model), task)
    with_titles, without = calls[1][1], calls[3][1]
    assert with_titles[:2] == ["a cat sat on the mat", "On animals cats hunt mice"]
    assert without == TEXTS + ANIMALS


def vectors_and_score(encoder, task, monkeypatch) -> tuple[list, float]:
    """What an encoder returns, call by call, and what mteb makes of it."""
    vectors = []
    encode = type(encoder).encode

    def record(self, *arguments, **options):
        vectors.append(encode(self, *arguments, **options))
        return vectors[-1]

    with monkeypatch.context() as patched:
        patched.setattr(type(encoder), "encode", record)
        return vectors, main_score(encoder, task)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_protocol_mteb_is_what_mteb_does(model, theirs, task, monkeypatch):
    expected, expected_score = vectors_and_score(theirs, task, monkeypatch)
    vectors, score = vectors_and_score(Encoder(model, protocol="mteb"), task, monkeypatch)
    assert len(vectors) == len(expected) > 0
    for ours, other in zip(vectors, expected, strict=True):
        np.testing.assert_allclose(ours, other, rtol=0, atol=VECTORS["float32"])
    assert score == pytest.approx(expected_score, abs=EVALUATION)


@pytest.mark.parametrize("task", [STS, PairClassification, Classification, Clustering, Quora, Reranking])
def test_the_authors_protocol_is_another(model, theirs, task, monkeypatch):
    """The comparison above can fail."""
    expected, _ = vectors_and_score(theirs, task, monkeypatch)
    vectors, _ = vectors_and_score(Encoder(model), task, monkeypatch)
    apart = max(np.abs(ours - other).max() for ours, other in zip(vectors, expected, strict=True))
    assert apart > 1e-3


def test_what_it_does_not_have_is_refused(model):
    with pytest.raises(ValueError, match="protocol is 'mtebb'"):
        Encoder(model, protocol="mtebb")
    with pytest.raises(ValueError, match="no option 'precision'"):
        Encoder(model).encode([], task_metadata=STS.metadata, hf_split="", hf_subset="", precision="int8")
    with pytest.raises(ValueError, match="LocalSTS has inputs without 'text'"):
        Encoder(model).encode([{"image": []}], task_metadata=STS.metadata, hf_split="", hf_subset="")


def test_similarity(model):
    encoder = Encoder(model)
    a, b = model.encode(CATS), model.encode(STARS, normalize_embeddings=False)
    table = encoder.similarity(a, b)
    assert table.shape == (5, 5)
    np.testing.assert_array_equal(table, model.similarity(a, b))
    np.testing.assert_array_equal(encoder.similarity_pairwise(a, b), table.diagonal())
    assert float(encoder.similarity(a[0], b[0])) == float(table[0, 0])
