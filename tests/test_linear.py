"""linear and gated_linear against python_reference: sizes around tiles, layouts, gradients."""

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
    dense,
    odd_rows,
    own_products,
    randn,
    skip_if_the_cpus_library_decides,
)
from tolerance import assert_close, check_against_reference, to_float64

# csrc/cpu/linear.cpp: rows of a tile 6 or 14, of a direct product 4, of a block 504; depth of a block 320; columns of
# a panel 8 to 32.
ROWS = [1, 2, 4, 5, 6, 7, 13, 14, 15, 504, 505, 600]
INNER = [1, 7, 8, 9, 319, 320, 321, 650]
OUTPUTS = [1, 15, 16, 17, 31, 33, 64, 65, 1030]
EXTRAS = [pytest.param(b, r, id=name) for b, r, name in
          ((False, False, "plain"), (True, False, "bias"), (False, True, "residual"), (True, True, "both"))]  # fmt: skip
OPS = ["linear", "gated_linear"]


def make_inputs(*shape, outputs, bias=False, residual=False, dtype=torch.float32, layout=dense):
    """x, weight and keyword arguments of linear; x has `shape`."""
    inner = shape[-1]
    lay = lambda t: layout(t) if t.numel() else t  # noqa: E731
    x = lay(randn(*shape, dtype=dtype))
    weight = lay(randn(outputs, inner, dtype=dtype, seed=1, scale=inner**-0.5))
    extras = {
        "bias": randn(outputs, dtype=dtype, seed=2) if bias else None,
        "residual": lay(randn(*shape[:-1], outputs, dtype=dtype, seed=3)) if residual else None,
    }
    return x, weight, extras


def make_arguments(name, *shape, outputs, dtype=torch.float32, layout=dense):
    """Positional arguments of either op, linear's with bias; and its keyword arguments."""
    x, weight, extras = make_inputs(*shape, outputs=outputs, bias=True, residual=True, dtype=dtype, layout=layout)
    if name == "linear":
        return (x, weight, extras["bias"]), {"residual": extras["residual"]}
    gate = randn(outputs, shape[-1], dtype=dtype, seed=4, scale=shape[-1] ** -0.5)
    return (x, layout(gate) if gate.numel() else gate, weight), {}


