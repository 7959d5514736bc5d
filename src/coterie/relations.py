"""Distances between label-wise embeddings: what a student can learn from its teachers beside their logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

Positives = tuple[Tensor, Tensor]  # images [P] of the batch and labels [P]


def relation_loss(
    student: Tensor, teachers: Tensor, owners: Tensor, weights: Tensor, positives: Positives
) -> Tensor:
    """How far distances among the student's label-wise embeddings are from those among its teachers'
    (label-wise embedding distillation, L2D; Yang et al., ICCV 2023).

    `positives`: the images [P] and labels [P] of a batch that are present. `student` [P, D] and `teachers`
    [R, P, D'] are their embeddings, by each of R branches, in which the teacher number `owners` [R, C]
    answers for each label. `weights` of the branches: [R], or [R, C] by label.

    Compared are the distances between images that share a label, and between labels of one image that share
    a teacher, each as a part of their mean (as Park et al., CVPR 2019), by Huber's loss. The loss [] is
    the mean over the first plus that over the second; 0 where there are no such pairs.
    """
    images, labels = positives
    same_label, same_image = (_later(part[:, None] == part) for part in (labels, images))
    own = _distances(student)
    loss = own.new_zeros(())
    for branch, (embeddings, owner) in enumerate(zip(teachers, owners, strict=True)):
        by_label = weights[branch].expand(owners.shape[1])[labels]
        shared = owner[labels][:, None] == owner[labels]
        theirs = _distances(embeddings)
        for pairs in (same_label, same_image & shared):
            if pairs.any():
                first, second = pairs.nonzero(as_tuple=True)
                weight = (by_label[first] + by_label[second]) / 2
                loss = loss + (weight * _compared(own[pairs], theirs[pairs])).mean()
    return loss


def _later(pairs: Tensor) -> Tensor:
    """Of symmetric pairs [P, P] those above the diagonal."""
    return pairs.triu(diagonal=1)


def _distances(embeddings: Tensor) -> Tensor:
    """Euclidean distances [P, P] between embeddings [P, D], in float32 also under autocast."""
    # by differences: products would lose small distances, and two that are the same would have no gradient
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(embeddings.float(), embeddings.float(), compute_mode=mode)


def _compared(distances: Tensor, targets: Tensor) -> Tensor:
    """Huber's loss of distances against targets, both as parts of their means."""
    own, theirs = (values / values.mean().clamp(min=1e-12) for values in (distances, targets))
    return functional.smooth_l1_loss(own, theirs, reduction="none")
