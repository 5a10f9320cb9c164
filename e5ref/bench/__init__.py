"""e5ref measured against its peers, with the same weights and inputs, in rounds in which all take turns.

Speeds drift on a machine that is not idle, so the ratio of two contenders within a round is what counts. A contender
whose vectors are not those of the float64 reference is reported as wrong, and not timed.
"""

import importlib
import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from e5ref.bench.contenders import CONTENDERS, PACKAGES, Contender
from e5ref.bench.measure import (
    attention_times,
    count_processes,
    make_inputs,
    measure_inputs,
    measure_processes,
    product_rates,
)
from e5ref.bench.prepare import SHAPES, SIZES, write_exports, write_random_checkpoint
from e5ref.checkpoint import read_checkpoint
from e5ref.encoder import E5
from e5ref.engines.engine import require_jax
from e5ref.extras import require
from e5ref.terminal.progress import progress_bar


def bench(
    model: str | Path | Mapping[str, int],
    contenders: Sequence[str],
    *,
    texts: Sequence[str] = (),
    lengths: Sequence[int] = (64, 128, 512),
    rounds: int = 5,
) -> dict[str, Any]:
    """Do what `bench_step_by_step` does, and return all results at the end."""
    *_, result = bench_step_by_step(model, contenders, texts=texts, lengths=lengths, rounds=rounds)
    return result


def bench_step_by_step(
    model: str | Path | Mapping[str, int],
    contenders: Sequence[str],
    *,
    texts: Sequence[str] = (),
    lengths: Sequence[int] = (64, 128, 512),
    rounds: int = 5,
) -> Iterator[dict[str, Any]]:
    """Check contenders against the float64 reference, and measure their speed, start and memory.

    Args:
        model: a name of `SHAPES`, or sizes like those there, for random weights; otherwise a hub name or a folder.
        contenders: names of `CONTENDERS`.
        texts: texts to embed as they are, cut if they are too long. Without them, only fixed lengths are measured.
        lengths: tokens of each text, for inputs of one length and of random ids. Lengths that the model cannot take are
            left out.
        rounds: how often each contender embeds each input and starts a process of its own; at least 1.

    Yields:
        The results after each input, still without "processes", and at the end. They are ready for `json.dump`,
        `tables` and `chart`:

        - facts of the machine, and the rates of matrix products
        - for each input, a row per contender. "share" is the part of the product's rate, in FLOPs, that a contender
          reaches. `texts` are embedded from a list of str to a NumPy array; for them "ids_tokens_per_second" is e5ref's
          rate on their ids, and "part_of_ids" the ratio of the two rates.
        - "processes", a row per contender that is not on a TPU: the seconds from the start of a fresh process to the
          vector of a query and to those of `texts`; the same as "cold_…" with nothing compiled (None if nothing ever
          is); the peak of resident host memory in MiB (None outside Linux)

    Raises:
        ModuleNotFoundError: a contender is not installed; the message says what to install.
        ValueError: a contender is unknown, or the checkpoint does not pool by mean and normalise.
        ChildProcessError: a contender failed in a process of its own.
    """
    names = list(dict.fromkeys(contenders))
    _check(names)
    if PACKAGES.keys() & set(names):
        logging = importlib.import_module("transformers.utils.logging")
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    # Otherwise JAX takes most of a GPU's memory at its start, and leaves none for torch in the same process.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    shape = SHAPES.get(model) if isinstance(model, str) else model if isinstance(model, Mapping) else None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        weights, exports = Path(folder, "weights"), Path(folder, "exports")
        exports.mkdir()
        if shape is not None:
            weights.mkdir()
            write_random_checkpoint(weights, shape, texts)
        checkpoint = read_checkpoint(model if isinstance(model, str | Path) and shape is None else weights)
        settings = checkpoint.settings
        if settings.pooling != "mean" or not settings.normalize or settings.dense is not None:
            raise ValueError(f"{checkpoint.name}: must pool by mean and normalise, as E5 and the peers do")
        encoder = E5(checkpoint, truncation="allow")
        entrants: dict[Contender, str] = {}
        with progress_bar(len(names) + 1, "preparing", "it", delay=0, leave=False) as progress:
            progress.set_postfix_str("files of the peers")
            write_exports(encoder, names, exports)
            progress.update()
            for name in names:
                progress.set_postfix_str(name)
                entrants |= dict.fromkeys(CONTENDERS[name](checkpoint.folder, exports), name)
                progress.update()
        entrants = dict(sorted(entrants.items(), key=lambda item: item[0].is_peer))
        # A TPU belongs to one process, which is this one.
        to_start = {entrant: name for entrant, name in entrants.items() if entrant.device != "tpu"}
        ours = {entrant.device for entrant in entrants if not entrant.is_peer}
        result: dict[str, Any] = {
            "machine": _machine(names),
            "model": {"name": "random weights" if shape else str(model)}
            | {size: getattr(checkpoint.config, size) for size in ("vocab_size", *SIZES)},
            "rounds": rounds,
            "product_rates": product_rates(list(entrants)),
            "attention": attention_times(checkpoint.config) if ours - {"cpu"} else [],
            "inputs": [],
        }
        on_accelerator = any(entrant.device != "cpu" for entrant in entrants)
        inputs = make_inputs(encoder, texts, lengths, on_accelerator=on_accelerator)
        turns = len(inputs) * len(entrants) * (1 + rounds)
        turns += sum(count_processes(entrant, texts, rounds) for entrant in to_start)
        with progress_bar(turns, "measuring", "it", delay=0) as progress:
            for one in inputs:
                rows = measure_inputs(one, list(entrants), checkpoint.config, result["product_rates"], rounds, progress)
                facts = {"name": one.name, "from_texts": one.texts is not None}
                counts = {"texts": len(one.ids), "tokens": sum(map(len, one.ids))}
                result["inputs"].append({**facts, **counts, "rows": rows})
                yield result
            wrong = {row["contender"] for one in result["inputs"] for row in one["rows"] if not row["right"]}
            right = {entrant: name for entrant, name in to_start.items() if entrant.name not in wrong}
            result["processes"] = measure_processes(right, checkpoint.folder, exports, texts, rounds, progress)
    yield result


