"""What the bench found, as tables for a terminal and as a chart."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from e5ref.table import aligned

INT8_NOTE = "int8 is not of the same precision, and so no best peer: quantisation on a CPU is out of e5ref's scope."


def tables(result: Mapping[str, Any]) -> list[str]:
    """Lay out what `bench` returned as aligned tables, which are Markdown too: e5ref first, then its peers.

    While a result grows, step by step, so does the list.
    """
    parts = [", ".join(f"{key} {value}" for key, value in {**result["machine"], **result["model"]}.items() if value)]
    for rate in result["product_rates"]:
        parts.append("{library} multiplies {precision} at {teraflops:.3g} TFLOP/s ({device})".format(**rate))
    if result["attention"]:
        parts.append("attention in bfloat16")
        parts.append(aligned([{key: f"{value:.4g}" for key, value in row.items()} for row in result["attention"]]))
    for inputs in result["inputs"]:
        parts.append(_title(inputs) + f", {result['rounds']} rounds")
        peers = [row for row in inputs["rows"] if _is_comparable(row) and row["right"]]
        parts.append(aligned([_cells(row, _best_peer(row, peers)) for row in inputs["rows"]]))
        if any(row["precision"] == "int8" for row in inputs["rows"]) and INT8_NOTE not in parts:
            parts.append(INT8_NOTE)
    if result.get("processes"):
        parts.append(f"in a process of its own: import, load and embed one query; {result['rounds']} each")
        rows = [row for row in result["processes"] if _is_comparable(row)]
        best = min(rows, key=lambda row: row["first_vector_s"]["median"], default={"contender": ""})["contender"]
        least = min((row["peak_mib"] for row in rows if row["peak_mib"]), default=None)
        parts.append(aligned([_process_cells(row, best, least) for row in result["processes"]]))
    return parts


def _title(inputs: Mapping[str, Any]) -> str:
    return "{name}: {texts:,} texts, {tokens:,} tokens".format(**inputs)


def _is_comparable(row: Mapping[str, Any]) -> bool:
    """Whether a row is that of a peer that e5ref may be set beside."""
    return row["is_peer"] and row["precision"] != "int8"


def _best_peer(row: Mapping[str, Any], peers: Sequence[Mapping[str, Any]]) -> str:
    """Name the fastest of the peers; of those in float32, for a row in float32. "" if there is none."""
    exact = row["precision"] == "float32"
    fair = [peer for peer in peers if peer["precision"] == "float32" or not exact]
    return max(fair, key=lambda peer: peer["tokens_per_second"]["median"], default={"contender": ""})["contender"]


def _cells(row: Mapping[str, Any], best_peer: str) -> dict[str, str]:
    """Write out a row, column → cell; what was not measured is left empty."""
    right, speed, latency = row["right"], row.get("tokens_per_second", {}), row.get("latency_ms")
    return {
        "contender": row["contender"],
        "tokens/s": "{median:,.0f}".format(**speed) if right else "wrong",
        "min to max": "{min:,.0f} to {max:,.0f}".format(**speed) if right else "",
        "texts/s": f"{row['texts_per_second']:,.1f}" if right else "",
        "x best peer": f"{row['ratios'][best_peer]:.2f}" if right and best_peer else "",
        "of product rate": f"{row['share']:.0%}" if row.get("share") else "",
        "one query, ms (p50 / p95)": "{p50:.1f} / {p95:.1f}".format(**latency) if latency else "",
        "largest difference": f"{row['max_abs']:.1e}",
        "least cosine": f"{row['cosine']:.6f}",
    }


def _process_cells(row: Mapping[str, Any], best_peer: str, least_memory: float | None) -> dict[str, str]:
    peak = row["peak_mib"]
    return {
        "contender": row["contender"],
        "first vector, s": "{median:.2f}".format(**row["first_vector_s"]),
        "min to max": "{min:.2f} to {max:.2f}".format(**row["first_vector_s"]),
        "x best peer": f"{row['ratios'][best_peer]:.2f}" if best_peer else "",
        "most memory, MiB": f"{peak:,.0f}" if peak else "",
        "of the smallest peer's": f"{peak / least_memory:.0%}" if peak and least_memory else "",
    }


# Sizes of a chart in pixels: its width, where bars begin and how long they get, a bar's line, a panel's head.
WIDTH, LEFT, LENGTH, LINE, HEAD = 760, 190, 400, 24, 44

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 } .title { font-weight: 600 } .page { fill: #ffffff }
.ours { fill: #2f6fdb } .peer { fill: #8b949e } .int8 { fill: none; stroke: #8b949e; stroke-dasharray: 3 }
.spread { stroke: #1f2328; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .page { fill: #0d1117 } .ours { fill: #4c8dff } .spread { stroke: #e6edf3 } }
"""


def chart(results: Sequence[Mapping[str, Any]]) -> str:
    """Draw what several calls of `bench` returned: an SVG with the throughput of each contender on each input."""
    body, y = [], 8
    for result in results:
        for inputs in result["inputs"]:
            rows = [row for row in inputs["rows"] if row["right"]]
            top = max((row["tokens_per_second"]["max"] for row in rows), default=1.0)
            title = "{name}, {num_hidden_layers} layers of {hidden_size}".format(**result["model"])
            body.append(f'<text class="title" x="12" y="{y + 22}">{escape(f"{title}. {_title(inputs)}")}</text>')
            y += HEAD - 12
            for row in rows:
                speed = row["tokens_per_second"]
                least, middle, most = (LEFT + LENGTH * speed[key] / top for key in ("min", "median", "max"))
                kind = "int8" if row["precision"] == "int8" else "peer" if row["is_peer"] else "ours"
                body += [
                    f'<text x="{LEFT - 8}" y="{y + 16}" text-anchor="end">{escape(row["contender"])}</text>',
                    f'<rect class="{kind}" x="{LEFT}" y="{y + 3}" width="{middle - LEFT:.1f}" height="{LINE - 7}"/>',
                    f'<path class="spread" d="M{least:.1f} {y + 11.5}H{most:.1f}"/>',
                    f'<text x="{most + 8:.1f}" y="{y + 16}">{speed["median"]:,.0f} tokens/s</text>',
                ]
                y += LINE
            y += 12
    note = "Bars: the median of all rounds; lines: the slowest to the fastest. Dashed: int8, not of the same precision."
    body.append(f'<text x="12" y="{y + 16}">{note}</text>')
    height = y + 30
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
    page = f'<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>'
    return "\n".join([head, f"<style>{STYLE}</style>", page, *body, "</svg>"]) + "\n"
