"""Rotary position embedding: RoFormer (arXiv 2104.09864), equation 34, halves rotated."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary(x: Tensor, positions: Tensor, inv_freq: Tensor) -> Tensor:
    """(x1 cos - x2 sin, x2 cos + x1 sin) for the halves x1, x2 of the last dimension; angle = position * inv_freq.

    The angle is a float32 product whatever x's dtype. cos, sin and the rotation are float32 (float64 for float64).

    x: [B, T, H, D], D even; positions: int32 [T] or [B, T]; inv_freq: float32 [D / 2]. Returns x's shape and dtype.
    """
    angle = positions.to(torch.float32)[..., None] * inv_freq  # [T, D / 2] or [B, T, D / 2]
    arithmetic = torch.promote_types(x.dtype, torch.float32)
    cos, sin = (f(angle.to(arithmetic)).unsqueeze(-2) for f in (torch.cos, torch.sin))  # the same for each head
    x1, x2 = x.to(arithmetic).chunk(2, dim=-1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1).to(x.dtype)
