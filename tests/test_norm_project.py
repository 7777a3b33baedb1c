"""norm_project and norm_average_project against python_reference: a norm, or the average of two, and a product."""

from __future__ import annotations

import pytest
import torch

import python_reference as reference
from hymba_ops import functional as F

from kernel_cases import DEVICE, DTYPES, LAYOUTS, assert_compiles_once, bad_input, dense, own_products, randn, unaligned
from tolerance import check_against_reference

OPS = ["norm_project", "norm_average_project"]
SHORT_TYPES = [pytest.param(torch.bfloat16, id="bf16"), pytest.param(torch.float16, id="fp16")]
EXTRAS = [pytest.param(b, r, id=name) for b, r, name in
          ((False, False, "plain"), (True, False, "bias"), (False, True, "residual"), (True, True, "both"))]  # fmt: skip


def make_inputs(name, *shape, outputs=20, dtype=torch.float32, layout=dense, f32_weights=False):
    """Positional arguments of either op."""
    lay = lambda t: layout(t) if t.numel() else t  # noqa: E731
    x = lay(randn(*shape, dtype=dtype, scale=3.0))
    other = lay(randn(*shape, dtype=dtype, seed=1, scale=0.2))
    weight_dtype = torch.float32 if f32_weights else dtype
    weights = [randn(shape[-1], dtype=weight_dtype, seed=seed) for seed in (2, 3)]
    proj_weight = lay(randn(outputs, shape[-1], dtype=dtype, seed=9, scale=shape[-1] ** -0.5))
    return (x, weights[0], proj_weight) if name == "norm_project" else (x, other, *weights, proj_weight)


def make_extras(*shape, bias, residual, dtype=torch.float32, layout=dense):
    """Of results of `shape`."""
    return {
        "bias": randn(shape[-1], dtype=dtype, seed=10) if bias else None,
        "residual": layout(randn(*shape, dtype=dtype, seed=11)) if residual else None,
    }


