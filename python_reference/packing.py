"""Packed input: several sequences in one row of tokens."""

from __future__ import annotations

from torch import Tensor


def sequences(cu_seqlens: Tensor) -> list[slice]:
    """The rows of each sequence: cu_seqlens int32 [n + 1], starting at 0, to n slices."""
    ends = cu_seqlens.tolist()
    return [slice(start, end) for start, end in zip(ends[:-1], ends[1:], strict=True)]
