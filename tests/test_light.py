"""The base install is light: what an import brings in, what it costs, and that a folder opens no socket."""

import re
import subprocess
import sys
import time
from importlib import metadata

import pytest

from e5ref.extras import install_command

CORE = {"numpy", "safetensors", "tokenizers", "huggingface-hub", "threadpoolctl", "tqdm", "click"}

# A finder in front of all others that knows no heavy package, as in an environment without them.
BLOCK_IMPORTS = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        heavy = {"jax", "jaxlib", "torch", "transformers", "sentence_transformers", "scipy", "sklearn"}
        if name.split(".")[0] in heavy:
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Block())
"""

BLOCK_SOCKETS = """
import socket
def refuse(*args, **kwargs):
    raise AssertionError("a socket was opened")
socket.socket = socket.create_connection = socket.getaddrinfo = refuse
"""


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_declared_dependencies_are_the_core():
    required = [entry for entry in metadata.requires("e5ref") if "extra ==" not in entry]
    assert {re.match(r"[\w-]+", entry)[0] for entry in required} == CORE


def test_everything_works_without_heavy_packages(minilm):
    code = f"""
import e5ref
model = e5ref.load({str(minilm)!r})
scores = model.similarity(model.encode_query(["cat"]), model.encode_document(["dog", "feline"]))
assert scores[0, 1] > scores[0, 0], scores
print("works")
"""
    assert run(BLOCK_IMPORTS + code) == "works\n"


def test_the_block_blocks():
    with pytest.raises(subprocess.CalledProcessError):
        run(BLOCK_IMPORTS + "import torch")


def test_a_folder_opens_no_socket(minilm):
    assert run(BLOCK_SOCKETS + f"import e5ref; print(e5ref.load({str(minilm)!r}).encode('a').shape)") == "(384,)\n"


def test_the_command_line_opens_no_socket_for_a_folder(minilm):
    code = (
        f"import sys; sys.argv = ['e5ref', 'embed', 'cat', '--model', {str(minilm)!r}]; import e5ref.cli as c; c.main()"
    )
    assert run(BLOCK_SOCKETS + code).startswith('{"text": "cat", "embedding": [')


def test_import_brings_in_no_framework():
    loaded = run("import sys, e5ref; print(*{name.split('.')[0] for name in sys.modules})").split()
    assert not {"jax", "torch", "transformers", "scipy", "huggingface_hub", "click"} & set(loaded)


def test_evaluation_brings_in_nothing_until_it_runs():
    loaded = run(
        "import sys, e5ref.evaluation, e5ref.cli; print(*{name.split('.')[0] for name in sys.modules})"
    ).split()
    assert not {"jax", "torch", "transformers", "scipy", "pytrec_eval", "mteb"} & set(loaded)


def test_the_mteb_adapter_without_mteb_says_what_to_install():
    code = """
import importlib.util
importlib.util.find_spec = lambda name, *rest: None
try:
    import e5ref.evaluation.mteb
except ModuleNotFoundError as error:
    print(error)
"""
    assert run(code) == f"e5ref.evaluation.mteb needs mteb: {install_command('mteb')}\n"


def test_import_is_quick():
    """e5ref's own files take next to no time; the bound is in terms of NumPy's import, not in seconds."""

    def seconds(code: str) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            run(code)
            times.append(time.perf_counter() - start)
        return min(times)

    empty, numpy, ours = (seconds(code) for code in ("", "import numpy", "import e5ref"))
    assert ours - numpy < 3 * (numpy - empty)
