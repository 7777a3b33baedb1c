"""The MLP behind each mixer."""

from __future__ import annotations

from torch import Tensor

from python_reference.linear import gated_linear, linear
from python_reference.norms import rms_norm


def gated_mlp(
    x: Tensor,
    norm_weight: Tensor,
    gate_weight: Tensor,
    weight: Tensor,
    down_weight: Tensor,
    *,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    counters: Tensor | None = None,
) -> Tensor:
    """gated_linear(rms_norm(x), gate_weight, weight) @ down_weight.T + residual; counters are not used.

    x: [..., K]; norm_weight: [K]; gate_weight, weight: [I, K]; down_weight: [O, I]. Returns [..., O].
    """
    inner = gated_linear(rms_norm(x, norm_weight, eps=eps), gate_weight, weight)
    return linear(inner, down_weight, residual=residual)
