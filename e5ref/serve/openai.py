"""OpenAI's routes: `/v1/embeddings` and `/v1/models`."""

import base64

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from e5ref.serve.schema import EmbeddingsAnswer, EmbeddingsRequest, ModelCard, ModelList, OpenAIError, RefusedError
from e5ref.serve.service import Service

# What OpenAI's clients go by, beside the status.
CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}


def routes(service: Service) -> APIRouter:
    """Make the routes of a service."""
    router = APIRouter(
        prefix="/v1", tags=["OpenAI"], responses={"4XX": {"model": OpenAIError}, "5XX": {"model": OpenAIError}}
    )
    card = ModelCard(id=service.name, object="model", created=0, owned_by="e5ref")

    @router.post("/embeddings", response_model=EmbeddingsAnswer)
    async def embeddings(request: Request, body: EmbeddingsRequest) -> Response:
        """Turn texts into vectors."""
        check_model(body.model)
        if body.prompt_name is not None and body.input_type is not None:
            raise RefusedError(400, "give prompt_name or input_type, not both")
        vectors, tokens = await service.embed(
            request,
            body.input,
            prompt_name=body.prompt_name or body.input_type,
            truncate=body.truncate,
            dimensions=body.dimensions,
        )
        if body.encoding_format == "base64":
            rows = [base64.b64encode(row).decode() for row in vectors.astype("<f4")]
        else:
            rows = list(vectors)
        answer = {
            "object": "list",
            "data": [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)],
            "model": service.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        return Response(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")

    @router.get("/models")
    async def models() -> ModelList:
        """List the one model."""
        return ModelList(object="list", data=[card])

    @router.get("/models/{name:path}")
    async def model(name: str) -> ModelCard:
        """Describe the model."""
        check_model(name)
        return card

    def check_model(name: str) -> None:
        if name != service.name:
            raise RefusedError(404, f"the model {name[:100]!r} is not served here; {service.name!r} is")

    return router


def error_answer(error: HTTPException) -> JSONResponse:
    """Write an error as OpenAI's clients read it. A body that makes no sense is 400 there, not 422."""
    status = 400 if error.status_code == 422 else error.status_code
    kind = "server_error" if status >= 500 else "invalid_request_error"
    content = {"error": {"message": error.detail, "type": kind, "param": None, "code": CODES.get(status)}}
    return JSONResponse(content, status, error.headers)
