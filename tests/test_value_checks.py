"""What is refused for the values of cu_seqlens, slots and counters: on the CPU always, on CUDA where HYMBA_OPS_CHECK=1 asks."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from hymba_ops import functional as F

from kernel_cases import DEVICE, randn, skip_unless_values_go_unread


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


# Each gives a call without arguments: making inputs copies to the GPU, for which the host waits too.


def conv(starts):
    return partial(F.causal_conv1d, randn(1, 5, 8), randn(8, 4, seed=1), cu_seqlens=starts)


def scan(starts):
    x, dt, B, C = (randn(1, 5, size, seed=seed) for seed, size in enumerate((8, 8, 4, 4)))
    return partial(F.selective_scan, x, dt, -randn(8, 4).exp(), B, C, cu_seqlens=starts)


def attention(starts, starts_k):
    q, k, v = randn(1, 5, 2, 8), randn(1, 6, 1, 8, seed=1), randn(1, 6, 1, 8, seed=2)
    return partial(F.attention, q, k, v, cu_seqlens=starts, cu_seqlens_k=starts_k)


def conv_update(slots_in, slots_out):
    x, state = randn(3, 8), randn(4, 3, 8, seed=1)
    return partial(F.causal_conv1d_update, x, state, randn(8, 4, seed=2), slots_in=slots_in, slots_out=slots_out)


def scan_update(slots_in, slots_out):
    x, dt, B, C = (randn(3, size, seed=seed) for seed, size in enumerate((8, 8, 4, 4)))
    state, A = randn(4, 8, 4, seed=5), -randn(8, 4).exp()
    return partial(F.selective_state_update, state, x, dt, A, B, C, slots_in=slots_in, slots_out=slots_out)


def mamba_update(slots):
    x, z, state = randn(3, 8), randn(3, 8, seed=1), randn(4, 8, 4, seed=3)
    weights = randn(8, 4, seed=4), None, randn(12, 8, seed=5), randn(8, 4, seed=6), randn(8, seed=7)
    conv_state, A, D = randn(4, 3, 8, seed=2), -randn(8, 4).exp(), randn(8, seed=9)
    return partial(F.mamba_update, x, z, conv_state, state, *weights, A, D, slots=slots)


def gated_mlp(counters):
    x, norm_weight, down = randn(3, 8), randn(8, seed=1), randn(8, 16, seed=4)
    return partial(F.gated_mlp, x, norm_weight, randn(16, 8, seed=2), randn(16, 8, seed=3), down, counters=counters)


OPS = {
    "causal_conv1d": (conv, [(0, 2, 5)]),
    "selective_scan": (scan, [(0, 0, 4)]),
    "attention": (attention, [(0, 2, 5), (0, 3, 6)]),
    "causal_conv1d_update": (conv_update, [(3, 0, -1), (3, 1, 2)]),
    "selective_state_update": (scan_update, [(3, 0, -1), (3, 1, 2)]),
    "mamba_update": (mamba_update, [(3, 0, -1)]),
    "gated_mlp": (gated_mlp, [(0, 0, 0, 9)]),
}
WRONG = [
    ("causal_conv1d", [(1, 2, 5)], "cu_seqlens must start at 0, got 1"),
    ("causal_conv1d", [(0, 2, 6)], "cu_seqlens must end at or below x's 5 rows, got 6"),
    ("selective_scan", [(0, 3, 2)], "cu_seqlens must never decrease, got 2 after 3 at index 2"),
    ("attention", [(0, 5, 4), (0, 3, 6)], "cu_seqlens must never decrease, got 4 after 5 at index 2"),
    ("attention", [(0, 2, 5), (0, 3, 7)], "cu_seqlens_k must end at or below k's 6 rows, got 7"),
    ("attention", [(0, 2, 5), (0, 4, 6)], "cu_seqlens_k must give sequence 1 at least its 3 queries' positions, got 2"),
    ("causal_conv1d_update", [(3, 4, -1), (3, 1, 2)], "slots_in must have values from -1 to 3 .*, got 4 at index 1"),
    ("causal_conv1d_update", [(3, 0, -1), (3, 1, -2)], "slots_out must have values from -1 to 3 .*, got -2 at index 2"),
    (
        "selective_state_update",
        [(3, 0, 1), (2, 2, 1)],
        "slots_out must name each slot once, got slot 2 in rows 0 and 1",
    ),
    (
        "selective_state_update",
        [(3, 0, 1), (0, 2, 1)],
        "slots_out must name no slot that another row reads, got slot 0",
    ),
    ("mamba_update", [(3, 4, -1)], "slots must have values from -1 to 3 .*, got 4 at index 1"),
    ("mamba_update", [(3, 0, 3)], "slots must name each slot once, got slot 3 in rows 0 and 2"),
    ("gated_mlp", [(0, -5)], "counters must hold zeros between calls, got -5 at index 1"),
]


def prepared(op, values):
    return OPS[op][0](*(int32(*row) for row in values))


@pytest.mark.parametrize("wanted", ["1"] if DEVICE == "cuda" else [None, "0", "1"])
@pytest.mark.parametrize("op,values,message", WRONG)
def test_wrong_values_are_refused(op, values, message, wanted, monkeypatch):
    monkeypatch.delenv("HYMBA_OPS_CHECK", raising=False)
    if wanted is not None:
        monkeypatch.setenv("HYMBA_OPS_CHECK", wanted)
    call = prepared(op, values)
    with pytest.raises(ValueError, match=f"^{op}: {message}"):
        call()


@pytest.mark.parametrize("op", OPS)
def test_right_values_are_not(op, monkeypatch):
    monkeypatch.setenv("HYMBA_OPS_CHECK", "1")
    prepared(op, OPS[op][1])()


BIG, SMALL = 2**31 - 1, -(2**31)


@pytest.mark.parametrize("op,values", [
    ("causal_conv1d", [(SMALL, 3, 1, BIG)]),
    ("causal_conv1d", [(4, BIG, 2, 5)]),
    ("selective_scan", [(SMALL, 3, 1, BIG)]),
    ("selective_scan", [(4, BIG, -7, 5)]),
    ("attention", [(SMALL, 3, 1, BIG), (BIG, 3, SMALL, 6)]),
    ("attention", [(4, BIG, 2, 5), (0, 1, 1, 1)]),
    ("causal_conv1d_update", [(BIG, 0, -7), (3, SMALL, 9)]),
    ("selective_state_update", [(4, 0, SMALL), (3, 4, BIG)]),
    ("mamba_update", [(BIG, 4, SMALL)]),
])  # fmt: skip
def test_impossible_values_reach_no_other_memory(ops, op, values):
    """On a GPU nobody reads the values before the kernels do; what comes out is anybody's guess."""
    skip_unless_values_go_unread(ops)
    call = prepared(op, values)
    out = getattr(ops, op)(*call.args, **call.keywords)
    if "update" in op:
        assert (out == 0).all()  # padding rows, all of them


