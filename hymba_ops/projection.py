"""Projections: `torch.nn.Linear` whose product is `functional.linear`, with the residual sum in the same pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hymba_ops import functional


def under_autocast(x: Tensor) -> bool:
    """Whether autocast is on for x's device."""
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """`functional.linear`; under autocast torch's own, whose casts it would not get."""
    if under_autocast(x):
        out = nn.functional.linear(x, weight, bias)
        return out if residual is None else residual + out
    return functional.linear(x, weight, bias, residual=residual)


class Linear(nn.Linear):
    """x weight^T + bias + residual."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x: [..., in_features]; residual: [..., out_features] or None. Returns [..., out_features]."""
        return project(x, self.weight, self.bias, residual)
