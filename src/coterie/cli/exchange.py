"""Commands that bring models in from elsewhere: import-cpsd."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coterie.cli.app import app
from coterie.errors import ConfigError


@app.command(name="import-cpsd")
def import_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint (.ckpt) of the public release.")],
    out: Annotated[Path, typer.Option(help="The folder to write our checkpoint to.")],
    dataset: Annotated[
        str | None, typer.Option(help="Whose classes it has, in the release's order: coco or nuswide.")
    ] = None,
    class_names: Annotated[
        Path | None, typer.Option(help="The classes of another file, in its order, one on each line.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="What it must be; by default what its keys show.")] = None,
    image_size: Annotated[
        int | None, typer.Option(min=16, help="Side in pixels; by default 448, or what the file tells.")
    ] = None,
    word_vectors: Annotated[
        Path | None,
        typer.Option(help="The word vectors that R101+TF was trained with, npz or text."),
    ] = None,
) -> None:
    """Turn a checkpoint of the public PSD release into one of coterie, with the same logits.

    Example: coterie import-cpsd release.ckpt --dataset coco --out checkpoints/r101
    """
    from coterie.published import import_cpsd, read_class_names, released_classes

    if dataset is not None and class_names is None:
        names = released_classes(dataset)
    elif class_names is not None and dataset is None:
        names = read_class_names(class_names)
    else:
        raise ConfigError(
            "name its classes by one of --dataset coco, --dataset nuswide or --class-names FILE"
        )
    imported = import_cpsd(file, out, names, model=model, image_size=image_size, word_vectors=word_vectors)
    typer.echo(f"{imported}\n`coterie predict {out} PHOTO` uses it")
