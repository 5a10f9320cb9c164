"""`e5ref look` and `e5ref explain`."""

import json
import webbrowser
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import click

import e5ref
from e5ref.checkpoint.prompts import warn_of_prompts
from e5ref.commands.options import (
    check_output,
    declare,
    dtype_option,
    force_option,
    json_option,
    max_length_option,
    model_option,
    revision_option,
)
from e5ref.encoder import E5
from e5ref.inside.explain import Explanation
from e5ref.terminal.table import aligned

checkpoint_options = declare(model_option, revision_option, dtype_option, max_length_option)


@click.command(short_help="Show why two texts are near: which tokens make their cosine.")
@click.argument("a")
@click.argument("b")
@click.option("-k", type=click.IntRange(min=1), default=10, show_default=True, help="Show the K pairs that count most.")
@json_option
@checkpoint_options
def explain(a: str, b: str, k: int, as_json: bool, model: str, **options: Any) -> None:
    """Show why texts A and B are near: their cosine as a sum over pairs of tokens.

    Texts are taken as they are; one of E5 starts with "query: " or "passage: ". "Centred" is the same after the mean of
    48 unrelated texts is taken off both vectors.
    """
    encoder = e5ref.load(model, **options)
    warn_of_missing_prompts(encoder, (a, b))
    explanation = encoder.explain(a, b)
    click.echo(_as_json(explanation, k) if as_json else _as_text(explanation, k))


def warn_of_missing_prompts(model: E5, texts: tuple[str, ...]) -> None:
    """Warn of texts that start with none of the checkpoint's prompts."""
    for _ in warn_of_prompts(texts, model.checkpoint.settings.prompts, None, model.checkpoint.name):
        pass


def _as_json(explanation: Explanation, k: int) -> str:
    names = ("first", "second", "value")
    return json.dumps(
        {
            "cosine": explanation.cosine,
            "centred_cosine": explanation.centred_cosine,
            "average_cosine": explanation.average_cosine,
            "tokens": explanation.tokens,
            "matrix": explanation.matrix.tolist(),
            "centred_matrix": explanation.centred_matrix.tolist(),
            "top": [dict(zip(names, pair, strict=True)) for pair in explanation.top(k)],
            "shares": explanation.shares(),
            "centred_shares": explanation.shares(centred=True),
        }
    )


def _as_text(explanation: Explanation, k: int) -> str:
    first, second = explanation.tokens
    pairs = [
        {
            "token of A": f"{first[i]} ({i})",
            "token of B": f"{second[j]} ({j})",
            "adds": f"{value:+.4f}",
            "centred": f"{explanation.centred_matrix[i, j]:+.4f}",
        }
        for i, j, value in explanation.top(k)
    ]
    shares = [
        {"A down, B across": group, **{name: f"{value:+.4f}" for name, value in row.items()}}
        for group, row in explanation.shares().items()
    ]
    return f"""\
cosine   {explanation.cosine:.6f}   the sum over {len(first)} x {len(second)} pairs of tokens
centred  {explanation.centred_cosine:.6f}   the same after the mean of the reference texts is taken off
average  {explanation.average_cosine:.6f}   the cosine of two reference texts, which have nothing to do with each other

The pairs that count most, each token with its place in its text:

{aligned(pairs)}

The sum by kinds of tokens:

{aligned(shares)}"""


@click.command(short_help="Show the way of a text through the model, on a page.")
@click.argument("texts", nargs=-1, required=True, metavar="TEXT [TEXT]")
@click.option("-o", "--output", type=Path, help="Write the page here.  [default: a temporary file]")
@force_option
@click.option("--open/--no-open", "opened", default=True, help="Whether to open the page in a browser.")
@click.option("--live", is_flag=True, help="Serve the page on this machine, with boxes to type into, until Ctrl-C.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Where --live listens.  [default: a free port]")
@checkpoint_options
def look(
    texts: tuple[str, ...],
    output: Path | None,
    force: bool,
    opened: bool,
    live: bool,
    port: int,
    model: str,
    **options: Any,
) -> None:
    """Show the way of one text, or of two beside each other, through the model, on a page of its own.

    Texts are taken as they are; one of E5 starts with "query: " or "passage: ". The page is one HTML file, which needs
    no network: every number of the forward pass, and the code that made it.
    """
    if live and output is not None:
        raise click.UsageError("--live serves the page and writes no file; leave out one of --live and -o")
    if output is not None:
        check_output(output, [], force)
    encoder = e5ref.load(model, truncation="allow", **options)  # the page itself says what was cut
    warn_of_missing_prompts(encoder, texts)
    if live:
        _serve(encoder, list(texts), port, opened)
        return
    page = e5ref.look(encoder, texts)
    if output is None:
        output = Path(mkdtemp(prefix="e5ref-"), "look.html")
    page.save(output)
    click.echo(output)
    if opened:
        webbrowser.open(output.resolve().as_uri())


def _serve(model: E5, texts: list[str], port: int, opened: bool) -> None:
    """Serve the page until a signal ends the process."""
    from e5ref.inside.live import LiveServer

    with LiveServer(model, texts, port) as server:
        click.echo(server.url)
        if opened:
            webbrowser.open(server.url)
        server.serve_forever()
