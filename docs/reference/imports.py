"""Draw which rooms of the house import which: `python docs/reference/imports.py` prints the picture of house.md.

A room is a folder of e5ref, or a file at its top. Rooms stand on levels: each imports from lower levels only.
"""

import ast
from collections.abc import Mapping
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "e5ref"


def modules() -> dict[str, Path]:
    """Find every module of e5ref. Name → file."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports() -> dict[str, set[str]]:
    """Find what every module imports of e5ref, inside functions too. Module → modules."""
    files = modules()
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        targets = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                targets |= {name if name in files else node.module for name in names}
        found[module] = targets & files.keys() - {module}
    return found


def room(module: str) -> str:
    """Return the room of a module: "engines" of "e5ref.engines.stream", and "parity.judge" of parity's rooms."""
    folder = modules()[module].parent.relative_to(PACKAGE).parts
    return ".".join(folder) if folder else module.partition(".")[2] or "e5ref"


def between_rooms() -> dict[str, set[str]]:
    """Find which rooms a room imports from. Room → rooms."""
    found: dict[str, set[str]] = {}
    for module, targets in imports().items():
        found.setdefault(room(module), set()).update(map(room, targets))
    return {name: targets - {name} for name, targets in found.items()}


def levels(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Sort the nodes of a graph into levels, the lowest first: each node's targets are on lower levels.

    Raises:
        ValueError: there is a circle; the message names its nodes, and those above it.
    """
    placed: list[list[str]] = []
    below: set[str] = set()
    while rest := graph.keys() - below:
        level = sorted(node for node in rest if graph[node] <= below)
        if not level:
            raise ValueError(f"these import each other in a circle, or what does: {', '.join(sorted(rest))}")
        placed.append(level)
        below |= set(level)
    return placed


def picture() -> str:
    """Draw the rooms in Mermaid. An arrow that a longer way says already is left out."""
    graph = between_rooms()
    reached: dict[str, set[str]] = {}  # room → all that it imports from, directly or not
    for level in levels(graph):
        for name in level:
            reached[name] = graph[name].union(*(reached[target] for target in graph[name]))
    lines = ["flowchart TD"]
    for name in (name for level in reversed(levels(graph)) for name in level):
        implied = set().union(*(reached[target] for target in graph[name]))
        lines += [f"    {name} --> {target}" for target in sorted(graph[name] - implied)]
    return "\n".join(lines)


if __name__ == "__main__":
    print(picture())
