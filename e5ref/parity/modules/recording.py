"""Record what every module of a tree gives for some texts, and what rounding costs there."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e5ref.engines.batching import pad_ids
from e5ref.parity.modules.tree import Inputs, Tree
from e5ref.parity.runs.check import DTYPES, matching
from e5ref.parity.runs.recording import DEFAULT_VALUES
from e5ref.parity.runs.rounding import ROUNDED, ErrorSum, costs_of
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
    if inputs[0]["input_ids"].ndim != 2:
        raise ValueError("this model's input_ids are not [1, T], so its points cannot be told from each other")
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
                if name not in points:
                    raise ValueError(f"{name} does not run for text {text}; choose other points with `only`")
                _put(arrays, name, points[name], text, input_ids.shape)
            if text == 0 and (values := sum(array.size for array in arrays.values())) > DEFAULT_VALUES:
                raise ValueError(f"{len(names)} points have {values:,} values; choose fewer with `only`")
            for other in others:
                less_exact = other.run(one)
                for name in names:
                    with np.errstate(invalid="ignore"):  # float16 may overflow
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
        # float16 may be too small for some models, and nobody can be judged by that.
        finite = {place: error for place, error in errors.items() if np.isfinite(error.rms)}
        metadata["rounding"] = json.dumps(costs_of(finite))
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
        """Build the module, and learn from a text of two lengths which points there are, and how their arrays lie."""
        self.tree, self.dtype = tree, dtype
        with widened(dtype, loading=True):
            self.module = tree.build(dtype)
        self.modules: dict[str, dict[str, Any]] = {}  # point → the module's kind, and the points that it is made from
        self._points: Points = {}
        self._shapes: dict[str, tuple[int, ...]] = {}  # of all arrays of floats, points or not
        self._layouts: dict[str, str] | None = None  # point → a key of LAYOUTS
        # Place in memory → point, array, and how often it was changed.
        self._caught: dict[Any, tuple[str, Any, int]] = {}
        self._sources: dict[str, list[str]] = {}  # path → the points that go into the module
        for path, module in self.module.named_modules():
            if path:
                module.register_forward_pre_hook(self._before(path), with_kwargs=True)
                module.register_forward_hook(self._after(path), with_kwargs=True)
        found = []
        for one in (longest, _of_another_length(longest)):
            self._shapes = {}
            self.run(one)
            found.append(self._shapes)
        layouts = {name: _layout(shape, found[1].get(name, ())) for name, shape in found[0].items()}
        self._layouts = {name: layout for name, layout in layouts.items() if layout is not None}
        self.run(longest)

    def run(self, inputs: Inputs) -> Points:
        """Run one text, and return what was caught in float64, or the dtype of the run; bfloat16 as float32."""
        torch = importlib.import_module("torch")
        self._points, self._caught = {}, {}
        with torch.no_grad(), widened(self.dtype):  # in inference mode nobody counts changes
            self.tree.call(self.module, inputs)
        points, self._points, self._caught = self._points, {}, {}
        return points

    def _before(self, path: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            sources: list[str] = []
            for tensor in _tensors((*args, *kwargs.values())):
                if type(module).__name__.endswith(IDENTIFIED) and not sources:
                    self._keep(f"{path}.input", tensor, "", [])
                known = self._known(tensor)
                sources += [known] if known and known not in sources else []
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
        """Keep an array that no module gave before, if it is a point."""
        if self._known(tensor) is not None:
            return
        while name in (self._shapes if self._layouts is None else self._points):  # the module is used again
            name += "'"
        if self._layouts is None:
            self._shapes[name] = tuple(tensor.shape)
        elif name in self._layouts:
            self.modules.setdefault(name, {"kind": kind, "from": sources})
            wide = tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor
            self._points[name] = LAYOUTS[self._layouts[name]](wide.detach().cpu().numpy()[0]).copy()
        else:
            return
        self._caught[_place(tensor)] = name, tensor, tensor._version

    def _known(self, tensor: Any) -> str | None:
        """Return the point that has this array, unless it was changed in place since."""
        name, _, version = self._caught.get(_place(tensor), (None, None, 0))
        return name if version == tensor._version else None


def _of_another_length(inputs: Inputs) -> Inputs:
    """Leave out the last token of a text, or repeat its only one."""
    torch = importlib.import_module("torch")
    tokens = inputs["input_ids"].shape[1]

    def changed(value: Any) -> Any:
        if getattr(value, "ndim", 0) != 2 or value.shape[1] != tokens:
            return value
        return value[:, :-1] if tokens > 1 else torch.cat([value, value], dim=1)

    return {name: changed(value) for name, value in inputs.items()}


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


def _place(tensor: Any) -> tuple[Any, ...]:
    """What tells an array from all others, but not from the same numbers split into heads."""
    return tensor.data_ptr(), tensor.numel(), tensor.ndim == 2


# How the array of one text lies, without its first axis → the point: [T, n], [N, T, T] or [n].
LAYOUTS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "tokens": lambda array: array.reshape(len(array), -1),
    "heads": lambda array: array.swapaxes(0, 1).reshape(array.shape[1], -1),
    "squares": lambda array: array,
    "text": lambda array: array,
}


# Number of axes, and those that grow with the text → how the array lies.
AXES = {(3, (1,)): "tokens", (4, (1,)): "tokens", (4, (2,)): "heads", (4, (2, 3)): "squares", (2, ()): "text"}


def _layout(shape: tuple[int, ...], other: tuple[int, ...]) -> str | None:
    """Return how an array lies, given its shapes for texts of two lengths; None if it is no point."""
    if len(shape) != len(other) or shape[:1] != (1,):
        return None
    return AXES.get((len(shape), tuple(axis for axis, size in enumerate(shape) if size != other[axis])))


def widened(dtype: str, *, loading: bool = False) -> AbstractContextManager[Any]:
    """Compute in float64 what modules ask to have in float32, such as the variance in a RMSNorm; for float64 alone.

    While a model is `loading`, what reads its files is left alone: there float32 says what the bytes are.
    """
    if dtype != "float64":
        return nullcontext()
    torch = importlib.import_module("torch")
    overrides = importlib.import_module("torch.overrides")

    class Widened(overrides.TorchFunctionMode):  # type: ignore[misc,name-defined]
        def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if loading and caller.partition(".")[0] in ("safetensors", "torch"):
                return function(*args, **(kwargs or {}))
            if function is torch.Tensor.float:
                function = torch.Tensor.double
            wide = [torch.float64 if value is torch.float32 else value for value in args]
            named = {name: torch.float64 if value is torch.float32 else value for name, value in (kwargs or {}).items()}
            return function(*wide, **named)

    return Widened()
