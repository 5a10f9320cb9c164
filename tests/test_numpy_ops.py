"""The kernels against their definitions in float64, and what the BLAS is trusted with."""

import math
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import threadpoolctl

from e5ref import numpy_model
from e5ref.operations import numpy_ops, rows
from e5ref.operations.blas import blas
from tests.tolerances import GELU_FLOAT64, GELU_ULP, SUM_TO_ONE


@pytest.fixture(scope="module", autouse=True)
def blas_threads():
    """As many as there are: what they do is tested here."""


def exact_gelu(x: np.ndarray) -> np.ndarray:
    return np.array([value * 0.5 * math.erfc(-value * math.sqrt(0.5)) for value in x.astype(np.float64).tolist()])


@pytest.mark.parametrize("bounds", GELU_ULP)
def test_gelu_float32(bounds):
    """Every 997th float32 between the bounds, down to the smallest."""
    low, high = (np.float32(abs(bound)).view(np.int32) for bound in sorted(bounds, key=abs))
    x = np.arange(low, high, 997, dtype=np.int32).view(np.float32) * np.float32(np.sign(sum(bounds)))
    expected = exact_gelu(x)
    ulp = np.maximum(np.spacing(np.abs(expected).astype(np.float32)), np.finfo(np.float32).smallest_normal)
    assert (np.abs(numpy_model.gelu(x[:, None].copy())[:, 0] - expected) / ulp).max() <= GELU_ULP[bounds]


def test_gelu_float64():
    x = np.linspace(-30, 30, 20_001)
    difference = np.abs(numpy_model.gelu(x[:, None].copy())[:, 0] - exact_gelu(x))
    assert (difference / np.maximum(np.abs(x), 1)).max() <= GELU_FLOAT64


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gelu_of_special_values(dtype):
    x = np.array([[0.0, -0.0, np.inf, -np.inf, np.nan, 1e38, -1e38, 40.0, -40.0]], dtype)
    expected = np.array([[0, 0, np.inf, 0, np.nan, 1e38, 0, 40, 0]], dtype)
    result = numpy_model.gelu(x)
    np.testing.assert_array_equal(result, expected)
    assert result is x


def test_gelu_is_not_the_tanh_form():
    x = np.linspace(-4, 4, 1001, dtype=np.float32)[:, None]
    tanh_form = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    assert 4e-4 < np.abs(numpy_model.gelu(x.copy()) - tanh_form).max() < 5e-4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_heads_are_multiplied_each_on_its_own_and_lie_side_by_side(dtype):
    random = np.random.default_rng(0)
    keys, queries = (random.random((2, 3, 7, 5), dtype) for _ in range(2))  # [n, N, T, H]
    scores = numpy_ops.matmul_heads(keys, queries.swapaxes(-1, -2))
    np.testing.assert_array_equal(scores, keys @ queries.swapaxes(-1, -2))
    assert scores.transpose(0, 2, 1, 3).flags.c_contiguous  # what softmax's speed is owed to


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_softmax(dtype):
    scores = np.random.default_rng(0).standard_normal((3, 512, 5)).astype(dtype) * 50
    expected = np.exp(scores.astype(np.float64) - scores.max(axis=-2, keepdims=True))
    expected /= expected.sum(axis=-2, keepdims=True)
    result = numpy_ops.softmax(scores)
    assert result is scores
    assert np.abs(result - expected).max() <= SUM_TO_ONE[dtype]
    assert np.abs(result.sum(axis=-2) - 1).max() <= SUM_TO_ONE[dtype]


def test_softmax_of_huge_scores_by_hand():
    scores = np.array([[1e30, 0], [1e30, 0], [-1e30, -1e30]], np.float32)
    np.testing.assert_array_equal(numpy_ops.softmax(scores), [[0.5, 0.5], [0.5, 0.5], [0.0, 0.0]])


def test_row_blocks_are_the_same_as_the_whole(monkeypatch):
    x = np.random.default_rng(0).standard_normal((50, 12)).astype(np.float32)
    arguments = (np.ones(12, np.float32), np.zeros(12, np.float32), 1e-12)
    whole = numpy_model.layer_norm(x.copy(), *arguments)
    monkeypatch.setattr(numpy_ops, "BLOCK_ELEMENTS", 40)  # blocks of three rows
    np.testing.assert_array_equal(numpy_model.layer_norm(x, *arguments), whole)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 48, 49])
