"""Runs batches of token ids through the JAX twin: weights on every device, few programs, several batches in flight."""

import importlib.metadata
import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from e5ref import jax_model
from e5ref.checkpoint import Checkpoint
from e5ref.engines.batching import Batch, pack
from e5ref.engines.engine import Window
from e5ref.operations.blas import usable_cores

if TYPE_CHECKING:
    from e5ref.engines.engine import Precision

# Name → what matrices are rounded to (None: nothing), and JAX's name for how float32 products are computed. See also
# `product_precision`.
PRECISIONS: "dict[Precision, tuple[str | None, str]]" = {
    "highest": (None, "highest"),
    "high": (None, "high"),
    "bfloat16": ("bfloat16", "highest"),
    "float16": ("float16", "highest"),
}

# Tokens of an accelerator's full batch, and of a batch for the rest.
FULL_TOKENS, REST_TOKENS = 65_536, 8192

# A row of T tokens has room for T / TOKENS_OF_A_TEXT texts.
TOKENS_OF_A_TEXT = 8

# The host waits for a result once more batches than this are on the device or on their way there.
IN_FLIGHT = 8


class Shapes(NamedTuple):
    """The shapes of batches, (rows, length); XLA compiles a program for each.

    `full` is for many texts: the most tokens of a text, and the shape for such texts and shorter ones. Up to half of
    the longest, several texts fill a row; of longer ones a row of an accelerator holds one.
    """

    few: list[tuple[int, int]]  # for texts that fit into one row, the smallest first
    rest: tuple[int, int]  # for texts that fit into four of its batches
    full: list[tuple[int, tuple[int, int]]]

    def __call__(self, lengths: NDArray[np.int64], *, alone: bool) -> tuple[int, int]:
        """Choose the shape of the next batch, given the tokens of each text that is left, ascending.

        Unless these are all texts of the window, `alone`, few shapes are tried, so that few are compiled.
        """
        longest, tokens = lengths[-1], lengths.sum()
        few = self.few if alone else self.few[-2:]
        fit = [shape for shape in few if shape[1] >= tokens]
        fit += [self.rest] if 4 * math.prod(self.rest) >= tokens else []
        fit += [shape for most, shape in self.full if longest <= most]
        return fit[0]

    def all(self) -> list[tuple[int, int]]:
        """List all shapes."""
        return list(dict.fromkeys([*self.few, self.rest, *(shape for _, shape in self.full)]))


