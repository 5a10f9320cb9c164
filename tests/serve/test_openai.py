"""OpenAI's route, asked by the clients that people have."""

import asyncio
import base64

import numpy as np
import pytest
import requests

from tests.serve.conftest import NANO

openai = pytest.importorskip("openai")

TEXTS = ["query: how do plants eat", "passage: Leaves turn light into sugar.", "", "naïve café 日本語 🙂"]


def vectors(answer) -> np.ndarray:
    return np.array([entry.embedding for entry in answer.data], np.float32)


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}])  # without a word, the client asks for base64
def test_the_client_gets_the_bits_of_encode(client, nano, encoding):
    answer = client.embeddings.create(model=NANO, input=TEXTS, **encoding)
    np.testing.assert_array_equal(vectors(answer), nano.encode(TEXTS))
    assert [entry.index for entry in answer.data] == [0, 1, 2, 3]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens == nano.tokenizer(TEXTS).offsets[-1]


def test_the_asynchronous_client(url, nano):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            one_by_one = [client.embeddings.create(model=NANO, input=text) for text in TEXTS]
            return await asyncio.gather(*one_by_one)

    np.testing.assert_array_equal(
        np.concatenate([vectors(answer) for answer in asyncio.run(ask())]), nano.encode(TEXTS)
    )


def test_base64_is_little_endian_float32(url, nano):
    body = {"model": NANO, "input": TEXTS[0], "encoding_format": "base64"}
    entry = requests.post(f"{url}/v1/embeddings", json=body, timeout=30).json()["data"][0]
    assert base64.b64decode(entry["embedding"]) == nano.encode(TEXTS[0]).astype("<f4").tobytes()


def test_token_ids(client, nano):
    ids = [text.tolist() for text in nano.tokenizer(TEXTS).texts()]
    np.testing.assert_array_equal(vectors(client.embeddings.create(model=NANO, input=ids)), nano.encode(TEXTS))
    one = client.embeddings.create(model=NANO, input=ids[0])
    np.testing.assert_array_equal(vectors(one), nano.encode(TEXTS[:1]))


@pytest.mark.filterwarnings("ignore:truncate_dim=5")
def test_dimensions(client, nano):
    answer = client.embeddings.create(model=NANO, input=TEXTS, dimensions=5)
    np.testing.assert_array_equal(vectors(answer), nano.encode(TEXTS, truncate_dim=5))


@pytest.mark.parametrize("name", ["prompt_name", "input_type"])
@pytest.mark.parametrize("prompt", ["query", "passage", "document"])
def test_prompts(client, nano, name, prompt):
    answer = client.embeddings.create(model=NANO, input="the sun", user="me", extra_body={name: prompt})
    np.testing.assert_array_equal(vectors(answer)[0], nano.encode("the sun", prompt_name=prompt))


def test_truncation_is_never_silent(client, nano):
    text = "sun " * 1000
    with pytest.raises(openai.APIStatusError, match=r"texts\[1\] has 1002 tokens, more than 256; split it") as caught:
        client.embeddings.create(model=NANO, input=["a", text])
    assert caught.value.status_code == 413
    answer = client.embeddings.create(model=NANO, input=text, extra_body={"truncate": True})
    np.testing.assert_array_equal(vectors(answer)[0], nano.encode(text, truncation="allow"))
    assert answer.usage.total_tokens == 256


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "gpt"}, 404, "the model 'gpt' is not served here; 'e5ref-nano' is"),
        ({"input": []}, 400, "input must be a text, a list of texts, a list of token ids, or a list of such lists"),
        ({"input": ["a", 3]}, 400, "input must be a text, a list of texts"),
        ({"input": ["a"] * 65}, 413, "65 texts are more than 64 in one request; send fewer"),
        ({"input": [5, 6]}, 400, "the token ids of texts[0] must begin with 2 and end with 3"),
        ({"input": [[2, 3], [2]]}, 400, "the token ids of texts[1] must begin with 2 and end with 3"),
        ({"input": [2, 99999, 3]}, 400, "texts[0] has the token id 99999, but the ids end at"),
        ({"input": [2, *[5] * 255, 3]}, 413, "texts[0] has 257 tokens, more than 256; cut it"),
        ({"input": [2, 3], "prompt_name": "query"}, 400, "a prompt goes before a text, not before token ids"),
        ({"input": "\ud800"}, 400, "texts[0] is not valid Unicode"),
        ({"input": " " * 2_000_000 + "a"}, 400, None),
        ({"dimensions": 0}, 400, "dimensions: input should be greater than or equal to 1"),
        ({"dimensions": 257}, 400, "dimensions is 257, but the model has 256"),
        ({"dimensions": "5"}, 400, "dimensions: input should be a valid integer"),
        ({"encoding_format": "hex"}, 400, "encoding_format: input should be 'float' or 'base64'"),
        ({"prompt_name": "poem"}, 400, "unknown prompt_name 'poem': this checkpoint has ['passage', 'query']"),
        ({"prompt_name": "query", "input_type": "query"}, 400, "give prompt_name or input_type, not both"),
        ({"dimension": 5}, 400, "unknown field 'dimension'"),
    ],
)
def test_a_bad_request_is_told_why(url, body, status, message):
    answer = requests.post(f"{url}/v1/embeddings", json={"model": NANO, "input": "a"} | body, timeout=30)
    if message is None:  # white space is one token at most, however long: no bad request at all
        assert answer.status_code == 200
        return
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error.pop("message").startswith(message)
    assert error == {"type": "invalid_request_error", "param": None, "code": None}


def test_models(client):
    assert [model.id for model in client.models.list()] == [NANO]
    assert client.models.retrieve(NANO).id == NANO
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


def test_langchain(url, nano):
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    embeddings = langchain.OpenAIEmbeddings(
        base_url=f"{url}/v1", api_key="none", model=NANO, check_embedding_ctx_length=False
    )
    np.testing.assert_array_equal(np.array(embeddings.embed_documents(TEXTS), np.float32), nano.encode(TEXTS))
    np.testing.assert_array_equal(np.array(embeddings.embed_query(TEXTS[0]), np.float32), nano.encode(TEXTS[0]))


def test_llama_index(url, nano):
    llama_index = pytest.importorskip("llama_index.embeddings.openai", reason="LlamaIndex is not installed")
    embeddings = llama_index.OpenAIEmbedding(api_base=f"{url}/v1", api_key="none", model_name=NANO)
    found = embeddings.get_text_embedding_batch(TEXTS[:2])
    np.testing.assert_array_equal(np.array(found, np.float32), nano.encode(TEXTS[:2]))
