"""Grouped-query attention with a sliding window and an always-visible prefix: Hymba (arXiv 2411.13676), section 2."""

from __future__ import annotations

import torch
from torch import Tensor

from python_reference.packing import sequences


def visible(query_pos: Tensor, key_pos: Tensor, window: int | None, num_meta: int) -> Tensor:
    """The one mask: key j is visible to query i when j <= i and (no window, or i - j <= window, or j < num_meta).

    query_pos: [T], key_pos: [S], counted from the sequence's start, meta tokens included. Returns bool [T, S].
    """
    i, j = query_pos[:, None], key_pos[None, :]
    if window is None:
        return j <= i
    return (j <= i) & ((i - j <= window) | (j < num_meta))


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
    """softmax(scale * q k^T + mask) v; the queries are the last T of the S positions.

    Args:
        q: [B, T, Hq, Dk].
        k: [B, S, Hkv, Dk], S >= T; key head h serves query heads h * Hq / Hkv and following.
        v: [B, S, Hkv, Dv].
        window, num_meta: as in `visible`.
        scale: None for 1 / sqrt(Dk).
        meta_k, meta_v: [M, Hkv, Dk] and [M, Hkv, Dv], keys and values before every sequence, always visible; num_meta
            must then be 0.
        cu_seqlens: int32 [n + 1], packed queries with B = 1; rows past the last sequence are zero.
        cu_seqlens_k: the same for keys; None for cu_seqlens.
        return_lse: also return the log-sum-exp of each query's scores.

    Returns:
        [B, T, Hq, Dv] in q's dtype, and with return_lse lse [B, T, Hq] in float32 (float64 for float64).
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if meta_k is not None:
        if num_meta != 0:
            raise ValueError(f"attention: num_meta must be 0 with meta_k, got {num_meta}")
        num_meta = meta_k.shape[0]

    def one(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if meta_k is not None:
            k = torch.cat([meta_k.expand(k.shape[0], -1, -1, -1), k], dim=1)
            v = torch.cat([meta_v.expand(v.shape[0], -1, -1, -1), v], dim=1)
        positions = torch.arange(k.shape[1], device=q.device)
        return attend(q, k, v, visible(positions[k.shape[1] - q.shape[1] :], positions, window, num_meta), scale)

    if cu_seqlens is None:
        out, lse = one(q, k, v)
    else:
        out = q.new_zeros(*q.shape[:3], v.shape[-1])
        lse = q.new_zeros(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
        keys = sequences(cu_seqlens if cu_seqlens_k is None else cu_seqlens_k)
        for rows, key_rows in zip(sequences(cu_seqlens), keys, strict=True):
            out[:, rows], lse[:, rows] = one(q[:, rows], k[:, key_rows], v[:, key_rows])
    return (out, lse) if return_lse else out


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """One batch of dense sequences and their lse; mask: bool [T, S]. Low precision as in FlashAttention's own
    reference: scores and probabilities are rounded to the dtype, the softmax between them is float32."""
    (batch, length, heads, dim), kv_heads = q.shape, k.shape[2]
    q = q.reshape(batch, length, kv_heads, heads // kv_heads, dim)
    scores = torch.einsum("btkgd,bskd->btkgs", q * scale, k)
    scores = scores.to(torch.promote_types(q.dtype, torch.float32))
    scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
    probabilities = scores.softmax(dim=-1).to(q.dtype)
    out = torch.einsum("btkgs,bskd->btkgd", probabilities, v)
    return out.flatten(2, 3), scores.logsumexp(dim=-1).flatten(2, 3)
