"""What the BLAS is trusted with, and with how many threads."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import threadpoolctl

from e5ref.operations.blas import blas
from tests.tools.processes import in_another_blas


@pytest.fixture(scope="module", autouse=True)
def blas_threads():
    """As many as there are: what they do is tested here."""


def test_blas_threads_are_lowered_and_put_back():
    """By several threads of Python at a time; the least number counts until it is given back."""
    if not blas._libraries:
        pytest.skip("threadpoolctl does not know this BLAS")
    numbers, before = [], blas.threads

    def now():
        (library,) = (row for row in threadpoolctl.threadpool_info() if "numpy" in row["filepath"])
        return library["num_threads"]

    def hold(threads):
        with blas.at_most(threads):
            numbers.append((threads, now(), blas.threads))

    with threadpoolctl.threadpool_limits(3, user_api="blas"):  # whatever this machine has
        with ThreadPoolExecutor() as others, blas.at_most(2):
            assert now() == 2
            for threads in (1, 7):
                others.submit(hold, threads).result()
            assert now() == 2
        assert now() == blas.threads == 3
    assert numbers == [(1, 1, 3), (7, 2, 3)]
    assert now() == before


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere children do not begin as copies")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_fork_waits_for_what_others_compute_and_the_child_has_all_threads(threads):
    """Without that, OpenBLAS hangs in most runs of this with two threads."""
    code = f"""
import os, signal, threading, time
import numpy as np
from e5ref.operations.blas import blas

def counts():
    return [library.num_threads for library in blas._libraries]

def multiply(index):
    while True:
        with blas.at_most({threads}):
            busy[index] = True
            with blas.at_most({threads}):
                square @ square
            busy[index] = False

def fork(expected):
    child = os.fork()
    if not child:
        signal.alarm(20)  # a hang is a failure
        with blas.at_most(1):
            square @ square
        os._exit(any(busy) or counts() != expected)
    assert os.waitpid(child, 0)[1] == 0

before, square, busy = counts(), np.ones((256, 256), np.float32), [False, False]
for index in range(2):
    threading.Thread(target=multiply, args=[index], daemon=True).start()
for _ in range(20):
    time.sleep(0.002)
    fork(before)
with blas.at_most(1):  # for its own thread nobody has to wait
    fork([1] * len(before))
os._exit(0)
"""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=30)


@pytest.mark.parametrize(
    ("core", "expected"),
    [
        ("Prescott", "False [False, False] [False, False]"),
        ("Nehalem", "False [True, False] [False, False]"),
        ("Haswell", "True [True, True] [False, False]"),
    ],
)
def test_dependence_of_bits_is_noticed(core, expected):
    """OpenBLAS's AVX2 kernels round a row by its place among twelve; others by its place, or by the BLAS's threads."""
    code = """
from e5ref.operations.blas import rows_alternate
from e5ref.operations.probes import rows_are_independent, threads_do_not_matter
dtypes = "float32", "float64"
rows = [rows_are_independent(384, 384, dtype) for dtype in dtypes]
print(rows_alternate(), rows, [threads_do_not_matter(256, 1024, 32, dtype, 2) for dtype in dtypes])
"""
    assert in_another_blas(core, code) == expected
