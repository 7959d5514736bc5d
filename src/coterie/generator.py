"""Soft targets that learn from what they do to the student, by a gradient through its next step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from coterie.losses import DistillationLoss, binary_cross_entropy
from coterie.models.output_layer import OutputLayer

SMALLEST = 1e-6  # a probability that is nearly 0 has a logit of this one's


class TargetGenerator(nn.Module):
    """One soft target for each label from the logits [R, B, C] of R branches, learned by label.

    The target's logit is `scale * logit(sum_r share_r * sigmoid(z_r)) + shift`, with the shares, scales and
    shifts of each label. They begin at the weights of the branches, 1 and 0, where the target is the mean
    that the student learns without a generator. In every step they follow the gradient of what the step does
    to the student (as MetaDistiller does for a network's own outputs; Liu et al., ECCV 2020, section 3.3):
    the student's last layer is taken one step of gradient descent towards the targets of this batch, and the
    loss that it then has on the labels of the batch before is what they lower.

    Its optimiser and the batch before are part of its state, so that a training goes on exactly where it was.
    """

    log_shares: Tensor

    def __init__(self, weights: Tensor, num_classes: int, rate: float) -> None:
        super().__init__()
        shares = weights.reshape(len(weights), -1).expand(-1, num_classes).clamp(min=SMALLEST)
        self.log_shares = nn.Parameter(shares.log())
        self.log_scale = nn.Parameter(torch.zeros(num_classes))
        self.shift = nn.Parameter(torch.zeros(num_classes))
        self.rate = rate
        self.optimizer: torch.optim.Optimizer | None = None
        self._before: tuple[Tensor, Tensor] | None = None  # what the last layer saw, and the targets

    def forward(self, teacher_logits: Tensor) -> Tensor:
        """Logits [R, B, C] of the branches -> those of the soft targets, [B, C]."""
        shares = self.log_shares.softmax(dim=0)
        probability = (shares[:, None] * torch.sigmoid(teacher_logits.float())).sum(dim=0)
        logits = torch.logit(probability, eps=SMALLEST)
        return self.log_scale.exp() * logits + self.shift

    def learn(
        self,
        output_layer: OutputLayer,
        logits: Tensor,
        teacher_logits: Tensor,
        targets: Tensor,
        loss: DistillationLoss,
    ) -> None:
        """Learn from the step that the student is about to take on a batch: its `logits` [B, C], which
        `output_layer` has just given, its `targets` [B, C], and `loss`, by which it learns soft targets.
        """
        seen, before = output_layer.seen().detach(), self._before
        self._before = (seen, targets)
        if before is None:
            return
        if self.optimizer is None:
            self.optimizer = torch.optim.Adam(self.parameters(), lr=self.rate)
        with torch.enable_grad(), torch.autocast(logits.device.type, enabled=False):
            logits = logits.detach().float().requires_grad_()
            one = logits.new_ones(1)
            (slope,) = torch.autograd.grad(
                loss(logits, self(teacher_logits)[None], one), logits, create_graph=True
            )
            after = self._stepped(output_layer, seen, before[0], slope)
            own = list(self.parameters())
            slopes = torch.autograd.grad(binary_cross_entropy(after, before[1]), own)
        for parameter, slope in zip(own, slopes, strict=True):
            parameter.grad = slope
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _stepped(self, output_layer: OutputLayer, seen: Tensor, other: Tensor, slope: Tensor) -> Tensor:
        """The logits [B', C] of a batch by what the last layer saw of it, `other`, after a step of that
        layer down the `slope` [B, C] of the loss on the batch of which it has `seen`.

        The step is as long as takes the logits of an image, on average, down their own slope by 1.
        """
        labels = torch.arange(slope.shape[1], device=slope.device)
        vectors, others = (output_layer.vectors(part, labels) for part in (seen, other))
        with torch.no_grad():
            # of the weights and of the bias: how much a slope of 1 at an image moves the logits of another
            alike = torch.einsum("icd,jcd->ijc", others, vectors) + 1  # [B', B, C or 1]
            length = len(slope) / (vectors.square().sum(dim=2) + 1).mean()
            plain = output_layer.logits(other)
        return plain - length * (alike * slope).sum(dim=1)

    def get_extra_state(self) -> dict[str, Any]:
        return {
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
            "before": self._before,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._before = state["before"]
        if state["optimizer"] is not None:
            self.optimizer = torch.optim.Adam(self.parameters(), lr=self.rate)
            self.optimizer.load_state_dict(state["optimizer"])
