"""What the kernel tests share: dtypes, seeded inputs, and memory layouts that kernels must read in place."""

from __future__ import annotations

import os

import pytest
import torch

DTYPES = [
    pytest.param(torch.float32, id="fp32"),
    pytest.param(torch.bfloat16, id="bf16"),
    pytest.param(torch.float16, id="fp16"),
    pytest.param(torch.float64, id="fp64"),
]
# The device that the kernel tests run on; tools/gpu_check.sh sets "cuda".
DEVICE = os.environ.get("HYMBA_OPS_TEST_DEVICE", "cpu")


def randn(*shape, dtype=torch.float32, seed=0, scale=1.0):
    """Seeded normal numbers, the same for every dtype up to rounding."""
    generator = torch.Generator().manual_seed(hash((seed, *shape)) % 2**31)
    return (torch.randn(shape, generator=generator) * scale).to(dtype).to(DEVICE)


def dense(x):
    return x


def strided(x):
    """x as a slice of a wider tensor: the last dimension stays contiguous, the others do not."""
    wide = torch.full((*x.shape[:-1], x.shape[-1] + 24), float("nan"), dtype=x.dtype, device=x.device)
    wide[..., 8 : 8 + x.shape[-1]] = x
    return wide[..., 8 : 8 + x.shape[-1]]


def unaligned(x):
    """x in rows of an odd length whose base is not 16-byte aligned."""
    odd = x.shape[-1] + 1 + x.shape[-1] % 2
    wide = torch.full((x[..., 0].numel() * odd + 1,), float("nan"), dtype=x.dtype, device=x.device)
    view = wide[1:].view(*x.shape[:-1], odd)[..., : x.shape[-1]]
    view.copy_(x)
    return view


LAYOUTS = [pytest.param(f, id=f.__name__) for f in (dense, strided, unaligned)]


def cu_seqlens(*lengths):
    """int32 boundaries of packed sequences of these lengths."""
    return torch.tensor([0, *lengths], dtype=torch.int32, device=DEVICE).cumsum(0, dtype=torch.int32)
