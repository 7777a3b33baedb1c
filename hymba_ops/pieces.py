"""How the tokens of one call are cut into pieces that pass through a layer one after the other.

On a CPU a layer's activations are many times larger than its cache: a token has 36 KB of them in in_proj's output
alone (1.5B model). A piece's stay in the cache from one op to the next, and the next piece uses their memory again.
Keys, values and states pass from piece to piece, so the result is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

PIECE_TOKENS = 504  # docs/cpu_layer.md has the measurements


@dataclass(frozen=True)
class Piece:
    """Whole rows of a batch, whole packed sequences, or a part of one of either.

    rows, tokens: where its tokens lie in [B, T, ...].
    states: which rows of the states [B or n, ...] are its sequences'.
    keys_from: the first row of keys that its tokens may see.
    continues: it starts from the states that the piece before it left; else from the call's initial states.
    ends: its final states are its sequences' final states.
    cu_seqlens: int32, counted from the piece's first token; None where it is dense.
    """

    rows: slice
    tokens: slice
    states: slice
    keys_from: int
    continues: bool
    ends: bool
    cu_seqlens: Tensor | None


def cut(batch: int, length: int, cu_seqlens: Tensor | None, *, most: int | None) -> list[Piece]:
    """The pieces of [batch, length] tokens, at most `most` each (None: all in one).

    A row or sequence is cut only if it is longer than a piece. Rows past the last packed sequence form a
    piece without sequences.

    Raises:
        ValueError: cu_seqlens is not int32 [n + 1], or its values are read to cut it and are not what the ops ask for.
    """
    if cu_seqlens is not None and (cu_seqlens.dtype != torch.int32 or cu_seqlens.dim() != 1 or len(cu_seqlens) == 0):
        raise ValueError(
            f"cu_seqlens must be int32 of shape [sequences + 1], got {cu_seqlens.dtype} of {list(cu_seqlens.shape)}"
        )
    if most is None or batch * length <= most:
        everything = slice(None)
        return [Piece(everything, everything, everything, 0, False, True, cu_seqlens)]
    return list(_dense(batch, length, most) if cu_seqlens is None else _packed(length, cu_seqlens, most))


def _dense(batch: int, length: int, most: int) -> Iterator[Piece]:
    if length > most:
        for row in range(batch):
            rows = slice(row, row + 1)
            yield from _parts(rows, rows, 0, length, most)
        return
    group = most // length
    for row in range(0, batch, group):
        rows = slice(row, min(row + group, batch))
        yield Piece(rows, slice(0, length), rows, 0, False, True, None)


def _packed(length: int, cu_seqlens: Tensor, most: int) -> Iterator[Piece]:
    starts = _checked_starts(length, cu_seqlens)
    count, first = len(starts) - 1, 0
    while first < count:
        last = first
        while last < count and starts[last + 1] - starts[first] <= most:
            last += 1
        if last == first:  # longer than a piece
            yield from _parts(slice(0, 1), slice(first, first + 1), starts[first], starts[first + 1], most)
            first += 1
        else:
            tokens = slice(starts[first], starts[last])
            inside = cu_seqlens[first : last + 1] - starts[first]
            yield Piece(slice(0, 1), tokens, slice(first, last), tokens.start, False, True, inside)
            first = last
    if starts[-1] < length:
        none = slice(count, count)
        yield Piece(slice(0, 1), slice(starts[-1], length), none, starts[-1], False, True, cu_seqlens.new_zeros(1))


def _checked_starts(length: int, cu_seqlens: Tensor) -> list[int]:
    starts: list[int] = cu_seqlens.tolist()
    if starts[0] != 0:
        raise ValueError(f"cu_seqlens must start at 0, got {starts[0]}")
    for index, (start, end) in enumerate(pairwise(starts)):
        if end < start:
            raise ValueError(f"cu_seqlens must never decrease, got {end} after {start} at index {index + 1}")
    if starts[-1] > length:
        raise ValueError(f"cu_seqlens must end at or below hidden's {length} rows, got {starts[-1]}")
    return starts


def _parts(rows: slice, states: slice, begin: int, end: int, most: int) -> Iterator[Piece]:
    for start in range(begin, end, most):
        stop = min(start + most, end)
        yield Piece(rows, slice(start, stop), states, begin, start > begin, stop == end, None)


def may_cut(hidden: Tensor) -> bool:
    """Whether pieces pay: on a CPU, where nothing is recorded for a backward pass or a graph."""
    return hidden.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
