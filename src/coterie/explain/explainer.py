"""From a predictor and a picture to a map for each class, by the method that fits its model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from coterie.data.transforms import to_pixels
from coterie.evaluation import to_scores
from coterie.explain.attention import QUERY_HEADS, attention_maps
from coterie.explain.exact import csra_maps, is_linear_in_map, linear_maps
from coterie.explain.gradcam import Layer, find_layer, grad_cam
from coterie.models.classifier import Classifier
from coterie.models.heads.csra import CsraHead
from coterie.predictor import Picture, Predictor, as_image, class_columns, load_classifier

Method = Literal["class activation", "residual attention", "attention", "Grad-CAM"]
TOP = 3  # classes that are shown of a picture where none are named


@dataclass(frozen=True, eq=False)
class ClassMap:
    """What each position of a picture says about one class: `values` float32 [h, w], on the model's own grid.

    Of the methods "class activation" and "residual attention", the mean of the values plus `bias` is the
    `logit`. Of "attention", values are shares that sum to 1. Of "Grad-CAM", they have no unit. `score` is
    what the predictor says, in 0..1.
    """

    values: npt.NDArray[np.float32]
    method: Method
    logit: float
    score: float
    bias: float = 0.0

    def heat(self, width: int, height: int) -> npt.NDArray[np.float32]:
        """The map as float32 [height, width] in 0..1, for a picture of that size.

        0 is what does not speak for the class: evidence of 0 or less, attention no greater than the average.
        1 is the greatest value. A map is scaled by itself: two of them compare in place, not in strength.
        """
        values = torch.from_numpy(self.values)[None, None]
        neutral = 1 / self.values.size if self.method == "attention" else 0.0
        resized = functional.interpolate(values, (height, width), mode="bilinear", align_corners=False)
        above: npt.NDArray[np.float32] = (resized[0, 0] - neutral).clamp(min=0).numpy()
        greatest = float(above.max())
        return above / greatest if greatest > 1e-6 * abs(neutral) else np.zeros_like(above)


class Explainer:
    """Maps of the classes of one predictor: exact ones for linear and CSRA heads, attention for heads with
    queries, and Grad-CAM for any other model or where `layer` names a module of it.

    ConfigError where the model has no layer that gives a map.
    """

    def __init__(self, predictor: Predictor, layer: str | None = None) -> None:
        self.predictor = predictor
        model = predictor.model
        self._layer: Layer | None = None
        self.method: Method = "Grad-CAM"
        side = predictor.checkpoint.preprocessing.image_size
        noise = torch.randn((2, 3, side, side), generator=torch.Generator().manual_seed(0))
        noise = noise.to(predictor.device)
        if layer is None:
            head = model.head if isinstance(model, Classifier) else None
            with torch.no_grad():
                if isinstance(head, CsraHead):
                    self.method = "residual attention"
                elif isinstance(head, QUERY_HEADS):
                    self.method = "attention"
                elif is_linear_in_map(model, noise):
                    self.method = "class activation"
        if self.method == "Grad-CAM":
            self._layer = find_layer(model, noise, layer)

    @property
    def layer(self) -> str | None:
        """The module whose output Grad-CAM looks at; None of the other methods."""
        return None if self._layer is None else self._layer.name

    def __call__(
        self, picture: Picture, classes: Sequence[str], size: tuple[int, int] | None = None
    ) -> dict[str, npt.NDArray[np.float32]]:
        """For each class a map float32 [H, W] in 0..1: see `ClassMap.heat`. `size`: (width, height) of the
        maps, by default those of the picture.
        """
        image = as_image(picture)
        shown = size or image.size
        return {name: found.heat(*shown) for name, found in self.maps(image, classes).items()}

    def maps(self, picture: Picture, classes: Sequence[str]) -> dict[str, ClassMap]:
        """For each class its map on the model's own grid. ConfigError for a class that the model has not,
        DataError for a picture that cannot be read.
        """
        columns = class_columns(self.predictor.class_names, classes)
        preprocessing = self.predictor.checkpoint.preprocessing
        pixels = to_pixels(preprocessing.resize(as_image(picture)))[None]
        maps, logits, bias = self._maps(preprocessing.normalize(pixels.to(self.predictor.device)), columns)
        scores = to_scores(logits, self.predictor.checkpoint.temperature)
        values = maps.float().cpu().numpy()
        numbers = torch.stack([logits.double(), scores, bias.double()], dim=1).tolist()
        return {
            name: ClassMap(grid, self.method, *row)
            for name, grid, row in zip(classes, values, numbers, strict=True)
        }

    def _maps(self, images: Tensor, columns: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Maps [n, h, w], logits [n] and what is added to the mean of a map [n], of images [1, 3, H, W]."""
        model = self.predictor.model
        if self._layer is not None:
            maps = grad_cam(model, self._layer, images, columns)
            with torch.no_grad():
                logits: Tensor = model(images)[0, columns]
            return maps, logits, torch.zeros_like(logits)
        assert isinstance(model, Classifier)
        with torch.no_grad():
            if self.method == "attention":
                shares, all_logits = attention_maps(model, images)
                logits = all_logits[0, columns]
                return shares[0, columns], logits, torch.zeros_like(logits)
            if self.method == "residual attention":
                maps = csra_maps(model, images)[0, columns]
                bias = torch.zeros_like(maps[:, 0, 0])
            else:
                all_maps, all_biases = linear_maps(model, images)
                maps, bias = all_maps[0, columns], all_biases[columns]
            return maps, maps.mean(dim=(1, 2)) + bias, bias


def make_explainer(predictor: Predictor, layer: str | None = None) -> Explainer:
    """What gives maps: `explainer(picture, classes)` is {class: float32 [H, W] in 0..1}, in its own size."""
    return Explainer(predictor, layer)


def explain(
    classifier: Predictor | str | Path,
    pictures: Iterable[Picture],
    classes: Sequence[str] | None = None,
    *,
    top: int = TOP,
    layer: str | None = None,
) -> list[dict[str, npt.NDArray[np.float32]]]:
    """For each picture {class: map float32 [H, W] in 0..1} in its own size, as `ClassMap.heat` says.

    `classifier`: a predictor, or the folder of a run or checkpoint. `classes`: by default the `top` best of
    each picture. ConfigError for a class that the model has not, DataError for a picture that cannot be read.
    """
    predictor = classifier if isinstance(classifier, Predictor) else load_classifier(classifier)
    explainer = make_explainer(predictor, layer)
    images = map(as_image, pictures)
    return [
        explainer(image, best_classes(predictor, image, top) if classes is None else classes)
        for image in images
    ]


def best_classes(predictor: Predictor, image: Picture, top: int) -> list[str]:
    """The `top` classes with the greatest scores, best first."""
    (prediction,) = predictor.predict([image])
    return prediction.ranked()[:top]
