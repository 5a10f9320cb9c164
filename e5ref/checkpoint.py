"""A name or a folder → verified local files → the parameter tree."""

import difflib
import hashlib
import json
import os
import re
import tomllib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e5ref.config import BertConfig, CheckpointError, read_config, read_json
from e5ref.files import foreign_file, map_tensors
from e5ref.params import HEADS, NAME_PREFIXES, UNUSED_NAMES, BertParams, build_params, leaves, stored_names
from e5ref.prompts import DOCUMENT_NAMES, E5_PROMPTS

DEFAULT_CHECKPOINT = "intfloat/e5-small-v2"
BUNDLED_CHECKPOINT = "e5ref-nano"  # a folder of weights/, so it comes with every installation

# All that e5ref reads of a checkpoint, and so all that it fetches from the hub.
FILES = [
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "modules.json",
    "sentence_*_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
]

# The files that say how a text is prepared: what the bound on its tokens is called in each, and the settings that must
# be as ours, if they are there. sentence-transformers has the bound in its own file, under several older names too,
# and from version 6 on in the tokenizer's.
TEXT_SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "tokenizer_config.json": ("model_max_length", {"truncation_side": "right", "padding_side": "right"})
} | {
    f"sentence_{name}_config.json": (
        "max_seq_length",
        {
            "do_lower_case": False,
            "transformer_task": "feature-extraction",
            "tokenizer_args": {},
            "processor_kwargs": {},
        },
    )
    for name in ("xlnet", "xlm-roberta", "albert", "camembert", "distilbert", "roberta", "bert")
}

# How safetensors names what a tensor is made of, and how NumPy reads it. NumPy has no bfloat16: its two bytes are
# the upper half of a float32. Only the position ids, which nothing uses, are whole numbers.
STORED_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8"}

CHECK_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class EmbeddingSettings:
    """How a checkpoint turns hidden states into a vector, as its sentence-transformers files say.

    Attributes:
        pooling: "mean" or "cls".
        normalize: whether vectors are scaled to unit L2 norm.
        max_length: the most tokens of a text, [CLS] and [SEP] counted.
        prompts: what to put before a text, by name ("query", "passage", …).
        default_prompt_name: the prompt that `encode` uses when none is asked for.
    """

    pooling: str
    normalize: bool
    max_length: int
    prompts: Mapping[str, str]
    default_prompt_name: str | None = None


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint as read from disk.

    Attributes:
        name: the hub name or folder that was asked for.
        folder: where its files are.
        revision: the hub's commit; None for a folder.
        config: the encoder's sizes and constants.
        settings: pooling, normalisation, prompts.
        params: the weights, read-only; float32 weights stay on disk and are mapped into memory.
        weight_files: the safetensors files.
    """

    name: str
    folder: Path
    revision: str | None
    config: BertConfig
    settings: EmbeddingSettings
    params: BertParams = field(repr=False)
    weight_files: tuple[Path, ...]

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights' file, in hexadecimal; of several files, that of their hashes one below another."""
        digests = [file_sha256(path) for path in self.weight_files]
        return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def known_checkpoints() -> dict[str, dict[str, Any]]:
    """Return the table of known checkpoints: name → revision, sizes, prompts, licence."""
    return read_data("checkpoints.toml")


def read_data(name: str) -> dict[str, Any]:
    """Read one of the tables that travel with the package."""
    return tomllib.loads((weights_folder() / name).read_text(encoding="utf-8"))


def weights_folder() -> Path:
    """Return the folder of what travels with the package: beside it in a source tree, inside it once installed."""
    package = Path(__file__).parent
    return next(folder for folder in (package / "weights", package.parent / "weights") if folder.is_dir())


