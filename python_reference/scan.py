"""The Mamba-1 selective scan: Mamba (arXiv 2312.00752), algorithm 2."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from python_reference.packing import sequences
from python_reference.slots import read_slots, refuse_grad, write_slots


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = True,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t; y_t = C_t . h_t + D x_t; out = y * silu(z).

    dt is softplus(dt + dt_bias), without the softplus when dt_softplus is false. Arithmetic and state are float32
    (float64 for float64); the output is rounded once.

    Args:
        x, dt, z: [B, T, C]; z may be None.
        A: [C, N].
        B, C: [B, T, N].
        D, dt_bias: [C] or None.
        initial_state: [B, C, N] float32 (packed: one row per sequence); None for zeros.
        return_final_state: also return the state after the last token.
        cu_seqlens: int32 [n + 1], packed input with B = 1; rows past the last sequence are zero.

    Returns:
        [B, T, C] in x's dtype, and with return_final_state the state [B or n, C, N].
    """
    rows = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    if initial_state is None:
        initial_state = x.new_zeros(rows, *A.shape, dtype=torch.promote_types(x.dtype, torch.float32))

    def one(tokens: slice, state: Tensor) -> tuple[Tensor, Tensor]:
        gate = None if z is None else z[:, tokens]
        return _gated_scan(
            x[:, tokens], dt[:, tokens], A, B[:, tokens], C[:, tokens], D, gate, dt_bias, dt_softplus, state
        )

    if cu_seqlens is None:
        out, final_state = one(slice(None), initial_state)
    else:
        out, final_state = torch.zeros_like(x), initial_state.clone()
        for i, tokens in enumerate(sequences(cu_seqlens)):
            out[:, tokens], final_state[i : i + 1] = one(tokens, initial_state[i : i + 1])
    return (out, final_state) if return_final_state else out


def _gated_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, dt_softplus: bool, state: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    arithmetic, dtype = torch.promote_types(x.dtype, torch.float32), x.dtype
    x, dt, A, B, C, D, z, dt_bias = (None if t is None else t.to(arithmetic) for t in (x, dt, A, B, C, D, z, dt_bias))
    if dt_bias is not None:
        dt = dt + dt_bias
    if dt_softplus:
        dt = nn.functional.softplus(dt)
    y, state = _scan(x, dt, A, B, C, state)
    if D is not None:
        y = y + D * x
    if z is not None:
        y = y * nn.functional.silu(z)
    return y.to(dtype), state


def _scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence alone: x, dt [B, T, C], A [C, N], B, C [B, T, N], h [B, C, N] to C . h [B, T, C] and the last h.

    One step at a time over [B, C, N]: faster than anything that keeps [B, T, C, N], which leaves the caches.
    """
    if x.shape[1] == 0:
        return x, h
    steps = zip(
        dt.unsqueeze(-1).unbind(1),
        (dt * x).unsqueeze(-1).unbind(1),
        B.unsqueeze(-2).unbind(1),
        C.unsqueeze(-1).unbind(1),
        strict=True,
    )
    y = []
    for dt_t, dtx_t, B_t, C_t in steps:
        h = torch.addcmul(dtx_t * B_t, torch.exp(dt_t * A), h)
        y.append(torch.bmm(h, C_t))
    return torch.stack(y, dim=1).squeeze(-1), h


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = True,
    slots_in: Tensor | None = None,
    slots_out: Tensor | None = None,
) -> Tensor:
    """`selective_scan` of the next tokens; the state changes in place.

    Args:
        state: [slots, C, N], float32 (float64 for float64).
        x, dt, z: [B, C] or [B, n, C].
        B, C: [B, N] or [B, n, N].
        A, D, dt_bias, dt_softplus: as in `selective_scan`.
        slots_in, slots_out: int32 [B], the rows of state to read and to write; None for row b, and for slots_in.
            A row with a -1 is padding: skipped, its output zero.

    Returns:
        x's shape and dtype.

    Raises:
        ValueError: an input requires grad, or a slot that one row writes is read or written by another.
    """
    refuse_grad("selective_state_update", state=state, x=x, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias)

    def tokens(t: Tensor | None) -> Tensor | None:
        return t if t is None or t.dim() == 3 else t[:, None]

    initial_state, slots = read_slots(state, x.shape[0], slots_in, slots_out)
    out, final_state = selective_scan(
        tokens(x), tokens(dt), A, tokens(B), tokens(C), D, tokens(z),
        dt_bias=dt_bias, dt_softplus=dt_softplus, initial_state=initial_state, return_final_state=True,
    )  # fmt: skip
    return write_slots(state, final_state, out, slots).reshape(x.shape)
