"""`e5ref serve`."""

import socket
from pathlib import Path
from typing import Any

import click

from e5ref.commands.options import (
    backend_option,
    dtype_option,
    load_model,
    max_length_option,
    model_option,
    precision_option,
    revision_option,
    threads_option,
)
from e5ref.extras import require
from e5ref.terminal.stopping import stops_in_its_own_time


@click.command(short_help="Serve vectors to clients of OpenAI and Hugging Face.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Listen there; 0.0.0.0 is everywhere.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes any free one.")
@click.option(
    "--api-key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='Holds the key that clients must send: "Authorization: Bearer KEY".  [default: none is needed]',
)
@click.option(
    "--max-texts", type=click.IntRange(min=1), default=2048, show_default=True, help="The most texts of one request."
)
@click.option(
    "--max-waiting",
    type=click.IntRange(min=1),
    default=8192,
    show_default=True,
    help="The most texts that wait; who comes then is told to come back later.",
)
@click.option(
    "--stop-seconds",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    help="At SIGTERM or Ctrl-C, finish what was accepted for so long at most.",
)
@model_option
@revision_option
@backend_option
@dtype_option
@precision_option
@threads_option
@max_length_option
def serve(
    host: str,
    port: int,
    api_key_file: Path | None,
    max_texts: int,
    max_waiting: int,
    stop_seconds: int,
    **options: Any,
) -> None:
    """Serve vectors to OpenAI's clients and those of text-embeddings-inference.

    OpenAI's route is /v1/embeddings, text-embeddings-inference's /embed. Texts are taken as they are unless a request
    names a prompt. It listens once the model is warm. /openapi.json says what each route takes.
    """
    require("serve", "e5ref serve", "fastapi", "uvicorn", "prometheus-client", "orjson")
    import uvicorn

    from e5ref.serve.app import make_app
    from e5ref.serve.service import Limits

    key = None if api_key_file is None else read_key(api_key_file)
    listener = bind(host, port)
    encoder = load_model(**options)
    encoder.warm_up()
    encoder.encode("query: the first query")
    app = make_app(encoder, limits=Limits(max_texts, max_waiting), key=key)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=stop_seconds
    )
    url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    click.echo(f"Serving {encoder.checkpoint.name} at {url} (Ctrl-C stops)", err=True)
    with stops_in_its_own_time():
        uvicorn.Server(config).run(sockets=[listener])


def read_key(path: Path) -> str:
    """Read the key that clients must send."""
    key = path.read_text(encoding="utf-8").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise click.UsageError(f"{path}: must hold a key of printable ASCII characters, in one line")
    return key


def bind(host: str, port: int) -> socket.socket:
    """Take an address, so that nothing is loaded in vain; nobody is answered yet."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise click.UsageError(f"{host}:{port}: {error.strerror}; choose another --host or --port") from None
    return listener
