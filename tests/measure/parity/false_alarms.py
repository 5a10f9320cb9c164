"""No false alarm: whatever computes E5 rightly passes, in whatever dtype, on real texts.

`python -m tests.measure.parity.false_alarms FOLDER…` runs 200 passages of msmarco, 200 paragraphs of the Declaration of
Human Rights in as many languages, and 50 queries each on its own through each checkpoint, and prints how many times the
cost of rounding each library errs, at most: the table of docs/laboratory/judge.md.
"""

import argparse
import importlib.util
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import threadpoolctl
import torch
from tqdm import tqdm

import e5ref
from e5ref.bench.contenders import load_network
from e5ref.bench.prepare import export_graph
from e5ref.engines.batching import pad_ids
from e5ref.parity.judge.comparison import Comparison, compare
from e5ref.parity.runs import peers
from e5ref.parity.runs.recording import choose_points, point_shapes
from e5ref.parity.runs.runners import Runner, jax_runner, numpy_runner
from e5ref.terminal.table import aligned
from tests.measure.parity.ports import ports
from tests.tools.runs import reference_run, run_of
from tests.tools.texts import SHARED

TEXTS = 200

# Tokens of a batch, padding counted. All points of all texts would not fit into memory, so each batch of texts of about
# one length is judged on its own; lengths are rounded up, so that JAX compiles a few programs only.
TOKENS = 2048
ROUND_LENGTHS_TO = 32

# A few numbers are rounded well or badly by chance: short texts are judged one at a time, too, at every point.
ALONE = "queries, each alone"

# What is compared of hundreds of texts.
POINTS = ["embeddings", "layers.*.output", "last_hidden_state", "pooled", "normalized"]

HALF = ("bfloat16", "float16")

Load = Callable[[], Runner]


def real_texts(shared: Path, count: int) -> dict[str, list[str]]:
    """Passages and queries of msmarco, and a long paragraph of the Declaration in many languages, with prompts."""
    with (shared / "msmarco" / "corpus.jsonl").open() as file:
        passages = [json.loads(line)["text"] for _, line in zip(range(count), file, strict=False)]
    paragraphs = []
    with zipfile.ZipFile(shared / "udhr" / "udhr2.zip") as archive:
        for name in sorted(name for name in archive.namelist() if name.endswith(".txt")):
            lines = archive.read(name).decode("utf-8", errors="ignore").splitlines()
            paragraphs += [line.strip() for line in lines if len(line) > 80][:1]
    with (shared / "msmarco" / "queries.jsonl").open() as file:
        queries = [json.loads(line)["text"] for line in file]
    return {
        "msmarco": [f"passage: {text}" for text in passages],
        "udhr": [f"passage: {text}" for text in paragraphs[:count]],
        ALONE: [f"query: {text}" for text in queries[:count]],
    }


def candidates(folder: Path, names: list[str], graph: Path) -> Iterator[tuple[str, str, Load, int]]:
    """Yield what must pass: its name, the dtype it is judged as, what loads it, and on how many threads it runs.

    onnxruntime, and the `ports`, are left out if they, or what writes graphs for them, are not installed.
    """
    encoder = e5ref.load(folder)
    for threads in (1, 2):
        yield "e5ref, NumPy", "float32", partial(numpy_runner, encoder, names), threads
    for dtype in ("float32", *HALF):
        yield "e5ref, JAX", dtype, partial(jax_runner, encoder, names, dtype), 1
    for dtype, threads in (("float64", 1), ("float32", 1), ("float32", 2), ("bfloat16", 1), ("float16", 1)):
        yield "transformers", dtype, partial(peers.transformers_runner, encoder, names, dtype), threads
    # Without the probabilities, transformers takes torch's fused attention.
    few = [name for name in names if not name.endswith("attention_probabilities")]
    for dtype in ("float32", *HALF):
        yield "sentence-transformers", dtype, partial(peers.sentence_transformers_runner, encoder, few, dtype), 1
    if all(map(importlib.util.find_spec, ("onnx", "onnxruntime"))):
        write_graph(folder, names, graph)
        yield "onnxruntime", "float32", partial(peers.onnx_runner, encoder, graph, names, "float32"), 1
        yield from ports(folder, names, graph.parent)


