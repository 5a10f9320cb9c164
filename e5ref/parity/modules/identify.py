"""Identify what a port of a tree of modules did, where the module is linear, a norm, an activation or an embedding.

Every module is applied to the run's own numbers, so an error is seen only where it is made.
"""

import importlib
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from e5ref.checkpoint.params import Affine
from e5ref.operations import Array
from e5ref.parity.altered.changes import normed
from e5ref.parity.altered.models import round_to
from e5ref.parity.identify.layer_norm import EPSILONS, NORMS, power
from e5ref.parity.identify.linear import PRECISIONS, describe_difference, tf32
from e5ref.parity.identify.pointwise import FUNCTIONS
from e5ref.parity.identify.site import gelu
from e5ref.parity.judge.comparison import Comparison, expected_errors
from e5ref.parity.judge.explain import Explanation
from e5ref.parity.modules.recording import widened
from e5ref.parity.modules.tree import Tree
from e5ref.parity.runs.rounding import FACTOR, ErrorSum, token_values
from e5ref.parity.runs.run import Run

# What explains a module must lower its error at least by this factor.
LOWERED = 4.0

Candidates = Iterator[tuple[str, Array]]  # what the module may have done: in words, and what it then gives, [R, n]


def explain_modules(
    run: Run, reference: Run, tree: Tree, comparison: Comparison, *, seconds: float = 30.0
) -> list[Explanation]:
    """Identify the modules of a run that did not do what the reference's do.

    Args:
        run: the run that is judged.
        reference: what `record_modules` returned in float64.
        tree: the reference's model.
        comparison: what `compare` returned for the two.
        seconds: when to stop.

    Returns:
        What each module did, in the order of computation, if that could be identified; if not, what was measured.
    """
    stop = time.monotonic() + seconds
    with widened("float64", loading=True):
        modules = dict(tree.build("float64").named_modules())
    sites = [_Site(reference, reference, modules, name) for name in reference.points]
    linear = [site for site in sites if site.kind == "Linear" and site.source in reference.points]
    if linear and not any(site.is_known for site in linear):
        raise ValueError("the model is not that of the reference: its linear layers give different numbers")
    found = []
    for verdict in comparison.verdicts:
        site = _Site(run, reference, modules, verdict.name)
        if verdict.verdict != "DIFF" or not site.is_known:
            continue
        if time.monotonic() > stop:
            break
        if (before := site.factor(site.applied)) > FACTOR:
            found.append(_explained(site, before, stop))
    return found


def _explained(site: "_Site", before: float, stop: float) -> Explanation:
    """Name the candidate that is closest, the simpler of two that are equally close; or say what was measured.

    After `stop`, of `time.monotonic`, no more candidates are tried.
    """
    best, says = min(FACTOR, before / LOWERED), ""
    for words, values in site.candidates():
        if values.shape == site.output.shape and (factor := site.factor(values)) < best / (1.5 if says else 1):
            best, says = factor, words
        if time.monotonic() > stop:
            break
    error = float(np.abs(site.output - site.applied).max())
    check = f"the module {site.name}"
    if says:
        return Explanation(f"{site.name}: {says}", check, site.name, error, error * best / before, True, True)
    return Explanation(f"{site.name}: {site.measured()}", check, site.name, error, np.nan, False, True)


