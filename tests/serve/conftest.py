"""A service in this process, on a port of its own."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import e5ref
from e5ref.encoder import E5
from e5ref.serve.app import make_app
from e5ref.serve.service import Limits

uvicorn = pytest.importorskip("uvicorn")

NANO = "e5ref-nano"


@pytest.fixture(scope="session")
def nano() -> E5:
    return e5ref.load(NANO, threads=1)


@contextmanager
def serving(model: E5, **options) -> Iterator[str]:
    """Serve a model in a thread; give the address."""
    server = uvicorn.Server(uvicorn.Config(make_app(model, **options), log_level="warning", access_log=False))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def url(nano) -> Iterator[str]:
    """The address of a service of nano, without a key."""
    with serving(nano, limits=Limits(max_texts=64)) as address:
        yield address
