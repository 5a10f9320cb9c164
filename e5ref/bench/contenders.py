"""The contenders: each has a name and a loader, which reads files and returns something that embeds texts.

Run as a script, this file is the process of one contender, in which nothing else is imported or done: see `main`. So
its first lines import almost nothing, and each loader imports what it needs.
"""

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from e5ref.encoder import E5
    from e5ref.engines.engine import Precision

Floats = NDArray[np.floating]
IdLists = Sequence[Sequence[int] | NDArray[np.integer]]  # the ids of several texts

# Peer → the packages that it needs.
PACKAGES = {
    "model-card": ("torch", "transformers"),
    "transformers": ("torch", "transformers"),
    "sentence-transformers": ("torch", "transformers", "sentence-transformers"),
    "fastembed": ("torch", "transformers", "onnx", "onnxruntime", "fastembed"),
    "onnxruntime": ("torch", "transformers", "onnx", "onnxruntime"),
    "onnxruntime-fused": ("torch", "transformers", "onnx", "onnxruntime"),
    "onnxruntime-int8": ("torch", "transformers", "onnx", "onnxruntime"),
}

# torch's name of a device → JAX's.
JAX_NAMES = {"cpu": "cpu", "cuda": "gpu"}

# The peers' batches on a CPU, and on a GPU.
CPU_BATCH_TEXTS, GPU_BATCH_TEXTS, GPU_BATCH_TOKENS = 32, 256, 1 << 16

QUERY = "query: how much protein should a female eat"

# What a contender's own process prints after each file.
READY = "the vectors are there"


@dataclass(frozen=True)
class Contender:
    """Something that turns texts into unit vectors, [n, D]."""

    name: str  # in tables
    of_texts: Callable[[list[str]], Floats]
    of_ids: Callable[[IdLists], Floats] | None  # None if it takes only texts
    precision: str = "float32"  # one of `measure.BOUNDS`
    is_peer: bool = True  # a peer of e5ref, and not e5ref itself
    device: str = "cpu"  # or JAX's name of an accelerator: "gpu", "tpu"
    devices: int = 1  # how many it uses
    compiles: bool = False  # whether a process waits for a compiler, unless an earlier one has left its programs

    @property
    def ceiling(self) -> tuple[str, str]:
        """Device and precision of the product whose rate bounds it. Both 16-bit formats multiply at the same rate."""
        return self.device, "bfloat16" if self.precision == "float16" else self.precision


def _e5ref(precision: "Precision | None", checkpoint: Path, exports: Path) -> Iterator[Contender]:
    """e5ref itself, in NumPy or, given a precision, in JAX."""
    from e5ref.checkpoint import read_checkpoint
    from e5ref.encoder import E5

    backend: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    if precision is not None:
        import jax

        backend = {"backend": "jax", "precision": precision}
        facts = {"device": jax.default_backend(), "devices": jax.local_device_count()}
        facts |= {"precision": "float32" if precision == "highest" else precision, "compiles": True}
    encoder = E5(read_checkpoint(checkpoint), truncation="allow", **backend)
    of_texts = partial(encoder.encode, prompt="", show_progress_bar=False)
    name = f"e5ref jax {precision}" if precision else "e5ref numpy"
    yield Contender(name, of_texts, partial(run_engine, encoder), is_peer=False, **facts)


def _model_card(checkpoint: Path, exports: Path) -> Iterator[Contender]:
    """The code on e5-small-v2's card, in batches of a corpus in its own order, but without gradients."""
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    model = transformers.AutoModel.from_pretrained(checkpoint, dtype="float32", local_files_only=True)
    max_length = _max_length(exports)

    def of_texts(texts: list[str]) -> Floats:
        vectors = []
        with torch.no_grad():
            for start in range(0, len(texts), CPU_BATCH_TEXTS):
                batch = tokenizer(
                    texts[start : start + CPU_BATCH_TEXTS],
                    max_length=max_length,
                    padding=True,
                    truncation=True,
                    return_tensors="pt",
                )
                mask = batch["attention_mask"][..., None]
                states = model(**batch).last_hidden_state.masked_fill(mask == 0, 0.0)
                vectors.append(torch.nn.functional.normalize(states.sum(dim=1) / mask.sum(dim=1)))
        return torch.cat(vectors).numpy()

    yield Contender("model card's code", of_texts, None)