@dataclass(frozen=True)
class _Site:
    """One module, what went into it in a run, and what came out."""

    run: Run
    reference: Run
    modules: dict[str, Any]
    name: str

    @property
    def module(self) -> Any:
        return self.modules.get(self.name)

    @property
    def source(self) -> str | None:
        """The point that goes in."""
        sources = self.reference.modules.get(self.name, {"from": []})["from"]
        return sources[0] if len(sources) == 1 else None

    @property
    def kind(self) -> str:
        """What the module is: a key of `KINDS`, or ""."""
        name = type(self.module).__name__
        if self.module is None:
            return ""
        if getattr(self.module, "weight", None) is None:
            return "activation" if self.source is not None and not list(self.module.children()) else ""
        if name.endswith("LayerNorm") and getattr(self.module, "eps", None) is None:  # T5's is a RMSNorm
            return "RMSNorm"
        return next((kind for kind in KINDS if name.endswith(kind)), "")

    @property
    def is_known(self) -> bool:
        """Whether the module is of a known kind, and gives the reference's point for what the reference puts in.

        A module may take more than one array, or ids that are not the tokens', or its input may be changed in place.
        """
        right = _Site(self.reference, self.reference, self.modules, self.name)
        for run in (self.run, self.reference):
            if not self.kind or (self.kind != "Embedding" and self.source not in run.points):
                return False
        try:
            given = right.applied
        except Exception:  # whatever a module says of an array that is not what it takes
            return False
        if given.shape != right.output.shape or not np.allclose(given, right.output, rtol=1e-5, atol=1e-5):
            return False
        return self.x.shape[1:] == right.x.shape[1:] and self.output.shape[1:] == right.output.shape[1:]

    @cached_property
    def x(self) -> Array:
        """What went in: rows of the run. [R, n]; for an embedding the token ids, [R]."""
        if self.kind == "Embedding":
            return np.concatenate([np.array(ids) for ids in self.run.ids])
        return self._rows(str(self.source))

    @cached_property
    def output(self) -> Array:
        """What the run recorded. [R, n]."""
        return self._rows(self.name)

    @property
    def weight(self) -> Array:
        return _array(self.module.weight)

    @property
    def bias(self) -> Array:
        """The bias; 0 if the module has none."""
        bias = getattr(self.module, "bias", None)
        return np.zeros(len(self.weight)) if bias is None else _array(bias)

    def sisters(self) -> Iterator[tuple[str, Array, Array]]:
        """Yield other modules of the same class and size: path, weight and bias."""
        for path, module in self.modules.items():
            if (
                path != self.name
                and type(module) is type(self.module)
                and module.weight.shape == self.module.weight.shape
            ):
                site = _Site(self.run, self.reference, self.modules, path)
                yield path, site.weight, site.bias

    @cached_property
    def applied(self) -> Array:
        """What the module gives. [R, n]."""
        torch = importlib.import_module("torch")
        x = self.x
        if self.kind.endswith("Norm"):  # a norm of each head
            x = x.reshape(-1, self.weight.shape[0])
        with torch.inference_mode(), widened("float64"):
            return self.module(torch.from_numpy(np.ascontiguousarray(x))).numpy().reshape(len(self.x), -1)

    def factor(self, values: Array) -> float:
        """Return how many times the cost of rounding the run is from some values."""
        scale, errors = ErrorSum(), ErrorSum()
        scale.add(values)
        errors.add(self.output - values)
        largest, rms = expected_errors(self.reference, self.name, self.run.dtype, scale)
        if not np.isfinite(errors.rms) or not largest:
            return 0.0 if errors.max == 0 else math.inf
        return max(errors.max / largest, errors.rms / rms)

    def candidates(self) -> Candidates:
        with np.errstate(all="ignore"):
            yield from KINDS[self.kind](self)

    def measured(self) -> str:
        """Say what the difference looks like, if nothing explains it."""
        applied = self.applied
        if self.kind == "Linear":
            return describe_difference(self.output - applied, applied - self.bias)
        share = np.linalg.norm(self.output - applied) / np.linalg.norm(applied)
        return f"its own input gives a different result, by {share:.2%} in norm"

    def _rows(self, name: str) -> Array:
        texts = range(len(self.run.input_ids))
        return np.concatenate([token_values(self.run.points[name], self.run.attention_mask, text) for text in texts])


def _array(tensor: Any) -> Array:
    return tensor.detach().double().numpy()


def _linear(site: _Site) -> Candidates:
    x, weight, bias = site.x, site.weight, site.bias
    product = x @ weight.T
    has_bias = site.module.bias is not None
    if has_bias:
        yield "the bias is missing", product
        yield "the bias is added twice", product + 2 * bias
        yield "the bias is subtracted", product - bias
    for path, other, its_bias in site.sisters():
        yield f"the weight of {path} is used", x @ other.T + bias
        if has_bias:
            yield f"weight and bias of {path} are used", x @ other.T + its_bias
            yield f"the bias of {path} is used", product + its_bias
    transposed = " and not transposed" if weight.shape[0] != weight.shape[1] else ", so it is transposed"
    yield f"the weight is read as [in, out]{transposed}", x @ weight.T.reshape(weight.shape).T + bias
    yield "the rows of weight and bias are in reverse", (product + bias)[:, ::-1]
    for n, parts in ((2, "halves"), (3, "thirds")):
        if len(weight) % n == 0:
            for order in itertools.permutations(range(n)):
                places = np.concatenate([np.split(np.arange(len(weight)), n)[part] for part in order])
                order_of = ", ".join(str(part + 1) for part in order)
                yield f"the {parts} of the rows are in the order {order_of}", (product + bias)[:, places]
    scale = float(np.vdot(product, site.output - bias) / np.vdot(product, product))
    yield f"the weight is multiplied by {scale:.6g}", scale * product + bias
    whole = product + bias
    scale = float(np.vdot(whole, site.output) / np.vdot(whole, whole))
    yield f"the result is multiplied by {scale:.6g}", scale * whole
    for says, rounded in PRECISIONS.items():
        yield f"the weight is {says}", x @ rounded(weight).T + bias
    for says, rounded in ROUNDINGS.items():
        yield f"the input is rounded to {says}", rounded(x) @ weight.T + bias
        yield f"input and weight are rounded to {says}", rounded(x) @ rounded(weight).T + bias


