"""causal_conv1d against python_reference."""

from __future__ import annotations

import pytest
import torch

import python_reference as reference
from hymba_ops import functional as F

from kernel_cases import (
    DTYPES,
    LAYOUTS,
    assert_compiles_once,
    assert_threads_do_not_matter,
    bad_input,
    cu_seqlens,
    dense,
    randn,
)
from tolerance import check_against_reference

CHUNK = 32  # csrc/cpu/causal_conv1d.cpp


def make_inputs(T, *, B=1, C=37, K=4, dtype=torch.float32, layout=dense, seed=0):
    x = layout(randn(B, T, C, dtype=dtype, seed=seed))
    return x, layout(randn(C, K, dtype=dtype, seed=seed + 1)), randn(C, dtype=dtype, seed=seed + 2)


def check(*args, dtype, **kwargs):
    return check_against_reference(
        F.causal_conv1d, reference.causal_conv1d, *args, dtype=dtype, names=("out", "final_state"),
        return_final_state=True, **kwargs,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("K", range(1, 9), ids=lambda k: f"K{k}")
def test_matches_reference(K, layout, dtype):
    x, weight, bias = make_inputs(70, B=2, K=K, dtype=dtype, layout=layout)
    state = layout(randn(2, K - 1, 37, dtype=dtype, seed=5)) if K > 1 else None
    check(x, weight, bias, dtype=dtype, initial_state=state)


@pytest.mark.parametrize("activation", ["silu", None])
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no-bias"])
def test_activation_and_bias(activation, with_bias):
    x, weight, bias = make_inputs(20)
    check(x, weight, bias if with_bias else None, dtype=torch.float32, activation=activation)


@pytest.mark.parametrize("T", [0, 1, 2, 3, 4, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK])
@pytest.mark.parametrize("C", [1, 7, 8, 9, 15, 16, 17, 64], ids=lambda c: f"C{c}")
def test_sizes_around_chunks_and_vectors(T, C):
    check(*make_inputs(T, B=2, C=C), dtype=torch.float32)


@pytest.mark.parametrize("K", [1, 2, 4, 8], ids=lambda k: f"K{k}")
def test_split_anywhere_equals_whole(K):
    x, weight, bias = make_inputs(12, K=K)
    whole, last = F.causal_conv1d(x, weight, bias, return_final_state=True)
    for cut in range(13):
        head, state = F.causal_conv1d(x[:, :cut], weight, bias, return_final_state=True)
        tail, state = F.causal_conv1d(x[:, cut:], weight, bias, initial_state=state, return_final_state=True)
        assert torch.equal(torch.cat([head, tail], 1), whole) and torch.equal(state, last)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("with_state", [True, False], ids=["state", "no-state"])
def test_packed_matches_reference(with_state, layout, dtype):
    x, weight, bias = make_inputs(80, dtype=dtype, layout=layout)  # 6 rows belong to no sequence
    state = layout(randn(5, 3, 37, dtype=dtype, seed=7)) if with_state else None
    out, _ = check(x, weight, bias, dtype=dtype, initial_state=state, cu_seqlens=cu_seqlens(33, 0, 1, 2, 38))
    assert (out[:, 74:] == 0).all()


def test_packed_equals_singles_bitwise():
    lengths = (33, 0, 1, 2, 44)
    x, weight, bias = make_inputs(80)
    states, starts = randn(5, 3, 37, seed=7), cu_seqlens(*lengths)
    packed, last = F.causal_conv1d(x, weight, bias, initial_state=states, cu_seqlens=starts, return_final_state=True)
    for i in range(len(lengths)):
        rows = slice(*starts[i : i + 2].tolist())
        single = F.causal_conv1d(x[:, rows], weight, bias, initial_state=states[i : i + 1], return_final_state=True)
        assert torch.equal(packed[:, rows], single[0]) and torch.equal(last[i : i + 1], single[1])
    assert torch.equal(last[1], states[1])  # the empty sequence


def test_neighbours_do_not_matter():
    x, weight, bias = make_inputs(40)
    clean = F.causal_conv1d(x[:, :15], weight, bias)
    x[:, 15:] = float("nan")
    assert torch.equal(F.causal_conv1d(x, weight, bias, cu_seqlens=cu_seqlens(15, 25))[:, :15], clean)


def test_float32_parameters_beside_bfloat16():
    x, _, _ = make_inputs(20, dtype=torch.bfloat16)
    weight, bias = randn(37, 4, seed=1), randn(37, seed=2)
    out = F.causal_conv1d(x, weight, bias)
    exact = reference.causal_conv1d(x.double(), weight.double(), bias.double())
    assert out.dtype == torch.bfloat16
    assert ((out.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-6).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_nan_and_inf_reach_what_sees_them(value):
    x, weight, bias = make_inputs(20)
    x[0, 7, 5] = value
    check(x, weight.abs(), bias, dtype=torch.float32)


def test_threads_do_not_change_bits():
    x, weight, bias = make_inputs(300, C=320)
    assert_threads_do_not_matter(lambda: F.causal_conv1d(x, weight, bias))


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_opcheck(packed):
    x, weight, bias = make_inputs(20)
    starts, state = (cu_seqlens(12, 0, 8), randn(3, 3, 37)) if packed else (None, None)
    args = (x, weight, bias, True, state, starts, True)
    torch.library.opcheck(torch.ops.hymba_ops.causal_conv1d.default, args)


def test_compiles_once_for_all_lengths():
    def f(x, weight, bias):
        return F.causal_conv1d(x * 2, weight, bias, return_final_state=True)

    assert_compiles_once(f, make_inputs, (40, 17, 90))


def test_backward_is_refused_by_name():
    x, weight, bias = make_inputs(5)
    with pytest.raises(NotImplementedError, match="hymba_ops::causal_conv1d has no backward"):
        F.causal_conv1d(x, weight.requires_grad_(), bias).sum().backward()


BAD_INPUTS = [
    bad_input({"x": torch.zeros(6, 8)}, ValueError, r"x must have shape \[B, T, C\], got \[6, 8\]"),
    bad_input({"x": torch.zeros(2, 6, 8, dtype=torch.int64)}, ValueError, r"x must be float16.*, got int64"),
    bad_input({"x": torch.zeros(2, 8, 6).mT}, ValueError, r"x must have a contiguous last .*got stride 6"),
    bad_input({"weight": torch.zeros(7, 4)}, ValueError, r"weight must have shape \[C, K\] = \[8, \*\], got \[7, 4\]"),
    bad_input({"weight": torch.zeros(8, 1, 4)}, ValueError, r"weight must have shape .*got \[8, 1, 4\]"),
    bad_input({"weight": torch.zeros(8, 9)}, ValueError, r"weight must have a width of 1 to 8, got 9"),
    bad_input({"weight": torch.zeros(8, 0)}, ValueError, r"weight must have a width of 1 to 8, got 0"),
    bad_input({"weight": torch.zeros(8, 4).half()}, ValueError, r"weight must have x's dtype float32 .*got float16"),
    bad_input({"bias": torch.zeros(9)}, ValueError, r"bias must have shape \[C\] = \[8\], got \[9\]"),
    bad_input(
        {"initial_state": torch.zeros(2, 4, 8)}, ValueError, r"initial_state must .* = \[2, 3, 8\], got \[2, 4, 8"
    ),
    bad_input({"initial_state": torch.zeros(2, 3, 8).half()}, ValueError, r"initial_state must have x's .*got float16"),
    bad_input({"cu_seqlens": cu_seqlens(6)}, ValueError, r"x must have batch size 1 where cu_seqlens is given, got 2"),
    bad_input({"x": torch.zeros(1, 6, 8), "cu_seqlens": cu_seqlens(7)}, ValueError, r"cu_seqlens must end at .*got 7"),
    bad_input({"activation": "gelu"}, ValueError, r"activation must be 'silu' or None, got 'gelu'"),
    bad_input({"x": 3}, TypeError, r"'Tensor' for argument 'x'.*int"),
    bad_input({"bias": "none"}, TypeError, r"argument 'bias'.*str"),
]


@pytest.mark.parametrize("change,error,message", BAD_INPUTS)
def test_bad_input_is_refused(change, error, message):
    arguments = {"x": torch.zeros(2, 6, 8), "weight": torch.zeros(8, 4), **change}
    with pytest.raises(error, match=message):
        F.causal_conv1d(arguments.pop("x"), arguments.pop("weight"), arguments.pop("bias", None), **arguments)