def write_graph(folder: Path, names: list[str], file: Path) -> None:
    """Write a checkpoint as a graph of ONNX that gives named points, pooled and normalised vectors among them."""
    points: dict[str, torch.Tensor] = {}

    class Caught(peers.Watched):
        """What the hooks see stays a tensor, so that it is part of the graph."""

        def keep(self, name: str, tensor: torch.Tensor) -> None:
            points[name] = tensor

    class Network(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> list[torch.Tensor]:
            states = self.network(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            weights = attention_mask[..., None].to(states.dtype)
            points["last_hidden_state"] = states
            points["pooled"] = (states * weights).sum(dim=1) / weights.sum(dim=1)
            points["normalized"] = torch.nn.functional.normalize(points["pooled"], dim=1)
            return [points[name] for name in names]

    module = Network()
    module.network = load_network(folder, "eager", "float32")
    Caught(names).network(module.network)
    export_graph(module, names, file)


def batches(encoder: e5ref.E5, texts: list[str], tokens: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield ids and masks of texts, the short ones first, in batches of so many tokens or of one text."""
    rows = sorted(encoder.tokenizer(texts).texts(), key=len)
    while rows:
        count = 1
        while count < len(rows) and (count + 1) * _rounded(rows[count]) <= tokens:
            count += 1
        yield pad_ids(rows[:count], encoder.tokenizer.pad_id, (count, _rounded(rows[count - 1])))
        rows = rows[count:]


def _rounded(ids: np.ndarray) -> int:
    return -(-len(ids) // ROUND_LENGTHS_TO) * ROUND_LENGTHS_TO


def comparisons(
    folder: Path, texts: list[str], points: list[str], tokens: int = TOKENS, only: Sequence[str] = ()
) -> Iterator[tuple[str, str, int, Comparison]]:
    """Yield library, dtype, threads and what the judge says, for each batch of texts and each candidate."""
    encoder = e5ref.load(folder)
    names, _ = choose_points(point_shapes(encoder.checkpoint, 1, 1), points)
    with TemporaryDirectory() as exports:
        right = candidates(folder, names, Path(exports, "model.onnx"))
        chosen = [one for one in right if not only or one[0] in only]
        loaded = [(name, dtype, load(), threads) for name, dtype, load, threads in chosen]
        yield from _judged(folder, encoder, texts, names, tokens, loaded)


def _judged(
    folder: Path,
    encoder: e5ref.E5,
    texts: list[str],
    names: list[str],
    tokens: int,
    loaded: list[tuple[str, str, Runner, int]],
) -> Iterator[tuple[str, str, int, Comparison]]:
    for ids, mask in batches(encoder, texts, tokens):
        reference = reference_run(folder, ids, mask, only=names)
        for name, dtype, runner, threads in loaded:
            torch.set_num_threads(threads)
            with threadpoolctl.threadpool_limits(threads, "blas"):
                run = run_of(runner.run(ids, mask), reference, dtype)
            # Fused attention has no probabilities.
            yield name, dtype, threads, compare(run, reference, only=list(run.points))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--texts", type=int, default=TEXTS, help="how many of each of the two sets")
    parser.add_argument("--only", action="append", default=[], metavar="LIBRARY", help="these alone; may be repeated")
    arguments = parser.parse_args()
    rows = []
    for folder in arguments.folders:
        for source, texts in real_texts(SHARED, arguments.texts).items():
            how = (["*"], 0) if source == ALONE else (POINTS, TOKENS)
            judged = tqdm(comparisons(folder, texts, *how, only=arguments.only), desc=f"{folder.name}, {source}")
            rows += table(f"{folder.name}, {len(texts)} {source}", judged)
    print(aligned(rows))


def table(what: str, judged: Iterable[tuple[str, str, int, Comparison]]) -> list[dict[str, str]]:
    """A row for each candidate: the most that it errs, at which point, and how often it was failed."""
    most: dict[tuple[str, ...], dict[str, float]] = {}
    failed = Counter()
    for name, dtype, threads, comparison in judged:
        who = name, dtype, str(threads)
        factors = most.setdefault(who, {})
        failed[who] += not comparison.passed
        for verdict in comparison.verdicts:
            factors[verdict.name] = max(factors.get(verdict.name, 0), verdict.factor)
    rows = []
    for who, factors in most.items():
        worst = max(factors, key=factors.get)
        row = {"checkpoint and texts": what, **dict(zip(("library", "dtype", "threads"), who, strict=True))}
        row |= {"points": str(len(factors)), "times the cost, at most": f"{factors[worst]:.2f}", "at": worst}
        rows.append(row | {"false alarms": str(failed[who])})
    return rows


if __name__ == "__main__":
    main()
