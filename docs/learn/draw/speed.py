"""Chapter 8: where a token's time goes, what bounds a product, and how near to the ceiling one comes.

The figures come from the pages on speed, of NumPy and of JAX, which say on which machine they were measured.
"""

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from docs.learn.draw.activations import nano
from docs.learn.draw.canvas import BLUE, FAINT, INK, MUTED, PAGE, RED, axes
from e5ref.course.speed import seconds
from e5ref.demo import PASSAGES, QUERIES


def places() -> Figure:
    """Draw the batch of the model card's four texts, and the same texts packed into rows as long as the longest."""
    texts = [*(f"query: {text}" for text in QUERIES), *(f"passage: {text}" for text in PASSAGES)]
    lengths = nano().tokenize(texts)["n_tokens"].tolist()
    figure, plots = axes(7.2, 2.3, columns=2)
    names = ["protein?", "summit?", "46 grams …", "the highest point …"]
    colours = [BLUE, RED, BLUE, RED]
    layouts = {"padded: 4 rows": [[0], [1], [2], [3]], "packed: 2 rows": [[2], [3, 0, 1]]}
    for plot, (title, rows) in zip(plots, layouts.items(), strict=True):
        width = max(lengths)
        for number, row in enumerate(rows):
            plot.barh(number, width, color=FAINT, height=0.8)
            start = 0
            for text in row:
                plot.barh(
                    number, lengths[text], left=start, color=colours[text], height=0.8, alpha=1 - 0.35 * (text < 2)
                )
                if lengths[text] > 20:
                    plot.text(start + 1.5, number, names[text], color=PAGE, va="center", fontsize=9)
                start += lengths[text]
        plot.set_ylim(3.6, -0.6)
        plot.set_yticks([])
        plot.spines["left"].set_visible(False)
        plot.set_xlabel("places")
        plot.set_title(f"{title}, {sum(lengths) / width / len(rows):.0%} in use")
    return figure


def times() -> Figure:
    """Draw where the time of a token goes, on a CPU and on a GPU."""
    figure, (cpu, gpu) = axes(7.2, 3.2, columns=2)
    parts = {
        "linear layers": 282,
        "GELU": 57,
        "attention": 33,
        "softmax": 24,
        "LayerNorm": 15,
        "biases": 6,
        "the rest": 5,
    }
    cpu.barh(list(parts), list(parts.values()), color=[BLUE, *[RED] * 4, MUTED, MUTED])
    cpu.invert_yaxis()
    cpu.set_title("e5-small on one CPU core", fontsize=10)
    cpu.set_xlabel("microseconds a token")
    names = ["query, key, value", "attention", "output, sum, norm", "up, GELU", "down, sum, norm", "gaps"]
    for shift, label, values, colour in (
        (-0.2, "XLA and cuDNN", (3.5, 1.7, 2.6, 4.2, 2.7, 1.4), MUTED),
        (0.2, "our kernels", (1.7, 1.5, 1.5, 2.6, 2.7, 0.9), BLUE),
    ):
        gpu.barh(np.arange(6) + shift, values, height=0.38, color=colour, label=label)
    gpu.set_yticks(range(6), names)
    gpu.invert_yaxis()
    gpu.set_xlim(0, 5.2)
    gpu.set_title("a layer of e5-small on an H100", fontsize=10)
    gpu.set_xlabel("nanoseconds a token")
    gpu.legend(frameon=False, fontsize=9, loc="lower right", labelcolor=INK)
    return figure


def roofs() -> Figure:
    """Draw the share of the product rate that a product of e5-small can reach, over its number of rows."""
    figure, (plot,) = axes(7.2, 3.2)
    rows = np.geomspace(1, 65536, 200)
    for label, rate, bandwidth, number, colour, place in (
        ("2 cores, float32", 3e11, 1.9e10, 4, BLUE, (1.2, 0.45)),
        ("H200, bfloat16", 7.2e14, 4.8e12, 2, RED, (140, 0.30)),
    ):
        least = np.array([seconds(row, 384, 1536, rate, bandwidth, number=number) for row in rows])
        plot.semilogx(rows, 2 * rows * 384 * 1536 / rate / least, color=colour)
        plot.text(*place, label, color=colour, ha="left")
    for tokens, name in ((12, "a query"), (1536, "a batch on the CPU"), (65536, "a batch on the GPU")):
        plot.axvline(tokens, color=INK, linewidth=0.8, linestyle=":")
        plot.text(tokens * 0.92, 1.04, name, fontsize=9, ha="right" if tokens > 100 else "center")
    plot.yaxis.set_major_formatter(PercentFormatter(1))
    plot.set_ylim(0, 1.03)
    plot.set_xlim(1, 65536)
    plot.set_xlabel("rows: tokens that are computed together")
    plot.set_ylabel("share of the product rate")
    return figure


def shares() -> Figure:
    """Draw the share of the machine's product rate that each program reaches."""
    figure, (plot,) = axes(7.2, 4.0)
    bars = [
        ("CPU, passages: e5ref, JAX", 0.73, BLUE),
        ("e5ref, NumPy", 0.65, BLUE),
        ("onnxruntime", 0.63, MUTED),
        ("sentence-transformers", 0.58, MUTED),
        ("the model card's code", 0.37, MUTED),
        ("fastembed", 0.30, MUTED),
        ("H200, 128 tokens, small: e5ref", 0.46, BLUE),
        ("transformers", 0.29, MUTED),
        ("base: e5ref", 0.72, BLUE),
        ("transformers, compiled", 0.58, MUTED),
        ("large: e5ref", 0.77, BLUE),
        ("transformers, compiled", 0.67, MUTED),
    ]
    heights = [*range(6), *np.arange(6, 8) + 0.6, *np.arange(8, 10) + 0.9, *np.arange(10, 12) + 1.2]
    for height, (_, value, colour) in zip(heights, bars, strict=True):
        plot.barh(height, value, color=colour, height=0.8)
        plot.text(value + 0.01, height, f"{value:.0%}", va="center", fontsize=9)
    plot.set_yticks(heights, [name for name, _, _ in bars], fontsize=9.5)
    plot.invert_yaxis()
    plot.set_xlim(0, 1)
    plot.xaxis.set_major_formatter(PercentFormatter(1))
    plot.set_xlabel("share of the machine's rate of matrix products")
    return figure


def pictures() -> Iterator[tuple[str, Figure, str]]:
    """Yield the pictures of the chapter."""
    yield (
        "speed-places",
        places(),
        "Four texts padded to one length use half of their places; packed into two rows they use 94 %.",
    )
    yield (
        "speed-times",
        times(),
        "On a CPU linear layers take two thirds of a token's time; on an H100 kernels of our own make a layer faster.",
    )
    yield (
        "speed-roofs",
        roofs(),
        "Share of the product rate over the rows: 12 tokens of a query are bound by memory, batches are not.",
    )
    yield (
        "speed-shares",
        shares(),
        "Share of the machine's product rate: e5ref 65 and 73 % on a CPU, 46 % (small) to 77 % (large) on an H200.",
    )
