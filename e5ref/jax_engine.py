"""Runs batches of token ids through the JAX twin: weights on every device, fixed shapes, several batches in flight."""

import importlib.metadata
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from e5ref import jax_model
from e5ref.batching import NumberedIds, PaddedShapes, pad_ids
from e5ref.checkpoint import Checkpoint
from e5ref.numpy_engine import Batch

if TYPE_CHECKING:
    from e5ref.encoder import Precision

# Name → what matrices are rounded to (None: nothing), and JAX's name for how float32 products are computed. See also
# `product_precision`.
PRECISIONS: "dict[Precision, tuple[str | None, str]]" = {
    "highest": (None, "highest"),
    "high": (None, "high"),
    "bfloat16": ("bfloat16", "highest"),
    "float16": ("float16", "highest"),
}

# Tokens of a batch on one device, padding counted. A CPU's matrix products run at their full rate from about a thousand
# on, and smaller batches are padded less; an accelerator needs many to be busy.
MAX_TOKENS = {"cpu": 1024}
MAX_TOKENS_ACCELERATOR = 65_536

# Texts that are tokenized together for each accelerator: enough for all cores, few enough for it to begin soon.
PIECE_TEXTS = 1024

# Batches that are on the device or on their way there before the host waits for the first of them.
IN_FLIGHT = 8


