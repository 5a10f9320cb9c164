"""How the course's pictures look: few colours, which follow the reader's dark or light mode."""

import io
import re
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

FOLDER = Path(__file__).parents[1] / "pictures"

# Colours as a picture uses them (light mode), and what each becomes in dark mode.
INK, MUTED, FAINT, PAGE, BLUE, RED = "#1f2328", "#6e7781", "#d0d7de", "#fefefe", "#2f6fdb", "#c4432b"
DARK = {INK: "#e6edf3", MUTED: "#9198a1", FAINT: "#3d444d", PAGE: "#0d1117", BLUE: "#6ea8fe", RED: "#ff8a70"}

# Heat maps: cells are opaque and have the same colours in both modes. White is 0.
POSITIVE = LinearSegmentedColormap.from_list("positive", ["#ffffff", "#2f6fdb", "#0b2a66"])
SIGNED = LinearSegmentedColormap.from_list("signed", ["#7a1f0e", "#e2725b", "#ffffff", "#5b8fe2", "#0b2a66"])

pyplot.rcParams.update(
    {
        "svg.fonttype": "none",  # text stays text: it can be searched and read aloud
        "svg.hashsalt": "e5ref",
        "font.family": "sans-serif",
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 12,
        **dict.fromkeys(["text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"], INK),
    }
)


def axes(
    width: float = 7.2, height: float = 3.6, rows: int = 1, columns: int = 1, **options
) -> tuple[Figure, list[Axes]]:
    """Make a figure of this size in inches, and its axes in reading order."""
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **options
    )
    return figure, list(grid.flat)


def save(name: str, figure: Figure, description: str) -> None:
    """Write a figure as NAME.svg.

    Args:
        name: of the file.
        figure: drawn with the colours above.
        description: what is seen, in a sentence, for whoever hears the page.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    svg = re.sub(r"<metadata>.*?</metadata>|<\?xml.*?\?>|<!DOCTYPE.*?>", "", file.getvalue(), flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", svg)
    svg = re.sub(r" +$", "", svg.strip(), flags=re.MULTILINE)
    for light in DARK:
        svg = svg.replace(light, f"var(--c{light[1:]})")

    def rules(colours: dict[str, str]) -> str:
        return ":root{" + ";".join(f"--c{light[1:]}:{colour}" for light, colour in colours.items()) + "}"

    dark = f"@media(prefers-color-scheme:dark){{{rules(DARK)}}}"
    style = f"<title>{description}</title><style>{rules({light: light for light in DARK})}{dark}</style>"
    svg = re.sub(r"(<svg [^>]*)>", rf'\1 role="img">{style}', svg, count=1)
    (FOLDER / f"{name}.svg").write_text(svg + "\n", encoding="utf-8")
