"""Files that are written whole or not at all."""

import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ModuleNotFoundError:  # on Windows
    fcntl = None  # type: ignore[assignment]


# Files that this process is writing under names of their own.
_parts: set[Path] = set()


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside `path`, and give it that name once all is written; a failure leaves `path` as it was.

    What an earlier process left that was killed while it wrote `path` is removed.
    """
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        _remove_if_abandoned(part)
    part, file = _new_part(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # else a machine that fails may keep the name and lose what it stands for
            if fcntl is not None:  # while it is locked
                part.replace(path)
        if fcntl is None:  # Windows does not rename a file that is open
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)
        _parts.discard(part)


def remove_parts() -> None:
    """Remove what `written_whole` has begun: for a process that ends on the spot."""
    for part in list(_parts):
        with suppress(OSError):  # on Windows it is open, and stays
            part.unlink()


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Lock a folder by a file, which is made, until the end or until the process ends in whatever way; not on Windows.

    Raises:
        ValueError: another process holds it, and this one is not to `wait`.
    """
    with path.open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise ValueError(f"{path.parent}: another e5ref writes there; wait for it, or stop it") from None
        yield


def _new_part(path: Path) -> tuple[Path, BinaryIO]:
    """Open a new file beside `path`, locked while it is open; it is also unlocked if the process is killed."""
    while True:
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        file = part.open("xb")
        _parts.add(part)
        if fcntl is None:
            return part, file
        fcntl.flock(file, fcntl.LOCK_EX)
        if part.exists():
            return part, file
        file.close()  # before it was locked, another process took it for abandoned
        _parts.discard(part)


def _remove_if_abandoned(part: Path) -> None:
    """Remove a part that no process holds locked."""
    if fcntl is None:
        return
    with suppress(OSError), part.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.unlink()
