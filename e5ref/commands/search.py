"""`e5ref search`."""

import json
from pathlib import Path
from typing import Any, get_args

import click

import e5ref
from e5ref.commands.options import check_output, force_option, json_option, keep_programs, say_if_none
from e5ref.engines.engine import Backend
from e5ref.extras import require


@click.command(short_help="Find the passages that answer a query, in what embed wrote.")
@click.argument("vectors", type=Path)
@click.argument("queries", nargs=-1)
@click.option("-i", "--input", "source", metavar="FILE", help="Queries, in any format that embed reads.")
@click.option("-k", type=click.IntRange(min=1), default=10, show_default=True, help="How many to show.")
@click.option("-o", "--output", type=Path, help="Write to OUT.parquet or OUT.jsonl instead of standard output.")
@force_option
@json_option
@click.option("--model", help="The model, if it now lies somewhere else.  [default: the one that made the vectors]")
@click.option("--backend", type=click.Choice(get_args(Backend)), default="numpy", show_default=True)
def search(
    vectors: Path,
    queries: tuple[str, ...],
    source: str | None,
    k: int,
    output: Path | None,
    force: bool,
    as_json: bool,
    model: str | None,
    backend: Backend,
) -> None:
    """Find the passages that answer each of QUERIES best, in the folder or file VECTORS that `e5ref embed` wrote.

    Every vector is compared: cosine x 100, the best first. Write queries without prompts; the checkpoint's own is put
    there (E5: "query: ").
    """
    require("corpus", "search", "pyarrow")
    import pyarrow.parquet as pq

    from e5ref.corpus import search as corpus
    from e5ref.files.whole import written_whole

    if bool(queries) == (source is not None):
        raise click.UsageError("give QUERIES or -i FILE, one of the two")
    if output is not None:
        if output.suffix not in (".parquet", ".jsonl"):
            raise click.UsageError(f"{output}: the name must end in .parquet or .jsonl")
        check_output(output, [] if source is None else [source], force)
    names, texts = _queries(source) if source is not None else (list(queries), list(queries))
    found = corpus.open_vectors(vectors)
    if backend == "jax":
        keep_programs()
    encoder = e5ref.load(
        model or found.facts["model"],
        revision=None if model else found.facts["revision"] or None,
        backend=backend,
        truncate_dim=int(found.facts["truncate_dim"]) if "truncate_dim" in found.facts else None,
    )
    table = corpus.search(found, encoder, texts, k)
    table = table.set_column(0, "query", [[names[number] for number in table["query"].to_pylist()]])
    if output is not None and output.suffix == ".parquet":
        with written_whole(output.resolve()) as file:
            pq.write_table(table, file)
    elif output is not None:
        with written_whole(output.resolve()) as file:
            file.writelines(f"{_line(row)}\n".encode() for row in table.to_pylist())
    else:
        _print(table.to_pylist(), as_json, several=len(texts) > 1)
    say_if_none(len(texts))


def _queries(source: str) -> tuple[list[Any], list[str]]:
    """Read queries: their ids, or if they have none themselves, and their texts."""
    from e5ref.corpus.reading import find_sources, place, read_rows, resolve_columns

    names: list[Any] = []
    texts: list[str] = []
    sources = find_sources(source)
    columns = resolve_columns(sources[0])
    for one in sources:
        for rows in read_rows(one, columns):
            for index, fault in rows.faults.items():
                raise ValueError(f"{place(one, rows.places[index])}: {fault}")
            some = [str(text) for text in rows.texts]
            texts += some
            names += rows.ids if columns.id else some
    return names, texts


def _print(rows: list[dict[str, Any]], as_json: bool, *, several: bool) -> None:
    """Print what was found: a line each, and above those of each of several queries the query."""
    query = None
    for row in rows:
        if as_json:
            click.echo(_line(row))
            continue
        if several and row["query"] != query:
            query = row["query"]
            click.echo(f"{query}:")
        kept = [" ".join(str(value).split()) for name, value in list(row.items())[4:]]
        click.echo("  ".join([f"{row['score']:6.2f}", str(row["id"]), *kept]))


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, default=str)
