"""safetensors files → the parameter tree, each tensor checked."""

import difflib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e5ref.checkpoint.config import BertConfig, CheckpointError, read_json
from e5ref.checkpoint.params import (
    HEADS,
    NAME_PREFIXES,
    UNUSED_NAMES,
    BertParams,
    Dense,
    TanhDense,
    build_params,
    leaves,
    stored_names,
)
from e5ref.files.lines import foreign_file
from e5ref.files.tensors import map_tensors

# How safetensors names what a tensor is made of, and how NumPy reads it. NumPy has no bfloat16: its two bytes are
# the upper half of a float32. Only the position ids, which nothing uses, are whole numbers.
STORED_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8"}


CHECK_ELEMENTS = 1 << 20


def read_tensors(folder: Path) -> tuple[tuple[Path, ...], dict[str, NDArray[Any]]]:
    """Map into memory the tensors of `model.safetensors`, or of the files that `model.safetensors.index.json` names.

    Returns:
        The files, and every tensor by its name in the checkpoint: views of the files, read-only, as stored
        (bfloat16 as unsigned 16-bit integers).

    Raises:
        CheckpointError: no such file, a file that is cut short or damaged, a tensor that the index promises and
            no file holds, or weights as a pickle only, which e5ref never opens.
    """
    index = folder / "model.safetensors.index.json"
    files = [folder / "model.safetensors"]
    promised: dict[str, str] = {}
    if not files[0].exists() and index.exists():
        promised = read_json(index).get("weight_map", {})
        names = list(promised.values()) if isinstance(promised, dict) else []
        if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise CheckpointError(f"{index}: weight_map must name the file of each tensor; fetch the file anew")
        files = [folder / name for name in sorted(set(names))]

    tensors: dict[str, NDArray[Any]] = {}
    for path in files:
        if not path.exists():
            pickles = sorted(
                file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl") for file in folder.glob(pattern)
            )
            raise CheckpointError(
                f"{folder}: holds {pickles[0]} but no {path.name}, and e5ref never opens pickles, which can run code; "
                "take the checkpoint's safetensors file, or convert it with transformers: model.save_pretrained(folder)"
                if pickles
                else f"{folder}: holds no {path.name}; fetch it from the model's page"
            )
        for name, tensor in _map_file(path):
            if promised and promised.get(name) != path.name:
                raise CheckpointError(f"{path}: holds {name!r}, which the index places elsewhere; fetch both anew")
            tensors[name] = tensor
    missing = promised.keys() - tensors.keys()
    if missing:
        raise CheckpointError(f"{index}: promises {min(missing)!r}, which no file holds; fetch the files anew")
    return tuple(files), tensors


