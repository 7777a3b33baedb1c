"""Hymba's layer (arXiv 2411.13676): attention heads and Mamba-1 heads side by side on the same input, then an MLP.

Attribute names are those of the published parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from hymba_ops import functional
from hymba_ops.config import HymbaConfig
from hymba_ops.mixer_call import KeysValues, MixerCall, MixerState
from hymba_ops.norms import HeadNorms, RMSNorm
from hymba_ops.pieces import Piece
from hymba_ops.projection import Linear, project, under_autocast

_DT_RANGE = (1e-3, 1e-1)  # of softplus(dt bias) at initialisation: Mamba (arXiv 2312.00752), section 3.6


class HybridMixer(nn.Module):
    """Attention and Mamba-1 on the same input, joined by the average of their normalised outputs.

    Args:
        config: the model's configuration.
        layer_index: which layer of it: decides the window and whether keys and values are made or borrowed.
        device, dtype: of the parameters.
    """

    inv_freq: Tensor | None  # float32 [head_dim / 2]; None without RoPE

    def __init__(
        self,
        config: HymbaConfig,
        layer_index: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= layer_index < config.num_hidden_layers:
            raise ValueError(
                f"HybridMixer: layer_index must be from 0 to {config.num_hidden_layers - 1}, got {layer_index}"
            )
        self.config = config
        self.layer_index = layer_index
        self.borrows_kv = config.producer(layer_index) != layer_index
        self.window = config.window(layer_index)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        inner, states, dt_rank = config.inner_size, config.mamba_d_state, config.dt_rank

        def norm(size: int) -> RMSNorm:
            return RMSNorm(size, eps=config.rms_norm_eps, **factory)

        self.pre_avg_layernorm1 = norm(inner)
        self.pre_avg_layernorm2 = norm(inner)
        self.in_proj = Linear(config.hidden_size, sum(self.in_proj_sizes()), config.mamba_proj_bias, **factory)
        self.out_proj = Linear(inner, config.hidden_size, config.mamba_proj_bias, **factory)
        self.conv1d = nn.Conv1d(inner, inner, config.mamba_d_conv, groups=inner, bias=config.mamba_conv_bias, **factory)
        self.x_proj = nn.ModuleList([Linear(inner, dt_rank + 2 * states, bias=False, **factory)])
        self.dt_proj = nn.ModuleList([Linear(dt_rank, inner, **factory)])
        self.A_log = nn.ParameterList([nn.Parameter(torch.empty(inner, states, **factory))])
        self.D = nn.ParameterList([nn.Parameter(torch.empty(inner, **factory))])
        if config.mamba_inner_layernorms:
            self.dt_layernorm = norm(dt_rank)
            self.B_layernorm = norm(states)
            self.C_layernorm = norm(states)
        if config.kq_norm != "none":
            self.self_attn = HeadNorms(config, **factory)
        self.register_buffer("inv_freq", self._frequencies(self.out_proj.weight.device), persistent=False)
        self.reset_parameters()

    def in_proj_sizes(self) -> list[int]:
        """Rows of in_proj in order: q, k, v (k and v none in a layer that borrows them), SSM input, gate."""
        config = self.config
        kv_heads = 0 if self.borrows_kv else config.num_key_value_heads
        return [
            config.num_attention_heads * config.head_dim,
            kv_heads * config.head_dim,
            kv_heads * config.value_head_dim,
            config.inner_size,
            config.inner_size,
        ]

    def _frequencies(self, device: torch.device) -> Tensor | None:
        """RoPE's, on the device; on the CPU where that is meta: real numbers in any case."""
        with torch.device("cpu"):
            frequencies = self.config.inv_freq()
        return frequencies if frequencies is None or device.type == "meta" else frequencies.to(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HybridMixer:
        """Moves everything, but remakes the RoPE frequencies: they stay float32 and survive the meta device."""
        super()._apply(fn, recurse)
        if self.inv_freq is not None:
            self.inv_freq = self._frequencies(self.inv_freq.device)
        return self

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initial values: A, D and dt bias as Mamba's (arXiv 2312.00752, section 3.6), the rest as the published."""
        std = self.config.initializer_range
        x_proj, dt_proj = (cast(nn.Linear, linears[0]) for linears in (self.x_proj, self.dt_proj))
        for linear in (self.in_proj, self.out_proj, self.conv1d, x_proj, dt_proj):
            nn.init.normal_(linear.weight, std=std)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        low, high = _DT_RANGE
        dt = torch.empty_like(dt_proj.bias, dtype=torch.float32).uniform_(math.log(low), math.log(high)).exp()
        dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        a_log = self.A_log[0]
        a_log.copy_(torch.arange(1, a_log.shape[1] + 1, device=a_log.device).log().expand_as(a_log))
        nn.init.ones_(self.D[0])

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
            cu_seqlens: int32 [n + 1] for packed input with B = 1. Rows past the last sequence are written as zero.
            kv: in a layer that borrows keys and values, its producer's (required), this call's tokens included. In a
                layer that makes its own, optional earlier ones to place before this call's (not in packed input).
            initial_state: convolution state [B, K - 1, C] in the activations' dtype and SSM state [B, C, N] float32
                from an earlier call (packed: one row per sequence); None for zeros.

        Returns:
            The output [B, T, hidden_size]; the keys [B, S, Hkv, Dk] after RoPE and values [B, S, Hkv, Dv] that were
            attended to; the final states, in initial_state's form.
        """
        call = MixerCall(self, hidden, positions, cu_seqlens, kv, initial_state)
        return call.over_pieces(hidden, call.mix), *call.results()

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, cu_seqlens: Tensor | None) -> Tensor:
        """q [B, T, heads, head_dim] after RoPE on keys and values [B, S, KV heads, dim], to [B, T, inner_size]."""
        out = functional.attention(
            q,
            keys,
            values,
            window=self.window,
            num_meta=self.config.num_memory_tokens,
            scale=self.config.attention_scale,
            cu_seqlens=cu_seqlens,
        )
        return cast(Tensor, out).flatten(-2)

    def norm_and_rotate(self, norm: str, x: Tensor, positions: Tensor) -> Tensor:
        """Slice q or k of in_proj's output to [B, T, heads, head_dim], with the config's norm and RoPE."""
        heads = self.normed_heads(norm, x)
        if self.inv_freq is None:
            return heads
        return functional.rotary(heads, positions, self.inv_freq.to(heads.device))

    def normed_heads(self, norm: str, x: Tensor) -> Tensor:
        """Slice q or k of in_proj's output to [B, T, heads, head_dim], with the config's norm."""
        heads = x.unflatten(-1, (-1, self.config.head_dim))
        return heads if self.config.kq_norm == "none" else cast(Tensor, getattr(self.self_attn, norm)(heads))

    def decay_rates(self) -> Tensor:
        """A [C, N] of the scan, float32 or float64."""
        a_log = self.A_log[0]
        return -torch.exp(a_log if a_log.dtype == torch.float64 else a_log.float())

    def convolve(self, x: Tensor, cu_seqlens: Tensor | None, initial_state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Slice x of in_proj's output [B, T, inner_size] to the scan's input u, and the final state."""
        u, state = functional.causal_conv1d(
            x,
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            initial_state=initial_state,
            return_final_state=True,
            cu_seqlens=cu_seqlens,
        )
        return u, state

    def scan_inputs(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The convolution's output u [B, T, inner_size] to dt [B, T, inner_size] before bias and softplus, B and C."""
        config = self.config
        sizes = [config.dt_rank, config.mamba_d_state, config.mamba_d_state]
        dt, B, C = self.x_proj[0](u).split(sizes, dim=-1)
        if config.mamba_inner_layernorms:
            dt, B, C = self.dt_layernorm(dt), self.B_layernorm(B), self.C_layernorm(C)
        return project(dt, cast(nn.Linear, self.dt_proj[0]).weight), B, C

    def scan(
        self,
        u: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        z: Tensor,
        cu_seqlens: Tensor | None,
        initial_state: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """`convolve`'s u, what `scan_inputs` makes of it, and the gate z [B, T, inner_size] to the gated output and the
        final state.

        A: `decay_rates()`, which several calls share while the parameters stay as they are.
        """
        y, state = functional.selective_scan(
            u,
            dt,
            A,
            B,
            C,
            self.D[0],
            z,
            dt_bias=cast(nn.Linear, self.dt_proj[0]).bias,
            initial_state=initial_state,
            return_final_state=True,
            cu_seqlens=cu_seqlens,
        )
        return y, state

    def join(self, attn: Tensor, ssm: Tensor, residual: Tensor | None = None) -> Tensor:
        """The branches' outputs [B, T, inner_size] to the mixer's [B, T, hidden_size], plus `residual`."""
        bias, fused = self.out_proj.bias, residual is not None and residual.dtype == attn.dtype
        out = functional.norm_average_project(
            attn,
            ssm,
            self.pre_avg_layernorm1.weight,
            self.pre_avg_layernorm2.weight,
            self.out_proj.weight.to(attn.dtype),
            bias=None if bias is None else bias.to(attn.dtype),
            residual=residual if fused else None,
            eps=self.config.rms_norm_eps,
        )
        return out if fused or residual is None else residual + out  # autocast: the residual stream keeps its dtype

    def check(
        self,
        hidden: Tensor,
        cu_seqlens: Tensor | None,
        kv: KeysValues | None,
        initial_state: MixerState | None,
    ) -> None:
        """What the ops cannot know; they check the rest."""
        where, size = f"HybridMixer {self.layer_index}", self.config.hidden_size
        if not isinstance(hidden, Tensor):
            raise TypeError(f"{where}: hidden must be a tensor, got {type(hidden).__name__}")
        if hidden.dim() != 3 or hidden.shape[2] != size:
            raise ValueError(f"{where}: hidden must have shape [B, T, {size}], got {list(hidden.shape)}")
        if cu_seqlens is not None and hidden.shape[0] != 1:
            raise ValueError(f"{where}: hidden must have batch size 1 with cu_seqlens, got {list(hidden.shape)}")
        for name, pair in (("kv", kv), ("initial_state", initial_state)):
            if pair is not None and not (
                isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(part, Tensor) for part in pair)
            ):
                raise TypeError(f"{where}: {name} must be a pair of tensors or None, got {type(pair).__name__}")
        if self.borrows_kv and kv is None:
            producer = self.config.producer(self.layer_index)
            raise ValueError(f"{where}: kv must be the keys and values of layer {producer}, got None")
        if not self.borrows_kv and kv is not None and cu_seqlens is not None:
            raise ValueError(f"{where}: kv must be None in packed input (cu_seqlens) of a layer that makes its own")
        if kv is not None:
            self._check_kv(where, hidden, kv, packed=cu_seqlens is not None)

    def _check_kv(self, where: str, hidden: Tensor, kv: KeysValues, *, packed: bool) -> None:
        config, batch = self.config, hidden.shape[0]
        for name, tensor, dim in zip("kv", kv, (config.head_dim, config.value_head_dim), strict=True):
            expected = [batch, kv[0].shape[1] if kv[0].dim() == 4 else "S", config.num_key_value_heads, dim]
            if list(tensor.shape) != expected:
                raise ValueError(f"{where}: kv's {name} must have shape {expected}, got {list(tensor.shape)}")
        if self.borrows_kv and kv[0].shape[1] < hidden.shape[1]:
            raise ValueError(f"{where}: kv must have at least hidden's {hidden.shape[1]} tokens, got {kv[0].shape[1]}")
        if packed and kv[0].shape[1] != hidden.shape[1]:
            raise ValueError(f"{where}: kv must have hidden's {hidden.shape[1]} packed rows, got {kv[0].shape[1]}")


class HymbaMLP(nn.Module):
    """down(silu(gate) * up), or with mlp_hidden_act "relu2" down(relu(up)^2), which has no gate."""

    def __init__(
        self, config: HymbaConfig, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        factory: dict[str, Any] = {"bias": False, "device": device, "dtype": dtype}
        self.gate_proj = Linear(hidden, inner, **factory) if config.mlp_hidden_act == "silu" else None
        self.down_proj = Linear(inner, hidden, **factory)
        self.up_proj = Linear(hidden, inner, **factory)
        for linear in filter(None, (self.gate_proj, self.down_proj, self.up_proj)):
            nn.init.normal_(linear.weight, std=config.initializer_range)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x: [..., hidden_size]; residual: the same, added to the result. Returns the same shape."""
        if self.gate_proj is None:
            inner = nn.functional.relu(self.up_proj(x)).square()
        elif under_autocast(x):
            inner = nn.functional.silu(self.gate_proj(x)) * self.up_proj(x)
        else:
            inner = functional.gated_linear(x, self.gate_proj.weight, self.up_proj.weight)
        return self.down_proj(inner, residual)


class HymbaLayer(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)). With intermediate_size 0 there is no MLP.

    On a CPU without gradients a long input passes in pieces (hymba_ops/pieces.py), and the sum with the residual stream
    is part of the projections: hooks on submodules see a piece at a time, those on `mamba` itself are not called.
    On a GPU without gradients the SSM branch has a stream of its own (hymba_ops/streams.py).

    Args:
        config, layer_index, device, dtype: as in `HybridMixer`.
    """

    def __init__(
        self,
        config: HymbaConfig,
        layer_index: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.mamba = HybridMixer(config, layer_index, **factory)
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, **factory)
        self.has_mlp = config.intermediate_size > 0
        if self.has_mlp:
            self.moe = nn.ModuleDict({"experts": nn.ModuleList([HymbaMLP(config, **factory)])})
            self.pre_moe_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, **factory)

    def forward(
        self,
        hidden: Tensor,
        *,
        positions: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        kv: KeysValues | None = None,
        initial_state: MixerState | None = None,
    ) -> tuple[Tensor, KeysValues, MixerState]:
        """Arguments and results as `HybridMixer.forward`'s, on the residual stream."""
        call = MixerCall(self.mamba, hidden, positions, cu_seqlens, kv, initial_state)

        def step(piece: Piece, residual: Tensor) -> Tensor:
            residual = call.mix(piece, self.input_layernorm(residual), residual)
            if self.has_mlp:
                mlp = cast(nn.ModuleList, self.moe["experts"])[0]
                residual = mlp(self.pre_moe_layernorm(residual), residual)
            return residual

        return call.over_pieces(hidden, step), *call.results()
