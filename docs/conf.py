"""How Sphinx builds the site: `sphinx-build -W --keep-going docs docs/_build`, as README.md says."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # pages.py, and e5ref as it stands in the checkout

project = "e5ref"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "pages",
]
root_doc = "index"
exclude_patterns = ["README.md", "_build"]  # index.md includes the one

myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 4  # as code hosts have them

napoleon_use_ivar = True  # a NamedTuple's fields are there once
default_role = "code"  # docstrings have single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_mock_imports = ["ray"]

smartquotes = False  # -- is an option's
highlight_language = "text"

html_theme = "furo"
html_title = "e5ref"
html_static_path = ["pages.css"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_math_renderer = "mathml"
linkcheck_ignore = [r"(\.\./)*source/"]  # pages that pages.py writes
