"""The images that show best what the student learned, small enough to be inside a page."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.special import expit

from coterie.data.dataset import ABSENT, PRESENT, MultiLabelDataset
from coterie.data.reading import read_dataset
from coterie.errors import CoterieError, DataError, counted
from coterie.explain import Explainer, make_explainer
from coterie.explain.sheet import fitted, overlay
from coterie.logits import SplitLogits
from coterie.models.factory import ModelBuilder
from coterie.predictor import load_classifier
from coterie.report.reading import FinishedRun

SIDE = 224  # the longer one of a picture, in pixels
LABELS = 8  # the most that are shown of one image
EXPLAINED = ("baseline", "student")
BLOCK = 4096  # images that are ranked together


def ranking_errors(logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int8]) -> npt.NDArray[np.float64]:
    """Of each image [N] the share of pairs of a present and an absent label that are in the wrong order.

    0 where there is no such pair. It asks for no threshold, so a model that is only too bold is not punished.
    """
    errors = []
    for start in range(0, len(logits), BLOCK):
        order = np.argsort(-logits[start : start + BLOCK], axis=1, kind="stable")
        ranked = np.take_along_axis(targets[start : start + BLOCK], order, axis=1)
        present, absent = ranked == PRESENT, ranked == ABSENT
        wrong = (present * absent.cumsum(axis=1)).sum(axis=1)
        errors.append(wrong / np.maximum(present.sum(axis=1) * absent.sum(axis=1), 1))
    return np.concatenate(errors)


def chosen_images(logits: SplitLogits, most: int) -> dict[str, list[int]]:
    """The positions of the images where the student is "corrected" most against the baseline, where it is
    "worse" than the baseline, and those that are "hardest" for it; the most telling first.
    """
    student, baseline = (
        ranking_errors(logits.models[model], logits.targets) for model in ("student", "baseline")
    )
    values = {"corrected": baseline - student, "worse": student - baseline, "hardest": student}
    return {
        kind: [int(position) for position in np.argsort(-value, kind="stable")[:most] if value[position] > 0]
        for kind, value in values.items()
    }


def describe_image(logits: SplitLogits, position: int, kind: str, cut: float) -> dict[str, Any]:
    """The "id" of an image, its "labels" with the scores of baseline and student, and the label "explained".

    Labels are those present, and the absent ones that one of the two ranks highest. Explained is, of those
    present, the one whose score the student raised most ("corrected") or lowered most ("worse"), else the one
    with its lowest score.
    """
    targets = logits.targets[position]
    scores = {model: expit(logits.models[model][position].astype(np.float64)) for model in EXPLAINED}
    baseline, student = (scores[model] for model in EXPLAINED)
    present = np.flatnonzero(targets == PRESENT)
    absent = np.flatnonzero(targets == ABSENT)
    best = np.maximum(baseline, student)
    shown = [*present[np.argsort(-best[present], kind="stable")][:LABELS].tolist()]
    shown += absent[np.argsort(-best[absent], kind="stable")][: max(2, LABELS - len(shown))].tolist()
    raised = student - baseline
    lowest = {"corrected": -raised, "worse": raised, "hardest": student}[kind]
    explained = int(present[np.argmin(lowest[present])])
    return {
        "id": logits.image_ids[position],
        "labels": [
            {
                "name": logits.class_names[column],
                "present": bool(targets[column] == PRESENT),
                **{model: float(scores[model][column]) for model in EXPLAINED},
                **{f"{model}_predicted": bool(scores[model][column] > cut) for model in EXPLAINED},
            }
            for column in shown
        ],
        "explained": logits.class_names[explained],
    }


class Gallery:
    """The pictures of a run with class activation maps, as far as both are to be had.

    `builder`: of a model of your own, whose maps there are only with it.
    """

    def __init__(self, run: FinishedRun, builder: ModelBuilder | None = None) -> None:
        self._lost: list[str] = []
        self._unread: list[str] = []
        self._dataset = self._read(run)
        ids = () if self._dataset is None else self._dataset.image_ids
        measured = {image_id for split in run.splits for image_id in run.logits(split).image_ids}
        self._positions = {name: position for position, name in enumerate(ids) if name in measured}
        self._explainers = {} if self._dataset is None else self._make_explainers(run, builder)

    @property
    def notes(self) -> list[str]:
        """What is missing in the report, and why."""
        if not self._lost:
            return self._unread
        lost = counted(len(self._lost), "picture is", "pictures are")
        return [*self._unread, f"{lost} missing here; the first: {self._lost[0]}"]

    def add(self, described: dict[str, Any], targets: npt.NDArray[np.int8]) -> dict[str, Any]:
        """What `describe_image` says, with "picture" (a data URL), its "size" and "maps" {model: data URL};
        None and {} where the picture is not there any more, or has other labels than `targets` [C].
        """
        image = self._open(described["id"], targets)
        if image is None:
            return described | {"picture": None, "size": None, "maps": {}}
        small, name = fitted(image, SIDE), described["explained"]
        maps = {
            model: data_url(overlay(small, explainer.maps(image, [name])[name].heat(*small.size)))
            for model, explainer in self._explainers.items()
        }
        return described | {"picture": data_url(small), "size": small.size, "maps": maps}

    def _open(self, image_id: str, targets: npt.NDArray[np.int8]) -> Image.Image | None:
        if self._dataset is None:
            return None
        position = self._positions.get(image_id)
        if position is None or not np.array_equal(self._dataset.targets[position], targets):
            self._lost.append(f"{image_id} is not in the data any more, or has other labels now")
            return None
        try:
            return self._dataset.load_image(position)
        except DataError as error:
            self._lost.append(str(error))
            return None

    def _read(self, run: FinishedRun) -> MultiLabelDataset | None:
        try:
            return read_dataset(run.config.data, run.config.seed).with_classes(run.class_names)
        except CoterieError as error:
            self._unread.append(f"there are no pictures here: {error}")
            return None

    def _make_explainers(self, run: FinishedRun, builder: ModelBuilder | None) -> dict[str, Explainer]:
        try:
            return {
                model: make_explainer(load_classifier(run.folder / model, builder)) for model in EXPLAINED
            }
        except CoterieError as error:
            self._unread.append(f"there are no class activation maps here: {error}")
            return {}


def data_url(image: Image.Image) -> str:
    """The picture as WebP inside a URL; what a camera wrote beside the pixels is left out."""
    file = io.BytesIO()
    image.save(file, "WEBP", quality=70)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
