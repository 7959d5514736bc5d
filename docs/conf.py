"""The site of the documents: `make docs` builds it into build/docs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import generate
from pygments.lexers.special import TextLexer

project = "Coterie"
copyright = "the Coterie authors"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["linkify"]
myst_linkify_fuzzy_links = False
myst_heading_anchors = 3
exclude_patterns = ["generated"]
smartquotes = False
html_theme = "furo"
html_title = "Coterie"
html_copy_source = False
html_show_sphinx = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 80
python_use_unqualified_type_names = True


def as_restructured_text(
    _app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]
) -> None:
    """Docstrings are plain text with `names`: mark these as code, and let nothing else be read as markup."""
    for number, line in enumerate(lines):
        parts = re.split(r"(`[^`]+`)", line)
        lines[number] = "".join(
            f"`{part}`" if part.startswith("`") else re.sub(r"([*|\\_])", r"\\\1", part) for part in parts
        )


def setup(app: Any) -> None:
    """Called by Sphinx."""
    generate.write_pages(Path(__file__).parent / "generated")
    app.add_lexer("csv", TextLexer)
    app.connect("autodoc-process-docstring", as_restructured_text)
