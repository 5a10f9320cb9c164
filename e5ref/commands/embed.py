"""`e5ref embed` and `e5ref rank`."""

import itertools
import json
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from glob import has_magic
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, cast

import click
import numpy as np

from e5ref.checkpoint.prompts import count_doubled, find_prompt, notes_on_doubled_prompts, warn_of_prompts
from e5ref.commands.options import (
    LINES,
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
from e5ref.extras import require
from e5ref.files.texts import Format
from e5ref.files.vectors import SUFFIXES, with_texts, write_json_lines, write_vectors, written_names

# Formats of tables, and all that `--format` takes.
TABLES = ("csv", "tsv", "parquet", "arrow")
FORMATS = ("text", "jsonl", *TABLES)


def _names(context: click.Context, option: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(filter(None, value.split(",")))


@click.command(short_help="Turn texts, or a corpus of files, into vectors.")
@click.argument("texts", nargs=-1)
@input_options(
    "Texts to embed", kinds=f"{LINES}; or a corpus: Parquet, Arrow, CSV, TSV, a folder, a glob", formats=FORMATS
)
@click.option(
    "-o",
    "--output",
    type=Path,
    help=f"Write to OUT{'|'.join(SUFFIXES)}|.parquet, or to a folder of Parquet, instead of standard output.",
)
@force_option
@prompt_option
@click.option("--id-column", help="The column of ids.  [default: id or _id, else rows are numbered]")
@click.option(
    "--text-column",
    metavar="NAME[,NAME]",
    default="",
    callback=_names,
    help="The column of texts; several are joined.  [default: text, with title before it if there is one]",
)
@click.option("--keep", metavar="NAME[,NAME]", default="", callback=_names, help="Columns to write beside the vectors.")
@click.option(
    "--bad-rows",
    type=click.Choice(["error", "skip"]),
    help="What to do about a row without a text, or with the id of a row before.  [default: error]",
)
@click.option(
    "--output-dtype",
    type=click.Choice(["float32", "float16", "int8", "uint8", "binary", "ubinary"]),
    help="What vectors are stored as.  [default: float32]",
)
@click.option("--ray", metavar="auto|local|ADDRESS", help="Run on the Ray cluster at hand, on this machine, or there.")
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
    ray: str | None,
    **columns: Any,
) -> None:
    """Turn texts into vectors.

    Prints JSON lines with "text" and "embedding". A file gets the vectors alone (.npy), or with where they come from
    (.safetensors); for OUT.npy and OUT.jsonl that goes into a second file, OUT.npy.provenance.json. Texts are read as
    the work goes on, and memory does not grow with their number.

    A folder gets a corpus: Parquet with ids, columns that are kept and vectors. The same command again goes on with
    what is not finished.
    """
    if _is_corpus(source, form, output) or ray or any(columns.values()):
        if source is None:
            raise click.UsageError("a corpus is read from files: give -i FILE")
        with _files(source, form) as sources:
            _embed_corpus(load, sources, output, force, prompt, _share(share), ray, **columns)
        return
    index, shares = _share(share)
    if output is not None:
        if share is not None:
            output = _named_after(output, index, shares)
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


def _is_corpus(source: str | None, form: str | None, output: Path | None) -> bool:
    """Tell whether input or output is one that a corpus alone has; a text a line, or JSON lines, have none of that."""
    if output is not None and output.suffix not in SUFFIXES:
        return True
    if form is not None or source in (None, "-"):
        return form in TABLES
    path = Path(str(source))
    is_table = re.search(r"\.(csv|tsv|parquet|arrow|feather)(\.gz)?$|\.(bz2|zst|lz4)$", path.name.lower())
    return path.is_dir() or bool(is_table) or (has_magic(str(path)) and not path.exists())


@contextmanager
def _files(source: str, form: str | None) -> Iterator[list[Any]]:
    """Find the files of a corpus. Standard input is copied into one, since it is read more than once."""
    require("corpus", "reading tables and writing Parquet", "pyarrow")
    from e5ref.corpus.reading import find_sources

    if source != "-":
        yield find_sources(source, form)  # type: ignore[arg-type]
        return
    with NamedTemporaryFile(prefix="e5ref-") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        yield [one._replace(name="standard input") for one in find_sources(file.name, form)]  # type: ignore[arg-type]


def _embed_corpus(
    load: Callable[[], E5],
    sources: list[Any],
    output: Path | None,
    force: bool,
    prompt: str | None,
    share: tuple[int, int],
    ray: str | None,
    *,
    id_column: str | None,
    text_column: tuple[str, ...],
    keep: tuple[str, ...],
    bad_rows: Any,
    output_dtype: Any,
) -> None:
    """Embed a corpus into a folder, which can go on, or into one file."""
    from e5ref.corpus.job import Job, embed_file, embed_folder
    from e5ref.corpus.reading import resolve_columns

    is_folder = output is not None and (output.is_dir() or not output.suffix)
    if output is not None and not is_folder:
        if output.suffix not in (*SUFFIXES, ".parquet"):
            raise click.UsageError(f"{output}: the name must end in {', '.join(SUFFIXES)}, .parquet, or be a folder's")
        output = _named_after(output, *share) if share[1] > 1 else output
        for name in written_names(output):
            check_output(name, [one.path for one in sources], force)
    columns = resolve_columns(sources[0], id_column, text_column, keep)
    model = load()
    prefix_of(model.checkpoint, prompt)
    dtype: Any = output_dtype or model.dtype.name
    job = Job(model, sources, columns, prompt, dtype, bad_rows or "error")
    if ray:
        if not is_folder or share[1] > 1:
            raise click.UsageError("--ray writes to a folder, whole: give -o FOLDER, and no --share")
        require("ray", "--ray", "ray")
        from e5ref.corpus.ray import embed_on_ray

        done = embed_on_ray(job, load, cast(Path, output), ray, force=force)
    elif is_folder and output is not None:
        done = embed_folder(job, output, share=share, force=force)
    else:
        done = embed_file(job, None if output is None else output.resolve(), share=share)
    if done.skipped:
        where = f": see {output}/_skipped.jsonl" if is_folder else ""
        click.echo(f"{done.skipped:,} bad rows were left out{where}", err=True)
    say_if_none(done.rows - done.skipped)


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
            one_line = " ".join(lines[index].split())
            click.echo(f"{scores[index]:6.2f}  {one_line}")
    say_if_none(len(lines))


def _named_after(output: Path, index: int, shares: int) -> Path:
    """Name a file after the share that it holds."""
    return output.with_stem(f"{output.stem}-{index:05}-of-{shares:05}")


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
