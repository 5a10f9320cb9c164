"""Names: what is fetched from the hub and kept, what is said when that fails, and that no damaged file gets through.

`huggingface_hub` reads its settings when it is imported, so each load runs in a Python of its own.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import e5ref
from tests.tools.checkpoints import write_random_bert
from tests.tools.hub import KNOWN, PINNED, Hub, Repo, files_of

KNOWN_UNPINNED = "intfloat/e5-small-unsupervised"
OTHER, SHARDED, GATED = "someone/tiny", "someone/sharded", "someone/gated"
OLD, NEW = "1" * 40, "2" * 40
ABSENT = "9" * 40
TEXT = "query: how much protein should a female eat"

FETCH = """
import sys
from huggingface_hub import hf_hub_download

name, revision, *files = sys.argv[1:]
for file in files:
    hf_hub_download(name, file, revision=revision)
"""
NO_WAITING = "import time; time.sleep = lambda seconds: None\n"  # huggingface_hub rests a second between attempts
COMMAND = "from e5ref.cli import main; main()"
LOAD = """
import json, sys, warnings
import e5ref

name, revision, text = json.loads(sys.argv[1])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    try:
        model = e5ref.load(name, revision=revision)
    except e5ref.CheckpointError as error:
        result = {"error": str(error)}
    else:
        result = {"revision": model.checkpoint.revision, "vector": model.encode(text).tolist()}
