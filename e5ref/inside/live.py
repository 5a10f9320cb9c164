"""The page with boxes to type into, served on this machine alone: each text is computed as it is typed."""

import json
import threading
import warnings
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from e5ref.engines.stream import E5Warning
from e5ref.inside.data import page_data
from e5ref.inside.page import check_number, page_html
from e5ref.inside.reference import reference_of
from e5ref.inside.run import Model

# The most bytes of a request: more than two texts of any length that a model takes.
MOST_BYTES = 1_000_000


class LiveServer(ThreadingHTTPServer):
    """Serves the page at `url`, and at `url` + "run" the data of the texts that are posted there."""

    daemon_threads = True

    def __init__(self, model: Model, texts: list[str], port: int = 0) -> None:
        """Listen on the loopback interface.

        Args:
            model: any model; its weights are run in NumPy.
            texts: one or two, with which the page begins.
            port: 0 for any that is free.

        Raises:
            OSError: the port is taken.
            TypeError, ValueError: as `look`.
        """
        check_number(texts)
        self._model, self._reference = model, reference_of(model)
        self._one_at_a_time = threading.Lock()
        self.page = page_html(self.data(texts), live=True)
        super().__init__(("127.0.0.1", port), _Handler)
        self.hosts = {f"127.0.0.1:{self.server_port}", f"localhost:{self.server_port}"}
        self.url = f"http://127.0.0.1:{self.server_port}/"

    def data(self, texts: list[str]) -> str:
        """Run texts, and return what the page shows of them. A text that is cut is told by the page."""
        with self._one_at_a_time, warnings.catch_warnings():
            warnings.simplefilter("ignore", E5Warning)
            return page_data(self._model, texts, self._reference)


class _Handler(BaseHTTPRequestHandler):
    """Answers the page's requests, and nobody else's: a page of another site cannot name this host."""

    server: LiveServer

    def do_GET(self) -> None:
        """Give the page."""
        if self._is_ours() and self.path == "/":
            self._answer(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is only / here")

    def do_POST(self) -> None:
        """Run the texts that the page sends, a JSON list of one or two."""
        size = int(self.headers.get("Content-Length", 0))
        if size > MOST_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the texts are too long")
            return
        body = self.rfile.read(size)  # also if it is refused: what is left unread would reset the connection
        if not self._is_ours() or self.path != "/run" or self.headers.get_content_type() != "application/json":
            self._refuse(HTTPStatus.NOT_FOUND, "texts go to /run, as JSON")
            return
        try:
            texts = json.loads(body)
            if not isinstance(texts, list):
                raise ValueError("texts must be a list")
            check_number(texts)
            data = self.server.data(texts)
        except (TypeError, ValueError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        else:
            self._answer(HTTPStatus.OK, "application/json", data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing on the terminal."""

    def _is_ours(self) -> bool:
        return self.headers.get("Host") in self.server.hosts

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self._answer(status, "application/json", json.dumps({"error": reason}))

    def _answer(self, status: HTTPStatus, content_type: str, text: str) -> None:
        body = text.encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)
        except ConnectionError:  # the page has typed on, and waits for a later answer
            self.close_connection = True
