"""A self-contained HTML page that shows the way of one or two texts through a model."""

import html
import json
from collections.abc import Sequence
from pathlib import Path

from e5ref.files.whole import written_whole
from e5ref.inside.run import Model

FOLDER = Path(__file__).with_name("template")

# In the order in which they are joined to one script: each uses what stands before it.
SCRIPTS = ("preact.js", "charts.js", "text.js", "layers.js", "vectors.js", "page.js")


class Page:
    """What `look` returns: a page that needs no network. A notebook shows it.

    Attributes:
        html: the page.
    """

    def __init__(self, html: str) -> None:
        """Keep the page's HTML."""
        self.html = html

    def save(self, path: str | Path) -> None:
        """Write the page to a file, whole or not at all."""
        with written_whole(Path(path)) as file:
            file.write(self.html.encode())

    def _repr_html_(self) -> str:
        """Show the page in a frame, so that its style and the notebook's stay apart."""
        return (
            f'<iframe srcdoc="{html.escape(self.html)}" title="The way of a text through the model" '
            'style="width: 100%; height: 45rem; border: 0"></iframe>'
        )


def look(model: Model, texts: str | Sequence[str]) -> Page:
    """Show the way of one text, or of two beside each other, through a model: every number, and the code that made it.

    Args:
        model: any model; its weights are run in NumPy, whatever its backend.
        texts: one or two, each with its prefix.

    Returns:
        A self-contained HTML page, of two million characters at most. Long texts are shown less exactly; the page says
        how.

    Raises:
        TypeError, ValueError: as `E5.encode`; more than two texts, or none.
    """
    # Imported here, because `import e5ref` brings this module along.
    from e5ref.inside.data import page_data
    from e5ref.inside.reference import reference_of

    texts = [texts] if isinstance(texts, str) else list(texts)
    check_number(texts)
    return Page(page_html(page_data(model, texts, reference_of(model))))


def check_number(texts: list[str]) -> None:
    """Check that there are one or two texts."""
    if len(texts) not in (1, 2):
        raise ValueError(f"a page shows one or two texts, but {len(texts)} are given")


def page_html(data: str, *, live: bool = False) -> str:
    """Fill the page in.

    Args:
        data: JSON of `page_data`.
        live: whether the page has boxes to type into, whose texts it sends to the server that it came from.
    """
    parts = {
        "STYLE": _read("page.css"),
        "DATA": data.replace("<", "\\u003c"),  # no text can end the script that holds it
        "LIVE": json.dumps(live),
        "CONNECT": "'self'" if live else "'none'",
        "SCRIPT": "\n".join(map(_read, SCRIPTS)),
    }
    pieces = _read("page.html").split("@@")  # text, name, text, name, … text
    return "".join(parts[piece] if place % 2 else piece for place, piece in enumerate(pieces))


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
