"""decode_branches: the bits of decode_attention and of mamba_update, which have their own tests, in one call."""

from __future__ import annotations

import pytest
import test_decode_attention
import test_mamba_update
import torch
from test_decode_attention import int32
from test_mamba_update import STATES

import python_reference as reference
from hymba_ops import functional as F

from kernel_cases import DTYPES, bad_input

CACHES = ("k_cache", "v_cache")
# Of 64 channels, and 300, for which no one kernel does the SSM branch.
SIZES = [pytest.param({"C": 64}, id="one-kernel"), pytest.param({"C": 300}, id="single-ops")]


def make_inputs(lengths, n=1, *, dtype=torch.bfloat16, page=None, borrows=False, C=64, **kwargs):
    """Keyword arguments of attention, and of the SSM branch."""
    attention = test_decode_attention.make_inputs(lengths, n, dtype=dtype, page=page, borrows=borrows, **kwargs)
    return attention, test_mamba_update.make_inputs(len(lengths), n, C=C, dtype=dtype)


def fresh(attention, mamba):
    """Both with caches and states of their own."""
    return test_decode_attention.cloned(attention), mamba | {name: mamba[name].clone() for name in STATES}


def same(a, b):
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def check(ops, inputs, **common):
    """Equal to the bit, caches and states too."""
    attention, mamba = fresh(*inputs)
    results = ops.decode_branches(**attention, **mamba, **common)
    alone_attention, alone_mamba = fresh(*inputs)
    expected = (ops.decode_attention(**alone_attention, **common), ops.mamba_update(**alone_mamba, **common))
    for name, a, b in zip(("attn", "ssm"), results, expected, strict=True):
        assert same(a, b), name
    for name in CACHES:
        assert same(attention[name], alone_attention[name]), name
    for name in STATES:
        assert torch.equal(mamba[name], alone_mamba[name]), name
    return results


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("page", [None, 16], ids=["ring", "pages"])
@pytest.mark.parametrize("lengths,n", [((150,), 1), ((0, 9, 40), 4), ((5,), 16)], ids=["1x1", "3x4", "1x16"])
def test_as_alone(ops, lengths, n, page, sizes, dtype):
    check(ops, make_inputs(lengths, n, page=page, dtype=dtype, **sizes))


@pytest.mark.parametrize("sizes", SIZES)
def test_slots_with_padding_rows(ops, sizes):
    check(ops, make_inputs((3, 50, 7), 2, **sizes), slots=int32(2, -1, 0))


def test_a_borrowing_layer(ops):
    check(ops, make_inputs((3, 50), 2, borrows=True))


@pytest.mark.parametrize("sizes", SIZES)
def test_counters_may_be_the_callers(ops, sizes):
    inputs = make_inputs((30, 8), 2, **sizes)
    counters = torch.zeros(2 + 2 * 2 * 5, dtype=torch.int32, device=inputs[0]["q"].device)
    attention, mamba = fresh(*inputs)
    expected = ops.decode_branches(**attention, **mamba)
    for _ in range(2):
        attention, mamba = fresh(*inputs)
        results = ops.decode_branches(**attention, **mamba, counters=counters)
        assert all(same(a, b) for a, b in zip(results, expected, strict=True))
        assert not counters.any()


def test_no_rows(ops):
    attention, mamba = make_inputs((3,), 1)
    attention |= {name: attention[name][:0] for name in ("q", "k", "v")}
    mamba |= {name: mamba[name][:0] for name in ("x", "z")}
    states = {name: mamba[name].clone() for name in STATES}
    attn, ssm = ops.decode_branches(**attention, **mamba, slots=int32())
    assert attn.shape == (0, 1, 5, 32) and ssm.shape == (0, 1, 64)
    assert all(torch.equal(mamba[name], state) for name, state in states.items())


def test_the_reference_is_both_ops():
    inputs = make_inputs((30, 8), 2, dtype=torch.float64)
    attention, mamba = fresh(*inputs)
    results = F.decode_branches(**attention, **mamba)
    attention, mamba = fresh(*inputs)
    for a, b in zip(results, reference.decode_branches(**attention, **mamba), strict=True):
        torch.testing.assert_close(a, b)


ORDER = [
    "q", "k", "v", "k_cache", "v_cache", "lengths", "slots", "block_table", "meta_k", "meta_v", "window", "scale",
    "inv_freq", "x", "z", "conv_state", "ssm_state", "conv_weight", "conv_bias", "x_proj_weight", "dt_proj_weight",
    "dt_bias", "A", "D", "dt_norm", "B_norm", "C_norm", "eps", "counters",
]  # fmt: skip


def test_opcheck():
    attention, mamba = make_inputs((30, 8), 2, dtype=torch.float32)
    arguments = attention | mamba | {"eps": 1e-6, "counters": torch.zeros(40, dtype=torch.int32)}
    torch.library.opcheck(torch.ops.hymba_ops.decode_branches.default, tuple(arguments.get(name) for name in ORDER))


BAD_INPUTS = [
    bad_input({"q": torch.zeros(2, 17, 5, 16)}, ValueError, r"q must have 1 to 16 tokens a row, got 17"),
    bad_input({"x": torch.zeros(2, 3, 64), "z": torch.zeros(2, 3, 64)}, ValueError, r"x must have shape \[B, n, C\]"),
    bad_input({"x": torch.zeros(2, 2, 64).half()}, ValueError, r"x must have q's dtype .*got float16"),
    bad_input({"counters": torch.zeros(21, dtype=torch.int32)}, ValueError, r"counters must have at least 22 elements"),
]


@pytest.mark.parametrize("change,error,message", BAD_INPUTS)
def test_bad_input_is_refused_and_nothing_changed(change, error, message):
    attention, mamba = make_inputs((30, 8), 2, dtype=torch.float32)
    arguments = attention | mamba
    before = {name: arguments[name].clone() for name in (*CACHES, *STATES)}
    with pytest.raises(error, match=f"decode_branches: .*{message}"):
        F.decode_branches(**arguments | change)
    assert all(same(arguments[name], value) for name, value in before.items())


def test_gradients_are_refused_by_name():
    attention, mamba = make_inputs((30, 8), 2, dtype=torch.float32)
    with pytest.raises(ValueError, match="decode_branches: x must not require grad"):
        F.decode_branches(**attention, **mamba | {"x": mamba["x"].requires_grad_()})
