"""A tree of PyTorch modules, and how a text is put through it: of transformers, sentence-transformers, or anybody's."""

import copy
import importlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from e5ref.extras import require
from e5ref.parity.runs.peers import quiet

Inputs = Mapping[str, Any]  # "input_ids" [1, T], and what else the module takes; tensors


@dataclass(frozen=True)
class Tree:
    """A model of PyTorch modules.

    Attributes:
        build: dtype → the module with parameters of that dtype, in evaluation mode.
        inputs: a text → what the module takes.
        call: puts the inputs into the module.
        strings: token ids → the tokens as strings; None if nobody knows.
        facts: what a run's provenance says of the model.
    """

    build: Callable[[str], Any]
    inputs: Callable[[str], Inputs]
    call: Callable[[Any, Inputs], Any] = lambda module, inputs: module(**inputs)
    strings: Callable[[Sequence[int]], list[str]] | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


def cast(module: Any, dtype: str) -> Any:
    """Give all parameters a dtype, in place.

    Buffers stay in float32, or float64 with the parameters: transformers keeps what it computes positions from so.
    """
    torch = importlib.import_module("torch")
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(getattr(torch, dtype))
    buffers = torch.float64 if dtype == "float64" else torch.float32
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(buffers)
    return module.eval()


def tree_of(module: Any, inputs: Callable[[str], Inputs], **attributes: Any) -> Tree:
    """Make a tree of a module at hand, which stays as it is.

    Its buffers are as exact as they are: build it in float64, or its rotary positions are those of float32.

    Args:
        module: a `torch.nn.Module`.
        inputs: a text → what the module takes, with "input_ids" [1, T].
        attributes: of `Tree`.
    """
    return Tree(lambda dtype: cast(copy.deepcopy(module), dtype), inputs, **attributes)


def open_tree(folder: str | Path) -> Tree:
    """Open a folder as sentence-transformers does, if it has modules.json, or as transformers' AutoModel does.

    Raises:
        ModuleNotFoundError: torch, transformers or sentence-transformers is not installed.
        ValueError: the folder does not exist, or holds no model that they can load.
    """
    folder = Path(folder)
    if not (folder / "config.json").exists() and not (folder / "modules.json").exists():
        raise ValueError(f"{folder}: holds no model; give a folder with config.json, or modules.json")
    require("parity", "backend 'modules'", "torch", "transformers", "sentence-transformers")
    open_folder = _open_sentence_transformer if (folder / "modules.json").exists() else _open_transformer
    return open_folder(folder)


def _open_sentence_transformer(folder: Path) -> Tree:
    torch, package = (importlib.import_module(name) for name in ("torch", "sentence_transformers"))

    def build(dtype: str) -> Any:
        options = {"dtype": getattr(torch, dtype)}
        model = _loaded(
            folder,
            partial(
                package.SentenceTransformer, str(folder), device="cpu", local_files_only=True, model_kwargs=options
            ),
        )
        _without_pooler(model[0].auto_model)
        return cast(model, dtype)

    model = build("float32")
    names = ("torch", "transformers", "sentence-transformers")
    return Tree(
        build,
        lambda text: model.preprocess([text]),
        # The modules add what they make to what they are given.
        lambda module, inputs: module(dict(inputs)),
        model.tokenizer.convert_ids_to_tokens,
        {"backend": "sentence-transformers modules", "model": str(folder), **_versions(names)},
    )


def _open_transformer(folder: Path) -> Tree:
    torch, transformers = (importlib.import_module(name) for name in ("torch", "transformers"))
    config = _loaded(folder, partial(transformers.AutoConfig.from_pretrained, folder, local_files_only=True))
    # Of a T5, the encoder.
    kind = transformers.AutoModelForTextEncoding if config.is_encoder_decoder else transformers.AutoModel

    def build(dtype: str) -> Any:
        load = partial(kind.from_pretrained, folder, dtype=getattr(torch, dtype), local_files_only=True)
        model = _loaded(folder, load)
        _without_pooler(model)
        return cast(model, dtype)

    tokenizer = _loaded(folder, partial(transformers.AutoTokenizer.from_pretrained, folder, local_files_only=True))
    return Tree(
        build,
        lambda text: tokenizer([text], truncation=True, return_tensors="pt"),
        strings=tokenizer.convert_ids_to_tokens,
        facts={"backend": "transformers modules", "model": str(folder), **_versions(("torch", "transformers"))},
    )


def _without_pooler(network: Any) -> None:
    """Leave out the layer behind [CLS] that no embedding model uses."""
    if getattr(network, "pooler", None) is not None:
        network.pooler = None


def _loaded(folder: Path, load: Callable[[], Any]) -> Any:
    """Load quietly, and say in one sentence why it failed."""
    try:
        with quiet():
            return load()
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ValueError(f"{folder}: cannot be loaded ({' '.join(str(error).split())[:200]})") from None


def _versions(names: Sequence[str]) -> dict[str, str]:
    return {f"{name.replace('-', '_')}_version": importlib.metadata.version(name) for name in names}
