"""Pictures of label groups: the co-occurrence graph with its groups apart, as a figure or as SVG."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from coterie.errors import ConfigError, PartitionError, counted
from coterie.files import atomic_write
from coterie.fonts import VARIATION_SELECTORS, families
from coterie.labels import CooccurrenceGraph, Partition

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]
SUFFIXES = (".svg", ".png", ".pdf")
# Okabe and Ito's colours, which any kind of colour vision tells apart; their yellow is too pale for lines.
COLOURS = ("#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#7A7A7A")
MARKERS = "osD^vP*X"  # one for each round of the colours
INK, PALE = "#1d1d20", "#9a9aa2"
# As many names stand around a circle without touching; more labels are drawn as a matrix.
MOST_ON_A_CIRCLE = 200
COMPANIONS = 3  # lines from each label, to those that it is strongest with
LONGEST_NAME, LONGEST_LINE = 26, 48
SIDE = 7.0  # of a circle or a matrix, in inches
MOST_PIXELS = 500  # of a matrix along its side: beyond, squares of labels are averaged
MATRIX_ROOM = 2.2  # beside a matrix, in inches
LEGEND_SIZE = 10
NAMED = 5  # labels of a group that are named beside a matrix


def draw_partitions(graph: CooccurrenceGraph | Floats, partitions: Sequence[Partition]) -> Figure:
    """The labels with their groups apart, as a matplotlib figure; several partitions side by side.

    `graph`: the graph of the classes, or their affinity [C, C] in the partitions' order. Up to 200 labels
    stand on a circle, each with lines to its strongest companions; more of them are a matrix in the order of
    groups. PartitionError where the classes are others.
    """
    from matplotlib.figure import Figure

    room = max(map(_room, partitions))
    width, height = len(partitions) * (SIDE + 2 * room), SIDE + 2 * room
    figure = Figure(figsize=(width, height))
    for number, partition in enumerate(partitions):
        if isinstance(graph, CooccurrenceGraph):
            partition = partition.reordered(graph.class_names)
            affinity, counts = graph.affinity(partition.root), graph.class_counts.astype(np.float64)
        else:
            affinity = np.asarray(graph, np.float64)
            counts = affinity.sum(axis=0)
        c = len(partition.class_names)
        if affinity.shape != (c, c):
            raise PartitionError(f"affinity must be [{c}, {c}] for {c} classes, got {list(affinity.shape)}")
        # in a group the labels with the most images first
        order = [sorted(group, key=lambda label: -counts[label]) for group in partition.groups]
        left = number * (SIDE + 2 * room) + room
        axes = figure.add_axes((left / width, room / height, SIDE / width, SIDE / height))
        pad = 12.0
        if c <= MOST_ON_A_CIRCLE:
            _draw_circle(axes, affinity, partition, order, counts)
            pad = _room(partition) * 72  # over the names
        else:
            _draw_matrix(axes, affinity, partition, order)
        _text(axes.set_title, _description(partition), fontsize=13, pad=pad)
    return figure


def graph_svg(graph: CooccurrenceGraph | Floats, partition: Partition, prefix: str = "") -> str:
    """One partition, as `draw_partitions` draws it, as the text of an <svg> element to stand in a page.

    Its words are text, in the page's colour (`currentColor`) on the page's background; it is as wide as what
    it stands in. `prefix` begins the ids in it, to keep several in a page apart; by default the kind.
    """
    svg = _with_ids(figure_svg(draw_partitions(graph, [partition])), prefix or partition.kind)
    start, rest = svg.split(">", 1)
    return f'{start} role="img"><title>{html.escape(_description(partition))}</title>{rest}'


def figure_svg(figure: Figure) -> str:
    """A figure as the text of an <svg> element for a page; the same figure gives the same text."""
    text = _rendered(figure, "svg", transparent=True).decode()
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 width="100%"', svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace(INK, "currentColor")


def write_picture(figure: Figure, path: Path) -> None:
    """Write a figure as SVG, PNG or PDF, by the name of the file; ConfigError for another."""
    check_picture(path)
    atomic_write(path, _rendered(figure, path.suffix.lower().removeprefix(".")))


def check_picture(path: Path) -> None:
    """ConfigError where `path` is no name of a picture that can be written."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"picture {path} must end in {', '.join(SUFFIXES)}")