def batch_shapes(platform: str, max_length: int, devices: int = 1) -> Shapes:
    """Return the shapes of batches for a platform, "cpu", "gpu" or "tpu"; their rows are divided among `devices`.

    On a CPU a batch is one row, since attention goes text by text there. Products run at their full rate from about a
    thousand tokens on. An accelerator computes a row's attention whole, and so has rows of several lengths.
    """
    longest = max(512, 1 << (max_length - 1).bit_length())
    if platform == "cpu":
        few = [(devices, length) for length in (16, 32, 64, 112, 224, longest)]
        rest = devices, 2 * longest
        return Shapes(few, rest, [(longest // 2, rest), (longest, (devices, 3 * longest))])
    rest = REST_TOKENS // longest * devices, longest
    rows = {32: 64, 128: 256, longest // 2: longest} | {
        part: part for part in range(longest * 5 // 8, longest + 1, longest // 8)
    }
    full = [(most, (FULL_TOKENS // length * devices, length)) for most, length in rows.items()]
    return Shapes([(devices, 64)], rest, full)


class JaxEngine:
    """An `Engine` of the JAX twin, on all devices of this process.

    A row holds several texts, so that the shapes of batches, and with them XLA's programs, do not depend on the texts.

    Attributes:
        precision: one of `PRECISIONS`.
        shapes: the shapes of batches.
    """

    def __init__(self, checkpoint: Checkpoint, *, pad_id: int, max_length: int, precision: "Precision") -> None:
        """Put the weights of `checkpoint` on all devices.

        Raises:
            ValueError: an unknown precision, or any but "highest" for float64 weights.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision is {precision!r}, but must be one of {', '.join(map(repr, PRECISIONS))}")
        self.precision = precision
        half, _ = PRECISIONS[precision]
        self._checkpoint = checkpoint
        self._pad_id = pad_id
        self._float64 = checkpoint.dtype == np.float64
        if self._float64 and precision != "highest":
            raise ValueError(f"precision {precision!r} is for dtype 'float32'; float64 is computed as it is")

        devices = jax.local_devices()
        self.platform = devices[0].platform
        self.is_accelerator = self.platform != "cpu"
        self._product = PRECISIONS["highest"][1] if self._float64 else product_precision(precision, devices[0])
        self.shapes = batch_shapes(self.platform, max_length, len(devices))
        # An accelerator begins soon, and has work until the next, longer window is tokenized.
        self.first_texts = 4096 * len(devices)
        self.window_texts = self.first_texts if self.platform == "cpu" else 8 * self.first_texts
        self._mesh = Mesh(np.array(devices), ("texts",))
        self._divided = NamedSharding(self._mesh, PartitionSpec("texts"))
        with self._settings():
            params = checkpoint.params if half is None else jax_model.round_matrices(checkpoint.params, half)
            everywhere = NamedSharding(self._mesh, PartitionSpec())
            self._params = jax.device_put(jax_model.stack_layers(params), everywhere)
        # Left to itself, XLA keeps some states of half precision in float32, at twice the memory traffic.
        self._options = {"xla_allow_excess_precision": False} if half and self.platform == "gpu" else {}
        self._compilers = ThreadPoolExecutor(usable_cores(), "e5ref-compiler")
        self._programs: dict[tuple[tuple[int, int], bool], Future[jax.stages.Compiled]] = {}

    def batches(self, lengths: NDArray[np.int64], *, max_texts: int | None = None) -> Iterator[Batch]:
        """Divide texts, of these numbers of tokens, into batches of `shapes`, the longest first."""
        left = np.argsort(lengths, kind="stable")
        while len(left):
            texts = left[-max_texts:] if max_texts else left
            shape = self.shapes(lengths[texts], alone=len(left) == len(lengths))
            batch = pack(lengths[texts], shape, texts_per_row(shape))
            yield batch._replace(texts=texts[batch.texts])
            left = np.delete(left, len(left) - len(texts) + batch.texts)

    def run(self, windows: Iterable[Window], *, normalize: bool, max_texts: int | None = None) -> Iterator[int]:
        """Do what `Engine.run` says.

        The host makes the next batches ready while the devices work; it waits for a result only when more than
        `IN_FLIGHT` batches are under way.
        """
        under_way: deque[tuple[Window, Batch, jax.Array]] = deque()
        for window in windows:
            batches = list(self.batches(window.tokens.lengths, max_texts=max_texts))
            programs = {batch.shape: self._program(batch.shape, normalize) for batch in batches}  # side by side
            for batch in batches:
                arrays = batch.arrays(window.tokens.ids, window.tokens.offsets, self._pad_id)
                vectors = programs[batch.shape].result()(self._params, *jax.device_put(arrays, self._divided))
                vectors.copy_to_host_async()
                under_way.append((window, batch, vectors))
                if len(under_way) > IN_FLIGHT:
                    yield self._finish(*under_way.popleft())
        while under_way:
            yield self._finish(*under_way.popleft())

    def warm_up(self) -> Iterator[int]:
        """Compile the program of every shape; yield the number of all shapes after each."""
        normalize = self._checkpoint.settings.normalize
        shapes = self.shapes.all()
        for program in as_completed([self._program(shape, normalize) for shape in shapes]):
            program.result()
            yield len(shapes)

    def provenance(self) -> dict[str, str]:
        """Say what computed the vectors."""
        return {
            "backend": "jax",
            "precision": self.precision,
            "platform": self.platform,
            **{f"{package}_version": importlib.metadata.version(package) for package in ("jax", "jaxlib")},
        }

    def _program(self, shape: tuple[int, int], normalize: bool) -> "Future[jax.stages.Compiled]":
        """Return the program for batches of a shape; who asks first, or after a failure, has it compiled."""
        program = self._programs.get((shape, normalize))
        if program is None or (program.done() and program.exception()):
            program = self._programs[shape, normalize] = self._compilers.submit(self._compile, shape, normalize)
        return program

    def _compile(self, shape: tuple[int, int], normalize: bool) -> jax.stages.Compiled:
        embed = partial(
            jax_model.embed,
            config=self._checkpoint.config,
            pooling=self._checkpoint.settings.pooling,
            normalize=normalize,
            texts_per_row=texts_per_row(shape),
        )
        # Each device runs the whole program on its share of the rows; none waits for another.
        divided = self._divided.spec
        embed_share = jax.shard_map(
            embed,
            mesh=self._mesh,
            in_specs=(PartitionSpec(), divided, divided),
            out_specs=divided,
            check_vma=False,
        )
        ids = jax.ShapeDtypeStruct(shape, np.int32, sharding=self._divided)
        with self._settings():
            return jax.jit(embed_share, compiler_options=self._options).lower(self._params, ids, ids).compile()

    def _finish(self, window: Window, batch: Batch, vectors: jax.Array) -> int:
        """Wait for the vectors of a batch, write them where they belong, and return how many there are."""
        result = np.asarray(vectors)[batch.rows * texts_per_row(batch.shape) + batch.numbers - 1]
        if not np.isfinite(result).all():
            raise ValueError(f"numbers grew too large for precision {self.precision!r}; take 'bfloat16' or 'highest'")
        window.vectors[batch.texts] = result
        return len(batch.texts)

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """Choose precision and word size for this thread, and leave the program's own settings as they are."""
        with jax.default_matmul_precision(self._product), jax.enable_x64(self._float64):
            yield


def texts_per_row(shape: tuple[int, ...]) -> int:
    """Return the most texts of a row, (rows, length)."""
    return shape[1] // TOKENS_OF_A_TEXT


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
