"""The plain-PyTorch forms that hymba_ops is measured against, on python_reference's modules.

plain     the best plain forms that we know: attention in query blocks on the allowed keys only, the scan as a loop
          over time
naive     the obvious one: attention over all keys with one boolean mask (scaled_dot_product_attention)
compiled  torch.compile of plain, the scan's loop kept out of the graph (unrolled it would compile for hours)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import python_reference as reference
from python_reference.attention import visible

# Queries of a block: 256 was as fast as or faster than 512 and 1024 at 2176 and 4224 positions.
QUERY_BLOCK = 256


def blocked_attention(q: Tensor, k: Tensor, v: Tensor, *, window: int | None, num_meta: int, scale: float) -> Tensor:
    """`attention` on dense input with S = T, block by block over the keys that a block can see.

    One batched product per KV head serves its whole group of query heads: no repeated keys, and faster here than
    scaled_dot_product_attention with enable_gqa or with repeated heads.
    """
    (batch, length, heads, dim), kv_heads = q.shape, k.shape[2]
    group = heads // kv_heads
    out = q.new_empty(batch, length, heads, v.shape[3])
    for begin in range(0, length, QUERY_BLOCK):
        end = min(begin + QUERY_BLOCK, length)
        first = 0 if window is None else max(0, begin - window)
        meta = min(num_meta, first)
        key_positions = torch.arange(first - meta, end, device=q.device)
        key_positions[:meta] = torch.arange(meta, device=q.device)
        mask = visible(torch.arange(begin, end, device=q.device), key_positions, window, num_meta)
        keys, values = (torch.cat([x[:, :meta], x[:, first:end]], 1) if meta else x[:, first:end] for x in (k, v))
        rows = q[:, begin:end].unflatten(2, (kv_heads, group)).permute(0, 2, 3, 1, 4)
        scores = (rows.reshape(batch, kv_heads, -1, dim) * scale) @ keys.permute(0, 2, 3, 1)
        scores = scores.unflatten(2, (group, -1)).masked_fill(~mask, -torch.inf)
        result = scores.softmax(-1).flatten(2, 3) @ values.transpose(1, 2)
        out[:, begin:end] = result.unflatten(2, (group, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)
    return out


def masked_attention(q: Tensor, k: Tensor, v: Tensor, *, window: int | None, num_meta: int, scale: float) -> Tensor:
    """`attention` on dense input by scaled_dot_product_attention with the whole boolean mask."""
    positions = torch.arange(q.shape[1], device=q.device)
    mask = visible(positions, positions, window, num_meta)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
    return out.transpose(1, 2)


class PlainMixer(reference.HybridMixer):
    """python_reference's mixer with blocked attention; its scan is the fastest plain form already."""

    def attend(self, q, k, v, *, window, num_meta, scale, cu_seqlens):
        return blocked_attention(q, k, v, window=window, num_meta=num_meta, scale=scale)


class NaiveMixer(reference.HybridMixer):
    """python_reference's mixer with masked scaled_dot_product_attention."""

    def attend(self, q, k, v, *, window, num_meta, scale, cu_seqlens):
        return masked_attention(q, k, v, window=window, num_meta=num_meta, scale=scale)


class CompiledMixer(PlainMixer):
    """PlainMixer whose scan stays outside a compiled graph."""

    scan = torch.compiler.disable(reference.HybridMixer.scan)


_MIXERS = {"plain": PlainMixer, "naive": NaiveMixer, "compiled": CompiledMixer}


def plain_layer(kind: str, config: reference.HymbaConfig, layer_index: int) -> nn.Module:
    """python_reference's HymbaLayer with the mixer of `kind`: plain, naive or compiled."""
    layer = reference.HymbaLayer(config, layer_index)
    layer.mamba = _MIXERS[kind](config, layer_index)
    return layer
