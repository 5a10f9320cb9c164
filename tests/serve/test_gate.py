"""What a request meets before its body is read, and what happens while it waits."""

import copy
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest
import requests

from e5ref.serve import gate
from e5ref.serve.service import Limits
from tests.serve.conftest import NANO, serving

KEY = "a key"


class HeldEngine:
    """Computes nothing before it is let go, and takes no texts off the queue until then."""

    is_accelerator = True

    def __init__(self, engine) -> None:
        self.engine, self.window_texts = engine, engine.window_texts
        self.go = threading.Event()

    def run(self, windows, **options):
        self.go.wait()
        return self.engine.run(windows, **options)

    def provenance(self):
        return self.engine.provenance()


@pytest.fixture
def held(nano):
    """A model whose engine waits for `held.engine.go`."""
    model = copy.copy(nano)
    model.engine = HeldEngine(nano.engine)
    yield model
    model.engine.go.set()


def metric(url: str, name: str) -> float:
    lines = requests.get(f"{url}/metrics", timeout=30).text.splitlines()
    return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name)), 0)


def wait_for(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 30 seconds"
        time.sleep(0.01)


def sent(url: str, text: bytes) -> socket.socket:
    """Send a request, or a part of one, as it is."""
    address = urlsplit(url)
    connection = socket.create_connection((address.hostname, address.port), timeout=30)
    connection.sendall(text)
    return connection


def test_the_key(nano):
    with serving(nano, key=KEY) as url:
        assert requests.get(f"{url}/health", timeout=30).status_code == 200
        right = {"Authorization": f"Bearer {KEY}"}
        assert requests.post(f"{url}/embed", json={"inputs": "a"}, headers=right, timeout=30).status_code == 200
        for given in (None, b"Bearer", b"Bearer wrong", f"bearer {KEY}".encode(), b"Bearer \xff"):
            wrong = {} if given is None else {"Authorization": given}
            for path, form in (("/embed", "error_type"), ("/v1/embeddings", "error"), ("/metrics", "error_type")):
                answer = requests.post(f"{url}{path}", json={"inputs": "a"}, headers=wrong, timeout=30)
                assert answer.status_code == 401
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert form in answer.json()


def test_a_large_body_is_refused_unread(url):
    head = (
        f"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {gate.MAX_BODY + 1}\r\n"
    )
    with sent(url, f"{head}\r\n".encode()) as connection:  # of the body not a byte is sent
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_body_without_a_length_is_bounded(url):
    parts = (b"x" * (1 << 20) for _ in range((gate.MAX_BODY >> 20) + 1))
    answer = requests.post(f"{url}/embed", data=parts, headers={"Content-Type": "application/json"}, timeout=30)
    assert answer.status_code == 413
    assert answer.json()["error"] == "the body is larger than 16 MiB; send fewer texts in one request"


def test_bodies_are_bounded_together(url, monkeypatch):
    monkeypatch.setattr(gate, "MAX_HELD", 1000)
    head = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 990\r\n\r\n"
    with sent(url, head):
        wait_for(lambda: requests.post(f"{url}/embed", json={"inputs": "a"}, timeout=30).status_code == 429)
    wait_for(lambda: requests.post(f"{url}/embed", json={"inputs": "a"}, timeout=30).status_code == 200)


def test_a_body_must_arrive(url, monkeypatch):
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.1)
    with sent(url, b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{") as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_a_full_queue(held):
    with serving(held, limits=Limits(max_waiting=2)) as url:
        answers = []
        body = {"inputs": ["a", "b"]}
        threads = [
            threading.Thread(target=lambda: answers.append(requests.post(f"{url}/embed", json=body, timeout=30)))
            for _ in range(2)
        ]
        threads[0].start()
        wait_for(lambda: metric(url, "e5ref_waiting_texts") == 2)
        for path, body_now in (("/embed", {"inputs": "c"}), ("/v1/embeddings", {"input": "c", "model": NANO})):
            answer = requests.post(url + path, json=body_now, timeout=30)
            assert answer.status_code == 429
            assert int(answer.headers["Retry-After"]) >= 1
        held.engine.go.set()
        wait_for(lambda: metric(url, "e5ref_waiting_texts") == 0)
        threads[1].start()
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200, 200]


def test_a_client_that_hangs_up(held):
    with serving(held) as url:
        body = b'{"inputs":"a"}'
        head = (
            f"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection = sent(url, head.encode() + body)
        wait_for(lambda: metric(url, "e5ref_waiting_texts") == 1)
        connection.close()
        wait_for(lambda: metric(url, "e5ref_waiting_texts") == 0)
        wait_for(lambda: metric(url, 'e5ref_requests_total{route="/embed",status="499"}') == 1)
        held.engine.go.set()
        assert requests.post(f"{url}/embed", json={"inputs": "b"}, timeout=30).status_code == 200
        assert metric(url, "e5ref_texts_total") == 1


def test_an_engine_that_fails(held, caplog):
    def fail(windows, **options):
        list(windows)
        raise ValueError("numbers grew too large")
        yield

    held.engine.run = fail
    with serving(held) as url:
        answer = requests.post(f"{url}/embed", json={"inputs": "a"}, timeout=30)
        assert (answer.status_code, answer.json()["error"]) == (500, "numbers grew too large")
        body = {"input": "a", "model": NANO}
        answer = requests.post(f"{url}/v1/embeddings", json=body, timeout=30)
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
