"""`e5ref embed` and `e5ref rank`."""

import itertools
import json
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import numpy as np

from e5ref.checkpoint.prompts import count_doubled, find_prompt, notes_on_doubled_prompts, warn_of_prompts
from e5ref.commands.options import (
    check_output,
    force_option,
    input_options,
    json_option,
    model_options,
    prefix_of,
    prompt_option,
    read_or_given,
    say_if_none,
)
from e5ref.encoder import E5
from e5ref.engines.engine import require_jax
from e5ref.files.texts import Format
from e5ref.files.vectors import SUFFIXES, with_texts, write_json_lines, write_vectors, written_names


@click.command(short_help="Turn texts into vectors.")
@click.argument("texts", nargs=-1)
@input_options("Texts to embed")
@click.option("-o", "--output", type=Path, help=f"Write to OUT{'|'.join(SUFFIXES)} instead of standard output.")
@force_option
@prompt_option
@click.option(
    "--share",
    metavar="I/N|auto",
    help="Embed only share I (from 0 on) of N of the texts, and name OUT after it; auto asks jax.distributed.",
)
@model_options
def embed(
    load: Callable[[], E5],
    texts: tuple[str, ...],
    source: str | None,
    form: Format | None,
    output: Path | None,
    force: bool,
    prompt: str | None,
    share: str | None,
) -> None:
    """Turn texts into vectors.

    Prints JSON lines with "text" and "embedding". A file gets the vectors alone (.npy), or with where they come from
    (.safetensors); for OUT.npy and OUT.jsonl that goes into a second file, OUT.npy.provenance.json. Texts are read as
    the work goes on, and memory does not grow with their number.
    """
    index, shares = _share(share)
    if output is not None:
        if share is not None:
            output = output.with_stem(f"{output.stem}-{index:05}-of-{shares:05}")
        if output.suffix not in SUFFIXES:
            raise click.UsageError(f"{output}: the name must end in {', '.join(SUFFIXES)}")
        for name in written_names(output):
            check_output(name, [] if source in (None, "-") else [source], force)
    lines = read_or_given(texts, source, form, "TEXT")
    if share is not None:
        if source is None or not Path(source).is_file():
            lines = list(lines)
        count = sum(1 for _ in lines)
        if not isinstance(lines, list):
            lines = read_or_given(texts, source, form, "TEXT")  # a file can be read once more
        lines = itertools.islice(lines, count * index // shares, count * (index + 1) // shares)
    encoder = load()
    prefix = prefix_of(encoder.checkpoint, prompt)
    watched = warn_of_prompts(lines, encoder.checkpoint.settings.prompts, prompt, encoder.checkpoint.name)
    parts = with_texts(partial(encoder.encode_stream, prompt=prefix), watched)
    if output is None:
        count = write_json_lines(sys.stdout, parts)
    else:
        provenance = encoder.provenance(prefix)
        count = write_vectors(
            output.resolve(), parts, width=encoder.dimensions, dtype=encoder.dtype, provenance=provenance
        )
    say_if_none(count)


@click.command(short_help="Rank passages by how well they answer a query.")
@click.argument("query")
@click.argument("passages", nargs=-1)
@input_options("Passages to rank")
@click.option("-k", type=click.IntRange(min=1), help="Show the best K only.  [default: all]")
@json_option
@model_options
def rank(
    load: Callable[[], E5],
    query: str,
    passages: tuple[str, ...],
    source: str | None,
    form: Format | None,
    k: int | None,
    as_json: bool,
) -> None:
    """Rank passages by how well they answer QUERY: cosine x 100, the best first, and of equal ones the earlier.

    Write query and passages without prompts: the checkpoint's own are put there (E5: "query: " and "passage: ").
    """
    lines = list(read_or_given(passages, source, form, "PASSAGE"))
    encoder = load()
    for name, written in (("query", [query]), ("document", lines)):
        prefix = find_prompt(encoder.checkpoint.settings.prompts, name, None)
        for note in notes_on_doubled_prompts("texts", prefix, count_doubled(prefix, written), len(written)):
            warnings.warn(note, stacklevel=1)
    scores = 100 * encoder.similarity(encoder.encode_query(query), encoder.encode_document(lines))[0]
    for index in np.argsort(-scores, kind="stable")[:k]:
        if as_json:
            click.echo(json.dumps({"index": int(index), "score": float(scores[index]), "text": lines[index]}))
        else:
            click.echo(
                f"{scores[index]:6.2f}  {' '.join(lines[index].split())}"
            )  # one line each, even if the text has several
    say_if_none(len(lines))


def _share(share: str | None) -> tuple[int, int]:
    """Read which share of the texts this process is to embed: its index, and how many there are."""
    if share is None:
        return 0, 1
    if share == "auto":
        if click.get_current_context().params["backend"] != "jax":
            raise click.UsageError(
                "--share auto asks jax.distributed, and so needs --backend jax; else write --share I/N"
            )
        require_jax()
        import jax

        try:
            if not jax.distributed.is_initialized():
                jax.distributed.initialize()
        except (ValueError, RuntimeError) as error:
            raise click.UsageError(f"jax.distributed finds no other processes ({error}); write --share I/N") from None
        return jax.process_index(), jax.process_count()
    index, _, shares = share.partition("/")
    if not (index.isdecimal() and shares.isdecimal() and int(index) < int(shares)):
        raise click.UsageError(f"--share {share}: must be I/N, such as 0/2 and 1/2 for two processes, or auto")
    return int(index), int(shares)
