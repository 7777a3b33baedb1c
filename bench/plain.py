"""The plain-PyTorch forms that hymba_ops is measured against, on python_reference's modules.

plain     the best plain forms that we know: attention in query blocks on the allowed keys only, the library's depthwise
          convolution, the scan as a loop over time
naive     the same with the obvious attention: scaled_dot_product_attention over all keys with one boolean mask
compiled  torch.compile of plain, the scan's loop kept out of the graph (unrolled it would compile for hours), at most
          16 blocks of queries
upcast    plain with float32 weights and arithmetic on low-precision input: faster where a CPU has no such products

"Best" was measured on 2 cores at 2176 positions of the 1.5B layer, medians of 5 in ms, sliding and global.
float32: q and k padded with zeros to the value dim for scaled_dot_product_attention 204, 239 (unpadded it takes a slow
path); one batched product per KV head 227, 259. bfloat16: padded 220, 242; products 117, 136.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import python_reference as reference
from python_reference.attention import visible

_MOST_BLOCKS = 16


def blocked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None,
    num_meta: int,
    scale: float,
    block: int | None = None,
) -> Tensor:
    """`attention` on dense input with S = T: blocks of queries, each with the keys that it can see."""
    attend = _padded_sdpa if q.dtype == torch.float32 else grouped_products
    length, block = q.shape[1], block or _best_block(q.dtype)
    out = q.new_empty(*q.shape[:3], v.shape[3])
    for begin in range(0, length, block):
        end = min(begin + block, length)
        first = 0 if window is None else max(0, begin - window)
        meta = min(num_meta, first)
        key_positions = torch.arange(first - meta, end, device=q.device)
        key_positions[:meta] = torch.arange(meta, device=q.device)
        mask = visible(torch.arange(begin, end, device=q.device), key_positions, window, num_meta)
        keys, values = (torch.cat([x[:, :meta], x[:, first:end]], 1) if meta else x[:, first:end] for x in (k, v))
        out[:, begin:end] = attend(q[:, begin:end], keys, values, mask, scale)
    return out


def _best_block(dtype: torch.dtype) -> int:
    return 256 if dtype == torch.float32 else 128


def unrolled_attention(q: Tensor, k: Tensor, v: Tensor, *, window: int | None, num_meta: int, scale: float) -> Tensor:
    """`blocked_attention` for torch.compile, which unrolls its loop: in blocks so long that there are at most 16."""
    block = max(_best_block(q.dtype), -(-q.shape[1] // _MOST_BLOCKS))
    return blocked_attention(q, k, v, window=window, num_meta=num_meta, scale=scale, block=block)


def _padded_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """scaled_dot_product_attention with key dim made equal to value dim by zeros."""
    missing = v.shape[3] - q.shape[3]
    q, k = (nn.functional.pad(x, (0, missing)) if missing > 0 else x for x in (q, k))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
    return out.transpose(1, 2)


def grouped_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """One batched product per KV head for its whole group of query heads: no repeated keys."""
    (batch, _, heads, dim), kv_heads = q.shape, k.shape[2]
    group = heads // kv_heads
    rows = q.unflatten(2, (kv_heads, group)).permute(0, 2, 3, 1, 4)
    scores = (rows.reshape(batch, kv_heads, -1, dim) * scale) @ k.permute(0, 2, 3, 1)
    scores = scores.unflatten(2, (group, -1)).masked_fill(~mask, -torch.inf)
    out = scores.softmax(-1).flatten(2, 3) @ v.transpose(1, 2)
    return out.unflatten(2, (group, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, *, window: int | None, num_meta: int, scale: float) -> Tensor:
    """`attention` on dense input by scaled_dot_product_attention with the whole boolean mask."""
    positions = torch.arange(q.shape[1], device=q.device)
    mask = visible(positions, positions, window, num_meta)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
    return out.transpose(1, 2)


def decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    block_table: Tensor | None,
    meta_k: Tensor,
    meta_v: Tensor,
    window: int | None,
    scale: float,
    inv_freq: Tensor,
) -> Tensor:
    """`decode_attention` of one token a row that sees every row of its ring or pages, which lie one behind the other.

    A softmax does not mind the order of keys, so a full ring is read as it lies; one batched product per KV head."""
    (batch, _, heads, dim), (meta, kv_heads, _) = q.shape, meta_k.shape
    positions = (lengths + meta)[:, None]
    q, k = (reference.rotary(x, positions, inv_freq)[:, 0] for x in (q, k))
    k_cache, v_cache = (cache.view(batch, -1, *cache.shape[2:]) for cache in (k_cache, v_cache))
    rows = (lengths if block_table is not None else positions[:, 0] % k_cache.shape[1]).long()
    each = torch.arange(batch, device=q.device)
    k_cache[each, rows], v_cache[each, rows] = k, v[:, 0]

    q = (q * scale).view(batch, kv_heads, heads // kv_heads, dim)
    scores = torch.cat([q @ meta_k.permute(1, 2, 0), q @ k_cache.permute(0, 2, 3, 1)], dim=-1)
    probabilities = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
    out = probabilities[..., :meta] @ meta_v.transpose(0, 1) + probabilities[..., meta:] @ v_cache.transpose(1, 2)
    return out.view(batch, 1, heads, -1)


def library_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`causal_conv1d` with SiLU by the library's depthwise convolution: half the time of shifted products."""
    padded = nn.functional.pad(x.transpose(1, 2), (weight.shape[1] - 1, 0))
    out = nn.functional.conv1d(padded, weight[:, None], bias, groups=x.shape[2])
    return nn.functional.silu(out).transpose(1, 2)


