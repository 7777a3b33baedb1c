"""selective_state_update against python_reference and against the whole scan."""

from __future__ import annotations

import pytest
import torch

import python_reference as reference
from hymba_ops import functional as F

from kernel_cases import (
    DEVICE,
    DTYPES,
    LAYOUTS,
    assert_threads_do_not_matter,
    bad_input,
    dense,
    randn,
    strided,
    unaligned,
)
from tolerance import assert_close, to_float64

TOKEN_INPUTS = ("x", "dt", "B", "C", "z")


def slots(*values):
    return torch.tensor(values, dtype=torch.int32)


def make_inputs(n, *, B=3, C=20, N=16, dtype=torch.float32, layout=dense):
    tokens = (B,) if n is None else (B, n)
    parameter_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "x": layout(randn(*tokens, C, dtype=dtype)),
        "dt": layout(randn(*tokens, C, dtype=dtype, seed=1)),
        "A": -randn(C, N, dtype=parameter_dtype, seed=2).exp(),
        "B": layout(randn(*tokens, N, dtype=dtype, seed=3)),
        "C": layout(randn(*tokens, N, dtype=dtype, seed=4)),
        "D": randn(C, dtype=parameter_dtype, seed=5),
        "z": layout(randn(*tokens, C, dtype=dtype, seed=6)),
        "dt_bias": randn(C, dtype=parameter_dtype, seed=7),
    }


def make_state(rows, *, C=20, N=16, dtype=torch.float32, layout=dense):
    return layout(randn(rows, C, N, dtype=torch.float64 if dtype == torch.float64 else torch.float32, seed=8))


def run(function, state, inputs, **kwargs):
    return function(
        state, *(inputs[n] for n in ("x", "dt", "A", "B", "C", "D", "z")), dt_bias=inputs["dt_bias"], **kwargs
    )