def check(name, args, kwargs, dtype, ops=F):
    return check_against_reference(getattr(ops, name), getattr(reference, name), *args, dtype=dtype, **kwargs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bias,residual", EXTRAS)
def test_matches_reference(ops, bias, residual, layout, dtype):
    for shape, outputs in (((2, 9, 40), 70), ((3, 330), 33)):
        x, weight, extras = make_inputs(
            *shape, outputs=outputs, bias=bias, residual=residual, dtype=dtype, layout=layout
        )
        if ops is not F and not residual:
            pytest.skip("without a residual, linear is the library's product alone")
        check("linear", (x, weight), extras, dtype, ops)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gated_matches_reference(ops, layout, dtype):
    for shape, outputs in (((2, 9, 40), 70), ((3, 330), 33)):
        args, kwargs = make_arguments("gated_linear", *shape, outputs=outputs, dtype=dtype, layout=layout)
        check("gated_linear", args, kwargs, dtype, ops)


# csrc/cuda/linear.cu: a block has 256 chunks, of 16 bytes or, where rows are not whole packs, of one element.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("rows,outputs", [(1, 8), (31, 64), (32, 64), (33, 64), (85, 3), (64, 4), (257, 1)])
def test_epilogue_sizes_around_blocks(ops, rows, outputs, name, dtype):
    check(name, *make_arguments(name, rows, 9, outputs=outputs, dtype=dtype), dtype, ops)


# csrc/cuda/linear_few_rows.cuh: up to 16 rows in 16-bit types are the kernels' own product; 16 outputs of a block at a time, k in
# packs of 8 or 4, 32 or 16 of them a round for each of 8 warps. Other K are the library's.
SHORT_TYPES = [pytest.param(torch.bfloat16, id="bf16"), pytest.param(torch.float16, id="fp16")]


@pytest.mark.parametrize("dtype", SHORT_TYPES)
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("rows", range(1, 18))
def test_few_rows(ops, rows, name, dtype):
    skip_if_the_cpus_library_decides(ops)
    for inner, outputs in ((40, 24), (100, 70)):
        check(name, *make_arguments(name, rows, inner, outputs=outputs, dtype=dtype), dtype, ops)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("outputs", [1, 7, 8, 9, 31, 33, 1030, 4100], ids=lambda n: f"O{n}")
@pytest.mark.parametrize("inner", [4, 8, 12, 36, 128, 252, 256, 264, 515, 520], ids=lambda n: f"K{n}")
def test_few_rows_around_packs_and_tiles(ops, inner, outputs, name):
    skip_if_the_cpus_library_decides(ops)
    if outputs > 1000 and inner > 40:
        pytest.skip("so many outputs need no more than a few k")
    for rows in (2, 16):
        check(name, *make_arguments(name, rows, inner, outputs=outputs, dtype=torch.bfloat16), torch.bfloat16, ops)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bias,residual", EXTRAS)
def test_few_rows_with_extras(ops, bias, residual, layout):
    for shape in ((3, 64), (2, 1, 4, 100)):
        x, weight, extras = make_inputs(
            *shape, outputs=41, bias=bias, residual=residual, dtype=torch.bfloat16, layout=layout
        )
        check("linear", (x, weight), extras, torch.bfloat16, ops)


@pytest.mark.parametrize("name", OPS)
def test_a_few_rows_do_not_see_each_other(ops, name):
    """To the bit where the product is ours, whatever else is in the batch."""
    args, kwargs = make_arguments(name, 16, 264, outputs=1100, dtype=torch.bfloat16)
    x, *rest = args
    together = getattr(ops, name)(x, *rest, **kwargs)
    alone = getattr(ops, name)(x[5:6], *rest, **{n: r[5:6] for n, r in kwargs.items()})
    spoilt = x.clone()
    spoilt[4], spoilt[6:] = float("nan"), float("inf")
    beside = getattr(ops, name)(spoilt, *rest, **kwargs)
    ours = ops is not F or DEVICE == "cuda" or own_products(torch.bfloat16)
    for out in (alone[0], beside[5]):
        assert torch.equal(out, together[5]) if ours else torch.allclose(out.float(), together[5].float(), rtol=0.05)
    assert beside[4].isnan().all()


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("rows", ROWS, ids=lambda n: f"rows{n}")
def test_rows_around_tiles(rows, name):
    for inner, outputs in ((9, 33), (321, 17)):
        check(name, *make_arguments(name, rows, inner, outputs=outputs), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("inner", INNER, ids=lambda n: f"K{n}")
def test_inner_sizes_around_blocks(inner, name, dtype):
    for rows in (3, 20):
        check(name, *make_arguments(name, rows, inner, outputs=65, dtype=dtype), dtype)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("outputs", OUTPUTS, ids=lambda n: f"O{n}")
def test_outputs_around_panels(outputs, name):
    for rows, inner in ((2, 90), (15, 31), (130, 16)):
        check(name, *make_arguments(name, rows, inner, outputs=outputs), torch.float32)


SHAPES = [(8,), (5, 8), (2, 3, 8), (2, 3, 4, 8), (0, 8), (2, 0, 8)]


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("outputs", [1, 6, 0])
def test_ranks_and_empty_sizes(ops, shape, outputs, name):
    out = check(name, *make_arguments(name, *shape, outputs=outputs), torch.float32, ops)
    assert out.shape == (*shape[:-1], outputs)


def test_views_as_residual_and_weight(ops):
    x, weight, _ = make_inputs(6, 9, outputs=20)
    residual = randn(1, 20, seed=5)
    for view in (residual.expand(6, 20), odd_rows(residual.repeat(6, 1))):
        check("linear", (x, weight[:1].expand(20, 9)), {"residual": view}, torch.float32, ops)


def test_residual_may_be_x(ops):
    x, weight, _ = make_inputs(7, 40, outputs=40)
    check("linear", (x, weight), {"residual": x}, torch.float32, ops)


# A weight of one row or column: then the value reaches one row or column of the result.
PLACES = {
    "x": lambda x, weight, bias, residual: x[9],
    "weight": lambda x, weight, bias, residual: weight[20],
    "bias": lambda x, weight, bias, residual: bias,
    "residual": lambda x, weight, bias, residual: residual[9],
}


@pytest.mark.parametrize("rows", [12, 40])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_nan_and_inf_stand_where_the_reference_has_them(ops, value, place, rows):
    x, weight, extras = make_inputs(rows, 330, outputs=40, bias=True, residual=True)
    PLACES[place](x, weight, **extras)[17] = value
    out = check("linear", (x, weight), extras, torch.float32, ops)
    bad = ~torch.isfinite(out)
    assert bad.any() and bad.sum() <= {"x": 40, "weight": rows, "bias": rows, "residual": 1}[place]


@pytest.mark.parametrize("place", ["x", "gate_weight", "weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_gated_nan_and_inf_stand_where_the_reference_has_them(ops, value, place):
    (x, gate_weight, weight), _ = make_arguments("gated_linear", 12, 330, outputs=40)
    {"x": x, "gate_weight": gate_weight, "weight": weight}[place][9, 17] = value
    out = check("gated_linear", (x, gate_weight, weight), {}, torch.float32, ops)
    bad = ~torch.isfinite(out)
    assert bad.any() and bad.sum() <= {"x": 40, "gate_weight": 12, "weight": 12}[place]


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("rows,outputs", [(3, 2000), (700, 300), (130, 33)])
def test_threads_do_not_change_bits(rows, outputs, name):
    args, kwargs = make_arguments(name, rows, 330, outputs=outputs)
    assert_threads_do_not_matter(lambda: getattr(F, name)(*args, **kwargs))


# ---- torch.library, torch.compile, gradients ----


@pytest.mark.parametrize("bias,residual", EXTRAS)
def test_opcheck(bias, residual):
    x, weight, extras = make_inputs(2, 3, 40, outputs=20, bias=bias, residual=residual)
    args = [x, weight, extras["bias"], extras["residual"]]
    args = [None if t is None else t.requires_grad_() for t in args]
    torch.library.opcheck(torch.ops.hymba_ops.linear.default, tuple(args))


def test_gated_opcheck():
    args, _ = make_arguments("gated_linear", 2, 3, 40, outputs=20)
    torch.library.opcheck(torch.ops.hymba_ops.gated_linear.default, tuple(t.requires_grad_() for t in args))


def test_compiles_once_for_all_lengths():
    _, weight, extras = make_inputs(1, 40, outputs=20, bias=True)
    gate = randn(20, 40, seed=4)

    def f(x, residual):
        return F.linear(x + 1, weight, extras["bias"], residual=residual), F.gated_linear(x, gate, weight)

    assert_compiles_once(f, lambda T: (randn(2, T, 40), randn(2, T, 20, seed=3)), (7, 20, 3))


def test_meta_device():
    x, weight = torch.empty(2, 3, 8, device="meta"), torch.empty(5, 8, device="meta")
    for out in (F.linear(x, weight), F.gated_linear(x, weight, weight)):
        assert out.device.type == "meta" and out.shape == (2, 3, 5) and out.dtype == torch.float32


GRAD_SHAPES = [(4,), (3, 4), (2, 3, 4), (2, 1, 3, 4), (0, 4)]


@pytest.mark.parametrize("shape", GRAD_SHAPES, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_gradcheck(name, shape):
    args, kwargs = make_arguments(name, *shape, outputs=5, dtype=torch.float64)
    inputs = tuple(t.requires_grad_() for t in (*args, *kwargs.values()))

    def f(*inputs):
        return getattr(F, name)(*inputs[:3], **dict(zip(kwargs, inputs[3:], strict=True)))

    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPS)
def test_gradients_match_reference(name, layout, dtype):
    args, kwargs = make_arguments(name, 2, 30, 65, outputs=33, dtype=dtype, layout=layout)
    grad = layout(randn(2, 30, 33, dtype=dtype, seed=6))

    def gradients(op, args, kwargs, grad):
        inputs = [t.detach().requires_grad_() for t in (*args, *kwargs.values())]
        out = op(*inputs[: len(args)], **dict(zip(kwargs, inputs[len(args) :], strict=True)))
        return torch.autograd.grad(out, inputs, grad)

    actual = gradients(getattr(F, name), args, kwargs, grad)
    plain = gradients(getattr(reference, name), args, kwargs, grad)
    exact = gradients(getattr(reference, name), to_float64(args), to_float64(kwargs), grad.double())
    names = ("x", "weight", "bias", "residual") if name == "linear" else ("x", "gate_weight", "weight")
    for which, a, p, e in zip(names, actual, plain, exact, strict=True):
        assert_close(a, p, e, dtype=dtype, name=f"gradient of {which}", factor=3.0)


@pytest.mark.parametrize("shape,outputs", [((2, 3, 8), 0), ((2, 0, 8), 5), ((0, 8), 0), ((8,), 0)], ids=str)
@pytest.mark.parametrize("name", OPS)
def test_gradients_of_empty_results_are_zero(name, shape, outputs):
    args, kwargs = make_arguments(name, *shape, outputs=outputs)
    inputs = [t.requires_grad_() for t in (*args, *kwargs.values())]
    for t, gradient in zip(inputs, torch.autograd.grad(getattr(F, name)(*args, **kwargs).sum(), inputs), strict=True):
        assert torch.equal(gradient, torch.zeros_like(t))


@pytest.mark.parametrize("wanted", range(4), ids=["x", "weight", "bias", "residual"])
def test_one_gradient_alone(wanted):
    (x, weight, bias), kwargs = make_arguments("linear", 3, 8, outputs=5)
    inputs = [x, weight, bias, kwargs["residual"]]
    inputs[wanted].requires_grad_()
    out = F.linear(*inputs[:3], residual=inputs[3])
    (gradient,) = torch.autograd.grad(out.sum(), inputs[wanted])
    (expected,) = torch.autograd.grad(reference.linear(*inputs[:3], residual=inputs[3]).sum(), inputs[wanted])
    torch.testing.assert_close(gradient, expected)


# ---- Refusals ----

HALF, INT = torch.float16, torch.int32
BAD_INPUTS = [
    bad_input({"x": torch.zeros(())}, ValueError, r"linear: x must have 1 to 4 dimensions, got \[\]"),
    bad_input({"x": torch.zeros(1, 1, 2, 3, 8)}, ValueError, r"x must have 1 to 4 dimensions, got \[1, 1, 2, 3, 8\]"),
    bad_input({"x": torch.zeros(2, 0), "weight": torch.zeros(5, 0)}, ValueError, r"x must have a last dimension of at"),
    bad_input({"x": torch.zeros(2, 3, 8, dtype=INT)}, ValueError, r"x must be float16.*, got int32"),
    bad_input({"x": torch.zeros(2, 8, 3).mT}, ValueError, r"x must have a contiguous last .*got stride 3"),
    bad_input({"weight": torch.zeros(5, 9)}, ValueError, r"weight must have shape \[O, K\] = \[\*, 8\], got \[5, 9\]"),
    bad_input({"weight": torch.zeros(8)}, ValueError, r"weight must have shape \[O, K\] = \[\*, 8\], got \[8\]"),
    bad_input({"weight": torch.zeros(5, 8, dtype=HALF)}, ValueError, r"weight must have x's dtype .*got float16"),
    bad_input({"weight": torch.zeros(8, 5).T}, ValueError, r"weight must have a contiguous last .*got stride 5"),
    bad_input({"bias": torch.zeros(4)}, ValueError, r"bias must have shape \[O\] = \[5\], got \[4\]"),
    bad_input({"bias": torch.zeros(1, 5)}, ValueError, r"bias must have shape \[O\] = \[5\], got \[1, 5\]"),
    bad_input({"bias": torch.zeros(5, dtype=HALF)}, ValueError, r"bias must have x's dtype .*got float16"),
    bad_input(
        {"residual": torch.zeros(2, 3, 8)}, ValueError, r"residual must have the result's shape \[2, 3, 5\], got"
    ),
    bad_input({"residual": torch.zeros(6, 5)}, ValueError, r"residual must have the result's shape .* got \[6, 5\]"),
    bad_input(
        {"residual": torch.zeros(2, 3, 5, dtype=HALF)}, ValueError, r"residual must have x's dtype .*got float16"
    ),
    bad_input(
        {"residual": torch.zeros(2, 5, 3).mT}, ValueError, r"residual must have a contiguous last .*got stride 3"
    ),
    bad_input({"weight": torch.zeros(5, 8, device="meta")}, ValueError, r"weight must be on x's device cpu, got meta"),
    bad_input({"bias": torch.zeros(5, device="meta")}, ValueError, r"bias must be on x's device cpu, got meta"),
    bad_input(
        {"residual": torch.zeros(2, 3, 5, device="meta")}, ValueError, r"residual must be on x's device cpu, got"
    ),
    bad_input({"x": None}, ValueError, r"x must be a tensor, got None"),
    bad_input({"weight": None}, ValueError, r"weight must be a tensor, got None"),
    bad_input({"x": [[1.0]]}, TypeError, r"argument 'x'.*list"),
    bad_input({"bias": "none"}, TypeError, r"argument 'bias'.*str"),
    bad_input({"residual": 1.5}, TypeError, r"argument 'residual'.*float"),
]


@pytest.mark.parametrize("change,error,message", BAD_INPUTS)
def test_bad_input_is_refused(change, error, message):
    arguments = {"x": torch.zeros(2, 3, 8), "weight": torch.zeros(5, 8), "bias": None, "residual": None, **change}
    with pytest.raises(error, match=message):
        F.linear(arguments["x"], arguments["weight"], arguments["bias"], residual=arguments["residual"])


BAD_GATED_INPUTS = [
    bad_input({"x": torch.zeros(())}, ValueError, r"gated_linear: x must have 1 to 4 dimensions, got \[\]"),
    bad_input({"gate_weight": torch.zeros(4, 8)}, ValueError, r"gate_weight must have shape .*\[5, 8\], got \[4, 8\]"),
    bad_input({"gate_weight": torch.zeros(5, 9)}, ValueError, r"gate_weight must have shape .*\[5, 8\], got \[5, 9\]"),
    bad_input({"gate_weight": torch.zeros(5, 8, dtype=HALF)}, ValueError, r"gate_weight must have x's dtype .*float16"),
    bad_input({"gate_weight": torch.zeros(8, 5).T}, ValueError, r"gate_weight must have a contiguous last .*stride 5"),
    bad_input({"gate_weight": torch.zeros(5, 8, device="meta")}, ValueError, r"gate_weight must be on x's device cpu"),
    bad_input({"weight": torch.zeros(5, 9)}, ValueError, r"weight must have shape \[O, K\] = \[\*, 8\], got \[5, 9\]"),
    bad_input({"weight": None}, ValueError, r"weight must be a tensor, got None"),
    bad_input({"gate_weight": 3}, TypeError, r"argument 'gate_weight'.*int"),
]


@pytest.mark.parametrize("change,error,message", BAD_GATED_INPUTS)
def test_bad_gated_input_is_refused(change, error, message):
    arguments = {"x": torch.zeros(2, 3, 8), "gate_weight": torch.zeros(5, 8), "weight": torch.zeros(5, 8), **change}
    with pytest.raises(error, match=message):
        F.gated_linear(**arguments)
