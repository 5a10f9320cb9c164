"""The service as an ASGI application: all routes, errors in the form of each, the queue, its end."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

import e5ref
from e5ref.encoder import E5
from e5ref.serve import openai, tei
from e5ref.serve.batcher import Batcher
from e5ref.serve.gate import Gate
from e5ref.serve.metrics import Metrics
from e5ref.serve.schema import INPUT, RefusedError
from e5ref.serve.service import Limits, Service


def make_app(model: E5, *, limits: Limits = Limits(), key: str | None = None) -> FastAPI:  # noqa: B008
    """Make the application that serves a model.

    Args:
        model: turns texts into vectors; it should have been warmed up.
        limits: what is refused.
        key: what clients must send as "Authorization: Bearer KEY"; None for no key.

    Returns:
        An ASGI application. Its lifespan ends the thread that computes.
    """
    metrics = Metrics()
    batcher = Batcher(model, limits.max_waiting, metrics)
    service = Service(model, limits, batcher)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(batcher.close)

    app = FastAPI(
        title="e5ref",
        summary=f"{service.name}: text embeddings",
        version=e5ref.__version__,
        docs_url=None,  # those pages would fetch programs from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    guarded = [Depends(HTTPBearer(auto_error=False))] if key else []  # for the document; the gate looks at the key
    app.include_router(openai.routes(service), dependencies=guarded)
    app.include_router(tei.routes(service), dependencies=guarded)

    @app.get("/health", tags=["operation"], response_class=PlainTextResponse, responses={503: {}})
    async def health() -> Response:
        """Say whether texts are computed."""
        return PlainTextResponse("ok") if batcher.is_alive else PlainTextResponse("nothing is computed any more", 503)

    @app.get("/metrics", tags=["operation"], response_class=PlainTextResponse, dependencies=guarded)
    async def get_metrics() -> Response:
        """Tell Prometheus what was done."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return answer(request.url.path, RefusedError(422, sentence(error.errors())))

    @app.exception_handler(HTTPException)
    async def not_served(request: Request, error: HTTPException) -> Response:
        return answer(request.url.path, error)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return answer(request.url.path, RefusedError(500, "the service failed; its log says where"))

    app.add_middleware(Gate, key=key, batcher=batcher, metrics=metrics, answer=answer)
    return app


def answer(path: str, error: HTTPException) -> Response:
    """Write an error in the form of a path's routes."""
    return (openai if path.startswith("/v1/") else tei).error_answer(error)


def sentence(errors: Sequence[Any]) -> str:
    """Say what is wrong with a body, in one sentence."""
    first = errors[0]
    names = [str(name) for name in first["loc"][1:]]
    if first["type"] == "json_invalid":
        return f"the body is not JSON: {first['ctx']['error']} at character {first['loc'][1]}"
    if not names:
        return "the body must be a JSON object, sent as application/json"
    if first["type"] == "extra_forbidden":
        return f"unknown field {'.'.join(names)[:100]!r}"
    if first["type"] == "missing":
        return f"{'.'.join(names)} is missing"
    if names[0] in ("input", "inputs") and len(errors) > 1:
        return f"{names[0]} must be {INPUT}"
    return f"{'.'.join(names)}: {first['msg'][:1].lower()}{first['msg'][1:]}"
