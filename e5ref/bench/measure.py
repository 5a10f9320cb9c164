"""The measurements: speed in rounds, latency of one query, fresh processes, and the products that bound them."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e5ref.bench.contenders import GPU_BATCH_TOKENS, QUERY, READY, Contender, Floats, IdLists, run_engine
from e5ref.checkpoint import read_checkpoint
from e5ref.checkpoint.config import BertConfig
from e5ref.encoder import E5
from e5ref.engines.engine import Precision
from e5ref.terminal.progress import ProgressBar

# Precision → the largest difference by rounding between a unit vector's values and the float64 reference's. int8 rounds
# weights to 255 values; its bound only tells it from a wrong computation.
BOUNDS = {"float32": 1e-6, "high": 5e-3, "bfloat16": 3e-2, "float16": 5e-3, "int8": 3e-2}

# Precision of a product that bounds others (`Contender.ceiling`) → e5ref's name for it.
PRODUCTS: dict[str, Precision] = {"float32": "highest", "high": "high", "bfloat16": "bfloat16"}

# Tokens of each input of fixed length, on a CPU and elsewhere.
FIXED_TOKENS, FIXED_TOKENS_ACCELERATOR = 1 << 12, 1 << 18

# The most texts and tokens of each input that are compared with the reference.
CHECKED_TEXTS, CHECKED_TOKENS = 16, 2048

LATENCY_CALLS = 50

# The folders where compilers keep their programs: XLA, torch, Triton and NVIDIA's driver.
PROGRAM_FOLDERS = ("JAX_COMPILATION_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH")

# Seconds between two timings: threads of NumPy, torch and onnxruntime spin for up to a tenth of a second while they
# wait for more work, and would slow down the next contender.
PAUSE = 0.3


@dataclass(frozen=True)
class Inputs:
    """What all contenders embed, as texts or else as token ids, and the right vectors of some of it."""

    name: str
    ids: IdLists
    texts: list[str] | None
    checked: list[int]  # indices of the texts that the reference has embedded
    truth: Floats  # [checked, D] in float64

    def embedding_by(self, contender: Contender) -> Callable[[], Floats] | None:
        """Return the call that embeds all of it; None if the contender cannot."""
        if self.texts is not None:
            return partial(contender.of_texts, self.texts)
        return partial(contender.of_ids, self.ids) if contender.of_ids else None


def make_inputs(encoder: E5, texts: Sequence[str], lengths: Sequence[int], *, on_accelerator: bool) -> list[Inputs]:
    """Make the inputs of all contenders, and embed some of each in float64."""
    tokens = FIXED_TOKENS_ACCELERATOR if on_accelerator else FIXED_TOKENS
    config, random = encoder.checkpoint.config, np.random.default_rng(0)
    ids_by_name: dict[str, IdLists] = {"texts": encoder.tokenizer(texts).texts()} if texts else {}
    for length in (length for length in lengths if length <= encoder.tokenizer.max_length):
        drawn = random.integers(config.vocab_size - 1, size=(max(1, tokens // length), length))
        ids_by_name[f"{length} tokens"] = list(drawn + (drawn >= encoder.tokenizer.pad_id))  # no padding
    reference = E5(read_checkpoint(encoder.checkpoint.folder, dtype="float64"))
    inputs = []
    for name, ids in ids_by_name.items():
        count = min(len(ids), CHECKED_TEXTS, max(1, CHECKED_TOKENS * len(ids) // sum(map(len, ids))))
        checked = np.linspace(0, len(ids) - 1, count, dtype=int).tolist()
        truth = run_engine(reference, [ids[index] for index in checked])
        inputs.append(Inputs(name, ids, list(texts) if name == "texts" else None, checked, truth))
    return inputs


def measure_inputs(
    inputs: Inputs,
    contenders: Sequence[Contender],
    config: BertConfig,
    rates: Sequence[Mapping[str, Any]],
    rounds: int,
    progress: ProgressBar,
) -> list[dict[str, Any]]:
    """Let all contenders embed one input: once to check and compile, then in rounds. -> a row per contender.

    Texts are embedded from a list of str to a NumPy array. Right after, e5ref embeds their ids too.
    """
    rows: dict[Contender, dict[str, Any]] = {}
    calls: dict[Contender, Callable[[], Floats]] = {}
    on_ids: dict[Contender, Callable[[], Floats]] = {}
    for contender in contenders:
        progress.set_postfix_str(f"{inputs.name}, {contender.name}")
        call = inputs.embedding_by(contender)
        if call is not None:
            vectors = call()[inputs.checked]
            difference = float(np.abs(vectors - inputs.truth).max())
            right = difference <= BOUNDS[contender.precision]  # False for NaN
            cosine = float((vectors * inputs.truth).sum(axis=1).min())
            facts = {key: getattr(contender, key) for key in ("is_peer", "device", "precision")}
            rows[contender] = {"contender": contender.name, **facts, "right": right, "max_abs": difference}
            rows[contender]["cosine"] = cosine
            if right:
                calls[contender] = call
                if inputs.texts is not None and contender.of_ids and not contender.is_peer:
                    on_ids[contender] = partial(contender.of_ids, inputs.ids)
                    on_ids[contender]()  # its batches may have new shapes, which compile
        progress.update(1 if contender in calls else 1 + rounds)

    seconds: dict[Contender, list[float]] = {contender: [] for contender in calls}
    ids_seconds: dict[Contender, list[float]] = {contender: [] for contender in on_ids}
    for number in range(rounds):
        for contender in list(calls)[:: -1 if number % 2 else 1]:
            progress.set_postfix_str(f"{inputs.name}, {contender.name}")
            seconds[contender] += _seconds(calls[contender], 1)
            if contender in on_ids:
                ids_seconds[contender] += _seconds(on_ids[contender], 1)
            progress.update()

    lengths = np.array([len(text) for text in inputs.ids])
    flops = flops_per_token(config, lengths) @ lengths
    for contender, taken in seconds.items():
        ceilings = [rate["teraflops"] for rate in rates if contender.ceiling == (rate["device"], rate["precision"])]
        rows[contender] |= {
            "tokens_per_second": _speeds(lengths.sum(), taken),
            "texts_per_second": len(lengths) / median(taken),
            "share": flops / median(taken) / 1e12 / max(ceilings) / contender.devices if ceilings else None,
            "ratios": {peer.name: speed_ratio(taken, seconds[peer]) for peer in seconds if peer.is_peer},
            "latency_ms": _latency(contender) if inputs.texts and contender.device == "cpu" else None,
        }
        if contender in on_ids:
            rows[contender]["ids_tokens_per_second"] = _speeds(lengths.sum(), ids_seconds[contender])
            rows[contender]["part_of_ids"] = speed_ratio(taken, ids_seconds[contender])
    return list(rows.values())


def _speeds(tokens: int, seconds: Sequence[float]) -> dict[str, float]:
    """Convert the seconds of all rounds to tokens per second."""
    speeds = {"median": median(seconds), "min": max(seconds), "max": min(seconds)}
    return {name: float(tokens / taken) for name, taken in speeds.items()}


def speed_ratio(seconds: Sequence[float], peer_seconds: Sequence[float]) -> float:
    """Return how many times as fast as a peer a contender is: the median of the ratios within each round."""
    return median(peer / own for own, peer in zip(seconds, peer_seconds, strict=True))


def flops_per_token(config: BertConfig, length: NDArray[np.integer]) -> NDArray[np.integer]:
    """Count a token's FLOPs in matrix products, for a text of this length: layers (24 D² + 4 T D) if F is 4 D."""
    D, F = config.hidden_size, config.intermediate_size
    return config.num_hidden_layers * (8 * D * D + 4 * D * F + 4 * length * D)


