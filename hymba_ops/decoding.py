"""A layer's decode step: the next few tokens of each row, on what the layer keeps of earlier ones.

Caches lie as `functional.decode_attention` and the update ops take them: rows of a batch name slots, everything changes
in place, lengths stay on the device, and nothing waits for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from hymba_ops import functional
from hymba_ops.mixer_call import KeysValues, MixerState
from hymba_ops.modules import HybridMixer, HymbaLayer, HymbaMLP


@dataclass
class LayerCache:
    """What one layer keeps of each slot.

    k, v: rings [slots, R, Hkv, D] in sliding layers, pages [pages, page, Hkv, D] in global ones; None in a layer that
        borrows its keys.
    meta_k, meta_v: [M, Hkv, D], the meta tokens' keys after RoPE and values, the same for all slots; None where k is.
    conv_state: [slots, K - 1, C], the activations' dtype.
    ssm_state: [slots, C, N], float32 (float64 in a float64 layer).
    decay_rates: A [C, N] of the scan, as the parameters were when the cache was made.
    counters: int32, zeros between steps, by which a GPU's kernels count their blocks.
    """

    k: Tensor | None
    v: Tensor | None
    meta_k: Tensor | None
    meta_v: Tensor | None
    conv_state: Tensor
    ssm_state: Tensor
    decay_rates: Tensor
    counters: Tensor

    @classmethod
    @torch.no_grad()
    def empty(cls, mixer: HybridMixer, slots: int, *, step_tokens: int, pages: int = 0, page: int = 64) -> LayerCache:
        """Room for so many slots, on the mixer's device, in its dtype.

        Args:
            step_tokens: the most tokens of a step.
            pages, page: how many pages of how many tokens; of global layers only.
        """
        config, weight = mixer.config, mixer.in_proj.weight
        states = (slots, config.inner_size, config.mamba_d_state)
        state_dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        k = v = meta_k = meta_v = None
        if not mixer.borrows_kv:
            rows = (pages, page) if mixer.window is None else (slots, mixer.window + step_tokens)
            heads, dims = config.num_key_value_heads, (config.head_dim, config.value_head_dim)
            k, v = (weight.new_zeros(*rows, heads, dim) for dim in dims)
            meta_k, meta_v = (weight.new_zeros(config.num_memory_tokens, heads, dim) for dim in dims)
        return cls(
            k,
            v,
            meta_k,
            meta_v,
            weight.new_zeros(slots, config.mamba_d_conv - 1, config.inner_size),
            weight.new_zeros(states, dtype=state_dtype),
            mixer.decay_rates(),
            weight.new_zeros(2 + slots * step_tokens * config.num_attention_heads, dtype=torch.int32),
        )

    def start(self, slots: Tensor, kv: KeysValues, state: MixerState, *, block_table: Tensor | None = None) -> None:
        """Takes over what `HybridMixer.forward` returned for prompts of one length, meta tokens first.

        Args:
            slots: int64 [B], a slot of each row.
            kv: keys [B, M + T, Hkv, Dk] and values [B, M + T, Hkv, Dv]; not used in a layer that borrows them.
            state: conv state [B, K - 1, C] and SSM state [B, C, N].
            block_table: int32 [slots, P] in global layers, None in sliding ones.
        """
        self.conv_state[slots], self.ssm_state[slots] = state
        if self.k is None or self.v is None or self.meta_k is None or self.meta_v is None:
            return
        meta, rows = self.meta_k.shape[0], self.k.shape[1]
        positions = torch.arange(meta, kv[0].shape[1], device=slots.device)
        if block_table is None:
            positions = positions[-rows:]  # older ones no window sees
            block, row = slots[:, None], (positions % rows)[None]
        else:
            block, row = block_table[slots][:, (positions - meta) // rows].long(), ((positions - meta) % rows)[None]
        for cache, prefix, new in zip((self.k, self.v), (self.meta_k, self.meta_v), kv, strict=True):
            cache[block, row] = new[:, positions]
            prefix.copy_(new[0, :meta])


def layer_step(
    layer: HymbaLayer,
    hidden: Tensor,
    cache: LayerCache,
    lengths: Tensor,
    *,
    slots: Tensor | None = None,
    block_table: Tensor | None = None,
    producer: LayerCache | None = None,
) -> Tensor:
    """`HymbaLayer.forward` of the next tokens of each row. Without gradients.

    Args:
        hidden: [B, n, hidden_size], the residual stream of 1 to 16 tokens a row.
        cache: the layer's own; changed in place.
        lengths: int32 [slots], the tokens that a slot held before this step, meta tokens not counted. Only read: the
            caller adds n once every layer has taken the step.
        slots: int32 [B], each row's slot, -1 for a row of padding, whose results mean nothing; None for row b.
        block_table: int32 [slots, P], for global layers; sliding ones, whose keys lie in rings, do without.
        producer: in a layer that borrows its keys, the cache of the layer that made them, which took this step before.

    Returns:
        [B, n, hidden_size].

    Raises:
        ValueError: `producer` is missing, or an op's check fails: it names the tensor.
    """
    mixer = layer.mamba
    if mixer.borrows_kv and producer is None:
        raise ValueError(
            f"layer_step {mixer.layer_index}: producer must be the cache of layer "
            f"{mixer.config.producer(mixer.layer_index)}, got None"
        )
    projected = functional.norm_project(
        hidden,
        layer.input_layernorm.weight,
        mixer.in_proj.weight,
        bias=mixer.in_proj.bias,
        eps=layer.input_layernorm.eps,
    )
    q, k, v, x, z = projected.split(mixer.in_proj_sizes(), dim=-1)
    keys = cast(LayerCache, producer if mixer.borrows_kv else cache)
    attn, ssm = _branches(mixer, (q, k, v, x, z), cache, keys, lengths, slots, block_table)
    hidden = mixer.join(attn, ssm, hidden)
    return _mlp(layer, hidden, cache) if layer.has_mlp else hidden


def _branches(
    mixer: HybridMixer,
    projected: tuple[Tensor, ...],
    cache: LayerCache,
    keys: LayerCache,
    lengths: Tensor,
    slots: Tensor | None,
    block_table: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """projected: slices q, k, v, x, z of in_proj's output, k and v empty in a layer that borrows; keys: the cache that
    has them. Returns both branches' [B, n, inner_size]."""
    config, dt_proj = mixer.config, cast(nn.Linear, mixer.dt_proj[0])
    q, k, v, x, z = projected
    new_k = new_v = None
    if not mixer.borrows_kv:
        new_k, new_v = mixer.normed_heads("k_norm", k), v.unflatten(-1, (-1, config.value_head_dim))
    norms: dict[str, Tensor] = {}
    if config.mamba_inner_layernorms:
        weights = (norm.weight for norm in (mixer.dt_layernorm, mixer.B_layernorm, mixer.C_layernorm))
        norms = dict(zip(("dt_norm", "B_norm", "C_norm"), weights, strict=True))
    assert keys.k is not None and keys.v is not None
    attn, ssm = functional.decode_branches(
        mixer.normed_heads("q_norm", q),
        new_k,
        new_v,
        keys.k,
        keys.v,
        lengths,
        x,
        z,
        cache.conv_state,
        cache.ssm_state,
        mixer.conv1d.weight[:, 0],
        mixer.conv1d.bias,
        cast(nn.Linear, mixer.x_proj[0]).weight,
        dt_proj.weight,
        dt_proj.bias,
        cache.decay_rates,
        mixer.D[0],
        **norms,
        eps=config.rms_norm_eps,
        slots=slots,
        block_table=None if mixer.window is not None else block_table,
        meta_k=keys.meta_k,
        meta_v=keys.meta_v,
        window=mixer.window,
        scale=config.attention_scale,
        inv_freq=None if mixer.inv_freq is None else mixer.inv_freq.to(q.device),
        counters=cache.counters,
    )
    return attn.flatten(-2), ssm


def _mlp(layer: HymbaLayer, hidden: Tensor, cache: LayerCache) -> Tensor:
    """The residual stream [B, n, hidden_size] with the MLP's result added."""
    mlp, norm = cast(HymbaMLP, cast(nn.ModuleList, layer.moe["experts"])[0]), layer.pre_moe_layernorm
    if mlp.gate_proj is None:
        return cast(Tensor, mlp(norm(hidden), hidden))
    return functional.gated_mlp(
        hidden,
        norm.weight,
        mlp.gate_proj.weight,
        mlp.up_proj.weight,
        mlp.down_proj.weight,
        residual=hidden,
        eps=norm.eps,
        counters=cache.counters,
    )
