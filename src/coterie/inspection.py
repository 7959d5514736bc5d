"""What a dataset holds, told without decoding a picture: images, labels, companions, repetitions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from coterie.config import Config
from coterie.data.columns import LabelLists
from coterie.data.dataset import PRESENT, UNKNOWN, UNLABELLED, MultiLabelDataset
from coterie.data.overlap import same_bytes
from coterie.data.presence import missing_images, repeated_images
from coterie.data.reading import format_of, read_dataset
from coterie.data.sparse import are_labelled, count_value
from coterie.data.splits import ensure_splits, filter_classes
from coterie.errors import counted, shortened
from coterie.labels import CooccurrenceGraph

ALL = "all"
FEW = 5  # images: two labels on fewer are together by chance


@dataclass(frozen=True)
class SplitFacts:
    """One split, or all images. `cardinality`: labels an image; `density`: present among known targets."""

    images: int
    missing: int
    unlabelled: int
    cardinality: float
    density: float
    unknown: int


@dataclass(frozen=True)
class Pair:
    """Two classes on the same training images. `second_given_first`: the share of images of the first."""

    first: str
    second: str
    images: int
    second_given_first: float
    first_given_second: float
    affinity: float


@dataclass(frozen=True)
class Inspection:
    """What `coterie inspect` tells; `to_json` is all of it as plain values.

    `splits`: facts by split, and of all images under "all". `positives` and `unknown`: by class and split.
    `twice`: pairs of image ids that are one file, or have the same content where that was looked for.
    """

    name: str
    format: str
    class_names: tuple[str, ...]
    splits: dict[str, SplitFacts]
    positives: dict[str, dict[str, int]]
    unknown: dict[str, dict[str, int]]
    pairs: tuple[Pair, ...]
    missing: tuple[str, ...]
    twice: tuple[tuple[str, str], ...]
    twice_across: int
    split_hash: str
    split_hash_of_found: str
    notes: tuple[str, ...]

    def without_positives(self, split: str) -> list[str]:
        return [name for name in self.class_names if not self.positives[name][split]]

    def to_json(self) -> dict[str, Any]:
        without = {split: self.without_positives(split) for split in self.splits}
        return asdict(self) | {"without_positives": without}


def inspect_data(config: Config, pairs: int = 10, same_content: bool = False) -> Inspection:
    """The facts about the data of `config`, with the splits and classes of a run; images may be missing.

    `pairs`: how many of the strongest companions to name. `same_content`: also find pictures with equal
    bytes, which reads those of equal size. Raises CoterieError where the data cannot be read.
    """
    dataset = read_dataset(config.data, config.seed)
    if set(dataset.split_names) & {"", "train"}:
        dataset = ensure_splits(dataset, config.data.val_fraction, config.data.test_fraction, config.seed)
        dataset = filter_classes(dataset, config.data.min_positives)
    missing = missing_images(dataset)
    found = np.delete(np.arange(len(dataset)), missing)
    twice = repeated_images(dataset)
    if same_content:
        groups = same_bytes(dataset.subset(found).images)
        again = {(int(found[first]), int(found[other])) for first, *others in groups for other in others}
        twice = sorted({*twice, *again})
    ranks = {"train": 0, "val": 1}
    names = sorted(dataset.split_names, key=lambda name: ranks.get(name, 2))
    by_split = {split: dataset.indices(split) for split in names}
    parts = by_split | {ALL: np.arange(len(dataset))}
    is_missing = np.zeros(len(dataset), dtype=np.bool_)
    is_missing[missing] = True
    ids = dataset.image_ids
    return Inspection(
        name=dataset.name,
        format=format_of(config.data),
        class_names=dataset.class_names,
        splits={split: _facts(dataset.targets_at(part), is_missing[part]) for split, part in parts.items()},
        positives=_counts(dataset, parts, PRESENT),
        unknown=_counts(dataset, parts, UNKNOWN),
        pairs=tuple(_strongest(dataset, by_split, config.partition.root, pairs)),
        missing=tuple(ids[position] for position in missing),
        twice=tuple((ids[one], ids[other]) for one, other in twice),
        twice_across=sum(dataset.splits[one] != dataset.splits[other] for one, other in twice),
        split_hash=dataset.split_hash(),
        split_hash_of_found=dataset.subset(found).split_hash(),
        notes=dataset.notes,
    )


def inspection_tables(inspection: Inspection) -> Iterator[Table]:
    """Tables of the splits, the classes and the strongest companions."""
    number_of_classes = counted(len(inspection.class_names), "class", "classes")
    splits = _table(
        f"{inspection.name} ({inspection.format}), {number_of_classes}",
        ("split", "images", "found", "missing", "no label", "cardinality", "density", "unknown"),
    )
    for split, facts in inspection.splits.items():
        numbers = (facts.images, facts.images - facts.missing, facts.missing, facts.unlabelled)
        splits.add_row(
            Text(split or "-"),
            *(f"{number:,}" for number in numbers),
            f"{facts.cardinality:.2f}",
            f"{facts.density:.4f}",
            f"{facts.unknown:,}",
        )
    yield splits
    has_unknown = inspection.splits[ALL].unknown > 0
    names = list(inspection.splits)
    classes = _table(
        "images with each class",
        ("class", *(name or "-" for name in names), *(("unknown",) if has_unknown else ())),
    )
    for name in inspection.class_names:
        cells = [f"{inspection.positives[name][split]:,}" for split in names]
        classes.add_row(Text(name), *cells, *([f"{inspection.unknown[name][ALL]:,}"] if has_unknown else []))
    yield classes
    if inspection.pairs:
        pairs = _table(
            "strongest companions in training",
            ("first", "second", "together", "P(2nd|1st)", "P(1st|2nd)", "affinity"),
            left=2,
        )
        for pair in inspection.pairs:
            shares = (pair.second_given_first, pair.first_given_second, pair.affinity)
            pairs.add_row(
                Text(pair.first), Text(pair.second), f"{pair.images:,}", *(f"{share:.3f}" for share in shares)
            )
        yield pairs


def inspection_lines(inspection: Inspection) -> Iterator[str]:
    """What else there is to say, one thing in a line."""
    for note in inspection.notes:
        yield f"note: {note}"
    if inspection.missing:
        yield (
            f"missing: {len(inspection.missing):,} of {inspection.splits[ALL].images:,} images are not "
            f"there: {shortened(inspection.missing)}; data.image_root names the folder their paths start from"
        )
    for split in inspection.splits:
        absent = inspection.without_positives(split)
        if absent and split not in (ALL, UNLABELLED):
            where = f" in {split}" if split else ""
            what = counted(len(absent), "class", "classes")
            yield f"without positives{where}: {what}: {shortened(absent, 20)}"
    if inspection.twice:
        shown = shortened([" and ".join(pair) for pair in inspection.twice], 3)
        yield (
            f"twice: {counted(len(inspection.twice), 'image')}, {inspection.twice_across:,} of them in two "
            f"splits: {shown}"
        )
    yield f"split: {inspection.split_hash}"
    if 0 < len(inspection.missing) < inspection.splits[ALL].images:
        yield f"split of the images found: {inspection.split_hash_of_found}"


def _facts(targets: npt.NDArray[np.int8] | LabelLists, is_missing: npt.NDArray[np.bool_]) -> SplitFacts:
    present, unknown = (int(count_value(targets, value).sum()) for value in (PRESENT, UNKNOWN))
    n, c = targets.shape
    return SplitFacts(
        images=n,
        missing=int(is_missing.sum()),
        unlabelled=int((~are_labelled(targets)).sum()),
        cardinality=present / max(1, n),
        density=present / max(1, n * c - unknown),
        unknown=unknown,
    )


def _counts(
    dataset: MultiLabelDataset, parts: dict[str, npt.NDArray[np.int64]], value: int
) -> dict[str, dict[str, int]]:
    """Images whose target is `value`, by class and split."""
    counts = {split: count_value(dataset.targets_at(part), value) for split, part in parts.items()}
    return {
        name: {split: int(counts[split][column]) for split in parts}
        for column, name in enumerate(dataset.class_names)
    }


def _strongest(
    dataset: MultiLabelDataset, by_split: dict[str, npt.NDArray[np.int64]], root: float, most: int
) -> list[Pair]:
    """The pairs of the largest affinity, by which co-occurrence groups are made; of training images.

    Those on fewer than `FEW` images come after all others.
    """
    train = by_split.get("train", np.arange(len(dataset)))
    graph = CooccurrenceGraph.from_targets(dataset.targets_at(train), dataset.class_names)
    affinity = graph.affinity(root)
    upper = np.triu_indices(graph.num_classes, k=1)
    names, counts, of_class = graph.class_names, graph.counts, graph.class_counts
    together = counts[upper]
    # a pair seen once or twice is as strong as can be, by chance; of equal pairs the frequent one says more
    order = np.lexsort((-together, -affinity[upper], together < FEW))[:most]
    return [
        Pair(
            names[i],
            names[j],
            int(counts[i, j]),
            float(counts[i, j] / of_class[i]),
            float(counts[i, j] / of_class[j]),
            float(affinity[i, j]),
        )
        for i, j in zip(upper[0][order], upper[1][order], strict=True)
        if counts[i, j]
    ]


def _table(title: str, columns: Sequence[str], left: int = 1) -> Table:
    table = Table(title=Text(title), title_justify="left", box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if number < left else "right")
    return table