def _transformers(checkpoint: Path, exports: Path) -> Iterator[Contender]:
    """torch in float32, the longest texts first. On a GPU also in bfloat16, plain and compiled."""
    torch = importlib.import_module("torch")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = _Tokenizer(exports)

    @cache  # loaded when first needed: a process of its own is one of these contenders, and loads only that
    def network(precision: str, compiled: bool) -> Any:
        if compiled:
            return torch.compile(network(precision, False))
        return load_network(checkpoint, "sdpa", precision).to(device)

    def of_ids(precision: str, compiled: bool, ids: IdLists) -> Floats:
        run = network(precision, compiled)
        order: list[int] = []
        sums = []
        with torch.inference_mode():
            for texts, *arrays in _padded_batches(ids, tokenizer.pad_id, device):
                input_ids, mask = (torch.from_numpy(array).to(device) for array in arrays)
                states = run(input_ids=input_ids, attention_mask=mask).last_hidden_state
                sums.append((states.float() * mask[..., None]).sum(dim=1))
                order += texts
            vectors = torch.nn.functional.normalize(torch.cat(sums)).cpu().numpy()
        return vectors[np.argsort(order)]

    forms = [("float32", False), ("bfloat16", False), ("bfloat16", True)] if device == "cuda" else [("float32", False)]
    for precision, compiled in forms:
        embed = partial(of_ids, precision, compiled)
        name = f"transformers {precision}{', compiled' if compiled else ''}"
        of_texts = tokenizer.before(embed)
        yield Contender(name, of_texts, embed, precision, device=JAX_NAMES[device], compiles=compiled)


def _sentence_transformers(checkpoint: Path, exports: Path) -> Iterator[Contender]:
    modules = importlib.import_module("sentence_transformers.sentence_transformer.modules")
    local = {"local_files_only": True}
    transformer = modules.Transformer(
        str(checkpoint),
        max_seq_length=_max_length(exports),
        model_kwargs=local | {"add_pooling_layer": False},
        processor_kwargs=local,
        config_kwargs=local,
    )
    pooling = modules.Pooling(transformer.get_embedding_dimension(), "mean")
    package = importlib.import_module("sentence_transformers")
    model = package.SentenceTransformer(modules=[transformer, pooling, modules.Normalize()])
    batch_size = CPU_BATCH_TEXTS if model.device.type == "cpu" else GPU_BATCH_TEXTS
    of_texts = partial(model.encode, batch_size=batch_size, show_progress_bar=False)
    yield Contender("sentence-transformers", of_texts, None, device=JAX_NAMES[model.device.type])


def _fastembed(checkpoint: Path, exports: Path) -> Iterator[Contender]:
    """fastembed with a custom model: onnxruntime's graph, on all cores of the CPU."""
    package = importlib.import_module("fastembed")
    descriptions = importlib.import_module("fastembed.common.model_description")
    name = f"e5ref/{exports}"  # fastembed registers a name only once
    if name not in (model["model"] for model in package.TextEmbedding.list_supported_models()):
        package.TextEmbedding.add_custom_model(
            name,
            pooling=descriptions.PoolingType.MEAN,
            normalization=True,
            sources=descriptions.ModelSource(hf=name),
            dim=json.loads((checkpoint / "config.json").read_text())["hidden_size"],
            model_file="model.onnx",
        )
    model = package.TextEmbedding(
        name,
        cache_dir=str(exports),  # otherwise it creates a folder of its own
        threads=os.cpu_count(),
        providers=["CPUExecutionProvider"],
        specific_model_path=str(exports),
    )

    def of_texts(texts: list[str]) -> Floats:
        return np.stack(list(model.embed(texts, batch_size=CPU_BATCH_TEXTS)))

    yield Contender("fastembed", of_texts, None)


def _onnxruntime(form: str, precision: str, checkpoint: Path, exports: Path) -> Iterator[Contender]:
    """The graph that torch exported, or a form of it, on all cores of the CPU, the longest texts first."""
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    # Its threads spin between operations, which is its default and up to a fifth faster.
    options.intra_op_num_threads = os.cpu_count()
    file = exports / (f"model-{form}.onnx" if form else "model.onnx")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    tokenizer = _Tokenizer(exports)

    def of_ids(ids: IdLists) -> Floats:
        order: list[int] = []
        sums = []
        for texts, input_ids, mask in _padded_batches(ids, tokenizer.pad_id, "cpu"):
            (states,) = session.run(None, {"input_ids": input_ids, "attention_mask": mask})
            sums.append((states * mask[..., None].astype(np.float32)).sum(axis=1))
            order += texts
        vectors = np.concatenate(sums)[np.argsort(order)]
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    yield Contender(f"onnxruntime {form}".strip(), tokenizer.before(of_ids), of_ids, precision)


