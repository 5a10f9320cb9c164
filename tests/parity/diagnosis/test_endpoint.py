"""Live services, played by a small server on loopback."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import e5ref
from e5ref.parity.diagnosis.endpoint import EndpointError, fetch_vectors
from tests.tools.processes import fails, run

KEY = "sk-very-secret"


@contextmanager
def service(answer, *, key: str | None = None):
    """Serve `answer(path, body)`: JSON, raw bytes, (status, text), or None for no answer at all."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, body, self.headers.get("Authorization")))
            result = answer(self.path, body)
            if result is None:
                return
            status = 200
            if key is not None and self.headers.get("Authorization") != f"Bearer {key}":
                status, result = 401, f"bad key {self.headers.get('Authorization')}".encode()
            elif isinstance(result, tuple):
                status, result = result
            content = result if isinstance(result, bytes) else json.dumps(result).encode()
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/elsewhere/embed")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def openai(vectors_of):
    """Answer as OpenAI does, the last text first."""
    return lambda _path, body: {
        "data": [{"index": i, "embedding": v} for i, v in enumerate(vectors_of(body["input"]))][::-1]
    }


def lengths(texts):
    return [[float(len(text)), 1.0] for text in texts]


@pytest.mark.parametrize(
    ("path", "answer"),
    [("/v1/embeddings", openai(lengths)), ("/embed", lambda _, body: lengths(body["inputs"]))],
)
def test_vectors_come_in_the_order_of_the_texts(path, answer):
    texts = ["a" * n for n in (3, 1, 2, 7, 5)]
    with service(answer) as (url, seen):
        vectors = fetch_vectors(url + path, texts, batch_size=2)
    assert vectors[:, 0].tolist() == [3, 1, 2, 7, 5]
    assert len(seen) == 3


def test_the_key_is_sent_and_never_shown(monkeypatch):
    monkeypatch.setenv("E5REF_API_KEY", KEY)
    with service(openai(lengths), key=KEY) as (url, seen):
        assert len(fetch_vectors(f"{url}/v1/embeddings", ["a"])) == 1
    assert seen[0][2] == f"Bearer {KEY}"
    with (
        service(openai(lengths), key="another") as (url, _),
        pytest.raises(EndpointError, match="answers 401") as error,
    ):
        fetch_vectors(f"{url}/v1/embeddings", ["a"])
    assert "E5REF_API_KEY" in str(error.value)
    assert KEY not in str(error.value)


def test_a_redirect_is_not_followed():
    with service(lambda *_: (302, b"")) as (url, seen), pytest.raises(EndpointError, match="redirects to"):
        fetch_vectors(f"{url}/embed", ["a"])
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((500, b"out of\nmemory"), "answers 500 Internal Server Error: out of memory"),
        (b"<html>", "does not answer with JSON"),
        ({"error": "x"}, r"answer with \[\[numbers"),
        ([[1.0, "2"]], r"answer with \[\[numbers"),
        ([[1.0], [2.0]], "2 vectors for 1 texts"),
        ([[]], "or with empty ones"),
        ([1.0], r"answer with \[\[numbers"),
    ],
)
def test_wrong_answers_are_one_sentence(answer, message):
    with service(lambda *_: answer) as (url, _), pytest.raises(EndpointError, match=message) as error:
        fetch_vectors(f"{url}/embed", ["a"])
    assert "\n" not in str(error.value)


def test_vectors_of_different_lengths():
    with (
        service(lambda _, body: [[1.0] * len(text) for text in body["inputs"]]) as (url, _),
        pytest.raises(EndpointError, match="different lengths: 1 and 2"),
    ):
        fetch_vectors(f"{url}/embed", ["a", "bb"])


def test_a_service_that_is_slow_or_away():
    stop = threading.Event()

    def no_answer(*_):  # by then the client has gone, and a write would break the pipe
        stop.wait(10)

    with service(no_answer) as (url, _):
        with pytest.raises(EndpointError, match=r"within 0\.2 seconds"):
            fetch_vectors(f"{url}/embed", ["a"], timeout=0.2)
        stop.set()
    with pytest.raises(EndpointError, match="cannot be reached"):
        fetch_vectors(f"{url}/embed", ["a"])


@pytest.mark.parametrize("url", ["file:///etc/embed", "localhost/embed", "http://localhost/v1/chat"])
def test_other_addresses_are_refused(url):
    with pytest.raises(EndpointError):
        fetch_vectors(url, ["a"])


def test_command(tiny_bert, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("the dog\nhow much water should a cat eat\n")
    model = e5ref.load(tiny_bert)
    options = ["diagnose", "--texts", texts, "--model", tiny_bert, "--endpoint"]
    with service(openai(lambda batch: model.encode_query(batch).tolist())) as (url, seen):
        assert run(*options, f"{url}/v1/embeddings", "--endpoint-model", "e5").stdout.startswith(b"Correct: ")
        assert seen[0][1]["model"] == "e5"
        assert "must end in" in fails(*options, url)
    with service(lambda _, body: model.encode(body["inputs"]).tolist()) as (url, _):
        assert b"prefix missing" in run(*options, f"{url}/embed", code=1).stdout
