"""Chapter 6: what each token brings to the vector, what [CLS] would give, and what a temperature asks for."""

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from docs.learn.draw.activations import nano, recorded
from docs.learn.draw.canvas import BLUE, FAINT, INK, MUTED, POSITIVE, RED, axes
from e5ref import numpy_model
from e5ref.demo import PASSAGES, QUERIES

TEXTS = [*(f"query: {text}" for text in QUERIES), *(f"passage: {text}" for text in PASSAGES)]


def shares() -> Figure:
    """Draw how much of its text's vector each token of the queries brings."""
    figure, plots = axes(7.2, 3.6, columns=2)
    for plot, text in zip(plots, TEXTS[:2], strict=True):
        tokens, run = recorded(text)
        states, pooled = run["last_hidden_state"], run["pooled"]  # [T, D], [D]
        share = states @ pooled / len(states) / (pooled @ pooled)  # [T], of sum 1
        plot.barh(tokens, share, color=[BLUE if value > 0 else RED for value in share])
        plot.invert_yaxis()
        plot.axvline(0, color=INK, linewidth=0.8)
        plot.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        plot.set_xlabel("share of the vector")
        plot.set_title(text, fontsize=10, loc="left")
    return figure


def poolings() -> Figure:
    """Draw the cosines of queries and passages by the average, and by [CLS], from the same hidden states."""
    model = nano()
    batch = model.tokenize(TEXTS)
    states = numpy_model.forward(
        model.checkpoint.params, batch["input_ids"], batch["attention_mask"], config=model.checkpoint.config
    )
    figure, plots = axes(7.2, 2.9, columns=2)
    kinds = {"average of all tokens": numpy_model.average_pool, "[CLS] alone": numpy_model.cls_pool}
    for plot, (title, pool) in zip(plots, kinds.items(), strict=True):
        vectors = numpy_model.l2_normalize(pool(states, batch["attention_mask"]))
        scores = 100 * vectors[:2] @ vectors[2:].T
        plot.imshow(scores, cmap=POSITIVE, vmin=-10, vmax=110)
        for (row, column), value in np.ndenumerate(scores):
            plot.text(column, row, f"{value:.1f}", ha="center", va="center", color="white" if value > 35 else "#1f2329")
        plot.set_xticks([0, 1], ["passage:\nprotein", "passage:\nsummit"])
        plot.set_yticks([0, 1], ["query:\nprotein", "query:\nsummit"])
        plot.tick_params(length=0)
        plot.spines[:].set_visible(False)
        plot.set_title(title)
    return figure


def temperatures() -> Figure:
    """Draw the probability of the right passage over its lead, for three temperatures."""
    figure, (plot,) = axes(7.2, 3.4)
    lead = np.linspace(-0.3, 1.1, 561)
    plot.axvspan(0, 0.3, color=FAINT, alpha=0.45, linewidth=0)
    plot.text(0.15, 1.06, "width of 0.7 … 1", ha="center", va="bottom", color=MUTED, fontsize=9)
    for temperature, passages, colour, place in (
        (0.01, 32768, BLUE, (-0.17, 0.55)),
        (0.05, 128, RED, (0.28, 0.55)),
        (1.0, 32768, MUTED, (0.65, 0.05)),
    ):
        probability = 1 / (1 + (passages - 1) * np.exp(-lead / temperature))
        plot.plot(lead, probability, color=colour)
        plot.text(*place, f"temperature {temperature:g}\n{passages:,} passages", color=colour, fontsize=10)
    plot.set_xlabel("lead: cosine of the right passage - cosine of every wrong one")
    plot.set_ylabel("its probability")
    plot.set_ylim(-0.02, 1.05)
    plot.set_xlim(-0.3, 1.1)
    return figure


def pictures() -> Iterator[tuple[str, Figure, str]]:
    """Yield the pictures of the chapter."""
    yield (
        "pooling-shares",
        shares(),
        "Bars: how much of the vector each token of the two queries brings; protein, eat and summit bring the most.",
    )
    yield (
        "pooling-cls",
        poolings(),
        "Cosines of two queries and two passages: by the average each query is nearest to its own passage, by [CLS] "
        "all four are high and one passage prefers the wrong query.",
    )
    yield (
        "pooling-temperature",
        temperatures(),
        "Probability of the right passage over its lead: at temperature 0.01 a lead of 0.13 among 32,768 passages is "
        "enough, at 0.05 it takes more, at 1 no lead is enough.",
    )