def suitable_contenders() -> list[str]:
    """Return the forms of e5ref that suit this machine: NumPy and exact JAX on a CPU, else JAX in each precision."""
    if find_spec("jax") is None:
        return ["numpy"]
    import jax

    if jax.default_backend() == "cpu":
        return ["numpy", "jax-highest"]
    return [name for name in CONTENDERS if name.startswith("jax")]


def _check(names: Sequence[str]) -> None:
    """Check that all contenders are known and installed, before anything is fetched or written."""
    for name in names:
        if name not in CONTENDERS:
            raise ValueError(f"contender {name!r} is not one of {', '.join(CONTENDERS)}")
        if name.startswith("jax"):
            require_jax()
        require("bench", f"contender {name!r}", *PACKAGES.get(name, ()))


def _machine(names: Sequence[str]) -> dict[str, Any]:
    """Return the facts of this machine and the versions of what is measured."""
    packages = {"e5ref", "numpy"}.union(*(PACKAGES.get(name, ()) for name in names))
    facts = {"machine": platform.machine(), "processor": platform.processor(), "cores": os.cpu_count()}
    if any(name.startswith("jax") for name in names):
        import jax

        packages.add("jax")
        facts["jax device"] = f"{jax.local_device_count()} x {jax.devices()[0].device_kind}"
    if "torch" in packages:
        cuda = importlib.import_module("torch").cuda
        facts["torch device"] = cuda.get_device_name() if cuda.is_available() else "cpu"
    versions = {package: importlib.metadata.version(package) for package in sorted(packages)}
    return facts | {"python": platform.python_version()} | versions
