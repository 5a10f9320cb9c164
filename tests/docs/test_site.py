"""The site is built with warnings as errors, loads nothing from elsewhere, and has no link that leads nowhere."""

import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.pages import ROOT

# Tag → the attribute that names what a browser loads, or goes to.
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}
FOLLOWED = LOADED | {"a": "href"}


class Addresses(HTMLParser):
    """Collects (tag, address) of what a page loads or leads to."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        if tag in FOLLOWED and (address := dict(attrs).get(FOLLOWED[tag])):
            self.found.append((tag, address))


def addresses(html):
    parser = Addresses()
    parser.feed(html)
    return parser.found


def test_addresses_by_hand():
    html = '<script src="//a.org/x.js"></script><link rel="icon" href="x.png"><a href="https://b.org">b</a><a id="c">'
    assert addresses(html) == [("script", "//a.org/x.js"), ("link", "x.png"), ("a", "https://b.org")]


@pytest.mark.slow
def test_the_site(tmp_path):
    pytest.importorskip("sphinx", reason="the site is built with pip install '.[docs]'")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        for tag, address in addresses(page.read_text(encoding="utf-8")):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                assert tag not in LOADED or parts.scheme == "data", f"{page.name} loads {address}"
            else:
                assert not parts.path or (page.parent / unquote(parts.path)).exists(), f"{page.name}: {address}"
    for style in tmp_path.rglob("*.css"):
        text = style.read_text(encoding="utf-8").replace(" ", "")
        assert not any(start in text for start in ("url(http", 'url("http', "url('http", "url(//", "@import")), style
