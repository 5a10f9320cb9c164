"""The bench's results as tables for a terminal and as a chart."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from e5ref.terminal.table import aligned

IDS_NOTE = "from token ids: the engine alone"
COLD_NOTE = "; cold: once, with nothing compiled (the median again if a contender never compiles)"

# Key of a process's figure → its name in tables and charts.
PROCESS_FIGURES = {"first_vector_s": "first vector", "all_texts_s": "all texts"}

INT8_NOTE = "int8 is less precise, so it is never the best peer: quantisation on a CPU is out of e5ref's scope."


def tables(result: Mapping[str, Any]) -> list[str]:
    """Lay out a result of `bench` as aligned tables, which are Markdown too: e5ref first, then its peers.

    If the result is not complete yet, the list is shorter.
    """
    parts = [", ".join(f"{key} {value}" for key, value in {**result["machine"], **result["model"]}.items() if value)]
    for rate in result["product_rates"]:
        parts.append("{library} multiplies {precision} at {teraflops:.3g} TFLOP/s ({device})".format(**rate))
    if result["attention"]:
        parts.append("attention in bfloat16")
        parts.append(aligned([{key: f"{value:.4g}" for key, value in row.items()} for row in result["attention"]]))
    for inputs in result["inputs"]:
        how = "end to end: from a list of str to a NumPy array" if inputs["from_texts"] else IDS_NOTE
        parts.append(_title(inputs) + f", {result['rounds']} rounds; {how}")
        peers = [row for row in inputs["rows"] if _is_comparable(row) and row["right"]]
        parts.append(aligned([_cells(row, _best_peer(row, peers), inputs["from_texts"]) for row in inputs["rows"]]))
        if any(row["precision"] == "int8" for row in inputs["rows"]) and INT8_NOTE not in parts:
            parts.append(INT8_NOTE)
    if result.get("processes"):
        rows = result["processes"]
        texts = f", and {result['inputs'][0]['texts']:,} texts" if "all_texts_s" in rows[0] else ""
        parts.append(
            f"in a process of its own: seconds from its start, imports and loading counted, to the vector of one query"
            f"{texts}; {result['rounds']} each{COLD_NOTE if any(map(_compiles, rows)) else ''}"
        )
        peers = [row for row in rows if _is_comparable(row)]
        best = min(peers, key=lambda row: row["first_vector_s"]["median"], default={"contender": ""})["contender"]
        least = min((row["peak_mib"] for row in peers if row["peak_mib"]), default=None)
        parts.append(aligned([_process_cells(row, rows, best, least) for row in rows]))
    return parts


def _compiles(row: Mapping[str, Any]) -> bool:
    """Whether a row's contender compiles."""
    return row["cold_first_vector_s"] is not None


def _title(inputs: Mapping[str, Any]) -> str:
    return "{name}: {texts:,} texts, {tokens:,} tokens".format(**inputs)


def _is_comparable(row: Mapping[str, Any]) -> bool:
    """Whether a row is a peer's that e5ref is compared with."""
    return row["is_peer"] and row["precision"] != "int8"


def _best_peer(row: Mapping[str, Any], peers: Sequence[Mapping[str, Any]]) -> str:
    """Name the fastest peer, for a row in float32 the fastest in float32; "" if there is none."""
    exact = row["precision"] == "float32"
    fair = [peer for peer in peers if peer["precision"] == "float32" or not exact]
    return max(fair, key=lambda peer: peer["tokens_per_second"]["median"], default={"contender": ""})["contender"]


def _cells(row: Mapping[str, Any], best_peer: str, from_texts: bool) -> dict[str, str]:
    """Format a row: column → cell. A figure that was not measured is left empty."""
    right, speed, latency = row["right"], row.get("tokens_per_second", {}), row.get("latency_ms")
    cells = {
        "contender": row["contender"],
        "tokens/s": "{median:,.0f}".format(**speed) if right else "wrong",
        "min to max": "{min:,.0f} to {max:,.0f}".format(**speed) if right else "",
        "texts/s": f"{row['texts_per_second']:,.1f}" if right else "",
        "x best peer": f"{row['ratios'][best_peer]:.2f}" if right and best_peer else "",
        "of product rate": f"{row['share']:.0%}" if row.get("share") else "",
    }
    if from_texts:
        on_ids = row.get("ids_tokens_per_second")
        cells |= {
            "from their ids, tokens/s": "{median:,.0f}".format(**on_ids) if on_ids else "",
            "end to end, of that": f"{row['part_of_ids']:.0%}" if on_ids else "",
            "one query, ms (p50 / p95)": "{p50:.1f} / {p95:.1f}".format(**latency) if latency else "",
        }
    return cells | {
        "largest difference": f"{row['max_abs']:.1e}",
        "least cosine": f"{row['cosine']:.6f}",
    }


