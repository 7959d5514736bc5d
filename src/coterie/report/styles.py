"""How models are drawn, the same in every chart."""

from __future__ import annotations

from typing import Any

from coterie.preparation import branch_kind
from coterie.stages import BRANCHES

# A colour of page.css, and dashes: colours alone do not tell everyone apart.
STYLES: dict[str, dict[str, Any]] = {
    "baseline": {"colour": "baseline", "dash": "7 4"},
    "CGP teachers": {"colour": "co", "dash": "2 3", "thin": True},
    "DGP teachers": {"colour": "dis", "dash": "8 3 2 3", "thin": True},
    "teacher": {"colour": "co", "dash": "2 3", "thin": True},
    "all teachers": {"colour": "all", "dash": "12 4", "thin": True},
    "student": {"colour": "student"},
}
# The same, of a model whose scores have a temperature.
TEMPERED: dict[str, dict[str, Any]] = {
    "baseline": {"colour": "baseline", "dash": "2 3"},
    "student": {"colour": "student", "dash": "7 4"},
}


def branch_model(branch: str) -> str:
    """The name of the teachers of a branch in tables: "CGP teachers"."""
    return BRANCHES.get(branch_kind(branch)[0], "teacher")


def branch_title(branch: str) -> str:
    """A short name of a branch: "CGP", or "CGP 2" of the second of its kind."""
    number = branch_kind(branch)[1]
    return branch_model(branch).split()[0] + (f" {number}" if number > 1 else "")