def conv1d_update(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`causal_conv1d_update` of one token, x [B, C], where row b of the state [B, K - 1, C] is row b's."""
    window = torch.cat([state, x[:, None]], dim=1)
    state.copy_(window[:, 1:])
    return nn.functional.silu((window * weight.T).sum(dim=1) + bias)


def state_update(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, *, dt_bias: Tensor
) -> Tensor:
    """`selective_state_update` of one token, x [B, C], where row b of the state [B, C, N] is row b's."""
    wide, dt = x.float(), nn.functional.softplus(dt.float() + dt_bias)
    state.mul_(torch.exp(dt[..., None] * A)).addcmul_((dt * wide)[..., None], B.float()[:, None])
    y = torch.bmm(state, C.float()[..., None]).squeeze(-1) + D * wide
    return (y * nn.functional.silu(z.float())).to(x.dtype)


def mamba_update(
    x: Tensor, z: Tensor, conv_state: Tensor, ssm_state: Tensor, conv_weight: Tensor, conv_bias: Tensor,
    x_proj_weight: Tensor, dt_proj_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, *, dt_norm: Tensor,
    B_norm: Tensor, C_norm: Tensor, eps: float,
) -> Tensor:  # fmt: skip
    """`mamba_update` of one token, x [B, C], where row b of the states is row b's."""
    u = conv1d_update(x, conv_state, conv_weight, conv_bias)
    norms = (dt_norm, B_norm, C_norm)
    parts = nn.functional.linear(u, x_proj_weight).split([norm.shape[0] for norm in norms], -1)
    dt, B, C = (nn.functional.rms_norm(part, norm.shape, norm, eps) for part, norm in zip(parts, norms, strict=True))
    dt = nn.functional.linear(dt, dt_proj_weight)
    return state_update(ssm_state, u, dt, A, B, C, D, z, dt_bias=dt_bias)


class PlainMixer(reference.HybridMixer):
    """python_reference's mixer in the best plain forms; its scan is the fastest plain one already."""

    def attend(self, q, k, v, *, window, num_meta, scale, cu_seqlens):
        return blocked_attention(q, k, v, window=window, num_meta=num_meta, scale=scale)

    def convolve(self, x, weight, bias, *, initial_state, cu_seqlens):
        return library_conv1d(x, weight, bias), x[:, x.shape[1] - (weight.shape[1] - 1) :]


class NaiveMixer(PlainMixer):
    """The same with masked scaled_dot_product_attention."""

    def attend(self, q, k, v, *, window, num_meta, scale, cu_seqlens):
        return masked_attention(q, k, v, window=window, num_meta=num_meta, scale=scale)


class CompiledMixer(PlainMixer):
    """PlainMixer whose scan stays outside a compiled graph."""

    def attend(self, q, k, v, *, window, num_meta, scale, cu_seqlens):
        return unrolled_attention(q, k, v, window=window, num_meta=num_meta, scale=scale)

    scan = torch.compiler.disable(reference.HybridMixer.scan)


class Upcast(nn.Module):
    """A float32 layer on input and output of another dtype."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer.float()

    def forward(self, hidden: Tensor) -> tuple[Tensor, object, object]:
        out, kv, state = self.layer(hidden.float())
        return out.to(hidden.dtype), kv, state


MIXERS = {"plain": PlainMixer, "naive": NaiveMixer, "compiled": CompiledMixer}


def layer_with(mixer: type[reference.HybridMixer], config: reference.HymbaConfig, layer_index: int) -> nn.Module:
    """python_reference's HymbaLayer with a mixer of MIXERS or of bench.peers."""
    layer = reference.HymbaLayer(config, layer_index)
    layer.mamba = mixer(config, layer_index)
    return layer
