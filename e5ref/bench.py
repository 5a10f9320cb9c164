"""e5ref measured against its peers: the same weights and inputs, in one run, in rounds in which all take turns.

Speeds wander on a machine that does other things too, so what counts is the ratio of two contenders within a round.
A contender that computes something else than the float64 reference is reported as wrong, and not timed.
"""

import importlib
import importlib.metadata
import json
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import BertWordPieceTokenizer
from tqdm import tqdm

from e5ref import numpy_model
from e5ref.batching import pad_ids
from e5ref.checkpoint import read_checkpoint
from e5ref.config import BertConfig, read_config
from e5ref.encoder import E5, Precision, require_jax
from e5ref.numpy_engine import Batch
from e5ref.params import build_params
from e5ref.table import aligned

Floats = NDArray[np.floating]
Ids = list[list[int]]

# The sizes of E5's checkpoints, and what else e5ref and transformers want to know of a random one.
SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
SHAPES = {
    "small": dict(zip(SIZES, (12, 384, 12, 1536), strict=True)),
    "base": dict(zip(SIZES, (12, 768, 12, 3072), strict=True)),
    "large": dict(zip(SIZES, (24, 1024, 16, 4096), strict=True)),
}
CONFIG = {"architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": 1e-12}
CONFIG |= {"vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2, "pad_token_id": 0}
CONFIG |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

# Precision → how far a number of a unit vector may be from the float64 reference's, all of it rounding.
BOUNDS = {"float32": 1e-6, "high": 5e-3, "bfloat16": 3e-2, "float16": 5e-3}

# Peer → the packages that it needs.
PACKAGES = {
    "transformers": ("torch", "transformers"),
    "sentence-transformers": ("torch", "transformers", "sentence-transformers"),
    "onnxruntime": ("torch", "transformers", "onnx", "onnxruntime"),
}

# torch's name of a device → JAX's.
JAX_NAMES = {"cpu": "cpu", "cuda": "gpu"}

# Tokens of each input of fixed length; the peers' batches on a CPU, and on a GPU.
FIXED_TOKENS, FIXED_TOKENS_ACCELERATOR = 1 << 12, 1 << 18
CPU_BATCH_TEXTS, GPU_BATCH_TEXTS, GPU_BATCH_TOKENS = 32, 256, 1 << 15

# The most of each input that is compared with the reference.
CHECKED_TEXTS, CHECKED_TOKENS = 16, 2048

QUERY, LATENCY_CALLS = "query: how much protein should a female eat", 50

# Seconds between two timings: threads of NumPy, torch and onnxruntime wait for more work at full speed, for up to a
# tenth of a second, and would slow whoever comes next.
PAUSE = 0.3


@dataclass(frozen=True)
class Contender:
    """Something that turns texts into unit vectors, [n, D].

    Attributes:
        name: what tables call it.
        of_texts: embeds texts.
        of_ids: embeds token ids; None for one that takes texts only.
        precision: one of `BOUNDS`.
        is_peer: whether it is one that e5ref is compared with.
        device: "cpu", or what JAX calls an accelerator: "gpu", "tpu".
        devices: how many of them it uses.
    """

    name: str
    of_texts: Callable[[list[str]], Floats]
    of_ids: Callable[[Ids], Floats] | None
    precision: str = "float32"
    is_peer: bool = True
    device: str = "cpu"
    devices: int = 1

    @property
    def ceiling(self) -> tuple[str, str]:
        """Device and precision of the product whose rate bounds it; devices multiply both halves at one rate."""
        return self.device, "bfloat16" if self.precision == "float16" else self.precision


@dataclass(frozen=True)
class Inputs:
    """What all contenders embed, as texts or, where there are none, as token ids; and what is true of some of it."""

    name: str
    ids: Ids
    texts: list[str] | None
    checked: list[int]  # indices of what the reference has embedded
    truth: Floats  # [checked, D] in float64

    def embedding_by(self, contender: Contender) -> Callable[[], Floats] | None:
        """Return the call that embeds all of it; None if the contender cannot."""
        if self.texts is not None:
            return partial(contender.of_texts, self.texts)
        return partial(contender.of_ids, self.ids) if contender.of_ids else None


def bench(
    model: str | Path | Mapping[str, int],
    contenders: Sequence[str],
    *,
    texts: Sequence[str] = (),
    lengths: Sequence[int] = (64, 128, 512),
    rounds: int = 5,
) -> dict[str, Any]:
    """Check contenders against the float64 reference, and measure how fast they are.

    Args:
        model: a name of `SHAPES`, or sizes like those there, for random weights; else a hub name or a folder.
        contenders: names of `CONTENDERS`.
        texts: embedded as they are, and cut where too long; without them only the fixed lengths are measured.
        lengths: tokens of each text, for inputs of one length and of random ids; longer ones than the model takes
            are left out.
        rounds: how often each contender embeds each input, at least 1.

    Returns:
        Everything found, ready for `json.dump` and `table`: facts of the machine, rates of matrix products, and for
        each input a row per contender. "share" is the part of the product's rate, in FLOPs, that the contender gets.

    Raises:
        ModuleNotFoundError: a contender is not installed; the message says what to install.
        ValueError: an unknown contender, or a checkpoint that does not pool by mean and normalise.
    """
    names = list(dict.fromkeys(contenders))
    _require(names)
    if PACKAGES.keys() & set(names):
        logging = importlib.import_module("transformers.utils.logging")
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    # Else JAX takes most of a GPU's memory when it starts, and torch, in the same process, finds none.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    shape = SHAPES.get(model) if isinstance(model, str) else model if isinstance(model, Mapping) else None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        if shape is not None:
            write_random_checkpoint(Path(folder), shape, texts)
        checkpoint = read_checkpoint(model if isinstance(model, str | Path) and shape is None else folder)
        if checkpoint.settings.pooling != "mean" or not checkpoint.settings.normalize:
            raise ValueError(f"{checkpoint.name}: must pool by mean and normalise, as E5 does and the peers do here")
        encoder = E5(checkpoint, truncation="allow")
        entrants = [entrant for name in names for entrant in CONTENDERS[name](encoder)]
        entrants.sort(key=lambda entrant: entrant.is_peer)
        ours = {entrant.device for entrant in entrants if not entrant.is_peer}
        on_cpu = all(entrant.device == "cpu" for entrant in entrants)
        tokens = FIXED_TOKENS if on_cpu else FIXED_TOKENS_ACCELERATOR
        result: dict[str, Any] = {
            "machine": _machine(names),
            "model": {"name": "random weights" if shape else str(model)}
            | {size: getattr(checkpoint.config, size) for size in ("vocab_size", *SIZES)},
            "rounds": rounds,
            "product_rates": product_rates(entrants),
            "attention": attention_times(checkpoint.config) if ours - {"cpu"} else [],
            "inputs": [],
        }
        inputs = _make_inputs(encoder, texts, lengths, tokens)
        with tqdm(total=len(inputs) * len(entrants) * (1 + rounds), desc="measuring", disable=None) as progress:
            for one in inputs:
                rows = _measure(one, entrants, checkpoint.config, result["product_rates"], rounds, progress)
                counts = {"texts": len(one.ids), "tokens": sum(map(len, one.ids))}
                result["inputs"].append({"name": one.name, **counts, "rows": rows})
    return result


def write_random_checkpoint(folder: Path, shape: Mapping[str, int], texts: Sequence[str] = ()) -> None:
    """Write a BERT of random weights that e5ref and transformers both read, with a tokenizer trained on `texts`.

    Args:
        folder: where to; it must exist.
        shape: sizes for config.json, such as one of `SHAPES`.
        texts: what the tokenizer learns its vocabulary from.
    """
    (folder / "config.json").write_text(json.dumps(CONFIG | dict(shape)))
    config = read_config(folder / "config.json")
    random = np.random.default_rng(0)
    tensors: dict[str, NDArray[Any]] = {}

    def tensor(name: str, shape: tuple[int, ...]) -> None:
        tensors[name] = 0.02 * random.standard_normal(shape, np.float32) + name.endswith("LayerNorm.weight")

    build_params(tensor, config)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    learner = BertWordPieceTokenizer(lowercase=True)
    learner.train_from_iterator(texts or [QUERY], vocab_size=config.vocab_size, show_progress=False)
    # Made anew from its vocabulary, a tokenizer puts [CLS] and [SEP] around a text; the one that learnt does not.
    BertWordPieceTokenizer(learner.get_vocab(), lowercase=True).save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": config.max_tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _e5ref(precision: Precision | None, encoder: E5) -> Iterator[Contender]:
    """e5ref itself, in NumPy or, given a precision, in JAX."""
    of_jax: dict[str, Any] = {}
    if precision is not None:
        import jax

        encoder = E5(encoder.checkpoint, backend="jax", precision=precision, truncation="allow")
        of_jax = {"device": jax.default_backend(), "devices": jax.local_device_count()}
        of_jax["precision"] = "float32" if precision == "highest" else precision
    of_texts = partial(encoder.encode, prompt="", show_progress_bar=False)
    name = f"e5ref jax {precision}" if precision else "e5ref numpy"
    yield Contender(name, of_texts, partial(_run_engine, encoder), is_peer=False, **of_jax)


def _transformers(encoder: E5) -> Iterator[Contender]:
    """torch in float32; on a GPU in bfloat16 too, as it is and compiled."""
    torch = importlib.import_module("torch")
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def of_ids(network: Any, ids: Ids) -> Floats:
        order: list[int] = []
        sums = []
        with torch.inference_mode():
            for rows, *arrays in _padded_batches(ids, encoder.tokenizer.pad_id, device):
                input_ids, mask = (torch.from_numpy(array).to(device) for array in arrays)
                states = network(input_ids=input_ids, attention_mask=mask).last_hidden_state
                sums.append((states.float() * mask[..., None]).sum(dim=1))
                order += rows
            vectors = torch.nn.functional.normalize(torch.cat(sums)).cpu().numpy()
        return vectors[np.argsort(order)]

    for precision in ("float32", "bfloat16") if device == "cuda" else ("float32",):
        network = _load_network(encoder, "sdpa", precision).to(device)
        compiled = {", compiled": torch.compile(network)} if precision == "bfloat16" else {}
        for suffix, form in {"": network, **compiled}.items():
            embed = partial(of_ids, form)
            name = f"transformers {precision}{suffix}"
            yield Contender(name, _with_tokenizer(encoder, embed), embed, precision, device=JAX_NAMES[device])


def _sentence_transformers(encoder: E5) -> Iterator[Contender]:
    modules = importlib.import_module("sentence_transformers.sentence_transformer.modules")
    local = {"local_files_only": True}
    transformer = modules.Transformer(
        str(encoder.checkpoint.folder),
        max_seq_length=encoder.tokenizer.max_length,
        model_kwargs=local | {"add_pooling_layer": False},
        processor_kwargs=local,
        config_kwargs=local,
    )
    pooling = modules.Pooling(encoder.checkpoint.config.hidden_size, "mean")
    package = importlib.import_module("sentence_transformers")
    model = package.SentenceTransformer(modules=[transformer, pooling, modules.Normalize()])
    batch_size = CPU_BATCH_TEXTS if model.device.type == "cpu" else GPU_BATCH_TEXTS
    of_texts = partial(model.encode, batch_size=batch_size, show_progress_bar=False)
    yield Contender("sentence-transformers", of_texts, None, device=JAX_NAMES[model.device.type])


def _onnxruntime(encoder: E5) -> Iterator[Contender]:
    """The graph that torch exports, on all cores of the CPU."""
    torch, onnxruntime = importlib.import_module("torch"), importlib.import_module("onnxruntime")

    class LastHiddenState(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.network(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    module = LastHiddenState()
    module.network = _load_network(encoder, "eager", "float32")
    names = ["input_ids", "attention_mask", "last_hidden_state"]
    axes = {name: {0: "texts", 1: "tokens"} for name in names}
    options = onnxruntime.SessionOptions()
    # Its threads spin between operations, as they do unless told otherwise: that is up to a fifth faster.
    options.intra_op_num_threads = os.cpu_count()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is no longer torch's first choice
        example = (torch.ones(2, 8, dtype=torch.int64),) * 2
        how = {"input_names": names[:2], "output_names": names[2:], "dynamic_axes": axes}
        torch.onnx.export(module, example, f"{folder}/model.onnx", opset_version=17, dynamo=False, **how)
        session = onnxruntime.InferenceSession(f"{folder}/model.onnx", options, providers=["CPUExecutionProvider"])

    def of_ids(ids: Ids) -> Floats:
        vectors = np.empty((len(ids), encoder.checkpoint.config.hidden_size), np.float32)
        for rows, input_ids, mask in _padded_batches(ids, encoder.tokenizer.pad_id, "cpu"):
            (states,) = session.run(None, {"input_ids": input_ids, "attention_mask": mask})
            vectors[rows] = (states * mask[..., None].astype(np.float32)).sum(axis=1)
        return numpy_model.l2_normalize(vectors)

    yield Contender("onnxruntime", _with_tokenizer(encoder, of_ids), of_ids)


# Name → what makes the contenders of that name, given the checkpoint in NumPy.
CONTENDERS: dict[str, Callable[[E5], Iterator[Contender]]] = {
    "numpy": partial(_e5ref, None),
    **{f"jax-{precision}": partial(_e5ref, precision) for precision in get_args(Precision)},
    "transformers": _transformers,
    "sentence-transformers": _sentence_transformers,
    "onnxruntime": _onnxruntime,
}


def suitable_contenders() -> list[str]:
    """Name the forms of e5ref that suit this machine: NumPy and exact JAX on a CPU, JAX's precisions elsewhere."""
    if find_spec("jax") is None:
        return ["numpy"]
    import jax

    if jax.default_backend() == "cpu":
        return ["numpy", "jax-highest"]
    return [name for name in CONTENDERS if name.startswith("jax")]


def _require(names: Sequence[str]) -> None:
    """Check that all contenders are known and installed, before anything is fetched or written."""
    for name in names:
        if name not in CONTENDERS:
            raise ValueError(f"contender {name!r} is not one of {', '.join(CONTENDERS)}")
        if name.startswith("jax"):
            require_jax()
        missing = [package for package in PACKAGES.get(name, ()) if not find_spec(package.replace("-", "_"))]
        if missing:
            raise ModuleNotFoundError(f"contender {name!r} needs more packages: pip install {' '.join(missing)}")


def _load_network(encoder: E5, attention: str, dtype: str) -> Any:
    """Load the encoder in transformers, without its pooler."""
    options = {"attn_implementation": attention, "dtype": dtype, "add_pooling_layer": False, "local_files_only": True}
    auto_model = importlib.import_module("transformers").AutoModel
    return auto_model.from_pretrained(encoder.checkpoint.folder, **options).eval()


def _with_tokenizer(encoder: E5, of_ids: Callable[[Ids], Floats]) -> Callable[[list[str]], Floats]:
    return lambda texts: of_ids([text.ids for text in encoder.tokenizer(texts)])


def _run_engine(encoder: E5, ids: Ids) -> Floats:
    vectors = np.empty((len(ids), encoder.checkpoint.config.hidden_size), encoder.dtype)
    groups = encoder.engine.batches([len(text) for text in ids], max_texts=None)
    batches = (Batch([ids[row] for row in rows], vectors, rows) for rows in groups)
    for _ in encoder.engine.run(batches, normalize=True):
        pass
    return vectors


def _padded_batches(ids: Ids, pad_id: int, device: str) -> Iterator[tuple[list[int], Any, Any]]:
    """Yield indices, input_ids and attention_mask of the batches of a peer, the longest texts first."""
    order = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
    while order:
        count = CPU_BATCH_TEXTS if device == "cpu" else max(1, GPU_BATCH_TOKENS // len(ids[order[0]]))
        yield order[:count], *pad_ids([ids[index] for index in order[:count]], pad_id)
        order = order[count:]


def _make_inputs(encoder: E5, texts: Sequence[str], lengths: Sequence[int], tokens: int) -> list[Inputs]:
    """Make what all contenders embed, and embed some of it in float64."""
    config, random = encoder.checkpoint.config, np.random.default_rng(0)
    ids_by_name: dict[str, Ids] = {"texts": [text.ids for text in encoder.tokenizer(texts)]} if texts else {}
    for length in (length for length in lengths if length <= encoder.tokenizer.max_length):
        drawn = random.integers(config.vocab_size - 1, size=(max(1, tokens // length), length))
        ids_by_name[f"{length} tokens"] = (drawn + (drawn >= encoder.tokenizer.pad_id)).tolist()  # no padding
    reference = E5(read_checkpoint(encoder.checkpoint.folder, dtype="float64"))
    inputs = []
    for name, ids in ids_by_name.items():
        count = min(len(ids), CHECKED_TEXTS, max(1, CHECKED_TOKENS * len(ids) // sum(map(len, ids))))
        checked = np.linspace(0, len(ids) - 1, count, dtype=int).tolist()
        truth = _run_engine(reference, [ids[index] for index in checked])
        inputs.append(Inputs(name, ids, list(texts) if name == "texts" else None, checked, truth))
    return inputs


def _measure(
    inputs: Inputs,
    contenders: Sequence[Contender],
    config: BertConfig,
    rates: Sequence[Mapping[str, Any]],
    rounds: int,
    progress: "tqdm[Any]",
) -> list[dict[str, Any]]:
    """Let all contenders embed one input: once to check them, which also compiles, then in rounds. -> their rows."""
    rows, calls = {}, {}
    for contender in contenders:
        progress.set_postfix_str(f"{inputs.name}, {contender.name}")
        call = inputs.embedding_by(contender)
        if call is not None:
            vectors = call()[inputs.checked]
            difference = float(np.abs(vectors - inputs.truth).max())
            right = difference <= BOUNDS[contender.precision]  # so written, a NaN is wrong
            cosine = float((vectors * inputs.truth).sum(axis=1).min())
            facts = {key: getattr(contender, key) for key in ("is_peer", "device", "precision")}
            rows[contender] = {"contender": contender.name, **facts, "right": right, "max_abs": difference}
            rows[contender]["cosine"] = cosine
            if right:
                calls[contender] = call
        progress.update(1 if contender in calls else 1 + rounds)

    seconds: dict[Contender, list[float]] = {contender: [] for contender in calls}
    for number in range(rounds):
        for contender in list(calls)[:: -1 if number % 2 else 1]:
            progress.set_postfix_str(f"{inputs.name}, {contender.name}")
            seconds[contender] += _seconds(calls[contender], 1)
            progress.update()

    lengths = np.array([len(text) for text in inputs.ids])
    flops = flops_per_token(config, lengths) @ lengths
    for contender, taken in seconds.items():
        ceilings = [rate["teraflops"] for rate in rates if contender.ceiling == (rate["device"], rate["precision"])]
        speeds = {"median": median(taken), "min": max(taken), "max": min(taken)}
        rows[contender] |= {
            "tokens_per_second": {name: float(lengths.sum() / taken) for name, taken in speeds.items()},
            "texts_per_second": len(lengths) / median(taken),
            "share": flops / median(taken) / 1e12 / max(ceilings) / contender.devices if ceilings else None,
            "ratios": {peer.name: speed_ratio(taken, seconds[peer]) for peer in seconds if peer.is_peer},
            "latency_ms": _latency(contender) if inputs.texts and contender.device == "cpu" else None,
        }
    return list(rows.values())


def speed_ratio(seconds: Sequence[float], peer_seconds: Sequence[float]) -> float:
    """Say how many times as fast as a peer a contender is: the median over the rounds of the ratio within each."""
    return median(peer / own for own, peer in zip(seconds, peer_seconds, strict=True))


def flops_per_token(config: BertConfig, length: NDArray[np.integer]) -> NDArray[np.integer]:
    """Count the FLOPs of matrix products for a token of a text of this length: layers (24 D² + 4 T D) if F is 4 D."""
    D, F = config.hidden_size, config.intermediate_size
    return config.num_hidden_layers * (8 * D * D + 4 * D * F + 4 * length * D)


def _latency(contender: Contender) -> dict[str, float]:
    """Time single queries, in milliseconds: the median and the 95th percentile."""
    _seconds(partial(contender.of_texts, [QUERY]), 3)  # JAX compiles
    taken = _seconds(partial(contender.of_texts, [QUERY]), LATENCY_CALLS)
    return {f"p{percent}": float(1e3 * np.percentile(taken, percent)) for percent in (50, 95)}


def _seconds(call: Callable[[], Any], times: int) -> list[float]:
    """Time a call several times in a row, once the threads of others are asleep."""
    time.sleep(PAUSE)
    clock = [time.perf_counter()]
    for _ in range(times):
        call()
        clock.append(time.perf_counter())
    return np.diff(clock).tolist()


def product_rates(contenders: Sequence[Contender]) -> list[dict[str, Any]]:
    """Measure how fast NumPy and JAX, where contenders use them, multiply large square matrices on one device.

    Returns:
        A row for each library and precision: "library", "device", "precision", "teraflops".
    """
    wanted = {contender.ceiling for contender in contenders}
    a, b = np.random.default_rng(0).standard_normal((2, 2048, 2048), np.float32)
    rates = []
    if ("cpu", "float32") in wanted:
        teraflops = 2 * 2048**3 / 1e12 / median(_seconds(lambda: a @ b, 6)[1:])
        rates.append({"library": "numpy", "device": "cpu", "precision": "float32", "teraflops": teraflops})
    if any(contender.name.startswith("e5ref jax") for contender in contenders):
        import jax
        import jax.numpy as jnp

        size, times = (2048, 1) if jax.default_backend() == "cpu" else (8192, 10)
        for device, precision in sorted(wanted):
            if device == jax.default_backend():
                dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
                factors = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
                product = jax.jit(partial(jnp.matmul, precision="high" if precision == "high" else "highest"))
                teraflops = 2 * size**3 / 1e12 / _device_seconds(product, factors, times)
                rates.append({"library": "jax", "device": device, "precision": precision, "teraflops": teraflops})
    return rates


def attention_times(config: BertConfig) -> list[dict[str, float]]:
    """Time the JAX twin's attention in bfloat16, in its plain form and in that for this device, at several lengths."""
    import jax
    import jax.numpy as jnp

    from e5ref import jax_model

    plain, fast = jax.jit(lambda *x: jax_model.dot_product_attention(*x)[0]), jax.jit(jax_model.fast_attention)
    rows = []
    for tokens in (64, 128, 512):
        texts = GPU_BATCH_TOKENS // tokens
        shape = (3, texts, config.num_attention_heads, tokens, config.head_size)
        inputs = (*jax.random.normal(jax.random.key(0), shape, jnp.bfloat16), jnp.ones((texts, tokens), bool))
        milliseconds = (1e3 * _device_seconds(form, inputs, 10) for form in (plain, fast))
        rows.append(dict(zip(("tokens", "plain_ms", "fast_ms"), (tokens, *milliseconds), strict=True)))
    return rows


def _device_seconds(function: Callable[..., Any], arguments: Iterable[Any], times: int) -> float:
    """Time a JAX function: the median of 5 runs of so many calls, between which the device does not wait."""
    arguments = tuple(arguments)

    def run() -> None:
        for _ in range(times):
            result = function(*arguments)
        result.block_until_ready()

    return median(_seconds(run, 6)[1:]) / times  # the first compiles


def _machine(names: Sequence[str]) -> dict[str, Any]:
    """Say what the figures were measured on and with."""
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


def table(result: Mapping[str, Any]) -> str:
    """Lay out what `bench` returned as aligned tables, which are Markdown too: e5ref first, then its peers."""
    parts = [", ".join(f"{key} {value}" for key, value in {**result["machine"], **result["model"]}.items() if value)]
    for rate in result["product_rates"]:
        parts.append("{library} multiplies {precision} at {teraflops:.3g} TFLOP/s ({device})".format(**rate))
    for inputs in result["inputs"]:
        parts.append("{name}: {texts:,} texts, {tokens:,} tokens".format(**inputs) + f", {result['rounds']} rounds")
        peers = [row for row in inputs["rows"] if row["is_peer"] and row["right"]]
        best = max(peers, key=lambda row: row["tokens_per_second"]["median"], default={"contender": ""})["contender"]
        parts.append(aligned([_cells(row, best) for row in inputs["rows"]]))
    if result["attention"]:
        parts.append("attention in bfloat16")
        parts.append(aligned([{key: f"{value:.4g}" for key, value in row.items()} for row in result["attention"]]))
    return "\n\n".join(parts)


def _cells(row: Mapping[str, Any], best_peer: str) -> dict[str, str]:
    """Write out a row, column → cell; what was not measured is left empty."""
    right, speed, latency = row["right"], row.get("tokens_per_second", {}), row.get("latency_ms")
    return {
        "contender": row["contender"],
        "tokens/s": "{median:,.0f}".format(**speed) if right else "wrong",
        "min to max": "{min:,.0f} to {max:,.0f}".format(**speed) if right else "",
        "texts/s": f"{row['texts_per_second']:,.1f}" if right else "",
        "x best peer": f"{row['ratios'][best_peer]:.2f}" if right and best_peer else "",
        "of product rate": f"{row['share']:.0%}" if row.get("share") else "",
        "one query, ms (p50 / p95)": "{p50:.1f} / {p95:.1f}".format(**latency) if latency else "",
        "largest difference": f"{row['max_abs']:.1e}",
        "least cosine": f"{row['cosine']:.6f}",
    }
