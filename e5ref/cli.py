"""`e5ref …`: thin; every command is a few lines over the library."""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

import e5ref
from e5ref.checkpoint import DEFAULT_CHECKPOINT, is_cached
from e5ref.params import leaves
from e5ref.prompts import find_prompt

PROMPTS = ("query", "passage", "none")
SUFFIXES = (".npy", ".safetensors", ".jsonl")


def main() -> None:
    """Run the command line. What goes wrong is said in one sentence on standard error, with exit code 2."""
    warnings.showwarning = lambda message, *_, **__: click.echo(f"Warning: {message}", err=True)
    try:
        commands(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped.", err=True)
        sys.exit(130)
    except BrokenPipeError:  # whoever read our output has had enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, OSError, MemoryError, click.ClickException) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        click.echo(f"Error: {message or type(error).__name__}", err=True)
        sys.exit(2)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(e5ref.__version__, prog_name="e5ref")
def commands() -> None:
    """E5 text embeddings without a framework."""


model_option = click.option(
    "--model", default=DEFAULT_CHECKPOINT, show_default=True, help="A hub name, or a checkpoint's folder."
)
revision_option = click.option("--revision", help="The hub's commit, tag or branch.  [default: the pinned one]")
dtype_option = click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")


def input_option(what: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Declare `-i FILE|-`."""
    return click.option(
        "-i",
        "--input",
        "source",
        metavar="FILE|-",
        help=f'{what}: one a line, or JSON lines with a "text" if FILE ends in .jsonl; - is standard input.',
    )


@commands.command()
@click.argument("texts", nargs=-1)
@input_option("Texts to embed")
@click.option("-o", "--output", type=Path, help=f"Write to OUT{'|'.join(SUFFIXES)} instead of standard output.")
@model_option
@revision_option
@click.option(
    "--prompt",
    type=click.Choice(PROMPTS),
    default="none",
    show_default=True,
    help="What to put before each text; none takes texts that start with it already.",
)
@dtype_option
def embed(
    texts: tuple[str, ...],
    source: str | None,
    output: Path | None,
    model: str,
    revision: str | None,
    prompt: str,
    dtype: str,
) -> None:
    """Turn texts into vectors.

    Prints JSON lines with "text" and "embedding". A file gets the vectors alone (.npy), or with where they come from
    (.safetensors); for .npy and .jsonl that goes into a second file, OUT.provenance.json.
    """
    if output is not None and output.suffix not in SUFFIXES:
        raise click.UsageError(f"{output}: the name must end in {', '.join(SUFFIXES)}")
    if output is not None and not output.absolute().parent.is_dir():
        raise click.UsageError(f"{output}: there is no folder {output.absolute().parent}")
    lines = _texts(texts, source, "TEXT")
    encoder = e5ref.load(model, revision=revision, dtype=dtype)
    prompts = encoder.checkpoint.settings.prompts
    prefix = "" if prompt == "none" else find_prompt(prompts, prompt, None)
    starts = tuple(start for start in prompts.values() if start)
    bare = sum(not line.startswith(starts) for line in lines) if starts and prompt == "none" else 0
    if bare:
        warnings.warn(
            f"{bare} of {len(lines)} texts start with none of the prompts that {model} was trained with "
            f"({', '.join(map(repr, starts))}); --prompt query or --prompt passage puts one there",
            stacklevel=1,
        )
    vectors = encoder.encode(lines, prompt=prefix)
    if output is None:
        _write_json_lines(lines, vectors, sys.stdout)
        return
    provenance = encoder.provenance(prefix)
    with _written_whole(output) as file:
        if output.suffix == ".safetensors":
            file.write(save({"embeddings": np.ascontiguousarray(vectors)}, provenance))
        elif output.suffix == ".npy":
            np.save(file, vectors)
        else:
            _write_json_lines(lines, vectors, _Utf8(file))
    if output.suffix != ".safetensors":
        with _written_whole(output.with_name(output.name + ".provenance.json")) as file:
            file.write((json.dumps(provenance, indent=2) + "\n").encode())


@commands.command()
@click.argument("query")
@click.argument("passages", nargs=-1)
@input_option("Passages to rank")
@model_option
@revision_option
@dtype_option
@json_option
def rank(
    query: str,
    passages: tuple[str, ...],
    source: str | None,
    model: str,
    revision: str | None,
    dtype: str,
    as_json: bool,
) -> None:
    """Rank passages by how well they answer QUERY: cosine x 100, the best first.

    Write query and passages without "query: " and "passage: "; these are put there.
    """
    lines = _texts(passages, source, "PASSAGE")
    encoder = e5ref.load(model, revision=revision, dtype=dtype)
    scores = 100 * encoder.similarity(encoder.encode_query(query), encoder.encode_document(lines))[0]
    for index in np.argsort(-scores, kind="stable"):  # of equal scores, the earlier passage first
        if as_json:
            click.echo(json.dumps({"index": int(index), "score": float(scores[index]), "text": lines[index]}))
        else:
            click.echo(f"{scores[index]:6.2f}  {lines[index]}")


@commands.command()
@json_option
def models(as_json: bool) -> None:
    """List the known checkpoints, and which are on this machine."""
    rows = [
        {"name": name, **row, "on_this_machine": is_cached(name, row.get("revision"))}
        for name, row in e5ref.known_checkpoints().items()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    click.echo(f"{'':2}{'name':34}{'layers':>7}{'hidden':>7}{'vocabulary':>11}  {'licence':8} revision")
    for row in rows:
        mark = "* " if row["on_this_machine"] else "  "
        click.echo(
            f"{mark}{row['name']:34}{row['num_hidden_layers']:7}{row['hidden_size']:7}{row['vocab_size']:11}  "
            f"{row['licence']:8} {row.get('revision', 'main (not pinned)')}"
        )
    click.echo("* on this machine")


@commands.command()
@click.argument("model")
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
    del facts["prompt"]  # that of a run, which there is none of here
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        click.echo(f"{name:24}{json.dumps(value) if isinstance(value, dict) else value or 'none'}")


def _texts(arguments: tuple[str, ...], source: str | None, metavar: str) -> list[str]:
    """Return the texts given as arguments or in a file."""
    if bool(arguments) == (source is not None):
        raise click.UsageError(f"give {metavar} arguments or -i FILE, one of the two")
    if source is None:
        return list(arguments)
    content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    texts = []
    # splitlines() of str would also split at characters that stand inside a text, such as U+2028.
    for number, line in enumerate(content.split(b"\n")[: None if content[-1:] != b"\n" else -1] if content else (), 1):
        try:
            text = line.removesuffix(b"\r").decode()
            texts.append(_text_of_json(text) if source.endswith(".jsonl") else text)
        except UnicodeDecodeError as error:
            raise ValueError(f"{source}, line {number}: is not UTF-8 (byte {error.start}); convert the file") from None
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ValueError(f'{source}, line {number}: is not a JSON object with a "text" that is a string') from None
    return texts


def _text_of_json(line: str) -> str:
    text = json.loads(line)["text"]
    if not isinstance(text, str):
        raise TypeError
    return text


def _write_json_lines(texts: list[str], vectors: NDArray[np.floating], file: Any) -> None:
    """Write a line per text. Numbers are the shortest that read back as the same float32 or float64."""
    for text, vector in zip(texts, vectors, strict=True):
        file.write(f'{{"text": {json.dumps(text)}, "embedding": [{", ".join(map(str, vector))}]}}\n')


class _Utf8:
    """Writes str to a binary file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, text: str) -> None:
        self._file.write(text.encode())


@contextmanager
def _written_whole(path: Path) -> Iterator[IO[bytes]]:
    """Open a file beside `path`, and give it that name once all is written; a failure leaves `path` as it was."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
