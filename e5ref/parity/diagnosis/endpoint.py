"""Vectors from a service: OpenAI's `/v1/embeddings`, or `/embed` of text-embeddings-inference."""

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from e5ref.terminal.progress import progress_bar

# The environment variable with the key of a service. The key is sent to that service only, and never printed.
KEY_VARIABLE = "E5REF_API_KEY"

MAX_ANSWER = 1 << 28  # bytes


class EndpointError(ValueError):
    """A service cannot be reached, or does not answer with a vector for each text."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, which would carry the key to a different address."""

    def redirect_request(self, *_: Any) -> None:
        return None


def fetch_vectors(
    url: str,
    texts: Sequence[str],
    *,
    model: str = "",
    timeout: float = 60,
    batch_size: int = 32,
    show_progress_bar: bool | None = None,
) -> NDArray[np.float64]:
    """Ask a service for the vectors of texts, which are sent as they are.

    Args:
        url: ends in "/embeddings" (OpenAI) or "/embed" (text-embeddings-inference).
        texts: n texts.
        model: the service's name of the model, for OpenAI's route.
        timeout: seconds to wait for each answer.
        batch_size: the most texts of one request.
        show_progress_bar: None shows one in a terminal once the work has taken 2 seconds.

    Returns:
        [n, d], float64.

    Raises:
        EndpointError: the service cannot be reached, refuses, or does not answer with vectors.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise EndpointError(f"{url!r} is not the address of a service; give one that starts with http:// or https://")
    path = parts.path.rstrip("/")
    if not path.endswith(("/embeddings", "/embed")):
        raise EndpointError(f"{url} must end in /v1/embeddings (OpenAI) or /embed (text-embeddings-inference)")
    openai = path.endswith("/embeddings")
    vectors: list[NDArray[np.float64]] = []
    with progress_bar(len(texts), "asking", "text", show=show_progress_bar) as progress:
        for start in range(0, len(texts), batch_size):
            batch = list(texts[start : start + batch_size])
            body = {"model": model, "input": batch, "encoding_format": "float"} if openai else {"inputs": batch}
            answer = _post(url, body, timeout)
            vectors += _vectors(url, answer, len(batch), openai)
            progress.update(len(batch))
    widths = sorted({len(vector) for vector in vectors})
    if len(widths) > 1:
        raise EndpointError(f"{url} answers with vectors of different lengths: {widths[0]} and {widths[-1]}")
    return np.stack(vectors) if vectors else np.empty((0, 0))


def _post(url: str, body: dict[str, Any], timeout: float) -> Any:
    """Send JSON and return the answer's JSON."""
    key = os.environ.get(KEY_VARIABLE, "")
    headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "e5ref"}
    if key:
        if not key.isascii() or not key.isprintable():
            raise EndpointError(f"{KEY_VARIABLE} holds characters that a key cannot have")
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=timeout) as response:
            content = response.read(MAX_ANSWER + 1)
    except urllib.error.HTTPError as error:
        with error:
            start = error.read(2000)
        said = " ".join(start.decode(errors="replace").split())[:200]
        said = said.replace(key, "…") if key else said
        hint = f"; is the key in {KEY_VARIABLE} right?" if error.code in (401, 403) else ""
        hint = "; give the address that it redirects to" if 300 <= error.code < 400 else hint
        raise EndpointError(f"{url} answers {error.code} {error.reason}{f': {said}' if said else ''}{hint}") from None
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise EndpointError(f"{url} does not answer within {timeout:g} seconds") from None
        raise EndpointError(f"{url} cannot be reached: {reason or type(reason).__name__}") from None
    if len(content) > MAX_ANSWER:
        raise EndpointError(f"{url} answers with more than {MAX_ANSWER >> 20} MiB")
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise EndpointError(f"{url} does not answer with JSON; is it the address of an embedding service?") from None


def _vectors(url: str, answer: Any, count: int, openai: bool) -> list[NDArray[np.float64]]:
    """Take the vectors from an answer, in the order of the texts."""
    try:
        if openai:
            data = answer["data"]
            found = [entry["embedding"] for entry in sorted(data, key=lambda entry: entry["index"])]
            complete = sorted(entry["index"] for entry in data) == list(range(count))
        else:
            found, complete = answer, len(answer) == count
        if not isinstance(found, list) or any(type(value) not in (int, float) for vector in found for value in vector):
            raise TypeError
        vectors = [np.array(vector, np.float64) for vector in found]
    except (KeyError, TypeError, ValueError, OverflowError):
        expected = '{"data": [{"index": 0, "embedding": [numbers]}]}' if openai else "[[numbers]]"
        raise EndpointError(f"{url} does not answer with {expected}") from None
    if not complete or not all(map(len, vectors)):
        raise EndpointError(f"{url} answers with {len(vectors)} vectors for {count} texts, or with empty ones")
    return vectors
