"""--parts: one layer taken apart, each part of hymba_ops beside its plain forms on the inputs it gets in the layer."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import hymba_ops
from bench import op_calls
from bench.runner import Call

if TYPE_CHECKING:
    from hymba_ops import HymbaConfig


def part_calls(
    ours: nn.Module,
    theirs: nn.Module,
    config: HymbaConfig,
    layer: int,
    hidden: Tensor,
    peer_names: Collection[str] = (),
) -> dict[str, dict[str, Call]]:
    """For each part of bench.roofline.PARTS its candidates: implementation to call.

    Args:
        ours, theirs: hymba_ops.HymbaLayer and bench.plain's, with the same weights.
        hidden: [B, T, hidden_size], meta tokens included.
        peer_names: of bench.peers.PARTS, which are candidates too; they may not run here (bench.cases.admit).
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
        "attention": op_calls.attention(*turned, v, peer_names=peer_names, **mask),
        "conv + SiLU": op_calls.causal_conv1d(x, taps, bias, peer_names=peer_names),
        "x, dt proj + norms": {
            "hymba_ops": lambda: _scan_inputs(mixer, config, u, z, hymba_ops.linear),
            "plain": lambda: _scan_inputs(plain_mixer, config, u, z, nn.functional.linear),
        },
        "scan": op_calls.selective_scan(*scan_args, **scan_kwargs, peer_names=peer_names),
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