def check(name, inputs, dtype, ops=F, **kwargs):
    return check_against_reference(getattr(ops, name), getattr(reference, name), *inputs, dtype=dtype, **kwargs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bias,residual", EXTRAS)
@pytest.mark.parametrize("name", OPS)
def test_matches_reference(ops, name, bias, residual, layout, dtype):
    """One kernel on a GPU in 16-bit types, for 6 rows in packs; else two."""
    for shape in ((2, 3, 48), (2, 30, 48)):
        inputs = make_inputs(name, *shape, dtype=dtype, layout=layout)
        extras = make_extras(*shape[:-1], 20, bias=bias, residual=residual, dtype=dtype, layout=layout)
        check(name, inputs, dtype, ops, **extras)


# csrc/cuda/few_rows_norm.cuh: squares are summed in spans of 256, 16 outputs of a block at a time.
@pytest.mark.parametrize("dtype", SHORT_TYPES)
@pytest.mark.parametrize("rows", range(1, 18))
@pytest.mark.parametrize("name", OPS)
def test_few_rows(ops, name, rows, dtype):
    for inner, outputs in ((40, 24), (264, 70)):
        check(name, make_inputs(name, rows, inner, outputs=outputs, dtype=dtype), dtype, ops)


@pytest.mark.parametrize("outputs", [1, 7, 9, 1030, 4100], ids=lambda n: f"O{n}")
@pytest.mark.parametrize("inner", [8, 12, 248, 256, 264, 515, 776], ids=lambda n: f"K{n}")
@pytest.mark.parametrize("name", OPS)
def test_few_rows_around_spans_and_tiles(ops, name, inner, outputs):
    if outputs > 1000 and inner > 8:
        pytest.skip("so many outputs need no more than a few k")
    for rows in (2, 16):
        inputs = make_inputs(name, rows, inner, outputs=outputs, dtype=torch.bfloat16)
        check(name, inputs, torch.bfloat16, ops)


@pytest.mark.parametrize("rows", [1, 5, 16])
@pytest.mark.parametrize("name", OPS)
def test_float32_norm_weights(ops, name, rows):
    """Beside bfloat16: rounding them first would be seen."""
    inputs = make_inputs(name, rows, 64, dtype=torch.bfloat16, f32_weights=True)
    out = getattr(ops, name)(*inputs)
    exact = getattr(reference, name)(*(x.double() for x in inputs))
    assert out.dtype == torch.bfloat16
    assert ((out.double() - exact).abs() <= 2**-7 * (exact.abs() + exact.square().mean().sqrt())).all()


@pytest.mark.parametrize("name", OPS)
def test_unaligned_norm_weights(ops, name):
    inputs = make_inputs(name, 3, 64, dtype=torch.bfloat16)
    for place in range(1, len(inputs) - 1):
        if inputs[place].dim() == 1:
            changed = (*inputs[:place], unaligned(inputs[place]), *inputs[place + 1 :])
            check(name, changed, torch.bfloat16, ops)


@pytest.mark.parametrize("eps", [0.0, 0.5])
@pytest.mark.parametrize("name", OPS)
def test_eps(ops, name, eps):
    for dtype in (torch.float32, torch.bfloat16):
        check(name, make_inputs(name, 3, 48, dtype=dtype), dtype, ops, eps=eps)


@pytest.mark.parametrize("name", OPS)
def test_few_rows_do_not_see_each_other(ops, name):
    """To the bit where the product is ours, whatever else is in the batch, and however many rows there are."""
    x, *rest = make_inputs(name, 16, 520, outputs=1100, dtype=torch.bfloat16)
    others = [i for i, t in enumerate(rest) if t.shape == x.shape]
    rows_of = lambda rows: [t[rows] if i in others else t for i, t in enumerate(rest)]  # noqa: E731
    op = getattr(ops, name)
    together = op(x, *rest)
    spoilt = x.clone()
    spoilt[4], spoilt[6:] = float("nan"), float("inf")
    beside = op(spoilt, *rest)
    ours = ops is not F or DEVICE == "cuda" or own_products(torch.bfloat16)
    results = [beside[5]] + [op(x[rows], *rows_of(rows))[5 - rows.start] for rows in (slice(5, 6), slice(2, 11))]
    for out in results:
        assert torch.equal(out, together[5]) if ours else torch.allclose(out.float(), together[5].float(), rtol=0.05)
    assert beside[4].isnan().all()


@pytest.mark.parametrize("shape", [(8,), (5, 8), (2, 3, 8), (2, 3, 4, 8), (0, 8), (2, 0, 8)], ids=str)
@pytest.mark.parametrize("outputs", [1, 6, 0])
@pytest.mark.parametrize("name", OPS)
def test_ranks(ops, name, shape, outputs):
    for dtype in (torch.float32, torch.bfloat16):
        inputs = make_inputs(name, *shape, outputs=outputs, dtype=dtype)
        for kwargs in ({}, make_extras(*shape[:-1], outputs, bias=True, residual=True, dtype=dtype)):
            assert check(name, inputs, dtype, ops, **kwargs).shape == (*shape[:-1], outputs)


# ---- torch.library, torch.compile, gradients ----


@pytest.mark.parametrize("name", OPS)
def test_opcheck(name):
    for extras in ((None, None), (randn(20, seed=10), randn(2, 3, 20, seed=11))):
        torch.library.opcheck(getattr(torch.ops.hymba_ops, name).default, (*make_inputs(name, 2, 3, 40), *extras, 1e-6))


@pytest.mark.parametrize("name", OPS)
def test_compiles_once_for_all_lengths(name):
    _, *rest = make_inputs(name, 2, 3, 40, outputs=40)
    weights, bias = [t for t in rest if t.dim() < 3], randn(40, seed=10)

    def f(x):
        branches = [x + 1] if name == "norm_project" else [x + 1, x]
        return getattr(F, name)(*branches, *weights, bias=bias, residual=x)

    assert_compiles_once(f, lambda T: (randn(2, T, 40),), (7, 20, 3))


@pytest.mark.parametrize("name", OPS)
def test_backward_is_refused_by_name(name):
    x, *rest = make_inputs(name, 3, 8)
    with pytest.raises(NotImplementedError, match=f"hymba_ops::{name} has no backward"):
        getattr(F, name)(x.requires_grad_(), *rest).sum().backward()


@pytest.mark.parametrize("name", OPS)
def test_autocast_leaves_the_dtype_alone(name):
    inputs = make_inputs(name, 3, 8)
    expected = getattr(F, name)(*inputs)
    with torch.autocast(inputs[0].device.type, dtype=torch.bfloat16):
        assert torch.equal(getattr(F, name)(*inputs), expected)


# ---- Refusals ----

HALF = torch.float16
BAD_EXTRAS = [
    bad_input(
        {"proj_weight": torch.zeros(5, 9)}, ValueError, r"weight must have shape \[O, .\] = \[\*, 8\], got \[5, 9"
    ),
    bad_input({"bias": torch.zeros(4)}, ValueError, r"bias must have shape \[O\] = \[5\], got \[4\]"),
    bad_input({"bias": torch.zeros(5, dtype=HALF)}, ValueError, r"bias must have .*dtype float32, got float16"),
    bad_input(
        {"residual": torch.zeros(2, 8)}, ValueError, r"residual must have the result's shape \[2, 5\], got \[2, 8"
    ),
    bad_input({"residual": torch.zeros(2, 5, dtype=HALF)}, ValueError, r"residual must have .*got float16"),
    bad_input({"residual": torch.zeros(5, 2).T}, ValueError, r"residual must have a contiguous last .*got stride 2"),
    bad_input({"residual": 1}, TypeError, r"argument 'residual'.*int"),
]


@pytest.mark.parametrize("change,error,message", BAD_EXTRAS)
@pytest.mark.parametrize("name", OPS)
def test_bad_projection_is_refused(name, change, error, message):
    *inputs, weight = make_inputs(name, 2, 8, outputs=5)
    extras = dict(change)
    weight = extras.pop("proj_weight", weight)
    with pytest.raises(error, match=message if error is TypeError else f"{name}: .*{message}"):
        getattr(F, name)(*inputs, weight, **extras)


BAD_NORMS = [
    ("norm_project", 1, torch.zeros(7), r"norm_weight must have shape \[D\] = \[8\], got \[7\]"),
    ("norm_project", 1, torch.zeros(8, dtype=HALF), r"norm_weight must have .*got float16"),
    ("norm_average_project", 1, torch.zeros(3, 8), r"ssm must have attn's shape \[2, 8\], got \[3, 8\]"),
    ("norm_average_project", 1, torch.zeros(2, 8, dtype=HALF), r"ssm must have attn's dtype .*got float16"),
    ("norm_average_project", 2, torch.zeros(7), r"attn_weight must have shape \[D\] = \[8\], got \[7\]"),
    ("norm_average_project", 3, torch.zeros(1, 8), r"ssm_weight must have shape \[D\] = \[8\], got \[1, 8\]"),
]


@pytest.mark.parametrize("name,place,value,message", BAD_NORMS)
def test_bad_norms_are_refused(name, place, value, message):
    inputs = list(make_inputs(name, 2, 8, outputs=5))
    inputs[place] = value
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        getattr(F, name)(*inputs)
