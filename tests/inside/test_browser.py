"""The page in a real browser: nothing fails, nothing leaves, everything can be reached and read.

With E5REF_SCREENSHOTS=docs/learn in the environment the pictures of docs/learn/look.md are made anew.
"""

import importlib.util
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

import e5ref
from e5ref.inside.live import LiveServer
from e5ref.inside.run import run as run_text

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PACKAGES = ("playwright", "axe_playwright_python")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None or any(importlib.util.find_spec(name) is None for name in PACKAGES),
        reason="needs Debian's chromium, and playwright and axe-playwright-python from the extra test",
    ),
]

QUERY, PASSAGE = "query: how do plants eat photosynthetically", "passage: Leaves turn light into sugar."
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # root has none
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def nano():
    return e5ref.load("e5ref-nano", truncation="allow")


@pytest.fixture(scope="module")
def pages(nano, minilm, tmp_path_factory):
    """The pages of one text of 3 tokens, of two texts, and of two of 512."""
    folder = tmp_path_factory.mktemp("pages")
    e5ref.look(nano, "plants").save(folder / "short.html")
    e5ref.look(nano, [QUERY, PASSAGE]).save(folder / "two.html")
    long = e5ref.load(minilm, max_length=512, truncation="allow")
    e5ref.look(long, ["how do plants eat " * 150, "Leaves turn light into sugar. " * 100]).save(folder / "long.html")
    return {path.stem: path for path in folder.iterdir()}


