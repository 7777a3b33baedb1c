"""norm_average and norm_average_project against python_reference."""

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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_project_matches_reference(layout, dtype):
    inputs = (*make_inputs(2, 3, 48, dtype=dtype, layout=layout), randn(20, 48, dtype=dtype, seed=9, scale=0.2))
    check_against_reference(F.norm_average_project, reference.norm_average_project, *inputs, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "bias,residual", [(True, False), (False, True), (True, True)], ids=["bias", "residual", "both"]
)
def test_project_with_bias_and_residual(bias, residual, layout, dtype):
    inputs = (*make_inputs(2, 30, 48, dtype=dtype, layout=layout), randn(20, 48, dtype=dtype, seed=9, scale=0.2))
    extras = {
        "bias": randn(20, dtype=dtype, seed=10) if bias else None,
        "residual": layout(randn(2, 30, 20, dtype=dtype, seed=11)) if residual else None,
    }
    check_against_reference(F.norm_average_project, reference.norm_average_project, *inputs, dtype=dtype, **extras)


def test_opcheck():
    torch.library.opcheck(torch.ops.hymba_ops.norm_average.default, (*make_inputs(2, 3, 40), 1e-6))
    weight = randn(20, 40, seed=9)
    for extras in ((None, None), (randn(20, seed=10), randn(2, 3, 20, seed=11))):
        args = (*make_inputs(2, 3, 40), weight, *extras, 1e-6)
        torch.library.opcheck(torch.ops.hymba_ops.norm_average_project.default, args)


def test_compiles_once_for_all_lengths():
    weight, bias = randn(40, 40, seed=9), randn(40, seed=10)

    def f(attn, ssm, w1, w2):
        projected = F.norm_average_project(attn, ssm, w1, w2, weight, bias=bias, residual=ssm)
        return F.norm_average(attn + 1, ssm, w1, w2), projected

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


def test_bad_projection_is_refused():
    with pytest.raises(
        ValueError, match=r"norm_average_project: proj_weight must have shape \[O, D\] = \[\*, 8\], got"
    ):
        F.norm_average_project(*make_inputs(2, 8), torch.zeros(5, 9))


BAD_EXTRAS = [
    bad_input({"bias": torch.zeros(4)}, ValueError, r"bias must have shape \[O\] = \[5\], got \[4\]"),
    bad_input(
        {"bias": torch.zeros(5, dtype=torch.float16)}, ValueError, r"bias must have .*dtype float32, got float16"
    ),
    bad_input(
        {"residual": torch.zeros(2, 8)}, ValueError, r"residual must have the result's shape \[2, 5\], got \[2, 8"
    ),
    bad_input({"residual": torch.zeros(2, 5, dtype=torch.float16)}, ValueError, r"residual must have .*got float16"),
    bad_input({"residual": torch.zeros(5, 2).T}, ValueError, r"residual must have a contiguous last .*got stride 2"),
    bad_input({"residual": 1}, TypeError, r"argument 'residual'.*int"),
]


@pytest.mark.parametrize("change,error,message", BAD_EXTRAS)
def test_bad_bias_and_residual_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        F.norm_average_project(*make_inputs(2, 8), torch.zeros(5, 8), **change)


@pytest.mark.parametrize("shape", [(8,), (5, 8), (2, 3, 8), (2, 3, 4, 8), (0, 8), (2, 0, 8)], ids=str)
@pytest.mark.parametrize("outputs", [1, 6, 0])
def test_project_ranks(shape, outputs):
    inputs = (*make_inputs(*shape), randn(outputs, 8, seed=9))
    extras = {"bias": randn(outputs, seed=10), "residual": randn(*shape[:-1], outputs, seed=11)}
    for kwargs in ({}, extras):
        out = check_against_reference(
            F.norm_average_project, reference.norm_average_project, *inputs, dtype=torch.float32, **kwargs
        )
        assert out.shape == (*shape[:-1], outputs)


def test_autocast_leaves_the_dtype_alone():
    inputs = (*make_inputs(3, 8), randn(6, 8, seed=9))
    expected = F.norm_average_project(*inputs)
    with torch.autocast(inputs[0].device.type, dtype=torch.bfloat16):
        assert torch.equal(F.norm_average_project(*inputs), expected)
