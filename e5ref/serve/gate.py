"""What is asked before a body is read: the key, the size, whether there is room; and how long a request took."""

import asyncio
import hmac
import time
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from e5ref.serve.batcher import Batcher, FullError
from e5ref.serve.metrics import Metrics
from e5ref.serve.schema import RefusedError
from e5ref.serve.service import refused_for_now

# Bytes of one body, and of all bodies that are held at a time.
MAX_BODY = 1 << 24
MAX_HELD = 1 << 28

# Seconds in which a body must arrive.
BODY_SECONDS = 30

# Whoever asks whether the service is well has no key.
OPEN_PATHS = ("/health",)


class Gate:
    """ASGI middleware in front of all routes."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        key: str | None,
        batcher: Batcher,
        metrics: Metrics,
        answer: Callable[[str, HTTPException], Response],
    ) -> None:
        """Stand before `app`.

        Args:
            app: has the routes.
            key: what clients must send as "Authorization: Bearer KEY"; None for no key.
            batcher: asked for room.
            metrics: counts.
            answer: writes an error in the form of a path.
        """
        self.app, self.batcher, self.metrics, self.answer = app, batcher, metrics, answer
        self._authorization = None if key is None else f"Bearer {key}".encode()
        self._held = 0  # bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        status = 0

        async def send_and_see(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        size = 0
        try:
            headers = dict(scope["headers"])
            self._check(scope, headers)
            size = self._size(headers)
            self._held += size
            await self.app(scope, bounded(receive), send_and_see)
        except RefusedError as error:
            await self.answer(scope["path"], error)(scope, receive, send_and_see)
        finally:
            self._held -= size
            route = scope["route"].path if "route" in scope else "none"
            self.metrics.requests.labels(route, status).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - start)

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Refuse who has no key, and who comes when there is no room."""
        if self._authorization is not None and scope["path"] not in OPEN_PATHS:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._authorization):
                raise RefusedError(401, "the key is missing or wrong", {"WWW-Authenticate": "Bearer"})
        if scope["method"] == "POST":
            try:
                self.batcher.check_room()
            except FullError as error:
                raise refused_for_now(error) from None

    def _size(self, headers: dict[bytes, bytes]) -> int:
        """Return the bytes that a request may hold in memory."""
        length = headers.get(b"content-length", b"")
        chunked = b"transfer-encoding" in headers
        size = MAX_BODY if chunked else int(length) if length.isdigit() else 0
        if size > MAX_BODY:
            raise too_large()
        if self._held + size > MAX_HELD:
            raise refused_for_now(FullError(1))
        return size


def bounded(receive: Receive) -> Receive:
    """Bound the size of a body, and the time in which it arrives."""
    size, complete = 0, False
    deadline = asyncio.get_running_loop().time() + BODY_SECONDS

    async def receive_bounded() -> Message:
        nonlocal size, complete
        if complete:  # then the next message says that the client has gone, whenever that is
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise RefusedError(408, f"the body did not arrive within {BODY_SECONDS} seconds") from None
        size += len(message.get("body", b""))
        complete = not message.get("more_body", False)
        if size > MAX_BODY:
            raise too_large()
        return message

    return receive_bounded


def too_large() -> RefusedError:
    """Say that a body is too large."""
    return RefusedError(413, f"the body is larger than {MAX_BODY >> 20} MiB; send fewer texts in one request")
