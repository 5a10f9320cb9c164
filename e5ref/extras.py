"""The extras: what needs one says how to install it, as e5ref itself was installed."""

import importlib.metadata
import importlib.util
import json
import shlex
from pathlib import Path
from typing import Any


def require(extra: str, what: str, *packages: str) -> None:
    """Check that packages, named as in pip, are installed: `what` needs them, and `extra` brings them.

    Raises:
        ModuleNotFoundError: one of them is not; the message is the `pip install` that brings it.
    """
    missing = [package for package in packages if importlib.util.find_spec(package.replace("-", "_")) is None]
    if missing:
        raise ModuleNotFoundError(f"{what} needs {' and '.join(missing)}: {install_command(extra)}")


def install_command(extra: str) -> str:
    """Return the command that installs an extra beside this e5ref: from the same checkout, repository or file."""
    from urllib.parse import urlsplit
    from urllib.request import url2pathname  # which brings in Python's HTTP client

    origin = _origin()
    url = origin.get("url", "")
    checkout = Path(url2pathname(urlsplit(url).path)) if "dir_info" in origin else Path(__file__).parents[1]
    if "vcs_info" in origin:
        wanted = f"e5ref[{extra}] @ {origin['vcs_info']['vcs']}+{url}@{origin['vcs_info']['commit_id']}"
    elif "archive_info" in origin:
        wanted = f"e5ref[{extra}] @ {url}"
    elif (checkout / "pyproject.toml").is_file():
        wanted = f"{'.' if checkout == Path.cwd() else checkout}[{extra}]"
    else:
        wanted = f".[{extra}]"
    editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
    where = "" if wanted[0] != "." or checkout == Path.cwd() else " in a checkout of e5ref"
    return f"pip install {editable}{shlex.quote(wanted)}{where}"


def _origin() -> dict[str, Any]:
    """Read where pip installed e5ref from (PEP 610); nothing if from a package index, or if it is not installed."""
    try:
        return json.loads(importlib.metadata.distribution("e5ref").read_text("direct_url.json") or "{}")
    except importlib.metadata.PackageNotFoundError:
        return {}
