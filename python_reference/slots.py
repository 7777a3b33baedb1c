"""Rows of a larger state that a decode step reads and writes."""

from __future__ import annotations

import torch
from torch import Tensor


def read_slots(state: Tensor, rows: int, slots_in: Tensor | None, slots_out: Tensor | None) -> tuple[Tensor, Tensor]:
    """state: [slots, ...]; slots_in, slots_out: int32 [rows] or None, for row b and for slots_in.

    Returns the rows' states [rows, ...] and the slots to write, int64 [rows]: -1 where either slot is -1.
    Raises a ValueError when a slot that one row writes is read or written by another: rows have no order.
    """
    if slots_in is None:
        slots_in = torch.arange(rows, device=state.device)
    slots_out = slots_in if slots_out is None else slots_out
    _check_conflicts(slots_in, slots_out)
    # Padding reads some state too: `write_slots` drops what comes of it.
    return state[slots_in.clamp(min=0).long()], slots_out.long().masked_fill(slots_in == -1, -1)


def _check_conflicts(slots_in: Tensor, slots_out: Tensor) -> None:
    real = (slots_in != -1) & (slots_out != -1)
    reads, writes = slots_in[real], slots_out[real]
    clash = (writes[:, None] == writes) | (writes[:, None] == reads)
    if clash.fill_diagonal_(False).any():
        raise ValueError(
            "slots_out must name each slot once, and none that another row reads, "
            f"got slots_in {slots_in.tolist()} and slots_out {slots_out.tolist()}"
        )


def refuse_grad(op: str, **tensors: Tensor | None) -> None:
    """An op that changes its state in place has no backward: raises a ValueError instead of dropping gradients."""
    if not torch.is_grad_enabled():
        return
    for name, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad:
            raise ValueError(f"{op}: {name} must not require grad, got requires_grad=True: use torch.no_grad()")


@torch.no_grad()
def write_slots(state: Tensor, new: Tensor, out: Tensor, slots: Tensor) -> Tensor:
    """Puts new [rows, ...] into state at slots; returns out [rows, ...] with zeros at padding."""
    real = slots != -1
    state[slots[real]] = new[real]
    return torch.where(real.view(-1, *[1] * (out.dim() - 1)), out, 0)
