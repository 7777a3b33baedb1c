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


# Times log2(e), by which softmax in powers of two multiplies them, the last ones are just finite in float32. Around 1e4
# a float32 score's rounding shows in the probabilities, the plain form's as well; from 1e6 on one of them is all.
LARGE_SCORES = [sign * size for size in (1e2, 1e6, 1e8, 1e10, 1e16, 2e38) for sign in (1, -1)]


def with_large_scores(q, k, v, largest):
    """At scale 1 all scores have the sign of `largest`, and the one farthest from zero is that, but for the rounding of
    the inputs. Below zero, a row's maximum is far from zero as well."""
    q, k = q.abs(), k.abs()
    scores = torch.einsum("bthd,bshd->bhts", q.double(), k.double().repeat_interleave(q.shape[2] // k.shape[2], 2))
    size = (abs(largest) / scores.max().item()) ** 0.5
    return q * size, k * (size if largest > 0 else -size), v


def check(ops, *args, dtype, **kwargs):
    return check_against_reference(
        ops.attention, reference.attention, *args, dtype=dtype, names=("out", "lse"), return_lse=True, **kwargs
    )
