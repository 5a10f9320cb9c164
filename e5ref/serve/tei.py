"""The routes of text-embeddings-inference: `/embed`, `/embed_all`, `/similarity`, `/tokenize`, `/info`, `/health`."""

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import e5ref
from e5ref.serve.batcher import WINDOW_TOKENS
from e5ref.serve.schema import (
    EmbedAllRequest,
    EmbedRequest,
    Info,
    SimilarityParameters,
    SimilarityRequest,
    TeiError,
    Token,
    TokenizeRequest,
)
from e5ref.serve.service import Service
from e5ref.tokenizer import read_tokenizer

KINDS = {401: "Unauthorized", 422: "Validation", 413: "Validation", 429: "Overloaded", 500: "Backend", 503: "Unhealthy"}


def routes(service: Service) -> APIRouter:
    """Make the routes of a service."""
    router = APIRouter(
        tags=["text-embeddings-inference"], responses={"4XX": {"model": TeiError}, "5XX": {"model": TeiError}}
    )
    model = service.model
    _, tokenizer = read_tokenizer(model.checkpoint.folder)  # one of its own, which also says where tokens stand
    tokenizer.no_padding()
    tokenizer.no_truncation()

    @router.post("/", response_model=list[list[float]], include_in_schema=False)  # where `InferenceClient` sends it
    @router.post("/embed", response_model=list[list[float]])
    async def embed(request: Request, body: EmbedRequest) -> Response:
        """Turn texts into vectors."""
        vectors, _ = await service.embed(
            request,
            body.inputs,
            prompt_name=body.prompt_name,
            truncate=body.truncate,
            normalize=body.normalize,
            dimensions=body.dimensions,
        )
        return json_answer(vectors)

    @router.post("/embed_all", response_model=list[list[list[float]]])
    async def embed_all(request: Request, body: EmbedAllRequest) -> Response:
        """Turn texts into the last hidden states of their tokens, in the NumPy twin whatever the backend."""
        states = await service.hidden_states(request, body.inputs, prompt_name=body.prompt_name, truncate=body.truncate)
        return json_answer(states)

    @router.post("/similarity", response_model=list[float])
    async def similarity(request: Request, body: SimilarityRequest) -> Response:
        """Compute the cosine of a text with each of others."""
        parameters = body.parameters or SimilarityParameters()
        vectors, _ = await service.embed(
            request,
            [body.inputs.source_sentence, *body.inputs.sentences],
            prompt_name=parameters.prompt_name,
            truncate=parameters.truncate,
        )
        return json_answer(model.similarity(vectors[0], vectors[1:])[0])

    @router.post("/tokenize")
    def tokenize(body: TokenizeRequest) -> list[list[Token]]:
        """Turn texts into tokens, uncut."""
        texts = service.texts([body.inputs] if isinstance(body.inputs, str) else body.inputs, body.prompt_name)
        return [
            [
                Token(id=token_id, text=text, special=bool(special), start=start, stop=stop)
                for token_id, text, special, (start, stop) in zip(
                    encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True
                )
            ]
            for encoding in tokenizer.encode_batch(texts, add_special_tokens=body.add_special_tokens)
        ]

    facts = model.provenance("")
    del facts["prompt"]  # each request has its own
    info = Info(
        model_id=service.name,
        model_sha=model.checkpoint.revision,
        model_dtype=str(model.dtype),
        model_type={"embedding": {"pooling": model.checkpoint.settings.pooling}},
        max_concurrent_requests=service.limits.max_waiting,
        max_input_length=model.tokenizer.max_length,
        max_batch_tokens=model.engine.window_texts * WINDOW_TOKENS,
        max_batch_requests=None,
        max_client_batch_size=service.limits.max_texts,
        auto_truncate=False,
        tokenization_workers=1,
        version=e5ref.__version__,
        provenance=facts,
    )

    @router.get("/info", response_model=Info)
    async def get_info() -> Info:
        """Say what is served."""
        return info

    return router


def json_answer(numbers: object) -> Response:
    """Write arrays as JSON, each number as short as its dtype allows."""
    return Response(orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


def error_answer(error: HTTPException) -> JSONResponse:
    """Write an error as text-embeddings-inference does."""
    kind = KINDS.get(error.status_code, "Validation")
    return JSONResponse({"error": error.detail, "error_type": kind}, error.status_code, error.headers)
