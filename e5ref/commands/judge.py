"""`e5ref record`, `golden`, `check`, `compare` and `diagnose`."""

import json
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

import e5ref
from e5ref.checkpoint.hub import DEFAULT_CHECKPOINT
from e5ref.checkpoint.prompts import warn_of_prompts
from e5ref.commands.options import (
    OUTPUT_FOLDER,
    check_output,
    force_option,
    input_options,
    json_option,
    model_first,
    prefix_of,
    prompt_option,
    read_or_given,
    revision_option,
)
from e5ref.files.texts import Format
from e5ref.files.whole import written_whole


@click.command(short_help="Run texts through a model, and keep every point inside it.")
@model_first
@input_options("Texts to run", required=True)
@click.option("-o", "--output", type=Path, required=True, metavar="RUN", help="Where to: a .safetensors file.")
@force_option
@revision_option
@click.option(
    "--backend",
    default="numpy",
    show_default=True,
    help="numpy, jax, transformers, sentence-transformers, onnx:FILE for a graph, or modules: see below.",
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
    prompt: str | None,
    only: str | None,
    **options: Any,
) -> None:
    """Run texts through a model, and keep every named point inside it for `e5ref compare`.

    docs/port/judge.md describes RUN, so that any program can write one. With --backend modules, the model is the
    folder of any that sentence-transformers or transformers loads, such as ModernBERT, and every module is a point.
    """
    from e5ref.parity import open_tree, record_modules, write_run
    from e5ref.parity import record as record_run

    if output.suffix != ".safetensors":
        raise click.UsageError(f"{output}: the name must end in .safetensors")
    check_output(output, [] if source == "-" else [source], force)
    lines = read_or_given((), source, form, "TEXT")
    names = only.split(",") if only else None
    if options["backend"] == "modules":
        if prompt is not None or revision is not None:
            raise click.UsageError("with --backend modules, give a folder, and texts with their prompts")
        write_run(
            record_modules(open_tree(model), list(lines), dtype=options["dtype"] or "float32", only=names), output
        )
        return
    checkpoint = e5ref.read_checkpoint(model, revision=revision)
    texts = list(warn_of_prompts(lines, checkpoint.settings.prompts, prompt, checkpoint.name))
    prefix = prefix_of(checkpoint, prompt)
    run = record_run(model, texts, revision=revision, prompt=prefix, only=names, **options)
    write_run(run, output)


@click.command(short_help="Write what a port to another language is tested on.")
@model_first
@click.option("-o", "--output", type=OUTPUT_FOLDER, required=True, metavar="KIT", help="Where to: a folder.")
@force_option
@revision_option
@click.option(
    "--size",
    type=click.Choice(["small", "full"]),
    default="small",
    show_default=True,
    help="small holds the states of one layer and the output of each, full every point of every layer.",
)
@click.option(
    "--modules",
    is_flag=True,
    help="The model is the folder of any that sentence-transformers or transformers loads: every module is a point.",
)
def golden(model: str, output: Path, force: bool, modules: bool, **options: Any) -> None:
    """Write what a port of a model to another language can be tested on: texts, ids, states, vectors, tolerances.

    KIT explains itself: see its README.md.
    """
    from e5ref.parity.golden.kit import KIT, write_kit, write_modules_kit

    if (output / KIT).exists():
        check_output(output / KIT, [], force)
    if modules:
        write_modules_kit(model, output)
    else:
        write_kit(model, output, **options)
    size = sum(path.stat().st_size for path in output.iterdir())
    click.echo(f"{output}: {size / 1e6:.1f} MB; its README.md says what a port has to write, and check.py judges that")


