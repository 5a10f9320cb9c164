"""Chapter 7: a matrix learns, and so did e5ref-nano."""

import json
from collections.abc import Callable, Iterator

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from docs.learn.draw.activations import nano, recorded_batch
from docs.learn.draw.canvas import BLUE, INK, MUTED, RED, SIGNED, axes
from e5ref import numpy_model
from e5ref.course.training import PAIRS, gradient, through_length
from e5ref.operations import Array, Ids

STEPS, EVERY, SPLITS = 200, 5, 20
Gradient = Callable[[Array, Ids], Array]  # W [D, D], the pairs -> the derivative by W


class Data:
    """The pairs as vectors: the average of the embeddings, which is where W starts, and e5ref-nano's own."""

    def __init__(self) -> None:
        """Compute the vectors of all pairs."""
        self.starts, self.goals = [], []  # each [pairs, D], of questions and of answers
        for prefix, texts in zip(("query: ", "passage: "), zip(*PAIRS, strict=True), strict=True):
            _, mask, run = recorded_batch([prefix + text for text in texts])
            self.starts.append(numpy_model.average_pool(run["embeddings"], mask))
            self.goals.append(run["normalized"])

    def cosines(self, W: Array, pairs: Ids) -> Array:
        """Return the cosine of each question with each answer."""
        questions, answers = (numpy_model.l2_normalize(x[pairs] @ W.T) for x in self.starts)
        return questions @ answers.T

    def contrast(self, W: Array, pairs: Ids) -> Array:
        """Differentiate InfoNCE at temperature 0.05."""
        by_score = gradient(self.cosines(W, pairs), 0.05).astype(np.float32)
        x, y = (start[pairs] for start in self.starts)
        u, v = (numpy_model.l2_normalize(z @ W.T) for z in (x, y))
        return through_length(x @ W.T, by_score @ v).T @ x + through_length(y @ W.T, by_score.T @ u).T @ y

    def distillation(self, W: Array, pairs: Ids) -> Array:
        """Differentiate 1 - the cosine with e5ref-nano's vectors."""
        sides = [(x[pairs], goals[pairs]) for x, goals in zip(self.starts, self.goals, strict=True)]
        return sum(through_length(x @ W.T, -goals / (2 * len(pairs))).T @ x for x, goals in sides)

    def both(self, W: Array, pairs: Ids) -> Array:
        """Differentiate distillation and a tenth of contrast, two of the three losses of e5ref-nano."""
        return self.distillation(W, pairs) + 0.1 * self.contrast(W, pairs)


def train(by_w: Gradient, pairs: Ids, rate: float) -> Iterator[Array]:
    """Train W on some pairs; yield it at the start and after every few steps."""
    W = np.eye(256, dtype=np.float32)
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            yield W
        W = W - np.float32(rate) * by_w(W, pairs)


def found(cosines: Array) -> float:
    """Return the share of questions whose own answer is the nearest."""
    return float(np.mean(cosines.argmax(axis=1) == np.arange(len(cosines))))


def curves(data: Data) -> Figure:
    """Draw how many unseen questions find their answers, step after step, in the mean over splits."""
    figure, (plot,) = axes(7.2, 3.4)
    splits = [np.split(np.random.default_rng(seed).permutation(len(PAIRS)), [64]) for seed in range(SPLITS)]
    kinds: dict[str, tuple[Gradient, float, str, float]] = {
        "contrast": (data.contrast, 0.1, RED, 0.53),
        "distillation": (data.distillation, 1, MUTED, 0.61),
        "both": (data.both, 0.5, BLUE, 0.57),
    }
    for name, (by_w, rate, colour, height) in kinds.items():
        shares = [[found(data.cosines(W, unseen)) for W in train(by_w, seen, rate)] for seen, unseen in splits]
        plot.plot(np.arange(0, STEPS + 1, EVERY), np.mean(shares, axis=0), color=colour)
        plot.text(STEPS + 3, height, name, color=colour, va="center")
    teacher = np.mean([found(data.goals[0][unseen] @ data.goals[1][unseen].T) for _, unseen in splits])
    plot.axhline(teacher, color=INK, linewidth=0.8, linestyle=":")
    plot.text(0, teacher + 0.012, "the teacher, e5ref-nano", fontsize=9)
    plot.axhline(1 / 32, color=INK, linewidth=0.8, linestyle=":")
    plot.text(0, 1 / 32 + 0.012, "by chance", fontsize=9)
    plot.yaxis.set_major_formatter(PercentFormatter(1))
    plot.set_ylim(0, 0.75)
    plot.set_xlim(0, STEPS + 34)
    plot.set_xticks(range(0, STEPS + 1, 50))
    plot.set_xlabel("step")
    plot.set_ylabel("unseen answers found")
    return figure


def cosines(data: Data) -> Figure:
    """Draw the cosines of the unseen pairs before and after training by contrast."""
    seen, unseen = np.split(np.random.default_rng(1).permutation(len(PAIRS)), [64])
    *_, after = train(data.contrast, seen, 0.1)
    figure, plots = axes(7.2, 3.5, columns=2)
    for plot, W, title in zip(plots, (np.eye(256), after), ("before training", "after 200 steps"), strict=True):
        image = plot.imshow(data.cosines(W, unseen), cmap=SIGNED, vmin=-0.7, vmax=0.7, interpolation="nearest")
        plot.set_title(title)
        plot.set_xlabel("32 unseen answers")
        plot.set_xticks([])
        plot.set_yticks([])
        plot.spines[:].set_visible(False)
    plots[0].set_ylabel("their questions")
    figure.colorbar(image, ax=plots, shrink=0.85, label="cosine").outline.set_visible(False)
    return figure


def real_curves() -> Figure:
    """Draw the loss and the scores of e5ref-nano while it was trained."""
    lines = [json.loads(line) for line in (nano().checkpoint.folder / "training.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines]
    figure, (left, right) = axes(7.2, 3.2, columns=2)
    for name, label, colour, move in (
        ("loss", "loss", INK, 0.03),
        ("distance", "distance from the teacher", BLUE, -0.03),
    ):
        left.plot(steps[1:], [line[name] for line in lines[1:]], color=colour, marker="o", markersize=4)
        left.text(steps[-1], lines[-1][name] + move, label, color=colour, ha="right", va="center")
    left.set_ylim(0, 0.75)
    for name, label, colour in (
        ("spearman", "sentences: Spearman", MUTED),
        ("ndcg@10", "passages: nDCG@10", RED),
        ("held_out", "unseen pairs found", BLUE),
    ):
        right.plot(steps, [line[name] for line in lines], color=colour, marker="o", markersize=4)
        right.text(steps[-1], lines[-1][name] - 0.035, label, color=colour, ha="right", va="top")
    right.set_ylim(0, 0.9)
    for plot in (left, right):
        plot.set_xlabel("step")
        plot.set_xticks(steps)
        plot.set_xlim(0, 1.025 * steps[-1])
    return figure


def pictures() -> Iterator[tuple[str, Figure, str]]:
    """Yield the pictures of the chapter."""
    data = Data()
    yield (
        "training-curves",
        curves(data),
        "Unseen answers found over 200 steps: from 18 % to 54 % by contrast, 59 % by distillation, 59 % by both.",
    )
    yield (
        "training-cosines",
        cosines(data),
        "Cosines of 32 unseen questions and answers: before, all near 0.5; after, near 0 but for part of the diagonal.",
    )
    yield (
        "training-nano",
        real_curves(),
        "Training of e5ref-nano: the loss falls from 0.69 to 0.34; scores on unseen data rise, then flatten.",
    )
