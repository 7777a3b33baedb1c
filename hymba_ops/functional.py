"""The kernels as functions. Layouts are token-major; B batch, T tokens, C channels, N states, H heads, D head dim.

All take float32, bfloat16 and float16 tensors (float64 for checks on the CPU) with a contiguous last dimension; other
strides are read in place. Wrong shapes, dtypes, devices or values raise ValueError, arguments that are not tensors
TypeError.
"""

from __future__ import annotations

from torch import Tensor

from hymba_ops import _ops
from hymba_ops.functional_steps import (
    causal_conv1d_update,
    decode_attention,
    decode_branches,
    gated_mlp,
    is_silu,
    mamba_update,
    selective_state_update,
)

__all__ = [
    "attention",
    "causal_conv1d",
    "causal_conv1d_update",
    "decode_attention",
    "decode_branches",
    "gated_linear",
    "gated_mlp",
    "linear",
    "mamba_update",
    "norm_average",
    "norm_average_project",
    "norm_project",
    "rms_norm",
    "rotary",
    "selective_scan",
    "selective_state_update",
]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None = None,
    num_meta: int = 0,
    scale: float | None = None,
    meta_k: Tensor | None = None,
    meta_v: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal grouped-query attention with a sliding window and an always-visible prefix.

    softmax(scale * q k^T + mask) v, where the queries are the last T of the S positions and key j is visible to the
    query at position i when j <= i and (window is None or i - j <= window or j < num_meta): Hymba (arXiv 2411.13676),
    section 2; the window counts as in the published model's full forward, window + 1 keys with the query's own.

    Args:
        q: [B, T, Hq, Dk].
        k: [B, S, Hkv, Dk], S >= T; Hq a multiple of Hkv. Key head h serves query heads h * Hq / Hkv and following.
        v: [B, S, Hkv, Dv]; Dv may differ from Dk. Head dims 1 to 256.
        window: keys visible before the query's own, >= 0; None for all.
        num_meta: the first num_meta positions of each sequence are visible to every later one.
        scale: factor on q k^T; None for 1 / sqrt(Dk). q k^T, with and without scale * log2(e), must be finite in
            float32 (float64 for float64), else the results of a row that sees such a score are NaN or infinite.
        meta_k, meta_v: [M, Hkv, Dk] and [M, Hkv, Dv]: M prefix keys that stand before every sequence, given once.
            num_meta must then be 0.
        cu_seqlens: int32 [n + 1], for packed input with B = 1: sequence i has the rows cu_seqlens[i] to
            cu_seqlens[i + 1]. Rows past the last one are written as zero.
        cu_seqlens_k: the same for k and v; None for cu_seqlens. Each sequence has at least as many keys as queries.
        return_lse: also return the log-sum-exp of each query's scores.

    Returns:
        [B, T, Hq, Dv], and with return_lse the natural-log lse [B, T, Hq] in float32 (float64 for float64).
    """
    out, lse = _ops.call(
        "attention", q, k, v, window, num_meta, scale, meta_k, meta_v, cu_seqlens, cu_seqlens_k, return_lse
    )
    return (out, lse) if return_lse else out


def rotary(x: Tensor, positions: Tensor, inv_freq: Tensor) -> Tensor:
    """Rotary position embedding, halves rotated: (x1 cos - x2 sin, x2 cos + x1 sin) with angle = position * inv_freq.

    RoFormer (arXiv 2104.09864), equation 34, in the half-split layout of the published Hymba. Angles are float32
    products whatever x's dtype.

    Args:
        x: [B, T, H, D], D even.
        positions: int32 [T] or [B, T].
        inv_freq: float32 [D / 2].

    Returns:
        [B, T, H, D], x's dtype.
    """
    return _ops.call("rotary", x, positions, inv_freq)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = "silu",
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Depthwise causal convolution: out[t] = act(bias + sum_k weight[:, k] * x[t - (K - 1) + k]).

    Args:
        x: [B, T, C].
        weight: [C, K], K from 1 to 8.
        bias: [C] or None.
        activation: "silu" or None.
        initial_state: [B, K - 1, C], the inputs before the first token (packed: one row of states per sequence);
            None for zeros.
        return_final_state: also return the last K - 1 inputs.
        cu_seqlens: int32 [n + 1], packed input with B = 1. Rows past the last sequence are written as zero.

    Returns:
        [B, T, C], and with return_final_state the state [B or n, K - 1, C] in x's dtype.
    """
    out, final_state = _ops.call(
        "causal_conv1d", x, weight, bias, is_silu("causal_conv1d", activation), initial_state, cu_seqlens,
        return_final_state,
    )  # fmt: skip
    return (out, final_state) if return_final_state else out


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = True,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Mamba-1 selective scan: h = exp(dt A) h + dt B x, y = C h + D x, out = y * silu(z).

    Mamba (arXiv 2312.00752), algorithm 2; dt is softplus(dt + dt_bias) when dt_softplus. State and arithmetic are
    float32 (float64 for float64 inputs).

    Args:
        x, dt, z: [B, T, C]; z None for no gate.
        A: [C, N], N from 1 to 256; x's dtype or float32.
        B, C: [B, T, N].
        D, dt_bias: [C] or None; x's dtype or float32.
        initial_state: [B, C, N] float32 (packed: one per sequence); None for zeros.
        return_final_state: also return the state after the last token.
        cu_seqlens: int32 [n + 1], packed input with B = 1. Rows past the last sequence are written as zero.

    Returns:
        [B, T, C], and with return_final_state the state [B or n, C, N] in float32.
    """
    out, final_state, _ = _ops.call(
        "selective_scan", x, dt, A, B, C, D, z, dt_bias, dt_softplus, initial_state, cu_seqlens, return_final_state,
        False,
    )  # fmt: skip
    return (out, final_state) if return_final_state else out


def rms_norm(x: Tensor, weight: Tensor, *, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (arXiv 1910.07467, equation 4), in float32.

    Args:
        x: [..., D], 1 to 4 dimensions.
        weight: [D], x's dtype or float32.

    Returns:
        x's shape and dtype.
    """
    return _ops.call("rms_norm", x, weight, eps)


