"""norm_average against python_reference."""

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
    dense,
    odd_rows,
    randn,
    strided,
    unaligned,
)
from tolerance import check_against_reference


def make_inputs(*shape, dtype=torch.float32, layout=dense, f32_weights=False):
    attn = layout(randn(*shape, dtype=dtype, scale=3.0))
    ssm = layout(randn(*shape, dtype=dtype, seed=1, scale=0.2))
    weight_dtype = torch.float32 if f32_weights else dtype
    return attn, ssm, *(randn(shape[-1], dtype=weight_dtype, seed=seed) for seed in (2, 3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("D", [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 80, 3200], ids=lambda d: f"D{d}")
def test_matches_reference(ops, D, layout, dtype):
    check_against_reference(ops.norm_average, reference.norm_average, *make_inputs(2, 3, D, dtype=dtype, layout=layout),
                            dtype=dtype)  # fmt: skip


# csrc/cuda/norm_average.cu: registers hold rows of up to 8 KB in packs; others are read twice.
@pytest.mark.parametrize("D", [2044, 2048, 2052, 4100], ids=lambda d: f"D{d}")
def test_widths_around_what_registers_hold(ops, D):
    check_against_reference(ops.norm_average, reference.norm_average, *make_inputs(2, D), dtype=torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [40, 3200], ids=lambda d: f"D{d}")
def test_layouts_and_neighbours_do_not_change_bits(ops, D, dtype):
    attn, ssm, *weights = make_inputs(5, D, dtype=dtype)
    out = ops.norm_average(attn, ssm, *weights)
    for layout in (strided, unaligned, odd_rows):
        assert torch.equal(ops.norm_average(layout(attn), layout(ssm), *weights), out)
    assert torch.equal(ops.norm_average(attn[2:4], ssm[2:4], *weights), out[2:4])


@pytest.mark.parametrize("shape", [(40,), (7, 40), (2, 3, 40), (2, 3, 4, 40), (0, 40), (2, 0, 40)], ids=str)
def test_ranks(ops, shape):
    check_against_reference(ops.norm_average, reference.norm_average, *make_inputs(*shape), dtype=torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_float32_weights(ops, dtype):
    inputs = make_inputs(5, 40, dtype=dtype, f32_weights=True)
    out = ops.norm_average(*inputs)
    assert out.dtype == dtype
    exact = reference.norm_average(*(x.double() for x in inputs))
    spacing = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float64: 1e-6}[dtype]
    assert ((out.double() - exact).abs() <= spacing * (exact.abs() + exact.square().mean().sqrt())).all()


@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.5])
def test_eps(ops, eps):
    check_against_reference(ops.norm_average, reference.norm_average, *make_inputs(3, 40), dtype=torch.float32, eps=eps)


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_nan_and_inf_stay_in_their_row(ops, value):
    attn, ssm, *weights = make_inputs(3, 40)
    attn[1, 7] = value
    check_against_reference(ops.norm_average, reference.norm_average, attn, ssm, *weights, dtype=torch.float32)


def test_threads_do_not_change_bits():
    inputs = make_inputs(700, 320)
    assert_threads_do_not_matter(lambda: F.norm_average(*inputs))


def test_opcheck():
    torch.library.opcheck(torch.ops.hymba_ops.norm_average.default, (*make_inputs(2, 3, 40), 1e-6))


def test_compiles_once_for_all_lengths():
    def f(attn, ssm, w1, w2):
        return F.norm_average(attn + 1, ssm, w1, w2)

    assert_compiles_once(f, lambda T: make_inputs(2, T, 40), (7, 20, 3))


def test_backward_is_refused_by_name():
    attn, *rest = make_inputs(3, 8)
    with pytest.raises(NotImplementedError, match="hymba_ops::norm_average has no backward"):
        F.norm_average(attn.requires_grad_(), *rest).sum().backward()


X, W = (2, 3, 8), (8,)
BAD_INPUTS = [
    bad_input({"attn": torch.zeros(())}, ValueError, r"attn must have 1 to 4 dimensions, got \[\]"),
    bad_input({"attn": torch.zeros(1, 1, 2, 3, 8)}, ValueError, r"attn must have 1 to 4 dimensions, got \[1, 1, 2, 3"),
    bad_input({"ssm": torch.zeros(2, 4, 8)}, ValueError, r"ssm must have attn's shape \[2, 3, 8\], got \[2, 4, 8\]"),
    bad_input({"ssm": torch.zeros(X, dtype=torch.float16)}, ValueError, r"ssm must have attn's dtype .*got float16"),
    bad_input({"attn": torch.zeros(X, dtype=torch.int32)}, ValueError, r"attn must be float16.*, got int32"),
    bad_input({"attn": torch.zeros(2, 8, 3).mT}, ValueError, r"attn must have a contiguous last .*got stride 3"),
    bad_input({"attn_weight": torch.zeros(7)}, ValueError, r"attn_weight must have shape \[D\] = \[8\], got \[7\]"),
    bad_input({"ssm_weight": torch.zeros(1, 8)}, ValueError, r"ssm_weight must have shape \[D\] = \[8\], got \[1, 8\]"),
    bad_input({"ssm_weight": torch.zeros(W, dtype=torch.float16)}, ValueError, r"ssm_weight must have .*got float16"),
    bad_input({"attn": torch.zeros(2, 0), "ssm": torch.zeros(2, 0)}, ValueError, r"attn must have a last dimension of"),
    bad_input({"ssm": None}, ValueError, r"ssm must be a tensor, got None"),
    bad_input({"eps": "small"}, TypeError, r"argument 'eps'.*str"),
]


@pytest.mark.parametrize("change,error,message", BAD_INPUTS)
def test_bad_input_is_refused(change, error, message):
    arguments = {"attn": torch.zeros(X), "ssm": torch.zeros(X), "attn_weight": torch.zeros(W),
                 "ssm_weight": torch.zeros(W), "eps": 1e-6, **change}  # fmt: skip
    eps = arguments.pop("eps")
    with pytest.raises(error, match=message):
        F.norm_average(*arguments.values(), eps=eps)
