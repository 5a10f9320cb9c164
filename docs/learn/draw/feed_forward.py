"""The pictures of chapter 4: what each token does on its own."""

import math
from collections.abc import Callable, Iterator

import numpy as np
from matplotlib.figure import Figure

import e5ref
from docs.learn.draw.activations import PASSAGE, QUERY, nano, recorded
from docs.learn.draw.canvas import BLUE, FAINT, MUTED, RED, SIGNED, axes
from e5ref.demo import PASSAGES, QUERIES
from e5ref.operations import Array
from e5ref.parity.altered.models import model_copy

# Layer and number of units, and which tokens of the page's texts they answer to.
UNITS = {(0, 57): "[SEP]", (1, 49): "define", (2, 292): "the topic", (2, 236): "[CLS]", (2, 502): "the prefix"}

X = np.linspace(-5, 5, 401)


def pictures() -> Iterator[tuple[str, Figure, str]]:
    """Draw them one by one: name, figure, what is seen."""
    yield "feed-forward-gelu", curves(), "GELU beside ReLU, and how far the tanh form lies from it: 0.0005 at most."
    yield "feed-forward-units", units(), "Five units: each is dark at one kind of token, such as define and definition."
    yield (
        "feed-forward-cost",
        cost(),
        "What a wrong curve changes in a vector: tanh a thousand times what rounding does.",
    )


def gelu(x: Array) -> Array:
    """GELU in its erf form."""
    return (0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))).astype(x.dtype)


def tanh_gelu(x: Array) -> Array:
    """GELU in its tanh form."""
    return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))).astype(x.dtype)


def sigmoid_gelu(x: Array) -> Array:
    """GELU in its sigmoid form."""
    return (x / (1 + np.exp(-1.702 * x))).astype(x.dtype)


def relu(x: Array) -> Array:
    """What GELU is a smooth form of."""
    return np.maximum(x, 0)


def curves() -> Figure:
    """GELU and ReLU, and the difference of the forms."""
    figure, panels = axes(7.6, 3.0, columns=2)
    panels[0].plot(X, relu(X), color=MUTED, lw=1.5, ls="--")
    panels[0].plot(X, gelu(X), color=BLUE, lw=2)
    panels[0].text(-2.1, 0.35, "ReLU", color=MUTED, ha="right")
    panels[0].text(0.9, 0.2, "GELU", color=BLUE)
    panels[0].set(title="the curve", xlim=(-4, 3), ylim=(-0.5, 3), xlabel="x")
    panels[1].plot(X, tanh_gelu(X) - gelu(X), color=RED, lw=2)
    panels[1].axhline(0, color=FAINT, lw=1, zorder=0)
    panels[1].set(title="tanh form − erf form", xlabel="x", yticks=[-2e-4, 0, 2e-4, 4e-4])
    panels[1].set_yticklabels(["−0.0002", "0", "0.0002", "0.0004"])
    return figure


def units() -> Figure:
    """What some units of the feed-forward network give for each token of two texts."""
    figure, panels = axes(7.8, 3.8, columns=2, width_ratios=[11, 16], sharey=True)
    for panel, text in zip(panels, (QUERY, PASSAGE), strict=True):
        tokens, run = recorded(text)
        rows = [run[f"layers.{layer}.feed_forward_activation"][:, unit] for layer, unit in UNITS]
        image = panel.imshow(np.array(rows), cmap=SIGNED, vmin=-2.75, vmax=2.75, aspect="auto")
        panel.set_xticks(range(len(tokens)), tokens, rotation=90)
        names = [f"{layer}, {unit}: “{kind}”" for (layer, unit), kind in UNITS.items()]
        panel.set_yticks(range(len(UNITS)), names)
        panel.tick_params(length=0)
        panel.set_title(text.partition(":")[0])
    panels[0].set_ylabel("layer, unit")
    figure.colorbar(image, ax=panels, label="after GELU", shrink=0.8)
    return figure


def cost() -> Figure:
    """The largest difference that a curve makes in the unit vectors of the model card's four texts."""
    truth = vectors(e5ref.load("e5ref-nano", dtype="float64"))
    curves = {
        "float32's rounding": {},
        "GELU, tanh form": {"gelu": tanh_gelu},
        "GELU, sigmoid form": {"gelu": sigmoid_gelu},
        "ReLU": {"gelu": relu},
    }
    values = [np.abs(vectors(nano(), **change) - truth).max() for change in curves.values()]
    figure, (panel,) = axes(7.2, 2.4)
    panel.barh(list(curves), values, color=[MUTED, BLUE, BLUE, RED], height=0.6)
    for row, value in enumerate(values):
        panel.text(value * 1.3, row, f"{value:.0e}", va="center")
    panel.set(xscale="log", xlim=(1e-8, 3), xlabel="largest difference from the truth in a unit vector")
    panel.invert_yaxis()
    return figure


def vectors(model: e5ref.E5, **changes: Callable[[Array], Array]) -> Array:
    """Embed the model card's texts with a forward pass that has some functions replaced. -> [4, D]."""
    batch = model.tokenize([*(f"query: {text}" for text in QUERIES), *(f"passage: {text}" for text in PASSAGES)])
    checkpoint = model.checkpoint
    return model_copy(**changes).embed(
        checkpoint.params, batch["input_ids"], batch["attention_mask"], config=checkpoint.config
    )
