"""The runners of e5ref's own twins. `peers` has those of other libraries."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e5ref.checkpoint import Checkpoint
from e5ref.encoder import E5
from e5ref.engines.engine import require_jax
from e5ref.operations import Ids
from e5ref.parity.altered.models import run_reference

Points = Mapping[str, NDArray[Any]]

# Backend → the dtypes that `record` can compute in. An ONNX graph has its own.
BACKEND_DTYPES = {
    "numpy": ("float32", "float64"),
    "jax": ("float32", "float64", "bfloat16", "float16"),
    "transformers": ("float32", "float64", "bfloat16", "float16"),
    "sentence-transformers": ("float32", "float64", "bfloat16", "float16"),
}


@dataclass(frozen=True)
class Runner:
    """Something that computes named points from token ids.

    `run` computes a batch: input_ids [b, T], attention_mask [b, T] → name → array, padded as the ids are. A point of a
    whole text is [b, D]. bfloat16 comes as float32 of the same values.
    """

    run: Callable[[Ids, Ids], Points]
    tokenize: Callable[[Sequence[str]], list[list[int]]]  # texts → the ids of each, cut to the model's length
    dtype: str  # what is computed in; "" for that of the arrays
    fixed_shape: bool = False  # whether a new batch shape is expensive, so that all batches should have the same
    facts: Mapping[str, str] = field(default_factory=dict)  # what the run's provenance says of the library


def own_tokenize(encoder: E5) -> Callable[[Sequence[str]], list[list[int]]]:
    """Return a function that tokenizes as e5ref does."""
    return lambda texts: [ids.tolist() for ids in encoder.tokenizer(texts).texts()]


def numpy_runner(encoder: E5, names: Collection[str]) -> Runner:
    """Run the NumPy twin, in the dtype that `encoder` was loaded in."""
    run = partial(run_reference, encoder.checkpoint, only=names)
    return Runner(run, own_tokenize(encoder), str(encoder.dtype), facts={"backend": "numpy"})


def jax_runner(encoder: E5, names: Collection[str], dtype: str) -> Runner:
    """Run the JAX twin. In "bfloat16" and "float16", matrices and states have that dtype."""
    require_jax()
    import jax

    run = jax_points(encoder.checkpoint, names, dtype)
    facts = {"backend": "jax", "platform": jax.default_backend(), "jax_version": jax.__version__}
    return Runner(run, own_tokenize(encoder), dtype, fixed_shape=True, facts=facts)


def jax_points(
    checkpoint: Checkpoint, names: Collection[str] | None, dtype: str, *, model: ModuleType | None = None
) -> Callable[[Ids, Ids], Points]:
    """Compile the JAX twin so that it returns named points.

    Args:
        checkpoint: weights in float64 for dtype "float64", else in float32.
        names: which points; None for all.
        dtype: "float64", "float32", "bfloat16" or "float16".
        model: `e5ref.jax_model`, or a changed copy of it.

    Returns:
        A function of input_ids [b, T] and attention_mask [b, T], as `Runner.run`. Each shape compiles one program.
    """
    import jax

    from e5ref import jax_model

    embed = (model or jax_model).embed
    half = dtype in ("bfloat16", "float16")
    params = jax_model.round_matrices(checkpoint.params, dtype) if half else checkpoint.params
    settings = {"pooling": checkpoint.settings.pooling, "normalize": checkpoint.settings.normalize}

    @jax.jit
    def recorded(params: Any, input_ids: Any, attention_mask: Any) -> OrderedDict[str, Any]:
        points: OrderedDict[str, Any] = OrderedDict()  # JAX sorts the names of a plain dict
        embed(params, input_ids, attention_mask, config=checkpoint.config, tap=points.__setitem__, **settings)
        return OrderedDict((name, points[name]) for name in points if names is None or name in names)

    def run(input_ids: Ids, attention_mask: Ids) -> Points:
        with ExitStack() as stack:
            stack.enter_context(jax.default_matmul_precision("highest"))
            stack.enter_context(jax.enable_x64(dtype == "float64"))
            points = recorded(params, input_ids, attention_mask)
            return {name: _as_numpy(array) for name, array in points.items()}

    return run


def _as_numpy(array: Any) -> NDArray[Any]:
    """Convert a JAX array to NumPy, bfloat16 as float32."""
    return np.asarray(array.astype("float32") if array.dtype == "bfloat16" else array)
