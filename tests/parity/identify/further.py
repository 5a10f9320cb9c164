"""Further mistakes, planted when the judge could identify already: it measured them, and now it can name them."""

import ml_dtypes
import numpy as np

from e5ref.checkpoint.params import BertParams
from tests.parity.identify.reported import Reported, Weights, all_matrices

OURS = "planted on all-MiniLM-L6-v2"  # no report of them was looked for
PROBABILITIES = "probabilities = softmax(scores).swapaxes(-1, -2)"
GELU = "    magnitude = np.clip(x, -40, 40)"
UNIT = "return vectors / np.maximum(norms, 1e-12)"


def embeddings(**changes: object) -> Weights:
    """Change the tables of embeddings: name → a function of the table."""

    def weights(params: BertParams, _checkpoint: object, _ids: np.ndarray) -> BertParams:
        tables = params.embeddings
        changed = {name: change(getattr(tables, name)) for name, change in changes.items()}
        return params._replace(embeddings=tables._replace(**changed))

    return weights


def activation(name: str, says: str, expression: str) -> Reported:
    edits = ((GELU, f"    x[...] = {expression}\n    return\n{GELU}"),)
    return Reported(name, OURS, "layers.0.feed_forward_activation", says, edits)


def attention(name: str, says: str, *lines: str) -> Reported:
    edits = ((PROBABILITIES, "\n        ".join(lines)),)
    return Reported(name, OURS, "layers.0.attention_probabilities", says, edits)


def unit(name: str, says: str, expression: str) -> Reported:
    return Reported(name, OURS, "normalized", says, ((UNIT, f"return {expression}"),))


def float8(weight: np.ndarray) -> np.ndarray:
    return weight.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)


LEAST_OF_4 = "least = np.sort(probabilities, axis=-1)[..., -4:][..., :1]"
KEPT = "probabilities = np.where(probabilities >= least, probabilities, 0).astype(scores.dtype)"

FURTHER = [
    Reported(
        "positions halved",
        OURS,
        "embeddings",
        r"the position embedding is added 0\.5 times",
        weights=embeddings(position=lambda table: table / np.float32(2)),
    ),
    Reported(
        "words times 3",
        OURS,
        "embeddings",
        "the word embedding is added 3 times",
        weights=embeddings(word=lambda table: table * np.float32(3)),
    ),
    Reported(
        "words shifted by a row",
        OURS,
        "embeddings",
        "word embeddings take the row 1 before",
        weights=embeddings(word=lambda table: np.roll(table, 1, axis=0)),
    ),
    Reported(
        "the residual halved",
        OURS,
        "layers.0.attention_output",
        r"the residual is added 0\.5 times",
        (("attention += hidden_states", "attention += 0.5 * hidden_states"),),
    ),
    Reported("weights in float8", OURS, "layers.0.query", r"float8 \(E4M3\)$", weights=all_matrices(float8)),
    activation("sigmoid with 1.5", r"x σ\(1\.5 x\)", "x / (1 + np.exp(-1.5 * x))"),
    activation("leaky ReLU with 0.2", r"leaky ReLU with 0\.2", "np.where(x > 0, x, x.dtype.type(0.2) * x)"),
    attention("the 4 most probable keys", "only the 4 most probable keys, .* not", PROBABILITIES, LEAST_OF_4, KEPT),
    attention(
        "the 4 most probable keys alone",
        "only the 4 most probable keys$",
        PROBABILITIES,
        LEAST_OF_4,
        KEPT,
        "probabilities = probabilities / probabilities.sum(-1, keepdims=True)",
    ),
    attention("transposed", "the probabilities are transposed", "probabilities = softmax(scores)"),
    attention("every second key", "only tokens 0, 2, 4, .* are seen", "scores[..., 1::2, :] = -np.inf", PROBABILITIES),
    attention("a scale that empties probabilities", "scale is 400/√H", "scores *= 400", PROBABILITIES),
    unit("vectors in float16", "rounded to float16", "(vectors / norms).astype(np.float16).astype(vectors.dtype)"),
    unit("vectors of 8 bits", "rounded to 1/127", "np.rint(vectors / norms * 127) / vectors.dtype.type(127)"),
    unit("dimensions in reverse", "the dimensions are in reverse", "(vectors / norms)[:, ::-1]"),
]
