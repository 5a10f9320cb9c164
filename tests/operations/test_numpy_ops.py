"""The kernels against their definitions in float64."""

import math

import numpy as np
import pytest

from e5ref import numpy_model
from e5ref.operations import numpy_ops
from tests.tools.tolerances import GELU_FLOAT64, GELU_ULP, SUM_TO_ONE


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
