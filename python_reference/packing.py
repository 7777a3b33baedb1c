"""Sequences in packed and padded input."""

from __future__ import annotations

from torch import Tensor, nn


def sequences(cu_seqlens: Tensor) -> list[slice]:
    """The rows of each sequence: cu_seqlens int32 [n + 1], starting at 0, to n slices."""
    ends = cu_seqlens.tolist()
    return [slice(start, end) for start, end in zip(ends[:-1], ends[1:], strict=True)]


def tokens_present(attention_mask: Tensor) -> Tensor:
    """attention_mask [B, T] as bool. Raises a ValueError for a row without tokens, or with padding between them."""
    present = attention_mask.bool()
    starts = present & ~nn.functional.pad(present, (1, 0))[:, :-1]
    runs = starts.sum(dim=1).tolist()
    if any(count != 1 for count in runs):
        raise ValueError(f"attention_mask must hold one unbroken run of tokens in each row, got {runs} runs")
    return present
