"""The two twins beside each other, and both beside transformers: the same functions, and the same numbers."""

import inspect
import itertools
from pathlib import Path

import numpy as np
import pytest

import e5ref
from e5ref import jax_model, numpy_model
from tests.tools.batches import ragged_batch
from tests.tools.checkpoints import E5_SMALL, ODD_SHAPES, write_random_bert
from tests.tools.runs import first_departure, jax_run, our_run, transformers_run
from tests.tools.tolerances import VECTORS

Batch = tuple[np.ndarray, np.ndarray]  # input_ids, attention_mask

FUNCTIONS = [
    *("linear", "layer_norm", "gelu", "embed_tokens", "self_attention", "feed_forward", "encoder_layer"),
    *("forward", "average_pool", "cls_pool", "dense", "l2_normalize", "embed", "record"),
]


def functions_of(module) -> list[str]:
    own = [value for value in vars(module).values() if inspect.isfunction(value)]
    own = [value for value in own if inspect.getsourcefile(inspect.unwrap(value)) == module.__file__]
    return [value.__name__ for value in sorted(own, key=lambda value: inspect.getsourcelines(inspect.unwrap(value))[1])]


def test_the_same_functions_in_the_same_order():
    shared = [name for name in functions_of(numpy_model) if name in functions_of(jax_model)]
    assert shared == FUNCTIONS
    assert [name for name in functions_of(jax_model) if name in FUNCTIONS] == FUNCTIONS


@pytest.mark.parametrize("name", FUNCTIONS[:-1])
def test_the_same_signatures(name):
    def shape(module) -> list[tuple]:
        parameters = inspect.signature(inspect.unwrap(getattr(module, name))).parameters.values()
        return [(parameter.name, parameter.kind, parameter.default) for parameter in parameters]

    assert shape(jax_model) == shape(numpy_model)


def assert_all_agree(folder: Path, dtype: str, *batches: Batch) -> None:
    """Compare each of the two twins with transformers, and the one with the other, at every named point."""
    checkpoint = e5ref.read_checkpoint(folder, dtype=dtype)
    for input_ids, attention_mask in batches:
        runs = {
            "NumPy": our_run(checkpoint, input_ids, attention_mask),
            "transformers": transformers_run(folder, input_ids, attention_mask, dtype),
            "JAX": jax_run(checkpoint, input_ids, attention_mask),
        }
        for pair in itertools.combinations(runs, 2):
            reference, run = (runs[name] for name in pair)
            assert first_departure(run, reference, attention_mask, dtype) is None, pair
            assert np.abs(run["normalized"] - reference["normalized"]).max() <= VECTORS[dtype], pair


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(shape, id=name, marks=() if name in ("two layers", "xlm-roberta") else pytest.mark.slow)
        for name, shape in ODD_SHAPES.items()
    ],
)
def test_odd_shapes(shape, dtype, tmp_path):
    folder = write_random_bert(tmp_path, **shape)
    config = e5ref.read_checkpoint(folder).config
    assert_all_agree(folder, dtype, ragged_batch([9, 1, config.max_tokens, 2, 17], config.vocab_size))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_e5_small_shape(dtype, tmp_path):
    """The longest text has one short one beside it: the points of four rows of 512 would be gigabytes."""
    folder = write_random_bert(tmp_path, **E5_SMALL)
    assert_all_agree(folder, dtype, ragged_batch([512, 7], 30522), ragged_batch([40, 1], 30522))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_trained_weights(minilm, dtype):
    """Short texts, and the longest with one short one beside it."""
    model = e5ref.load(minilm, max_length=512)
    texts = ["How much protein should a female eat?", "", "naïve café, 日本語 and 🙂"], ["word " * 510, "a"]
    batches = [(tokens["input_ids"], tokens["attention_mask"]) for tokens in map(model.tokenize, texts)]
    assert batches[1][0].shape == (2, 512)
    assert_all_agree(minilm, dtype, *batches)


@pytest.mark.parametrize("model_type", ["bert", "xlm-roberta"])
def test_padding_on_the_left_and_in_the_middle(model_type, tmp_path):
    """Positions follow transformers there too: by column in BERT, by tokens that are not padding in XLM-RoBERTa."""
    folder = write_random_bert(tmp_path, model_type=model_type)
    attention_mask = np.array([[0, 0, 1, 1, 1], [1, 0, 1, 1, 0], [1, 1, 1, 1, 1]])
    input_ids = np.where(attention_mask == 1, [[9, 9, 5, 6, 7], [5, 9, 6, 1, 9], [5, 1, 1, 8, 9]], 1)
    assert_all_agree(folder, "float64", (input_ids, attention_mask))


def test_recorded_padding_is_zero_as_in_numpy(tiny_bert):
    checkpoint = e5ref.read_checkpoint(tiny_bert)
    batch = ragged_batch([5, 12, 3], 40)
    reference = our_run(checkpoint, *batch)
    for name, array in jax_run(checkpoint, *batch).items():
        np.testing.assert_array_equal(array == 0, reference[name] == 0, err_msg=name)
