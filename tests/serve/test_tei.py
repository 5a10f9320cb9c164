"""The routes of text-embeddings-inference, asked by Hugging Face's client and as they are."""

import numpy as np
import pytest
import requests
from huggingface_hub import InferenceClient, constants

from e5ref import numpy_model
from tests.serve.conftest import NANO

TEXTS = ["query: how do plants eat", "passage: Leaves turn light into sugar.", ""]


@pytest.fixture(autouse=True)
def online(monkeypatch):
    """conftest.py keeps all tests off the hub, and with it this client off our service."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def ask(url):
    def post(path, **body):
        answer = requests.post(url + path, json=body, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()

    return post


@pytest.mark.parametrize("path", ["", "/embed"])
def test_the_client_gets_the_bits_of_encode(url, nano, path):
    client = InferenceClient(model=url + path)
    np.testing.assert_array_equal(client.feature_extraction(TEXTS[0]), nano.encode(TEXTS[:1]))
    options = {"normalize": False, "prompt_name": "query", "truncate": True, "truncation_direction": "Right"}
    expected = nano.encode_query(["sun " * 1000], normalize_embeddings=False, truncation="allow")
    np.testing.assert_array_equal(client.feature_extraction("sun " * 1000, **options), expected)


@pytest.mark.filterwarnings("ignore:truncate_dim=5")
def test_embed(ask, nano):
    ids = [text.tolist() for text in nano.tokenizer(TEXTS).texts()]
    for inputs in (TEXTS, ids):
        np.testing.assert_array_equal(np.array(ask("/embed", inputs=inputs), np.float32), nano.encode(TEXTS))
    found = np.array(ask("/embed", inputs=TEXTS, dimensions=5), np.float32)
    np.testing.assert_array_equal(found, nano.encode(TEXTS, truncate_dim=5))


def test_embed_all(ask, nano):
    found = ask("/embed_all", inputs=TEXTS)
    for states, ids in zip(found, nano.tokenizer(TEXTS).texts(), strict=True):
        mask = np.ones((1, len(ids)), np.int32)
        expected = numpy_model.forward(nano.checkpoint.params, ids[None], mask, config=nano.checkpoint.config)
        np.testing.assert_array_equal(np.array(states, np.float32), expected[0])


def test_similarity(ask, url, nano):
    expected = nano.similarity(nano.encode(TEXTS[0]), nano.encode(TEXTS[1:]))[0]
    inputs = {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}
    np.testing.assert_array_equal(np.array(ask("/similarity", inputs=inputs), np.float32), expected)
    found = InferenceClient(model=f"{url}/similarity").sentence_similarity(TEXTS[0], TEXTS[1:])
    np.testing.assert_array_equal(np.array(found, np.float32), expected)
    found = ask("/similarity", inputs=inputs, parameters={"prompt_name": "query"})
    expected = nano.similarity(nano.encode_query(TEXTS[0]), nano.encode_query(TEXTS[1:]))[0]
    np.testing.assert_array_equal(np.array(found, np.float32), expected)


def test_tokenize(ask, nano):
    text = "How MUCH protein?"
    (tokens,) = ask("/tokenize", inputs=text, prompt_name="query")
    ids = nano.tokenize(f"query: {text}")["input_ids"][0].tolist()
    assert [token["id"] for token in tokens] == ids
    assert [token["text"] for token in tokens] == nano.tokenizer.token_strings(ids)
    assert [token["special"] for token in tokens] == [True, *[False] * (len(ids) - 2), True]
    assert [f"query: {text}"[token["start"] : token["stop"]] for token in tokens][1:4] == ["query", ":", "How"]
    (bare,) = ask("/tokenize", inputs=[f"query: {text}"], add_special_tokens=False)
    assert bare == tokens[1:-1]


def test_what_is_served(url, nano):
    info = requests.get(f"{url}/info", timeout=30).json()
    expected = {"model_id": NANO, "max_input_length": 256, "max_client_batch_size": 64, "auto_truncate": False}
    assert expected.items() <= info.items()
    assert info["provenance"]["weights_sha256"] == nano.checkpoint.weights_sha256
    assert requests.get(f"{url}/health", timeout=30).status_code == 200


def test_metrics(url):
    requests.post(f"{url}/embed", json={"inputs": ["a", "b"]}, timeout=30)
    requests.post(f"{url}/embed", json={}, timeout=30)
    requests.get(f"{url}/nowhere", timeout=30)
    lines = requests.get(f"{url}/metrics", timeout=30).text.splitlines()
    counted = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    for route, status in (("/embed", 200), ("/embed", 422), ("none", 404)):
        assert float(counted[f'e5ref_requests_total{{route="{route}",status="{status}"}}']) >= 1
    assert float(counted["e5ref_texts_total"]) >= 2
    assert float(counted["e5ref_tokens_total"]) >= 6
    assert float(counted["e5ref_waiting_texts"]) == 0
    assert float(counted['e5ref_request_seconds_count{route="/embed"}']) >= 2


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/embed", {"inputs": []}, 422, "inputs must be a text, a list of texts, a list of token ids"),
        ("/embed", {"inputs": "sun " * 1000}, 413, "texts[0] has 1002 tokens, more than 256; split it, or send"),
        (
            "/embed",
            {"inputs": "a", "truncation_direction": "Left"},
            422,
            "truncation_direction: input should be 'Right'",
        ),
        ("/embed", {"inputs": "a", "prompt_name": "poem"}, 422, "unknown prompt_name 'poem'"),
        ("/embed", {}, 422, "inputs is missing"),
        ("/embed", [], 422, "the body must be a JSON object, sent as application/json"),
        ("/embed_all", {"inputs": ["a b c"] * 65}, 413, "65 texts are more than 64"),
        (
            "/similarity",
            {"inputs": {"source_sentence": "a", "sentences": []}},
            422,
            "inputs.sentences: list should have",
        ),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["a"] * 64}}, 413, "65 texts are more"),
        ("/tokenize", {"inputs": ["\ud800"]}, 422, "texts[0] is not valid Unicode"),
        ("/tokenize", {"inputs": ["a"] * 65}, 413, "65 texts are more than 64"),
        ("/nowhere", {}, 404, "Not Found"),
    ],
)
def test_a_bad_request_is_told_why(url, path, body, status, message):
    answer = requests.post(url + path, json=body, timeout=30)
    assert answer.status_code == status
    assert answer.json()["error"].startswith(message)
    assert set(answer.json()) == {"error", "error_type"}


def test_hidden_states_are_bounded(nano):
    from e5ref.serve.service import MAX_HIDDEN_TOKENS, Limits
    from tests.serve.conftest import serving

    with serving(nano, limits=Limits()) as url:
        answer = requests.post(f"{url}/embed_all", json={"inputs": ["sun " * 254] * 65}, timeout=30)
    assert answer.status_code == 413
    assert f"more than {MAX_HIDDEN_TOKENS}" in answer.json()["error"]
