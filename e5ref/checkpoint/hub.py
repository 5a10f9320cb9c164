"""A name or a folder → verified local files."""

import difflib
import hashlib
import os
import tomllib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e5ref.checkpoint.config import CheckpointError

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
    "2_Dense/config.json",
    "2_Dense/model.safetensors",
]


def known_checkpoints() -> dict[str, dict[str, Any]]:
    """Return the table of known checkpoints: name → revision, sizes, prompts, licence."""
    return read_data("checkpoints.toml")


def read_data(name: str) -> dict[str, Any]:
    """Read one of the tables that travel with the package."""
    return tomllib.loads((weights_folder() / name).read_text(encoding="utf-8"))


def weights_folder() -> Path:
    """Return the folder of what travels with the package: beside it in a source tree, inside it once installed."""
    package = Path(__file__).parents[1]
    return next(folder for folder in (package / "weights", package.parent / "weights") if folder.is_dir())


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
