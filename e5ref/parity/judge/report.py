"""A comparison as text, as JSON, as a page of its own, and as an assertion."""

import html
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from e5ref.parity.judge.comparison import Comparison, PointVerdict, compare
from e5ref.parity.judge.explain import Explanation
from e5ref.parity.runs.rounding import FACTOR
from e5ref.parity.runs.run import Run

COLUMNS = ("max abs", "relative", "cosine", "ulps", "factor")

FLOOR = -40.0  # the power of ten where an error of 0 is drawn


def assert_parity(run: Run | str | Path, reference: Run | str | Path, *, only: Sequence[str] | None = None) -> None:
    """Fail a test if a run departs from the reference by more than rounding. The arguments are those of `compare`.

    Raises:
        AssertionError: the run departs; the message is the table up to the first departure.
        RunError: as `compare`.
    """
    __tracebackhide__ = True  # pytest then shows the caller's line
    comparison = compare(run, reference, only=only)
    if not comparison.passed:
        raise AssertionError(text_report(comparison, whole=False))


def text_report(comparison: Comparison, *, whole: bool = True) -> str:
    """Lay out a comparison for a terminal: the points, all of them or up to the first departure, and the summary."""
    verdicts = list(comparison.verdicts)
    first = comparison.first_departure
    if not whole and first is not None:
        verdicts = verdicts[: verdicts.index(first) + 1]
    width = max(len(verdict.name) for verdict in verdicts)
    lines = [f"{'':10}{'':{width}} " + " ".join(f"{name:>9}" for name in COLUMNS) + "  worst at"]
    lines += [_line(verdict, width) for verdict in verdicts]
    return "\n".join([*lines, "", *summary(comparison)])


def _line(verdict: PointVerdict, width: int) -> str:
    start = f"{f'[{verdict.verdict}]':10}{verdict.name:{width}} "
    if verdict.detail:
        return f"{start} {verdict.detail}"
    return start + " ".join(f"{cell:>9}" for cell in cells(verdict)) + f"  {verdict.worst[0]}"


def cells(verdict: PointVerdict) -> list[str]:
    """Write the figures of a point, in the order of `COLUMNS`."""
    return [
        f"{verdict.max_error:.1e}",
        f"{verdict.relative:.1e}",
        f"{verdict.cosine:.7f}" if verdict.cosine > 0 else f"{verdict.cosine:.6f}",
        _figure(verdict.ulps),
        _figure(verdict.factor),
    ]


def _figure(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}" if value < 1e6 else f"{value:.1e}"


def summary(comparison: Comparison) -> list[str]:
    """Sum up a comparison: whether it passed, where the run departs first, and what feeds that point."""
    verdicts, first = comparison.verdicts, comparison.first_departure
    if first is None:
        most = max(verdicts, key=lambda verdict: verdict.factor)
        return [
            f"Passed: all {len(verdicts)} points differ only by rounding in {comparison.dtype}: by at most "
            f"{_figure(most.factor)} times its cost ({most.name}); up to {FACTOR:g} times passes."
        ]
    failed = sum(verdict.verdict != "OK" for verdict in verdicts)
    lines = [f"FAILED: {failed} of {len(verdicts)} points, judged as {comparison.dtype}."]
    if first.name == "input_ids":
        return [f"FAILED: the runs do not have the same inputs ({first.detail}), so their points cannot be compared."]
    if first.verdict == "MISSING":
        return [
            *lines,
            f"All other points are right. {first.name} is missing: {first.detail} (--only chooses the points).",
        ]
    reason = first.detail or (
        f"its error is {_figure(first.factor)} times what rounding costs, and up to {FACTOR:g} times passes; "
        f"{first.worst[0].value:.6g} instead of {first.worst[0].expected:.6g} at {first.worst[0]}"
    )
    lines.append(f"First departure: {first.name}: {reason}.")
    feeds = comparison.feeds(first.name)
    if first.name.endswith(".input") and first.name in comparison.modules:
        # Of a tree of modules, what stands between two of them is not known.
        lines.append(f"No module gives it: look at what goes into {first.name.removesuffix('.input')}.")
    elif not feeds:
        lines.append("It is computed from input_ids and the weights alone.")
    right = [name for name, verdict in feeds.items() if verdict == "OK"]
    unknown = [name for name, verdict in feeds.items() if verdict != "OK"]
    if right:
        lines.append(f"It is fed by {' and '.join(right)}, which {'are' if len(right) > 1 else 'is'} right.")
    if unknown:
        are = "are" if len(unknown) > 1 else "is"
        fed_by = " and ".join(unknown)
        lines.append(f"It is fed by {fed_by}, which {are} not compared; the mistake may be there or before.")
    return lines


def json_report(comparison: Comparison, explanations: Sequence[Explanation] | None = None) -> dict[str, Any]:
    """Return a comparison and its explanations, if there are any, ready for JSON. NaN and infinity become None."""
    first = comparison.first_departure
    report = {
        "passed": comparison.passed,
        "dtype": comparison.dtype,
        "allowed_factor": FACTOR,
        "summary": " ".join(summary(comparison)),
        "first_departure": None if first is None else {"name": first.name, "fed_by": comparison.feeds(first.name)},
        "points": [asdict(verdict) for verdict in comparison.verdicts],
    }
    if explanations is not None:
        report["explanations"] = [asdict(explanation) for explanation in explanations]
    return _plain(report)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; font-size: 13px; margin: 1rem 0 } td, th { padding: .15rem .6rem; text-align: right }
