"""What the page shows of a run, as JSON. The more there is to show, the less exactly, so that the page stays small."""

import base64
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from e5ref.inside.changes import Change, changes_of, compared
from e5ref.inside.explain import Explanation, explanation_of
from e5ref.inside.reference import Reference
from e5ref.inside.run import Model, Trace, pooling_weights, run
from e5ref.inside.sources import panels
from e5ref.operations import Array
from e5ref.operations.rows import token_positions

# Characters of JSON. With the page's own 100,000 that leaves room below two million.
BUDGET = 1_800_000


class Detail(NamedTuple):
    """How exactly arrays are shown."""

    coding: str  # "own" for the run's dtype; "i2" or "i1" for whole numbers of 2 or 1 byte, times a scale
    columns: int  # the most that a heat map of hidden states has: those that differ most between tokens
    rows: int  # the most that a heat map has: neighbouring tokens are taken together


DETAILS = (
    Detail("own", 10_000, 64),
    Detail("i2", 10_000, 64),
    Detail("i2", 64, 64),
    Detail("i1", 64, 64),
    Detail("i1", 64, 48),
    Detail("i1", 48, 40),
    Detail("i1", 48, 32),
    Detail("i1", 32, 24),
    Detail("i1", 32, 16),
    Detail("i1", 16, 12),
)


def page_data(model: Model, texts: list[str], reference: Reference) -> str:
    """Run texts and what they could be changed to, and return all that the page shows, as JSON.

    Args:
        model: any model.
        texts: one or two.
        reference: that of the model.
    """
    runs = [run(model, text) for text in texts]
    changed = [(change, run(model, change.text)) for change in changes_of(texts[0], model.checkpoint.settings.prompts)]
    pooling = model.checkpoint.settings.pooling
    explanation = explanation_of(runs[0], runs[1], pooling, reference) if len(runs) == 2 else None
    for detail in DETAILS:
        if least_size(runs, [each for _, each in changed], detail) > BUDGET:  # which is quicker than to write it all
            continue
        data = json.dumps(_page_data(model, runs, changed, explanation, reference, detail), allow_nan=False)
        if len(data) <= BUDGET:
            return data
    raise ValueError(f"{model.checkpoint.name} has more layers and heads than a page can show")


def _page_data(
    model: Model,
    runs: list[Trace],
    changed: list[tuple[Change, Trace]],
    explanation: Explanation | None,
    reference: Reference,
    detail: Detail,
) -> dict[str, Any]:
    config = model.checkpoint.config
    return {
        "model": model.checkpoint.name,
        "dtype": str(model.dtype),
        "pooling": model.checkpoint.settings.pooling,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "detail": detail._asdict(),
        "reference": {"texts": reference.texts, "average_cosine": reference.average_cosine},
        "panels": panels(config, len(runs[0].ids), model.checkpoint.settings.pooling),
        "texts": [text_data(model, each, detail) for each in runs],
        "changes": [
            {
                "name": change.name,
                "text": text_data(model, each, detail, whole=False),
                **compared(runs[0], each, runs[1:]),
            }
            for change, each in changed
        ],
        "pairs": None if explanation is None else _pairs_data(runs, explanation, detail),
    }


def text_data(model: Model, run: Trace, detail: Detail, *, whole: bool = True) -> dict[str, Any]:
    """Return what the page shows of one text; not `whole` leaves out all heat maps but a layer's attention and output.

    A row is a token; of a text with more tokens than `detail.rows`, it is the average of some neighbours.
    """
    starts = row_starts(len(run.ids), detail)
    states = run.points["last_hidden_state"].astype(np.float64)
    pooled = run.points["pooled"]
    weights = pooling_weights(run, model.checkpoint.settings.pooling)
    return {
        "text": run.text,
        "cut": run.cut,
        "tokens": [
            {
                "token": token,
                "id": int(token_id),
                "group": group,
                **piece._asdict(),
                "surface": _surface(run.text, piece),
            }
            for token, token_id, group, piece in zip(run.tokens, run.ids, run.groups, run.pieces, strict=True)
        ],
        "starts": starts.tolist(),
        "points": {name: _point(array, starts, detail) for name, array in heat_maps(run, whole=whole).items()},
        "summands": dict(_summands(model, run, starts, detail)) if whole else {},
        "norms": {
            name: encoded(_averaged(np.linalg.norm(array, axis=-1), starts))
            for name, array in run.points.items()
            if array.ndim == 2
        },
        "added": list(_added(run, starts)),
        "shares": encoded(np.add.reduceat(weights * (states @ pooled) / (pooled @ pooled), starts)),
        "pooled": encoded(pooled),
        "vector": encoded(run.vector),
    }


def heat_maps(run: Trace, *, whole: bool) -> dict[str, Array]:
    """Return the named points that are shown as heat maps: attention, [N, T, T], and hidden states, [T, n]."""
    kept = ("embeddings", "output", "attention_probabilities")
    return {name: array for name, array in run.points.items() if array.ndim > 1 and (whole or name.endswith(kept))}


