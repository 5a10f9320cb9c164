"""Links lead somewhere, no page is long, and the course shows pictures that are drawn from the model."""

import re
from importlib import import_module

import pytest

from e5ref.course import CHAPTERS
from tests.docs.pages import DOCS, PAGES, name
from tests.tools.texts import takes_minutes


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        if anchor:
            headings = [re.sub(r"[^\w -]", "", line.lstrip("# ")).lower() for line in linked.read_text().splitlines()]
            assert anchor.replace("-", " ") in headings, target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_takes_a_quarter_of_an_hour_at_most(page):
    words = len(page.read_text(encoding="utf-8").split())
    assert words / 200 < 15, f"{words} words, of which a reader takes 200 a minute"


@takes_minutes
@pytest.mark.slow
def test_the_course_shows_pictures_that_are_drawn_from_the_model():
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="pictures are drawn with pip install '.[docs]'")
    for number, chapter in enumerate(CHAPTERS, 1):
        for page in (DOCS / "learn").glob(f"{number}-*.md"):
            shown = set(re.findall(r"\]\(pictures/([\w-]+)\.svg\)", page.read_text(encoding="utf-8")))
            drawn = set()
            if shown:
                for picture, figure, _ in import_module(f"docs.learn.draw.{chapter}").pictures():
                    drawn.add(picture)
                    pyplot.close(figure)
            assert shown <= drawn, page
