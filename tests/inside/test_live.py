"""The live page's server: what it answers, and to whom."""

import http.client
import json
import signal
import subprocess
import threading
import urllib.request

import pytest

import e5ref
from e5ref.inside.live import LiveServer
from tests.tools.processes import COMMAND, run

QUERY, PASSAGE = "query: how do plants eat", "passage: Leaves turn light into sugar."


@pytest.fixture(scope="module")
def server():
    model = e5ref.load("e5ref-nano")
    with LiveServer(model, [QUERY, PASSAGE]) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def ask(server, method="POST", path="/run", body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    headers = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    content = answer.read().decode()
    connection.close()
    return answer.status, content


def test_the_page(server):
    status, page = ask(server, "GET", "/")
    assert status == 200
    assert "const LIVE = true;" in page
    assert "connect-src 'self'" in page


def test_texts_are_run(server):
    status, answer = ask(server, body=json.dumps(["query: cats", "passage: dogs"]))
    data = json.loads(answer)
    assert status == 200
    model = e5ref.load("e5ref-nano")
    assert data["pairs"]["as_is"]["cosine"] == pytest.approx(model.explain("query: cats", "passage: dogs").cosine)
    assert json.loads(ask(server, body='["a"]')[1])["pairs"] is None


def test_a_text_that_is_cut_is_told(server):
    data = json.loads(ask(server, body=json.dumps(["query: " + "cat " * 1000]))[1])
    assert data["texts"][0]["cut"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("{", "Expecting"),
        ("{}", "must be a list"),
        ("[]", "one or two"),
        ("[1]", "not int"),
        ('["\\ud800"]', "Unicode"),
    ],
)
def test_what_cannot_be_run_is_refused(server, body, reason):
    status, answer = ask(server, body=body)
    assert status == 400
    assert reason in json.loads(answer)["error"]


def test_a_long_request_is_refused(server):
    assert ask(server, body="[]", Content_Length="1000001")[0] == 413


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/", {"Host": "evil.example"}),  # a name of another site that leads here
        ("POST", "/run", {"Host": "evil.example"}),
        ("POST", "/run", {"Content_Type": "text/plain"}),  # a form of another site, which needs no leave
        ("POST", "/", {}),
        ("GET", "/page.html", {}),
    ],
)
def test_others_are_refused(server, method, path, headers):
    status, answer = ask(server, method, path, "[]" if method == "POST" else None, **headers)
    assert status == 404
    assert "error" in json.loads(answer)


def test_it_listens_on_loopback_alone(server):
    assert server.server_address[0] == "127.0.0.1"


def test_a_port_that_is_taken_is_said(server):
    result = run("look", QUERY, "--model", "e5ref-nano", "--live", "--no-open", "--port", server.server_port, code=2)
    assert b"Address already in use" in result.stderr


def test_the_command_serves_until_it_is_stopped():
    command = [*COMMAND, "look", QUERY, "--model", "e5ref-nano", "--live", "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(url) as answer:
            assert b"const LIVE = true;" in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert process.stderr.read() == "Stopped.\n"
