"""A run as one HTML file that needs no network, and several runs side by side."""

from coterie.report.comparison import write_comparison
from coterie.report.content import write_report

__all__ = ["write_comparison", "write_report"]