print(json.dumps(result | {"warnings": [str(warning.message) for warning in caught]}))
"""


def python(code: str, *arguments: str, hub: Hub, home: Path, offline: bool = False) -> subprocess.CompletedProcess[str]:
    """Run code in a Python whose hub is `hub` and whose cache lies in `home`."""
    foreign = ("HF_", "HUGGING", "TRANSFORMERS_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    env = {name: value for name, value in env.items() if not name.lower().endswith("_proxy")}
    env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline))}
    env |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "*"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=env, capture_output=True, encoding="utf-8", timeout=60
    )


def load(name: str, revision: str | None = None, *, before: str = "", **where) -> dict:
    """Load a checkpoint and embed TEXT, running the code `before` first; return what LOAD prints."""
    done = python(before + LOAD, json.dumps([name, revision, TEXT]), **where)
    assert done.returncode == 0, done.stderr[-1000:]
    return json.loads(done.stdout)


def vector_of(folder: Path) -> list[float]:
    return e5ref.load(folder).encode(TEXT).tolist()


def with_pooling(bert: Path, folder: Path, mode: str) -> Path:
    """Copy a checkpoint and add sentence-transformers' files."""
    shutil.copytree(bert, folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    (folder / "modules.json").write_text(
        json.dumps([{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in modules])
    )
    return folder


@pytest.fixture(scope="module")
def e5(tiny_bert, tmp_path_factory) -> Path:
    return with_pooling(tiny_bert, tmp_path_factory.mktemp("mean") / "e5", "mean_tokens")


@pytest.fixture(scope="module")
def cls_bert(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cls")
    return with_pooling(write_random_bert(folder / "bert", seed=1), folder / "cls", "cls_token")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    return write_random_bert(tmp_path_factory.mktemp("sharded") / "bert", shard_size="20KB")


@pytest.fixture
def hub(e5, cls_bert, sharded):
    never_needed = dict.fromkeys(["pytorch_model.bin", "onnx/model.onnx", "README.md", "tf_model.h5"], b"not for us")
    pinned = e5ref.known_checkpoints()[KNOWN_UNPINNED].get("revision", OLD)
    repos = {
        KNOWN: Repo({PINNED: files_of(e5) | never_needed, NEW: {}}, {"main": NEW}),
        KNOWN_UNPINNED: Repo({pinned: files_of(e5)}, {"main": pinned}),
        OTHER: Repo({OLD: files_of(e5), NEW: files_of(cls_bert)}, {"main": OLD, "v1.0": OLD, "refs/pr/1": NEW}),
        SHARDED: Repo({OLD: files_of(sharded)}),
        GATED: Repo({OLD: files_of(e5)}, {"main": OLD}, gated=True),
    }
    with Hub(repos) as hub:
        yield hub


@pytest.fixture(scope="module")
def down() -> Hub:
    """A hub that is not there any more."""
    with Hub({}) as hub:
        pass
    return hub


@pytest.fixture(scope="module")
def filled(e5, tmp_path_factory) -> Path:
    """A cache that holds KNOWN; read only."""
    home = tmp_path_factory.mktemp("filled")
    with Hub({KNOWN: Repo({PINNED: files_of(e5)})}) as hub:
        load(KNOWN, hub=hub, home=home)
    return home


@pytest.fixture
def home(filled, tmp_path) -> Path:
    """A cache that holds KNOWN, for a test to damage."""
    return Path(shutil.copytree(filled, tmp_path / "home", symlinks=True))


def snapshot(home: Path) -> Path:
    return home / "hub" / f"models--{KNOWN.replace('/', '--')}" / "snapshots" / PINNED


def test_a_known_name_fetches_the_pinned_commit_and_only_what_is_needed(hub, e5, tmp_path):
    loaded = load(KNOWN, hub=hub, home=tmp_path)
    assert loaded == {"revision": PINNED, "vector": vector_of(e5), "warnings": []}
    assert hub.downloads() == sorted(files_of(e5))
    assert all(PINNED in path for _, path in hub.requests if KNOWN in path)


@pytest.mark.parametrize("state", ["up", "down", "offline"])
def test_a_second_load_asks_the_hub_for_nothing(state, filled, hub, down, e5):
    loaded = load(KNOWN, hub=down if state == "down" else hub, home=filled, offline=state == "offline")
    assert loaded == {"revision": PINNED, "vector": vector_of(e5), "warnings": []}
    assert hub.requests == []


def test_an_unpinned_name_takes_main_says_which_commit_and_works_offline_later(hub, down, e5, cls_bert, tmp_path):
    for where in ({"hub": hub}, {"hub": down}, {"hub": hub, "offline": True}):
        loaded = load(OTHER, home=tmp_path, **where)
        assert (loaded["revision"], loaded["vector"]) == (OLD, vector_of(e5))
        [warning] = loaded["warnings"]
        assert OTHER in warning
        assert f"revision='{OLD}'" in warning

    hub.repos[OTHER].refs["main"] = NEW
    for where in ({"hub": hub}, {"hub": down}):
        loaded = load(OTHER, home=tmp_path, **where)
        assert (loaded["revision"], loaded["vector"]) == (NEW, vector_of(cls_bert))


@pytest.mark.parametrize(("revision", "commit"), [("v1.0", OLD), ("refs/pr/1", NEW)])
def test_a_tag_or_branch_is_resolved_to_its_commit_and_works_offline_later(revision, commit, hub, down, tmp_path):
    for where in (hub, down):
        loaded = load(OTHER, revision, hub=where, home=tmp_path)
        assert loaded["revision"] == commit
        assert any(commit in warning for warning in loaded["warnings"])


def test_a_commit_is_taken_without_a_word(hub, cls_bert, tmp_path):
    loaded = load(OTHER, NEW, hub=hub, home=tmp_path)
    assert loaded == {"revision": NEW, "vector": vector_of(cls_bert), "warnings": []}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "revision", "up", "advice"),
    [
        ("someone/nothing", None, True, "hf auth login"),
        (OTHER, "v9", True, "look it up on the model's page"),
        (OTHER, ABSENT, True, "look it up on the model's page"),
        (GATED, None, True, "give it there, then run `hf auth login`"),
        (KNOWN, None, False, "bring FOLDER here and pass its path; or try e5ref with 'e5ref-nano'"),
        (OTHER, None, False, "bring FOLDER here and pass its path; or try e5ref with 'e5ref-nano'"),
        ("a/b/c", None, True, f"such as '{KNOWN}'"),
        ("intfloat/e5-smal-v2", None, True, f"no such folder (did you mean '{KNOWN}'?), and the hub has no such"),
    ],
)
def test_what_the_hub_cannot_give_is_told_in_a_line(name, revision, up, advice, hub, down, tmp_path):
    where = {"hub": hub if up else down, "home": tmp_path}
    start = time.monotonic()
    message = load(name, revision, **where)["error"]
    assert time.monotonic() - start < 10
    assert "\n" not in message
    assert name in message
    assert advice in message
    assert ("did you mean" in message) == ("did you mean" in advice)

    options = ["--revision", revision] if revision else []
    command = python(COMMAND, "embed", TEXT, "--model", name, *options, **where)
    assert (command.returncode, command.stdout, command.stderr) == (2, "", f"Error: {message}\n")


def cut_short(content: bytes) -> bytes:
    return content[: len(content) // 2]


def one_bit_wrong(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def another_number(content: bytes) -> bytes:
    return content.replace(b"1e-12", b"1e-11")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("model.safetensors", cut_short),
        ("model.safetensors", one_bit_wrong),
        ("config.json", another_number),
        ("1_Pooling/config.json", cut_short),
    ],
)
def test_a_damaged_file_of_the_cache_is_refused_and_its_remedy_mends_it(file, damage, home, hub, e5):
    blob = (snapshot(home) / file).resolve()
    content = blob.read_bytes()
    assert damage(content) != content
    blob.write_bytes(damage(content))
    message = load(KNOWN, hub=hub, home=home)["error"]
    assert message.startswith(f"{Path(file).name} of {KNOWN} is cut short or altered")
    assert f"delete {blob} and run again" in message
    assert hub.requests == []

    blob.unlink()
    assert load(KNOWN, hub=hub, home=home)["vector"] == vector_of(e5)
    assert hub.downloads() == [file]


def test_weights_in_the_store_that_all_checkpoints_of_a_cache_share(home, hub, e5):
    """Newer versions of huggingface_hub keep weights there under another hash; the blob is a link to them."""
    blob = (snapshot(home) / "model.safetensors").resolve()
    stored = home / "hub" / "blobs" / "ab" / ("ab" * 32)
    stored.parent.mkdir(parents=True)
    (stored.parent.parent / ".huggingface-shared-blobs").write_text("1\n")
    blob.rename(stored)
    blob.symlink_to(os.path.relpath(stored, blob.parent))
    assert load(KNOWN, hub=hub, home=home).get("vector") == vector_of(e5)

    stored.write_bytes(one_bit_wrong(stored.read_bytes()))
    message = load(KNOWN, hub=hub, home=home)["error"]
    assert message.startswith(f"model.safetensors of {KNOWN} is cut short or altered")
    assert f"delete {stored} and run again" in message

    stored.unlink()
    assert load(KNOWN, hub=hub, home=home)["vector"] == vector_of(e5)
    assert hub.downloads() == ["model.safetensors"]


@pytest.mark.parametrize(
    "fetched",
    [["config.json", "model.safetensors"], ["config.json", "model.safetensors", "tokenizer.json"]],
    ids=["no tokenizer", "no pooling"],
)
def test_what_another_program_fetched_in_part_is_completed(fetched, hub, cls_bert, tmp_path):
    assert python(FETCH, OTHER, NEW, *fetched, hub=hub, home=tmp_path).returncode == 0
    assert load(OTHER, NEW, hub=hub, home=tmp_path).get("vector") == vector_of(cls_bert)
    assert hub.downloads() == sorted(files_of(cls_bert))


def test_what_another_program_fetched_in_part_is_used_with_a_warning_when_the_hub_is_away(hub, down, tmp_path):
    files = ["config.json", "model.safetensors", "tokenizer.json"]
    for name, revision in ((OTHER, NEW), (KNOWN, PINNED)):
        assert python(FETCH, name, revision, *files, hub=hub, home=tmp_path).returncode == 0
    [warning] = load(OTHER, NEW, hub=down, home=tmp_path)["warnings"]
    assert warning.startswith(f"another program fetched {OTHER}, perhaps not all of it")
    assert load(KNOWN, hub=down, home=tmp_path)["warnings"] == []  # how E5 pools is known


def test_a_hub_with_troubles_of_its_own_is_a_hub_out_of_reach(hub, e5, tmp_path):
    load(OTHER, hub=hub, home=tmp_path)
    hub.troubled = True
    assert load(OTHER, hub=hub, home=tmp_path, before=NO_WAITING)["vector"] == vector_of(e5)


def test_files_that_are_not_for_us_are_not_looked_at(home, hub):
    altered, gone = (snapshot(home) / name for name in ("README.md", "pytorch_model.bin"))
    altered.symlink_to(Path("..", "..", "blobs", "a" * 40))
    altered.resolve().write_text("altered")
    gone.symlink_to(Path("..", "..", "blobs", "b" * 64))
    assert load(KNOWN, hub=hub, home=home).get("revision") == PINNED


def test_weights_in_several_files(hub, sharded, tmp_path):
    loaded = load(SHARDED, OLD, hub=hub, home=tmp_path)
    assert loaded == {"revision": OLD, "vector": vector_of(sharded), "warnings": []}
    assert hub.downloads() == sorted(files_of(sharded))
    assert sum(file.startswith("model-") for file in hub.downloads()) > 1


def test_models_marks_what_is_on_this_machine(home, hub):
    load(KNOWN_UNPINNED, hub=hub, home=home)
    hub.requests.clear()
    rows = json.loads(python(COMMAND, "models", "--json", hub=hub, home=home).stdout)
    assert [row["name"] for row in rows] == list(e5ref.known_checkpoints())
    assert {row["name"] for row in rows if row["on_this_machine"]} == {KNOWN, KNOWN_UNPINNED, "e5ref-nano"}
    lines = python(COMMAND, "models", hub=hub, home=home).stdout.splitlines()[:-1]
    assert {line.split()[1] for line in lines if line.startswith("*")} == {KNOWN, KNOWN_UNPINNED, "e5ref-nano"}
    assert hub.requests == []


NO_SOCKET = """
import sys
def refuse(event, arguments):
    if event.startswith("socket."):
        raise RuntimeError(event)
sys.addaudithook(refuse)
"""


def test_a_folder_needs_no_socket(hub, e5, tmp_path):
    loaded = load(str(e5), hub=hub, home=tmp_path, before=NO_SOCKET)
    assert loaded == {"revision": None, "vector": vector_of(e5), "warnings": []}
    assert hub.requests == []
    with pytest.raises(AssertionError, match=r"RuntimeError: socket\."):
        load(KNOWN, hub=hub, home=tmp_path, before=NO_SOCKET)


def test_the_last_part_of_a_known_name_is_answered_without_a_socket(hub, tmp_path):
    message = load("e5-small-v2", hub=hub, home=tmp_path, before=NO_SOCKET)["error"]
    assert message == f"e5-small-v2: no such folder; did you mean '{KNOWN}'?"


def test_a_download_that_breaks_off_is_taken_up_again(hub, e5, tmp_path):
    hub.breaks["model.safetensors"] = 2
    assert load(KNOWN, hub=hub, home=tmp_path, before=NO_WAITING)["vector"] == vector_of(e5)
    assert hub.downloads().count("model.safetensors") == 3


def test_a_download_that_breaks_off_for_good_leaves_nothing_half(hub, e5, tmp_path):
    hub.breaks["model.safetensors"] = 1000
    message = load(KNOWN, hub=hub, home=tmp_path, before=NO_WAITING)["error"]
    assert "\n" not in message
    assert "check the network" in message
    assert not [path for path in tmp_path.rglob("*safetensors*") if path.exists()]

    hub.breaks.clear()
    assert load(KNOWN, hub=hub, home=tmp_path)["vector"] == vector_of(e5)