def _map_file(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the tensors of a safetensors file."""
    try:
        tensors, _ = map_tensors(path)
    except ValueError as error:
        reason = foreign_file(path) or f"cut short or damaged ({error}); fetch the file anew"
        raise CheckpointError(f"{path}: {reason}") from None
    for name, (dtype, shape, content) in tensors.items():
        if dtype not in STORED_DTYPES:
            raise CheckpointError(f"{path}: tensor {name!r} is stored as {dtype}, but e5ref reads F32, F16 and BF16")
        yield name, content.view(STORED_DTYPES[dtype]).reshape(shape)


def params_from_tensors(
    tensors: Mapping[str, NDArray[Any]], config: BertConfig, folder: Path, dtype: str
) -> BertParams:
    """Put a checkpoint's tensors into the tree, each checked."""
    prefix = next((p for p in NAME_PREFIXES if f"{p}embeddings.word_embeddings.weight" in tensors), "")
    layers = min(config.num_hidden_layers, len(tensors))  # config.json may say any number; there are no more
    names = leaves(build_params(lambda name, shape: name, replace(config, num_hidden_layers=layers)))
    known = {prefix + stored for name in names for stored in stored_names(name)}
    others = {name: name.removeprefix(prefix) for name in sorted(tensors.keys() - known)}
    unknown = [name for name, bare in others.items() if bare not in UNUSED_NAMES and not bare.startswith(HEADS)]
    heads = [f"{head}*" for head in HEADS if any(bare.startswith(head) for bare in others.values())]

    def tensor(name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        found = [prefix + stored for stored in stored_names(name) if prefix + stored in tensors]
        if not found:
            near = difflib.get_close_matches(prefix + name, unknown, 1)
            nearest = f" (the nearest is {near[0]!r})" if near else ""
            raise CheckpointError(
                f"{folder}: the weights have no tensor {prefix + name!r}{nearest}; are they those of config.json?"
            )
        if len(found) > 1:
            raise CheckpointError(
                f"{folder}: the weights hold {found[0]!r} and {found[1]!r}, two names of one tensor; fetch them anew"
            )
        return _checked(tensors[found[0]], found[0], shape, folder, dtype)

    params = build_params(tensor, config)
    if unknown:
        raise CheckpointError(
            f"{folder}: the weights hold {unknown[0]!r}{f' and {len(unknown) - 1} more' if len(unknown) > 1 else ''}, "
            "which e5ref does not know; is this a BERT-style encoder, with as many layers as config.json says?"
        )
    if heads:
        warnings.warn(
            f"{folder}: the weights hold a head beside the encoder, which is left out: {', '.join(heads)}", stacklevel=3
        )
    return params


# The activations that a Dense module may have → the kind of layer.
ACTIVATIONS = {
    "torch.nn.modules.activation.Tanh": TanhDense,
    "torch.nn.Tanh": TanhDense,
    "torch.nn.modules.linear.Identity": Dense,
    "torch.nn.Identity": Dense,
}


def read_dense(folder: Path, config: BertConfig, dtype: str) -> tuple[tuple[Path, ...], Dense]:
    """Read a Dense module of sentence-transformers; return its files of weights too. A missing bias is one of zeros.

    Raises:
        CheckpointError: a file is missing or damaged, does not fit the encoder, or asks for what e5ref does not have.
    """
    path = folder / "config.json"
    raw = read_json(path)
    activation = raw.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in ACTIVATIONS:
        raise CheckpointError(f"{path}: activation_function is {activation!r}, but e5ref has Tanh and Identity only")
    for name, ours in {"in_features": config.hidden_size, "use_residual": False}.items():
        if raw.get(name, ours) != ours:
            raise CheckpointError(f"{path}: {name} is {raw[name]!r}, but must be {ours!r}")
    for name in ("module_input_name", "module_output_name"):
        if raw.get(name) not in (None, "sentence_embedding"):
            raise CheckpointError(f"{path}: {name} is {raw[name]!r}, but e5ref has a Dense after pooling only")
    features, has_bias = raw.get("out_features"), raw.get("bias", True)
    if type(features) is not int or features < 1 or type(has_bias) is not bool:
        raise CheckpointError(f"{path}: must have out_features, a whole number, and bias, true or false")
    files, tensors = read_tensors(folder)
    shapes = {"linear.weight": (features, config.hidden_size), "linear.bias": (features,)}
    if not has_bias:
        del shapes["linear.bias"]
    if tensors.keys() != shapes.keys():
        raise CheckpointError(f"{folder}: holds {sorted(tensors)}, but by its config.json must hold {sorted(shapes)}")
    arrays = [_checked(tensors[name], name, shape, folder, dtype) for name, shape in shapes.items()]
    return files, ACTIVATIONS[activation](*arrays, *([] if has_bias else [np.zeros(features, dtype)]))


def _checked(stored: NDArray[Any], name: str, shape: tuple[int, ...], folder: Path, dtype: str) -> NDArray[Any]:
    """Check a stored tensor, and widen it to `dtype`, exactly; float32 as float32 stays the view that it is."""
    if stored.shape != shape:
        raise CheckpointError(
            f"{folder}: tensor {name!r} is {list(stored.shape)}, but by config.json it must be {list(shape)}"
        )
    if stored.dtype == np.int64:
        raise CheckpointError(f"{folder}: tensor {name!r} is stored as I64, but e5ref reads F32, F16 and BF16")
    if stored.dtype == np.uint16:
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    # A file may place tensors at any byte; those that are not where their dtype wants them are copied.
    array = np.require(stored.astype(dtype, copy=False), requirements="A")
    array.flags.writeable = False
    flat = array.reshape(-1)
    for start in range(0, flat.size, CHECK_ELEMENTS):
        if not np.isfinite(flat[start : start + CHECK_ELEMENTS]).all():
            raise CheckpointError(f"{folder}: tensor {name!r} holds NaN or infinity; fetch the weights anew")
    return array
