"""Record what every module of a tree gives for some texts, and what rounding costs there."""

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e5ref.engines.batching import pad_ids
from e5ref.parity.modules.tree import Inputs, Tree
from e5ref.parity.runs.check import DTYPES, matching
from e5ref.parity.runs.recording import DEFAULT_VALUES
from e5ref.parity.runs.rounding import ROUNDED, Costs, ErrorSum
from e5ref.parity.runs.run import Run
from e5ref.terminal.progress import progress_bar

# What a module that returns a dictionary is known for; the first of these that it has.
RESULTS = ("sentence_embedding", "token_embeddings", "last_hidden_state")

# The input of such modules is a point too, if no module gave it: then the judge can look at the module alone.
IDENTIFIED = ("Linear", "LayerNorm", "RMSNorm", "Activation", "GELU", "SiLU", "Tanh", "ReLU")

Points = dict[str, NDArray[Any]]  # for one text: [T, n], [n], or [N, T, T]


def record_modules(
    tree: Tree, texts: Sequence[str], *, dtype: str = "float64", only: Sequence[str] | None = None
) -> Run:
    """Put texts through a tree of modules, each text alone, and keep what every module gives.

    A point is named by the module's path, such as "encoder.layer.0.attention.self.query".

    - Of modules that give the same numbers, such as a layer and its last LayerNorm, the innermost one has the point.
    - If a module gives several arrays, the second is "PATH.1".
    - If a module is told what to compute by a word, as ModernBERT's positions are, the name has the word:
      "rotary_emb.sliding_attention". A module that is used again has "PATH'".
    - What goes into a linear layer, a norm or an activation is "PATH.input", unless a module gave it.

    Args:
        tree: the model.
        texts: the texts, with their prompts.
        dtype: what to compute in: "float64" for a reference, or "float32", "float16" or "bfloat16".
        only: names, or patterns such as "encoder.layer.*.output.dense", of the points to keep; None for all.

    Returns:
        The run. In float64 it has what rounding costs, measured by running the same modules in the smaller dtypes, and
        "modules": what each point's module is, and which points it is computed from.

    Raises:
        ValueError: there are no texts, the dtype is unknown, a pattern fits no point, or there is too much to keep.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, but must be one of {', '.join(DTYPES)}")
    if not texts:
        raise ValueError("there are no texts to record")
    inputs = [tree.inputs(text) for text in texts]
    ids = [one["input_ids"][0].tolist() for one in inputs]
    if not all(ids):
        raise ValueError(f"text {ids.index([])} has no token for this tokenizer; leave it out")
    longest = inputs[max(range(len(texts)), key=lambda text: len(ids[text]))]
    recorded = _Recorded(tree, dtype, longest)
    modules = recorded.modules
    names = list(modules) if only is None else matching(modules, only)
    for pattern in only or ():
        if not matching(modules, [pattern]):
            raise ValueError(f"there is no point {pattern!r}; this model has {', '.join(modules)}")
    input_ids, attention_mask = pad_ids(ids, 0)
    arrays: dict[str, NDArray[Any]] = {}
    errors = {(rounded, name): ErrorSum() for rounded in ROUNDED for name in names}
    others = [_Recorded(tree, rounded, longest) for rounded in ROUNDED] if dtype == "float64" else []
    with progress_bar(len(texts), "recording", "text") as progress:
        for text, one in enumerate(inputs):
            points = recorded.run(one)
            for name in names:
                _put(arrays, name, points[name], text, input_ids.shape)
            if text == 0 and (values := sum(array.size for array in arrays.values())) > DEFAULT_VALUES:
                raise ValueError(f"{len(names)} points have {values:,} values; choose fewer with `only`")
            for other in others:
                less_exact = other.run(one)
                for name in names:
                    errors[other.dtype, name].add((less_exact[name].astype(np.float64) - points[name]).ravel())
            progress.update()
    metadata = {
        "dtype": dtype,
        "texts": json.dumps(list(texts), ensure_ascii=False),
        "provenance": json.dumps({**tree.facts, "dtype": dtype}, ensure_ascii=False),
        "modules": json.dumps({name: modules[name] for name in modules if name in names}),
    }
    if tree.strings is not None:
        metadata["tokens"] = json.dumps([tree.strings(of_text) for of_text in ids], ensure_ascii=False)
    if others:
        costs: Costs = {rounded: {} for rounded in ROUNDED}
        for (rounded, name), error in errors.items():
            if np.isfinite(error.rms):  # float16 may be too small for some models, and nobody can be judged by that
                costs[rounded][name] = {"max": error.max, "rms": error.rms}
        metadata["rounding"] = json.dumps(costs)
    return Run({"input_ids": input_ids, "attention_mask": attention_mask, **arrays}, metadata)


def _put(arrays: dict[str, NDArray[Any]], name: str, point: NDArray[Any], text: int, shape: tuple[int, int]) -> None:
    """Put a text's values into the array of a point, padded on the right."""
    if name not in arrays:
        tokens = {1: point.shape, 2: (shape[1], *point.shape[1:]), 3: (len(point), shape[1], shape[1])}
        arrays[name] = np.zeros((shape[0], *tokens[point.ndim]), point.dtype)
    place: tuple[int | slice, ...] = (text, *(slice(size) for size in point.shape))
    arrays[name][place] = point


