"""Vectors have the same bits whatever stands beside a text, and whatever computes them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import e5ref
from e5ref import E5, numpy_model
from e5ref.engines.batching import pad_ids
from e5ref.operations.blas import blas
from tests.tools.processes import in_another_blas
from tests.tools.texts import AWKWARD, CARD_PASSAGES, CARD_QUERIES


@pytest.fixture(scope="module", autouse=True)
def blas_threads():
    """As many as there are: what they must not change is tested here."""


@pytest.fixture(scope="module")
def model(minilm):
    return e5ref.load(minilm)


WORD_LISTS = st.lists(st.sampled_from("a b c d cat dog how much protein plants ! zzz".split()), max_size=40)
TEXT_LISTS = st.lists(WORD_LISTS.map(" ".join), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(texts=TEXT_LISTS, batch_size=st.one_of(st.none(), st.integers(1, 4)), data=st.data())
def test_neighbours_do_not_matter(wide, texts, batch_size, data):
    """The same bits alone, in any batch, in any order."""
    model = wide
    together = model.encode(texts, batch_size=batch_size)
    order = data.draw(st.permutations(range(len(texts))))
    np.testing.assert_array_equal(model.encode([texts[index] for index in order]), together[order])
    for text, vector in zip(texts, together, strict=True):
        np.testing.assert_array_equal(model.encode(text), vector)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from([*AWKWARD.values(), *CARD_QUERIES, *CARD_PASSAGES]), min_size=2, max_size=40))
def test_neighbours_do_not_matter_with_trained_weights(model, texts):
    together = model.encode(texts, truncation="allow")
    for text, vector in zip(texts[:3], together, strict=False):
        np.testing.assert_array_equal(model.encode(text, truncation="allow"), vector)


@settings(max_examples=30, deadline=None)
@given(extra=st.integers(0, 9), others=st.lists(st.integers(1, 9), max_size=5))
def test_padding_does_not_matter(wide, extra, others):
    """More padding, and texts beside, leave a text's bits alone."""
    model = wide
    text = model.tokenizer(["how much protein"]).ids
    input_ids, attention_mask = pad_ids([text, *([5] * length for length in others)], model.tokenizer.pad_id)
    wider = [np.pad(array, ((0, 0), (0, extra))) for array in (input_ids, attention_mask)]
    checkpoint = model.checkpoint
    alone = [np.array([text]), np.ones((1, len(text)), np.int64)]
    with blas.at_most(1):  # several threads may divide the rows elsewhere
        vectors = [
            numpy_model.embed(checkpoint.params, *batch, config=checkpoint.config)[0] for batch in (wider, alone)
        ]
    np.testing.assert_array_equal(*vectors)


IN_PLAIN_ORDER = """
e5ref.operations.rows.rows_alternate = lambda: False
"""


@pytest.mark.parametrize(
    ("core", "change", "expected"),
    [
        ("Prescott", "", "rows independent, bits are the same: False True"),
        ("Haswell", "", "rows independent, bits are the same: True True"),
        ("Haswell", IN_PLAIN_ORDER, "rows independent, bits are the same: True False"),
    ],
    ids=["a batch each", "places", "planted"],
)
def test_neighbours_do_not_matter_on_another_processor(tiny_bert, core, change, expected):
    """On a BLAS whose rows depend on their place, tokens have places of their own, or texts batches of their own."""
    code = f"""
import numpy as np, e5ref
model = e5ref.load({str(tiny_bert)!r})
independent = model.engine.rows_are_independent
{change}
texts = ["a b c " * (n % 9 + 1) for n in range(40)]
together = model.encode(texts)
same = all(np.array_equal(model.encode(text), vector) for text, vector in zip(texts, together))
print("rows independent, bits are the same:", independent, same)
"""
    assert in_another_blas(core, code) == expected


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_matter(wide, threads):
    """Vectors have the same bits with any number of threads, and BLAS has its own number afterwards."""
    texts = ["how much protein " * (number % 20) for number in range(60)]
    before = blas.threads
    other = E5(wide.checkpoint, threads=threads)
    assert other.engine.threads == threads
    np.testing.assert_array_equal(other.encode(texts), wide.encode(texts))
    np.testing.assert_array_equal(other.encode("how much"), wide.encode("how much"))
    assert blas.threads == before
