"""A real browser for tests: Debian's chromium, driven by Playwright."""

import importlib.util
import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PACKAGES = ("playwright", "axe_playwright_python")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or any(importlib.util.find_spec(name) is None for name in PACKAGES),
    reason="needs Debian's chromium, and playwright and axe-playwright-python from the extra test",
)

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


class Visit:
    """A page that is open, and what went wrong on it."""

    def __init__(self, browser, url, scheme="light", device="desktop", ready="footer"):
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
        self.page.wait_for_selector(ready)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()