td:nth-child(-n+2), th:nth-child(-n+2), td.left, th.left { text-align: left } tr:nth-child(even) { background: #f5f5f5 }
.OK { color: #17692f } .DIFF, .SHAPE, .MISSING, .NAN { color: #b3261e; font-weight: 600 }
svg { width: 100%; height: auto } svg text { font: 11px system-ui, sans-serif; fill: #555 }
"""


def worth_showing(explanations: Sequence[Explanation]) -> list[Explanation]:
    """Return all explanations that explain something or were identified, and else the nearest three of the list."""
    said = [one for one in explanations if one.explains or one.identified]
    return said or list(explanations[:3])


def html_report(comparison: Comparison, title: str, explanations: Sequence[Explanation] | None = None) -> str:
    """Return a comparison, with what `explain` returned, as one page that needs no other file."""
    said = "".join(f"<p>{html.escape(line)}</p>" for line in summary(comparison))
    compared = [verdict for verdict in comparison.verdicts if not verdict.detail]
    parts = [f"<h1>{html.escape(title)}</h1>", said]
    if explanations:
        items = "".join(f"<li>{html.escape(str(one))}</li>" for one in worth_showing(explanations))
        parts.append(f"<h2>What it did differently</h2><ul>{items}</ul>")
    if compared:
        tokens = [verdict for verdict in compared if verdict.worst[0].token is not None]
        shown = [verdict for verdict in (comparison.first_departure, *tokens[-1:], compared[-1]) if verdict in compared]
        parts.append("<h2>Drift</h2>" + chart(compared))
        parts += [_worst_table(verdict) for verdict in dict.fromkeys(shown)]
    head = "".join(f"<th>{name}</th>" for name in ("", "point", *COLUMNS)) + "<th class=left>worst at</th>"
    rows = "".join(_row(verdict) for verdict in comparison.verdicts)
    parts.append(f"<h2>All points</h2><table><tr>{head}</tr>{rows}</table>")
    return (
        f"<!DOCTYPE html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
        f"<style>{STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )


def _row(verdict: PointVerdict) -> str:
    start = f"<tr><td class={verdict.verdict}>{verdict.verdict}</td><td>{html.escape(verdict.name)}</td>"
    if verdict.detail:
        return f"{start}<td class=left colspan={len(COLUMNS) + 1}>{html.escape(verdict.detail)}</td></tr>"
    figures = "".join(f"<td>{cell}</td>" for cell in cells(verdict))
    return f"{start}{figures}<td class=left>{html.escape(str(verdict.worst[0]))}</td></tr>"


def _worst_table(verdict: PointVerdict) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(str(place))}</td><td>{place.value:.7g}</td><td>{place.expected:.7g}</td>"
        f"<td>{place.error:.1e}</td></tr>"
        for place in verdict.worst
    )
    head = "<tr><th>where</th><th>the run</th><th>the reference</th><th>error</th></tr>"
    return f"<h2>Worst of {html.escape(verdict.name)}</h2><table>{head}{rows}</table>"


def chart(verdicts: Sequence[PointVerdict]) -> str:
    """Draw the largest error of each point and the largest that passes, in the forward pass's order, as SVG."""
    width, height, left, bottom = 900.0, 280.0, 46.0, 24.0
    ours = [_log(verdict.max_error) for verdict in verdicts]
    allowed = [_log(verdict.allowed) for verdict in verdicts]
    low = math.floor(min(value for value in (*ours, *allowed) if value > FLOOR))
    high = max(low + 1, math.ceil(max(*ours, *allowed)))

    def x(index: int) -> float:
        return left + (width - left - 10) * (index + 0.5) / len(verdicts)

    def y(value: float) -> float:
        return 10 + (height - bottom - 10) * (high - max(value, low)) / (high - low)

    def line(values: Sequence[float], style: str) -> str:
        points = " ".join(f"{x(index):.1f},{y(value):.1f}" for index, value in enumerate(values))
        return f'<polyline points="{points}" fill="none" {style}/>'

    parts = []
    for power in range(low, high + 1):
        parts.append(f'<path d="M{left} {y(power):.1f}H{width}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{left - 6}" y="{y(power) + 4:.1f}" text-anchor="end">1e{power}</text>')
    layers = [verdict.name.split(".")[1] if verdict.name.startswith("layers.") else "" for verdict in verdicts]
    for index, layer in enumerate(layers):
        if index and layer != layers[index - 1]:
            at = (x(index - 1) + x(index)) / 2
            parts.append(f'<path d="M{at:.1f} 10V{height - bottom}" stroke="#e4e4e4"/>')
        if layer and (not index or layer != layers[index - 1]):
            middle = (x(index) + x(index + layers.count(layer) - 1)) / 2
            parts.append(f'<text x="{middle:.1f}" y="{height - 6}" text-anchor="middle">{layer}</text>')
    parts.append(line(allowed, 'stroke="#999" stroke-dasharray="4 3"'))
    parts.append(line(ours, 'stroke="#2457a6" stroke-width="1.5"'))
    for index, verdict in enumerate(verdicts):
        colour = "#2457a6" if verdict.verdict == "OK" else "#b3261e"
        said = html.escape(f"{verdict.name}: {verdict.max_error:.1e}, up to {verdict.allowed:.1e} passes")
        dot = f'cx="{x(index):.1f}" cy="{y(ours[index]):.1f}" r="3" fill="{colour}"'
        parts.append(f"<circle {dot}><title>{said}</title></circle>")
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="Drift of the error, point by point">'
        f"{''.join(parts)}</svg>"
        "<p>The largest absolute error of each point, layer by layer (blue; red if the point fails), and the largest "
        "error that passes (dashed).</p>"
    )


def _log(value: float) -> float:
    return math.log10(value) if value > 0 else FLOOR
