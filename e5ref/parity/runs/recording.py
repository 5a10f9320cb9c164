"""Record a run: put texts through a model and keep every named point."""

import json
import math
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e5ref.checkpoint import Checkpoint
from e5ref.checkpoint.prompts import find_prompt
from e5ref.encoder import E5, load
from e5ref.engines.batching import pad_ids
from e5ref.engines.stream import E5Warning
from e5ref.operations import Ids
from e5ref.parity.runs.check import matching
from e5ref.parity.runs.rounding import rounding_costs
from e5ref.parity.runs.run import LAYER_POINTS, Run
from e5ref.parity.runs.runners import BACKEND_DTYPES, Runner, jax_runner, numpy_runner
from e5ref.terminal.progress import progress_bar

BACKENDS = (*BACKEND_DTYPES, "onnx:FILE")

# Tokens of a batch, padding counted. They keep every library busy, and their points take a few hundred MB at most.
BATCH_TOKENS = 1024

# The points that are recorded by default: the first of these choices with at most DEFAULT_VALUES values (1 GiB in
# float32). The choice does not depend on backend or dtype, so two runs of the same texts hold the same points.
VECTORS = ("pooled", "dense", "normalized")
CHOICES = (("*",), ("embeddings", "layers.*.output", "last_hidden_state", *VECTORS), VECTORS)
DEFAULT_VALUES = 1 << 28


