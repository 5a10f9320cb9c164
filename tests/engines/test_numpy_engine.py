"""The NumPy engine: threads, cores, and what a batch may hold."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import threadpoolctl

import e5ref
from e5ref import E5, numpy_model
from e5ref.engines import numpy_engine
from e5ref.operations.blas import blas


@pytest.fixture(scope="module", autouse=True)
def blas_threads():
    """As many as there are: what they must not change is tested here."""


@pytest.mark.parametrize(("shared", "batches"), [(True, 1), (False, 4)])
def test_few_texts_are_divided_where_threads_cannot_share_a_batch(tiny_bert, monkeypatch, shared, batches):
    monkeypatch.setattr(numpy_engine, "threads_do_not_matter", lambda *_: shared)
    monkeypatch.setattr(numpy_engine, "rows_are_independent", lambda *_: True)
    engine = e5ref.load(tiny_bert, threads=8).engine
    assert len(list(engine.batches(np.full(21, 12)))) == batches


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere children do not begin as copies")
def test_a_child_that_is_forked_while_threads_encode_can_encode(tiny_bert):
    """What a thread of the parent holds at that moment, such as a lock, is not held in the child for good."""
    code = f"""
import os, signal, threading, time
from tqdm import tqdm
import e5ref
from e5ref.operations.blas import blas

def state():
    return blas.threads, [library.num_threads for library in blas._libraries], model.encode("query: cat").tobytes()

def encode():
    while True:
        model.encode(["cat", "dog"] * 20)

def show_progress():
    while True:
        with tqdm.get_lock():
            time.sleep(0.001)
        time.sleep(0.001)

model = e5ref.load({str(tiny_bert)!r}, threads=1)
before, children = state(), []
for work in (encode, encode, show_progress):
    threading.Thread(target=work, daemon=True).start()
for number in range(40):
    time.sleep(0.001 * (number % 7))
    child = os.fork()
    if not child:
        signal.alarm(20)  # a hang is a failure
        os._exit(state() != before)
    children.append(child)
statuses = [os.waitpid(child, 0)[1] for child in children]
print(40 - statuses.count(0), "of 40 children failed", flush=True)
os._exit(0)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == "0 of 40 children failed\n"


def test_batches_are_computed_side_by_side(tiny, monkeypatch):
    """Two threads meet inside the forward pass, each with a BLAS of one thread."""
    together = threading.Barrier(2)
    seen = []

    def embed(*arguments, **options):
        if len(seen) < 2:
            seen.append([library.num_threads for library in blas._libraries])
            together.wait(timeout=20)
        return original(*arguments, **options)

    original = numpy_model.embed
    monkeypatch.setattr(numpy_model, "embed", embed)
    E5(tiny.checkpoint, threads=2).encode(["cat"] * 4, batch_size=2)
    assert seen == [[1] * len(blas._libraries)] * 2


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/", {"cpu.max": "900000 100000"}, 8),
        ("0::/a/b", {"a/b/cpu.max": "300000 100000", "a/cpu.max": "200000 100000"}, 2),
        ("0::/a/b", {"a/b/cpu.max": "100000 100000", "a/cpu.max": "max 100000"}, 1),
        ("0::/../a", {"cpu.max": "300000 100000"}, 3),
        ("0::/", {"cpu.max": ""}, 8),
        (
            "5:memory:/x\n4:cpu,cpuacct:/docker/x\n0::/docker/x",
            {"cpu/cpu.cfs_quota_us": "20000", "cpu/cpu.cfs_period_us": "100000"},
            1,
        ),
        ("1:cpu:/a", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, 8),
        ("1:cpu:/a", {"cpu/a/cpu.cfs_quota_us": "500000", "cpu/a/cpu.cfs_period_us": "100000"}, 5),
        ("1:cpuset:/a", {"cpuset/a/cpu.max": "100000 100000"}, 8),
        (None, {}, 8),
    ],
)
def test_a_containers_quota_bounds_the_cores(tmp_path, monkeypatch, cgroup, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    written = {f"sys/fs/cgroup/{name}": content for name, content in files.items()}
    if cgroup is not None:
        written["proc/self/cgroup"] = cgroup
    for name, content in written.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    assert numpy_engine.usable_cores(tmp_path) == cores


def test_no_more_cores_than_the_affinity_has(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5}, raising=False)
    assert numpy_engine.usable_cores() == 1


@pytest.mark.parametrize(
    ("variable", "given", "threads"), [(None, None, 2), ("OPENBLAS_NUM_THREADS", None, 3), (None, 4, 4)]
)
def test_threads_are_the_usable_cores_unless_somebody_says_otherwise(tiny, monkeypatch, variable, given, threads):
    """The BLAS keeps to them too, if it computes a query with several threads."""
    for name in numpy_engine.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "3")
    tried, seen = [], []

    def embed(*arguments, **options):
        seen.extend(library.num_threads for library in blas._libraries)
        return original(*arguments, **options)

    original = numpy_model.embed
    monkeypatch.setattr(numpy_model, "embed", embed)
    monkeypatch.setattr(numpy_engine, "usable_cores", lambda: 2)
    monkeypatch.setattr(numpy_engine, "threads_do_not_matter", lambda *arguments: tried.append(arguments[-1]) or True)
    with threadpoolctl.threadpool_limits(3, user_api="blas"):  # whatever this machine has
        E5(tiny.checkpoint, threads=given).encode("cat")
    assert set(tried) == {threads}
    assert set(seen) <= {min(threads, 3)}


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2"])
def test_bad_threads(tiny, threads):
    with pytest.raises(ValueError, match=f"threads is {threads!r}, but must be a whole number of at least 1"):
        E5(tiny.checkpoint, threads=threads)


def test_threads_are_for_numpy(tiny):
    with pytest.raises(ValueError, match="threads is for backend='numpy'"):
        E5(tiny.checkpoint, backend="jax", threads=2)


def test_a_failing_batch_ends_the_work(tiny, monkeypatch):
    monkeypatch.setattr(numpy_model, "embed", lambda *_, **__: 1 / 0)
    threads_before = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError):
        E5(tiny.checkpoint, threads=2).encode(["cat"] * 100, batch_size=2)
    assert set(threading.enumerate()) <= threads_before


@pytest.mark.parametrize(("batch_size", "sizes"), [(None, [5]), (2, [2, 2, 1])])
def test_batch_size_is_a_bound(wide, monkeypatch, batch_size, sizes):
    seen = []
    embed = numpy_model.embed
    monkeypatch.setattr(
        numpy_model, "embed", lambda p, ids, mask, **kw: seen.append(mask.max()) or embed(p, ids, mask, **kw)
    )
    wide.encode(["a"] * 5, batch_size=batch_size)
    assert sorted(seen, reverse=True) == sizes  # threads begin them in any order
