"""The plain-PyTorch form of a decode step that hymba_ops is measured against: one token or a few of each row.

The best eager form that we know. Caches lie as torch's products read them without a copy, [B, Hkv, rows, D]: the meta
tokens' keys first, then the row's own in a ring, so that what a token sees is one slice and, where the step is of one
token, needs no mask. Every row of the batch has the same length, which the host knows; angles of RoPE are made once a
step, for all layers; q and k turn together; sums with the residual stream are the products' own (addmm_); gate and up
are one product. Two forms of attention: batched products per KV head, and scaled_dot_product_attention on keys padded
to the value dim, without which it has no fused kernel. The SSM branch (bench/plain.py) takes several tokens one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench import plain
from hymba_ops import HymbaConfig, HymbaLayer

Attend = Callable[[Tensor, Tensor, Tensor, "Tensor | None", float], Tensor]


class Weights(NamedTuple):
    """One layer's, as the products take them; gate_up: the MLP's gate and up in one [2 I, H]."""

    norm: Tensor
    in_proj: Tensor
    conv: Tensor
    conv_bias: Tensor
    x_proj: Tensor
    dt_proj: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor
    dt_norm: Tensor
    B_norm: Tensor
    C_norm: Tensor
    attn_norm: Tensor
    ssm_norm: Tensor
    out_proj: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor

    @classmethod
    def of(cls, layer: HymbaLayer, gate_up: Tensor) -> Weights:
        mixer, mlp = layer.mamba, layer.moe["experts"][0]
        norms = (mixer.dt_layernorm, mixer.B_layernorm, mixer.C_layernorm, mixer.pre_avg_layernorm1)
        return cls(
            layer.input_layernorm.weight, mixer.in_proj.weight, mixer.conv1d.weight[:, 0], mixer.conv1d.bias,
            mixer.x_proj[0].weight, mixer.dt_proj[0].weight, mixer.dt_proj[0].bias, mixer.decay_rates(), mixer.D[0],
            *(norm.weight for norm in norms), mixer.pre_avg_layernorm2.weight, mixer.out_proj.weight,
            layer.pre_moe_layernorm.weight, gate_up, mlp.down_proj.weight,
        )  # fmt: skip

    def to(self, dtype: torch.dtype) -> Weights:
        return Weights(*(weight.to(dtype) for weight in self))


class Sizes(NamedTuple):
    """own_keys: the layer makes keys and values (else it reads its producer's)."""

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    inner: int
    own_keys: bool
    scale: float
    eps: float

    @classmethod
    def of(cls, config: HymbaConfig, layer: int) -> Sizes:
        return cls(
            config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.value_head_dim,
            config.inner_size, config.producer(layer) == layer, config.attention_scale, config.rms_norm_eps,
        )  # fmt: skip


class Cache(NamedTuple):
    """k, v: [B, Hkv, M + rows, D], the producer's in a layer that borrows; k's D may be padded with zeros.
    conv_state [B, K - 1, C], ssm_state [B, C, N] float32."""

    k: Tensor
    v: Tensor
    conv_state: Tensor
    ssm_state: Tensor


class Place(NamedTuple):
    """Where a step's tokens stand, for all layers of one window.

    cos, sin: [n, 1, Dk] of the angles, both halves of sin with their sign; rows: int64 [n], of the cache to be written;
    visible: rows of it that the step sees, from the first one on; mask: bool [G n, visible] for queries in the order
    (head of the group, token), True where hidden, or None where every token sees them all.
    """

    cos: Tensor
    sin: Tensor
    rows: Tensor
    visible: int
    mask: Tensor | None


def angles(lengths: Tensor, count: int, inv_freq: Tensor, meta: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin as `Place` has them. lengths: int32 [B], all equal; positions count the meta tokens."""
    positions = lengths[:1] + torch.arange(meta, meta + count, device=lengths.device)
    angle = positions.float()[:, None, None] * inv_freq
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype)


def products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """q [B, Hkv, G n, D] on k, v [B, Hkv, T, D]: a batched product per KV head."""
    k, v = k.flatten(0, 1), v.flatten(0, 1)
    scores = torch.baddbmm(q.new_zeros(()), q.flatten(0, 1), k.mT, beta=0, alpha=scale)
    if mask is not None:
        scores.masked_fill_(mask, -torch.inf)
    return torch.bmm(scores.softmax(-1), v)


def padded_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """The same by the library's attention, k padded to v's dim; the group's queries stand as rows of one head."""
    q = nn.functional.pad(q, (0, k.shape[3] - q.shape[3]))
    visible = None if mask is None else ~mask
    return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale)


def layer_step(
    weights: Weights, hidden: Tensor, cache: Cache, place: Place, sizes: Sizes, attend: Attend = products
) -> Tensor:
    """hidden [B, n, H] through one layer: it changes in place and is returned."""
    batch, count, size = hidden.shape
    residual = hidden.view(-1, size)
    projected = nn.functional.linear(_norm(hidden, weights.norm, sizes), weights.in_proj)
    kv_heads = sizes.kv_heads if sizes.own_keys else 0
    turning = (sizes.heads + kv_heads) * sizes.key_dim
    turned, v, x, z = projected.split([turning, kv_heads * sizes.value_dim, sizes.inner, sizes.inner], dim=-1)
    turned = turned.unflatten(-1, (-1, sizes.key_dim))
    turned = torch.addcmul(turned * place.cos, turned.roll(sizes.key_dim // 2, -1), place.sin)
    if sizes.own_keys:
        k, v = turned[:, :, sizes.heads :], v.unflatten(-1, (kv_heads, sizes.value_dim))
        cache.k[..., : sizes.key_dim].index_copy_(2, place.rows, k.transpose(1, 2))
        cache.v.index_copy_(2, place.rows, v.transpose(1, 2))
    q = turned[:, :, : sizes.heads].unflatten(2, (sizes.kv_heads, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    keys, values = (part[:, :, : place.visible] for part in (cache.k, cache.v))
    attn = attend(q, keys, values, place.mask, sizes.scale)
    attn = attn.view(batch, sizes.kv_heads, -1, count, sizes.value_dim).permute(0, 3, 1, 2, 4).reshape(batch, count, -1)
    ssm = torch.stack([_ssm(weights, x[:, t], z[:, t], cache, sizes) for t in range(count)], 1)
    joined = _norm(attn, weights.attn_norm, sizes).add_(_norm(ssm, weights.ssm_norm, sizes))
    residual.addmm_(joined.flatten(0, 1), weights.out_proj.T, alpha=0.5)
    inside = nn.functional.linear(_norm(hidden, weights.mlp_norm, sizes), weights.gate_up)
    gate, up = inside.flatten(0, 1).chunk(2, dim=-1)
    residual.addmm_(nn.functional.silu(gate).mul_(up), weights.down.T)
    return hidden


def _norm(x: Tensor, weight: Tensor, sizes: Sizes) -> Tensor:
    return nn.functional.rms_norm(x, weight.shape, weight, sizes.eps)


def _ssm(weights: Weights, x: Tensor, z: Tensor, cache: Cache, sizes: Sizes) -> Tensor:
    return plain.mamba_update(
        x, z, cache.conv_state, cache.ssm_state, weights.conv, weights.conv_bias, weights.x_proj, weights.dt_proj,
        weights.dt_bias, weights.A, weights.D, dt_norm=weights.dt_norm, B_norm=weights.B_norm, C_norm=weights.C_norm,
        eps=sizes.eps,
    )  # fmt: skip
