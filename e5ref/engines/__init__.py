"""The way of texts through a twin: windows, batches, threads, devices."""

from e5ref.checkpoint import Checkpoint
from e5ref.engines.engine import Backend, Engine, Precision, require_jax
from e5ref.engines.numpy_engine import NumpyEngine
from e5ref.tokenizer import Tokenizer


def make_engine(
    checkpoint: Checkpoint, tokenizer: Tokenizer, backend: Backend, precision: Precision | None, threads: int | None
) -> Engine:
    """Make what runs a checkpoint; the arguments are those of `e5ref.load`.

    Raises:
        ValueError: an unknown backend, or an option of the other one.
        ModuleNotFoundError: there is no JAX for it.
    """
    if backend == "numpy":
        if precision is not None:
            raise ValueError("precision is for backend='jax'; NumPy computes everything in dtype")
        return NumpyEngine(checkpoint, threads=threads)
    if backend != "jax":
        raise ValueError(f"backend is {backend!r}, but must be 'numpy' or 'jax'")
    if threads is not None:
        raise ValueError("threads is for backend='numpy'; JAX takes whole devices")
    require_jax()
    from e5ref.engines.jax_engine import JaxEngine

    return JaxEngine(
        checkpoint, pad_id=tokenizer.pad_id, max_length=tokenizer.max_length, precision=precision or "highest"
    )
