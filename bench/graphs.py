"""A call as a CUDA graph: its launches are recorded once and replayed; the host's time for them does not count."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.runner import Call

_WARM_UP = 3  # as torch's documentation of CUDA graphs has it


def captured(call: Callable[[], Tensor]) -> tuple[Call, Tensor]:
    """The replay of call() on the same tensors, and the tensor into which each replay writes the result.

    It is called a few times before, on a stream of its own: libraries set themselves up, compilers compile.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph.replay, result
