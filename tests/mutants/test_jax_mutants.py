"""Plant one mistake at a time in a copy of the JAX twin: the comparison must fail, and first at the point of it."""

import inspect
import types

import jax
import pytest

import e5ref
from e5ref import jax_model
from tests.conftest import write_random_bert
from tests.peers import first_departure, transformers_run
from tests.test_numpy_model import ragged_batch
from tests.twin.runs import jax_run

# name: (source, mistake, the point that departs first)
MUTANTS = {
    "tanh GELU": ("approximate=False", "approximate=True", "layers.0.feed_forward_activation"),
    "epsilon of 1e-5": ("variance + eps", "variance + 1e-5", "embeddings"),
    "variance over n - 1": (
        "variance = jnp.mean(",
        "variance = x.shape[-1] / (x.shape[-1] - 1) * jnp.mean(",
        "embeddings",
    ),
    "no LayerNorm bias": ("* weight + bias).astype", "* weight).astype", "embeddings"),
    "the other token type": ("params.token_type[0]", "params.token_type[1]", "embeddings"),
    "positions off by one": ("jnp.arange(input_ids.shape[1])", "jnp.arange(input_ids.shape[1]) + 1", "embeddings"),
    "no bias": ("(matmul(x, weight.T) + bias)", "matmul(x, weight.T)", "layers.0.query"),
    "query and key swapped": (
        "params.query, params.key, params.value",
        "params.key, params.query, params.value",
        "layers.0.query",
    ),
    "no scale": ("scores *= 1 / math.sqrt(query.shape[-1])", "", "layers.0.attention_probabilities"),
    "mask ignored": (
        "jnp.where(is_token, 0, np.finfo(np.float32).min)",
        "0 * is_token",
        "layers.0.attention_probabilities",
    ),
    "mask of -1": ("np.finfo(np.float32).min", "-1", "layers.0.attention_probabilities"),
    "mask the wrong way round": (
        "jnp.where(is_token, 0, np.finfo(np.float32).min)",
        "jnp.where(is_token, np.finfo(np.float32).min, 0)",
        "layers.0.attention_probabilities",
    ),
    "mask over queries": (
        "[:, None, None, :]  # [B, T] ->",
        "[:, None, :, None]  # [B, T] ->",
        "layers.0.attention_probabilities",
    ),
    "heads split the other way": (
        "x.reshape(*x.shape[:2], config.num_attention_heads, config.head_size).transpose(0, 2, 1, 3)",
        "x.reshape(*x.shape[:2], config.head_size, config.num_attention_heads).transpose(0, 3, 1, 2)",
        "layers.0.attention_probabilities",
    ),
    "softmax without its divisor": (
        "return context.astype(value.dtype), weights / totals",
        "return context, weights",
        "layers.0.attention_probabilities",
    ),
    "context without its divisor": ("value)) / totals", "value))", "layers.0.context"),
    "heads joined the other way": (
        "context.transpose(0, 2, 1, 3).reshape(query.shape)",
        "context.transpose(0, 2, 3, 1).reshape(query.shape)",
        "layers.0.context",
    ),
    "no residual around attention": (
        "widen(attention) + widen(hidden_states)",
        "widen(attention)",
        "layers.0.attention_output",
    ),
    "the two LayerNorms swapped": (
        "*params.attention_layer_norm",
        "*params.output_layer_norm",
        "layers.0.attention_output",
    ),
    "no residual around feed-forward": ("widen(output) + widen(attention)", "widen(output)", "layers.0.output"),
    "layers in reverse": (
        "hidden_states, layers)  # points",
        "hidden_states, layers, reverse=True)  # points",
        "layers.0.query",
    ),
    "padding averaged in": (
        "attention_mask.sum(axis=1, keepdims=True), 1)",
        "attention_mask.sum(axis=1, keepdims=True), attention_mask.shape[1])",
        "pooled",
    ),
    "[CLS] for the average": ('average_pool if pooling == "mean"', 'cls_pool if pooling == "mean"', "pooled"),
    "not normalised": ("vectors = l2_normalize(vectors)", "", "normalized"),
    "float32 where float64 is": (
        "return x.astype(jnp.promote_types(x.dtype, jnp.float32))",
        "return x.astype(jnp.float32)",
        "embeddings",
    ),
}


def jax_model_with(source: str, mistake: str) -> types.ModuleType:
    """A copy of jax_model in which the first `source` is replaced."""
    original = inspect.getsource(jax_model)
    assert source in original, "the forward pass has changed: write this mutant anew"
    module = types.ModuleType("mutant")
    exec(compile(original.replace(source, mistake, 1), "mutant", "exec"), module.__dict__)
    return module


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = write_random_bert(tmp_path_factory.mktemp("mutants"), layer_norm_eps=1e-3)
    batch = ragged_batch([9, 1, 30, 2], 40)
    return e5ref.read_checkpoint(folder, dtype="float64"), batch, transformers_run(folder, *batch, "float64")


def departure(module: types.ModuleType, reference, *, compiled: bool = False) -> str | None:
    """Run a copy operation by operation, which asks for next to no compiling anew, or as one program."""
    checkpoint, batch, expected = reference
    with jax.disable_jit(not compiled):
        run = jax_run(checkpoint, *batch, model=module)
    return first_departure(run, expected, batch[1], "float64")


@pytest.mark.parametrize("compiled", [False, True])
def test_an_unchanged_copy_passes(compiled, reference):
    assert departure(jax_model_with("", ""), reference, compiled=compiled) is None


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_noticed_where_it_is(name, reference):
    source, mistake, point = MUTANTS[name]
    found = departure(jax_model_with(source, mistake), reference)
    assert found is not None
    assert found.split(":")[0] == point


def test_products_below_float32_are_noticed(reference):
    module = jax_model_with("", "")
    module.matmul = lambda a, b, dtype=None: jax_model.matmul(a.astype("f4"), b.astype("f4")).astype("f8")
    assert departure(module, reference).startswith("layers.0.query")
