"""Bodies that no client should send, and what an answer to one must be."""

import json
from typing import Any

import requests
from hypothesis import strategies as st

PATHS = ("/v1/embeddings", "/embed", "/embed_all", "/similarity", "/tokenize", "/")

# Right bodies, whose fields are replaced.
BODIES: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": "a", "model": "e5ref-nano", "encoding_format": "float", "dimensions": 3, "user": "u"},
    "/embed": {"inputs": "a", "truncate": True, "normalize": True, "prompt_name": "query", "dimensions": 3},
    "/embed_all": {"inputs": "a", "truncate": True},
    "/similarity": {"inputs": {"source_sentence": "a", "sentences": ["b"]}, "parameters": {"truncate": True}},
    "/tokenize": {"inputs": "a", "add_special_tokens": True},
    "/": {"inputs": "a"},
}

text = st.text(st.characters(codec=None), max_size=20)  # with lone surrogates
leaves = st.none() | st.booleans() | st.integers() | st.floats() | text | st.sampled_from([10**400, -1, 2**63])
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=3))


@st.composite
def requests_of(draw: st.DrawFn) -> tuple[str, bytes, dict[str, str]]:
    """A path, a body and its headers: bytes, any JSON, a right body cut off, or one with fields that are not right."""
    path = draw(st.sampled_from(PATHS))
    body = dict(BODIES[path])
    for name in draw(st.lists(st.sampled_from([*body, "another"]), max_size=3)):
        if draw(st.booleans()):
            body[name] = draw(values)
        else:
            body.pop(name, None)
    written = json.dumps(body).encode()
    content = draw(
        st.just(written)
        | st.binary(max_size=50)
        | values.map(lambda value: json.dumps(value).encode())
        | st.integers(0, len(written)).map(lambda size: written[:size])
        | st.sampled_from([b"[" * 100_000, b'{"a":' * 10_000, b'{"inputs":' + b"9" * 10_000 + b"}"])
    )
    kinds = ["application/json", "application/json; charset=utf-16", "text/plain", "multipart/form-data", ""]
    return path, content, {"Content-Type": draw(st.sampled_from(kinds))}


def check_answer(url: str, path: str, content: bytes, headers: dict[str, str], session: requests.Session) -> int:
    """Send a body; the answer must be right, or say in the route's form what is wrong. Return the status."""
    answer = session.post(url + path, data=content, headers=headers, timeout=60)
    assert answer.status_code == 200 or 400 <= answer.status_code < 500, (answer.status_code, answer.text)
    if answer.status_code != 200:
        error = answer.json()["error"]
        message = error["message"] if path.startswith("/v1/") else error
        assert isinstance(message, str)
        assert message
        assert "Traceback" not in message
    return answer.status_code