class _Recorded:
    """A module with hooks on all that is in it, and what they caught."""

    def __init__(self, tree: Tree, dtype: str, longest: Inputs) -> None:
        """Build the module, and learn from a long text which points there are, and how their arrays lie."""
        self.tree, self.dtype = tree, dtype
        with widened(dtype):
            self.module = tree.build(dtype)
        self.modules: dict[str, dict[str, Any]] = {}  # point → the module's kind, and the points that it is made from
        self._points: Points = {}
        self._layouts: dict[str, str] = {}  # point → a key of LAYOUTS
        self._caught: dict[tuple[int, int], tuple[str, Any]] = {}  # place in memory → point and array
        self._sources: dict[str, list[str]] = {}  # path → the points that go into the module
        self._tokens = 0
        for path, module in self.module.named_modules():
            if path:
                module.register_forward_pre_hook(self._before(path), with_kwargs=True)
                module.register_forward_hook(self._after(path), with_kwargs=True)
        self.run(longest)

    def run(self, inputs: Inputs) -> Points:
        """Run one text, and return what was caught in float64, or the dtype of the run; bfloat16 as float32."""
        torch = importlib.import_module("torch")
        self._tokens, self._points, self._caught = inputs["input_ids"].shape[1], {}, {}
        with torch.inference_mode(), widened(self.dtype):
            self.tree.call(self.module, inputs)
        points, self._points, self._caught = self._points, {}, {}
        return points

    def _before(self, path: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            sources: list[str] = []
            for tensor in _tensors((*args, *kwargs.values())):
                if type(module).__name__.endswith(IDENTIFIED) and not sources:
                    self._keep(f"{path}.input", tensor, "", [])
                known = self._caught.get(_place(tensor))
                sources += [known[0]] if known and known[0] not in sources else []
            self._sources[path] = sources

        return hook

    def _after(self, path: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            words = [value for value in (*args, *kwargs.values()) if isinstance(value, str)]
            for index, tensor in enumerate(_tensors((output,))):
                name = ".".join([path, *words, *[str(index)] * bool(index)])
                self._keep(name, tensor, type(module).__name__, self._sources.get(path, []))

        return hook

    def _keep(self, name: str, tensor: Any, kind: str, sources: list[str]) -> None:
        """Keep an array that no module gave before, if its shape is that of a point."""
        if _place(tensor) in self._caught:
            return
        while name in self._points:  # the module is used again
            name += "'"
        if name not in self.modules:
            layout = _layout(tuple(tensor.shape), self._tokens)
            if layout is None:
                return
            self.modules[name], self._layouts[name] = {"kind": kind, "from": sources}, layout
        self._caught[_place(tensor)] = name, tensor
        wide = tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor
        self._points[name] = LAYOUTS[self._layouts[name]](wide.detach().cpu().numpy()[0]).copy()


def _tensors(values: Sequence[Any]) -> Iterator[Any]:
    """Yield the arrays of floats among the values, in tuples and dictionaries too."""
    for value in values:
        if isinstance(value, dict):
            found = [value[name] for name in RESULTS if value.get(name) is not None]
            yield from _tensors(found[:1])
        elif isinstance(value, tuple | list):
            yield from _tensors(value)
        elif hasattr(value, "is_floating_point") and value.is_floating_point():
            yield value


def _place(tensor: Any) -> tuple[int, int]:
    """What tells an array from all others, but not from the same numbers in a different shape."""
    return tensor.data_ptr(), tensor.numel()


# How the array of one text lies, without its first axis → the point: [T, n], [N, T, T] or [n].
LAYOUTS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "tokens": lambda array: array.reshape(len(array), -1),
    "heads": lambda array: array.swapaxes(0, 1).reshape(array.shape[1], -1),
    "squares": lambda array: array,
    "text": lambda array: array,
}


def _layout(shape: tuple[int, ...], tokens: int) -> str | None:
    """Return how the array of a long text lies; None if its shape is none of a point's."""
    if shape[:1] != (1,):
        return None
    if len(shape) == 4 and shape[2:] == (tokens, tokens):
        return "squares"
    if len(shape) in (3, 4) and shape[1] == tokens:
        return "tokens"
    if len(shape) == 4 and shape[2] == tokens:
        return "heads"
    return "text" if len(shape) == 2 else None


def widened(dtype: str) -> AbstractContextManager[Any]:
    """Compute in float64 what modules ask to have in float32, such as the variance in a RMSNorm; for float64 alone."""
    if dtype != "float64":
        return nullcontext()
    torch = importlib.import_module("torch")
    overrides = importlib.import_module("torch.overrides")

    class Widened(overrides.TorchFunctionMode):  # type: ignore[misc,name-defined]
        def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.Tensor.float:
                function = torch.Tensor.double
            wide = [torch.float64 if value is torch.float32 else value for value in args]
            named = {name: torch.float64 if value is torch.float32 else value for name, value in (kwargs or {}).items()}
            return function(*wide, **named)

    return Widened()
