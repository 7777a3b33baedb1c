"""Depthwise causal convolution, the short filter before Mamba's scan (arXiv 2312.00752, section 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from python_reference.packing import sequences
from python_reference.slots import read_slots, refuse_grad, write_slots


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = "silu",
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """out[t] = act(bias + sum_k weight[:, k] * x[t - (K - 1) + k]); float32 sums, rounded once (float64 for float64).

    Args:
        x: [B, T, C].
        weight: [C, K].
        bias: [C] or None.
        activation: "silu" or None.
        initial_state: [B, K - 1, C], the inputs before the first token (packed: one row per sequence); None for zeros.
        return_final_state: also return the last K - 1 inputs.
        cu_seqlens: int32 [n + 1], packed input with B = 1; rows past the last sequence are zero.

    Returns:
        [B, T, C] in x's dtype, and with return_final_state the state [B or n, K - 1, C].
    """
    if activation not in ("silu", None):
        raise ValueError(f"causal_conv1d: activation must be 'silu' or None, got {activation!r}")
    rows = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    if initial_state is None:
        initial_state = x.new_zeros(rows, weight.shape[1] - 1, x.shape[2])

    if cu_seqlens is None:
        out, final_state = _convolve(x, weight, bias, activation, initial_state)
    else:
        out, final_state = torch.zeros_like(x), initial_state.clone()
        for i, tokens in enumerate(sequences(cu_seqlens)):
            state = initial_state[i : i + 1]
            out[:, tokens], final_state[i : i + 1] = _convolve(x[:, tokens], weight, bias, activation, state)
    return (out, final_state) if return_final_state else out


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    length, width = x.shape[1], weight.shape[1]
    inputs = torch.cat([state, x], dim=1)
    arithmetic = torch.promote_types(x.dtype, torch.float32)
    wide, weight = inputs.to(arithmetic), weight.to(arithmetic)

    out = wide[:, :length] * weight[:, 0]
    for k in range(1, width):
        out = out + wide[:, k : k + length] * weight[:, k]
    if bias is not None:
        out = out + bias.to(arithmetic)
    if activation == "silu":
        out = nn.functional.silu(out)
    return out.to(x.dtype), inputs[:, length:]


def causal_conv1d_update(
    x: Tensor,
    state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = "silu",
    slots_in: Tensor | None = None,
    slots_out: Tensor | None = None,
) -> Tensor:
    """`causal_conv1d` of the next tokens; the state changes in place.

    Args:
        x: [B, C] or [B, n, C].
        state: [slots, K - 1, C], x's dtype.
        weight, bias, activation: as in `causal_conv1d`.
        slots_in, slots_out: int32 [B], the rows of state to read and to write; None for row b, and for slots_in.
            A row with a -1 is padding: skipped, its output zero.

    Returns:
        x's shape and dtype.

    Raises:
        ValueError: an input requires grad, or a slot that one row writes is read or written by another.
    """
    refuse_grad("causal_conv1d_update", x=x, state=state, weight=weight, bias=bias)
    tokens = x if x.dim() == 3 else x[:, None]
    initial_state, slots = read_slots(state, tokens.shape[0], slots_in, slots_out)
    out, final_state = causal_conv1d(
        tokens, weight, bias, activation=activation, initial_state=initial_state, return_final_state=True
    )
    return write_slots(state, final_state, out, slots).reshape(x.shape)
