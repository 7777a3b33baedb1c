"""gated_mlp against python_reference: norm, gate and up, down and the residual sum."""

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
    bad_input,
    dense,
    own_products,
    randn,
    skip_if_the_cpus_library_decides,
)
from tolerance import check_against_reference

SHORT_TYPES = [pytest.param(torch.bfloat16, id="bf16"), pytest.param(torch.float16, id="fp16")]


def make_inputs(*shape, inner=40, outputs=24, dtype=torch.float32, layout=dense, residual=True, f32_weights=False):
    """Positional and keyword arguments."""
    lay = lambda t: layout(t) if t.numel() else t  # noqa: E731
    hidden = shape[-1]
    args = (
        lay(randn(*shape, dtype=dtype, scale=3.0)),
        randn(hidden, dtype=torch.float32 if f32_weights else dtype, seed=1),
        lay(randn(inner, hidden, dtype=dtype, seed=2, scale=hidden**-0.5)),
        lay(randn(inner, hidden, dtype=dtype, seed=3, scale=hidden**-0.5)),
        lay(randn(outputs, inner, dtype=dtype, seed=4, scale=inner**-0.5)),
    )
    return args, {"residual": lay(randn(*shape[:-1], outputs, dtype=dtype, seed=5)) if residual else None}


def check(args, kwargs, dtype, ops=F):
    return check_against_reference(ops.gated_mlp, reference.gated_mlp, *args, dtype=dtype, **kwargs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "plain"])
def test_matches_reference(ops, residual, layout, dtype):
    """One kernel on a GPU in 16-bit types, for 6 rows in packs; else three."""
    for shape in ((2, 3, 48), (2, 12, 48)):
        check(*make_inputs(*shape, dtype=dtype, layout=layout, residual=residual), dtype, ops)


@pytest.mark.parametrize("dtype", SHORT_TYPES)
@pytest.mark.parametrize("rows", range(1, 18))
def test_few_rows(ops, rows, dtype):
    skip_if_the_cpus_library_decides(ops)
    check(*make_inputs(rows, 264, inner=104, outputs=40, dtype=dtype), dtype, ops)


# csrc/cuda/gated_mlp.cu: 16 outputs of a block at a time; without packs there is no one kernel.
@pytest.mark.parametrize("inner", [8, 16, 20, 1032, 4104], ids=lambda n: f"I{n}")
@pytest.mark.parametrize("outputs", [1, 8, 9], ids=lambda n: f"O{n}")
def test_few_rows_around_tiles(ops, inner, outputs):
    skip_if_the_cpus_library_decides(ops)
    for rows in (2, 8, 16):
        check(*make_inputs(rows, 16, inner=inner, outputs=outputs, dtype=torch.bfloat16), torch.bfloat16, ops)


@pytest.mark.parametrize("hidden", [8, 12, 248, 264, 515], ids=lambda n: f"K{n}")
def test_few_rows_around_spans(ops, hidden):
    skip_if_the_cpus_library_decides(ops)
    check(*make_inputs(3, hidden, dtype=torch.bfloat16), torch.bfloat16, ops)


def test_float32_norm_weight(ops):
    args, kwargs = make_inputs(5, 64, dtype=torch.bfloat16, f32_weights=True)
    out = ops.gated_mlp(*args, **kwargs)
    exact = reference.gated_mlp(*(x.double() for x in args), residual=kwargs["residual"].double())
    assert out.dtype == torch.bfloat16
    assert ((out.double() - exact).abs() <= 2**-6 * (exact.abs() + exact.square().mean().sqrt())).all()


def test_few_rows_do_not_see_each_other(ops):
    args, kwargs = make_inputs(16, 264, inner=520, dtype=torch.bfloat16)
    x, *rest = args
    residual = kwargs["residual"]
    together = ops.gated_mlp(x, *rest, residual=residual)
    spoilt = x.clone()
    spoilt[4], spoilt[6:] = float("nan"), float("inf")
    beside = ops.gated_mlp(spoilt, *rest, residual=residual)
    alone = ops.gated_mlp(x[5:6], *rest, residual=residual[5:6])
    ours = ops is not F or DEVICE == "cuda" or own_products(torch.bfloat16)
    for out in (beside[5], alone[0]):
        assert torch.equal(out, together[5]) if ours else torch.allclose(out.float(), together[5].float(), rtol=0.05)
    assert beside[4].isnan().all()