def _latency(contender: Contender) -> dict[str, float]:
    """Time single queries, in milliseconds: the median and the 95th percentile."""
    _seconds(partial(contender.of_texts, [QUERY]), 3)  # JAX compiles
    taken = _seconds(partial(contender.of_texts, [QUERY]), LATENCY_CALLS)
    return {f"p{percent}": float(1e3 * np.percentile(taken, percent)) for percent in (50, 95)}


def _seconds(call: Callable[[], Any], times: int) -> list[float]:
    """Time a call several times in a row, after the threads of other contenders have gone to sleep."""
    time.sleep(PAUSE)
    clock = [time.perf_counter()]
    for _ in range(times):
        call()
        clock.append(time.perf_counter())
    return np.diff(clock).tolist()


def measure_processes(
    contenders: Mapping[Contender, str],
    checkpoint: Path,
    exports: Path,
    texts: Sequence[str],
    rounds: int,
    progress: ProgressBar,
) -> list[dict[str, Any]]:
    """Let each contender embed a query, then texts, in fresh processes of its own, in rounds. -> a row per contender.

    A contender that compiles first starts without programs: once for the query, and once for the texts without the
    query, since they may not need its program. The rounds use the programs that the latter has left.

    Contenders come with their names in `CONTENDERS`; `exports` is the folder of `prepare.write_exports`. `progress`
    counts the processes, `count_processes` of each contender.
    """
    cold: dict[Contender, list[float]] = {}
    warm: dict[Contender, list[tuple[list[float], float]]] = {contender: [] for contender in contenders}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:

        def start(contender: Contender, programs: str, files: Sequence[str]) -> tuple[list[float], float]:
            progress.set_postfix_str(f"a process of its own, {contender.name}")
            kept = {name: str(Path(folder, programs, name)) for name in PROGRAM_FOLDERS}
            for path in kept.values():  # some compilers create only the last part of a path
                Path(path).mkdir(parents=True, exist_ok=True)
            kept["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # keep programs that compile quickly too
            names = [contenders[contender], contender.name, str(checkpoint), str(exports)]
            found = _start([*names, *(str(Path(folder, file)) for file in files)], os.environ | kept)
            progress.update()
            return found

        Path(folder, "query.json").write_text(json.dumps([QUERY]))
        Path(folder, "texts.json").write_text(json.dumps(list(texts)))
        files = ["query.json", "texts.json"] if texts else ["query.json"]
        folders = {contender: f"programs-{number}" for number, contender in enumerate(contenders)}
        for contender in (contender for contender in contenders if contender.compiles):
            cold[contender], _ = start(contender, folders[contender] + ("-query" if texts else ""), files[:1])
            if texts:  # and then the query, so that the rounds find its program too
                (seconds, _), _ = start(contender, folders[contender], files[::-1])
                cold[contender].append(seconds)
        for number in range(rounds):
            for contender in list(contenders)[:: -1 if number % 2 else 1]:
                warm[contender].append(start(contender, folders[contender], files))
    firsts = {contender: [seconds[0] for seconds, _ in starts] for contender, starts in warm.items()}
    rows: list[dict[str, Any]] = []
    for contender, starts in warm.items():
        rows.append({"contender": contender.name})
        rows[-1] |= {key: getattr(contender, key) for key in ("is_peer", "device", "precision")}
        for index, key in enumerate(("first_vector_s", "all_texts_s")[: len(files)]):
            taken = [seconds[index] for seconds, _ in starts]
            rows[-1][key] = {"median": median(taken), "min": min(taken), "max": max(taken)}
            rows[-1]["cold_" + key] = cold[contender][index] if contender.compiles else None
        rows[-1]["ratios"] = {peer.name: speed_ratio(firsts[contender], firsts[peer]) for peer in warm if peer.is_peer}
        rows[-1]["peak_mib"] = median(peak for _, peak in starts) or None
    return rows


def count_processes(contender: Contender, texts: Sequence[str], rounds: int) -> int:
    """Return the number of processes that `measure_processes` starts for a contender."""
    return rounds + (2 if texts else 1) * contender.compiles


def _start(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[list[float], float]:
    """Run `contenders.main` in a process. -> seconds from its start to each file's vectors, peak of memory in MiB."""
    time.sleep(PAUSE)
    # -P: the interpreter does not look for packages beside the script.
    command = [sys.executable, "-P", str(Path(__file__).with_name("contenders.py")), *arguments]
    seconds, output = [], ""
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True
        ) as process:
            try:
                assert process.stdout is not None
                for output in process.stdout:
                    if output == READY + "\n":
                        seconds.append(time.perf_counter() - start)
            except BaseException:  # Ctrl-C
                process.kill()
                raise
        if process.returncode != 0:
            errors.seek(0)
            last = (errors.read().splitlines() or ["it said nothing"])[-1]
            raise ChildProcessError(f"contender {arguments[1]!r} failed in a process of its own: {last}")
    return seconds, float(output)


def product_rates(contenders: Sequence[Contender]) -> list[dict[str, Any]]:
    """Measure how fast NumPy and JAX, if contenders use them, multiply large square matrices on one device.

    -> a row for each library and precision: "library", "device", "precision", "teraflops".
    """
    wanted = {contender.ceiling for contender in contenders if contender.precision != "int8"}
    a, b = np.random.default_rng(0).standard_normal((2, 2048, 2048), np.float32)
    rates = []
    if ("cpu", "float32") in wanted:
        teraflops = 2 * 2048**3 / 1e12 / median(_seconds(lambda: a @ b, 6)[1:])
        rates.append({"library": "numpy", "device": "cpu", "precision": "float32", "teraflops": teraflops})
    if any(contender.name.startswith("e5ref jax") for contender in contenders):
        import jax
        import jax.numpy as jnp

        from e5ref.engines.jax_engine import product_precision

        size, times = (2048, 1) if jax.default_backend() == "cpu" else (8192, 10)
        for device, precision in sorted(wanted):
            if device == jax.default_backend() and precision in PRODUCTS:
                dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
                factors = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
                how = product_precision(PRODUCTS[precision], jax.devices()[0])
                product = jax.jit(partial(jnp.matmul, precision=how))
                teraflops = 2 * size**3 / 1e12 / _device_seconds(product, factors, times)
                rates.append({"library": "jax", "device": device, "precision": precision, "teraflops": teraflops})
    return rates


def attention_times(config: BertConfig) -> list[dict[str, float]]:
    """Time the JAX twin's attention in bfloat16 at several lengths, in its plain form and in this device's form."""
    import jax
    import jax.numpy as jnp

    from e5ref import jax_model
    from e5ref.operations import jax_ops

    def plain(*inputs: jax.Array) -> jax.Array:
        return jax_model.dot_product_attention(*inputs)[0]

    forms = jax.jit(plain), jax.jit(partial(jax_ops.attention, plain))
    rows = []
    for tokens in (64, 128, 512):
        texts = GPU_BATCH_TOKENS // tokens
        shape = (3, texts, tokens, config.num_attention_heads, config.head_size)
        inputs = (*jax.random.normal(jax.random.key(0), shape, jnp.bfloat16), jnp.ones((texts, tokens), jnp.int32))
        milliseconds = (1e3 * _device_seconds(form, inputs, 10) for form in forms)
        rows.append(dict(zip(("tokens", "plain_ms", "fast_ms"), (tokens, *milliseconds), strict=True)))
    return rows


def _device_seconds(function: Callable[..., Any], arguments: Iterable[Any], times: int) -> float:
    """Time a JAX function: the median of 5 runs of `times` calls each, between which the device does not wait."""
    arguments = tuple(arguments)

    def run() -> None:
        for _ in range(times):
            result = function(*arguments)
        result.block_until_ready()

    return median(_seconds(run, 6)[1:]) / times  # the first compiles
