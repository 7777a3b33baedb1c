"""The SSM branch of a decode step: Mamba (arXiv 2312.00752), section 3.4, with Hymba's norms of dt, B and C."""

from __future__ import annotations

from torch import Tensor

from python_reference.conv import causal_conv1d_update
from python_reference.decode import decode_attention
from python_reference.linear import linear
from python_reference.norms import rms_norm
from python_reference.scan import selective_state_update


def mamba_update(
    x: Tensor,
    z: Tensor,
    conv_state: Tensor,
    ssm_state: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj_weight: Tensor,
    dt_proj_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    *,
    dt_norm: Tensor | None = None,
    B_norm: Tensor | None = None,
    C_norm: Tensor | None = None,
    eps: float = 1e-6,
    slots: Tensor | None = None,
) -> Tensor:
    """u = silu(conv(x)); dt, B, C = x_proj(u), each normed; y = the scan of u with dt_proj(dt), gated by z.

    Both states change in place. What one part gives the next is rounded to x's dtype.

    Args:
        x, z: [B, C] or [B, n, C].
        conv_state: [slots, K - 1, C].
        ssm_state: [slots, C, N], float32 (float64 for float64).
        conv_weight, conv_bias: [C, K] and [C] or None.
        x_proj_weight: [R + 2 N, C].
        dt_proj_weight: [C, R].
        dt_bias, D: [C].
        A: [C, N].
        dt_norm, B_norm, C_norm: [R], [N], [N], or None for no norms.
        slots: int32 [B], each row's row of both states; None for row b, -1 for padding, whose output is zero.

    Returns:
        x's shape and dtype.

    Raises:
        ValueError: an input requires grad, or a slot is named twice.
    """
    u = causal_conv1d_update(x, conv_state, conv_weight, conv_bias, slots_in=slots)
    states = A.shape[1]
    sizes = [dt_proj_weight.shape[1], states, states]
    dt, B, C = (
        part if norm is None else rms_norm(part, norm, eps=eps)
        for part, norm in zip(linear(u, x_proj_weight).split(sizes, -1), (dt_norm, B_norm, C_norm), strict=True)
    )
    dt = linear(dt, dt_proj_weight)
    return selective_state_update(ssm_state, u, dt, A, B, C, D, z, dt_bias=dt_bias, slots_in=slots)


def decode_branches(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    x: Tensor,
    z: Tensor,
    conv_state: Tensor,
    ssm_state: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj_weight: Tensor,
    dt_proj_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    *,
    slots: Tensor | None = None,
    block_table: Tensor | None = None,
    meta_k: Tensor | None = None,
    meta_v: Tensor | None = None,
    window: int | None = None,
    scale: float | None = None,
    inv_freq: Tensor | None = None,
    dt_norm: Tensor | None = None,
    B_norm: Tensor | None = None,
    C_norm: Tensor | None = None,
    eps: float = 1e-6,
    counters: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """decode_attention and mamba_update of one step: [B, n, Hq, Dv] and [B, n, C]; counters are not used."""
    attn = decode_attention(
        q, k, v, k_cache, v_cache, lengths, slots=slots, block_table=block_table, meta_k=meta_k, meta_v=meta_v,
        window=window, scale=scale, inv_freq=inv_freq,
    )  # fmt: skip
    ssm = mamba_update(
        x, z, conv_state, ssm_state, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, dt_bias, A, D,
        dt_norm=dt_norm, B_norm=B_norm, C_norm=C_norm, eps=eps, slots=slots,
    )  # fmt: skip
    return attn, ssm
