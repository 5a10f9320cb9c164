"""Semantic textual similarity: how well the cosine of two sentences follows people's judgment."""

import csv
import itertools
import math
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from e5ref.checkpoint.prompts import notes_on_doubled_prompts
from e5ref.encoder import E5
from e5ref.evaluation.embedding import embed, embedding_bar
from e5ref.evaluation.protocols import Protocol, find_rule, find_task
from e5ref.evaluation.report import Measured, make_reports, warn
from e5ref.extras import require
from e5ref.files.lines import decoded_lines, json_kind, json_objects, json_string, opened
from e5ref.operations.similarity import pairwise_cosines

# STS Benchmark's own files: genre, file, year, index, score, two sentences, and in some lines one or two sources.
STSB_COLUMNS, STSB_WIDTHS = (5, 6, 4), range(7, 10)

# Names of columns: the usual ones, SICK's, then those of stsb_multi_mt and of GLUE on Hugging Face. If a file has
# several, the first in this order counts.
NAMES = (
    ("sentence1", "sentence_a"),
    ("sentence2", "sentence_b"),
    ("score", "relatedness_score", "similarity_score", "label"),
)

# The start of JSON, which hardly fits a sentence in brackets.
JSON = re.compile(r"""\s*(\{\s*["'}]|\[\s*[\[{\]]|[\[{]\s*$)""")

RESAMPLES, CONFIDENCE = 1000, 0.95


class Pairs(NamedTuple):
    """Pairs of sentences, and how similar people found them."""

    first: list[str]
    second: list[str]
    scores: NDArray[np.float64]  # [n]
    notes: list[str]  # what looks like a mistake


def evaluate_sts(
    model: E5, path: str | Path, *, protocols: Sequence[Protocol] = ("authors",), task: str | None = None
) -> list[dict[str, Any]]:
    """Correlate the cosines of pairs of sentences with the scores that people gave.

    Args:
        model: the model.
        path: a file that `read_pairs` reads.
        protocols: how to ask the model.
        task: the task of `protocols.TASKS` that the data belongs to, for the published score; None to go by the file's
            name.

    Returns:
        A report per protocol, by `report.make_reports`. Its scores are "spearman", with its bootstrap interval (95 %,
        percentiles of 1,000 draws of as many pairs; None if too few pairs differ), and "pearson".

    Raises:
        ValueError: the file is malformed, or the correlation is not defined.
        ModuleNotFoundError: SciPy is not installed; the message says what to install.
    """
    require("eval", "evaluation", "scipy")
    path = Path(path)
    task = find_task("STS", task, path)
    rules = {protocol: find_rule(protocol, "STS", task) for protocol in protocols}
    pairs = read_pairs(path)
    warn(pairs.notes)
    return make_reports(
        model,
        path,
        rules,
        lambda rule, prompts: _correlated(model, pairs, prompts["sentence"]),
        roles={"sentence": None},
        task_type="STS",
        task=task,
        split=None,
        comparable=True,
        files=[path],
        library="scipy",
        notes=pairs.notes,
    )


def _correlated(model: E5, pairs: Pairs, prompt: str) -> Measured:
    n = len(pairs.first)
    with embedding_bar(2 * n) as bar:
        first, second = (embed(model, texts, prompt, progress=bar) for texts in (pairs.first, pairs.second))
    cosines = pairwise_cosines(*(vectors.astype(np.float64) for vectors in (first.vectors, second.vectors)))
    notes = notes_on_doubled_prompts("sentences", prompt, first.doubled + second.doubled, 2 * n)
    counts = {"pairs": n, "sentences_cut": first.cut + second.cut}
    return Measured(counts, correlations(cosines, pairs.scores), notes)


