"""The pictures of chapter 3: who looks at whom."""

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from docs.learn.draw.activations import PASSAGE, QUERY, nano, recorded
from docs.learn.draw.canvas import BLUE, FAINT, INK, MUTED, POSITIVE, RED, axes
from e5ref.operations import Array


def pictures() -> Iterator[tuple[str, Figure, str]]:
    """Draw them one by one: name, figure, what is seen."""
    yield "attention-by-hand", by_hand(), "By hand: scores 0, 2 and 1 become the weights 0.09, 0.67 and 0.24."
    yield "attention-gaze", gaze(), "Head 1 of layer 0: how and should look at protein, highest looks at mountain."
    yield "attention-heads", heads(), "All 12 heads: layer 0 chooses few tokens, layer 2 is more even."
    yield "attention-scale", scale(), "With the scale, protein looks at many tokens; without it, almost only at one."


def by_hand() -> Figure:
    """Scores and weights of the three tokens that the page works out by hand."""
    words, scores = ["how", "protein", "eat"], np.array([0.0, 2.0, 1.0])
    weights = np.exp(scores) / np.exp(scores).sum()
    figure, panels = axes(7.2, 2.2, columns=3, sharey=True)
    for panel, title, values in zip(
        panels, ["score ÷ √H", "exp of it", "weight: its share"], [scores, np.exp(scores), weights], strict=True
    ):
        panel.barh(words, values, color=[FAINT, BLUE, FAINT], height=0.6)
        for row, value in enumerate(values):
            panel.text(value, row, f" {value:.2f}", va="center")
        panel.set(title=title, xlim=(0, values.max() * 1.3), xticks=[])
        panel.spines["bottom"].set_visible(False)
    panels[0].invert_yaxis()
    return figure


def gaze() -> Figure:
    """Lines from each token to those that it looks at, as thick as the weights; a few of them coloured."""
    figure, panels = axes(7.6, 4.6, columns=2)
    for panel, text, coloured in zip(
        panels, (QUERY, PASSAGE), ({"how": BLUE, "should": RED}, {"definition": BLUE, "highest": RED}), strict=True
    ):
        tokens, run = recorded(text)
        draw_lines(panel, tokens, run["layers.0.attention_probabilities"][1], coloured)
        panel.set_title(text.partition(":")[0])
    return figure


def draw_lines(panel: Axes, tokens: list[str], weights: Array, coloured: dict[str, str]) -> None:
    """Put the tokens twice below each other, and a line between each two."""
    for row, token in enumerate(tokens):
        colour = coloured.get(token, MUTED)
        for column, weight in enumerate(weights[row]):
            if weight > 0.03:
                faint = {"color": FAINT, "zorder": 1} if colour == MUTED else {"color": colour, "zorder": 2}
                panel.plot([0.03, 0.97], [row, column], lw=7 * weight, solid_capstyle="round", **faint)
        panel.text(-0.02, row, token, ha="right", va="center", color=colour if colour != MUTED else INK)
        panel.text(1.02, row, token, ha="left", va="center")
    panel.set(xlim=(-0.55, 1.55), ylim=(len(tokens) - 0.4, -1.6))
    panel.text(-0.02, -1, "who looks", ha="right", va="center", color=MUTED, style="italic")
    panel.text(1.02, -1, "at whom", ha="left", va="center", color=MUTED, style="italic")
    panel.set_axis_off()


def heads() -> Figure:
    """The weights of every head of every layer."""
    config = nano().checkpoint.config
    layers, number = config.num_hidden_layers, config.num_attention_heads
    tokens, run = recorded(QUERY)
    figure, panels = axes(7.6, 5.6, rows=layers, columns=number, sharex=True, sharey=True)
    for index, panel in enumerate(panels):
        layer, head = divmod(index, number)
        weights = run[f"layers.{layer}.attention_probabilities"][head]
        image = panel.imshow(weights, cmap=POSITIVE, vmin=0, vmax=1)
        panel.set_title(f"layer {layer}, head {head}", fontsize=10)
        panel.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=8)
        panel.set_yticks(range(len(tokens)), tokens, fontsize=8)
        panel.tick_params(length=0)
    figure.colorbar(image, ax=panels, shrink=0.5, label="weight")
    return figure


def scale() -> Figure:
    """The weights of one row with and without the scale."""
    tokens, run = recorded(QUERY)
    size = nano().checkpoint.config.head_size
    head = slice(1 * size, 2 * size)
    row = tokens.index("protein")
    scores = run["layers.0.key"][:, head] @ run["layers.0.query"][row, head]
    figure, panels = axes(7.2, 3.2, columns=2, sharey=True)
    for panel, title, divisor, colour in (
        (panels[0], "scores ÷ √64", size**0.5, BLUE),
        (panels[1], "scores as they are", 1, RED),
    ):
        weights = np.exp((scores - scores.max()) / divisor)
        weights /= weights.sum()
        panel.bar(tokens, weights, color=colour)
        panel.set_title(title)
        panel.tick_params(axis="x", rotation=90, length=0)
    panels[0].set_ylabel("weight that “protein” gives")
    return figure
