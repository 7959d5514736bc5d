"""The command line. Exit status: 0 done, 1 a problem that the message explains, 2 wrong usage, 130 Ctrl-C."""

# they add their commands
from coterie.cli import data, exchange, recipes, report, results, serve, training, use  # noqa: F401
from coterie.cli.app import app, main

__all__ = ["app", "main"]
