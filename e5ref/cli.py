"""`e5ref …`: thin; every command is a few lines over the library."""

import errno
import functools
import itertools
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, get_args

import click
import numpy as np

import e5ref
from e5ref.checkpoint import DEFAULT_CHECKPOINT, Checkpoint, is_on_this_machine
from e5ref.encoder import E5, Backend, Precision, require_jax
from e5ref.evaluation.protocols import Protocol
from e5ref.files import written_whole
from e5ref.params import leaves
from e5ref.prompts import count_doubled, doubled_prompts, find_prompt
from e5ref.stopping import Stopped, end, stops_soon
from e5ref.stream import Truncation
from e5ref.texts import Format, read_texts
from e5ref.vectors import SUFFIXES, with_texts, write_json_lines, write_vectors, written_names

PROMPTS = ("query", "passage", "none")

# Texts after which it is said that some of them have no prompt, or have one twice.
FIRST_TEXTS = 1000

Command = Callable[..., None]


def main() -> None:
    """Run the command line. What goes wrong is said in one sentence on standard error, with exit code 2."""
    _open_standard_streams()
    warnings.showwarning = lambda message, *_, **__: click.echo(f"Warning: {message}", err=True)
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", UserWarning)
    with stops_soon():
        try:
            status = commands(standalone_mode=False)  # of a command that ended in click's Exit, its code; else None
            sys.stdout.flush()
        except Stopped as stop:
            end(stop.code)
        except BrokenPipeError:  # whoever read our output has had enough, as `head` does
            _drop_output()
            status = 1
        except click.UsageError as error:
            error.show()
            status = 2
        except Exception as error:
            if "E5REF_TRACEBACK" in os.environ:
                raise
            click.echo(f"Error: {_sentence(error)}", err=True)
            _drop_output()
            status = 2
    sys.exit(status)


def _open_standard_streams() -> None:
    """Put something in the place of standard streams that the caller has closed, for which Python has None.

    Reading from standard input, or writing to standard output, then fails with EBADF. Warnings go nowhere.
    """
    for name, mode in (("stdin", os.O_WRONLY), ("stdout", os.O_RDONLY), ("stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, mode)
            setattr(sys, name, os.fdopen(descriptor, "r" if name == "stdin" else "w", closefd=False))


def _drop_output() -> None:
    """Send what is left in the buffer of standard output nowhere; Python would try again at exit, and fail aloud."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _sentence(error: Exception) -> str:
    """Say what went wrong. The errors that e5ref raises are sentences already."""
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, MemoryError):
        reason = f" ({error})" if str(error) else ""
        return f"out of memory{reason}; take a smaller --batch-size, or a machine with more"
    if isinstance(error, OSError) and error.errno == errno.EBADF:
        return "standard input or output is closed"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, ValueError | TypeError | OSError | ModuleNotFoundError) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error} (with E5REF_TRACEBACK=1 in the environment, Python shows where)"


class Commands(click.Group):
    """The commands, listed by what people come for."""

    GROUPS: ClassVar[Mapping[str, list[str]]] = {
        "Use it": ["demo", "embed", "rank", "models", "inspect", "warm-up"],
        "Measure it": ["eval", "bench"],
        "Judge a port": ["record", "compare", "golden", "check", "diagnose"],
    }

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List each group under its title."""
        for title, names in self.GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(limit=70)) for name in names])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(e5ref.__version__, prog_name="e5ref")
def commands() -> None:
    """E5 text embeddings without a framework."""