def read_checkpoint(
    name_or_folder: str | Path = DEFAULT_CHECKPOINT, *, revision: str | None = None, dtype: str = "float32"
) -> Checkpoint:
    """Read a checkpoint: find its files, check them, and build the parameter tree.

    Args:
        name_or_folder: a hub name such as "intfloat/e5-small-v2", or "e5ref-nano", the small model that comes with
            e5ref, or a folder; for the last two no socket is opened.
        revision: the hub's commit, tag or branch; None takes the one that e5ref pins for a known name, and else
            `main`, with a warning that names the commit. Anything but a commit is resolved to one first.
        dtype: "float32" or "float64", what the weights are computed in.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: a file is missing, damaged, or not what a BERT-style encoder needs; or the hub cannot give it.
        ValueError: an unknown dtype, or a revision for a folder.
        TypeError: neither a name nor a folder.
    """
    if not isinstance(name_or_folder, str | Path):
        raise TypeError(f"give the name or the folder of a checkpoint, not {type(name_or_folder).__name__}")
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype is {dtype!r}, but must be 'float32' or 'float64'")
    name = str(name_or_folder)
    folder, revision = locate(name_or_folder, revision)
    config = read_config(folder / "config.json")
    settings = read_settings(folder, config, known_checkpoints().get(name, {}).get("prompts"))
    files, tensors = read_tensors(folder)
    params = _params_from_tensors(tensors, config, folder, dtype)
    return Checkpoint(name, folder, revision, config, settings, params, files)


def locate(name_or_folder: str | Path, revision: str | None = None) -> tuple[Path, str | None]:
    """Find the folder that holds a checkpoint's files, fetching them from the hub where they are not here yet.

    Args:
        name_or_folder: a folder, a hub name, or "e5ref-nano"; a Path is always a folder.
        revision: as in `read_checkpoint`.

    Returns:
        The folder, and the hub's commit (None for a folder).

    Raises:
        CheckpointError: there is no such folder, the hub cannot be reached or has no such thing, or a file in the
            local cache is not what the hub gave.
        ValueError: a revision for a folder or for e5ref-nano.
    """
    name = str(name_or_folder)
    folder = Path(os.path.expanduser(name))
    if name_or_folder == BUNDLED_CHECKPOINT and not folder.exists():
        if revision is not None:
            raise ValueError(f"{name} comes with e5ref, and has no revisions; leave revision out")
        return weights_folder() / name, None
    if name and folder.is_dir():
        if revision is not None:
            raise ValueError(f"{name} is a folder, which has no revisions; leave revision out")
        return folder, None
    if folder.is_file():
        raise CheckpointError(f"{name} is a file; give the folder that holds config.json and model.safetensors")
    if isinstance(name_or_folder, Path):
        raise CheckpointError(f"{name}: no such folder")
    known = known_checkpoints()
    for whole in known:
        if whole.endswith(f"/{name}"):
            raise CheckpointError(f"{name}: no such folder; did you mean {whole!r}?")
    pinned = known.get(name, {}).get("revision")
    folder = _fetch(name, revision or pinned or "main")
    commit = folder.name  # the hub's cache names its folders so
    if commit not in (revision, pinned):
        warnings.warn(
            f"{name} at {revision or 'main'} is commit {commit} now; pass revision={commit!r} to keep it", stacklevel=2
        )
    for pattern in FILES:
        for path in folder.glob(pattern):
            _verify_cached(path, name)
    return folder, commit


def is_on_this_machine(name: str, row: Mapping[str, Any]) -> bool:
    """Tell whether a checkpoint of the table comes with e5ref, or is in the hub's cache at the row's revision."""
    from huggingface_hub import try_to_load_from_cache

    def has(file: str) -> bool:
        return isinstance(try_to_load_from_cache(name, file, revision=row.get("revision")), str)

    return "bundled" in row or (
        has("config.json") and (has("model.safetensors") or has("model.safetensors.index.json"))
    )


def _did_you_mean(name: str) -> str:
    """Return a question in brackets that names the known checkpoint whose name looks like `name`; "" if none does."""
    known = known_checkpoints()
    by_last_part = {whole.rpartition("/")[2]: whole for whole in known}
    last_part = name.rpartition("/")[2].lower().replace("_", "-")
    near = [] if name in known else difflib.get_close_matches(last_part, by_last_part, 1, cutoff=0.85)
    return f" (did you mean {by_last_part[near[0]]!r}?)" if near else ""


