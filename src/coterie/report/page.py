"""From content to a page: one HTML file with everything inside, escaped wherever a name can stand."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from coterie.files import atomic_write


def render(template: str, content: Mapping[str, Any]) -> str:
    """The page of a template in templates/; everything but HTML templates is put in as it is."""
    environment = Environment(
        loader=PackageLoader("coterie.report"),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # `tojson` writes <, >, & and ' as \u003c and so on, so that no name can end the script it stands in
    environment.policies["json.dumps_kwargs"] = {
        "ensure_ascii": False,
        "allow_nan": False,
        "separators": (",", ":"),
    }
    return environment.get_template(template).render(content, version=version("coterie"))


def write_page(path: Path, html: str) -> int:
    """Write the page in one step; its size in bytes."""
    # what is no Unicode, as bytes in the name of a file, becomes "?"
    content = html.encode(errors="replace")
    atomic_write(path, content)
    return len(content)
