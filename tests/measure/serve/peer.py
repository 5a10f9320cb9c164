"""sentence-transformers behind the same kind of server, as people put it there: a request is one call of `encode`.

python -m tests.measure.serve.peer MODEL PORT THREADS
"""

import asyncio
import base64
import sys
from concurrent.futures import ThreadPoolExecutor

import orjson
import torch
import uvicorn
from sentence_transformers import SentenceTransformer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def main(model_name: str, port: int, threads: int) -> None:
    torch.set_num_threads(threads)
    model = SentenceTransformer(model_name, device="cpu")
    one = ThreadPoolExecutor(1)  # two calls at a time would only share the cores

    async def embeddings(request: Request) -> Response:
        texts = orjson.loads(await request.body())["input"]
        loop = asyncio.get_running_loop()
        vectors = await loop.run_in_executor(one, lambda: model.encode(texts, show_progress_bar=False))
        data = [{"index": i, "embedding": base64.b64encode(row).decode()} for i, row in enumerate(vectors)]
        return Response(orjson.dumps({"data": data}), media_type="application/json")

    app = Starlette(routes=[Route("/v1/embeddings", embeddings, methods=["POST"])])
    print(f"Serving {model_name} at http://127.0.0.1:{port} ", file=sys.stderr, flush=True)
    uvicorn.run(app, port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
