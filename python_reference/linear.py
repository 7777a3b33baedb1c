"""Projections: a matrix product with bias and residual, and the gated pair of an MLP."""

from __future__ import annotations

import torch
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, residual: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias + residual. x: [..., K]; weight: [O, K]; bias: [O]; residual: [..., O]. Returns [..., O]."""
    out = x @ weight.T
    if bias is not None:
        out = out + bias
    return out if residual is None else out + residual


def gated_linear(x: Tensor, gate_weight: Tensor, weight: Tensor) -> Tensor:
    """silu(x @ gate_weight.T) * (x @ weight.T) (SwiGLU, arXiv 2002.05202). Weights [O, K]. Returns [..., O]."""
    return torch.nn.functional.silu(x @ gate_weight.T) * (x @ weight.T)