revision_option = click.option("--revision", help="The hub's commit, tag or branch.  [default: the pinned one]")
dtype_option = click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True)
precision_option = click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    help="How --backend jax computes in float32; all but the first trade exactness for speed.  [default: highest]",
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

        def load() -> E5:
            if backend == "jax":
                _keep_programs()
            return e5ref.load(model, backend=backend, **settings)

        command(load=load, **options)

    return declare(
        model_option,
        revision_option,
        click.option(
            "--backend",
            type=click.Choice(get_args(Backend)),
            default="numpy",
            show_default=True,
            help="jax is for GPU and TPU.",
        ),
        dtype_option,
        precision_option,
        click.option(
            "--threads",
            type=click.IntRange(min=1),
            help="How many cores --backend numpy uses.  [default: all that it may use, or OPENBLAS_NUM_THREADS]",
        ),
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


def _once(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> str | None:
    """Take the value of an option that may be given once; of several, click would take the last without a word."""
    if len(values) > 1:
        raise click.UsageError(f"give {option.opts[0]} once; `cat` joins files")
    return values[0] if values else None


def input_options(what: str, *names: str, required: bool = False) -> Callable[[Command], Command]:
    """Declare where texts come from, `-i FILE|-` unless other names are given, and `--format`."""
    return declare(
        click.option(
            *(names or ("-i", "--input")),
            "source",
            metavar="FILE|-",
            required=required,
            multiple=True,
            callback=_once,
            help=f'{what}: one a line, or JSON lines with a "text"; - is standard input.',
        ),
        click.option(
            "--format",
            "form",
            type=click.Choice(get_args(Format)),
            help="A text a line, or JSON lines.  [default: what the file's name or its first line says]",
        ),
    )


prompt_option = click.option(
    "--prompt",
    type=click.Choice(PROMPTS),
    default="none",
    show_default=True,
    help="What to put before each text; none takes texts that start with it already.",
)


@commands.command(short_help="See it work, with the small model that comes along.")
@json_option
def demo(as_json: bool) -> None:
    """Try e5ref with the small model that comes with it: two questions, two passages, and which answers which."""
    from e5ref.demo import PASSAGES, QUERIES, explain, score

    scores = score()
    if as_json:
        click.echo(json.dumps({"queries": QUERIES, "passages": PASSAGES, "scores": scores.tolist()}))
    else:
        click.echo(explain(scores))


@commands.command(short_help="Turn texts into vectors.")
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
    prompt: str,
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
            _check_output(name, [] if source in (None, "-") else [source], force)
    lines = _texts(texts, source, form, "TEXT")
    if share is not None:
        if source is None or not Path(source).is_file():
            lines = list(lines)
        count = sum(1 for _ in lines)
        if not isinstance(lines, list):
            lines = _texts(texts, source, form, "TEXT")  # a file can be read once more
        lines = itertools.islice(lines, count * index // shares, count * (index + 1) // shares)
    encoder = load()
    prefix = _prefix(encoder.checkpoint, prompt)
    watched = _watched(lines, encoder.checkpoint, prompt)
    parts = with_texts(partial(encoder.encode_stream, prompt=prefix), watched)
    if output is None:
        count = write_json_lines(sys.stdout, parts)
    else:
        provenance = encoder.provenance(prefix)
        count = write_vectors(
            output.resolve(), parts, width=encoder.dimensions, dtype=encoder.dtype, provenance=provenance
        )
    _say_if_none(count)


@commands.command(short_help="Rank passages by how well they answer a query.")
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
    lines = list(_texts(passages, source, form, "PASSAGE"))
    encoder = load()
    for name, written in (("query", [query]), ("document", lines)):
        prefix = find_prompt(encoder.checkpoint.settings.prompts, name, None)
        for note in doubled_prompts("texts", prefix, count_doubled(prefix, written), len(written)):
            warnings.warn(note, stacklevel=1)
    scores = 100 * encoder.similarity(encoder.encode_query(query), encoder.encode_document(lines))[0]
    for index in np.argsort(-scores, kind="stable")[:k]:
        if as_json:
            click.echo(json.dumps({"index": int(index), "score": float(scores[index]), "text": lines[index]}))
        else:
            click.echo(f"{scores[index]:6.2f}  {' '.join(lines[index].split())}")  # a line each, whatever is in it
    _say_if_none(len(lines))


@commands.command(short_help="List the known checkpoints, and which are on this machine.")
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
    click.echo(f"{'':2}{'name':34}{'layers':>7}{'hidden':>7}{'vocabulary':>11}  {'licence':8} revision")
    for row in rows:
        mark = "* " if row["on_this_machine"] else "  "
        click.echo(
            f"{mark}{row['name']:34}{row['num_hidden_layers']:7}{row['hidden_size']:7}{row['vocab_size']:11}  "
            f"{row['licence']:8} {row.get('revision', 'comes with e5ref' if 'bundled' in row else 'main (not pinned)')}"
        )
    click.echo("* on this machine")


@commands.command(short_help="Show what a checkpoint is: sizes, prompts, hashes.")
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
    del facts["prompt"]  # that of a run, which there is none of here
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        click.echo(f"{name:24}{json.dumps(value) if isinstance(value, dict) else 'none' if value == '' else value}")


@commands.command("warm-up", short_help="Compile beforehand what --backend jax will want.")
@model_option
@revision_option
@dtype_option
@precision_option
@max_length_option
def warm_up(model: str, **options: Any) -> None:
    """Compile beforehand, and keep, every program that --backend jax will want for a checkpoint."""
    folder = _keep_programs()
    programs = e5ref.load(model, backend="jax", **options).warm_up()
    click.echo(f"{programs} programs are ready in {folder}")


@commands.command(short_help="Measure speed and memory beside other libraries.")
@click.option(
    "--model",
    "models",
    multiple=True,
    default=["small"],
    show_default=True,
    help="small, base or large, for random weights of that E5's sizes; a hub name; or a folder. May be given again.",
)
@input_options("Texts to embed too, as they are", "--texts")
@click.option(
    "--ours",
    metavar="NAME,…",
    help="numpy, jax-highest, jax-high, jax-bfloat16, jax-float16.  [default: those that suit the machine]",
)
@click.option(
    "--against",
    metavar="NAME,…",
    default="",
    help="model-card, transformers, sentence-transformers, fastembed, onnxruntime, onnxruntime-fused, "
    "onnxruntime-int8.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Turns that each one takes.")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, writable=True, path_type=Path),
    help="Write bench.json and a chart, bench.svg, to this folder too.",
)
@force_option
@json_option
def bench(
    models: tuple[str, ...],
    source: str | None,
    form: Format | None,
    ours: str | None,
    against: str,
    rounds: int,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Measure e5ref beside its peers, on this machine.

    All embed the same inputs in turn: texts of 64, 128 and 512 tokens, and those of --texts. Each is first compared
    with float64; one that is wrong is not timed. Each also starts processes of its own, for the time until the first
    vector and until all texts are embedded, the first time with nothing compiled, and for the most memory. Tables are
    shown, and files written, after each input.
    """
    from tqdm import tqdm

    from e5ref.bench import bench_step_by_step, suitable_contenders
    from e5ref.bench.report import chart, tables

    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        for name in ("bench.json", "bench.svg"):
            _check_output(output / name, [], force)
    texts = [] if source is None else list(_texts((), source, form, "TEXT"))
    own = suitable_contenders() if ours is None else ours.split(",")
    contenders = [*own, *filter(None, against.split(","))]
    results: list[dict[str, Any]] = []
    for model in models:
        shown = 0
        for step, result in enumerate(bench_step_by_step(model, contenders, texts=texts, rounds=rounds)):
            if step == 0:
                results.append(result)
            parts = tables(result)
            if not as_json:
                with tqdm.external_write_mode():  # takes progress bars away for as long
                    click.echo("".join(part + "\n\n" for part in parts[shown:]), nl=False)
            shown = len(parts)
            if output is not None:
                for name, text in (("bench.json", json.dumps(results, indent=2) + "\n"), ("bench.svg", chart(results))):
                    with written_whole(output.resolve() / name) as file:
                        file.write(text.encode())
    if as_json:
        click.echo(json.dumps(results, indent=2))


@commands.group("eval", short_help="Score a checkpoint on data, beside published scores.")
def evaluate() -> None:
    """Measure how good a checkpoint is, and set that beside what its authors published."""


# What all evaluations share.
evaluation_options = declare(
    click.option("--task", help="Which data set of mteb this is.  [default: the one it is called like, if any]"),
    click.option(
        "--protocol",
        type=click.Choice(get_args(Protocol)),
        help="How to ask the model: as its authors did, or as mteb's own wrapper does.  [default: authors]",
    ),
    click.option("--compare-protocols", is_flag=True, help="Ask in both ways."),
    click.option("-o", "--output", type=Path, metavar="FILE", help="Write the reports to FILE too, in JSON."),
    force_option,
    json_option,
    model_options,
)


@evaluate.command(short_help="Pairs of sentences: does the cosine follow what people say?")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@evaluation_options
def sts(file: Path, **options: Any) -> None:
    """Correlate the cosines of pairs of sentences with the scores that people gave.

    FILE is separated by tabs or commas, or JSON lines: STS Benchmark's own, or with sentence1, sentence2 and score.
    """
    from e5ref.evaluation import evaluate_sts

    _evaluate(evaluate_sts, file, **options)


@evaluate.command(short_help="Search: are the right documents found?")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--split", help='Which of qrels/*.tsv.  [default: "test"; "dev" for MSMARCO; else the only one]')
@click.option(
    "-k",
    type=click.IntRange(min=1),
    multiple=True,
    default=(10, 100),
    show_default=True,
    help="How many of the best documents count. May be given again.",
)
@click.option(
    "--ignore-identical-ids/--keep-identical-ids",
    default=None,
    help="Leave out a document that has the query's own id.  [default: as BEIR does for this task]",
)
@click.option(
    "--cache", type=Path, metavar="DIR", help="Keep vectors here; a run that was stopped continues from them."
)
@evaluation_options
def retrieval(
    folder: Path,
    split: str | None,
    k: tuple[int, ...],
    ignore_identical_ids: bool | None,
    cache: Path | None,
    **options: Any,
) -> None:
    """Search documents for the answers to queries: nDCG, MAP, Recall and MRR.

    FOLDER is in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv, each of them also as .gz.
    """
    from e5ref.evaluation import evaluate_retrieval

    own: dict[str, Any] = {"split": split, "k": k, "ignore_identical_ids": ignore_identical_ids, "cache": cache}
    _evaluate(partial(evaluate_retrieval, **own), folder, **options)


def _evaluate(
    run: Callable[..., list[dict[str, Any]]],
    data: Path,
    *,
    load: Callable[[], E5],
    task: str | None,
    protocol: Protocol | None,
    compare_protocols: bool,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Run an evaluation, and print and write its reports."""
    from e5ref.evaluation import table

    if compare_protocols and protocol:
        raise click.UsageError("give --protocol or --compare-protocols, not both")
    if output is not None:
        inputs = [data] if data.is_file() else [*data.glob("*.jsonl*"), *data.glob("qrels/*.tsv*")]
        _check_output(output, inputs, force)
    protocols = get_args(Protocol) if compare_protocols else [protocol or "authors"]
    reports = run(load(), data, protocols=protocols, task=task)
    content = json.dumps(reports, indent=2) + "\n"
    if output is not None:
        with written_whole(output.resolve()) as file:
            file.write(content.encode())
    click.echo(content if as_json else table(reports) + "\n", nl=False)


@commands.command(short_help="Run texts through a model, and keep every point inside it.")
@model_first
@input_options("Texts to run", required=True)
@click.option("-o", "--output", type=Path, required=True, metavar="RUN", help="Where to: a .safetensors file.")
@force_option
@revision_option
@click.option(
    "--backend",
    default="numpy",
    show_default=True,
    help="numpy, jax, transformers, sentence-transformers, or onnx:FILE for a graph.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float64", "bfloat16", "float16"]),
    help="What to compute in.  [default: float32; what an onnx graph gives]",
)
@prompt_option
@click.option(
    "--only",
    metavar="NAME,…",
    help='Which points to keep, such as "layers.*.output,normalized".  [default: all, fewer if they are very large]',
)
def record(
    model: str,
    source: str,
    form: Format | None,
    output: Path,
    force: bool,
    revision: str | None,
    prompt: str,
    only: str | None,
    **options: Any,
) -> None:
    """Run texts through a model, and keep every named point inside it for `e5ref compare`.

    docs/judge.md describes RUN, so that any program can write one.
    """
    from e5ref.parity import record as record_run
    from e5ref.parity import write_run

    if output.suffix != ".safetensors":
        raise click.UsageError(f"{output}: the name must end in .safetensors")
    _check_output(output, [] if source == "-" else [source], force)
    checkpoint = e5ref.read_checkpoint(model, revision=revision)
    texts = list(_watched(_texts((), source, form, "TEXT"), checkpoint, prompt))
    prefix = _prefix(checkpoint, prompt)
    names = only.split(",") if only else None
    run = record_run(model, texts, revision=revision, prompt=prefix, only=names, **options)
    write_run(run, output)


