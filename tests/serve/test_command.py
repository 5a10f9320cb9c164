"""`e5ref serve` as people run it: a process of its own, which starts, is stopped and is killed."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import requests
from click.testing import CliRunner

from e5ref.cli import commands
from tests.serve.conftest import NANO

SECRET = "a sentence that nobody else may read"


@contextmanager
def served(log: Path, *options: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """Run `e5ref serve` on a free port until it listens; give the process and its address."""
    command = [sys.executable, "-m", "e5ref", "serve", "--model", NANO, "--port", "0", "--threads", "1", *options]
    with log.open("w") as errors, subprocess.Popen(command, stderr=errors, env=os.environ) as process:
        try:
            deadline = time.monotonic() + 60
            while not (found := re.search(r"^Serving \S+ at (\S+) ", log.read_text(), re.MULTILINE)):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            while not listens(found[1]):
                assert time.monotonic() < deadline
            yield process, found[1]
        finally:
            process.kill()


def listens(url: str) -> bool:
    try:
        return requests.get(f"{url}/health", timeout=10).status_code == 200
    except requests.ConnectionError:
        return False


def test_what_is_said_and_what_is_not(tmp_path):
    """One line at the start; nothing of what clients send, be it right or wrong."""
    log = tmp_path / "log"
    with served(log) as (_, url):
        for body in (
            {"inputs": SECRET},
            {"inputs": SECRET * 100},
            {"inputs": [SECRET, 3]},
            {"inputs": SECRET, SECRET: 1},
        ):
            for path in ("/embed", "/tokenize", f"/{SECRET}"):
                requests.post(url + path, json=body, timeout=30)
        requests.post(f"{url}/embed", data=SECRET, timeout=30)
    assert re.fullmatch(r"Serving e5ref-nano at http://127\.0\.0\.1:\d+ \(Ctrl-C stops\)\n", log.read_text())


def test_sigterm_answers_what_was_accepted(tmp_path, nano):
    """Clients ask again and again. Each gets all of every answer, until the service takes no more."""
    texts = [f"query: {n} how do plants eat" for n in range(30)]
    expected = nano.encode(texts)
    answers, failures = [], []

    def ask(url):
        while True:
            try:
                connection = socket.create_connection(url, timeout=30)
            except ConnectionRefusedError:
                return
            connection.close()
            try:
                answer = requests.post(f"http://{url[0]}:{url[1]}/embed", json={"inputs": texts}, timeout=30)
            except requests.ConnectionError as error:
                # Who had connected, but had not been accepted yet, is turned away; half an answer would be a failure.
                if "IncompleteRead" in str(error) or "RemoteDisconnected" in str(error):
                    failures.append(error)
                return
            answers.append((answer.status_code, np.array(answer.json(), np.float32)))

    with served(tmp_path / "log") as (process, url):
        host, port = url.removeprefix("http://").split(":")
        threads = [threading.Thread(target=ask, args=[(host, int(port))]) for _ in range(8)]
        for thread in threads:
            thread.start()
        while len(answers) < 16:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
        for thread in threads:
            thread.join()
    assert not failures
    for status, vectors in answers:
        assert status == 200
        np.testing.assert_array_equal(vectors, expected)
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_after_a_kill_the_next_start_is_clean(tmp_path):
    with served(tmp_path / "first") as (process, url):
        port = url.rsplit(":", 1)[1]
        requests.post(f"{url}/embed", json={"inputs": "a"}, timeout=30)
        process.kill()
        process.wait()
    with served(tmp_path / "second", "--port", port) as (_, url):
        assert requests.post(f"{url}/embed", json={"inputs": "a"}, timeout=30).status_code == 200


def test_diagnose_finds_nothing_wrong(tmp_path):
    (tmp_path / "key").write_text("secret\n")
    texts = tmp_path / "texts.txt"
    texts.write_text(
        "query: how much protein should a female eat\nquery: what is a tide\nquery: why do plants need light\n"
    )
    with served(tmp_path / "log", "--api-key-file", str(tmp_path / "key")) as (_, url):
        for path in ("/embed", "/v1/embeddings"):
            command = ["diagnose", "--model", NANO, "--texts", str(texts), "--endpoint", url + path]
            result = CliRunner(env={"E5REF_API_KEY": "secret"}).invoke(commands, [*command, "--endpoint-model", NANO])
            assert result.exit_code == 0, result.output
            assert result.output.startswith("Correct: as the card says (e5ref-nano, 'query: ').")


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(commands, ["serve", "--model", NANO, "--port", str(port)])
    assert result.exit_code == 2
    assert f"127.0.0.1:{port}: Address already in use; choose another --host or --port" in result.output


@pytest.mark.parametrize("key", ["", "two\nlines", "schlüssel"])
def test_a_key_that_is_none(tmp_path, key):
    (tmp_path / "key").write_text(key, encoding="utf-8")
    result = CliRunner().invoke(commands, ["serve", "--api-key-file", str(tmp_path / "key")])
    assert result.exit_code == 2
    assert "must hold a key of printable ASCII characters, in one line" in result.output
