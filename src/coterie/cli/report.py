"""Commands that write pages about runs: report, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coterie.cli.app import OwnModel, app


@app.command()
def report(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    split: Annotated[
        str | None,
        typer.Option(help="Whose classes, curves and pictures to show; by default the first test split."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The page; by default report.html in the run folder.")
    ] = None,
    pictures: Annotated[
        int | None, typer.Option(min=0, help="How many of each kind to show; 0 is none.")
    ] = None,
    model: OwnModel = None,
) -> None:
    """Write one HTML file about a run: results, classes, groups, curves, pictures, settings.

    Example: coterie report runs/x --out x.html

    It needs no network. Pictures and class activation maps are in it where the images are still there.
    """
    from coterie.models.factory import import_builder
    from coterie.report import write_report

    builder = import_builder(model) if model else None
    chosen = {} if pictures is None else {"pictures": pictures}
    file, size, notes = write_report(path, out, split, **chosen, builder=builder)
    for note in notes:
        typer.echo(f"note: {note}")
    typer.echo(f"written to {file} ({_in_words(size)})")


@app.command()
def compare(
    paths: Annotated[list[Path], typer.Argument(metavar="RUN RUN…", help="Folders of finished runs.")],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("compare.html"),
) -> None:
    """Write one HTML file that puts runs side by side: results, classes, and the settings that differ.

    Example: coterie compare runs/x runs/y --out x-y.html

    The runs are of the same classes and the same images in each split; others are refused.
    """
    from coterie.report import write_comparison

    size = write_comparison(paths, out)
    typer.echo(f"written to {out} ({_in_words(size)})")


def _in_words(size: int) -> str:
    """A size in bytes as people say it."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
