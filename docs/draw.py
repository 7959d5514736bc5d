"""The pictures of the documents, from the built-in scenes: `python docs/draw.py [RUN]` writes docs/pictures.

RUN is a run on scenes whose models have maps of more than a few positions, for maps.jpg. It was made by

    coterie run recipe=demo model.image_size=112 data.scenes.size=56 train.epochs=24 teacher.epochs=14 \\
        train.views=8 out=RUN
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from coterie.config import load_config
from coterie.data.dataset import MultiLabelDataset
from coterie.drawing import COLOURS, draw_partitions, write_picture
from coterie.explain.columns import find_models
from coterie.explain.sheet import Block, Cell, draw_sheet, fitted, make_block
from coterie.preparation import make_partitions, prepare_data, training_graph

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = Path(__file__).parent / "pictures"
SHOWN = 6  # scenes
INK = "#1d1d20"


def draw_scenes(dataset: MultiLabelDataset, path: Path) -> None:
    """The first scenes with their labels."""
    cells = []
    for index in range(SHOWN):
        labels = [dataset.class_names[column] for column in np.flatnonzero(dataset.targets[index] == 1)]
        cells.append(Cell(", ".join(labels), fitted(dataset.load_image(index))))
    save(draw_sheet([Block("", (tuple(cells[:3]),)), Block("", (tuple(cells[3:]),))]), path)


def draw_method() -> Figure:
    """How a run goes: boxes and arrows."""
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    figure = Figure(figsize=(11, 4.6))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 11), ylim=(0, 4.6))
    axes.axis("off")
    boxes = {
        "data": (0.2, 1.8, 1.7, 1.0, "pictures\nand labels", "#7A7A7A"),
        "graph": (2.5, 1.8, 1.6, 1.0, "label graph", "#7A7A7A"),
        "co": (4.6, 3.1, 1.9, 1.0, "co-occurrence\ngroups", COLOURS[1]),
        "dis": (4.6, 0.5, 1.9, 1.0, "dis-occurrence\ngroups", COLOURS[4]),
        "co-teachers": (7.0, 3.1, 1.6, 1.0, "K teachers\nwith company", COLOURS[1]),
        "dis-teachers": (7.0, 0.5, 1.6, 1.0, "K teachers\nwithout it", COLOURS[4]),
        "student": (9.2, 1.8, 1.6, 1.0, "student", COLOURS[2]),
    }
    for x, y, width, height, words, colour in boxes.values():
        axes.add_patch(
            FancyBboxPatch(
                (x, y), width, height, boxstyle="round,pad=0.04,rounding_size=0.12",
                facecolor=f"{colour}22", edgecolor=colour, linewidth=1.6,
            )
        )  # fmt: skip
        axes.text(x + width / 2, y + height / 2, words, ha="center", va="center", fontsize=13, color=INK)
    ends = [
        ("data", "graph"), ("graph", "co"), ("graph", "dis"), ("co", "co-teachers"), ("dis", "dis-teachers"),
        ("co-teachers", "student"), ("dis-teachers", "student"),
    ]  # fmt: skip
    for start, end in ends:
        x, y, width, height, *_ = boxes[start]
        to_x, to_y, _, to_height, *_ = boxes[end]
        axes.add_patch(
            FancyArrowPatch(
                (x + width + 0.06, y + height / 2), (to_x - 0.06, to_y + to_height / 2),
                arrowstyle="-|>", mutation_scale=14, linewidth=1.4, color="#7A7A7A",
            )
        )  # fmt: skip
    axes.text(5.55, 2.3, "cut twice", ha="center", va="center", fontsize=12, color="#7A7A7A", style="italic")
    axes.text(
        7.8, 2.3, "say what they see", ha="center", va="center", fontsize=12, color="#7A7A7A", style="italic"
    )
    return figure


def draw_maps(run: Path, path: Path) -> None:
    """Where the models of a run look, on scenes whose labels do not keep their company."""
    config = load_config([f"recipe={run / 'config.yaml'}"])
    dataset = prepare_data(config)
    rows = [i for i in dataset.indices("test_shifted") if (dataset.targets[i] == 1).sum() == 2][:2]
    with TemporaryDirectory() as folder:
        models = find_models(run)
        blocks = []
        for index in rows:
            scene = Path(folder) / f"{dataset.image_ids[index]}.png"
            dataset.load_image(index).save(scene)
            labels = [dataset.class_names[column] for column in np.flatnonzero(dataset.targets[index] == 1)]
            blocks.append((scene, labels))
        made = [make_block(models, scene, labels) for scene, labels in blocks]
    headings = ("picture", *(column.title for column in models.columns))
    save(draw_sheet(made, headings), path)


def save(picture: Image.Image, path: Path) -> None:
    """As a small file."""
    picture.save(path, quality=85, optimize=True)


def main(run: Path | None, folder: Path = PICTURES) -> None:
    """Draw all pictures into `folder`, and maps.jpg where a run is given."""
    config = load_config(["recipe=demo"])
    dataset = prepare_data(config)
    draw_scenes(dataset, folder / "scenes.jpg")
    partitions = list(make_partitions(config, dataset).values())
    write_picture(draw_partitions(training_graph(dataset), partitions), folder / "groups.svg")
    write_picture(draw_method(), folder / "method.svg")
    if run is not None:
        draw_maps(run, folder / "maps.jpg")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