def point_shapes(checkpoint: Checkpoint, texts: int, tokens: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a checkpoint's points, in the forward pass's order, for B texts of T tokens.

    Name → (B, T, D), (B, T, F), (B, N, T, T), (B, D) or (B, E).
    """
    config = checkpoint.config
    states, vectors = (texts, tokens, config.hidden_size), (texts, checkpoint.dimensions)
    others = {
        "attention_probabilities": (texts, config.num_attention_heads, tokens, tokens),
        "feed_forward_activation": (texts, tokens, config.intermediate_size),
    }
    shapes: dict[str, tuple[int, ...]] = {"embeddings": states}
    for index in range(config.num_hidden_layers):
        shapes |= {f"layers.{index}.{name}": others.get(name, states) for name in LAYER_POINTS}
    shapes |= {"last_hidden_state": states, "pooled": (texts, config.hidden_size)}
    shapes |= {"dense": vectors} if checkpoint.params.dense else {}
    return shapes | ({"normalized": vectors} if checkpoint.settings.normalize else {})


def choose_points(shapes: dict[str, tuple[int, ...]], only: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Choose which points to record; return their names, and those that are left out because they are too large.

    `only` has names, or patterns such as "layers.*.output"; None takes the first of `CHOICES` that is not too large.

    Raises:
        ValueError: a pattern fits no name.
    """
    if only is not None:
        examples = ", ".join(name for name in shapes if not name.startswith("layers.") or name.startswith("layers.0."))
        for pattern in only:
            if not matching(shapes, [pattern]):
                raise ValueError(f"there is no point {pattern!r}; this model has {examples}")
        return matching(shapes, only), []
    for patterns in CHOICES:
        names = matching(shapes, patterns)
        if sum(math.prod(shapes[name]) for name in names) <= DEFAULT_VALUES:
            break
    return names, [name for name in shapes if name not in names]


def record(
    model_name_or_path: str | Path,
    texts: str | Sequence[str],
    *,
    revision: str | None = None,
    backend: str = "numpy",
    dtype: str | None = None,
    prompt_name: str | None = None,
    prompt: str | None = None,
    only: Sequence[str] | None = None,
) -> Run:
    """Put texts through a model and keep every named point.

    Args:
        model_name_or_path: a hub name or a folder.
        texts: one text, or several.
        revision: the hub's commit, tag or branch; None takes the commit that e5ref pins for a known name.
        backend: "numpy", "jax", "transformers", "sentence-transformers", or "onnx:" and the file of a graph.
        dtype: one of the backend's `BACKEND_DTYPES`; None for "float32". For a graph, the dtype that it computes in;
            None for the dtype of its outputs.
        prompt_name: which of the checkpoint's prompts to put before each text.
        prompt: a prompt to put before each text, instead of a named one.
        only: names of points, or patterns such as "layers.*.output". None keeps all points. If they have more than
            `DEFAULT_VALUES` values, it keeps fewer and warns.

    Returns:
        The run: input_ids and attention_mask [B, T] int64, padded to the longest text, and the points in the forward
        pass's order. A run of NumPy in float64 also holds what rounding costs.

    Raises:
        CheckpointError: as `e5ref.load`.
        ValueError: there are no texts, or an argument is out of its range.
        TypeError: `texts` is not a sequence of str.
        ModuleNotFoundError: the backend is not installed; the message says what to install.
    """
    kind, _, file = backend.partition(":")
    if kind not in BACKEND_DTYPES and not (kind == "onnx" and file):
        raise ValueError(f"backend is {backend!r}, but must be one of {', '.join(BACKENDS)}")
    dtypes = BACKEND_DTYPES.get(kind, BACKEND_DTYPES["jax"])
    if dtype is not None and dtype not in dtypes:
        raise ValueError(f"dtype is {dtype!r}, but backend {kind!r} has {', '.join(dtypes)}")
    texts = [texts] if isinstance(texts, str) else texts
    if not texts:
        raise ValueError("there are no texts to record")
    encoder = load(model_name_or_path, revision=revision, dtype="float64" if dtype == "float64" else "float32")
    prefix = find_prompt(encoder.checkpoint.settings.prompts, prompt_name, prompt)
    texts = [prefix + text for text in texts]
    own = encoder.tokenize(texts)
    if own["truncated"].any():
        warnings.warn(
            f"{own['truncated'].sum()} of {len(texts)} texts are longer than {encoder.tokenizer.max_length} tokens and "
            "were cut",
            E5Warning,
            stacklevel=2,
        )
    shapes = point_shapes(encoder.checkpoint, *own["input_ids"].shape)
    names, left_out = choose_points(shapes, only)
    if left_out:
        warnings.warn(
            f"{len(left_out)} of {len(shapes)} points are left out to keep the run small; choose points with `only`",
            E5Warning,
            stacklevel=2,
        )
    if (kind, dtype) == ("numpy", "float64"):
        return record_reference(encoder, texts, names, prefix)
    return run_texts(encoder, _runner(encoder, kind, file, names, dtype), texts, names, prefix)


def record_reference(encoder: E5, texts: Sequence[str], names: Sequence[str], prompt: str = "") -> Run:
    """Run texts in float64 and measure what rounding costs: the reference for other runs.

    The run has "rounding" in its metadata. The arguments are those of `run_texts`; the model is in float64, with NumPy.
    """
    run = run_texts(encoder, numpy_runner(encoder, names), texts, names, prompt)
    costs = rounding_costs(encoder.checkpoint, run.input_ids, run.attention_mask, only=names)
    return Run(run.arrays, {**run.metadata, "rounding": json.dumps(costs)})


def run_texts(encoder: E5, runner: Runner, texts: Sequence[str], names: Sequence[str], prompt: str = "") -> Run:
    """Tokenize texts, which have their prompts, run them, and note where the result comes from.

    The run has the points of `names`, in this order, that the runner gives. `prompt` is for the provenance.
    """
    ids = runner.tokenize(texts)
    input_ids, attention_mask = pad_ids(ids, encoder.tokenizer.pad_id)
    points = run_batches(runner, input_ids, attention_mask)
    arrays = {"input_ids": input_ids, "attention_mask": attention_mask}
    arrays |= {name: points[name] for name in names if name in points}
    dtype = runner.dtype or str(next(iter(points.values())).dtype)
    metadata = {
        "dtype": dtype,
        "texts": json.dumps(texts, ensure_ascii=False),
        "tokens": json.dumps([encoder.tokenizer.token_strings(of_text) for of_text in ids], ensure_ascii=False),
        "provenance": json.dumps({**encoder.provenance(prompt), "dtype": dtype, **runner.facts}, ensure_ascii=False),
    }
    return Run(arrays, metadata)


def _runner(encoder: E5, kind: str, file: str, names: Collection[str], dtype: str | None) -> Runner:
    """Load the runner of a backend."""
    if kind == "numpy":
        return numpy_runner(encoder, names)
    if kind == "jax":
        return jax_runner(encoder, names, dtype or "float32")
    from e5ref.parity.runs import peers

    if kind == "onnx":
        return peers.onnx_runner(encoder, Path(file), names, dtype)
    make = peers.transformers_runner if kind == "transformers" else peers.sentence_transformers_runner
    return make(encoder, names, dtype or "float32")


def run_batches(runner: Runner, input_ids: Ids, attention_mask: Ids) -> dict[str, NDArray[Any]]:
    """Run texts, [B, T] with padding on the right, in batches of `BATCH_TOKENS`, in their order, and join the points.

    Name → array of B texts, padded to T.
    """
    texts, tokens = input_ids.shape
    batch_texts = min(texts, max(1, BATCH_TOKENS // tokens))
    lengths = attention_mask.sum(axis=1)
    arrays: dict[str, NDArray[Any]] = {}
    with progress_bar(texts, "recording", "text") as progress:
        for start in range(0, texts, batch_texts):
            stop = min(start + batch_texts, texts)
            length = tokens if runner.fixed_shape else lengths[start:stop].max()
            batch = [array[start:stop, :length] for array in (input_ids, attention_mask)]
            if runner.fixed_shape:  # empty texts fill the last batch
                batch = [np.pad(array, ((0, batch_texts - len(array)), (0, 0))) for array in batch]
            for name, array in runner.run(*batch).items():
                if array.ndim not in (2, 3, 4) or len(array) != len(batch[0]):
                    raise ValueError(f"{name} has the unknown shape {array.shape} for a batch of {batch[0].shape}")
                if name not in arrays:
                    padded = {2: array.shape[1:], 3: (tokens, *array.shape[2:]), 4: (array.shape[1], tokens, tokens)}
                    arrays[name] = np.zeros((texts, *padded[array.ndim]), array.dtype)
                place = (slice(start, stop), *(slice(size) for size in array.shape[1:]))
                arrays[name][place] = array[: stop - start]
            progress.update(stop - start)
    return arrays