def _fetch(name: str, revision: str) -> Path:
    """Return the hub cache's folder of a checkpoint at a revision, downloading what is missing."""
    # Imported here, because a folder need not wait a quarter of a second for it.
    from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is its re-export of httpx's
        CachedRepoTreeNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def listed() -> bool:
        """Tell whether the cache knows what files there are; after another program it may hold a part without that."""
        try:
            get_cached_repo_tree(name, revision=revision)
        except CachedRepoTreeNotFoundError:
            return False
        return True

    def cached() -> Path | None:
        try:
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=FILES, local_files_only=True))
        except LocalEntryNotFoundError:
            return None
        # Another program may have fetched a part of the files only.
        return folder if (folder / "config.json").exists() and any(folder.glob("model*.safetensors")) else None

    absent = f"{name}: no such folder{_did_you_mean(name)}"
    mend = (
        f"check the network; or run `hf download {name} --revision {revision} --local-dir FOLDER` on a machine that "
        f"reaches the hub, bring FOLDER here and pass its path; or try e5ref with {BUNDLED_CHECKPOINT!r}, the small "
        "model that it brings along"
    )
    try:
        # A commit never changes: what is here needs no look at the hub.
        if len(revision) == 40 and listed() and (folder := cached()):
            return folder
        # Asked first because it answers at once; the download would try for 20 seconds to reach a hub that is away.
        try:
            HfApi().model_info(name, revision=revision, timeout=10)
        except (HTTPError, OfflineModeIsEnabled) as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                raise  # the hub's own answer, told below
            if folder := cached():
                if name not in known_checkpoints() and not listed():
                    warnings.warn(
                        f"another program fetched {name}, perhaps not all of it (how to pool, say); load it once with "
                        "the hub in reach",
                        stacklevel=2,
                    )
                return folder
            raise CheckpointError(
                f"{absent}, nor is that checkpoint (at {revision}) in the hub's cache here, and the hub cannot be "
                f"reached; {mend}"
            ) from None
        # By the revision's own name, so that the cache notes which commit it is, for when the hub is away.
        return Path(snapshot_download(name, revision=revision, allow_patterns=FILES))
    except HFValidationError:
        raise CheckpointError(f"{absent}, and not a hub name such as {DEFAULT_CHECKPOINT!r}") from None
    except RevisionNotFoundError:
        raise CheckpointError(
            f"{name} has no revision {revision!r} on the hub; look it up on the model's page"
        ) from None
    except GatedRepoError:
        raise CheckpointError(f"{name} asks for consent on the hub: give it there, then run `hf auth login`") from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"{absent}, and the hub has no such checkpoint (or wants a login: run `hf auth login`)"
        ) from None
    except (HTTPError, OSError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{name} at {revision} could not be fetched from the hub ({reason}); {mend}") from None


def _verify_cached(path: Path, name: str) -> None:
    """Compare a file of the hub's cache with the hash that it is stored under: SHA-256, or git's for small files."""
    if not path.is_symlink():
        return
    # One link further only: newer versions of huggingface_hub link the blob on to a store with names of its own.
    expected = path.readlink().name
    blob = path.resolve()
    if len(expected) == 64:
        actual = file_sha256(blob)
    elif len(expected) == 40:
        content = blob.read_bytes()
        actual = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    else:
        return
    if actual != expected:
        raise CheckpointError(
            f"{path.name} of {name} is cut short or altered: its hash is {actual[:12]}…, the hub's was "
            f"{expected[:12]}…; delete {blob} and run again to fetch it anew"
        )


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_settings(folder: Path, config: BertConfig, prompts: Mapping[str, str] | None = None) -> EmbeddingSettings:
    """Read how a checkpoint folder pools, normalises and prompts.

    Without sentence-transformers' files (`modules.json`, …) it is E5's way: mean, unit L2 norm. Prompts are, first
    found first taken: `prompts`, those in `config_sentence_transformers.json`, E5's if there is no such file.

    Args:
        folder: the checkpoint.
        config: its configuration, which bounds `max_length`.
        prompts: those of the table of known checkpoints, if it is one of them.

    Raises:
        CheckpointError: a module or a way of pooling that e5ref does not have.
    """
    pooling, normalize = "mean", True
    if (folder / "modules.json").exists():
        pooling_folder, normalize = _read_modules(folder / "modules.json")
        pooling = _read_pooling(folder / pooling_folder / "config.json")
    written, default_prompt_name = _read_prompts(folder / "config_sentence_transformers.json")
    return EmbeddingSettings(
        pooling, normalize, _read_max_length(folder, config), dict(prompts or written), default_prompt_name
    )


def _read_max_length(folder: Path, config: BertConfig) -> int:
    """Read the most tokens of a text, and refuse what would have a text prepared in another way than ours."""
    limit = min(512, config.max_tokens)
    for file, (key, ways) in TEXT_SETTINGS.items():
        path = folder / file
        if not path.exists():
            continue
        raw = read_json(path)
        for name, ours in ways.items():
            if raw.get(name, ours) != ours:
                raise CheckpointError(f"{path}: sets {name} to {raw[name]!r}, but e5ref has {ours!r} only")
        value = raw.get(key)
        if value is not None and (type(value) not in (int, float) or value < 1):
            raise CheckpointError(f"{path}: {key} is {value!r}, but must be a number of tokens")
        # transformers writes a huge number where a tokenizer has no bound.
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


def _read_modules(path: Path) -> tuple[str, bool]:
    """Read `modules.json`: the folder of the Pooling module, and whether a Normalize module follows."""
    try:
        modules = [(module["type"], module["path"]) for module in json.loads(path.read_text(encoding="utf-8"))]
        kinds = [re.sub(r"^sentence_transformers\..*\.", "", kind) for kind, _ in modules]
        places = [Path(place) for _, place in modules]
    except (ValueError, KeyError, TypeError, RecursionError):
        reason = foreign_file(path) or "is not a list of modules with 'type' and 'path'; fetch the file anew"
        raise CheckpointError(f"{path}: {reason}") from None
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]) or places[0] != Path():
        raise CheckpointError(
            f"{path}: has the modules {', '.join(kinds) or 'none'}; e5ref runs sentence-transformers' own Transformer, "
            "at the top of the folder, then Pooling, and perhaps Normalize"
        )
    return modules[1][1], len(kinds) == 3


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