# Name → the loader of its contenders (on a CPU, one). A loader gets two folders: the checkpoint, and what
# `prepare.write_exports` has made of it.
CONTENDERS: dict[str, Callable[[Path, Path], Iterator[Contender]]] = {
    "numpy": partial(_e5ref, None),
    "jax-highest": partial(_e5ref, "highest"),
    "jax-high": partial(_e5ref, "high"),
    "jax-bfloat16": partial(_e5ref, "bfloat16"),
    "jax-float16": partial(_e5ref, "float16"),
    "model-card": _model_card,
    "transformers": _transformers,
    "sentence-transformers": _sentence_transformers,
    "fastembed": _fastembed,
    "onnxruntime": partial(_onnxruntime, "", "float32"),
    "onnxruntime-fused": partial(_onnxruntime, "fused", "float32"),
    "onnxruntime-int8": partial(_onnxruntime, "int8", "int8"),
}


class _Tokenizer:
    """The checkpoint's tokenizer without e5ref, for peers that have none of their own."""

    def __init__(self, exports: Path) -> None:
        self._tokenizer = importlib.import_module("tokenizers").Tokenizer.from_file(str(exports / "tokenizer.json"))
        self.pad_id: int = self._tokenizer.padding["pad_id"]
        self._tokenizer.no_padding()

    def before(self, of_ids: Callable[[IdLists], Floats]) -> Callable[[list[str]], Floats]:
        """Put the tokenizer before a function that embeds ids."""
        return lambda texts: of_ids([encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)])


def _max_length(exports: Path) -> int:
    return json.loads((exports / "tokenizer_config.json").read_text())["model_max_length"]


def load_network(checkpoint: Path, attention: str, dtype: str) -> Any:
    """Load the encoder in transformers, without its pooler."""
    options = {"attn_implementation": attention, "dtype": dtype, "add_pooling_layer": False, "local_files_only": True}
    return importlib.import_module("transformers").AutoModel.from_pretrained(checkpoint, **options).eval()


def run_engine(encoder: "E5", ids: IdLists) -> Floats:
    """Embed token ids with e5ref."""
    from e5ref.engines.engine import Window
    from e5ref.tokenizer import TokenIds

    vectors = np.empty((len(ids), encoder.checkpoint.dimensions), encoder.dtype)

    def windows() -> Iterator[Window]:  # as in `encode`
        for start in range(0, len(ids), encoder.engine.window_texts):
            of_window = [np.asarray(text, np.int32) for text in ids[start : start + encoder.engine.window_texts]]
            lengths = np.array([len(text) for text in of_window], np.int64)
            exact = np.ones(len(lengths), np.bool_)
            tokens = TokenIds(np.concatenate(of_window), np.append(0, np.cumsum(lengths)), lengths, exact)
            yield Window(tokens, vectors[start : start + len(lengths)])

    for _ in encoder.engine.run(windows(), normalize=True, max_texts=None):
        pass
    return vectors


def _padded_batches(ids: IdLists, pad_id: int, device: str) -> Iterator[tuple[list[int], Any, Any]]:
    """Yield text indices, input_ids and attention_mask of a peer's batches, the longest texts first."""
    order = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
    while order:
        width = len(ids[order[0]])
        count = CPU_BATCH_TEXTS if device == "cpu" else max(1, GPU_BATCH_TOKENS // width)
        lengths = np.array([len(ids[index]) for index in order[:count]])
        is_token = np.arange(width) < lengths[:, None]
        input_ids = np.full(is_token.shape, pad_id, np.int64)
        input_ids[is_token] = np.concatenate([ids[index] for index in order[:count]])
        yield order[:count], input_ids, is_token.astype(np.int64)
        order = order[count:]


def main(arguments: Sequence[str]) -> None:
    """Run one contender in this process: load it, embed the texts of each file, and print its peak of memory.

    Prints `READY` once the vectors of a file's texts are there, and at the end `peak_memory`.

    Args:
        arguments: a name of `CONTENDERS`, the contender's own name, its two folders, and JSON files with a list of
            texts each.
    """
    loader, name, checkpoint, exports, *files = arguments
    (contender,) = (one for one in CONTENDERS[loader](Path(checkpoint), Path(exports)) if one.name == name)
    for file in files:
        contender.of_texts(json.loads(Path(file).read_text()))
        print(READY, flush=True)
    print(peak_memory())


def peak_memory() -> float:
    """Return this process's peak of resident memory in MiB; 0 outside Linux.

    The peak that `getrusage` reports may be the parent's, from which this process was forked.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))  # finds e5ref if it is not installed
    main(sys.argv[1:])
