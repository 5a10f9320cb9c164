"""Chapter 5: what layers do to lengths, to directions and to rounding."""

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

import e5ref
from docs.learn.draw.activations import nano, recorded
from docs.learn.draw.canvas import BLUE, INK, MUTED, POSITIVE, RED, axes
from e5ref import numpy_model
from e5ref.operations import Array
from e5ref.operations.rows import pad_rows

TEXTS = [  # the example of E5's model card, its passages in a short form
    "query: how much protein should a female eat",
    "query: summit define",
    "passage: Women need about 46 grams of protein a day.",
    "passage: Definition of summit: the highest point of a mountain.",
]
REPEATS = 8  # of the three layers of e5ref-nano, so that there are as many as in e5-large


def states(model: e5ref.E5, *, add: bool = True, norm: bool = True) -> list[Array]:
    """Run the layers of a model eight times, with or without the sums and LayerNorm; [B, T, D] after each layer."""
    params, config = model.checkpoint.params, model.checkpoint.config
    batch = model.tokenize(TEXTS)
    mask = batch["attention_mask"]
    x = numpy_model.embed_tokens(params.embeddings, batch["input_ids"], mask, config=config)  # [R, D]
    after = [x]
    for layer in params.layers * REPEATS:
        attention = numpy_model.self_attention(layer, x, mask, config=config) + add * x
        if norm:
            attention = numpy_model.layer_norm(attention, *layer.attention_layer_norm, config.layer_norm_eps)
        x = numpy_model.feed_forward(layer, attention, mask) + add * attention
        if norm:
            x = numpy_model.layer_norm(x, *layer.output_layer_norm, config.layer_norm_eps)
        after.append(x)
    return [pad_rows(x, mask) for x in after]


def lengths(model: e5ref.E5) -> Figure:
    """Draw the mean length of the hidden states, layer after layer."""
    figure, (plot,) = axes(7.2, 3.4)
    forms = {
        "sums alone": ({"norm": False}, RED, (16.5, 1e9)),
        "neither": ({"add": False, "norm": False}, MUTED, (17.5, 0.3)),
        "sums and LayerNorm": ({}, BLUE, (17.5, 60)),
    }
    for name, (parts, colour, place) in forms.items():
        norms = (np.linalg.norm(x, axis=2) for x in states(model, **parts))  # [B, T], 0 at padding
        plot.semilogy([norm[norm > 0].mean() for norm in norms], color=colour)
        plot.text(*place, name, color=colour, ha="right" if colour == RED else "left")
    plot.axhline(65504, color=INK, linewidth=0.8, linestyle=":")
    plot.text(0, 65504 * 1.6, "the largest number of float16", fontsize=9)
    plot.set_xlabel("layer")
    plot.set_ylabel("length of a hidden state")
    plot.set_xlim(0, 24)
    plot.set_ylim(bottom=0.1)
    return figure


def turning() -> Figure:
    """Draw for each token how near its state is to where it started, point after point."""
    tokens, run = recorded(TEXTS[0])
    points = ["embeddings"]
    points += [f"layers.{index}.{name}" for index in range(3) for name in ("attention_output", "output")]
    unit = np.stack([numpy_model.l2_normalize(run[point]) for point in points])  # [points, T, D]
    cosines = np.sum(unit * unit[0], axis=2).T  # [T, points]
    figure, (plot,) = axes(7.2, 4.4)
    plot.imshow(cosines, cmap=POSITIVE, vmin=0, vmax=1.25, aspect="auto")
    for (row, column), value in np.ndenumerate(cosines):
        plot.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.5 else "#1f2329")
    plot.set_yticks(range(len(cosines)), tokens)
    names = [f"layer {index}\n{part}" for index in range(3) for part in ("attention", "feed-fwd")]
    plot.set_xticks(range(len(points)), ["embed-\ndings", *names], fontsize=9.5)
    plot.tick_params(length=0)
    plot.spines[:].set_visible(False)
    return figure


def rounding() -> Figure:
    """Draw how far float32 is from float64 for each text, layer after layer, with and without LayerNorm."""
    exact, rounded = (e5ref.load("e5ref-nano", dtype=dtype) for dtype in ("float64", "float32"))
    figure, (plot,) = axes(7.2, 3.2)
    for norm, colour, name, place in (
        (True, BLUE, "sums and LayerNorm", (14, 8.5e-8)),
        (False, RED, "sums alone", (5.2, 1e-5)),
    ):
        pairs = zip(states(rounded, norm=norm), states(exact, norm=norm), strict=True)
        errors = [np.linalg.norm(x - y, axis=(1, 2)) / np.linalg.norm(y, axis=(1, 2)) for x, y in pairs]
        plot.semilogy(errors, color=colour, linewidth=1)  # a line for each text
        plot.text(*place, name, color=colour)
    plot.axhline(2**-24, color=INK, linewidth=0.8, linestyle=":")
    plot.text(24, 2**-24 * 0.93, "half of the last digit of float32", ha="right", va="top", fontsize=9)
    plot.set_xlabel("layer")
    plot.set_ylabel("error, relative")
    plot.set_xlim(0, 24)
    plot.set_ylim(2e-8, 1e-4)
    return figure


def pictures() -> Iterator[tuple[str, Figure, str]]:
    """Yield the pictures of the chapter."""
    yield (
        "layers-lengths",
        lengths(nano()),
        "Length of the states over 24 layers: from 5 to 18 with LayerNorm, beyond 10⁹ with sums alone.",
    )
    yield (
        "layers-turning",
        turning(),
        "Cosine of each token's state with its start: protein, female, eat stay at 0.9 or above, the colon "
        "and a fall below 0.5.",
    )
    yield (
        "layers-rounding",
        rounding(),
        "Error of float32 over 24 layers, a line for each of four texts: with LayerNorm all stay below 1e-6, "
        "without it all end above 1e-6.",
    )
