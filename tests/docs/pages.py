"""The pages that people read: README and docs."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *(page for page in sorted(DOCS.rglob("*.md")) if DOCS / "_build" not in page.parents)]
# Those whose blocks of Python are one program, from the first to the last.
LESSONS = [page for page in PAGES if page.parent == DOCS / "learn" and "```python" in page.read_text(encoding="utf-8")]


def name(page: Path) -> str:
    """Name a page by its path in the checkout."""
    return page.relative_to(ROOT).as_posix()
