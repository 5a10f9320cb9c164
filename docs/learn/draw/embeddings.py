"""The pictures of chapter 2: where tokens stand before they have seen each other."""

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from docs.learn.draw.activations import QUERY, nano, recorded
from docs.learn.draw.canvas import BLUE, INK, MUTED, RED, SIGNED, axes

# Words of three kinds, each with its colour, and a piece of a word.
KINDS = {
    BLUE: "eat eating meal diet vegetables cook fruit",
    RED: "mountain mountains hill cliff river lake",
    INK: "mother father brother king queen woman",
    MUTED: "spin ##ach",
}
# Words whose label would lie on another one: it stands to the left of the point, or below.
LEFT = {"eat", "eating", "mountains", "spin", "lake", "cliff", "queen", "woman"}
BELOW = {"meal", "eating", "father", "mother", "spin", "river", "hill", "king"}


def pictures() -> Iterator[tuple[str, Figure, str]]:
    """Draw them one by one: name, figure, what is seen."""
    yield (
        "embeddings-map",
        word_map(),
        "Words on a map: what is about food, mountains and family lies apart; spin is between.",
    )
    yield (
        "embeddings-sum",
        sum_of_three(),
        "Word, position and type of protein as strips of colour, their sum, and after it.",
    )
    yield (
        "embeddings-positions",
        positions(),
        "Cosines of position rows: the first three are special, the rest like neighbours.",
    )


def word_map() -> Figure:
    """The two directions in which some words' rows differ most."""
    params = nano().checkpoint.params.embeddings
    vocabulary = nano().tokenizer.token_strings(range(len(params.word)))
    words = [(word, colour) for colour, kind in KINDS.items() for word in kind.split()]
    rows = params.word[[vocabulary.index(word) for word, _ in words]]
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    rows -= rows.mean(axis=0)
    places = rows @ np.linalg.svd(rows)[2][:2].T  # [words, 2]
    figure, (panel,) = axes(7.6, 4.6)
    for (word, colour), (x, y) in zip(words, places, strict=True):
        panel.plot(x, y, "o", color=colour, ms=4)
        shift = (-4 if word in LEFT else 4, -13 if word in BELOW else 3)
        side = "right" if word in LEFT else "left"
        panel.annotate(word, (x, y), shift, textcoords="offset points", ha=side, color=colour, fontsize=10)
    panel.set(xticks=[], yticks=[])
    panel.margins(0.14)
    return figure


def sum_of_three() -> Figure:
    """The first 64 numbers of the three rows of a token, of their sum, and of what LayerNorm makes of it."""
    tokens, run = recorded(QUERY)
    place = tokens.index("protein")
    params = nano().checkpoint.params.embeddings
    word = params.word[nano().tokenizer([QUERY]).ids[place]]
    parts = [word, params.position[place], params.token_type[0]]
    strips = [*parts, np.sum(parts, axis=0), run["embeddings"][place]]
    names = ["word: protein", f"+ position: {place}", "+ token type: 0", "= sum", "after LayerNorm"]
    figure, panels = axes(7.6, 2.6, rows=5, sharex=True)
    for panel, name, strip in zip(panels, names, strips, strict=True):
        reach = 0.2 if name != "after LayerNorm" else 3.0
        panel.imshow(strip[None, :64], cmap=SIGNED, vmin=-reach, vmax=reach, aspect="auto")
        panel.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    return figure


def positions() -> Figure:
    """The cosine of each two of the first rows of the position table."""
    rows = nano().checkpoint.params.embeddings.position[:32]
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    figure, (panel,) = axes(5.2, 4.4)
    image = panel.imshow(rows @ rows.T, cmap=SIGNED, vmin=-1, vmax=1)
    panel.set(xlabel="position", ylabel="position")
    figure.colorbar(image, ax=panel, label="cosine", shrink=0.8)
    return figure