def _draw_circle(
    axes: Axes, affinity: Floats, partition: Partition, order: list[list[int]], counts: Floats
) -> None:
    """Labels on a circle, group by group; lines to companions, coloured where they stay in a group."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    turn = _turn(partition)
    angles, group_of = np.zeros(len(affinity)), np.zeros(len(affinity), np.int64)
    place = 0
    for number, group in enumerate(order):
        for label in group:
            angles[label], group_of[label] = np.pi / 2 - turn * place, number
            place += 1
        place += 1  # between groups
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)  # [C, 2]

    greatest = affinity.max() or 1.0
    for i, j in _companions(affinity):
        inside = group_of[i] == group_of[j]
        strength = affinity[i, j] / greatest
        # lines between neighbours bend less, or they would all meet in the middle
        middle = (points[i] + points[j]) / 2
        pull = 1 - 0.75 * np.linalg.norm(points[i] - points[j]) / 2
        curve = Curve([points[i], middle * pull, points[j]], [Curve.MOVETO, Curve.CURVE3, Curve.CURVE3])
        axes.add_patch(
            PathPatch(
                curve,
                fill=False,
                edgecolor=_colour(group_of[i]) if inside else PALE,
                linewidth=0.4 + 2.6 * strength,
                alpha=0.35 + 0.5 * strength if inside else 0.25 + 0.3 * strength,
                zorder=2 if inside else 1,
            )
        )
    for number, group in enumerate(order):
        axes.scatter(
            points[group, 0],
            points[group, 1],
            s=18 + 70 * np.sqrt(counts[group] / (counts.max() or 1.0)),
            color=_colour(number),
            marker=_marker(number),
            edgecolors="white",
            linewidths=0.6,
            zorder=3,
        )
    for label, name in enumerate(partition.class_names):
        degrees = np.degrees(angles[label]) % 360
        left = 90 < degrees < 270
        _text(
            axes.text,
            *(points[label] * 1.05),
            _short(name),
            rotation=degrees - 180 if left else degrees,
            rotation_mode="anchor",
            ha="right" if left else "left",
            va="center",
            fontsize=_name_size(partition),
        )
    axes.set(xlim=(-1.08, 1.08), ylim=(-1.08, 1.08), aspect="equal")
    axes.axis("off")
    axes.legend(
        handles=[
            Line2D([], [], color=_colour(n), marker=_marker(n), linewidth=0, label=_title(n, group))
            for n, group in enumerate(order)
        ],
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        borderaxespad=_room(partition) * 72 / LEGEND_SIZE,
        fontsize=LEGEND_SIZE,
        ncols=min(partition.k, 4),
        frameon=False,
        labelcolor=INK,
    )


def _draw_matrix(axes: Axes, affinity: Floats, partition: Partition, order: list[list[int]]) -> None:
    """The affinity in the order of groups, and beside each group its number, size and commonest labels."""
    from matplotlib.patches import Rectangle

    flat = [label for group in order for label in group]
    c = len(flat)
    shown = affinity[np.ix_(flat, flat)]
    if c > MOST_PIXELS:
        pixels = Image.fromarray(shown.astype(np.float32))
        shown = np.asarray(pixels.resize((MOST_PIXELS, MOST_PIXELS), Image.Resampling.BOX), np.float64)
    top = float(np.quantile(shown[shown > 0], 0.99)) if (shown > 0).any() else 1.0
    axes.imshow(shown, cmap="cividis", vmin=0, vmax=top, extent=(0, c, c, 0), interpolation="none")
    start, strip = 0, c / 60
    lines = SIDE * 72 / 9  # of 8 pt text, along the side
    for number, group in enumerate(order):
        size = len(group)
        for x, y, width, height in ((-1.5 * strip, start, strip, size), (start, -1.5 * strip, size, strip)):
            axes.add_patch(Rectangle((x, y), width, height, color=_colour(number), clip_on=False))
        axes.add_patch(Rectangle((start, start), size, size, fill=False, edgecolor="white", linewidth=0.8))
        if size / c * lines >= 1:
            names = ", ".join(partition.class_names[label] for label in group[:NAMED])
            words = f"{number} ({counted(size, 'label')}): {_short(names, LONGEST_LINE)}"
            _text(axes.text, c * 1.01, start + size / 2, words, va="center", fontsize=8)
        start += size
    axes.set(xlim=(-2 * strip, c), ylim=(c, -2 * strip))
    axes.axis("off")


def _turn(partition: Partition) -> float:
    """The angle between neighbours on a circle; between groups there is one place more."""
    return 2 * np.pi / (len(partition.class_names) + partition.k)


def _name_size(partition: Partition) -> float:
    """Points of text that have room on a circle."""
    return float(np.clip(0.85 * _turn(partition) * SIDE / 2 * 72, 5, 11))


def _room(partition: Partition) -> float:
    """How far names may stand out, in inches."""
    if len(partition.class_names) > MOST_ON_A_CIRCLE:
        return MATRIX_ROOM
    longest = max(len(_short(name)) for name in partition.class_names)
    return (0.56 * _name_size(partition) * longest + 24) / 72


def _companions(affinity: Floats) -> list[tuple[int, int]]:
    """The pairs (i, j), i < j, in which one is among the strongest companions of the other; weak first."""
    pairs = set()
    for i, row in enumerate(affinity):
        for j in np.argsort(-row, kind="stable")[:COMPANIONS]:
            if row[j] > 0:
                pairs.add((min(i, int(j)), max(i, int(j))))
    return sorted(pairs, key=lambda pair: affinity[pair])


def _colour(group: int) -> str:
    return COLOURS[group % len(COLOURS)]


def _marker(group: int) -> str:
    return MARKERS[group // len(COLOURS) % len(MARKERS)]


def _title(number: int, group: list[int]) -> str:
    return f"group {number}: {counted(len(group), 'label')}"


def _description(partition: Partition) -> str:
    return f"{partition.kind}, K = {partition.k}, {partition.objective.name} {partition.objective.value:.3f}"


def _short(name: str, most: int = LONGEST_NAME) -> str:
    """A name as it can stand in any picture: one line of characters that can be shown, `most` at most."""
    shown = "".join(character for character in " ".join(name.split()) if character.isprintable())
    shown = "".join(character for character in shown if character not in VARIATION_SELECTORS)
    return shown if len(shown) <= most else f"{shown[: most - 1].rstrip()}…"


def _text(write: Any, *arguments: Any, **options: Any) -> None:
    """Text, the last of `arguments`, as it is: a dollar in a name begins no formula."""
    write(*arguments, color=INK, parse_math=False, family=families(arguments[-1]), **options)


def _rendered(figure: Figure, kind: str, transparent: bool = False) -> bytes:
    """The bytes of a figure; characters that no font has are boxes, or the browser's in SVG."""
    import matplotlib

    content = io.BytesIO()
    # ids and dates are the same each time
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    with (
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "coterie"}),  # text stays text
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        figure.savefig(
            content,
            format=kind,
            dpi=130,
            bbox_inches="tight",
            pad_inches=0.15,
            transparent=transparent,
            metadata=metadata,
        )
    return content.getvalue()


def _with_ids(svg: str, prefix: str) -> str:
    """The same SVG with `prefix` before every id, and before what refers to them."""
    prefix = re.sub(r"[^\w-]", "-", prefix)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    return re.sub(r'(url\(|href=")#', rf"\1#{prefix}-", svg)
