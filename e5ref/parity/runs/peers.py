"""The runners of other libraries: transformers, sentence-transformers and ONNX graphs give our named points.

Hooks watch the modules of a library, so nothing in it is changed. Everything runs on the CPU, in the process's own
threads. Heavy packages are imported only when they are needed.
"""

import importlib
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e5ref.checkpoint import Checkpoint
from e5ref.checkpoint.params import TanhDense
from e5ref.encoder import E5
from e5ref.extras import require
from e5ref.operations import Ids
from e5ref.parity.runs.runners import Points, Runner, own_tokenize

# Common names of a graph's outputs → our names. Outputs with our own names need no entry.
GRAPH_OUTPUTS = {"token_embeddings": "last_hidden_state"}
GRAPH_VECTORS = "sentence_embedding"  # the result of the checkpoint's last module

GRAPH_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def transformers_runner(encoder: E5, names: Collection[str], dtype: str) -> Runner:
    """Run the checkpoint in transformers: its tokenizer, its modules, and the model card's own pooling."""
    run = transformers_points(encoder.checkpoint, names, dtype)
    transformers = importlib.import_module("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder.checkpoint.folder, local_files_only=True)

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        return tokenizer(list(texts), truncation=True, max_length=encoder.tokenizer.max_length)["input_ids"]

    return Runner(run, tokenize, dtype, facts=_facts("transformers", attention_form(names)))


def transformers_points(
    checkpoint: Checkpoint, names: Collection[str] | None, dtype: str
) -> Callable[[Ids, Ids], Points]:
    """Load a checkpoint in transformers so that it gives named points, as `jax_points` does.

    Raises:
        ModuleNotFoundError: torch or transformers is not installed; the message says what to install.
    """
    require("parity", "backend 'transformers'", "torch", "transformers")
    torch, transformers = (importlib.import_module(name) for name in ("torch", "transformers"))
    options = {"add_pooling_layer": False, "attn_implementation": attention_form(names), "local_files_only": True}
    with quiet():
        network = transformers.AutoModel.from_pretrained(checkpoint.folder, dtype=getattr(torch, dtype), **options)
    watched = Watched(names)
    watched.network(network.eval())
    dense = [torch.tensor(array, dtype=getattr(torch, dtype)) for array in checkpoint.params.dense]

    def run(input_ids: Ids, attention_mask: Ids) -> Points:
        ids, mask = torch.from_numpy(input_ids), torch.from_numpy(attention_mask)
        with torch.inference_mode():
            states = network(input_ids=ids, attention_mask=mask).last_hidden_state
            pooled = states[:, 0]
            if checkpoint.settings.pooling == "mean":
                pooled = states.masked_fill(mask[..., None] == 0, 0.0).sum(dim=1) / mask.sum(dim=1)[..., None]
            watched.keep("last_hidden_state", states)
            watched.keep("pooled", pooled)
            vectors = pooled
            if checkpoint.params.dense:
                vectors = torch.nn.functional.linear(pooled, *dense)
                vectors = torch.tanh(vectors) if isinstance(checkpoint.params.dense, TanhDense) else vectors
                watched.keep("dense", vectors)
            if checkpoint.settings.normalize:
                watched.keep("normalized", torch.nn.functional.normalize(vectors, p=2, dim=1))
        return watched.taken()

    return run


def sentence_transformers_runner(encoder: E5, names: Collection[str], dtype: str) -> Runner:
    """Run the checkpoint in sentence-transformers: its own tokenization, modules, pooling and normalisation.

    A folder without `modules.json` gets the modules that e5ref assumes for it.
    """
    require("parity", "backend 'sentence-transformers'", "torch", "transformers", "sentence-transformers")
    torch, package = (importlib.import_module(name) for name in ("torch", "sentence_transformers"))
    folder, settings = encoder.checkpoint.folder, encoder.checkpoint.settings
    form = attention_form(names)
    options = {"dtype": getattr(torch, dtype), "attn_implementation": form, "add_pooling_layer": False}
    with quiet():
        if (folder / "modules.json").exists():
            model = package.SentenceTransformer(str(folder), device="cpu", local_files_only=True, model_kwargs=options)
            model = model.to(options["dtype"]).eval()  # a Dense too
        else:
            modules = importlib.import_module("sentence_transformers.sentence_transformer.modules")
            local = {"local_files_only": True}
            transformer = modules.Transformer(
                str(folder), model_kwargs=options | local, processor_kwargs=local, config_kwargs=local
            )
            pooling = modules.Pooling(transformer.get_embedding_dimension(), settings.pooling)
            last = [modules.Normalize()] if settings.normalize else []
            model = package.SentenceTransformer(modules=[transformer, pooling, *last], device="cpu").eval()
    model.max_seq_length = encoder.tokenizer.max_length

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        batch = model.preprocess(list(texts))
        padded = zip(batch["input_ids"], batch["attention_mask"], strict=True)
        return [ids[mask == 1].tolist() for ids, mask in padded]

    watched = Watched(names)
    watched.network(model[0].auto_model)
    points = ("pooled", "dense", "normalized") if encoder.checkpoint.params.dense else ("pooled", "normalized")
    caught = {"last_hidden_state": "token_embeddings"} | dict.fromkeys(points, "sentence_embedding")
    for module, (point, key) in zip(model, caught.items(), strict=False):  # without Normalize there is one fewer
        watched.module(module, point, itemgetter(key))

    def run(input_ids: Ids, attention_mask: Ids) -> Points:
        with torch.inference_mode():
            model({"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(attention_mask)})
        return watched.taken()

    return Runner(run, tokenize, dtype, facts=_facts("sentence-transformers", form))


def onnx_runner(encoder: E5, file: Path, names: Collection[str], dtype: str | None) -> Runner:
    """Run a graph with onnxruntime on the ids of e5ref's own tokenizer, and keep its known outputs.

    Known are outputs with our names, "token_embeddings", and "sentence_embedding", which counts as the checkpoint's
    last point. A warning names all others.

    Raises:
        ValueError: the file is not a graph, needs inputs that are not a BERT's, or has no known output.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file; give the graph as onnx:FILE")
    require("parity", "backend 'onnx'", "onnxruntime")
    onnxruntime = importlib.import_module("onnxruntime")
    try:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common class of their own
        raise ValueError(f"{file}: onnxruntime cannot load it ({' '.join(str(error).split())})") from None
    inputs = {one.name: np.dtype(one.type.removeprefix("tensor(").rstrip(")")) for one in session.get_inputs()}
    if unknown := [name for name in inputs if name not in GRAPH_INPUTS]:
        raise ValueError(f"{file}: needs the input {unknown[0]!r}, but e5ref gives only {', '.join(GRAPH_INPUTS)}")
    vectors = "dense" if encoder.checkpoint.params.dense else "pooled"
    vectors = "normalized" if encoder.checkpoint.settings.normalize else vectors
    known = GRAPH_OUTPUTS | {GRAPH_VECTORS: vectors} | {name: name for name in names}
    outputs = {one.name: known.get(one.name) for one in session.get_outputs()}
    if unknown := [name for name, point in outputs.items() if point is None]:
        warnings.warn(f"{file}: unknown outputs are left out: {', '.join(unknown)}", stacklevel=2)
    asked = {name: point for name, point in outputs.items() if point is not None and point in names}
    if not asked:
        raise ValueError(f"{file}: none of its outputs ({', '.join(outputs)}) is a point to record")

    def run(input_ids: Ids, attention_mask: Ids) -> Points:
        given = (input_ids, attention_mask, np.zeros_like(input_ids))
        feed = dict(zip(GRAPH_INPUTS, given, strict=True))
        arrays = session.run(list(asked), {name: feed[name].astype(kind) for name, kind in inputs.items()})
        return dict(zip(asked.values(), arrays, strict=True))

    return Runner(run, own_tokenize(encoder), dtype or "", facts=_facts("onnxruntime") | {"graph": file.name})


class Watched:
    """Hooks on the modules of a transformers network, and the points that they caught in the last batch."""

    def __init__(self, names: Collection[str] | None) -> None:
        """Watch for the points with these names; None for all."""
        self._names = names
        self._points: dict[str, NDArray[Any]] = {}

    def keep(self, name: str, tensor: Any) -> None:
        """Keep a tensor as a NumPy array, bfloat16 as float32, if its name is wanted."""
        if self._names is None or name in self._names:
            wide = tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor
            self._points[name] = wide.detach().cpu().numpy()

    def taken(self) -> Points:
        """Return the points that were kept, and start again."""
        points, self._points = self._points, {}
        return points

    def module(self, module: Any, name: str, choose: Callable[[Any], Any] = lambda output: output) -> None:
        """Keep a module's output, or what `choose` takes from it."""
        if self._names is None or name in self._names:
            module.register_forward_hook(lambda _module, _inputs, output: self.keep(name, choose(output)))

    def network(self, network: Any) -> None:
        """Watch every named point inside transformers' BertModel or XLMRobertaModel."""
        self.module(network.embeddings, "embeddings")
        for index, layer in enumerate(network.encoder.layer):
            name, attention = f"layers.{index}", layer.attention.self
            self.module(attention.query, f"{name}.query")
            self.module(attention.key, f"{name}.key")
            self.module(attention.value, f"{name}.value")
            self.module(attention, f"{name}.attention_probabilities", lambda output: output[1])
            self.module(attention, f"{name}.context", lambda output: output[0])
            self.module(layer.attention.output, f"{name}.attention_output")
            self.module(layer.intermediate, f"{name}.feed_forward_activation")
            self.module(layer.output, f"{name}.output")


def attention_form(names: Collection[str] | None) -> str:
    """Choose transformers' form of attention: the fused one, its default, cannot show probabilities."""
    wanted = names is None or any(name.endswith("attention_probabilities") for name in names)
    return "eager" if wanted else "sdpa"


def _facts(backend: str, attention: str | None = None) -> dict[str, str]:
    """Describe a runner: the library, the packages beneath it, and transformers' form of attention."""
    packages = [backend] if attention is None else sorted({"torch", "transformers", backend})
    versions = {f"{name.replace('-', '_')}_version": importlib.metadata.version(name) for name in packages}
    return {"backend": backend} | ({"attention": attention} if attention else {}) | versions


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' messages and progress bars off the terminal while it loads."""
    logging = importlib.import_module("transformers.utils.logging")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
