"""`e5ref eval` and `e5ref bench`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from e5ref.commands.options import (
    OUTPUT_FOLDER,
    check_output,
    declare,
    force_option,
    input_options,
    json_option,
    model_options,
    read_or_given,
)
from e5ref.encoder import E5
from e5ref.evaluation.protocols import Protocol
from e5ref.files.texts import Format
from e5ref.files.whole import written_whole


@click.command(short_help="Measure speed and memory beside other libraries.")
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
@click.option("-o", "--output", type=OUTPUT_FOLDER, help="Write bench.json and a chart, bench.svg, to this folder too.")
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
            check_output(output / name, [], force)
    texts = [] if source is None else list(read_or_given((), source, form, "TEXT"))
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


@click.group("eval", short_help="Score a checkpoint on data, beside published scores.")
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
def retrieval(folder: Path, **options: Any) -> None:
    """Search documents for the answers to queries: nDCG, MAP, Recall and MRR.

    FOLDER is in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv, each of them also as .gz.
    """
    from e5ref.evaluation import evaluate_retrieval

    _evaluate(evaluate_retrieval, folder, **options)


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
    **own: Any,
) -> None:
    """Run an evaluation, which may have options of its own, and print and write its reports."""
    from e5ref.evaluation import table

    if compare_protocols and protocol:
        raise click.UsageError("give --protocol or --compare-protocols, not both")
    if output is not None:
        inputs = [data] if data.is_file() else [*data.glob("*.jsonl*"), *data.glob("qrels/*.tsv*")]
        check_output(output, inputs, force)
    protocols = get_args(Protocol) if compare_protocols else [protocol or "authors"]
    reports = run(load(), data, protocols=protocols, task=task, **own)
    content = json.dumps(reports, indent=2) + "\n"
    if output is not None:
        with written_whole(output.resolve()) as file:
            file.write(content.encode())
    click.echo(content if as_json else table(reports) + "\n", nl=False)
