"""Tables for a terminal, which are Markdown too."""

from collections.abc import Mapping, Sequence


def aligned(rows: Sequence[Mapping[str, str]]) -> str:
    """Lay out rows, each column → cell: the first column to the left, the others, of numbers, to the right."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    columns = [f"{{:{'>' if index else '<'}{width}}}" for index, width in enumerate(widths)]
    return "\n".join(f"| {' | '.join(columns)} |".format(*line) for line in lines)