def check(ops, state, inputs, *, dtype, **kwargs):
    states = [state, state.clone(), state.double().clone()]
    actual = run(ops.selective_state_update, states[0], inputs, **kwargs)
    plain = run(reference.selective_state_update, states[1], inputs, **kwargs)
    exact = run(reference.selective_state_update, states[2], to_float64(inputs), **kwargs)
    assert_close(actual, plain, exact, dtype=dtype)
    assert_close(*states, dtype=dtype, name="state")
    return actual, states[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", [None, 1, 2, 5, 16], ids=lambda n: f"n{n}")
def test_matches_reference(ops, n, layout, dtype):
    check(ops, make_state(3, dtype=dtype, layout=layout), make_inputs(n, dtype=dtype, layout=layout), dtype=dtype)


# Up to 16, 64 and 256 states the CUDA kernel has blocks of 64, 32 and 8 channels; it reads whole packs of 4 states, or one
# by one.
@pytest.mark.parametrize("N", [1, 3, 8, 15, 16, 17, 20, 64, 65, 68, 256], ids=lambda n: f"N{n}")
@pytest.mark.parametrize("C", [1, 8, 9, 16, 33, 63, 64, 65], ids=lambda c: f"C{c}")
def test_sizes(ops, C, N):
    check(ops, make_state(3, C=C, N=N), make_inputs(2, C=C, N=N), dtype=torch.float32)


def test_optional_parts(ops):
    inputs = make_inputs(2) | {"D": None, "z": None, "dt_bias": None}
    check(ops, make_state(3), inputs, dtype=torch.float32)
    inputs["dt"] = inputs["dt"].abs()
    check(ops, make_state(3), inputs, dtype=torch.float32, dt_softplus=False)


@pytest.mark.parametrize("name", ["state", "B", "C"])
def test_rows_of_a_batch_at_odd_distances(ops, name):
    inputs = {**make_inputs(2), "state": make_state(3)}
    x = inputs[name]
    apart = torch.full((3, x[0].numel() + 1), float("nan"), device=DEVICE)
    inputs[name] = apart[:, : x[0].numel()].view_as(x)  # each row is contiguous
    inputs[name].copy_(x)
    check(ops, inputs.pop("state"), inputs, dtype=torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("N", [16, 20, 17])
def test_parameters_in_the_dtype_of_x(ops, N, layout, dtype):
    inputs = make_inputs(2, N=N, dtype=dtype)
    inputs |= {name: layout(inputs[name]).to(dtype) for name in ("A", "D", "dt_bias")}
    inputs["A"] = layout(inputs["A"])
    check(ops, make_state(3, N=N, dtype=dtype), inputs, dtype=dtype)


def test_float32_parameters_beside_float64(ops):
    inputs = make_inputs(2, dtype=torch.float64)
    inputs |= {name: inputs[name].float() for name in ("A", "D", "dt_bias")}
    check(ops, make_state(3, dtype=torch.float64), inputs, dtype=torch.float64)


@pytest.mark.parametrize("N", [3, 16, 17, 20, 68])
@pytest.mark.parametrize("name,value", [("x", "inf"), ("x", "nan"), ("dt", "nan"), ("B", "inf"), ("C", "nan")])
def test_nan_and_inf_reach_what_sees_them(ops, name, value, N):
    inputs = make_inputs(2, N=N)
    inputs |= {name: inputs[name].abs() for name in ("x", "B", "C", "D", "z")}  # no difference of infinities
    inputs[name][1, 0, 2] = float(value)
    check(ops, make_state(3, N=N).abs(), inputs, dtype=torch.float32)


def steps(function, state, inputs, n):
    """The outputs of all tokens, n in a call."""
    outs = []
    for begin in range(0, inputs["x"].shape[1], n):
        step = {name: x[:, begin : begin + n] if name in TOKEN_INPUTS else x for name, x in inputs.items()}
        outs.append(run(function, state, step))
    return torch.cat(outs, 1)


@pytest.mark.parametrize("n", [1, 3, 16])
@pytest.mark.skipif(DEVICE != "cpu", reason="the CUDA kernels of update and scan sum in different orders")
def test_steps_equal_the_whole_scan(n):
    inputs, state = make_inputs(48), torch.zeros(3, 20, 16)
    out = steps(F.selective_state_update, state, inputs, n)
    x, dt, A, B, C, D, z, dt_bias = inputs.values()
    whole, last = F.selective_scan(x, dt, A, B, C, D, z, dt_bias=dt_bias, return_final_state=True)
    assert torch.equal(out, whole) and torch.equal(state, last)


@pytest.mark.parametrize("N", [16, 20, 68, 17])
def test_bits_depend_on_neither_step_nor_batch_nor_layout(ops, N):
    inputs, state = make_inputs(16, N=N), make_state(3, N=N)
    last = state.clone()
    whole = run(ops.selective_state_update, last, inputs)
    stepped = state.clone()
    assert torch.equal(steps(ops.selective_state_update, stepped, inputs, 5), whole) and torch.equal(stepped, last)
    for layout in (strided, unaligned):
        other = layout(state)
        laid_out = {name: layout(x) for name, x in inputs.items()}
        assert torch.equal(run(ops.selective_state_update, other, laid_out), whole) and torch.equal(other, last)
    row = {name: x[1:2] if name in TOKEN_INPUTS else x for name, x in inputs.items()}
    alone = state.clone()
    assert torch.equal(run(ops.selective_state_update, alone, row, slots_in=slots(1)), whole[1:2])
    assert torch.equal(alone[1], last[1]) and torch.equal(alone[[0, 2]], state[[0, 2]])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n,C,N", [(None, 20, 16), (2, 65, 16), (5, 33, 20), (2, 9, 68)])
def test_slots_and_padding(ops, n, C, N, layout):
    state = make_state(7, C=C, N=N, layout=layout)
    before = state.clone()
    out, state = check(
        ops,
        state,
        make_inputs(n, B=4, C=C, N=N, layout=layout),
        dtype=torch.float32,
        slots_in=slots(5, -1, 0, 2),
        slots_out=slots(5, 3, 1, -1),
    )
    assert (out[[1, 3]] == 0).all() and not (out[[0, 2]] == 0).all()
    untouched = [0, 2, 3, 4, 6]
    assert torch.equal(state[untouched], before[untouched])
    assert not torch.equal(state[5], before[5]) and not torch.equal(state[1], before[1])


def test_fork_one_slot_into_two(ops):
    check(ops, make_state(4), make_inputs(1, B=2), dtype=torch.float32, slots_in=slots(0, 0), slots_out=slots(2, 3))


def test_threads_do_not_change_bits():
    state, inputs = make_state(8, C=600), make_inputs(16, B=8, C=600)
    assert_threads_do_not_matter(lambda: run(F.selective_state_update, state.clone(), inputs))


def test_opcheck():
    inputs, state = make_inputs(2), make_state(5)
    order = [inputs[n] for n in ("x", "dt", "A", "B", "C", "D", "z", "dt_bias")]
    for slots_in, slots_out in ((slots(0, 3, -1), None), (slots(0, 1, 2), slots(4, 3, 2))):
        args = (state, *order, True, slots_in, slots_out)
        torch.library.opcheck(torch.ops.hymba_ops.selective_state_update.default, args)


def test_compiles_with_the_state_changed_in_place():
    state, inputs = make_state(3), make_inputs(2)

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def f(state, inputs):
        return run(F.selective_state_update, state, inputs) + 1

    other = state.clone()
    expected = run(F.selective_state_update, other, inputs) + 1
    assert torch.equal(f(state, inputs), expected) and torch.equal(state, other)


BAD_INPUTS = [
    bad_input({"x": torch.zeros(20)}, ValueError, r"x must have shape \[B, C\] or \[B, n, C\], got \[20\]"),
    bad_input({"x": torch.zeros(3, 17, 20)}, ValueError, r"x must have 1 to 16 tokens, got 17"),
    bad_input({"dt": torch.zeros(3, 20)}, ValueError, r"dt must have shape \[B, T, C\] = \[3, 2, 20\], got \[3, 20\]"),
    bad_input({"B": torch.zeros(3, 2, 15)}, ValueError, r"B must have shape .* = \[3, 2, 16\], got \[3, 2, 15\]"),
    bad_input(
        {"state": torch.zeros(3, 20, 15)}, ValueError, r"state must have shape .* = \[\*, 20, 16\], got \[3, 20, 15"
    ),
    bad_input({"state": torch.zeros(4, 20, 16)}, ValueError, r"state must have x's 3 rows where slots_in .*got 4"),
    bad_input(
        {"state": torch.zeros(3, 20, 16).half()}, ValueError, r"state must be float32 where x is float32, got float16"
    ),
    bad_input({"state": torch.zeros(3, 1, 16).expand(3, 20, 16)}, ValueError, r"state must have memory .*got stride 0"),
    bad_input({"slots_in": slots(0, 1, 3)}, ValueError, r"slots_in must have values from -1 to 2 .*got 3 at index 2"),
    bad_input(
        {"slots_in": slots(1, 1, 0)}, ValueError, r"slots_out must name each slot once, got slot 1 in rows 0 and 1"
    ),
    bad_input(
        {"slots_in": slots(0, 1, 2), "slots_out": slots(1, 0, 2)}, ValueError, r"slots_out must name no slot that"
    ),
    bad_input({"x": torch.zeros(3, 2, 20).requires_grad_()}, ValueError, r"x must not require grad"),
    bad_input({"A": 1.0}, TypeError, r"'Tensor' for argument 'A'.*float"),
]


@pytest.mark.parametrize("change,error,message", BAD_INPUTS)
def test_bad_input_is_refused_and_the_state_kept(change, error, message):
    inputs = make_inputs(2) | change
    state = inputs.pop("state", torch.zeros(3, 20, 16))
    kwargs = {name: inputs.pop(name) for name in ("slots_in", "slots_out") if name in inputs}
    with pytest.raises(error, match=message):
        run(F.selective_state_update, state, inputs, **kwargs)
    assert (state == 0).all()
