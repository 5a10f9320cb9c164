"""The files that contenders load: a checkpoint with random weights, and exports of a checkpoint for peers."""

import importlib
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import BertWordPieceTokenizer

from e5ref.bench.contenders import PACKAGES, QUERY, load_network
from e5ref.checkpoint.config import read_config
from e5ref.checkpoint.params import build_params
from e5ref.encoder import E5

# The sizes of E5's checkpoints, and the rest of a random checkpoint's config.json.
SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
SHAPES = {
    "small": dict(zip(SIZES, (12, 384, 12, 1536), strict=True)),
    "base": dict(zip(SIZES, (12, 768, 12, 3072), strict=True)),
    "large": dict(zip(SIZES, (24, 1024, 16, 4096), strict=True)),
}
CONFIG = {"architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": 1e-12}
CONFIG |= {"vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2, "pad_token_id": 0}
CONFIG |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def write_random_checkpoint(folder: Path, shape: Mapping[str, int], texts: Sequence[str] = ()) -> None:
    """Write a BERT with random weights that e5ref and transformers both read, with a tokenizer trained on `texts`.

    The folder must exist. `shape` has sizes for config.json, such as one of `SHAPES`.
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
    # The trained tokenizer does not add [CLS] and [SEP]; a new one from its vocabulary does.
    BertWordPieceTokenizer(learner.get_vocab(), lowercase=True).save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": config.max_tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_exports(encoder: E5, contenders: Sequence[str], folder: Path) -> None:
    """Write to a folder what contenders load beside the checkpoint: its tokenizer and, for onnxruntime, graphs."""
    encoder.tokenizer.save(folder / "tokenizer.json")
    settings = {"model_max_length": encoder.tokenizer.max_length}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if any("onnxruntime" in PACKAGES.get(name, ()) for name in contenders):
        _export(encoder.checkpoint.folder, folder / "model.onnx")
    config = encoder.checkpoint.config
    logging.disable(logging.WARNING)  # the next steps recommend more steps, which do not help here
    if "onnxruntime-fused" in contenders:
        optimizer = importlib.import_module("onnxruntime.transformers.optimizer")
        sizes = {"num_heads": config.num_attention_heads, "hidden_size": config.hidden_size}
        fused = optimizer.optimize_model(str(folder / "model.onnx"), "bert", opt_level=1, **sizes)
        fused.save_model_to_file(str(folder / "model-fused.onnx"))
    if "onnxruntime-int8" in contenders:
        quantization = importlib.import_module("onnxruntime.quantization")
        quantization.quantize_dynamic(folder / "model.onnx", folder / "model-int8.onnx")
    logging.disable(logging.NOTSET)


def _export(checkpoint: Path, path: Path) -> None:
    """Write the encoder as a graph, with torch: input_ids and attention_mask [B, T] → last_hidden_state [B, T, D]."""
    torch = importlib.import_module("torch")

    class LastHiddenState(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.network(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    module = LastHiddenState()
    module.network = load_network(checkpoint, "eager", "float32")
    export_graph(module, ["last_hidden_state"], path)


def export_graph(module: Any, outputs: Sequence[str], path: Path) -> None:
    """Write a torch module as a graph, from input_ids and attention_mask, [B, T] for any B and T, to named outputs."""
    torch = importlib.import_module("torch")
    inputs = ["input_ids", "attention_mask"]
    axes = {name: {0: "texts", 1: "tokens"} for name in inputs}
    example = (torch.ones(2, 8, dtype=torch.int64),) * 2
    how = {"input_names": inputs, "output_names": list(outputs), "dynamic_axes": axes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is no longer torch's first choice
        torch.onnx.export(module.eval(), example, path, opset_version=17, dynamo=False, **how)
