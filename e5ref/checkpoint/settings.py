"""How a checkpoint turns hidden states into a vector, as its sentence-transformers files say."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e5ref.checkpoint.config import BertConfig, CheckpointError, read_json
from e5ref.checkpoint.prompts import DOCUMENT_NAMES, E5_PROMPTS
from e5ref.files.lines import foreign_file

# The files that say how a text is prepared: what the bound on its tokens is called in each, and the settings that must
# be as ours, if they are there. sentence-transformers has the bound in its own file, under several older names too,
# and from version 6 on in the tokenizer's.
TEXT_SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "tokenizer_config.json": ("model_max_length", {"truncation_side": "right", "padding_side": "right"})
} | {
    f"sentence_{name}_config.json": (
        "max_seq_length",
        {
            "transformer_task": "feature-extraction",
            "tokenizer_args": {},
            "processor_kwargs": {},
        },
    )
    for name in ("xlnet", "xlm-roberta", "albert", "camembert", "distilbert", "roberta", "bert")
}

# The modules of sentence-transformers that e5ref runs, in this order.
MODULES = [("Transformer", "Pooling", *rest) for rest in ((), ("Normalize",), ("Dense",), ("Dense", "Normalize"))]


@dataclass(frozen=True)
class EmbeddingSettings:
    """How a checkpoint turns hidden states into a vector, as its sentence-transformers files say.

    Attributes:
        pooling: "mean" or "cls".
        normalize: whether vectors are scaled to unit L2 norm.
        max_length: the most tokens of a text, [CLS] and [SEP] counted.
        prompts: what to put before a text, by name ("query", "passage", …).
        default_prompt_name: the prompt that `encode` uses when none is asked for.
        dense: the folder, below the checkpoint's, of a Dense module between pooling and normalisation; None for none.
    """

    pooling: str
    normalize: bool
    max_length: int
    prompts: Mapping[str, str]
    default_prompt_name: str | None = None
    dense: str | None = None


def read_settings(folder: Path, config: BertConfig, prompts: Mapping[str, str] | None = None) -> EmbeddingSettings:
    """Read how a checkpoint folder pools, normalises and prompts.

    Without sentence-transformers' files (`modules.json`, …) it is E5's way: mean, unit L2 norm. Prompts are, first
    found first taken: `prompts`, from the table of known checkpoints; those in `config_sentence_transformers.json`;
    E5's if there is no such file. `config` bounds `max_length`.

    Raises:
        CheckpointError: a module or a way of pooling that e5ref does not have.
    """
    pooling, normalize, dense = "mean", True, None
    if (folder / "modules.json").exists():
        places = _read_modules(folder / "modules.json")
        pooling = _read_pooling(folder / places["Pooling"] / "config.json")
        normalize, dense = "Normalize" in places, places.get("Dense")
    written, default_prompt_name = _read_prompts(folder / "config_sentence_transformers.json")
    return EmbeddingSettings(
        pooling, normalize, _read_max_length(folder, config), dict(prompts or written), default_prompt_name, dense
    )


def _read_max_length(folder: Path, config: BertConfig) -> int:
    """Read the most tokens of a text, and refuse what would have a text prepared in another way than ours."""
    limit = min(512, config.max_tokens)
    lowercases = False
    for file, (key, ways) in TEXT_SETTINGS.items():
        path = folder / file
        if not path.exists():
            continue
        raw = read_json(path)
        for name, ours in ways.items():
            if raw.get(name, ours) != ours:
                raise CheckpointError(f"{path}: sets {name} to {raw[name]!r}, but e5ref has {ours!r} only")
        # A module may ask for lower case too. That changes nothing if the tokenizer has it, which comes first here.
        if raw.get("do_lower_case", False) and not lowercases and file != "tokenizer_config.json":
            raise CheckpointError(f"{path}: sets do_lower_case to True, but the tokenizer keeps capitals")
        lowercases = lowercases or bool(raw.get("do_lower_case"))
        value = raw.get(key)
        if value is not None and (type(value) not in (int, float) or value < 1):
            raise CheckpointError(f"{path}: {key} is {value!r}, but must be a number of tokens")
        # transformers writes a huge number if a tokenizer has no bound.
        if value is not None and (key == "max_seq_length" or value <= config.max_tokens):
            limit = int(min(value, config.max_tokens))
    return limit


def _read_prompts(path: Path) -> tuple[dict[str, str], str | None]:
    """Read the prompts and the name of the one that `encode` uses; E5's and none if there is no such file."""
    if not path.exists():
        return E5_PROMPTS, None
    raw = read_json(path)
    if raw.get("truncate_dim") is not None:
        raise CheckpointError(f"{path}: sets truncate_dim; remove it, and pass truncate_dim to encode")
    prompts, default = raw.get("prompts") or {}, raw.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values()):
        raise CheckpointError(f"{path}: prompts must be text by name; fetch the file anew")
    prompts = {"query": ""} | prompts
    if not any(name in prompts for name in DOCUMENT_NAMES):
        prompts["document"] = ""
    if default is not None and default not in prompts:
        raise CheckpointError(f"{path}: default_prompt_name is {default!r}, but the prompts are {sorted(prompts)}")
    return prompts, default


def _read_modules(path: Path) -> dict[str, str]:
    """Read `modules.json`: module → its folder, in the order in which they run."""
    try:
        modules = [(module["type"], module["path"]) for module in json.loads(path.read_text(encoding="utf-8"))]
        kinds = [re.sub(r"^sentence_transformers\..*\.", "", kind) for kind, _ in modules]
        places = [Path(place) for _, place in modules]
    except (ValueError, KeyError, TypeError, RecursionError):
        reason = foreign_file(path) or "is not a list of modules with 'type' and 'path'; fetch the file anew"
        raise CheckpointError(f"{path}: {reason}") from None
    if tuple(kinds) not in MODULES or places[0] != Path():
        raise CheckpointError(
            f"{path}: has the modules {', '.join(kinds) or 'none'}; e5ref runs sentence-transformers' own Transformer, "
            "at the top of the folder, then Pooling, and perhaps one Dense and then Normalize"
        )
    return dict(zip(kinds, (place for _, place in modules), strict=True))


def _read_pooling(path: Path) -> str:
    """Read a Pooling module's `config.json`, in the form before or from sentence-transformers 6 on."""
    raw = read_json(path)
    modes = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    chosen = [modes.get(key, key) for key, value in raw.items() if key.startswith("pooling_mode_") and value is True]
    if "pooling_mode" in raw:
        chosen = raw["pooling_mode"] if isinstance(raw["pooling_mode"], list) else [raw["pooling_mode"]]
    if len(chosen) != 1 or chosen[0] not in modes.values() or not raw.get("include_prompt", True):
        raise CheckpointError(f"{path}: pools by {chosen}, but e5ref pools by mean or cls alone, the prompt included")
    return str(chosen[0])