def read_tensors(folder: Path) -> tuple[tuple[Path, ...], dict[str, NDArray[Any]]]:
    """Map a checkpoint's tensors into memory.

    Args:
        folder: holds `model.safetensors`, or several files and their `model.safetensors.index.json`.

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


def _params_from_tensors(
    tensors: Mapping[str, NDArray[Any]], config: BertConfig, folder: Path, dtype: str
) -> BertParams:
    """Put a checkpoint's tensors into the tree, each checked."""
    prefix = next((p for p in NAME_PREFIXES if f"{p}embeddings.word_embeddings.weight" in tensors), "")
    layers = min(config.num_hidden_layers, len(tensors))  # whatever config.json says, there are no more
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
        name = found[0]
        stored = tensors[name]
        if stored.shape != shape:
            raise CheckpointError(
                f"{folder}: tensor {name!r} is {list(stored.shape)}, but by config.json it must be {list(shape)}"
            )
        if stored.dtype == np.int64:
            raise CheckpointError(f"{folder}: tensor {name!r} is stored as I64, but e5ref reads F32, F16 and BF16")
        array = _to_float(stored, dtype)
        flat = array.reshape(-1)
        for start in range(0, flat.size, CHECK_ELEMENTS):
            if not np.isfinite(flat[start : start + CHECK_ELEMENTS]).all():
                raise CheckpointError(f"{folder}: tensor {name!r} holds NaN or infinity; fetch the weights anew")
        return array

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


def _to_float(stored: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Widen a stored tensor to `dtype`, exactly; a float32 tensor as float32 stays the view that it is."""
    if stored.dtype == np.uint16:
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    # A file may place tensors at any byte; those that are not where their dtype wants them are copied.
    array = np.require(stored.astype(dtype, copy=False), requirements="A")
    array.flags.writeable = False
    return array
