"""rms_norm against python_reference."""

from __future__ import annotations

import pytest
import torch

import python_reference as reference
from hymba_ops import functional as F

from kernel_cases import (
    DEVICE,
    DTYPES,
    LAYOUTS,
    assert_compiles_once,
    assert_threads_do_not_matter,
    bad_input,
    odd_rows,
    randn,
    strided,
    unaligned,
)
from tolerance import check_against_reference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("D", [1, 3, 7, 8, 9, 15, 16, 17, 33, 100, 1600], ids=lambda d: f"D{d}")
def test_matches_reference(ops, D, layout, dtype):
    x, weight = layout(randn(2, 3, D, dtype=dtype)), randn(D, dtype=dtype, seed=1)
    check_against_reference(ops.rms_norm, reference.rms_norm, x, weight, dtype=dtype)


# csrc/cuda/rms_norm.cu, float32: up to 64 elements 8 lanes take a row, a block 32 of them; up to 1,024 two warps, a block
# 4; up to 4,096 a block holds one, wider ones it reads twice.
@pytest.mark.parametrize("rows", [3, 4, 5, 31, 32, 33], ids=lambda n: f"rows{n}")
@pytest.mark.parametrize("D", [62, 63, 64, 65, 68], ids=lambda d: f"D{d}")
def test_rows_around_blocks(ops, D, rows):
    check_against_reference(ops.rms_norm, reference.rms_norm, randn(rows, D), randn(D, seed=1), dtype=torch.float32)


@pytest.mark.parametrize("D", [1020, 1023, 1024, 1025, 1028, 4092, 4096, 4097, 4100, 9000], ids=lambda d: f"D{d}")
def test_wide_rows(ops, D):
    check_against_reference(ops.rms_norm, reference.rms_norm, randn(3, D), randn(D, seed=1), dtype=torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [16, 100, 1600, 8200], ids=lambda d: f"D{d}")
def test_layouts_and_neighbours_do_not_change_bits(ops, D, dtype):
    x, weight = randn(9, D, dtype=dtype), randn(D, dtype=dtype, seed=1)
    out = ops.rms_norm(x, weight)
    for other in (strided(x), unaligned(x), odd_rows(x)):
        assert torch.equal(ops.rms_norm(other, weight), out)
    assert torch.equal(ops.rms_norm(x[3:5], weight), out[3:5])


@pytest.mark.parametrize("shape", [(40,), (7, 40), (2, 3, 4, 40), (0, 40)], ids=str)
def test_ranks(ops, shape):
    check_against_reference(ops.rms_norm, reference.rms_norm, randn(*shape), randn(40, seed=1), dtype=torch.float32)


def test_heads_of_a_wider_projection(ops):
    """q as a slice [B, T, H, D] of in_proj's output, as kq_norm reads it."""
    q = randn(2, 5, 200)[..., 16:144].unflatten(-1, (8, 16))
    check_against_reference(ops.rms_norm, reference.rms_norm, q, randn(16, seed=1), dtype=torch.float32, eps=1e-3)


def test_parts_of_x_proj(ops):
    """dt, B and C as the SSM branch norms them: 100, 16 and 16 of 132 columns, aligned to 8 bytes but not to 16."""
    columns = randn(2, 5, 132, dtype=torch.bfloat16)
    for x in columns.split([100, 16, 16], dim=-1):
        weight = randn(x.shape[-1], dtype=torch.bfloat16, seed=1)
        check_against_reference(ops.rms_norm, reference.rms_norm, x, weight, dtype=torch.bfloat16)


@pytest.mark.parametrize("D", [16, 100, 1600, 8200], ids=lambda d: f"D{d}")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32_weight_beside_bfloat16(ops, layout, D):
    x, weight = layout(randn(3, D, dtype=torch.bfloat16)), randn(D, seed=1)
    out = ops.rms_norm(x, weight)
    exact = reference.rms_norm(x.double(), weight.double())
    assert out.dtype == torch.bfloat16
    assert ((out.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-6).all()


@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.5])
def test_eps(ops, eps):
    x, weight = randn(3, 40), randn(40, seed=1)
    check_against_reference(ops.rms_norm, reference.rms_norm, x, weight, dtype=torch.float32, eps=eps)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30], ids=str)
def test_special_values(ops, value):
    x = randn(3, 40)
    x[1, 7] = value
    check_against_reference(ops.rms_norm, reference.rms_norm, x, randn(40, seed=1), dtype=torch.float32)


def test_threads_do_not_change_bits():
    x, weight = randn(700, 320), randn(320, seed=1)
    assert_threads_do_not_matter(lambda: F.rms_norm(x, weight))


def test_opcheck():
    torch.library.opcheck(torch.ops.hymba_ops.rms_norm.default, (randn(2, 3, 40), randn(40, seed=1), 1e-6))


def test_compiles_once_for_all_lengths():
    assert_compiles_once(
        lambda x, w: (F.rms_norm(x * 2, w),), lambda T: (randn(2, T, 40), randn(40, seed=1)), (7, 20, 3)
    )


def test_backward_is_refused_by_name():
    with pytest.raises(NotImplementedError, match="hymba_ops::rms_norm has no backward"):
        F.rms_norm(randn(3, 8).requires_grad_(), randn(8, seed=1)).sum().backward()


BAD_INPUTS = [
    bad_input({"x": torch.zeros(())}, ValueError, r"x must have 1 to 4 dimensions, got \[\]"),
    bad_input({"x": torch.zeros(2, 0)}, ValueError, r"x must have a last dimension of at least 1, got \[2, 0\]"),
    bad_input({"x": torch.zeros(2, 8, dtype=torch.int32)}, ValueError, r"x must be float16.*, got int32"),
    bad_input({"x": torch.zeros(8, 2).mT}, ValueError, r"x must have a contiguous last .*got stride 2"),
    bad_input({"weight": torch.zeros(7)}, ValueError, r"weight must have shape \[D\] = \[8\], got \[7\]"),
    bad_input({"weight": torch.zeros(8, dtype=torch.float64)}, ValueError, r"weight must have x's dtype .*got float64"),
    bad_input({"weight": torch.zeros(8, device="meta")}, ValueError, r"weight must be on x's device cpu, got meta"),
    bad_input({"weight": 1.0}, TypeError, r"'Tensor' for argument 'weight'.*float"),
]


@pytest.mark.skipif(DEVICE != "cpu", reason="the cases hold CPU tensors")
@pytest.mark.parametrize("change,error,message", BAD_INPUTS)
def test_bad_input_is_refused(change, error, message):
    arguments = {"x": torch.zeros(2, 8), "weight": torch.zeros(8), **change}
    with pytest.raises(error, match=message):
        F.rms_norm(*arguments.values())