ROUNDINGS: dict[str, Callable[[Array], Array]] = {
    "bfloat16": lambda x: round_to(x, "bfloat16"),
    "float16": lambda x: round_to(x, "float16"),
    "TF32": tf32,
}


def _layer_norm(site: _Site) -> Candidates:
    x, own, eps = site.x.reshape(-1, len(site.weight)), Affine(site.weight, site.bias), site.module.eps
    plain = NORMS["LayerNorm has neither weight nor bias"]
    values: dict[str, Array] = {"LayerNorm is left out": x}
    for epsilon in EPSILONS:
        if epsilon != eps:
            values[f"LayerNorm has epsilon {power(epsilon)}"] = plain(x, own, epsilon) * own.weight + own.bias
    values |= {says: norm(x, own, eps) for says, norm in NORMS.items()}
    for path, weight, bias in site.sisters():
        values[f"LayerNorm has the weight of {path}"] = plain(x, own, eps) * weight + own.bias
        if site.module.bias is not None:
            values[f"LayerNorm has the weight and bias of {path}"] = plain(x, own, eps) * weight + bias
            values[f"LayerNorm has the bias of {path}"] = plain(x, own, eps) * own.weight + bias
    for says, rows in values.items():
        yield says, rows.reshape(len(site.x), -1)


def _rms_norm(site: _Site) -> Candidates:
    weight = site.weight
    x = site.x.reshape(-1, len(weight))
    eps: Any = getattr(site.module, "eps", None) or getattr(site.module, "variance_epsilon", 0.0)
    plain = normed(x, mean=False, inside=eps)
    # Some multiply by the weight, some by 1 + weight.
    factor = np.median(site.applied.reshape(x.shape) / np.where(plain == 0, 1, plain), axis=0)
    values: dict[str, Array] = {"the norm is left out": x, "the norm has no weight": plain}
    for says, other in (("the weight", weight), ("1 + weight", 1 + weight)):
        if not np.allclose(other, factor):
            values[f"the norm multiplies by {says}"] = plain * other
    for epsilon in EPSILONS:
        if epsilon != eps:
            values[f"the norm has epsilon {power(epsilon)}"] = normed(x, mean=False, inside=epsilon) * factor
    values["the mean is subtracted first, as in LayerNorm"] = normed(x, inside=eps) * factor
    values["the epsilon is outside the root"] = normed(x, mean=False, outside=eps) * factor
    for path, other, _ in site.sisters():
        values[f"the norm has the weight of {path}"] = plain * (other + (factor - weight).round())
    for says, rows in values.items():
        yield says, rows.reshape(len(site.x), -1)


def _activation(site: _Site) -> Candidates:
    yield "the activation is GELU with erf", gelu(np.array(site.x))
    for says, function in FUNCTIONS.items():
        yield f"the activation is {says}", function(np.array(site.x))


def _embedding(site: _Site) -> Candidates:
    table, ids, applied = site.weight, site.x, site.applied
    for says, shift in (("one row further is", 1), ("the row before is", -1)):
        yield f"{says} taken", table[(ids + shift) % len(table)]
    for path, other, _ in site.sisters():
        yield f"the weight of {path} is used", other[ids % len(other)]
    scale = float(np.vdot(applied, site.output) / np.vdot(applied, applied))
    yield f"the rows are multiplied by {scale:.6g}", scale * applied
    yield "the rows are in float16", round_to(applied, "float16")
    yield "the rows are in bfloat16", round_to(applied, "bfloat16")


# How the name of a module's class ends → what it may have done. One without weights is an activation.
KINDS: dict[str, Callable[[_Site], Candidates]] = {
    "Linear": _linear,
    "LayerNorm": _layer_norm,
    "RMSNorm": _rms_norm,
    "Embedding": _embedding,
    "activation": _activation,
}
