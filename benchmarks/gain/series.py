"""Whether what was found holds elsewhere: with new views, other heads, backbones, and the built-in scenes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace

from benchmarks.gain.protocol import OVER_RECIPE, Protocol
from benchmarks.gain.rows import write_rows
from benchmarks.gain.search import Words, search_baseline, value_of

# A few rows and seeds show it.
SEEDS = 3
ROWS = ("baseline", "k1", "psd", "all-teachers")
SCENES = (
    *("baseline", "k1", "random", "random-equal", "cgp", "dgp", "dgp-paper", "psd"),
    *("cgp-teachers", "dgp-teachers", "all-teachers"),
)
HEADS: dict[str, Words] = {
    "csra": ("model.head=csra",),
    "ml-decoder": ("model.head=ml-decoder", "model.ml_decoder.width=256", "model.ml_decoder.feedforward=512"),
}
BACKBONES: dict[str, Words] = {
    # with ImageNet weights; what is frozen ends at half of its depth
    "mobilenet-v2": (
        *("model=benchmarks.gain.models:mobilenet_v2", "model.weights=null", "train.frozen=features.13"),
        *("model.mean=[0.5, 0.5, 0.5]", "model.std=[0.5, 0.5, 0.5]"),
    ),
    # from random weights, all of it trained
    "small-resnet": (
        *("model=test_resnet", "model.weights=null", "model.image_size=32", "train.frozen=null"),
        *("train.ema=0.995", "train.batch_size=32"),
    ),
}
# what makes trainings small, for a CPU
SMALL = ("train.frozen=", "train.views=", "model.image_size=")
# A baseline gains most by a new view of each image in every epoch, and by the time to look at all of them.
NEW_VIEWS = (
    *("train.views=64", "baseline.patience=null"),
    *(f"{role}.epochs=64" for role in ("train", "baseline", "teacher", "student")),
)


def varied(protocol: Protocol, name: str, *words: str) -> Protocol:
    """The protocol with further settings, at few of its seeds."""
    words = allowed(protocol, words)
    return replace(protocol.variant(name, *words), seeds=protocol.seeds[:SEEDS])


def allowed(protocol: Protocol, words: Words) -> Words:
    """Those that leave it as it is, where the protocol trains all layers on new views of large pictures."""
    return tuple(word for word in words if not (protocol.whole and word.startswith(SMALL)))


def _measure_few(variant: Protocol, words: Words) -> None:
    """A few rows of a `varied` protocol, with the settings `words`, in a file beside its folder."""
    found = variant.measured("rows", words, (), ROWS)
    write_rows(variant.out.parent, variant.out.name, found, (*variant.settings, *words))


def measure_new_views(protocol: Protocol, recommended: Words) -> None:
    """The recommended recipe where no training sees a view of an image twice."""
    _measure_few(varied(protocol, "new-views"), (*recommended, *allowed(protocol, NEW_VIEWS)))


def measure_heads(protocol: Protocol, recommended: Words) -> None:
    """The recommended recipe with another head, settings as they are."""
    for name, words in HEADS.items():
        _measure_few(varied(protocol, f"head-{name}", *words), recommended)


def measure_backbones(
    protocol: Protocol, recommended: Words, searched: Words, names: Sequence[str] = tuple(BACKBONES)
) -> None:
    """The recommended recipe with other backbones, those with `names`. The baseline of each has a search of
    its own; the student's rate is as far from the baseline's as it was found to be best.
    """
    os.environ["COTERIE_DATA"] = str(protocol.data)  # for the processes
    for name in names:
        variant = varied(protocol, f"backbone-{name}", *BACKBONES[name])
        own, beside = variant.out / "search-baseline.json", protocol.out / f"{search_name(name)}.json"
        if beside.exists() and not own.exists():
            own.parent.mkdir(exist_ok=True)
            shutil.copyfile(beside, own)
        baseline = search_baseline(variant)
        shutil.copyfile(own, beside)
        _measure_few(variant, (*baseline, *adapted_to(recommended, searched, baseline)))


def adapted_to(recommended: Words, searched: Words, baseline: Words) -> Iterator[str]:
    """What was found for the student, for another `baseline` than the one it was `searched` for."""
    before, now = (float(value_of("train.lr", words)) for words in (searched, baseline))
    for word in recommended:
        key, _, value = word.partition("=")
        if key == "student.lr":
            yield f"{key}={float(value) / before * now:.3g}"
        elif key not in ("baseline.epochs", "teacher.epochs") and not key.startswith("train."):
            yield word


def measure_scenes(protocol: Protocol) -> None:
    """The demo's recipe and its controls: how far each leans on companions, and what it loses without."""
    few = replace(protocol, seeds=protocol.seeds[:SEEDS])
    settings = ("recipe=demo", *OVER_RECIPE, *protocol.words)
    write_rows(protocol.out, "scenes", few.of_scenes(SCENES), settings, size=None)


def search_name(backbone: str) -> str:
    """Of the file with the search for a backbone's baseline."""
    return f"backbone-{backbone}-search"


def names() -> Sequence[str]:
    """Of the files that these write with rows."""
    others = (*(f"head-{name}" for name in HEADS), *(f"backbone-{name}" for name in BACKBONES))
    return ("new-views", *others, "scenes")
