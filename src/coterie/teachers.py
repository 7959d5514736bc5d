"""Frozen teachers of one branch, whose logits come back in the order of the full label set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Self

import torch
from torch import Tensor, nn

from coterie.errors import CheckpointError, repeated, shortened
from coterie.models.cut import Cut
from coterie.models.output_layer import OutputLayer


class Branch(nn.Module):
    """The teachers of one partition: images [B, 3, H, W] -> logits [B, C] in the order of `class_names`.

    `teachers`: (model, the class names of its group). Together the groups cover every class once, or
    CheckpointError. A model answers for its group, in that order; with `outside` above 0 for all classes, and
    the logit of a class is the mean of all teachers' then, in which those of other groups count `outside`.
    The teachers have no gradients and stay in evaluation mode whatever the module around them does.
    """

    columns: Tensor
    owners: Tensor
    places: Tensor
    shares: Tensor

    def __init__(
        self,
        teachers: Sequence[tuple[nn.Module, Sequence[str]]],
        class_names: Sequence[str],
        outside: float = 0.0,
    ) -> None:
        super().__init__()
        answered = [name for _, names in teachers for name in names]
        if sorted(answered) != sorted(class_names):
            wrong = {
                "no teacher for": set(class_names) - set(answered),
                "more than one for": set(repeated(answered)),
                "not a class:": set(answered) - set(class_names),
            }
            problems = [f"{what} {shortened(sorted(names))}" for what, names in wrong.items() if names]
            raise CheckpointError(
                f"the teachers do not answer for each of the {len(class_names)} classes once: "
                + "; ".join(problems)
            )
        self.models = nn.ModuleList(model for model, _ in teachers)
        self.num_classes = len(class_names)
        self.outside = outside
        self.group_sizes = [len(names) for _, names in teachers]
        # Column j of the joined logits is class answered[j]; this puts them where class_names has them.
        order = [answered.index(name) for name in class_names]
        self.register_buffer("columns", torch.tensor(order), persistent=False)
        # of each class: the number of its teacher, and its column there
        where = [(number, place) for number, size in enumerate(self.group_sizes) for place in range(size)]
        for name, values in zip(("owners", "places"), zip(*where, strict=True), strict=True):
            self.register_buffer(name, torch.tensor(values)[self.columns], persistent=False)
        # of each teacher in the mean of each class, [T, C]
        owned = self.owners == torch.arange(len(teachers))[:, None]
        counts = torch.where(owned, 1.0, outside)
        self.register_buffer("shares", counts / counts.sum(dim=0), persistent=False)
        if outside > 0:
            self.places.copy_(torch.arange(self.num_classes))
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002
        """Stay in evaluation mode: batch norm and dropout of a teacher must not move while it gives
        targets.
        """
        return super().train(False)

    def made_faster(self, faster: Callable[[nn.Module], nn.Module]) -> Self:
        """This branch, with `faster(model)` in the place of each of its models."""
        self.models = nn.ModuleList(faster(model) for model in self.models)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self._joined([model(images) for model in self.models])

    def _joined(self, answers: Sequence[Tensor]) -> Tensor:
        """The logits [B, C] of the branch, of what each teacher answers."""
        if self.outside > 0:
            return (torch.stack([*answers]) * self.shares[:, None]).sum(dim=0)
        return torch.cat([*answers], dim=1)[:, self.columns]

    @torch.no_grad()
    def with_embeddings(self, images: Tensor, positives: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The logits [B, C], and the label-wise embeddings [P, D] of `positives`: images [P] of the batch and
        labels [P], each of the teacher of the label's group. ConfigError where a teacher has no output layer
        to take them from.
        """
        rows, labels = positives
        logits, parts, order = [], [], []
        for number, (model, size) in enumerate(zip(self.models, self.group_sizes, strict=True)):
            layer = OutputLayer(model, self.num_classes if self.outside else size, "distill.relations")
            with layer.watched():
                logits.append(model(images))
            own = (self.owners[labels] == number).nonzero().flatten()
            parts.append(layer.embeddings(rows[own], self.places[labels[own]]))
            order.append(own)
        embeddings = torch.cat(parts)[torch.cat(order).argsort()]
        return self._joined(logits), embeddings


class Teachers(nn.Module):
    """The branches that a student learns from: images [B, 3, H, W] -> logits [R, B, C], without gradients.

    `compiled`: by torch.compile, once for each size of a batch. `frozen_part`: what all teachers share, from
    whose features the branches answer; it runs under `autocast`, as when they were trained. Where these
    features are known they are given in the place of the images.
    """

    def __init__(
        self,
        branches: Sequence[Branch],
        compiled: bool = False,
        frozen_part: Cut | None = None,
        autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.lower = None if frozen_part is None else frozen_part.lower_part
        self.frozen_sha256 = None if frozen_part is None else frozen_part.sha256()
        self._autocast = autocast
        # the weights are constants: freezing lets the compiler lay them out for the operations that use them
        self._answer = (
            torch.compile(self._stacked, dynamic=False, options={"freezing": True})
            if compiled
            else self._stacked
        )

    @property
    def owners(self) -> Tensor:
        """The number of the teacher of each branch that answers for each class, [R, C]."""
        return torch.stack([branch.owners for branch in self._branches()])

    def forward(self, images: Tensor, are_features: bool = False) -> Tensor:
        """Images, or the features [B, ...] of the frozen part -> logits [R, B, C]; ValueError for features
        where the teachers share no frozen part.
        """
        if are_features and self.lower is None:
            raise ValueError("the teachers share no frozen part whose features they could answer from")
        with torch.inference_mode():
            logits = self._answer(images if are_features else self._lowered(images))
        # copied outside of it: a tensor made in inference mode cannot be part of a loss
        return logits.clone()

    def with_embeddings(self, images: Tensor, positives: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The logits, and the label-wise embeddings [R, P, D] of `positives`: images [P] of the batch and
        labels [P].
        """
        with torch.inference_mode():
            features = self._lowered(images)
            answers = [branch.with_embeddings(features, positives) for branch in self._branches()]
            logits, embeddings = (torch.stack(parts) for parts in zip(*answers, strict=True))
        return logits.clone(), embeddings.clone()

    def _branches(self) -> Iterator[Branch]:
        yield from self.branches  # type: ignore[misc]  # a ModuleList does not say of what

    def _lowered(self, images: Tensor) -> Tensor:
        """What the branches answer from."""
        if self.lower is None:
            return images
        with self._autocast():
            features: Tensor = self.lower(images)
        return features.float()

    def _stacked(self, images: Tensor) -> Tensor:
        return torch.stack([branch(images) for branch in self.branches])


class Ensemble(nn.Module):
    """The mean of several branches' logits: images [B, 3, H, W] -> logits [B, C]."""

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([branch(images) for branch in self.branches]).mean(dim=0)