@pytest.mark.parametrize("lengths", [(2100, 5, 40), (0, 700, 2048)])
@pytest.mark.parametrize("wrong", [(0, 5000, -3, 2145), (4000, 1, 7, 2145), (2000, 2000, 10, BIG)])
def test_impossible_values_of_a_scan_in_pieces(ops, lengths, wrong):
    skip_unless_values_go_unread(ops)
    x, dt, B, C = (randn(1, sum(lengths), size, seed=seed) for seed, size in enumerate((8, 8, 4, 4)))
    ops.selective_scan(x, dt, -randn(8, 4).exp(), B, C, cu_seqlens=int32(*wrong))


@pytest.mark.skipif(DEVICE != "cuda", reason="the host waits for a GPU only")
@pytest.mark.parametrize("op", OPS)
def test_the_host_does_not_wait_unless_asked(op, monkeypatch):
    """In this mode torch raises where the host would wait."""
    call = prepared(op, OPS[op][1])
    call()  # what is loaded by a first call
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
        monkeypatch.setenv("HYMBA_OPS_CHECK", "1")
        with pytest.raises(RuntimeError, match="synchronizing"):
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(DEVICE != "cuda", reason="read for CUDA tensors only")
def test_an_unknown_wish_is_refused(monkeypatch):
    monkeypatch.setenv("HYMBA_OPS_CHECK", "yes")
    call = prepared("causal_conv1d", [(0, 5)])
    with pytest.raises(ValueError, match="HYMBA_OPS_CHECK must be 0 or 1, got 'yes'"):
        call()
