"""Plant one mistake at a time in a copy of the forward pass: the comparison must fail, and first at the point of it."""

import importlib
import re
import types

import numpy as np
import pytest

from e5ref import numpy_model
from e5ref.operations import blocks, numpy_ops, rows
from tests.mutants.numpy_mutants import MUTANTS, PACKED_MUTANTS, POSITION_MUTANTS
from tests.mutants.planting import Mutant, copy_of
from tests.tools.runs import first_departure, our_run


def departure(module: types.ModuleType, reference) -> str | None:
    checkpoint, batch, expected = reference
    return first_departure(our_run(checkpoint, *batch, model=module), expected, batch[1], "float64")


def test_an_unchanged_copy_passes(reference):
    assert departure(copy_of(numpy_model), reference) is None


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_noticed_where_it_is(name, reference):
    found = departure(copy_of(numpy_model, MUTANTS[name]), reference)
    assert found is not None
    assert found.split(":")[0] == MUTANTS[name].point


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_an_unchanged_copy_passes_on_packed_rows(kind, packed_references):
    assert departure(copy_of(numpy_model), packed_references[kind]) is None


@pytest.mark.parametrize("name", PACKED_MUTANTS)
def test_mutant_is_noticed_in_packed_rows(name, packed_references):
    found = departure(copy_of(numpy_model, PACKED_MUTANTS[name]), packed_references["bert"])
    assert found is not None
    assert found.split(":")[0] == PACKED_MUTANTS[name].point


@pytest.mark.parametrize("name", POSITION_MUTANTS)
def test_mutant_of_positions_is_noticed_in_packed_rows(name, packed_references):
    module = copy_of(numpy_model)
    module.token_positions = copy_of(rows, POSITION_MUTANTS[name]).token_positions
    found = departure(module, packed_references["xlm-roberta" if name == "tokens counted on" else "bert"])
    assert found is not None
    assert found.startswith("embeddings:")


def test_attention_across_the_texts_of_a_row_is_noticed(packed_references):
    module = copy_of(numpy_model)

    def whole_rows(function):
        return lambda *arguments: function(*arguments[:-2], np.minimum(arguments[-2], 1), arguments[-1])

    module.attention_blocks = whole_rows(blocks.attention_blocks)
    module.pad_squares = whole_rows(blocks.pad_squares)
    assert departure(module, packed_references["bert"]).startswith("layers.0.attention_probabilities")


def test_attention_across_texts_is_noticed(reference):
    """The mask, as it were: every token attends to every row of the batch."""
    module = copy_of(numpy_model)

    def one_block(attention_mask, heads):
        rows = int(attention_mask.sum())
        return [blocks.AttentionBlock(0, 1, rows, slice(0, rows), slice(0, heads))]

    def split(squares, mask, heads):
        ((_, square),) = squares
        parts = [(block, square[:, :, block.tokens, block.tokens]) for block in blocks.attention_blocks(mask, heads)]
        return blocks.pad_squares(parts, mask, heads)

    module.attention_blocks, module.pad_squares = one_block, split
    assert departure(module, reference).startswith("layers.0.attention_probabilities")


@pytest.mark.parametrize("elements", [1, 100])
def test_attention_in_small_blocks_is_the_same(reference, monkeypatch, elements):
    """A head at a time, or a few."""
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", elements)
    assert departure(copy_of(numpy_model), reference) is None


def test_softmax_without_its_divisor_is_noticed(reference):
    module = copy_of(numpy_model)
    module.softmax = lambda scores: np.exp(scores - scores.max(axis=-2, keepdims=True))
    assert departure(module, reference).startswith("layers.0.attention_probabilities")


def test_softmax_over_the_queries_is_noticed(reference):
    module = copy_of(numpy_model)
    module.softmax = lambda scores: numpy_ops.softmax(scores.swapaxes(-1, -2)).swapaxes(-1, -2)
    assert departure(module, reference).startswith("layers.0.attention_probabilities")


def test_a_float32_product_in_float64_is_noticed(reference):
    module = copy_of(numpy_model)
    module.matmul_rows = lambda x, weight: numpy_ops.matmul_rows(x.astype("f4"), weight.astype("f4")).astype("f8")
    assert departure(module, reference).startswith("layers.0.query")


@pytest.mark.parametrize("point", ["embeddings", "layers.1.context", "normalized"])
@pytest.mark.parametrize("damage", ["NaN", "missing", "shape", "dtype"])
def test_the_comparison_itself_fails_on(damage, point, reference):
    _, (_, attention_mask), expected = reference
    run = dict(expected)
    if damage == "NaN":
        run[point] = np.where(attention_mask.any(), np.nan, expected[point])
    elif damage == "missing":
        del run[point]
    elif damage == "shape":
        run[point] = expected[point][:, :1]
    else:
        run[point] = expected[point].astype(np.float32)
    assert first_departure(run, expected, attention_mask, "float64") is not None


@pytest.mark.parametrize(
    ("function", "begins", "found"),
    [("self_attention", "scores /=", 0), ("self_attention", "linear(", 4), ("encoder_layer", "attention =", 2)],
)
def test_a_mistake_has_one_place(function, begins, found):
    message = f"{function} has {found} places that begin with {begins!r}, not 1"
    with pytest.raises(AssertionError, match=re.escape(message)):
        copy_of(numpy_model, Mutant(function, begins, ""))


def test_comments_and_layout_do_not_matter(tmp_path, monkeypatch):
    """A place is found however it is written."""
    (tmp_path / "reworded.py").write_text(
        'def double(x):\n    """As it says."""\n    y=( x\n        +x )   # twice\n    return y\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    reworded = importlib.import_module("reworded")
    assert copy_of(reworded).double(3) == 6
    assert copy_of(reworded, Mutant("double", "y = x", "y = x - x")).double(3) == 0
