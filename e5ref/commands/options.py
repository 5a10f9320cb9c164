"""What several commands share: options, where texts come from, and what may be written."""

import functools
import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import click

import e5ref
from e5ref.checkpoint import Checkpoint
from e5ref.checkpoint.hub import DEFAULT_CHECKPOINT
from e5ref.checkpoint.prompts import find_prompt
from e5ref.encoder import E5
from e5ref.engines.engine import Backend, Precision, require_jax
from e5ref.engines.stream import Truncation
from e5ref.files.texts import Format, read_texts

PROMPTS = ("query", "passage", "none")

OUTPUT_FOLDER = click.Path(file_okay=False, writable=True, path_type=Path)


Command = Callable[..., None]


revision_option = click.option("--revision", help="The hub's commit, tag or branch.  [default: the pinned one]")


dtype_option = click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True)


precision_option = click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    help="How --backend jax computes in float32; all but the first trade exactness for speed.  [default: highest]",
)


backend_option = click.option(
    "--backend",
    type=click.Choice(get_args(Backend)),
    default="numpy",
    show_default=True,
    help="jax is for GPU and TPU.",
)


threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="How many cores --backend numpy uses.  [default: all that it may use, or OPENBLAS_NUM_THREADS]",
)


max_length_option = click.option(
    "--max-length",
    type=click.IntRange(min=1),
    help="The most tokens of a text, [CLS] and [SEP] counted.  [default: the checkpoint's]",
)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")


force_option = click.option("--force", is_flag=True, help="Replace output that is there already.")


model_option = click.option(
    "--model", default=DEFAULT_CHECKPOINT, show_default=True, help="A hub name, or a checkpoint's folder."
)


def model_first(command: Command) -> Command:
    """Declare `--model`, which may also be given as the first argument."""

    @functools.wraps(command)
    def run(*, model_argument: str | None, model: str, **options: Any) -> None:
        chosen = click.get_current_context().get_parameter_source("model")
        if model_argument is not None and chosen is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError("give the model once, as --model or as an argument")
        command(model=model_argument or model, **options)

    return click.argument("model_argument", required=False, metavar="")(model_option(run))


def declare(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Declare several options as one, in the order in which help shows them."""
    return lambda command: functools.reduce(lambda declared, option: option(declared), reversed(options), command)


# Options that are arguments of `e5ref.load`.
SETTINGS = ("revision", "dtype", "precision", "threads", "max_length", "truncation", "batch_size", "truncate_dim")


def model_options(command: Command) -> Command:
    """Declare the options by which a model is chosen and run; the command gets `load`, which loads it."""

    @functools.wraps(command)
    def run(*, model: str, backend: Backend, **options: Any) -> None:
        settings = {name: options.pop(name) for name in SETTINGS}
        command(load=functools.partial(load_model, model, backend=backend, **settings), **options)

    return declare(
        model_option,
        revision_option,
        backend_option,
        dtype_option,
        precision_option,
        threads_option,
        max_length_option,
        click.option(
            "--truncation",
            type=click.Choice(get_args(Truncation)),
            default="warn",
            show_default=True,
            help="What to do about longer texts.",
        ),
        click.option(
            "--batch-size",
            type=click.IntRange(min=1),
            help="The most texts in one batch; vectors do not depend on it.  [default: as many as fill one]",
        ),
        click.option(
            "--dim",
            "truncate_dim",
            type=click.IntRange(min=1),
            help="Keep this many dimensions, the first ones.  [default: all]",
        ),
    )(run)


def load_model(model: str, *, backend: Backend, **settings: Any) -> E5:
    """Load a model; programs that JAX compiles for it are kept."""
    if backend == "jax":
        keep_programs()
    return e5ref.load(model, backend=backend, **settings)


def _once(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> str | None:
    """Take the value of an option that may be given once; of several, click would take the last without a word."""
    if len(values) > 1:
        raise click.UsageError(f"give {option.opts[0]} once; `cat` joins files")
    return values[0] if values else None


# What a file of texts is.
LINES = 'one a line, or JSON lines with a "text"'


def input_options(
    what: str, *names: str, required: bool = False, kinds: str = LINES, formats: Sequence[str] = get_args(Format)
) -> Callable[[Command], Command]:
    """Declare where texts come from, `-i FILE|-` unless other names are given, and `--format`."""
    return declare(
        click.option(
            *(names or ("-i", "--input")),
            "source",
            metavar="FILE|-",
            required=required,
            multiple=True,
            callback=_once,
            help=f"{what}: {kinds}; - is standard input.",
        ),
        click.option(
            "--format",
            "form",
            type=click.Choice(formats),
            help="A text a line, or JSON lines.  [default: what the file's name or its first line says]",
        ),
    )


prompt_option = click.option(
    "--prompt",
    type=click.Choice(PROMPTS),
    default="none",
    show_default=True,
    callback=lambda context, option, value: None if value == "none" else value,
    help="What to put before each text; none takes texts that start with it already.",
)


def keep_programs() -> str:
    """Make JAX keep compiled programs in JAX_COMPILATION_CACHE_DIR or the user's cache; return the folder."""
    require_jax()
    import jax

    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "e5ref" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # JAX's own bound leaves out most of ours
    return str(jax.config.jax_compilation_cache_dir)  # type: ignore[attr-defined]


def prefix_of(checkpoint: Checkpoint, prompt: str | None) -> str:
    """Return what `--prompt` puts before each text; warn if that is nothing."""
    prefix = find_prompt(checkpoint.settings.prompts, prompt, None)
    if prompt is not None and not prefix:
        warnings.warn(f"{checkpoint.name} has no {prompt} prompt: the texts are taken as they are", stacklevel=1)
    return prefix


def say_if_none(count: int) -> None:
    """Say on standard error that there was nothing to do, which an empty output does not."""
    if not count:
        click.echo("0 texts", err=True)


def check_output(output: Path, inputs: Iterable[str | Path], force: bool) -> None:
    """Refuse, before any work, an output that cannot be written, is part of the input, or is there already."""
    folder = output.resolve().parent
    if output.is_dir():
        raise click.UsageError(f"{output}: is a folder; give the name of a file")
    if not folder.is_dir():
        raise click.UsageError(f"{folder}: no such folder; make it first")
    if not os.access(folder, os.W_OK):
        raise click.UsageError(f"{folder}: may not be written to")
    if output.exists() and not output.is_file():
        raise click.UsageError(f"{output}: is no ordinary file; leave it out to print, or give the name of one")
    if output.exists() and any(output.samefile(path) for path in inputs if Path(path).exists()):
        raise click.UsageError(f"{output} is part of the input, and would be lost")
    if output.exists() and not force:
        raise click.UsageError(f"{output}: is there already; give another name, or --force to replace it")


def read_or_given(arguments: tuple[str, ...], source: str | None, form: Format | None, metavar: str) -> Iterable[str]:
    """Return the texts given as arguments, or those of a file as they are read."""
    if bool(arguments) == (source is not None):
        raise click.UsageError(f"give {metavar} arguments or -i FILE, one of the two")
    if source is None:
        return list(arguments)
    texts = read_texts(source, form)
    return itertools.chain(list(itertools.islice(texts, 1)), texts)  # what cannot be read is refused before any work
