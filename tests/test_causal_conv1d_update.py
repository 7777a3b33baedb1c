"""causal_conv1d_update against python_reference and against the whole convolution."""

from __future__ import annotations

import pytest
import torch

import python_reference as reference
from hymba_ops import functional as F

from kernel_cases import (
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

WIDTHS = [pytest.param(C, id=f"C{C}") for C in (37, 40)]  # the CUDA kernel takes rows of 37 one by one, of 40 in packs


def slots(*values):
    return torch.tensor(values, dtype=torch.int32)


def make_inputs(n, *, B=3, C=37, K=4, rows=None, dtype=torch.float32, layout=dense):
    x = randn(B, C, dtype=dtype) if n is None else randn(B, n, C, dtype=dtype)
    state = layout(randn(rows or B, K - 1, C, dtype=dtype, seed=1)) if K > 1 else randn(rows or B, 0, C, dtype=dtype)
    return layout(x), state, layout(randn(C, K, dtype=dtype, seed=2)), randn(C, dtype=dtype, seed=3)


def check(ops, x, state, weight, bias, *, dtype, **kwargs):
    states = [state, state.clone(), state.double().clone()]
    inputs = (weight, bias)
    actual = ops.causal_conv1d_update(x, states[0], *inputs, **kwargs)
    plain = reference.causal_conv1d_update(x, states[1], *inputs, **kwargs)
    exact = reference.causal_conv1d_update(x.double(), states[2], *to_float64(inputs), **kwargs)
    assert_close(actual, plain, exact, dtype=dtype)
    assert torch.equal(states[0], states[1])  # inputs are copied, not computed
    return actual, states[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("K", range(1, 9), ids=lambda k: f"K{k}")
@pytest.mark.parametrize("n", [None, 5, 16], ids=lambda n: f"n{n}")
@pytest.mark.parametrize("C", WIDTHS)
def test_matches_reference(ops, C, n, K, layout, dtype):
    check(ops, *make_inputs(n, C=C, K=K, dtype=dtype, layout=layout), dtype=dtype)


@pytest.mark.parametrize("K", [1, 3, 4, 8])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("C", WIDTHS)
def test_few_tokens(ops, C, n, K):
    check(ops, *make_inputs(n, C=C, K=K), dtype=torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("K", [3, 4, 5])
@pytest.mark.parametrize("C", WIDTHS)
def test_float32_parameters(ops, C, K, dtype):
    x, state, weight, bias = make_inputs(2, C=C, K=K, dtype=dtype)
    check(ops, x, state, weight.float(), bias.float(), dtype=dtype)


@pytest.mark.parametrize("K", [2, 3, 4, 5])
def test_strided_input_beside_a_contiguous_filter(ops, K):
    x, state, weight, bias = make_inputs(5, C=40, K=K)
    check(ops, strided(x), strided(state), weight, bias, dtype=torch.float32)
    check(ops, x, unaligned(state), weight, bias, dtype=torch.float32)


@pytest.mark.parametrize("C", [1, 7, 8, 16, 17, 1023, 1024, 1025], ids=lambda c: f"C{c}")
def test_sizes_around_blocks_and_vectors(ops, C):
    check(ops, *make_inputs(2, C=C), dtype=torch.float32)


@pytest.mark.parametrize("K", [4, 5])
@pytest.mark.parametrize("C", WIDTHS)
@pytest.mark.parametrize("activation", ["silu", None])
def test_activation(ops, activation, C, K):
    x, state, weight, _ = make_inputs(2, C=C, K=K)
    check(ops, x, state, weight, None, dtype=torch.float32, activation=activation)


@pytest.mark.parametrize("n", [1, 3, 16])
@pytest.mark.parametrize("C", WIDTHS)
def test_steps_equal_the_whole_convolution(ops, C, n):
    _, _, weight, bias = make_inputs(1, C=C)
    x, state = randn(3, 48, C), randn(3, 3, C, scale=0)
    steps = [ops.causal_conv1d_update(chunk, state, weight, bias) for chunk in x.split(n, dim=1)]
    whole, final_state = ops.causal_conv1d(x, weight, bias, return_final_state=True)
    assert torch.equal(torch.cat(steps, 1), whole) and torch.equal(state, final_state)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", [None, 2, 5])
@pytest.mark.parametrize("C", WIDTHS)
def test_slots_and_padding(ops, C, n, layout):
    x, state, weight, bias = make_inputs(n, B=4, C=C, rows=7, layout=layout)
    before = state.clone()
    out, state = check(
        ops, x, state, weight, bias, dtype=torch.float32, slots_in=slots(5, -1, 0, 2), slots_out=slots(5, 3, 1, -1)
    )
    assert (out[[1, 3]] == 0).all() and not (out[[0, 2]] == 0).all()
    untouched = [0, 2, 3, 4, 6]
    assert torch.equal(state[untouched], before[untouched])
    assert not torch.equal(state[5], before[5]) and not torch.equal(state[1], before[1])


def test_fork_one_slot_into_two(ops):
    x, state, weight, bias = make_inputs(1, B=2, rows=4)
    check(ops, x, state, weight, bias, dtype=torch.float32, slots_in=slots(0, 0), slots_out=slots(2, 3))


def test_only_slots_out(ops):
    x, state, weight, bias = make_inputs(1, B=2, rows=4)
    check(ops, x, state, weight, bias, dtype=torch.float32, slots_out=slots(2, 3))


def test_empty_batch(ops):
    x, state, weight, bias = make_inputs(2, B=0, rows=3)
    out = ops.causal_conv1d_update(x, state, weight, bias, slots_in=slots())
    assert out.shape == (0, 2, 37)


def test_threads_do_not_change_bits():
    x, state, weight, bias = make_inputs(16, B=8, C=3000)
    assert_threads_do_not_matter(lambda: F.causal_conv1d_update(x, state.clone(), weight, bias))


def test_opcheck():
    x, state, weight, bias = make_inputs(2, B=3, rows=5)
    for slots_in, slots_out in ((slots(0, 3, -1), None), (slots(0, 1, 2), slots(4, 3, 2))):
        args = (x, state, weight, bias, True, slots_in, slots_out)
        torch.library.opcheck(torch.ops.hymba_ops.causal_conv1d_update.default, args)


def test_compiles_with_the_state_changed_in_place():
    x, state, weight, bias = make_inputs(2)

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def f(x, state):
        return F.causal_conv1d_update(x * 2, state, weight, bias) + 1

    other = state.clone()
    expected = F.causal_conv1d_update(x * 2, other, weight, bias) + 1
    assert torch.equal(f(x, state), expected) and torch.equal(state, other)


BAD_INPUTS = [
    bad_input({"x": torch.zeros(8)}, ValueError, r"x must have shape \[B, C\] or \[B, n, C\], got \[8\]"),
    bad_input({"x": torch.zeros(3, 17, 8)}, ValueError, r"x must have 1 to 16 tokens, got 17"),
    bad_input({"x": torch.zeros(3, 0, 8)}, ValueError, r"x must have 1 to 16 tokens, got 0"),
    bad_input({"x": torch.zeros(4, 8)}, ValueError, r"state must have x's 4 rows where slots_in is not given, got 3"),
    bad_input({"state": torch.zeros(3, 4, 8)}, ValueError, r"state must have shape .* = \[\*, 3, 8\], got \[3, 4, 8\]"),
    bad_input({"state": torch.zeros(3, 3, 8).half()}, ValueError, r"state must have x's dtype float32, got float16"),
    bad_input({"state": torch.zeros(1, 3, 8).expand(3, 3, 8)}, ValueError, r"state must have memory .*got stride 0"),
    bad_input({"weight": torch.zeros(8, 9)}, ValueError, r"weight must have a width of 1 to 8, got 9"),
    bad_input({"slots_in": slots(0, 1)}, ValueError, r"slots_in must have shape \[B\] = \[3\], got \[2\]"),
    bad_input({"slots_in": torch.tensor([0, 1, 2])}, ValueError, r"slots_in must be int32, got int64"),
    bad_input({"slots_in": slots(0, 1, 3)}, ValueError, r"slots_in must have values from -1 to 2 .*got 3 at index 2"),
    bad_input({"slots_in": slots(0, -2, 1)}, ValueError, r"slots_in must have values from -1 to 2 .*got -2 at index 1"),
    bad_input(
        {"slots_in": slots(0, 1, 1)}, ValueError, r"slots_out must name each slot once, got slot 1 in rows 1 and 2"
    ),
    bad_input(
        {"slots_in": slots(0, 1, 2), "slots_out": slots(1, 0, 2)},
        ValueError,
        r"slots_out must name no slot that another",
    ),
    bad_input({"state": torch.zeros(3, 3, 8).requires_grad_()}, ValueError, r"state must not require grad"),
    bad_input({"x": None}, ValueError, r"x must be a tensor, got None"),
    bad_input({"slots_in": [0, 1, 2]}, TypeError, r"argument 'slots_in'.*list"),
]


@pytest.mark.parametrize("change,error,message", BAD_INPUTS)
def test_bad_input_is_refused_and_the_state_kept(change, error, message):
    arguments = {"x": torch.ones(3, 8), "state": torch.zeros(3, 3, 8), "weight": torch.ones(8, 4), **change}
    state = arguments["state"]
    with pytest.raises(error, match=message):
        F.causal_conv1d_update(arguments.pop("x"), arguments.pop("state"), arguments.pop("weight"), **arguments)
    assert (state == 0).all()
