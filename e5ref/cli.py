"""`e5ref …`: thin; every command is a few lines over the library."""

import io
import itertools
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TextIO, get_args

import click
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

import e5ref
from e5ref.checkpoint import DEFAULT_CHECKPOINT, is_on_this_machine
from e5ref.encoder import E5, Backend, Precision, Truncation, require_jax
from e5ref.evaluation.protocols import Protocol
from e5ref.files import decoded_lines, written_whole
from e5ref.params import leaves
from e5ref.prompts import count_doubled, doubled_prompts, find_prompt

PROMPTS = ("query", "passage", "none")
SUFFIXES = (".npy", ".safetensors", ".jsonl")


def main() -> None:
    """Run the command line. What goes wrong is said in one sentence on standard error, with exit code 2."""
    warnings.showwarning = lambda message, *_, **__: click.echo(f"Warning: {message}", err=True)
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", UserWarning)
    try:
        status = commands(standalone_mode=False)  # of a command that ended in click's Exit, its code; else None
        sys.stdout.flush()
        sys.exit(status)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped.", err=True)
        sys.exit(130)
    except BrokenPipeError:  # whoever read our output has had enough, as `head` does
        _drop_output()
        sys.exit(1)
    except (ValueError, OSError, MemoryError, ModuleNotFoundError, click.ClickException) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        click.echo(f"Error: {message or type(error).__name__}", err=True)
        _drop_output()
        sys.exit(2)


def _drop_output() -> None:
    """Send what is left in the buffer of standard output nowhere; Python would try again at exit, and fail aloud."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(e5ref.__version__, prog_name="e5ref")
def commands() -> None:
    """E5 text embeddings without a framework."""


model_option = click.option(
    "--model", default=DEFAULT_CHECKPOINT, show_default=True, help="A hub name, or a checkpoint's folder."
)
revision_option = click.option("--revision", help="The hub's commit, tag or branch.  [default: the pinned one]")
backend_option = click.option(
    "--backend",
    type=click.Choice(get_args(Backend)),
    default="numpy",
    show_default=True,
    help="jax is for GPU and TPU.",
)
dtype_option = click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True)
precision_option = click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    help="How --backend jax computes in float32; all but the first trade exactness for speed.  [default: highest]",
)
truncation_option = click.option(
    "--truncation",
    type=click.Choice(["warn", "error", "allow"]),
    default="warn",
    show_default=True,
    help="What to do about texts longer than the model takes.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")


def input_option(what: str, *, required: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Declare `-i FILE|-`."""
    return click.option(
        "-i",
        "--input",
        "source",
        metavar="FILE|-",
        required=required,
        help=f'{what}: one a line, or JSON lines with a "text" if FILE ends in .jsonl; - is standard input.',
    )


prompt_option = click.option(
    "--prompt",
    type=click.Choice(PROMPTS),
    default="none",
    show_default=True,
    help="What to put before each text; none takes texts that start with it already.",
)


@commands.command()
@json_option
def demo(as_json: bool) -> None:
    """Try e5ref with the small model that comes with it: two questions, two passages, and which answers which."""
    from e5ref.demo import PASSAGES, QUERIES, explain, score

    scores = score()
    if as_json:
        click.echo(json.dumps({"queries": QUERIES, "passages": PASSAGES, "scores": scores.tolist()}))
    else:
        click.echo(explain(scores))


