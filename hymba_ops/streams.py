"""Two kernels of one computation side by side: on a GPU the second on a stream of its own.

Fork and join are events between streams: the host never waits, and in a CUDA graph they become edges. Memory needs no
more than these edges, because torch's allocator gives a freed block again only to the stream that it was made on:

- What the current stream made and the side stream reads must live until the join, which orders whatever comes after on
  the current stream behind the side stream's work. `side_by_side` holds it, as what `beside` refers to.
- What the side stream made and the current stream reads goes back to the side stream, whose next work comes behind the
  next fork, which waits for all that the current stream has been given until then. This takes a side stream that no
  other stream forks to and no other thread uses: so there is one for each current stream in each thread. Nor may
  another thread get it: what the side stream made does not outlive the call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import torch

_First = TypeVar("_First")
_Second = TypeVar("_Second")

# Lower is more urgent: its blocks go first wherever an SM has room (docs/cuda_layer.md).
_PRIORITY = -1


class _Sides(threading.local):
    """A thread's side streams, by the streams that fork to them."""

    def __init__(self) -> None:
        self.of: dict[torch.cuda.Stream, torch.cuda.Stream] = {}


_sides = _Sides()


def side_by_side(
    device: torch.device, here: Callable[[], _First], beside: Callable[[], _Second]
) -> tuple[_First, _Second]:
    """here() and beside(), which must not need each other's results.

    On a GPU `beside` runs on the side stream of `device`'s current stream, between a fork in front of `here` and a join
    behind it; the join comes also when either raises. Elsewhere, while torch.compile traces (it would have to model
    streams) and where gradients may be recorded (backward would read saved tensors on the side stream that the current
    one frees) both run in place.
    """
    if not _may_fork(device):
        first = here()
        del here
        return first, beside()
    current = torch.cuda.current_stream(device)
    side = _side_of(current)
    side.wait_stream(current)
    try:
        first = here()
        del here  # and the tensors that only it needed
        with torch.cuda.stream(side):
            second = beside()
    finally:
        current.wait_stream(side)
    return first, second


def _may_fork(device: torch.device) -> bool:
    # CUDA is not initialised where tensors only say that they are on a GPU (torch's FakeTensorMode).
    return (
        device.type == "cuda"
        and not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and torch.cuda.is_initialized()
    )


def _side_of(current: torch.cuda.Stream) -> torch.cuda.Stream:
    """Made once for each current stream of a thread."""
    if current not in _sides.of:
        _sides.of[current] = torch.cuda.Stream(current.device, priority=_PRIORITY)
    return _sides.of[current]
