"""The output layer of heads whose queries answer for labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class GroupedLinear(nn.Module):
    """Query features [B, K, D] -> logits [B, C]: query k answers for the classes k * g to (k + 1) * g - 1.

    g = ceil(C / K), so that the last queries may answer for fewer. With K = C, each class has one query and a
    weight vector of its own.
    """

    def __init__(self, num_queries: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        bound = 1 / math.sqrt(width)  # as nn.Linear has it
        shape = (num_queries, width, math.ceil(num_classes / num_queries))
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))  # [K, D, g]
        self.bias = nn.Parameter(torch.empty(num_classes).uniform_(-bound, bound))

    def forward(self, queries: Tensor) -> Tensor:
        logits = torch.einsum("bkd,kdg->bkg", queries, self.weight).flatten(1)
        return logits[:, : self.num_classes] + self.bias
