"""What our pages need beside Sphinx: tables of contents, formulas, diagrams, and the sources that they link to.

The pages are plain Markdown, so that a code host shows them too. Formulas and diagrams are drawn while the site is
built, so that it needs no script of anybody else.
"""

import ast
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mermaidx
from click import Context
from docutils import nodes
from docutils.transforms import Transform
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.logging import getLogger
from sphinx.writers.html5 import HTML5Translator

ROOT = Path(__file__).parents[1]
LANGUAGES = {".py": "python", ".toml": "toml", ".md": "markdown"}
logger = getLogger(__name__)


def add_contents(app: Sphinx, page: str, content: list[str]) -> None:
    """Add a table of contents to an index page: the first page that each line of its lists and tables links to."""
    if Path(page).name != "index":
        return
    text = (ROOT / "docs" / "README.md").read_text(encoding="utf-8") if page == "index" else content[0]
    lines = (re.search(r"\]\(([\w/.-]+)\.md\)", line) for line in text.splitlines() if re.match(r"[-|]|\d+\.", line))
    pages = [match[1] for match in lines if match and not match[1].startswith("..")]
    content[0] += "\n\n```{toctree}\n:hidden:\n\n" + "\n".join(dict.fromkeys(pages)) + "\n```\n"


def formula(translator: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """Write a formula in MathML, which browsers draw themselves."""
    try:
        translator.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    except MathError as error:
        logger.warning("no MathML for %s: %s", node.astext(), error, location=node)
    raise nodes.SkipNode


class Diagram(SphinxDirective):
    """A block of Mermaid, drawn as SVG."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Draw it. Its id is a new one, since a page may have several."""
        svg = mermaidx.render("\n".join(self.content), theme="neutral").svg()
        svg = svg.replace("my-svg", f"diagram-{self.env.new_serialno('diagram')}")
        return [nodes.raw("", f'<div class="diagram">{svg}</div>', format="html")]


def is_page(path: Path) -> bool:
    """Whether Sphinx itself puts this file into the site: a page or a picture of docs/."""
    return path.suffix in (".md", ".png", ".svg") and path.is_relative_to(ROOT / "docs")


class LinkToSource(Transform):
    """Lead links to code, and to folders, to pages of this site that show them."""

    default_priority = 200

    def apply(self, **options: Any) -> None:
        """Replace what the parser made of them: a download for a file, an unknown page for a folder."""
        env = self.document.settings.env
        for kind in (addnodes.download_reference, addnodes.pending_xref):
            for link in list(self.document.findall(kind)):
                # The parser takes .md off, also outside docs/.
                name = link["reftarget"] + (".md" if link.get("refdomain") == "doc" else "")
                target = (Path(env.doc2path(env.docname)).parent / name).resolve()
                if link["reftype"] != "myst" or not target.exists() or is_page(target):
                    continue
                path = target.relative_to(ROOT).as_posix()
                uri = "../" * env.docname.count("/") + f"source/{path}.html"
                link.replace_self(nodes.reference("", "", *link.children, refuri=uri, internal=True, source=path))


def source_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Write a page for every source that a page links to; that of a folder says what its files are."""
    found = {
        link["source"]
        for page in app.env.found_docs
        for link in app.env.get_doctree(page).findall(nodes.reference)
        if "source" in link
    }
    for path in sorted(found):
        source = ROOT / path
        if source.is_dir():
            lines = []
            for file in sorted(source.glob("*.py")):
                said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
                lines.append(f"<li><code>{file.name}</code> {html.escape(said.partition(chr(10))[0])}</li>")
            shown = f"<ul>{''.join(lines)}</ul>"
        else:
            language = LANGUAGES.get(source.suffix, "text")
            shown = app.builder.highlighter.highlight_block(source.read_text(encoding="utf-8"), language)
        yield f"source/{path}", {"title": path, "body": f"<h1>{path}</h1>{shown}"}, "page.html"


def tidy_commands(app: Sphinx, context: Context, lines: list[str]) -> None:
    """Let sphinx-click take * for a star, and leave out arguments that help does not show."""
    text = re.sub(r"(?<!\*)\*(?!\*)", r"\*", "\n".join(lines)).replace(".. option:: \n\n    Optional argument\n", "")
    lines[:] = text.split("\n") if text.strip() else []


def setup(app: Sphinx) -> dict[str, bool]:
    """Join all of this to Sphinx."""
    app.connect("source-read", add_contents)
    app.connect("html-collect-pages", source_pages)
    for part in ("description", "options", "arguments"):
        app.connect(f"sphinx-click-process-{part}", tidy_commands)
    app.add_directive("mermaid", Diagram)
    app.add_transform(LinkToSource)
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
    return {"parallel_read_safe": True}