def norm_average(attn: Tensor, ssm: Tensor, attn_weight: Tensor, ssm_weight: Tensor, *, eps: float = 1e-6) -> Tensor:
    """(rms_norm(attn) * attn_weight + rms_norm(ssm) * ssm_weight) / 2: how Hymba joins its branches (arXiv 2411.13676).

    Args:
        attn, ssm: [..., D], 1 to 4 dimensions.
        attn_weight, ssm_weight: [D], attn's dtype or float32.

    Returns:
        attn's shape and dtype.
    """
    return _ops.call("norm_average", attn, ssm, attn_weight, ssm_weight, eps)


def norm_project(
    x: Tensor,
    norm_weight: Tensor,
    proj_weight: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """`rms_norm`, then a projection: rms_norm(x) @ proj_weight.T + bias + residual.

    Args:
        x: [..., D], 1 to 4 dimensions.
        norm_weight: [D], x's dtype or float32.
        proj_weight: [O, D], x's dtype.
        bias, residual: as in `linear`.

    Returns:
        [..., O], x's dtype.
    """
    return _ops.call("norm_project", x, norm_weight, proj_weight, bias, residual, eps)


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
    """`norm_average`, then the output projection: norm_average(...) @ proj_weight.T + bias + residual.

    Args:
        attn, ssm, attn_weight, ssm_weight: as in `norm_average`.
        proj_weight: [O, D], attn's dtype.
        bias, residual: as in `linear`.

    Returns:
        [..., O], attn's dtype.
    """
    return _ops.call("norm_average_project", attn, ssm, attn_weight, ssm_weight, proj_weight, bias, residual, eps)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, residual: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias + residual, summed in float32 (float64 for float64).

    Where the kernels' own product is used (docs/cpu_linear.md and docs/cuda_linear.md say where), a row of the result
    depends on no other row: the same bits alone and in any batch.

    Args:
        x: [..., K], 1 to 4 dimensions.
        weight: [O, K], x's dtype.
        bias: [O] or None, x's dtype.
        residual: [..., O] or None, x's dtype.

    Returns:
        [..., O], x's dtype.
    """
    return _ops.call("linear", x, weight, bias, residual)


def gated_linear(x: Tensor, gate_weight: Tensor, weight: Tensor) -> Tensor:
    """silu(x @ gate_weight.T) * (x @ weight.T): the first half of a gated MLP (SwiGLU, arXiv 2002.05202, equation 6).

    Args:
        x: [..., K], 1 to 4 dimensions.
        gate_weight, weight: [O, K], x's dtype.

    Returns:
        [..., O], x's dtype.
    """
    return _ops.call("gated_linear", x, gate_weight, weight)
