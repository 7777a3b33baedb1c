"""--parts: one layer taken apart, each part of hymba_ops beside its plain forms on the inputs it gets in the layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import hymba_ops
from bench import op_calls
from bench.runner import Call

if TYPE_CHECKING:
    from hymba_ops import HymbaConfig


def part_calls(
    ours: nn.Module, theirs: nn.Module, config: HymbaConfig, layer: int, hidden: Tensor
) -> dict[str, dict[str, Call]]:
    """For each part of bench.roofline.PARTS its candidates: implementation to call.

    Args:
        ours, theirs: hymba_ops.HymbaLayer and bench.plain's, with the same weights.
        hidden: [B, T, hidden_size], meta tokens included.
    """
    mixer, plain_mixer = ours.mamba, theirs.mamba
    normed = ours.input_layernorm(hidden)
    q, k, v, x, z = mixer.in_proj(normed).split(mixer.in_proj_sizes(), dim=-1)
    q, k = q.unflatten(-1, (-1, config.head_dim)), k.unflatten(-1, (-1, config.head_dim))
    v = v.unflatten(-1, (-1, config.value_head_dim))
    positions = torch.arange(hidden.shape[1], dtype=torch.int32, device=hidden.device)
    turned = [hymba_ops.rotary(heads, positions, mixer.inv_freq) for heads in (q, k)]
    mask = {"window": config.window(layer), "num_meta": config.num_memory_tokens, "scale": config.attention_scale}
    taps, bias = mixer.conv1d.weight[:, 0], mixer.conv1d.bias
    u = hymba_ops.causal_conv1d(x, taps, bias)
    scan_args, scan_kwargs = _scan_inputs(mixer, config, u, z, hymba_ops.linear)
    attn = hymba_ops.attention(*turned, v, **mask).flatten(-2)
    ssm = hymba_ops.selective_scan(*scan_args, **scan_kwargs)
    weights = (mixer.pre_avg_layernorm1.weight, mixer.pre_avg_layernorm2.weight, mixer.out_proj.weight)

    def norms(module: Any) -> list[Tensor]:
        return [module.rms_norm(hidden, ours.input_layernorm.weight) for _ in range(2)]

    def join(module: Any) -> Tensor:
        return module.norm_average_project(attn, ssm, *weights, residual=hidden)

    return {
        "in_proj": {"hymba_ops": lambda: mixer.in_proj(normed), "plain": lambda: plain_mixer.in_proj(normed)},
        "rotary": op_calls.both(lambda module: [module.rotary(heads, positions, mixer.inv_freq) for heads in (q, k)]),
        "attention": op_calls.attention(*turned, v, **mask),
        "conv + SiLU": op_calls.causal_conv1d(x, taps, bias),
        "x, dt proj + norms": {
            "hymba_ops": lambda: _scan_inputs(mixer, config, u, z, hymba_ops.linear),
            "plain": lambda: _scan_inputs(plain_mixer, config, u, z, nn.functional.linear),
        },
        "scan": op_calls.both(lambda module: module.selective_scan(*scan_args, **scan_kwargs)),
        "norms": op_calls.both(norms),
        "norm-average + out_proj": op_calls.both(join),
        "MLP": {
            "hymba_ops": lambda: ours.moe.experts[0](normed, hidden),
            "plain": lambda: hidden + theirs.moe.experts[0](normed),
        },
    }  # fmt: skip


def _scan_inputs(
    mixer: nn.Module, config: HymbaConfig, u: Tensor, z: Tensor, linear: Callable[[Tensor, Tensor], Tensor]
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """x_proj, its three norms and dt_proj: the scan's positional and keyword arguments."""
    dt, B, C = mixer.x_proj[0](u).split([config.dt_rank, config.mamba_d_state, config.mamba_d_state], dim=-1)
    if config.mamba_inner_layernorms:
        dt, B, C = mixer.dt_layernorm(dt), mixer.B_layernorm(B), mixer.C_layernorm(C)
    dt = linear(dt, mixer.dt_proj[0].weight)
    A = -torch.exp(mixer.A_log[0].float())
    return (u, dt, A, B, C, mixer.D[0].float(), z), {"dt_bias": mixer.dt_proj[0].bias.float()}


def flex_attention_calls(config: HymbaConfig, layer: int, inputs: list[tuple[Tensor, Tensor, Tensor]]) -> list[Call]:
    """FlexAttention, compiled, with the same mask in one call, on each q, k, v of one shape; raises where this torch or
    machine cannot run it."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    window, num_meta = config.window(layer), config.num_memory_tokens

    def mask(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) if window is None else (j <= i) & ((i - j <= window) | (j < num_meta))

    length, device = inputs[0][0].shape[1], inputs[0][0].device
    block_mask = create_block_mask(mask, None, None, length, length, device=device)
    compiled = torch.compile(flex_attention, dynamic=False)

    def call(*inputs: Tensor) -> Call:
        heads_first = [x.transpose(1, 2).contiguous() for x in inputs]
        return lambda: compiled(*heads_first, block_mask=block_mask, scale=config.attention_scale, enable_gqa=True)

    return [call(*qkv) for qkv in inputs]


def attention_inputs(ours: nn.Module, config: HymbaConfig, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q and k after RoPE, and v, as the layer's attention gets them."""
    mixer = ours.mamba
    q, k, v, _, _ = mixer.in_proj(ours.input_layernorm(hidden)).split(mixer.in_proj_sizes(), dim=-1)
    positions = torch.arange(hidden.shape[1], dtype=torch.int32, device=hidden.device)
    q, k = (hymba_ops.rotary(heads.unflatten(-1, (-1, config.head_dim)), positions, mixer.inv_freq) for heads in (q, k))
    return q, k, v.unflatten(-1, (-1, config.value_head_dim))
