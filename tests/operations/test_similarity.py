"""Cosines: exact, and equal for equal vectors, whatever kernels the BLAS has."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from e5ref.evaluation.search import Best
from e5ref.operations import similarity
from e5ref.operations.similarity import cosines, dots, pairwise_cosines
from tests.tools.tolerances import COSINES

WIDTHS = (1, 3, 32, 256, 384, 1024)


@pytest.fixture(scope="module", autouse=True)
def blas_threads():
    """As many as there are: what they must not change is tested here."""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", WIDTHS)
def test_cosines_are_those_of_longer_numbers(dtype, width):
    random = np.random.default_rng(width)
    powers = {"float32": 18, "float64": 290}[dtype]  # of 10: sizes of the vectors, which cosines do not depend on
    sizes = 10.0 ** random.integers(-powers, powers, (40, 1))
    a = (random.standard_normal((40, width)) * sizes).astype(dtype)
    b = (random.standard_normal((30, width)) * sizes[:30] * random.integers(0, 2, (30, width))).astype(dtype)
    long_a, long_b = a.astype(np.longdouble), b.astype(np.longdouble)
    norms = [np.sqrt((rows * rows).sum(axis=1)) for rows in (long_a, long_b)]
    expected = np.divide(long_a @ long_b.T, np.outer(*norms), where=norms[1] > 0, out=np.zeros((40, 30), np.longdouble))
    found = cosines(a, b)
    assert found.dtype == dtype
    assert np.abs(found - expected).max() <= COSINES[dtype]
    np.testing.assert_array_equal(pairwise_cosines(a[:30], b), np.diagonal(found))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), width=st.sampled_from(WIDTHS), dtype=st.sampled_from(["float32", "float64"]))
def test_equal_vectors_have_equal_scores(data, width, dtype):
    """Copies of a few vectors in any number and order, for any number of queries, whole or in blocks."""
    few = data.draw(st.integers(1, 4))
    random = np.random.default_rng(data.draw(st.integers(0, 9)))
    vectors = similarity.unit(random.standard_normal((few, width))).astype(dtype)
    queries = similarity.unit(random.standard_normal((data.draw(st.integers(1, 5)), width))).astype(dtype)
    copies = data.draw(st.lists(st.integers(0, few - 1), min_size=1, max_size=70))
    blocks = data.draw(st.sampled_from([1, 7, 2048]))
    own = cosines(vectors[copies], vectors[copies])
    expected = dots(queries, vectors)[:, copies], cosines(queries, vectors)[:, copies]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity, "BLOCK_ROWS", blocks)
        np.testing.assert_array_equal(pairwise_cosines(vectors[copies], vectors[copies]), np.diagonal(own))
        np.testing.assert_array_equal(dots(queries, vectors[copies]), expected[0])
        np.testing.assert_array_equal(cosines(queries, vectors[copies]), expected[1])
    np.testing.assert_array_equal(cosines(queries[:1], np.asfortranarray(vectors[copies])), expected[1][:1])
    np.testing.assert_array_equal(cosines(vectors[copies], queries), expected[1].T)


@settings(max_examples=20, deadline=None)
@given(copies=st.lists(st.integers(0, 3), min_size=5, max_size=40), block=st.integers(1, 9), queries=st.integers(1, 4))
def test_equal_documents_rank_by_their_ids(copies, block, queries):
    """In whatever block they stand: of equal scores the greater id goes first, which is the documented rule."""
    random = np.random.default_rng(len(copies))
    documents = similarity.unit(random.standard_normal((4, 384))).astype(np.float32)
    asked = similarity.unit(random.standard_normal((queries, 384))).astype(np.float32)
    ids = [f"d{number:02}" for number in range(len(copies))]
    best = Best([str(query) for query in range(queries)], depth=len(ids))
    for start in range(0, len(ids), block):
        best.add(asked, ids[start : start + block], documents[copies[start : start + block]])
    by_hand = dots(asked, documents)
    for row, found in zip(by_hand, best.run(len(ids), ignore_identical_ids=False).values(), strict=True):
        assert [*found] == sorted(ids, key=lambda document: (row[copies[int(document[1:])]], document), reverse=True)


def test_the_smallest_numbers_of_all():
    smallest = np.array([[5e-324, 0, 0], [0, 1e-310, 1e-310], [3e-308, 0, 0]])
    assert cosines(smallest, smallest).round(6).tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert (dots(smallest, smallest) == 0).all()


def test_no_vectors_and_vectors_of_different_widths():
    assert cosines(np.zeros((0, 4)), np.zeros((3, 4))).shape == (0, 3)
    assert cosines(np.zeros((2, 4)), np.zeros((0, 4))).shape == (2, 0)
    with pytest.raises(ValueError, match=r"must be as many in both, but are \(2, 4\) and \(3, 4\)"):
        pairwise_cosines(np.ones((2, 4)), np.ones((3, 4)))


def kernels(core: str | None) -> str | None:
    """Say which kernels OpenBLAS takes if those of `core` are asked for; None if this processor cannot run them."""
    code = (
        "import numpy as np; from threadpoolctl import threadpool_info as info; np.ones((99, 99)) @ np.ones((99, 99))"
    )
    code += "\nprint(*{library.get('architecture', '') for library in info()})"
    environment = os.environ | ({"OPENBLAS_CORETYPE": core} if core else {})
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode in (0, -signal.SIGILL), result.stderr
    return result.stdout.strip() or None


@pytest.mark.slow
@pytest.mark.parametrize("core", ["Haswell", "SkylakeX", "Zen", "Sandybridge"])
def test_bits_and_ties_on_every_kernel_that_runs_here(core):
    if "OPENBLAS_CORETYPE" in os.environ:
        pytest.skip("OPENBLAS_CORETYPE chooses the kernels of this very run")
    own = {library.get("architecture") for library in threadpool_info()}
    if (found := kernels(core)) != core or core in own:
        pytest.skip(f"OpenBLAS here takes {found or 'none'} for {core}; the rest of the suite runs on {own}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", ""]
    command += ["tests/operations/test_similarity.py", "tests/engines/test_neighbours.py"]
    command += ["-k", "neighbours_do or padding or equal"]
    environment = os.environ | {"OPENBLAS_CORETYPE": core}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
