"""The pictures of chapter 1: how texts are cut."""

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from docs.learn.draw.activations import PASSAGE, QUERY, nano
from docs.learn.draw.canvas import BLUE, FAINT, INK, MUTED, PAGE, RED, axes

TEXTS = (QUERY, "query: protein in spinach", PASSAGE)


def pictures() -> Iterator[tuple[str, Figure, str]]:
    """Draw them one by one: name, figure, what is seen."""
    yield "tokens-tiles", tiles(), "Three texts as tiles with their ids: most words are one tile, spinach is two."
    yield (
        "tokens-greedy",
        greedy(),
        "How spinach is cut: spinach, spinac and spina are not in the vocabulary, spin is, then ##ach.",
    )
    yield "tokens-batch", batch(), "Three texts as rows of ids, filled up to 15 with zeros, and the mask beside them."


def tokens_of(text: str) -> tuple[list[int], list[str]]:
    """Return the ids of a text, and what they stand for."""
    ids = nano().tokenizer([text]).ids.tolist()
    return ids, nano().tokenizer.token_strings(ids)


def colour_of(index: int, token: str) -> str:
    """Choose the colour of a token: special ones and the prefix grey, pieces that continue a word red."""
    if token in ("[CLS]", "[SEP]") or index in (1, 2):
        return MUTED
    return RED if token.startswith("##") else BLUE


def tile(panel: Axes, x: float, y: float, width: float, colour: str) -> None:
    """Draw a box whose middle left is at x, y."""
    style = "round,pad=0,rounding_size=0.15"
    panel.add_patch(FancyBboxPatch((x, y - 0.36), width, 0.72, boxstyle=style, fc="none", ec=colour, lw=1.5))


def tiles() -> Figure:
    """Tokens as tiles, with their ids below them."""
    figure, (panel,) = axes(7.6, 4.3)
    y = 0.0
    for text in TEXTS:
        ids, tokens = tokens_of(text)
        panel.text(0, y + 0.75, f"“{text}”", color=MUTED, style="italic")
        x = 0.0
        for index, (number, token) in enumerate(zip(ids, tokens, strict=True)):
            width = 0.22 * len(token) + 0.5
            if x + width > 18:
                x, y = 0.0, y - 1.5
            colour = colour_of(index, token)
            tile(panel, x, y, width, colour)
            panel.text(x + width / 2, y, token, ha="center", va="center", color=colour, fontsize=10)
            panel.text(x + width / 2, y - 0.68, number, ha="center", va="center", color=MUTED, fontsize=8)
            x += width + 0.15
        y -= 2.5
    panel.set(xlim=(-0.1, 18.1), ylim=(y + 1.3, 1.3))
    panel.set_axis_off()
    return figure


def greedy() -> Figure:
    """The beginnings that are tried for "spinach", the longest first."""
    steps = [("spinach", ""), ("spinac", "h"), ("spina", "ch"), ("spin", "ach"), ("##ach", "")]
    known = set(nano().tokenizer.token_strings(range(nano().checkpoint.config.vocab_size)))
    figure, (panel,) = axes(7.6, 3.4)
    for row, (tried, rest) in enumerate(steps):
        found = tried in known
        start = 4 if tried.startswith("##") else 0
        letters = tried.removeprefix("##")
        for offset, letter in enumerate(letters + rest):
            inside = offset < len(letters)
            colour = (BLUE if found else INK) if inside else FAINT
            panel.text(start + offset + 0.5, -row, letter, ha="center", va="center", color=colour, fontsize=14)
        tile(panel, start + 0.05, -row, len(letters) - 0.1, BLUE if found else FAINT)
        said = f"{tried} is in the vocabulary" if found else f"{tried} is not: try a shorter one"
        panel.text(8, -row, said, va="center", color=BLUE if found else MUTED)
    panel.set(xlim=(0, 15), ylim=(-len(steps) + 0.5, 0.5))
    panel.set_axis_off()
    return figure


def batch() -> Figure:
    """input_ids and attention_mask of a batch."""
    arrays = nano().tokenize(TEXTS)
    figure, panels = axes(7.6, 3.0, rows=2)
    for panel, name in zip(panels, ("input_ids", "attention_mask"), strict=True):
        for (row, column), mask in np.ndenumerate(arrays["attention_mask"]):
            panel.add_patch(Rectangle((column, -row), 1, 1, fc=BLUE if mask else "none", ec=FAINT, lw=1))
            text = {"ha": "center", "va": "center", "fontsize": 7.5, "color": PAGE if mask else MUTED}
            panel.text(column + 0.5, 0.47 - row, arrays[name][row, column], **text)
        panel.set(xlim=(0, 15), ylim=(-2, 1), title=name)
        panel.set_axis_off()
    return figure
