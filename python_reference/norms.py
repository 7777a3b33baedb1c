"""RMS norm (arXiv 1910.07467), and the average of two normalised branches that Hymba joins its heads with."""

from __future__ import annotations

import torch
from torch import Tensor

from python_reference.linear import linear


def rms_norm(x: Tensor, weight: Tensor, *, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean(x^2) + eps) in float32 (float64 for float64), rounded to x's dtype, then times weight.

    x: [..., D]; weight: [D], or what else broadcasts. Returns x's shape and dtype.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normalised = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (normalised.to(x.dtype) * weight).to(x.dtype)


def norm_average(attn: Tensor, ssm: Tensor, attn_weight: Tensor, ssm_weight: Tensor, *, eps: float = 1e-6) -> Tensor:
    """(rms_norm(attn) * attn_weight + rms_norm(ssm) * ssm_weight) / 2: Hymba (arXiv 2411.13676), section 2.

    attn, ssm: [..., D]; the weights [D]. Returns attn's shape and dtype.
    """
    return (rms_norm(attn, attn_weight, eps=eps) + rms_norm(ssm, ssm_weight, eps=eps)) / 2


def norm_project(
    x: Tensor,
    norm_weight: Tensor,
    proj_weight: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """rms_norm(x) @ proj_weight.T + bias + residual; proj_weight [O, D]. Returns [..., O] in x's dtype."""
    return linear(rms_norm(x, norm_weight, eps=eps), proj_weight, bias, residual=residual)


def norm_average_project(
    attn: Tensor,
    ssm: Tensor,
    attn_weight: Tensor,
    ssm_weight: Tensor,
    proj_weight: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """norm_average(...) @ proj_weight.T + bias + residual; proj_weight [O, D]. Returns [..., O] in attn's dtype."""
    averaged = norm_average(attn, ssm, attn_weight, ssm_weight, eps=eps)
    return linear(averaged, proj_weight, bias, residual=residual)
