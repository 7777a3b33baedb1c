"""Inputs of attention, and its comparison with the reference."""

from __future__ import annotations

import torch

import python_reference as reference

from kernel_cases import dense, randn
from tolerance import check_against_reference


def make_inputs(T, S=None, *, B=1, heads=(5, 1), dims=(16, 32), dtype=torch.float32, layout=dense, seed=0):
    S = T if S is None else S
    (Hq, Hkv), (Dk, Dv) = heads, dims
    q = randn(B, T, Hq, Dk, dtype=dtype, seed=seed)
    k = randn(B, S, Hkv, Dk, dtype=dtype, seed=seed + 1)
    v = randn(B, S, Hkv, Dv, dtype=dtype, seed=seed + 2)
    return layout(q), layout(k), layout(v)


def check(ops, *args, dtype, **kwargs):
    return check_against_reference(
        ops.attention, reference.attention, *args, dtype=dtype, names=("out", "lse"), return_lse=True, **kwargs
    )
