"""Pictures of label groups: what stands where, that any name can stand in them, and that SVG fits a page."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from coterie.drawing import (
    COLOURS,
    COMPANIONS,
    _companions,
    check_picture,
    draw_partitions,
    graph_svg,
    write_picture,
)
from coterie.errors import ConfigError, PartitionError
from coterie.labels import CooccurrenceGraph, Partition, partition_labels
from coterie.labels.partition import Objective

ODD_NAMES = ("$x_1$", "a < b & c", '<script>"1"</script>', "caf\u00e9", "\u72ac", "tab\there\x00", "")


def random_graph(c: int, names: tuple[str, ...] | None = None, seed: int = 0) -> CooccurrenceGraph:
    targets = (np.random.default_rng(seed).random((400, c)) < 0.15).astype(np.int8)
    return CooccurrenceGraph.from_targets(targets, names or tuple(f"class {i}" for i in range(c)))


def partition_of(names: tuple[str, ...], k: int = 2) -> Partition:
    groups = tuple(tuple(range(number, len(names), k)) for number in range(k))
    return Partition(groups, names, "co-occurrence", "paper", 2.0, 0, Objective("normalized cut", 1.25))


def texts(svg: str) -> list[str]:
    """The words in an SVG; fails where it is no XML."""
    nodes = ElementTree.fromstring(svg).iter()
    return ["".join(node.itertext()) for node in nodes if node.tag.endswith("text")]


def clockwise(places: dict[str, tuple[float, float]]) -> list[str]:
    """The names on a circle, from the top on."""
    return sorted(places, key=lambda name: (np.pi / 2 - np.arctan2(*places[name][::-1]) + 1e-6) % (2 * np.pi))


def groups_of(partition: Partition) -> dict[str, int]:
    return {name: number for number, names in enumerate(partition.group_names) for name in names}


def names_of(figure: Figure) -> dict[str, tuple[float, float]]:
    """The texts in the axes of a figure and where they stand."""
    (axes,) = figure.axes
    return {text.get_text(): text.get_position() for text in axes.texts}


def test_labels_of_a_group_stand_together_and_none_on_another() -> None:
    graph = random_graph(20)
    partition = partition_labels(graph, 4)
    places = names_of(draw_partitions(graph, [partition]))
    assert set(places) == set(graph.class_names)
    assert all(np.hypot(*place) == pytest.approx(1.05) for place in places.values())
    group = groups_of(partition)
    assert [group[name] for name in clockwise(places)] == sorted(group.values())
    counts = dict(zip(graph.class_names, graph.class_counts, strict=True))
    for before, after in pairwise(clockwise(places)):
        assert group[before] != group[after] or counts[before] >= counts[after]
    angles = np.sort([np.arctan2(*place) for place in places.values()])
    assert np.diff(angles).min() > 2 * np.pi / 25


def test_lines_go_to_the_strongest_companions_the_strongest_last() -> None:
    affinity = random_graph(12).affinity()
    pairs = _companions(affinity)
    expected = set()
    for i in range(12):
        others = sorted((j for j in range(12) if affinity[i, j] > 0), key=lambda j: -affinity[i, j])
        expected |= {(min(i, j), max(i, j)) for j in others[:COMPANIONS]}
    assert set(pairs) == expected
    strengths = [affinity[pair] for pair in pairs]
    assert strengths == sorted(strengths)
    (axes,) = draw_partitions(affinity, [partition_of(tuple(map(str, range(12))))]).axes
    assert len(axes.patches) == len(pairs)


def test_a_label_without_companions_has_no_line() -> None:
    assert _companions(np.zeros((3, 3))) == []
    graph = CooccurrenceGraph(np.zeros((3, 3), np.int64), np.zeros(3, np.int64), ("a", "b", "c"))
    assert set(texts(graph_svg(graph, partition_of(("a", "b", "c"))))) >= {"a", "b", "c"}


def test_lines_within_a_group_have_its_colour() -> None:
    affinity = np.zeros((4, 4))
    affinity[0, 2] = affinity[2, 0] = 1.0  # of group 0
    affinity[1, 3] = affinity[3, 1] = 0.9  # of group 1
    affinity[2, 3] = affinity[3, 2] = 0.1  # between
    (axes,) = draw_partitions(affinity, [partition_of(tuple("abcd"))]).axes
    colours = [to_hex(patch.get_edgecolor()).upper() for patch in axes.patches]
    assert colours[1:] == [COLOURS[1], COLOURS[0]]
    assert colours[0] not in COLOURS


def test_every_group_has_a_mark_of_its_own() -> None:
    """Where colours come again, the shapes are others."""
    graph = random_graph(60)
    partition = partition_of(graph.class_names, 30)
    (axes,) = draw_partitions(graph, [partition]).axes
    legend = axes.get_legend()
    assert legend is not None
    marks = [(line.get_color(), line.get_marker()) for line in legend.get_lines()]
    assert len(set(marks)) == 30
    assert [text.get_text() for text in legend.get_texts()][:2] == ["group 0: 2 labels", "group 1: 2 labels"]


def test_a_single_label_can_be_drawn() -> None:
    graph = CooccurrenceGraph(np.zeros((1, 1), np.int64), np.array([3]), ("only",))
    assert "only" in texts(graph_svg(graph, partition_of(("only",), 1)))


def test_any_name_can_stand_in_a_picture(tmp_path: Path) -> None:
    graph = random_graph(len(ODD_NAMES), ODD_NAMES)
    partition = partition_of(ODD_NAMES)
    svg = graph_svg(graph, partition)
    assert set(texts(svg)) >= {*ODD_NAMES[:5], "tab here"}
    assert "<script" not in svg
    for suffix in (".png", ".pdf", ".svg"):
        write_picture(draw_partitions(graph, [partition]), tmp_path / f"groups{suffix}")


def test_a_long_name_is_cut() -> None:
    names = ("a name that is much longer than there is room for", "b")
    assert "a name that is much longe…" in texts(graph_svg(random_graph(2, names), partition_of(names)))


def test_thousands_of_labels_are_a_matrix_in_the_order_of_groups() -> None:
    c = 300
    affinity = np.zeros((c, c))
    affinity[::2, ::2] = affinity[1::2, 1::2] = 1.0  # two blocks once the groups are together
    np.fill_diagonal(affinity, 0)
    partition = partition_of(tuple(f"class {i}" for i in range(c)))
    figure = draw_partitions(affinity, [partition])
    (image,) = figure.axes[0].images
    shown = np.asarray(image.get_array())
    assert shown[:150, :150].sum() == shown[150:, 150:].sum() == 150 * 149
    assert shown[:150, 150:].sum() == 0
    assert "0 (150 labels): class 0, class 2, class 4, class 6, class 8" in names_of(figure)


def test_a_thousand_labels_make_an_svg_of_a_megabyte_at_most() -> None:
    graph = random_graph(1000)
    assert len(graph_svg(graph, partition_of(graph.class_names, 12))) < 1_000_000


def test_svg_takes_the_colour_and_the_width_of_the_page() -> None:
    graph = random_graph(8)
    svg = graph_svg(graph, partition_of(graph.class_names))
    root = ElementTree.fromstring(svg)
    assert svg.startswith("<svg")
    assert root.get("width") == "100%"
    assert root.get("height") is None
    assert root.get("viewBox")
    assert "currentColor" in svg
    assert root[0].text == "co-occurrence, K = 2, normalized cut 1.250"


def test_pictures_in_one_page_share_no_ids_and_refer_to_their_own() -> None:
    graph = random_graph(8)
    partition = partition_of(graph.class_names)
    ids = []
    for prefix in ("first", 'second" onload="x'):
        svg = graph_svg(graph, partition, prefix)
        found = re.findall(r'\bid="([^"]*)"', svg)
        assert set(re.findall(r'(?:url\(|href=")#([^")]*)', svg)) <= set(found)
        ids += found
    assert len(ids) == len(set(ids))
    assert "onload=" not in svg


def test_the_same_groups_give_the_same_picture() -> None:
    graph = random_graph(8)
    partition = partition_of(graph.class_names)
    assert graph_svg(graph, partition) == graph_svg(graph, partition)


def test_classes_go_by_name() -> None:
    graph = random_graph(8)
    turned = CooccurrenceGraph(graph.counts[::-1, ::-1], graph.class_counts[::-1], graph.class_names[::-1])
    partition = partition_of(graph.class_names)
    group = groups_of(partition)
    for given in (graph, turned):
        around = [group[name] for name in clockwise(names_of(draw_partitions(given, [partition])))]
        assert sum(before != after for before, after in pairwise([*around, around[0]])) == 2
    with pytest.raises(PartitionError, match="is of other classes"):
        draw_partitions(random_graph(8, tuple("abcdefgh")), [partition])
    with pytest.raises(PartitionError, match=r"affinity must be \[8, 8\] for 8 classes, got \[3, 3\]"):
        draw_partitions(np.zeros((3, 3)), [partition])


def test_two_branches_stand_side_by_side(tmp_path: Path) -> None:
    graph = random_graph(10)
    partitions = [partition_labels(graph, 2, kind) for kind in ("co-occurrence", "dis-occurrence")]
    write_picture(draw_partitions(graph, partitions), tmp_path / "new" / "groups.png")
    with Image.open(tmp_path / "new" / "groups.png") as picture:
        assert picture.width > 1.7 * picture.height


def test_a_picture_of_another_format_is_refused() -> None:
    check_picture(Path("a.SVG"))
    with pytest.raises(ConfigError, match=r"picture a\.gif must end in \.svg, \.png, \.pdf"):
        check_picture(Path("a.gif"))
