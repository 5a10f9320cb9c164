"""`e5ref demo`, `models`, `inspect` and `warm-up`."""

import json
from typing import Any

import click

import e5ref
from e5ref.checkpoint.hub import is_on_this_machine
from e5ref.checkpoint.params import leaves
from e5ref.commands.options import (
    dtype_option,
    json_option,
    keep_programs,
    max_length_option,
    model_first,
    model_option,
    precision_option,
    revision_option,
)


@click.command(short_help="See it work, with the small model that comes along.")
@json_option
def demo(as_json: bool) -> None:
    """Try e5ref with the small model that comes with it: two questions, two passages, and which answers which."""
    from e5ref.demo import PASSAGES, QUERIES, explain, score

    scores = score()
    if as_json:
        click.echo(json.dumps({"queries": QUERIES, "passages": PASSAGES, "scores": scores.tolist()}))
    else:
        click.echo(explain(scores))


@click.command(short_help="List the known checkpoints, and which are on this machine.")
@json_option
def models(as_json: bool) -> None:
    """List the known checkpoints, and which are on this machine."""
    rows = [
        {"name": name, **row, "on_this_machine": is_on_this_machine(name, row)}
        for name, row in e5ref.known_checkpoints().items()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    width = max(len(row["name"]) for row in rows)
    click.echo(f"{'':2}{'name':{width}}{'layers':>7}{'hidden':>7}{'vocabulary':>11}  {'licence':10} revision")
    for row in rows:
        mark = "* " if row["on_this_machine"] else "  "
        revision = row.get("revision", "comes with e5ref" if "bundled" in row else "main (not pinned)")
        click.echo(
            f"{mark}{row['name']:{width}}{row['num_hidden_layers']:7}{row['hidden_size']:7}{row['vocab_size']:11}  "
            f"{row['licence']:10} {revision}"
        )
    click.echo("* on this machine")


@click.command(short_help="Show what a checkpoint is: sizes, prompts, hashes.")
@model_first
@revision_option
@json_option
def inspect(model: str, revision: str | None, as_json: bool) -> None:
    """Show what a checkpoint is: sizes, parameters, tokenizer, pooling, prompts, hashes."""
    encoder = e5ref.load(model, revision=revision)
    checkpoint, settings = encoder.checkpoint, encoder.checkpoint.settings
    facts: dict[str, Any] = {
        "folder": str(checkpoint.folder),
        **{key: getattr(checkpoint.config, key) for key in checkpoint.config.__dataclass_fields__},
        "parameters": sum(array.size for array in leaves(checkpoint.params)),
        "prompts": dict(settings.prompts),
        "tokenizer": encoder.tokenizer.path.name,
        **encoder.provenance(""),
    }
    del facts["prompt"]  # a run has one; a checkpoint does not
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        click.echo(f"{name:24}{json.dumps(value) if isinstance(value, dict) else 'none' if value == '' else value}")


@click.command("warm-up", short_help="Compile beforehand what --backend jax will want.")
@model_option
@revision_option
@dtype_option
@precision_option
@max_length_option
def warm_up(model: str, **options: Any) -> None:
    """Compile beforehand, and keep, every program that --backend jax will want for a checkpoint."""
    folder = keep_programs()
    programs = e5ref.load(model, backend="jax", **options).warm_up()
    click.echo(f"{programs} programs are ready in {folder}")
