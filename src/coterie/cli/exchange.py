"""Commands that bring models in from elsewhere, and take them out: import-cpsd, export, push."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from coterie.cli.app import ListsOfValues, OwnModel, RunOrCheckpoint, app
from coterie.errors import ConfigError


class ExportForm(StrEnum):
    ONNX = "onnx"
    TORCH = "torch"
    HUB = "hub"


License = Annotated[str | None, typer.Option(help="For the model card, as the Hub names it: apache-2.0.")]


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


@app.command(cls=ListsOfValues)
def export(
    path: RunOrCheckpoint,
    out: Annotated[Path, typer.Option(help="The file to write; for the Hub, the folder.")],
    format: Annotated[
        ExportForm, typer.Option(help="One ONNX file, a torch.export program, or a folder for the Hub.")
    ] = ExportForm.ONNX,
    check: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PICTURE...", help="Compare scores on these, pictures or folders; else on synthetic ones."
        ),
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="How far scores may be off.")] = 1e-4,
    license: License = None,
    model: OwnModel = None,
) -> None:
    """Write a classifier in a form that needs none of our code, with scores and thresholds inside.

    Example: coterie export runs/x --out student.onnx --check photos/

    The exported scores are compared with the checkpoint's, and a file that differs is not left behind.
    """
    from coterie.export import export_onnx, export_program, write_hub_folder
    from coterie.models.factory import import_builder
    from coterie.predictor import find_checkpoint, find_images, load_classifier

    if format is ExportForm.HUB:
        if check:
            raise ConfigError("--check is for onnx and torch: the folder for the Hub holds the same weights")
        write_hub_folder(find_checkpoint(path), out, license)
        typer.echo(
            f"{out} holds the checkpoint and a model card; `coterie push {path} user/model` uploads them"
        )
        return
    if license is not None:
        raise ConfigError("--license is for the model card of --format hub")
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; name a file")
    predictor = load_classifier(path, import_builder(model) if model else None)
    write = export_onnx if format is ExportForm.ONNX else export_program
    agreement = write(predictor, out, find_images(check or ()), tolerance)
    of = "pictures" if check else "synthetic pictures"
    typer.echo(
        f"{out}: {out.stat().st_size / 1e6:.1f} MB; its scores of {agreement.pictures} {of} are at most "
        f"{agreement.largest_difference:.1e} from the checkpoint's"
    )


@app.command()
def push(
    path: RunOrCheckpoint,
    name: Annotated[str, typer.Argument(metavar="USER/MODEL", help="The repository; made if need be.")],
    private: Annotated[bool, typer.Option("--private", help="Make it a private one.")] = False,
    license: License = None,
    message: Annotated[str | None, typer.Option(help="What the commit says.")] = None,
) -> None:
    """Put a classifier with its model card on the Hugging Face Hub.

    Example: coterie push runs/x ann/toys --private

    `coterie predict hf://ann/toys photo.jpg` uses it then. Needs the extra hub, and `hf auth login`.
    """
    from coterie.export import push_to_hub
    from coterie.predictor import find_checkpoint

    folder = find_checkpoint(path)
    typer.echo(push_to_hub(folder, name, private=private, license=license, message=message))
