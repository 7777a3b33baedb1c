"""Hymba's mixer (arXiv 2411.13676, section 2): attention heads and Mamba-1 heads on the same input, averaged.

Attribute names are those of the published parameters.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from python_reference.attention import attention
from python_reference.config import HymbaConfig
from python_reference.conv import causal_conv1d
from python_reference.norms import norm_average_project, rms_norm
from python_reference.packing import sequences
from python_reference.rotary import rotary
from python_reference.scan import selective_scan

KeysValues = tuple[Tensor, Tensor]  # [B, S, Hkv, Dk] after RoPE, [B, S, Hkv, Dv]
MixerState = tuple[Tensor, Tensor]  # conv state [B or n, K - 1, C], SSM state [B or n, C, N]

_HEAD_NORM_EPS = 1e-6  # fixed in the published code, whatever rms_norm_eps is
_DT_RANGE = (1e-3, 1e-1)  # of softplus(dt bias) at initialisation: Mamba (arXiv 2312.00752), section 3.6


class RMSNorm(nn.Module):
    """`rms_norm` with a weight [size]."""

    def __init__(self, size: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., size]. Returns the same shape."""
        return rms_norm(x, self.weight, eps=self.eps)


class PerHeadRMSNorm(nn.Module):
    """RMS norm over head_dim with weights of its own for each head: weight [1, heads, 1, head_dim]."""

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, heads, 1, head_dim))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, heads, head_dim]. Returns the same shape."""
        return rms_norm(x, self.weight[0, :, 0], eps=_HEAD_NORM_EPS)


class HeadNorms(nn.Module):
    """The norms of queries and keys (config field kq_norm). A layer that borrows keys has an unused k_norm."""

    def __init__(self, config: HymbaConfig) -> None:
        super().__init__()
        heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        if config.kq_norm == "perhead-rms":
            self.q_norm, self.k_norm = PerHeadRMSNorm(heads, dim), PerHeadRMSNorm(kv_heads, dim)
        else:
            self.q_norm, self.k_norm = (RMSNorm(dim, eps=_HEAD_NORM_EPS) for _ in range(2))


class HybridMixer(nn.Module):
    """The mixer of one layer. A benchmark replaces its kernels by overriding `attend`, `convolve` and `scan`."""

    def __init__(self, config: HymbaConfig, layer_index: int) -> None:
        super().__init__()
        self.config = config
        self.layer_index = layer_index
        self.borrows_kv = config.producer(layer_index) != layer_index
        inner, states, dt_rank = config.inner_size, config.mamba_d_state, config.dt_rank

        self.pre_avg_layernorm1 = RMSNorm(inner, eps=config.rms_norm_eps)
        self.pre_avg_layernorm2 = RMSNorm(inner, eps=config.rms_norm_eps)
        self.in_proj = nn.Linear(config.hidden_size, sum(self._in_proj_sizes()), bias=config.mamba_proj_bias)
        self.out_proj = nn.Linear(inner, config.hidden_size, bias=config.mamba_proj_bias)
        self.conv1d = nn.Conv1d(inner, inner, config.mamba_d_conv, groups=inner, bias=config.mamba_conv_bias)
        self.x_proj = nn.ModuleList([nn.Linear(inner, dt_rank + 2 * states, bias=False)])
        self.dt_proj = nn.ModuleList([nn.Linear(dt_rank, inner)])
        self.A_log = nn.ParameterList([nn.Parameter(torch.zeros(inner, states))])
        self.D = nn.ParameterList([nn.Parameter(torch.ones(inner))])
        if config.mamba_inner_layernorms:
            self.dt_layernorm = RMSNorm(dt_rank, eps=config.rms_norm_eps)
            self.B_layernorm = RMSNorm(states, eps=config.rms_norm_eps)
            self.C_layernorm = RMSNorm(states, eps=config.rms_norm_eps)
        if config.kq_norm != "none":
            self.self_attn = HeadNorms(config)
        self.register_buffer("inv_freq", config.inv_freq(), persistent=False)
        self.reset_parameters()

    def _in_proj_sizes(self) -> list[int]:
        """Rows of in_proj in order: q, k, v (no k and v in a layer that borrows them), SSM input, gate."""
        config = self.config
        kv_heads = 0 if self.borrows_kv else config.num_key_value_heads
        q, k, v = config.num_attention_heads * config.head_dim, config.head_dim, config.value_head_dim
        return [q, kv_heads * k, kv_heads * v, config.inner_size, config.inner_size]

    def _apply(self, fn: Any, recurse: bool = True) -> HybridMixer:
        """RoPE frequencies stay float32 whatever the module is cast to: rounding them moves the logits."""
        super()._apply(fn, recurse)
        if self.inv_freq is not None:
            self.inv_freq = self.config.inv_freq().to(self.inv_freq.device)
        return self

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Linear layers normal; A, D and dt bias as Mamba's (arXiv 2312.00752, section 3.6)."""
        for linear in (self.in_proj, self.out_proj, self.conv1d, self.x_proj[0], self.dt_proj[0]):
            init_linear(linear, self.config.initializer_range)
        low, high = _DT_RANGE
        dt = torch.empty(self.config.inner_size).uniform_(math.log(low), math.log(high)).exp()
        self.dt_proj[0].bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus of it is dt
        self.A_log[0].copy_(torch.arange(1, self.config.mamba_d_state + 1).log())
        self.D[0].fill_(1)

    def forward(
        self,
        hidden: Tensor,
        *,
        positions: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        kv: KeysValues | None = None,
        initial_state: MixerState | None = None,
    ) -> tuple[Tensor, KeysValues, MixerState]:
        """One mixer on normalised hidden states, meta tokens included.

        Args:
            hidden: [B, T, hidden_size].
            positions: int32 [T] or [B, T], for RoPE; None to count from each sequence's start, after the keys that
                `kv` already holds.
            cu_seqlens: int32 [n + 1], packed input with B = 1.
            kv: in a layer that borrows keys and values, its producer's, this call's tokens included. In a layer that
                makes its own, optional earlier ones to place before this call's (not in packed input).
            initial_state: conv state [B, K - 1, C] and SSM state [B, C, N] of an earlier call (packed: one row per
                sequence); None for zeros.

        Returns:
            [B, T, hidden_size]; the keys [B, S, Hkv, Dk] after RoPE and values [B, S, Hkv, Dv] that were attended to;
            the final states, in initial_state's form.
        """
        if self.borrows_kv and kv is None:
            raise ValueError(
                f"HybridMixer {self.layer_index}: kv must be the keys and values of layer "
                f"{self.config.producer(self.layer_index)}, got None"
            )
        if kv is not None and cu_seqlens is not None and not self.borrows_kv:
            raise ValueError(
                f"HybridMixer {self.layer_index}: kv must be None in packed input of a layer that makes its own"
            )
        q, k, v, x, z = self.in_proj(hidden).split(self._in_proj_sizes(), dim=-1)
        attn, kv = self.attention_branch(q, k, v, positions, cu_seqlens, kv)
        ssm, state = self.ssm_branch(x, z, cu_seqlens, initial_state)
        return self.join(attn, ssm), kv, state

    def attention_branch(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        positions: Tensor | None,
        cu_seqlens: Tensor | None,
        kv: KeysValues | None,
    ) -> tuple[Tensor, KeysValues]:
        """q, k, v of in_proj's output, each [B, T, heads * dim], to [B, T, inner_size] and (keys, values)."""
        config = self.config
        q = q.unflatten(-1, (config.num_attention_heads, config.head_dim))
        if positions is None:
            earlier = 0 if kv is None else kv[0].shape[1] - (q.shape[1] if self.borrows_kv else 0)
            positions = default_positions(q.shape[1], cu_seqlens, q.device, start=earlier)

        q = self._norm_and_rotate("q_norm", q, positions)
        if not self.borrows_kv:
            k = k.unflatten(-1, (config.num_key_value_heads, config.head_dim))
            v = v.unflatten(-1, (config.num_key_value_heads, config.value_head_dim))
            k = self._norm_and_rotate("k_norm", k, positions)
            kv = (k, v) if kv is None else (torch.cat([kv[0], k], dim=1), torch.cat([kv[1], v], dim=1))
        out = self.attend(
            q,
            *kv,
            window=config.window(self.layer_index),
            num_meta=config.num_memory_tokens,
            scale=config.attention_scale,
            cu_seqlens=cu_seqlens,
        )
        return out.flatten(-2), kv

    def _norm_and_rotate(self, norm: str, heads: Tensor, positions: Tensor) -> Tensor:
        if self.config.kq_norm != "none":
            heads = getattr(self.self_attn, norm)(heads)
        return heads if self.inv_freq is None else rotary(heads, positions, self.inv_freq)

    def ssm_branch(
        self, x: Tensor, z: Tensor, cu_seqlens: Tensor | None, initial_state: MixerState | None
    ) -> tuple[Tensor, MixerState]:
        """x and gate z of in_proj's output, [B, T, inner_size], to the gated scan's output and the final states."""
        config = self.config
        conv_state, ssm_state = (None, None) if initial_state is None else initial_state
        u, conv_state = self.convolve(
            x, self.conv1d.weight[:, 0], self.conv1d.bias, initial_state=conv_state, cu_seqlens=cu_seqlens
        )
        dt, B, C = self.x_proj[0](u).split([config.dt_rank, config.mamba_d_state, config.mamba_d_state], dim=-1)
        if config.mamba_inner_layernorms:
            dt, B, C = self.dt_layernorm(dt), self.B_layernorm(B), self.C_layernorm(C)
        y, ssm_state = self.scan(
            u,
            nn.functional.linear(dt, self.dt_proj[0].weight),
            -torch.exp(at_least_float32(self.A_log[0])),
            B,
            C,
            at_least_float32(self.D[0]),
            z,
            dt_bias=at_least_float32(self.dt_proj[0].bias),
            initial_state=ssm_state,
            cu_seqlens=cu_seqlens,
        )
        return y, (conv_state, ssm_state)

    def join(self, attn: Tensor, ssm: Tensor) -> Tensor:
        """The branches' outputs [B, T, inner_size] to the mixer's [B, T, hidden_size]."""
        out = norm_average_project(
            attn,
            ssm,
            self.pre_avg_layernorm1.weight,
            self.pre_avg_layernorm2.weight,
            self.out_proj.weight,
            eps=self.config.rms_norm_eps,
        )
        return out if self.out_proj.bias is None else out + self.out_proj.bias

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        window: int | None,
        num_meta: int,
        scale: float,
        cu_seqlens: Tensor | None,
    ) -> Tensor:
        """`attention`: q [B, T, Hq, Dk], k [B, S, Hkv, Dk], v [B, S, Hkv, Dv] to [B, T, Hq, Dv]."""
        return attention(q, k, v, window=window, num_meta=num_meta, scale=scale, cu_seqlens=cu_seqlens)

    def convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, *, initial_state: Tensor | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`causal_conv1d`: x [B, T, C] to [B, T, C] and the final state [B or n, K - 1, C]."""
        return causal_conv1d(
            x, weight, bias, initial_state=initial_state, return_final_state=True, cu_seqlens=cu_seqlens
        )

    def scan(
        self,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        z: Tensor,
        *,
        dt_bias: Tensor,
        initial_state: Tensor | None,
        cu_seqlens: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """`selective_scan`: x, dt, z [B, T, C], B, C [B, T, N] to [B, T, C] and the final state [B or n, C, N]."""
        return selective_scan(
            x, dt, A, B, C, D, z,
            dt_bias=dt_bias, initial_state=initial_state, return_final_state=True, cu_seqlens=cu_seqlens,
        )  # fmt: skip


def init_linear(linear: nn.Module, std: float) -> None:
    """Weight normal(0, std), bias zero."""
    nn.init.normal_(linear.weight, std=std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def default_positions(length: int, cu_seqlens: Tensor | None, device: torch.device, start: int = 0) -> Tensor:
    """int32 [length]: start + arange, or in packed rows each row's distance from its sequence's first row."""
    positions = start + torch.arange(length, dtype=torch.int32, device=device)
    if cu_seqlens is not None:
        for rows in sequences(cu_seqlens):
            positions[rows] -= rows.start
    return positions


def at_least_float32(t: Tensor) -> Tensor:
    """t in float32, or as it is in float64."""
    return t.to(torch.promote_types(t.dtype, torch.float32))