class JaxEngine:
    """What `E5` asks of a twin, as `NumpyEngine` does it, on all devices of this process.

    Attributes:
        precision: one of `PRECISIONS`.
        shapes: the shapes of batches, each of which XLA compiles a program for.
        window_texts: how many texts to sort by length together.
        piece_texts: how many of the first window to tokenize together.
        first_characters: no bound here: smaller windows would want programs for more shapes.
    """

    first_characters = math.inf

    def __init__(self, checkpoint: Checkpoint, *, pad_id: int, max_length: int, precision: "Precision") -> None:
        """Put the weights of `checkpoint` on all devices.

        Args:
            checkpoint: the weights, float32 or float64.
            pad_id: the id that fills short rows of a batch.
            max_length: the most tokens of a text.
            precision: one of `PRECISIONS`.

        Raises:
            ValueError: an unknown precision, or any but "highest" for float64 weights.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision is {precision!r}, but must be one of {', '.join(map(repr, PRECISIONS))}")
        self.precision = precision
        half, _ = PRECISIONS[precision]
        self._checkpoint = checkpoint
        self._pad_id = pad_id
        self._float64 = checkpoint.params.embeddings.word.dtype == np.float64
        if self._float64 and precision != "highest":
            raise ValueError(f"precision {precision!r} is for dtype 'float32'; float64 is computed as it is")

        devices = jax.local_devices()
        self.platform = devices[0].platform
        self._product = PRECISIONS["highest"][1] if self._float64 else product_precision(precision, devices[0])
        max_tokens = MAX_TOKENS.get(self.platform, MAX_TOKENS_ACCELERATOR)
        self.shapes = PaddedShapes(max_length, max_tokens, len(devices))
        self.window_texts = max(4096, max_tokens * len(devices) // 2)
        # An accelerator begins while later pieces are tokenized. On a CPU all cores do one thing and then the other.
        self.piece_texts = self.window_texts if self.platform == "cpu" else PIECE_TEXTS * len(devices)
        mesh = Mesh(np.array(devices), ("texts",))
        everywhere, self._divided = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("texts"))
        with self._settings():
            params = checkpoint.params if half is None else jax_model.round_matrices(checkpoint.params, half)
            self._params = jax.device_put(jax_model.stack_layers(params), everywhere)
        # Left to itself, XLA keeps some states of half precision in float32, at twice the memory traffic.
        options = {"xla_allow_excess_precision": False} if half and self.platform == "gpu" else {}
        # Each device runs the whole program on its share of the rows; none waits for another.
        self._programs = {
            normalize: jax.jit(
                jax.shard_map(
                    partial(
                        jax_model.embed,
                        config=checkpoint.config,
                        pooling=checkpoint.settings.pooling,
                        normalize=normalize,
                    ),
                    mesh=mesh,
                    in_specs=(everywhere.spec, self._divided.spec, self._divided.spec),
                    out_specs=self._divided.spec,
                    check_vma=False,
                ),
                compiler_options=options,
            )
            for normalize in (True, False)
        }

    def batches(
        self, pieces: Iterable[Sequence[NumberedIds]], *, total: int, max_texts: int | None
    ) -> Iterator[list[NumberedIds]]:
        """Split texts that come some at a time, `total` in all, into batches of at most `max_texts`."""
        return self.shapes.batches(pieces, total=total, max_texts=max_texts)

    def run(self, batches: Iterable[Batch], *, normalize: bool) -> Iterator[Batch]:
        """Compute the vectors of each batch, write them where they belong, and yield the batch.

        The host makes the next batches ready while the devices work; it waits for a result only when `IN_FLIGHT`
        others are under way.
        """
        under_way: deque[tuple[Batch, jax.Array]] = deque()
        for batch in batches:
            shape = self.shapes.fit(len(batch.ids), max(map(len, batch.ids)))
            vectors = self._embed(*pad_ids(batch.ids, self._pad_id, shape), normalize=normalize)
            vectors.copy_to_host_async()
            under_way.append((batch, vectors))
            if len(under_way) > IN_FLIGHT:
                yield self._finished(*under_way.popleft())
        while under_way:
            yield self._finished(*under_way.popleft())

    def warm_up(self) -> Iterator[int]:
        """Compile the program of every shape; yield the number of all shapes after each."""
        normalize = self._checkpoint.settings.normalize
        shapes = list(self.shapes)
        for shape in shapes:
            self._embed(np.zeros(shape, np.int64), np.ones(shape, np.int64), normalize=normalize).block_until_ready()
            yield len(shapes)

    def provenance(self) -> dict[str, str]:
        """Say what computed the vectors."""
        return {
            "backend": "jax",
            "precision": self.precision,
            "platform": self.platform,
            **{f"{package}_version": importlib.metadata.version(package) for package in ("jax", "jaxlib")},
        }

    def _embed(self, input_ids: np.ndarray, attention_mask: np.ndarray, *, normalize: bool) -> jax.Array:
        """Start the computation of a batch."""
        arrays = jax.device_put((input_ids.astype(np.int32), attention_mask.astype(np.bool_)), self._divided)
        with self._settings():
            return self._programs[normalize](self._params, *arrays)

    def _finished(self, batch: Batch, vectors: jax.Array) -> Batch:
        """Wait for the vectors of a batch; rows that only filled it are left out."""
        result = np.asarray(vectors)[: len(batch.ids)]
        if not np.isfinite(result).all():
            raise ValueError(f"numbers grew too large for precision {self.precision!r}; take 'bfloat16' or 'highest'")
        batch.vectors[batch.rows] = result
        return batch

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """Choose precision and word size for this thread, and leave the program's own settings as they are."""
        with ExitStack() as stack:
            stack.enter_context(jax.default_matmul_precision(self._product))
            stack.enter_context(jax.enable_x64(self._float64))
            yield


def product_precision(precision: "Precision", device: jax.Device) -> str:
    """Return JAX's name for how a device computes float32 products.

    For "highest", NVIDIA's cards from Ampere on take three products of TF32 for one: together they keep 22 bits of each
    factor where float32 has 24, and add up more exactly, so that vectors are as near to float64's as those of float32
    products, in two thirds of the time.
    """
    is_nvidia = "cuda" in device.client.platform_version.lower()
    if precision == "highest" and is_nvidia and float(device.compute_capability) >= 8:
        return "TF32_TF32_F32_X3"
    return PRECISIONS[precision][1]
