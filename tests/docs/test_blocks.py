"""Every command and every piece of Python that README and docs show is run, against a hub on this machine."""

import gzip
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.docs.pages import LESSONS, PAGES, ROOT, name
from tests.parity.modules.models import write_model
from tests.tools.checkpoints import write_random_bert
from tests.tools.hub import KNOWN, PINNED, Hub, Repo, files_of

BLOCKS = [
    pytest.param(language, block, id=f"{name(page)}:{text[: match.start()].count(chr(10)) + 2}")
    for page in PAGES
    for text in [page.read_text(encoding="utf-8")]
    for match in re.finditer(r"^```(bash|python)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for language, block in [match.groups()]
    if language == "bash" or page not in LESSONS
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """What a reader's shell has: e5ref installed, and a hub that gives a small checkpoint for the known name."""
    folder = write_random_bert(tmp_path_factory.mktemp("docs") / "model")
    with Hub({KNOWN: Repo({PINNED: files_of(folder)}, {"main": PINNED})}) as hub:
        yield os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path_factory.mktemp("home")),
            "HF_HUB_OFFLINE": "0",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }


# What blocks of docs/run/corpus.md use, and neither e5ref nor its tests need.
OTHERS = (
    "bertopic",
    "chromadb",
    "duckdb",
    "faiss",
    "keybert",
    "lance",
    "langchain_core",
    "llama_index",
    "polars",
    "ray",
)


def prepare_corpus(folder: Path, language: str, environment: dict[str, str]) -> None:
    """Write the files that docs/run/corpus.md speaks of; for Python also the vectors that a command before has made."""
    rows = [("p1", "Leaves turn light into sugar.", "en"), ("p2", "Cats hunt mice at night.", "en")]
    table = pa.table({name: [row[i] for row in rows] for i, name in enumerate(("id", "text", "lang"))})
    pq.write_table(table, folder / "passages.parquet")
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "how do plants eat"}\n')
    (folder / "crawl").mkdir()
    lines = "".join(json.dumps({"url": row[0], "body": row[1], "title": "", "lang": row[2]}) + "\n" for row in rows)
    (folder / "crawl" / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    if language == "python":
        command = ["e5ref", *"embed -i passages.parquet -o vectors/ --prompt passage --keep lang".split()]
        subprocess.run(command, cwd=folder, env=environment, check=True)


@pytest.mark.slow
@pytest.mark.parametrize(("language", "block"), BLOCKS)
def test_block(language, block, environment, tmp_path):
    folder = tmp_path
    for package in OTHERS:
        if f"import {package}" in block or f"from {package}" in block or f"--{package}" in block:
            pytest.importorskip(package, reason=f"{package}, which a page shows, is not installed")
    if any(name in block for name in ("passages.parquet", "crawl/", "vectors/")):
        prepare_corpus(tmp_path, language, environment)
    if "modernbert/" in block:
        write_model("modernbert", tmp_path / "modernbert")
    if "pip install -e" in block:
        pytest.skip("this is the command that runs these tests")
    if "pip install ." in block:  # installed as shown, beside what runs the tests, without what it needs from afar
        install = "pip install --quiet --no-deps --no-build-isolation --target installed"
        block = block.replace("pip install .", f"{install} {ROOT}").replace("&& ", "&& PYTHONPATH=installed ")
    if "e5ref warm-up" in block:  # fewer programs to compile than the 64 tokens of the hub's want
        short = write_random_bert(tmp_path / "short", max_position_embeddings=4, num_hidden_layers=1)
        block = block.replace("e5ref warm-up", f"e5ref warm-up --model {short}")
    block = block.replace(" --model base --model large", "")  # test_cli.py gives several
    # test_bench.py runs these two.
    block = block.replace(" --against transformers,sentence-transformers", "")
    block = block.replace("model-card,sentence-transformers", "model-card --ours numpy")  # JAX: in jax.md's block
    block = block.replace("--model small", f"--model {KNOWN}")  # as the hub here has it, very small
    block = block.replace("e5ref bench", "e5ref bench --rounds 1")
    block = block.replace("-m tests.measure.figures", "-m tests.measure.figures --tokens 16")
    with socket.create_server(("127.0.0.1", 0)) as free:
        block = block.replace("8080", str(free.getsockname()[1]))  # other tests serve at the same time
    block = block.replace("max_length=10", "max_length=4")  # fewer programs here, too
    if "-m tests" in block:
        folder = ROOT
    command = ["bash", "-euo", "pipefail", "-c", block] if language == "bash" else [sys.executable, "-c", block]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout or "-o " in block or language == "python"


@pytest.mark.slow
@pytest.mark.parametrize("page", LESSONS, ids=name)
def test_lesson(page, tmp_path):
    """The blocks of Python on a page of docs/learn are one program, which wants no hub."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (tmp_path / "lesson.py").write_text("\n".join(blocks), encoding="utf-8")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "lesson.py"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert result.returncode == 0, result.stderr


def test_operations_are_timed(tiny_bert, tmp_path):
    """docs/measure/performance.md names this command without a block, since it wants a checkpoint's folder."""
    texts = tmp_path / "texts.txt"
    texts.write_text("query: cat\npassage: the dog eats\n")
    command = [sys.executable, "-m", "tests.measure.operations", str(tiny_bert), str(texts)]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {"matmul_rows", "gelu", "softmax"} <= {line.split()[0] for line in output.splitlines()}


@pytest.mark.slow
def test_many_texts_are_drawn(tiny_bert, tmp_path):
    """The command that makes the plot of docs/laboratory/memory.md, on fewer texts."""
    texts, svg = tmp_path / "texts.txt", tmp_path / "memory.svg"
    texts.write_text("query: cat\npassage: the dog eats\nquery: the\n")
    command = [sys.executable, "-m", "tests.measure.endurance", str(tiny_bert), str(texts), str(svg), "4000"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1].startswith("    4,000 texts")
    assert "tokens per second" in svg.read_text()


def test_there_is_something_to_run():
    assert len(BLOCKS) > 8


def test_the_installed_package_brings_its_tables(tmp_path):
    """A wheel carries weights/*.toml, and nothing that is not the package's."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*command, str(tmp_path), str(ROOT)], check=True, capture_output=True)
    code = "import e5ref; print(e5ref.__file__, len(e5ref.known_checkpoints()));"
    code += "import e5ref.evaluation as evaluation; print(*evaluation.published_scores())"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == [
        *(str(tmp_path / "e5ref" / "__init__.py"), "25"),
        *("source", "tasks", "scores"),
    ]
    assert (tmp_path / "e5ref" / "py.typed").exists()
    top_level = {path.name for path in tmp_path.iterdir() if not path.name.endswith(".dist-info")}
    assert top_level <= {"e5ref", "bin", "__pycache__"}
