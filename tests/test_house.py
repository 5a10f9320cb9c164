"""The house: no circles, no large rooms, and a picture that is as the imports are."""

import runpy
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = runpy.run_path(str(ROOT / "docs" / "reference" / "imports.py"))


def test_no_module_and_no_room_imports_in_a_circle():
    HOUSE["levels"](HOUSE["imports"]())
    HOUSE["levels"](HOUSE["between_rooms"]())


def test_a_circle_is_found():
    with pytest.raises(ValueError, match=r"circle, or what does: a, b, c$"):
        HOUSE["levels"]({"a": {"b"}, "b": {"a"}, "c": {"a"}, "d": set()})


def test_levels_by_hand():
    assert HOUSE["levels"]({"top": {"left", "right"}, "left": {"low"}, "right": set(), "low": set()}) == [
        ["low", "right"],
        ["left"],
        ["top"],
    ]


def test_the_picture_is_that_of_the_imports():
    assert HOUSE["picture"]() in (ROOT / "docs" / "reference" / "house.md").read_text(encoding="utf-8")


def test_every_room_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    rooms = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "e5ref").rglob("__init__.py")}
    assert {*settings["tool"]["setuptools"]["packages"]} == rooms | {"e5ref.weights"}


@pytest.mark.parametrize("folder", ["e5ref", "tests"])
def test_rooms_are_small(folder):
    """At most nine files in a folder, and 400 lines in a file."""
    for path in (ROOT / folder).rglob("*.py"):
        assert len(list(path.parent.glob("*.py"))) <= 9, path.parent
        if folder == "e5ref":
            assert path.read_text(encoding="utf-8").count("\n") <= 400, path