class Visit:
    """A page that is open, and what went wrong on it."""

    def __init__(self, browser, url, scheme="light", device="desktop"):
        width, height = SIZES[device]
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
        )
        self.page = self.context.new_page()
        self.faults, self.requests = [], []
        self.page.on("console", lambda message: self.faults.append(message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)
        self.page.wait_for_selector("footer")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()


@pytest.mark.parametrize(
    ("name", "scheme", "device"),
    [
        *((name, scheme, device) for name in ("short", "two") for scheme in ("light", "dark") for device in SIZES),
        ("long", "light", "desktop"),  # axe takes long for many tokens
        ("long", "dark", "phone"),
    ],
)
def test_no_fault_no_request_and_nothing_that_axe_finds_serious(name, scheme, device, browser, pages):
    from axe_playwright_python.sync_playwright import Axe

    with Visit(browser, pages[name].as_uri(), scheme, device) as visit:
        page = visit.page
        for summary in page.locator("summary").all():
            summary.click()
        for choice in page.locator("[role=radio]").all()[::7]:
            choice.click()
        violations = Axe().run(page).response["violations"]
        assert not [
            (one["id"], one["nodes"][0]["html"]) for one in violations if one["impact"] in ("serious", "critical")
        ]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the screen"
        assert not visit.faults
        assert {url for url in visit.requests if not url.startswith("data:")} == {pages[name].as_uri()}


def test_a_request_would_be_noticed(browser, pages, tmp_path):
    """Planted mistakes: a page that asks for a picture, and one whose script fails."""
    text = pages["short"].read_text()
    path = tmp_path / "planted.html"
    path.write_text(
        text.replace("<div id", '<img src="http://127.0.0.1:9/a.png" alt=""><script>nothing.at</script><div id')
    )
    with Visit(browser, path.as_uri()) as visit:
        assert any("Content Security Policy" in fault for fault in visit.faults)
        assert any("nothing is not defined" in fault for fault in visit.faults)


def test_the_keyboard_reaches_every_panel(browser, pages):
    with Visit(browser, pages["two"].as_uri()) as visit:
        reached, charts = set(), 0
        for _ in range(200):
            visit.page.keyboard.press("Tab")
            at, is_chart = visit.page.evaluate(
                "[document.activeElement.closest('section')?.id, document.activeElement.matches('.cells')]"
            )
            reached.add(at)
            charts += is_chart
            if at is None and len(reached) > 5:
                break
        names = ["tokens", "embeddings", "attention", "states", "added", "average", "unit", "pairs", "changes"]
        assert set(names) <= reached
        assert charts == visit.page.locator(".cells").count()


@pytest.mark.parametrize("name", ["short", "two", "long"])
def test_every_chart_tells_its_numbers_to_pointer_and_keys(name, browser, pages):
    with Visit(browser, pages[name].as_uri()) as visit:
        for cells in visit.page.locator(".cells").all():
            told = cells.locator("xpath=ancestor::*[contains(@class, 'heat') or @class='bars'][1]").locator(".told")
            cells.hover()
            assert ": " in told.inner_text()
            visit.page.mouse.move(0, 0)
            cells.focus()
            cells.press("ArrowRight")
            assert ": " in told.inner_text()
            cells.evaluate("chart => chart.blur()")
        assert not visit.faults


def test_the_numbers_that_are_told_are_the_runs(browser, pages, nano):
    points = run_text(nano, QUERY).points
    expected = points["layers.2.output"][:, 1]  # of the second column
    with Visit(browser, pages["two"].as_uri()) as visit:
        panel = visit.page.locator("#states")
        cells = panel.locator(".cells")
        visit.page.locator("#tokens .piece").first.click()  # the arrow keys begin at the chosen token
        cells.focus()
        cells.press("ArrowRight")
        for value in expected:
            told = panel.locator(".told").inner_text()
            assert np.float32(told.rpartition(": ")[2]) == pytest.approx(value, rel=1e-6)
            assert ", dimension 1: " in told
            cells.press("ArrowDown")
        explanation = nano.explain(QUERY, PASSAGE)
        for choice, cosine in (("as they are", explanation.cosine), ("without", explanation.centred_cosine)):
            visit.page.locator("#pairs [role=radio]", has_text=choice).click()
            assert float(visit.page.locator("#pairs .total b").inner_text()) == pytest.approx(cosine, abs=1e-6)


def test_pointing_at_a_token_shows_whom_it_looks_at(browser, pages, nano):
    traced = run_text(nano, QUERY)
    with Visit(browser, pages["two"].as_uri()) as visit:
        panel = visit.page.locator("#attention")
        panel.locator("[role=radio]", has_text="eat").first.hover()
        assert "eat" in panel.locator("h3").nth(1).inner_text()
        weights = traced.points["layers.2.attention_probabilities"][0][traced.tokens.index("eat")]
        best = panel.locator("tbody tr").first
        assert best.locator("th").inner_text() == traced.tokens[int(weights.argmax())]
        assert float(best.locator("td").inner_text()) == pytest.approx(float(weights.max()), rel=1e-6)


def test_live_keeps_up_with_fifty_edits_and_leaks_nothing(browser, nano):
    def measures(visit):
        session = visit.context.new_cdp_session(visit.page)
        session.send("HeapProfiler.collectGarbage")
        heap = session.send("Runtime.getHeapUsage")["usedSize"]
        return visit.page.evaluate("document.querySelectorAll('*').length"), heap, threading.active_count()

    def settle(visit, text):
        """Wait until the page shows the cosine of this text."""
        visit.page.wait_for_function(
            "cosine => Math.abs(document.querySelector('.score b').textContent - cosine) < 2e-6",
            arg=nano.explain(text, PASSAGE).cosine,
        )

    with LiveServer(nano, [QUERY, PASSAGE]) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Visit(browser, server.url) as visit:
            box = visit.page.locator("textarea").first
            box.fill("query: sun")
            settle(visit, "query: sun")
            before = measures(visit)
            for edit in range(50):  # some are computed, and some are overtaken by the next
                box.press_sequentially(f" {edit % 10}", delay=60)
            settle(visit, box.input_value())
            box.fill("query: sun")
            settle(visit, "query: sun")
            after = measures(visit)
            assert after[0] == before[0]
            assert after[1] < before[1] + 5_000_000
            assert after[2] <= before[2] + 1  # a thread may not have ended yet
            assert not visit.faults
            assert {url for url in visit.requests if not url.startswith("data:")} == {server.url, f"{server.url}run"}
        server.shutdown()


def test_pictures_for_the_docs(browser, pages, tmp_path):
    folder = Path(os.environ.get("E5REF_SCREENSHOTS", tmp_path))
    with Visit(browser, pages["two"].as_uri()) as visit:
        visit.page.screenshot(path=folder / "look.png")
        visit.page.add_style_tag(content="nav { position: static !important }")  # it would lie over what is pictured
        visit.page.locator("#attention").screenshot(path=folder / "look-attention.png")
        visit.page.locator("#pairs").screenshot(path=folder / "look-pairs.png")
    with Visit(browser, pages["two"].as_uri(), "dark", "phone") as visit:
        visit.page.screenshot(path=folder / "look-phone.png")
    assert {path.name for path in folder.glob("look*.png")} == {
        "look.png",
        "look-attention.png",
        "look-pairs.png",
        "look-phone.png",
    }