@commands.command(short_help="Write what a port to another language is tested on.")
@model_first
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, writable=True, path_type=Path),
    required=True,
    metavar="KIT",
    help="Where to: a folder.",
)
@force_option
@revision_option
@click.option(
    "--size",
    type=click.Choice(["small", "full"]),
    default="small",
    show_default=True,
    help="small holds the states of one layer and the output of each, full every point of every layer.",
)
def golden(model: str, output: Path, force: bool, **options: Any) -> None:
    """Write what a port of a model to another language can be tested on: texts, ids, states, vectors, tolerances.

    KIT explains itself: see its README.md.
    """
    from e5ref.parity.golden import KIT, write_kit

    if (output / KIT).exists():
        _check_output(output / KIT, [], force)
    write_kit(model, output, **options)
    size = sum(path.stat().st_size for path in output.iterdir())
    click.echo(f"{output}: {size / 1e6:.1f} MB; its README.md says what a port has to write, and check.py judges that")


@commands.command(short_help="Judge a port by a golden kit.")
@click.argument("kit", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("runs", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--only", metavar="NAME,…", help='Judge these points alone, such as "normalized".')
def check(kit: Path, runs: Path, only: str | None) -> None:
    """Judge a port by a golden KIT: RUNS is a folder with a run for each of the kit's batches, named as there.

    Exit code 1 if anything is further from float64 than rounding takes it, missing or unreadable.
    """
    from e5ref.parity import RunError
    from e5ref.parity.golden import check_kit
    from e5ref.parity.report import text_report

    results = check_kit(kit, runs, only=only.split(",") if only else None)
    for batch, result in results.items():
        report = f"[{result.verdict}]  {result}" if isinstance(result, RunError) else text_report(result)
        click.echo(f"{batch}\n{report}\n")
    failed = [batch for batch, result in results.items() if isinstance(result, RunError) or not result.passed]
    click.echo(f"FAILED: {', '.join(failed)}" if failed else f"Passed: {', '.join(results)}")
    raise click.exceptions.Exit(1 if failed else 0)


@commands.command(short_help="Say where a run departs from the reference first.")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("reference", type=click.Path(path_type=Path))
@click.option(
    "--only", metavar="NAME,…", help='Compare these points alone, such as "layers.*.output,normalized".  [default: all]'
)
@json_option
@click.option("--html", "page", type=Path, metavar="FILE", help="Write a page with a chart and the worst tokens too.")
@force_option
@click.option("--model", help="The checkpoint of REFERENCE: then say which known mistake explains RUN, if one does.")
def compare(
    run: Path, reference: Path, only: str | None, as_json: bool, page: Path | None, force: bool, model: str | None
) -> None:
    """Say where RUN departs from REFERENCE first, by how much, and whether rounding explains it.

    REFERENCE is what `e5ref record MODEL --dtype float64` wrote for the same texts. Nobody picks a tolerance: RUN may
    err by a few times what rounding alone costs at each point. Exit code 1 if it errs by more anywhere.
    """
    from e5ref.parity.compare import compare as compare_runs
    from e5ref.parity.explain import explain
    from e5ref.parity.report import html_report, json_report, text_report
    from e5ref.parity.run import read_run

    if page is not None:
        _check_output(page, [run, reference], force)
    runs = read_run(run), read_run(reference)
    comparison = compare_runs(*runs, only=only.split(",") if only else None)
    explanations = None
    if model is not None:
        explanations = explain(*runs, e5ref.read_checkpoint(model, dtype="float64"), comparison)
    if as_json:
        click.echo(json.dumps(json_report(comparison, explanations), indent=2, allow_nan=False))
    else:
        click.echo(text_report(comparison))
        for one in (explanations or [])[:3]:
            click.echo(str(one))
        if explanations is not None and not comparison.passed and not any(one.explains for one in explanations):
            click.echo("No known mistake explains it.")
    if page is not None:
        with written_whole(page.resolve()) as file:
            file.write(html_report(comparison, f"{run.name} beside {reference.name}").encode())
    raise click.exceptions.Exit(0 if comparison.passed else 1)


def _keep_programs() -> str:
    """Make JAX keep compiled programs in JAX_COMPILATION_CACHE_DIR or the user's cache; return the folder."""
    require_jax()
    import jax

    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "e5ref" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # JAX's own bound leaves out most of ours
    return str(jax.config.jax_compilation_cache_dir)  # type: ignore[attr-defined]


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


def _prefix(checkpoint: Checkpoint, prompt: str) -> str:
    """Return what `--prompt` puts before each text; warn if that is nothing."""
    prefix = "" if prompt == "none" else find_prompt(checkpoint.settings.prompts, prompt, None)
    if prompt != "none" and not prefix:
        warnings.warn(f"{checkpoint.name} has no {prompt} prompt: the texts are taken as they are", stacklevel=1)
    return prefix


def _watched(texts: Iterable[str], checkpoint: Checkpoint, prompt: str) -> Iterator[str]:
    """Pass texts on. After the first thousand, or all, warn of those that have no prompt, or get it twice."""
    prompts = checkpoint.settings.prompts
    starts = tuple(filter(None, prompts.values()))
    prefix = "" if prompt == "none" else find_prompt(prompts, prompt, None)

    def warn(bare: int, doubled: int, total: str) -> None:
        if bare:
            warnings.warn(
                f"{bare} of {total} texts start with none of the prompts that {checkpoint.name} was trained with "
                f"({', '.join(map(repr, starts))}); --prompt query or --prompt passage puts one there",
                stacklevel=1,
            )
        for note in doubled_prompts("texts", prefix, doubled, total):
            warnings.warn(note, stacklevel=1)

    bare = doubled = count = 0
    for count, text in enumerate(texts, 1):
        bare += prompt == "none" and bool(starts) and not text.startswith(starts)
        doubled += count_doubled(prefix, [text])
        yield text
        if count == FIRST_TEXTS:
            warn(bare, doubled, f"the first {count:,}")
    if count < FIRST_TEXTS:
        warn(bare, doubled, str(count))


def _say_if_none(count: int) -> None:
    """Say on standard error that there was nothing to do, which an empty output does not."""
    if not count:
        click.echo("0 texts", err=True)


def _check_output(output: Path, inputs: Iterable[str | Path], force: bool) -> None:
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


def _texts(arguments: tuple[str, ...], source: str | None, form: Format | None, metavar: str) -> Iterable[str]:
    """Return the texts given as arguments, or those of a file as they are read."""
    if bool(arguments) == (source is not None):
        raise click.UsageError(f"give {metavar} arguments or -i FILE, one of the two")
    if source is None:
        return list(arguments)
    texts = read_texts(source, form)
    return itertools.chain(list(itertools.islice(texts, 1)), texts)  # what cannot be read is refused before any work


@commands.command(short_help="Say what was done to make vectors from texts.")
@input_options("The texts", "--texts", required=True)
@click.option("--vectors", type=Path, metavar="FILE.npy", help="Their vectors, one row each.")
@click.option("--endpoint", metavar="URL", help="Ask this service: its /v1/embeddings (OpenAI's way) or /embed.")
@click.option("--endpoint-model", default="", help="What the service at --endpoint calls the model.")
@click.option(
    "--model",
    "models",
    multiple=True,
    help=f"What it should be.  [default: {DEFAULT_CHECKPOINT}] May be given again.",
)
@click.option(
    "--prompt",
    type=click.Choice(["query", "passage"]),
    help="The prompt that is believed to be there.  [default: either]",
)
@json_option
def diagnose(
    source: str,
    form: Format | None,
    vectors: Path | None,
    endpoint: str | None,
    endpoint_model: str,
    models: tuple[str, ...],
    prompt: str | None,
    as_json: bool,
) -> None:
    """Say what was done to make vectors from texts.

    Tells vectors that are as the model card says from those with a prefix missing, another pooling, other tokens,
    another precision or order, and says what these texts cannot tell. Exit code 1 for all but the first. The key of a
    service is taken from the environment variable E5REF_API_KEY.
    """
    from e5ref.parity.diagnose import diagnose as find
    from e5ref.parity.endpoint import fetch_vectors

    if (vectors is None) == (endpoint is None):
        raise click.UsageError("give --vectors or --endpoint, one of the two")
    lines = list(_texts((), source, form, "TEXT"))
    if vectors is not None:
        try:
            rows = np.load(vectors, allow_pickle=False)
        except (ValueError, EOFError):
            raise ValueError(f"{vectors}: is not a .npy file of numbers") from None
        if not isinstance(rows, np.ndarray):
            raise ValueError(f"{vectors}: holds several arrays; save the vectors alone, with numpy.save")
    else:
        rows = fetch_vectors(str(endpoint), lines, model=endpoint_model)
    diagnosis = find(lines, rows, list(models) or None, prompt_name=prompt)
    click.echo(json.dumps(diagnosis.to_dict(), indent=2) if as_json else str(diagnosis))
    raise click.exceptions.Exit(0 if diagnosis.verdict == "correct" else 1)
