"""The RMS norms that carry weights: of channels, and of query and key heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hymba_ops import functional
from hymba_ops.config import HymbaConfig

_HEAD_NORM_EPS = 1e-6  # fixed in the published code, whatever rms_norm_eps is


class RMSNorm(nn.Module):
    """`functional.rms_norm` with a weight [size]."""

    def __init__(
        self, size: int, *, eps: float, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size, device=device, dtype=dtype))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., size]. Returns the same shape and dtype."""
        return functional.rms_norm(x, self.weight, eps=self.eps)


class PerHeadRMSNorm(nn.Module):
    """RMS norm over the head dimension with a weight row for each head: weight [1, heads, 1, head_dim]."""

    def __init__(
        self, heads: int, head_dim: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, heads, 1, head_dim, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, heads, head_dim]. Returns the same shape and dtype."""
        unit = torch.ones(x.shape[-1], device=x.device, dtype=x.dtype)
        normalised = functional.rms_norm(x, unit, eps=_HEAD_NORM_EPS)
        return (normalised * self.weight[0, :, 0]).to(x.dtype)


class HeadNorms(nn.Module):
    """The norms of queries and keys before RoPE (config field kq_norm). A borrowing layer carries k_norm unused."""

    def __init__(
        self, config: HymbaConfig, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()

        def norm(heads: int) -> nn.Module:
            if config.kq_norm == "perhead-rms":
                return PerHeadRMSNorm(heads, config.head_dim, device=device, dtype=dtype)
            return RMSNorm(config.head_dim, eps=_HEAD_NORM_EPS, device=device, dtype=dtype)

        self.q_norm = norm(config.num_attention_heads)
        self.k_norm = norm(config.num_key_value_heads)