def _process_cells(
    row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], best_peer: str, least_memory: float | None
) -> dict[str, str]:
    """Format a row of the processes, given all of them: column → cell."""
    cells = {"contender": row["contender"]}
    for key, name in PROCESS_FIGURES.items():
        if key in row:
            cells[f"{name}, s"] = "{median:.2f}".format(**row[key])
            cells[f"{name}, min to max"] = "{min:.2f} to {max:.2f}".format(**row[key])
            if any(map(_compiles, rows)):
                cells[f"{name}, cold"] = f"{row['cold_' + key] or row[key]['median']:.2f}"
    peak = row["peak_mib"]
    return cells | {
        "x best peer, first vector": f"{row['ratios'][best_peer]:.2f}" if best_peer else "",
        "most memory, MiB": f"{peak:,.0f}" if peak else "",
        "of the smallest peer's": f"{peak / least_memory:.0%}" if peak and least_memory else "",
    }


# Sizes of a chart in pixels: its width, the start and the greatest length of bars, the height of a bar and of a head.
WIDTH, LEFT, LENGTH, LINE, HEAD = 760, 190, 400, 24, 44

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 } .title { font-weight: 600 } .page { fill: #ffffff }
.ours { fill: #2f6fdb } .peer { fill: #8b949e } .int8 { fill: none; stroke: #8b949e; stroke-dasharray: 3 }
.bound { fill: none; stroke: #2f6fdb }
.spread { stroke: #1f2328; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .page { fill: #0d1117 } .ours { fill: #4c8dff } .spread { stroke: #e6edf3 } }
"""


def chart(results: Sequence[Mapping[str, Any]]) -> str:
    """Draw the results of several calls of `bench` as SVG: a panel of throughputs for each input, one of processes."""
    body: list[str] = []
    y = 8
    for result in results:
        model = "{name}, {num_hidden_layers} layers of {hidden_size}".format(**result["model"])
        for inputs in result["inputs"]:
            bars = []
            for row in inputs["rows"]:
                if row["right"]:
                    bars.append((row["contender"], _kind(row), row["tokens_per_second"]))
                    if "ids_tokens_per_second" in row:
                        bars.append(("from their ids", "bound", row["ids_tokens_per_second"]))
            y = _draw(body, y, f"{model}. {_title(inputs)}", bars, "{:,.0f} tokens/s")
        if rows := result.get("processes"):
            key = "all_texts_s" if "all_texts_s" in rows[0] else "first_vector_s"
            bars = []
            for row in rows:
                bars.append((row["contender"], _kind(row), row[key]))
                if _compiles(row):
                    cold = row["cold_" + key]
                    bars.append(("nothing compiled", "bound", {"median": cold, "min": cold, "max": cold}))
            title = f"{model}. From the start of a process: {PROCESS_FIGURES[key]}, the shorter the better"
            y = _draw(body, y, title, bars, "{:.2f} s")
    note = "Bars: the median of all rounds; lines: the slowest to the fastest. Dashed: int8, which is less precise."
    body.append(f'<text x="12" y="{y + 16}">{note}</text>')
    height = y + 30
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
    page = f'<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>'
    return "\n".join([head, f"<style>{STYLE}</style>", page, *body, "</svg>"]) + "\n"


def _kind(row: Mapping[str, Any]) -> str:
    """Return the class of a row's bar in `STYLE`."""
    return "int8" if row["precision"] == "int8" else "peer" if row["is_peer"] else "ours"


def _draw(body: list[str], y: int, title: str, bars: Sequence[tuple[str, str, Mapping[str, float]]], unit: str) -> int:
    """Append a panel to `body`, `y` pixels from the top; a bar is name, class and figure. -> where the panel ends."""
    body.append(f'<text class="title" x="12" y="{y + 22}">{escape(title)}</text>')
    y += HEAD - 12
    top = max((figure["max"] for _, _, figure in bars), default=1.0)
    for name, kind, figure in bars:
        least, middle, most = (LEFT + LENGTH * figure[key] / top for key in ("min", "median", "max"))
        body += [
            f'<text x="{LEFT - 8}" y="{y + 16}" text-anchor="end">{escape(name)}</text>',
            f'<rect class="{kind}" x="{LEFT}" y="{y + 3}" width="{middle - LEFT:.1f}" height="{LINE - 7}"/>',
            f'<path class="spread" d="M{least:.1f} {y + 11.5}H{most:.1f}"/>',
            f'<text x="{most + 8:.1f}" y="{y + 16}">{unit.format(figure["median"])}</text>',
        ]
        y += LINE
    return y + 12
