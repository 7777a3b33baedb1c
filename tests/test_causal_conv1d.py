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
    strided,
    unaligned,
)
from tolerance import check_against_reference

CHUNK = 32  # of both kernels
WIDTHS = [pytest.param(C, id=f"C{C}") for C in (37, 40)]  # the CUDA kernel takes rows of 37 one by one, of 40 in packs


def make_inputs(T, *, B=1, C=37, K=4, dtype=torch.float32, layout=dense, seed=0):
    x = layout(randn(B, T, C, dtype=dtype, seed=seed))
    return x, layout(randn(C, K, dtype=dtype, seed=seed + 1)), randn(C, dtype=dtype, seed=seed + 2)


def check(ops, *args, dtype, **kwargs):
    return check_against_reference(
        ops.causal_conv1d, reference.causal_conv1d, *args, dtype=dtype, names=("out", "final_state"),
        return_final_state=True, **kwargs,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("K", range(1, 9), ids=lambda k: f"K{k}")
@pytest.mark.parametrize("C", WIDTHS)
def test_matches_reference(ops, C, K, layout, dtype):
    x, weight, bias = make_inputs(70, B=2, C=C, K=K, dtype=dtype, layout=layout)
    state = layout(randn(2, K - 1, C, dtype=dtype, seed=5)) if K > 1 else None
    check(ops, x, weight, bias, dtype=dtype, initial_state=state)


@pytest.mark.parametrize("K", [2, 3, 4, 5])
def test_strided_input_beside_a_contiguous_filter(ops, K):
    x, weight, bias = make_inputs(70, B=2, C=40, K=K)
    state = randn(2, K - 1, 40, seed=5)
    check(ops, strided(x), weight, bias, dtype=torch.float32, initial_state=strided(state))
    check(ops, x, weight, bias, dtype=torch.float32, initial_state=unaligned(state))


@pytest.mark.parametrize("K", [4, 5])
@pytest.mark.parametrize("C", WIDTHS)
@pytest.mark.parametrize("activation", ["silu", None])
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no-bias"])
def test_activation_and_bias(ops, activation, with_bias, C, K):
    x, weight, bias = make_inputs(20, C=C, K=K)
    check(ops, x, weight, bias if with_bias else None, dtype=torch.float32, activation=activation)


@pytest.mark.parametrize("T", [0, 1, 2, 3, 4, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK])
@pytest.mark.parametrize("C", [1, 7, 8, 9, 15, 16, 17, 64], ids=lambda c: f"C{c}")
def test_sizes_around_chunks_and_vectors(ops, T, C):
    check(ops, *make_inputs(T, B=2, C=C), dtype=torch.float32)


@pytest.mark.parametrize("K", [1, 2, 4, 8], ids=lambda k: f"K{k}")
@pytest.mark.parametrize("C", WIDTHS)
def test_split_anywhere_equals_whole(ops, C, K):
    x, weight, bias = make_inputs(12, C=C, K=K)
    whole, last = ops.causal_conv1d(x, weight, bias, return_final_state=True)
    for cut in range(13):
        head, state = ops.causal_conv1d(x[:, :cut], weight, bias, return_final_state=True)
        tail, state = ops.causal_conv1d(x[:, cut:], weight, bias, initial_state=state, return_final_state=True)
        assert torch.equal(torch.cat([head, tail], 1), whole) and torch.equal(state, last)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("with_state", [True, False], ids=["state", "no-state"])
@pytest.mark.parametrize("C", WIDTHS)
def test_packed_matches_reference(ops, C, with_state, layout, dtype):
    x, weight, bias = make_inputs(80, C=C, dtype=dtype, layout=layout)  # 6 rows belong to no sequence
    state = layout(randn(5, 3, C, dtype=dtype, seed=7)) if with_state else None
    out, _ = check(ops, x, weight, bias, dtype=dtype, initial_state=state, cu_seqlens=cu_seqlens(33, 0, 1, 2, 38))
    assert (out[:, 74:] == 0).all()


PACKINGS = [
    (),
    (0,),
    (0, 0, 5),
    (CHUNK, CHUNK),
    (2 * CHUNK, 0),
    (CHUNK - 1, 1, 0, CHUNK + 1),
    (1,) * 40,
    (0,) * 9 + (3,),
]


@pytest.mark.parametrize("tail", [0, 1, CHUNK])
@pytest.mark.parametrize("lengths", PACKINGS, ids=lambda lengths: "-".join(map(str, lengths[:10])))
def test_packings(ops, lengths, tail):
    x, weight, bias = make_inputs(sum(lengths) + tail, C=8)
    state = randn(len(lengths), 3, 8, seed=7)
    out, _ = check(ops, x, weight, bias, dtype=torch.float32, initial_state=state, cu_seqlens=cu_seqlens(*lengths))
    assert (out[:, sum(lengths) :] == 0).all()


@pytest.mark.parametrize("C", WIDTHS)
def test_packed_equals_singles_bitwise(ops, C):
    lengths = (33, 0, 1, 2, 44)
    x, weight, bias = make_inputs(80, C=C)
    states, starts = randn(5, 3, C, seed=7), cu_seqlens(*lengths)
    packed, last = ops.causal_conv1d(x, weight, bias, initial_state=states, cu_seqlens=starts, return_final_state=True)
    for i in range(len(lengths)):
        rows = slice(*starts[i : i + 2].tolist())
        single = ops.causal_conv1d(x[:, rows], weight, bias, initial_state=states[i : i + 1], return_final_state=True)
        assert torch.equal(packed[:, rows], single[0]) and torch.equal(last[i : i + 1], single[1])
    assert torch.equal(last[1], states[1])  # the empty sequence


@pytest.mark.parametrize("C", WIDTHS)
def test_neighbours_do_not_matter(ops, C):
    x, weight, bias = make_inputs(40, C=C)
    clean = ops.causal_conv1d(x[:, :15], weight, bias)
    x[:, 15:] = float("nan")
    assert torch.equal(ops.causal_conv1d(x, weight, bias, cu_seqlens=cu_seqlens(15, 25))[:, :15], clean)


@pytest.mark.parametrize("K", [3, 4, 5])
@pytest.mark.parametrize("C", WIDTHS)
def test_float32_parameters_beside_bfloat16(ops, C, K):
    x, _, _ = make_inputs(20, C=C, dtype=torch.bfloat16)
    weight, bias = randn(C, K, seed=1), randn(C, seed=2)
    out = ops.causal_conv1d(x, weight, bias)
    exact = reference.causal_conv1d(x.double(), weight.double(), bias.double())
    assert out.dtype == torch.bfloat16
    assert ((out.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-6).all()


@pytest.mark.parametrize("K", [3, 4])
@pytest.mark.parametrize("C", WIDTHS)
def test_float32_parameters_beside_float64(ops, C, K):
    x, weight, bias = make_inputs(20, C=C, K=K)
    out = ops.causal_conv1d(x.double(), weight, bias)
    exact = reference.causal_conv1d(x.double(), weight.double(), bias.double())
    torch.testing.assert_close(out, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("K", [2, 4, 5])
@pytest.mark.parametrize("C", WIDTHS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_nan_and_inf_reach_what_sees_them(ops, value, C, K):
    x, weight, bias = make_inputs(20, C=C, K=K)
    x[0, 7, 5] = value
    check(ops, x, weight.abs(), bias, dtype=torch.float32)


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