@commands.command()
@click.argument("texts", nargs=-1)
@input_option("Texts to embed")
@click.option("-o", "--output", type=Path, help=f"Write to OUT{'|'.join(SUFFIXES)} instead of standard output.")
@model_option
@revision_option
@prompt_option
@backend_option
@dtype_option
@precision_option
@truncation_option
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="How many cores --backend numpy uses.  [default: all, 16 at most, or what OPENBLAS_NUM_THREADS says]",
)
@click.option(
    "--share",
    metavar="I/N|auto",
    help="Embed only share I (from 0 on) of N of the texts, and name OUT after it; auto asks jax.distributed.",
)
def embed(
    texts: tuple[str, ...],
    source: str | None,
    output: Path | None,
    model: str,
    revision: str | None,
    prompt: str,
    backend: Backend,
    dtype: str,
    precision: Precision | None,
    truncation: Truncation,
    threads: int | None,
    share: str | None,
) -> None:
    """Turn texts into vectors.

    Prints JSON lines with "text" and "embedding". A file gets the vectors alone (.npy), or with where they come from
    (.safetensors); for OUT.npy and OUT.jsonl that goes into a second file, OUT.npy.provenance.json.
    """
    index, shares = _share(share, backend)
    if output is not None:
        if share is not None:
            output = output.with_stem(f"{output.stem}-{index:05}-of-{shares:05}")
        if output.suffix not in SUFFIXES:
            raise click.UsageError(f"{output}: the name must end in {', '.join(SUFFIXES)}")
        output = output.resolve()
        _check_output(output, [] if source in (None, "-") else [source])
    lines = _texts(texts, source, "TEXT")
    lines = lines[len(lines) * index // shares : len(lines) * (index + 1) // shares]
    encoder = _load(model, backend, revision=revision, dtype=dtype, precision=precision, threads=threads)
    prefix = _prefix(model, encoder.checkpoint.settings.prompts, prompt, lines)
    parts = encoder.encode_stream(lines, prompt=prefix, truncation=truncation)
    if output is None:
        _write_json_lines(lines, parts, sys.stdout)
        return
    provenance = encoder.provenance(prefix)
    shape = (len(lines), encoder.checkpoint.config.hidden_size)
    with ExitStack() as files:
        # What comes from where is in place before what it is about.
        file = files.enter_context(written_whole(output))
        if output.suffix != ".safetensors":
            beside = files.enter_context(written_whole(output.with_name(output.name + ".provenance.json")))
            beside.write((json.dumps(provenance, indent=2) + "\n").encode())
        if output.suffix == ".safetensors":
            vectors = np.concatenate([np.empty((0, shape[1]), encoder.dtype), *parts])
            file.write(save({"embeddings": vectors}, provenance))
        elif output.suffix == ".npy":
            header = {"descr": np.lib.format.dtype_to_descr(encoder.dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.writelines(part.data for part in parts)
        else:
            with io.TextIOWrapper(file, encoding="utf-8", newline="\n") as text_file:
                _write_json_lines(lines, parts, text_file)


@commands.command()
@click.argument("query")
@click.argument("passages", nargs=-1)
@input_option("Passages to rank")
@model_option
@revision_option
@backend_option
@dtype_option
@precision_option
@truncation_option
@json_option
def rank(
    query: str,
    passages: tuple[str, ...],
    source: str | None,
    model: str,
    revision: str | None,
    backend: Backend,
    dtype: str,
    precision: Precision | None,
    truncation: Truncation,
    as_json: bool,
) -> None:
    """Rank passages by how well they answer QUERY: cosine x 100, the best first.

    Write query and passages without prompts: the checkpoint's own are put there (E5: "query: " and "passage: ").
    """
    lines = _texts(passages, source, "PASSAGE")
    encoder = _load(model, backend, revision=revision, dtype=dtype, precision=precision, truncation=truncation)
    for name, written in (("query", [query]), ("document", lines)):
        _warn_of_doubled(find_prompt(encoder.checkpoint.settings.prompts, name, None), written)
    scores = 100 * encoder.similarity(encoder.encode_query(query), encoder.encode_document(lines))[0]
    for index in np.argsort(-scores, kind="stable"):  # of equal scores, the earlier passage first
        if as_json:
            click.echo(json.dumps({"index": int(index), "score": float(scores[index]), "text": lines[index]}))
        else:
            click.echo(f"{scores[index]:6.2f}  {' '.join(lines[index].split())}")  # a line each, whatever is in it


@commands.command()
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
        click.echo(f"{name:24}{json.dumps(value) if isinstance(value, dict) else 'none' if value == '' else value}")


@commands.command("warm-up")
@model_option
@revision_option
@dtype_option
@precision_option
def warm_up(model: str, revision: str | None, dtype: str, precision: Precision | None) -> None:
    """Compile beforehand, and keep, every program that --backend jax will want for a checkpoint."""
    encoder = _load(model, "jax", revision=revision, dtype=dtype, precision=precision)
    programs = encoder.warm_up()
    click.echo(f"{programs} programs are ready in {_keep_programs()}")


@commands.command()
@click.option(
    "--model",
    "models",
    multiple=True,
    default=["small"],
    show_default=True,
    help="small, base or large, for random weights of that E5's sizes; a hub name; or a folder. May be given again.",
)
@click.option("--texts", "source", metavar="FILE|-", help="Embed these too, as they are; read as -i of embed.")
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
@json_option
def bench(
    models: tuple[str, ...],
    source: str | None,
    ours: str | None,
    against: str,
    rounds: int,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure e5ref beside its peers, on this machine.

    All embed the same inputs in turn: texts of 64, 128 and 512 tokens, and those of --texts. Each is first compared
    with float64; one that is wrong is not timed. On a CPU, each also starts processes of its own, for the time until
    the first vector and for the most memory. Tables are shown, and files written, after each input.
    """
    from tqdm import tqdm

    from e5ref.bench import bench_step_by_step, suitable_contenders
    from e5ref.bench.report import chart, tables

    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    texts = [] if source is None else _texts((), source, "TEXT")
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


@commands.group("eval")
def evaluate() -> None:
    """Measure how good a checkpoint is, and set that beside what its authors published."""


def evaluation_options(command: Callable[..., None]) -> Callable[..., None]:
    """Declare the options that all evaluations share."""
    for option in reversed(
        (
            click.option(
                "--task", help="Which data set of mteb this is.  [default: the one it is called like, if any]"
            ),
            click.option(
                "--protocol",
                type=click.Choice(get_args(Protocol)),
                help="How to ask the model: as its authors did, or as mteb's own wrapper does.  [default: authors]",
            ),
            click.option("--compare-protocols", is_flag=True, help="Ask in both ways."),
            click.option("-o", "--output", type=Path, metavar="FILE", help="Write the reports to FILE too, in JSON."),
            model_option,
            revision_option,
            backend_option,
            dtype_option,
            precision_option,
            json_option,
        )
    ):
        command = option(command)
    return command


@evaluate.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@evaluation_options
def sts(file: Path, **options: Any) -> None:
    """Correlate the cosines of pairs of sentences with the scores that people gave.

    FILE is separated by tabs or commas: STS Benchmark's own, or with columns sentence1, sentence2 and score.
    """
    from e5ref.evaluation import evaluate_sts

    _evaluate(evaluate_sts, file, **options)


@evaluate.command()
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

    FOLDER is in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv.
    """
    from e5ref.evaluation import evaluate_retrieval

    own: dict[str, Any] = {"split": split, "k": k, "ignore_identical_ids": ignore_identical_ids, "cache": cache}
    _evaluate(partial(evaluate_retrieval, **own), folder, **options)


def _evaluate(
    run: Callable[..., list[dict[str, Any]]],
    data: Path,
    *,
    task: str | None,
    protocol: Protocol | None,
    compare_protocols: bool,
    output: Path | None,
    model: str,
    revision: str | None,
    backend: Backend,
    dtype: str,
    precision: Precision | None,
    as_json: bool,
) -> None:
    """Run an evaluation, and print and write its reports."""
    from e5ref.evaluation import table

    if compare_protocols and protocol:
        raise click.UsageError("give --protocol or --compare-protocols, not both")
    if output is not None:
        _check_output(output, [data] if data.is_file() else [*data.glob("*.jsonl"), *data.glob("qrels/*.tsv")])
    protocols = get_args(Protocol) if compare_protocols else [protocol or "authors"]
    encoder = _load(model, backend, revision=revision, dtype=dtype, precision=precision)
    reports = run(encoder, data, protocols=protocols, task=task)
    content = json.dumps(reports, indent=2) + "\n"
    if output is not None:
        with written_whole(output.resolve()) as file:
            file.write(content.encode())
    click.echo(content if as_json else table(reports) + "\n", nl=False)


@commands.command()
@click.argument("model")
@input_option("Texts to run", required=True)
@click.option("-o", "--output", type=Path, required=True, metavar="RUN", help="Where to: a .safetensors file.")
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
    model: str, source: str, output: Path, revision: str | None, prompt: str, only: str | None, **options: Any
) -> None:
    """Run texts through MODEL, and keep every named point inside it for `e5ref compare`.

    MODEL is a hub name or a folder. docs/judge.md describes RUN, so that any program can write one.
    """
    from e5ref.parity import record as record_run
    from e5ref.parity import write_run

    if output.suffix != ".safetensors":
        raise click.UsageError(f"{output}: the name must end in .safetensors")
    _check_output(output, [] if source == "-" else [source])
    texts = _texts((), source, "TEXT")
    prefix = _prefix(model, e5ref.read_checkpoint(model, revision=revision).settings.prompts, prompt, texts)
    names = only.split(",") if only else None
    run = record_run(model, texts, revision=revision, prompt=prefix, only=names, **options)
    write_run(run, output)


@commands.command()
@click.argument("model")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, writable=True, path_type=Path),
    required=True,
    metavar="KIT",
    help="Where to: a folder.",
)
@revision_option
@click.option(
    "--size",
    type=click.Choice(["small", "full"]),
    default="small",
    show_default=True,
    help="small holds the states of one layer and the output of each, full every point of every layer.",
)
def golden(model: str, output: Path, **options: Any) -> None:
    """Write what a port of MODEL to another language can be tested on: texts, ids, states, vectors, tolerances.

    MODEL is a hub name or a folder. KIT explains itself: see its README.md.
    """
    from e5ref.parity.golden import write_kit

    write_kit(model, output, **options)
    size = sum(path.stat().st_size for path in output.iterdir())
    click.echo(f"{output}: {size / 1e6:.1f} MB; its README.md says what a port has to write, and check.py judges that")


@commands.command()
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


@commands.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("reference", type=click.Path(path_type=Path))
@click.option(
    "--only", metavar="NAME,…", help='Compare these points alone, such as "layers.*.output,normalized".  [default: all]'
)
@json_option
@click.option("--html", "page", type=Path, metavar="FILE", help="Write a page with a chart and the worst tokens too.")
@click.option("--model", help="The checkpoint of REFERENCE: then say which known mistake explains RUN, if one does.")
def compare(run: Path, reference: Path, only: str | None, as_json: bool, page: Path | None, model: str | None) -> None:
    """Say where RUN departs from REFERENCE first, by how much, and whether rounding explains it.

    REFERENCE is what `e5ref record MODEL --dtype float64` wrote for the same texts. Nobody picks a tolerance: RUN may
    err by a few times what rounding alone costs at each point. Exit code 1 if it errs by more anywhere.
    """
    from e5ref.parity.compare import compare as compare_runs
    from e5ref.parity.explain import explain
    from e5ref.parity.report import html_report, json_report, text_report
    from e5ref.parity.run import read_run

    if page is not None:
        _check_output(page, [run, reference])
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


def _load(model: str, backend: Backend, **options: Any) -> E5:
    """Load a model; with JAX, its compiled programs are kept on disk for the next run."""
    if backend == "jax":
        require_jax()
        _keep_programs()
    return e5ref.load(model, backend=backend, **options)


def _keep_programs() -> str:
    """Make JAX keep compiled programs in JAX_COMPILATION_CACHE_DIR or the user's cache; return the folder."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "e5ref" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # JAX's own bound leaves out most of ours
    return str(jax.config.jax_compilation_cache_dir)  # type: ignore[attr-defined]


def _share(share: str | None, backend: Backend) -> tuple[int, int]:
    """Read which share of the texts this process is to embed: its index, and how many there are."""
    if share is None:
        return 0, 1
    if share == "auto":
        if backend != "jax":
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


def _prefix(model: str, prompts: Mapping[str, str], prompt: str, texts: list[str]) -> str:
    """Return what `--prompt` puts before each text; warn where that is nothing, or stands there already."""
    prefix = "" if prompt == "none" else find_prompt(prompts, prompt, None)
    starts = tuple(start for start in prompts.values() if start)
    bare = sum(not text.startswith(starts) for text in texts) if starts and prompt == "none" else 0
    if bare:
        warnings.warn(
            f"{bare} of {len(texts)} texts start with none of the prompts that {model} was trained with "
            f"({', '.join(map(repr, starts))}); --prompt query or --prompt passage puts one there",
            stacklevel=1,
        )
    _warn_of_doubled(prefix, texts)
    if prompt != "none" and not prefix:
        warnings.warn(f"{model} has no {prompt} prompt: the texts are taken as they are", stacklevel=1)
    return prefix


def _warn_of_doubled(prompt: str, texts: list[str]) -> None:
    """Warn where texts start with the prompt that is about to be put before them."""
    for note in doubled_prompts("texts", prompt, count_doubled(prompt, texts), len(texts)):
        warnings.warn(note, stacklevel=1)


def _check_output(output: Path, inputs: Iterable[str | Path]) -> None:
    """Refuse, before any work, an output that cannot be written or that is one of the inputs."""
    if output.is_dir() or not os.access(output.resolve().parent, os.W_OK):
        raise click.UsageError(f"{output}: is a folder, or {output.resolve().parent} is none that can be written to")
    if output.exists() and any(map(output.samefile, inputs)):
        raise click.UsageError(f"{output} is part of the input, and would be lost")


def _texts(arguments: tuple[str, ...], source: str | None, metavar: str) -> list[str]:
    """Return the texts given as arguments or in a file."""
    if bool(arguments) == (source is not None):
        raise click.UsageError(f"give {metavar} arguments or -i FILE, one of the two")
    if source is None:
        return list(arguments)
    content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    texts = []
    for number, text in decoded_lines(io.BytesIO(content), source):
        if number == 1 and text.startswith('{"') and not source.endswith(".jsonl"):
            warnings.warn(
                f"{source} looks like JSON lines, but is taken as texts; end its name in .jsonl", stacklevel=1
            )
        try:
            if not source.endswith(".jsonl"):
                texts.append(text)
            elif text.strip():
                texts.append(_text_of_json(text))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(f'{source}, line {number}: is not a JSON object with a "text" that is a string') from None
    return texts


def _text_of_json(line: str) -> str:
    text = json.loads(line)["text"]
    if not isinstance(text, str):
        raise TypeError
    return text


def _write_json_lines(texts: list[str], parts: Iterable[NDArray[np.floating]], file: TextIO) -> None:
    """Write a line per text. Numbers are the shortest that read back as the same float32 or float64."""
    for text, vector in zip(texts, itertools.chain.from_iterable(parts), strict=True):
        file.write(f'{{"text": {json.dumps(text)}, "embedding": [{", ".join(map(str, vector))}]}}\n')


@commands.command()
@click.option("--texts", "source", metavar="FILE|-", required=True, help="The texts; read as -i of embed.")
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
    lines = _texts((), source, "TEXT")
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
