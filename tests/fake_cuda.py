"""The modules on tensors that say they are on a GPU (torch's FakeTensorMode): shapes, dtypes and devices, no values.

A read of a value that a GPU would have to be waited for (item, nonzero, equal, a mask as index) raises
DynamicOutputShapeException or DataDependentOutputException, and a mix of devices raises as well.
"""

from __future__ import annotations

import contextlib

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from hymba_ops import HybridMixer


@contextlib.contextmanager
def fake_cuda(monkeypatch):
    """What is made inside is on cuda:0, and modules are made without initial values, which would need a generator."""
    monkeypatch.setattr(HybridMixer, "reset_parameters", lambda self: None)
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, *args, **kwargs: self)
    with FakeTensorMode(), torch.device("cuda", 0), _OperatorsWithoutDevice(), torch.no_grad():
        yield


class _OperatorsWithoutDevice(TorchFunctionMode):
    """x[...], ~x and copy_ as single ops: torch's own ask for CUDA's device guard, which a torch without CUDA lacks."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.__getitem__:
            return _index(*args)
        if func is torch.Tensor.__invert__:
            return torch.bitwise_not(*args)
        if func is torch.Tensor.copy_:
            return torch.ops.aten.copy_(*args)
        return func(*args, **(kwargs or {}))


def _index(x, keys):
    keys = keys if isinstance(keys, tuple) else (keys,)
    if ... in keys:
        at = keys.index(...)
        keys = (*keys[:at], *[slice(None)] * (x.dim() - len(keys) + 1 + keys.count(None)), *keys[at + 1 :])
    dim, tensors = 0, []
    for key in keys:
        if isinstance(key, int):
            x = x.select(dim, key)
            continue
        if key is None:
            x = x.unsqueeze(dim)
        elif isinstance(key, slice):
            x = torch.ops.aten.slice(x, dim, key.start, key.stop, key.step or 1)
        tensors.append(key if isinstance(key, torch.Tensor) else None)
        dim += 1
    return torch.ops.aten.index(x, tensors) if any(t is not None for t in tensors) else x
