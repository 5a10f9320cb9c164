"""Plant a mistake in a copy of a module, in place of a statement or a call that is named by how it begins.

Names are looked up in the parsed module: its comments, spacing and line breaks do not matter, nor what follows a
beginning.
"""

import ast
import inspect
import types
from typing import NamedTuple

NAMED = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Return, ast.Call)


class Mutant(NamedTuple):
    """A mistake, and where it is to be noticed.

    Attributes:
        function: the function that it is made in.
        begins: how the statement or call begins: what it assigns ("scores *="), what it calls ("np.sqrt("), "return".
            There must be one such in the function.
        change: what stands in its place; "" for nothing.
        point: the named point that departs first.
    """

    function: str
    begins: str
    change: str
    point: str = ""


class _Change(ast.NodeTransformer):
    def __init__(self, place: ast.AST, change: str) -> None:
        self.place, self.change = place, change

    def visit(self, node: ast.AST) -> ast.AST | list[ast.stmt]:
        if node is not self.place:
            return self.generic_visit(node)
        return ast.parse(self.change, mode="eval").body if isinstance(node, ast.Call) else ast.parse(self.change).body


def copy_of(model: types.ModuleType, mutant: Mutant | None = None) -> types.ModuleType:
    """Return a copy of a module, with a mistake in it or without."""
    tree = ast.parse(inspect.getsource(model))
    if mutant is not None:
        [function] = (node for node in ast.walk(tree) if getattr(node, "name", None) == mutant.function)
        nodes = [node for node in ast.walk(function) if isinstance(node, NAMED)]
        places = [node for node in nodes if ast.unparse(node).startswith(mutant.begins)]
        assert len(places) == 1, f"{mutant.function} has {len(places)} places that begin with {mutant.begins!r}, not 1"
        tree = ast.fix_missing_locations(_Change(places[0], mutant.change).visit(tree))
    module = types.ModuleType("mutant")
    exec(compile(tree, "mutant", "exec"), module.__dict__)
    return module
