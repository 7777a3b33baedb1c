"""Attention of the next tokens on cached keys: rings of a window, or pages."""

from __future__ import annotations

import torch
from torch import Tensor

from python_reference.attention import attend, visible
from python_reference.rotary import rotary
from python_reference.slots import refuse_grad


@torch.no_grad()
def _decode(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    caches: tuple[Tensor, Tensor],
    meta: tuple[Tensor, Tensor],
    length: int,
    places: tuple[Tensor, Tensor],
    window: int | None,
    scale: float,
    inv_freq: Tensor | None,
) -> Tensor:
    """One row: q [T, Hq, Dk], k [T, Hkv, Dk], v [T, Hkv, Dv]. places: slot or page and row in it of every token,
    int64 [length + T] each. Returns [T, Hq, Dv]."""
    count, num_meta = q.shape[0], meta[0].shape[0]
    positions = torch.arange(num_meta + length, num_meta + length + count, dtype=torch.int32, device=q.device)
    if inv_freq is not None:
        q = rotary(q[None], positions, inv_freq)[0]
        k = None if k is None else rotary(k[None], positions, inv_freq)[0]
    if k is not None:
        for cache, new in zip(caches, (k, v), strict=True):
            cache[places[0][length:], places[1][length:]] = new
    first = 0 if window is None else max(0, length - window)  # the first token that the first query sees
    keys, values = (
        torch.cat([before, cache[places[0][first:], places[1][first:]]])
        for before, cache in zip(meta, caches, strict=True)
    )
    key_positions = torch.cat([torch.arange(num_meta), torch.arange(num_meta + first, num_meta + length + count)])
    mask = visible(positions, key_positions.to(q.device), window, num_meta)
    return attend(q[None], keys[None], values[None], mask, scale)[0][0]


def decode_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    counts: Tensor | None = None,
    slots: Tensor | None = None,
    block_table: Tensor | None = None,
    meta_k: Tensor | None = None,
    meta_v: Tensor | None = None,
    window: int | None = None,
    scale: float | None = None,
    inv_freq: Tensor | None = None,
) -> Tensor:
    """`attention` of each row's next tokens on cached keys, where the new keys and values are put first.

    Token t of a slot has position M + t. Rings: position p lies in row p mod R of the slot. Pages: token t lies in row
    t mod page of page block_table[slot, t // page].

    Args:
        q: [B, n, Hq, Dk], before RoPE.
        k, v: [B, n, Hkv, Dk] before RoPE, [B, n, Hkv, Dv]; None where the caches have this step's.
        k_cache, v_cache: rings [slots, R, Hkv, D] or pages [pages, page, Hkv, D]; changed in place.
        lengths: int32 [slots], tokens before this step.
        counts: int32 [B], how many of the n tokens there are; None for all. The rest of the result is zero.
        slots: int32 [B], -1 for padding, whose result is zero; None for row b.
        block_table: int32 [slots, P], or None for rings.
        meta_k, meta_v: [M, Hkv, Dk] after RoPE, [M, Hkv, Dv]; None for M = 0.
        window, scale: as in `attention`.
        inv_freq: float32 [Dk / 2]; None for no RoPE.

    Returns:
        [B, n, Hq, Dv].
    """
    refuse_grad("decode_attention", q=q, k=k, v=v, k_cache=k_cache, v_cache=v_cache, meta_k=meta_k, meta_v=meta_v)
    none = tuple(cache.new_empty(0, *cache.shape[2:]) for cache in (k_cache, v_cache))
    meta = none if meta_k is None else (meta_k, meta_v)
    out = q.new_zeros(*q.shape[:3], v_cache.shape[3])
    for b in range(q.shape[0]):
        slot = b if slots is None else int(slots[b])
        if slot == -1:
            continue
        length, count = int(lengths[slot]), q.shape[1] if counts is None else int(counts[b])
        tokens = torch.arange(length + count, device=q.device)
        if block_table is None:
            places = torch.full_like(tokens, slot), (meta[0].shape[0] + tokens) % k_cache.shape[1]
        else:
            places = block_table[slot].long()[tokens // k_cache.shape[1]], tokens % k_cache.shape[1]
        new = (None, None) if k is None else (k[b, :count], v[b, :count])
        out[b, :count] = _decode(
            q[b, :count], *new, (k_cache, v_cache), meta, length, places, window,
            q.shape[3] ** -0.5 if scale is None else scale, inv_freq,
        )  # fmt: skip
    return out