def least_size(runs: list[Trace], changed: list[Trace], detail: Detail) -> float:
    """Return how many characters the heat maps take in base64, which writes 3 bytes as 4 characters."""
    size = 0.0
    for some, whole in ((runs, True), (changed, False)):
        for each in some:
            rows = len(row_starts(len(each.ids), detail))
            for array in heat_maps(each, whole=whole).values():
                numbers = len(array) * rows**2 if array.ndim == 3 else rows * min(array.shape[1], detail.columns)
                size += (
                    numbers * (array.itemsize if detail.coding == "own" else np.dtype(detail.coding).itemsize) * 4 / 3
                )
    return size


def row_starts(tokens: int, detail: Detail) -> NDArray[np.int64]:
    """Return the token with which each row begins, [rows]: each token has its own, if there are not too many."""
    return np.arange(0, tokens, -(-tokens // detail.rows))


def encoded(array: Array, coding: str = "own") -> dict[str, Any]:
    """Write an array as base64 of its bytes, little endian, row after row.

    Args:
        array: any shape, float32 or float64.
        coding: as in `Detail`.

    Returns:
        "shape", "coding" ("f4", "f8", "i2" or "i1"), "scale", by which the numbers are to be multiplied, and "bytes".
    """
    scale = 1.0
    if coding == "own":
        coding = f"f{array.itemsize}"
    else:
        scale = float(np.abs(array).max(initial=0)) / np.iinfo(coding).max or 1.0
        array = np.rint(array / scale)
    data = base64.b64encode(array.astype(f"<{coding}").tobytes()).decode()
    return {"shape": array.shape, "coding": coding, "scale": scale, "bytes": data}


def _surface(text: str, piece: Any) -> str:
    return text[piece.start : piece.stop]


def _averaged(array: Array, starts: NDArray[np.int64], axis: int = 0) -> Array:
    """Average neighbouring tokens. [T, …] -> [rows, …]."""
    if len(starts) == array.shape[axis]:
        return array
    counts = np.diff(starts, append=array.shape[axis]).reshape([-1 if i == axis else 1 for i in range(array.ndim)])
    return (np.add.reduceat(array, starts, axis) / counts).astype(array.dtype)


def _point(array: Array, starts: NDArray[np.int64], detail: Detail) -> dict[str, Any]:
    """Write a named point: [T, n] with some of its columns, or attention, [N, T, T]."""
    if array.ndim == 3:
        among = _averaged(array, starts, axis=1)
        # What a token gives to each of some neighbours is added up, so that a row's sum stays 1.
        among = np.add.reduceat(among, starts, axis=2) if len(starts) < array.shape[2] else among
        return encoded(among, detail.coding)
    rows = _averaged(array, starts)
    if rows.shape[1] <= detail.columns:
        return encoded(rows, detail.coding)
    columns = np.sort(np.argsort(-rows.var(axis=0), kind="stable")[: detail.columns])
    return encoded(rows[:, columns], detail.coding) | {"columns": columns.tolist(), "width": rows.shape[1]}


def _summands(
    model: Model, run: Trace, starts: NDArray[np.int64], detail: Detail
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what `embed_tokens` takes from its three tables, and the sum, [rows, D] each."""
    params, config = model.checkpoint.params.embeddings, model.checkpoint.config
    ids = run.ids[None]  # a batch of one
    positions = token_positions(ids, np.ones_like(ids), config)[0]
    token_type = np.repeat(params.token_type[:1], len(run.ids), axis=0)
    summands = {"word": params.word[run.ids], "position": params.position[positions], "token_type": token_type}
    for name, rows in (summands | {"sum": sum(summands.values())}).items():
        yield name, _point(rows, starts, detail) | {"norms": encoded(_averaged(np.linalg.norm(rows, axis=1), starts))}


def _added(run: Trace, starts: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
    """Yield for each layer what attention and feed-forward add to what came in: norm, and cosine with it, [rows]."""
    incoming = run.points["embeddings"]
    for index, (attention, feed_forward) in enumerate(run.updates):
        between = run.points[f"layers.{index}.attention_output"]
        yield {
            name: {
                "norm": encoded(_averaged(np.linalg.norm(update, axis=1), starts)),
                "cosine": encoded(_averaged(_cosines(update, state), starts)),
            }
            for name, update, state in (("attention", attention, incoming), ("feed_forward", feed_forward, between))
        }
        incoming = run.points[f"layers.{index}.output"]


def _cosines(a: Array, b: Array) -> Array:
    """Return the cosine of each row with the same row of the other. [m, n], [m, n] -> [m]."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.vecdot(a, b) / np.maximum(norms, np.finfo(a.dtype).tiny)


def _pairs_data(runs: list[Trace], explanation: Explanation, detail: Detail) -> dict[str, Any]:
    """Return what the page shows of an explanation; sums over some neighbours still add up to the cosine."""
    first, second = (row_starts(len(run.ids), detail) for run in runs)

    def shown(matrix: NDArray[np.float64], cosine: float, *, centred: bool) -> dict[str, Any]:
        return {
            "cosine": cosine,
            "matrix": encoded(np.add.reduceat(np.add.reduceat(matrix, first, axis=0), second, axis=1)),
            "top": explanation.top(12, centred=centred),
            "shares": explanation.shares(centred=centred),
        }

    return {
        "as_is": shown(explanation.matrix, explanation.cosine, centred=False),
        "centred": shown(explanation.centred_matrix, explanation.centred_cosine, centred=True),
    }