def test_counters_may_be_the_callers(ops):
    """They serve one call after the other, and are zeros again after each."""
    args, kwargs = make_inputs(3, 64, dtype=torch.bfloat16)
    expected, counters = ops.gated_mlp(*args, **kwargs), torch.zeros(5, dtype=torch.int32, device=args[0].device)
    for _ in range(3):
        assert torch.equal(ops.gated_mlp(*args, **kwargs, counters=counters), expected)
        assert not counters.any()


@pytest.mark.parametrize("shape", [(8,), (5, 8), (2, 3, 8), (2, 3, 4, 8), (0, 8), (2, 0, 8)], ids=str)
@pytest.mark.parametrize("outputs", [1, 6, 0])
def test_ranks(ops, shape, outputs):
    for dtype in (torch.float32, torch.bfloat16):
        assert check(*make_inputs(*shape, outputs=outputs, dtype=dtype), dtype, ops).shape == (*shape[:-1], outputs)


def test_opcheck():
    for counters in (None, torch.zeros(2, dtype=torch.int32)):
        args, kwargs = make_inputs(2, 3, 40)
        torch.library.opcheck(torch.ops.hymba_ops.gated_mlp.default, (*args, kwargs["residual"], 1e-6, counters))


def test_compiles_once_for_all_lengths():
    (_, *rest), _ = make_inputs(2, 3, 40, outputs=40)
    assert_compiles_once(lambda x: F.gated_mlp(x + 1, *rest, residual=x), lambda T: (randn(2, T, 40),), (7, 20, 3))


def test_gradients_are_refused_by_name():
    (x, *rest), _ = make_inputs(3, 8)
    with pytest.raises(ValueError, match="gated_mlp: x must not require grad"):
        F.gated_mlp(x.requires_grad_(), *rest)


HALF, INT = torch.float16, torch.int32
BAD_INPUTS = [
    bad_input({"x": torch.zeros(())}, ValueError, r"x must have 1 to 4 dimensions, got \[\]"),
    bad_input({"x": torch.zeros(2, 8, dtype=INT)}, ValueError, r"x must be float16.*, got int32"),
    bad_input({"norm_weight": torch.zeros(7)}, ValueError, r"norm_weight must have shape \[K\] = \[8\], got \[7\]"),
    bad_input({"norm_weight": torch.zeros(8, dtype=HALF)}, ValueError, r"norm_weight must have .*got float16"),
    bad_input(
        {"gate_weight": torch.zeros(7, 8)}, ValueError, r"gate_weight must have shape \[O, K\] = \[6, 8\], got \[7, 8"
    ),
    bad_input({"weight": torch.zeros(6, 9)}, ValueError, r"weight must have shape \[O, K\] = \[\*, 8\], got \[6, 9\]"),
    bad_input(
        {"weight": torch.zeros(0, 8), "gate_weight": torch.zeros(0, 8)},
        ValueError,
        r"weight must have at least 1 row, got \[0, 8",
    ),
    bad_input(
        {"down_weight": torch.zeros(5, 7)}, ValueError, r"down_weight must have shape \[O, I\] = \[\*, 6\], got \[5, 7"
    ),
    bad_input(
        {"residual": torch.zeros(2, 8)}, ValueError, r"residual must have the result's shape \[2, 5\], got \[2, 8"
    ),
    bad_input(
        {"counters": torch.zeros(1, dtype=INT)}, ValueError, r"counters must have at least 2 elements, got \[1\]"
    ),
    bad_input({"counters": torch.zeros(2)}, ValueError, r"counters must be int32, got float32"),
    bad_input(
        {"counters": torch.zeros(2, 1, dtype=INT)}, ValueError, r"counters must have one dimension, got \[2, 1\]"
    ),
]


@pytest.mark.parametrize("change,error,message", BAD_INPUTS)
def test_bad_input_is_refused(change, error, message):
    arguments = {
        "x": torch.zeros(2, 8), "norm_weight": torch.zeros(8), "gate_weight": torch.zeros(6, 8),
        "weight": torch.zeros(6, 8), "down_weight": torch.zeros(5, 6), **change,
    }  # fmt: skip
    with pytest.raises(error, match=f"gated_mlp: .*{message}"):
        F.gated_mlp(**arguments)