@pytest.mark.parametrize("alternate", [False, True])
def test_matmul_rows(monkeypatch, alternate, rows, dtype):
    monkeypatch.setattr(numpy_ops, "rows_alternate", lambda: alternate)
    random = np.random.default_rng(0)
    x, weight = random.integers(-9, 9, (rows, 7)).astype(dtype), random.integers(-9, 9, (5, 7)).astype(dtype)
    result = numpy_ops.matmul_rows(x, weight)
    np.testing.assert_array_equal(result, np.einsum("mi,oi->mo", x, weight))
    assert result.dtype == dtype
    assert result.flags.c_contiguous


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


def in_another_blas(core: str, code: str) -> str:
    """Run code with OpenBLAS made to use the kernels of another processor."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the kernels named here are those of x86-64")
    show = "import numpy; print(numpy.show_config('dicts')['Build Dependencies']['blas']['name'])"
    blas = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True).stdout
    if "openblas" not in blas:
        pytest.skip(f"NumPy is built with {blas.strip()}, and OPENBLAS_CORETYPE chooses kernels of OpenBLAS only")
    environment = os.environ | {"OPENBLAS_CORETYPE": core}
    environment.pop("OMP_NUM_THREADS", None)
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


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


def test_rows_alternate_by_hand(monkeypatch):
    """Of two texts of nine and six tokens, eight stand at even positions and seven at odd ones."""
    monkeypatch.setattr(rows, "rows_alternate", lambda: True)
    mask = (np.arange(10) < np.array([[9], [6]])).astype(int)
    tokens = np.array([*range(1, 10), *range(11, 17)], float)[:, None]
    placed = rows.rows_of(tokens, mask)
    even, odd = [1, 3, 5, 7, 9, 11, 13, 15], [2, 4, 6, 8, 12, 14, 16]
    assert placed[:, 0].tolist() == even[:6] + odd[:6] + even[6:] + [1] * 4 + odd[6:] + [1] * 5
    np.testing.assert_array_equal(rows.tokens_of(placed, mask), tokens)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64"])
def test_rows_of_any_mask(monkeypatch, dtype):
    """Padding may stand anywhere: a token's position is that among its text's tokens."""
    monkeypatch.setattr(rows, "rows_alternate", lambda: True)
    mask = np.random.default_rng(0).integers(0, 2, (7, 23)).astype(dtype)
    places = rows.token_rows(mask)
    assert len(set(places)) == len(places)
    assert (places % 12 // 6).tolist() == [position % 2 for row in mask for position in range(int(row.sum()))]
    tokens = np.arange(2 * len(places), dtype=np.float32).reshape(-1, 2)
    placed = rows.rows_of(tokens, mask)
    assert len(placed) % 12 == 0
    np.testing.assert_array_equal(rows.tokens_of(placed, mask), tokens)


def test_lengths_and_starts_of_packed_texts_by_hand():
    """The first text of a row counts from the row's start; the others from their first token, also behind a hole."""
    mask = np.array([[1, 1, 2, 2, 2, 3], [0, 1, 0, 2, 0, 2], [1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]])
    assert rows.text_lengths(mask).tolist() == [[2, 3, 1], [1, 2, 0], [3, 0, 0], [0, 0, 0]]
    assert rows.text_lengths(mask, 4)[:, 3].tolist() == [0] * 4
    starts = [[0, 0, 2, 2, 2, 5], [0, 0, 0, 3, 3, 3], [0] * 6, [0] * 6]
    for dtype in ("int64", "uint8", "uint64"):
        assert rows.text_starts(mask.astype(dtype)).tolist() == starts
        assert rows.text_lengths(mask.astype(dtype)).tolist() == rows.text_lengths(mask).tolist()


def test_rows_alternate_within_each_packed_text(monkeypatch):
    """A token's place among twelve is by its position in its text, whatever row the text is in."""
    monkeypatch.setattr(rows, "rows_alternate", lambda: True)
    packed = rows.token_rows(np.array([[1, 1, 1, 0, 2, 2, 2, 2, 2, 3]]))
    np.testing.assert_array_equal(packed, rows.token_rows(np.array([[1] * 3 + [0] * 2, [1] * 5, [1] + [0] * 4])))
    assert (packed % 12 // 6).tolist() == [0, 1, 0, 0, 1, 0, 1, 0, 0]


def test_rows_of_no_text(monkeypatch):
    monkeypatch.setattr(rows, "rows_alternate", lambda: True)
    assert rows.rows_of(np.zeros((0, 3)), np.zeros((0, 5), int)).shape == (0, 3)
