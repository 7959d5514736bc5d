"""What PSD gains over a baseline at its own best, on real photographs: the whole protocol of docs/results.md.

    python -m benchmarks.gain [--data FOLDER] [--out FOLDER] [--seeds 0 1 2 3 4] [--at-once N] [KEY=VALUE ...]

FOLDER holds `corel5k/labels.csv`, `weights/squeezenet1_1_imagenet_features.safetensors` and, for the part
`backbones`, `weights/mobilenet_v2_imagenet.safetensors`; by default what COTERIE_DATA names.
First the rate, loss and length of the baseline, then as many settings of the student, then improvements one
at a time: all on validation, by a table that has no test images. Then every row is trained at every seed,
and measured on test; most of them on each fifth of all images, a few with new views, with other heads and
backbones, with half of the labels, and on the scenes.
A stopped call goes on where it was. Each part leaves its numbers in OUT, and reads there what those before it
have found: with the files of docs/results in OUT, later parts need not search again.

`--whole` trains all layers, at 224 pixels and with new views: for a GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gain.folds import measure_folds
from benchmarks.gain.ideas import IDEAS, kept_words, try_ideas
from benchmarks.gain.models import WEIGHTS as MOBILENET_WEIGHTS
from benchmarks.gain.protocol import Protocol
from benchmarks.gain.rows import ALWAYS, AS_SEARCHED, CONTROLS, SWEEPS, own_rows, write_rows
from benchmarks.gain.search import FIRST_RATE, search_baseline, search_student
from benchmarks.gain.series import (
    BACKBONES,
    measure_backbones,
    measure_heads,
    measure_new_views,
    measure_scenes,
)
from benchmarks.gain.unlabelled import measure_unlabelled

PARTS = (
    *("baseline", "student", "ideas", "rows", "sweeps", "folds", "new-views", "heads", "backbones"),
    *("unlabelled", "scenes"),
)


def do(
    protocol: Protocol,
    parts: Sequence[str],
    ideas: Sequence[str],
    rows: Sequence[str],
    backbones: Sequence[str],
    fold_seeds: int,
) -> None:
    """Do the parts, and of the searches what they need; what is done is read from OUT."""
    if set(parts) - {"scenes"}:
        searched = search_baseline(protocol)
    if set(parts) - {"scenes", "baseline"}:
        student = search_student(protocol, searched)
    if set(parts) - {"scenes", "baseline", "student"}:
        chosen = [idea for idea in IDEAS if idea.name in ideas and not (protocol.whole and idea.limits_views)]
        tried = try_ideas(protocol, student, chosen)
        recommended = (*student, *(kept := kept_words(tried)))
    if "rows" in parts:
        own = [
            row
            for row in own_rows(student, kept, protocol.settings)
            if row.name in rows and (row.name != AS_SEARCHED or kept)
        ]
        names = [name for name in CONTROLS if name in {*rows, *ALWAYS}]
        found = protocol.measured("rows", recommended, own, names)
        write_rows(protocol.out, "rows", found, (*protocol.settings, *recommended))
    if "sweeps" in parts:
        found = protocol.measured("rows", recommended, (), ("psd",), SWEEPS)
        write_rows(protocol.out, "sweeps", found, (*protocol.settings, *recommended))
    if "folds" in parts:
        measure_folds(protocol, recommended, rows, fold_seeds)
    if "new-views" in parts:
        measure_new_views(protocol, recommended)
    if "heads" in parts:
        measure_heads(protocol, recommended)
    if "backbones" in parts:
        measure_backbones(protocol, recommended, searched, backbones)
    if "unlabelled" in parts:
        measure_unlabelled(protocol, recommended)
    if "scenes" in parts:
        measure_scenes(protocol)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("COTERIE_DATA", "../shared/data")))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-gain"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--search-seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--fold-seeds", type=int, default=1, help="seeds of each fold")
    parser.add_argument("--epochs", type=int, default=32, help="that the search begins with")
    parser.add_argument("--at-once", type=int, default=1, help="runs at the same time")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    ideas = [idea.name for idea in IDEAS]
    parser.add_argument("--ideas", nargs="*", choices=ideas, default=ideas, help="to try; by default all")
    rows = [*CONTROLS, *(row.name for row in own_rows([f"train.lr={FIRST_RATE}"]))]
    of_rows = "of the parts `rows` and `folds`; by default all"
    parser.add_argument("--rows", nargs="+", choices=rows, default=rows, help=of_rows)
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=tuple(BACKBONES))
    parser.add_argument("--whole", action="store_true", help="train all layers, at 224 pixels: for a GPU")
    arguments, words = parser.parse_known_args()
    if arguments.fold_seeds < 1:
        parser.error(f"--fold-seeds {arguments.fold_seeds}: a fold has one seed or more")
    protocol = Protocol(
        arguments.data.resolve(),
        arguments.out.resolve(),
        tuple(arguments.seeds),
        tuple(arguments.search_seeds),
        arguments.epochs,
        arguments.at_once,
        arguments.whole,
        tuple(words),
    )
    needed = [protocol.table, protocol.weights]
    if "backbones" in arguments.parts and "mobilenet-v2" in arguments.backbones:
        needed.append(protocol.data / MOBILENET_WEIGHTS)
    for path in needed:
        if not path.exists():
            print(f"{path} is not there; name the folder by --data", file=sys.stderr)
            return 2
    do(protocol, arguments.parts, arguments.ideas, arguments.rows, arguments.backbones, arguments.fold_seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