def correlations(cosines: NDArray[np.floating], scores: NDArray[np.float64]) -> dict[str, Any]:
    """Compute the correlations of cosines and scores, [n] each.

    Returns:
        "spearman" (average ranks for ties), "spearman_interval" ([low, high], or None), "pearson".

    Raises:
        ValueError: there are fewer than 2 pairs, or all cosines or all scores are equal.
    """
    from scipy.stats import bootstrap, pearsonr, rankdata

    if len(scores) < 2:
        raise ValueError(f"a correlation needs 2 pairs or more, but there is {len(scores)}")
    # Cosines of the same two sentences differ by rounding.
    for name, values, spread in (("scores", scores, 0), ("cosines", cosines, 1e-6)):
        if np.ptp(values) <= spread:
            raise ValueError(f"all {len(values)} {name} are {values[0]:g}, so no correlation is defined")

    def spearman(a: NDArray[np.floating], b: NDArray[np.floating], axis: int) -> Any:
        return pearsonr(rankdata(a, axis=axis), rankdata(b, axis=axis), axis=axis).statistic

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # if a draw holds only equal pairs, the interval is NaN
        draws = bootstrap(
            (cosines, scores),
            spearman,
            paired=True,
            n_resamples=RESAMPLES,
            batch=100,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
    interval = [float(draws.low), float(draws.high)]
    return {
        "spearman": float(spearman(cosines, scores, 0)),
        "spearman_interval": interval if all(map(math.isfinite, interval)) else None,
        "pearson": float(pearsonr(cosines, scores).statistic),
    }


def read_pairs(path: Path) -> Pairs:
    """Read pairs of sentences with a score, from a table or from JSON lines, compressed by gzip or not.

    If the first line has a tab, the file is a table separated by tabs, and nothing is quoted. Otherwise it is separated
    by commas, and quoted as spreadsheets do. There are three kinds of tables: the first line names the columns, those
    of `NAMES` and any more, in any order; STS Benchmark's columns (7 to 9, the fifth a number); or three columns, the
    score last. JSON lines are objects with fields named as in `NAMES`.

    A tab-separated line may have more cells than the first line; a note counts these lines. A comma-separated line may
    not: it is likely that a sentence has a comma and is not quoted.

    Raises:
        ValueError: a line is malformed (the message has its number), the file is empty, or it is not UTF-8.
    """
    rows = list(_rows(path))
    if not rows:
        raise ValueError(f"{path}: is empty; it must hold pairs of sentences, each with a score")
    columns, widths, has_header = _layout(path, *rows[0])
    first, second, scores, longer = [], [], [], 0
    for number, row in rows[has_header:]:
        longer += has_header and len(row) > widths[0]
        if len(row) not in widths:
            raise ValueError(f"{path}, line {number}: has {len(row)} columns, but must have {widths[0]}")
        score = _number(row[columns[2]])
        if score is None:
            raise ValueError(f"{path}, line {number}: the score {row[columns[2]]!r} is not a number")
        first.append(row[columns[0]])
        second.append(row[columns[1]])
        scores.append(score)
    if not scores:
        raise ValueError(f"{path}: has no line after the names of the columns")
    texts, notes = first + second, []
    if longer:
        notes.append(f"{path}: {longer} of {len(scores)} lines have more cells than names; the last are left out")
    if empty := sum(not text.strip() for text in texts):
        notes.append(f"{path}: {empty} of {len(texts)} sentences are empty; they are embedded like any other")
    # STS Benchmark has real quotations.
    quoted = sum(len(text) > 1 and text[0] == text[-1] == '"' for text in texts)
    if quoted and columns != STSB_COLUMNS:
        notes.append(
            f"{path}: {quoted} of {len(texts)} sentences have quotation marks around them, which are taken as text"
        )
    return Pairs(first, second, np.array(scores), notes)


def _layout(path: Path, number: int, row: list[str]) -> tuple[tuple[int, int, int], range, bool]:
    """Return the columns of sentences and score, the numbers of columns that are allowed, and if there is a header."""
    cells = [cell.strip().lower() for cell in row]
    names = [next((name for name in known if name in cells), known[0]) for known in NAMES]
    if all(cells.count(name) == 1 for name in names):
        first, second, score = map(cells.index, names)
        return (first, second, score), range(len(row), sys.maxsize), True
    if len(row) in STSB_WIDTHS and _number(row[STSB_COLUMNS[2]]) is not None:
        return STSB_COLUMNS, STSB_WIDTHS, False
    if len(row) != 3 or _number(row[2]) is None:
        raise ValueError(
            f"{path}, line {number}: must be two sentences and a score, or name the columns "
            f"{', '.join(known[0] for known in NAMES)}, each once"
        )
    return (0, 1, 2), range(3, 4), False


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the first line of each row of a file, and its cells. Blank lines are left out."""
    with opened(path) as file:
        lines = decoded_lines(file, path)
        number, line = next((pair for pair in lines if pair[1].strip()), (1, ""))
        lines = itertools.chain([(number, line)], lines)
        if "\t" in line:
            yield from ((number, line.split("\t")) for number, line in lines if line.strip())
        elif JSON.match(line):
            yield from _json_rows(path, lines)
        else:
            yield from _comma_rows(path, number, lines)


def _comma_rows(path: Path, number: int, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of comma-separated lines; `number` is that of the first line."""
    reader = csv.reader((line + "\n" for _, line in lines), strict=True)
    start, width = number, 0
    try:
        for row in reader:
            width = width or len(row)
            if len(row) > width:
                raise ValueError(
                    f"{path}, line {number}: has {len(row)} columns, but must have {width}; a sentence with a comma "
                    "must be quoted"
                )
            if len(row) > 1 or "".join(row).strip():
                yield number, row
            number = start + reader.line_num
    except csv.Error as error:
        raise ValueError(f"{path}, line {number}: is not comma-separated text ({error})") from None


def _json_rows(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    """Yield the sentences and the score of JSON lines as rows of a table, the header first."""
    fields: list[str] = []
    for number, entry in json_objects(lines, path):
        if not fields:
            spelling = {field.lower(): field for field in entry}
            fields = [next((spelling[name] for name in known if name in spelling), known[0]) for known in NAMES]
            yield number, [known[0] for known in NAMES]
        try:
            first, second = (json_string(entry, field) for field in fields[:2])
            if type(entry.get(fields[2])) not in (int, float):
                raise ValueError(f'"{fields[2]}" is {json_kind(entry, fields[2])}, but must be a number')
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        yield number, [first, second, str(entry[fields[2]])]


def _number(text: str) -> float | None:
    """Read a finite number; None if the text is not one."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
