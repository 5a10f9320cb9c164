"""A stand-in for the Hugging Face hub on this machine: it answers what `huggingface_hub` asks of a model, no more."""

import hashlib
import json
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

import e5ref
from e5ref.checkpoint.hub import DEFAULT_CHECKPOINT

API = re.compile(r"/api/models/(.+?)(?:/(revision|tree)/([^/]+))?")
FILE = re.compile(r"/(.+?)/resolve/([^/]+)/(.+)")
LFS = (".safetensors", ".bin", ".h5", ".onnx")  # kept as large files, known by their SHA-256

# The name that e5ref takes by itself, and the commit that it is pinned to.
KNOWN = DEFAULT_CHECKPOINT
PINNED = e5ref.known_checkpoints()[KNOWN]["revision"]


@dataclass
class Repo:
    """A model's repository: commit → path → content, and branch or tag → commit."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False  # everybody may see what there is; the files are for those who gave their consent


class Hub(ThreadingHTTPServer):
    """Serves repositories on a free port for as long as the `with` block runs.

    Attributes:
        repos: name → repository.
        requests: (method, path) of all requests so far.
        breaks: file name → how many more times its download breaks off half way.
        troubled: whether it answers "503 Service Unavailable" to everything.
    """

    request_queue_size = 32  # huggingface_hub fetches 8 files at a time

    def __init__(self, repos: dict[str, Repo]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos = repos
        self.requests: list[tuple[str, str]] = []
        self.breaks: Counter[str] = Counter()
        self.troubled = False

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def downloads(self) -> list[str]:
        """Return the paths of the files that were asked for with GET, each as often as it was."""
        files = [FILE.fullmatch(path) for method, path in self.requests if method == "GET"]
        return sorted(file[3] for file in files if file)


class _RefusalError(Exception):
    """An answer that names an error in the way that `huggingface_hub` looks for."""

    def __init__(self, status: int, code: str) -> None:
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append((self.command, unquote(path)))
        try:
            if self.server.troubled:
                raise _RefusalError(503, "")
            if match := API.fullmatch(path):
                self.answer_api(*match.groups())
            elif match := FILE.fullmatch(path):
                self.answer_file(*map(unquote, match.groups()))
            else:
                raise _RefusalError(404, "EntryNotFound")
        except _RefusalError as refusal:
            self.answer(refusal.status, {"X-Error-Code": refusal.code})

    do_HEAD = do_GET  # noqa: N815  (http.server looks for this name)

    def answer_api(self, name: str, what: str | None, revision: str | None) -> None:
        repo, commit = self.find(name, unquote(revision or "main"))
        files = repo.commits[commit]
        if what == "tree":
            listing: object = [describe(path, content) for path, content in files.items()]
        else:
            listing = {"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in files]}
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(listing).encode())

    def answer_file(self, name: str, revision: str, path: str) -> None:
        repo, commit = self.find(name, revision)
        if repo.gated:
            raise _RefusalError(403, "GatedRepo")
        if path not in repo.commits[commit]:
            raise _RefusalError(404, "EntryNotFound")
        content = repo.commits[commit][path]
        entry = describe(path, content)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{entry["oid"]}"'}
        if "lfs" in entry:
            headers |= {"X-Linked-Etag": f'"{entry["lfs"]["oid"]}"', "X-Linked-Size": str(len(content))}
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        end = len(content)
        if self.command == "GET" and self.server.breaks[path]:
            self.server.breaks[path] -= 1
            end //= 2
        self.answer(206 if start else 200, headers, content[start:], content[start:end])

    def find(self, name: str, revision: str) -> tuple[Repo, str]:
        repo = self.server.repos.get(name)
        if repo is None:
            raise _RefusalError(404, "RepoNotFound")
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            raise _RefusalError(404, "RevisionNotFound")
        return repo, commit

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"", sent: bytes | None = None) -> None:
        """Send `body`, or of a body that breaks off the part `sent`. The connection closes after it, as in HTTP/1.0."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body if sent is None else sent)

    def log_message(self, *_: object) -> None:
        """Keep standard error for the tests."""


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def describe(path: str, content: bytes) -> dict:
    """Return a file's entry in the listing of a repository; git holds a large file's hash and size in its place."""
    entry = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
    if path.endswith(LFS):
        sha256 = hashlib.sha256(content).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n".encode()
        lfs = {"oid": sha256, "size": len(content), "pointerSize": len(pointer)}
        entry |= {"oid": git_hash(pointer), "lfs": lfs}
    return entry


def git_hash(content: bytes) -> str:
    """Return the SHA-1 under which git keeps a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