@click.command(short_help="Judge a port by a golden kit.")
@click.argument("kit", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("runs", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--only", metavar="NAME,…", help='Judge these points alone, such as "normalized".')
def check(kit: Path, runs: Path, only: str | None) -> None:
    """Judge a port by a golden KIT: RUNS is a folder with a run for each of the kit's batches, named as there.

    Exit code 1 if anything is further from float64 than rounding takes it, missing or unreadable.
    """
    from e5ref.parity import RunError
    from e5ref.parity.golden.kit import check_kit
    from e5ref.parity.judge.report import text_report

    results = check_kit(kit, runs, only=only.split(",") if only else None)
    for batch, result in results.items():
        report = f"[{result.verdict}]  {result}" if isinstance(result, RunError) else text_report(result)
        click.echo(f"{batch}\n{report}\n")
    failed = [batch for batch, result in results.items() if isinstance(result, RunError) or not result.passed]
    click.echo(f"FAILED: {', '.join(failed)}" if failed else f"Passed: {', '.join(results)}")
    raise click.exceptions.Exit(1 if failed else 0)


@click.command(short_help="Say where a run departs from the reference first.")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("reference", type=click.Path(path_type=Path))
@click.option(
    "--only", metavar="NAME,…", help='Compare these points alone, such as "layers.*.output,normalized".  [default: all]'
)
@json_option
@click.option("--html", "page", type=Path, metavar="FILE", help="Write a page with a chart and the worst tokens too.")
@force_option
@click.option("--model", help="The checkpoint of REFERENCE: then say what RUN did differently, if that can be found.")
@click.option(
    "--explain-seconds", default=30.0, show_default=True, help="With --model: when to stop looking for what RUN did."
)
def compare(
    run: Path,
    reference: Path,
    only: str | None,
    as_json: bool,
    page: Path | None,
    force: bool,
    model: str | None,
    explain_seconds: float,
) -> None:
    """Say where RUN departs from REFERENCE first, by how much, and whether rounding explains it.

    REFERENCE is what `e5ref record MODEL --dtype float64` wrote for the same texts. Nobody picks a tolerance: RUN may
    err by a few times what rounding alone costs at each point. Exit code 1 if it errs by more anywhere.
    """
    from e5ref.parity.judge.comparison import compare as compare_runs
    from e5ref.parity.judge.explain import explain
    from e5ref.parity.judge.report import html_report, json_report, text_report, worth_showing
    from e5ref.parity.modules.identify import explain_modules
    from e5ref.parity.modules.tree import open_tree
    from e5ref.parity.runs.run import read_run

    if page is not None:
        check_output(page, [run, reference], force)
    runs = read_run(run), read_run(reference)
    comparison = compare_runs(*runs, only=only.split(",") if only else None)
    explanations = None
    if model is not None:
        start = time.monotonic()
        if runs[1].modules:
            explanations = explain_modules(*runs, open_tree(model), comparison, seconds=explain_seconds)
        else:
            checkpoint = e5ref.read_checkpoint(model, dtype="float64")
            explanations = explain(*runs, checkpoint, comparison, seconds=explain_seconds)
        is_late = time.monotonic() - start > explain_seconds
    if as_json:
        click.echo(json.dumps(json_report(comparison, explanations), indent=2, allow_nan=False))
    else:
        click.echo(text_report(comparison))
        for one in worth_showing(explanations or []):
            click.echo(str(one))
        if explanations is not None and not comparison.passed and not any(one.explains for one in explanations):
            click.echo("No known mistake explains it.")
        if explanations is not None and is_late:
            click.echo(
                f"Looking for more was stopped after {explain_seconds:g} seconds; --explain-seconds changes that."
            )
    if page is not None:
        with written_whole(page.resolve()) as file:
            file.write(html_report(comparison, f"{run.name} beside {reference.name}", explanations).encode())
    raise click.exceptions.Exit(0 if comparison.passed else 1)


@click.command(short_help="Say what was done to make vectors from texts.")
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
    from e5ref.parity.diagnosis.diagnosis import diagnose as find
    from e5ref.parity.diagnosis.endpoint import fetch_vectors

    if (vectors is None) == (endpoint is None):
        raise click.UsageError("give --vectors or --endpoint, one of the two")
    lines = list(read_or_given((), source, form, "TEXT"))
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
