"""mamba_update against python_reference and against the single ops that it puts together."""

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
    own_products,
    randn,
    skip_unless_values_go_unread,
    strided,
    unaligned,
)
from tolerance import assert_close, to_float64

TOKENS, STATES, NORMS = ("x", "z"), ("conv_state", "ssm_state"), ("dt_norm", "B_norm", "C_norm")
HALVES = [pytest.param(torch.bfloat16, id="bf16"), pytest.param(torch.float16, id="fp16")]


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


def make_inputs(
    B, n, *, C=64, N=16, R=8, K=4, rows=None, dtype=torch.bfloat16, layout=dense, norms=True, bias=True,
    parameter_dtype=None,
):  # fmt: skip
    """Keyword arguments; states of `rows` slots (B where nothing else is said); n None for x [B, C]."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    parameter, tokens, rows = parameter_dtype or dtype, (B,) if n is None else (B, n), B if rows is None else rows
    lay = lambda t: layout(t) if t.numel() else t  # noqa: E731
    inputs = {
        "x": lay(randn(*tokens, C, dtype=dtype)),
        "z": lay(randn(*tokens, C, dtype=dtype, seed=1)),
        "conv_state": lay(randn(rows, K - 1, C, dtype=dtype, seed=2)),
        "ssm_state": lay(randn(rows, C, N, dtype=wide, seed=3)),
        "conv_weight": randn(C, K, dtype=parameter, seed=4, scale=0.5),
        "conv_bias": randn(C, dtype=parameter, seed=5) if bias else None,
        "x_proj_weight": lay(randn(R + 2 * N, C, dtype=dtype, seed=6, scale=2 * C**-0.5)),
        "dt_proj_weight": lay(randn(C, R, dtype=dtype, seed=7, scale=R**-0.5)),
        "dt_bias": randn(C, dtype=parameter, seed=8),
        "A": lay(-randn(C, N, dtype=wide, seed=9).exp()),
        "D": randn(C, dtype=parameter, seed=10),
    }
    if norms:
        inputs |= {
            name: 1 + 0.3 * randn(size, dtype=parameter, seed=11 + i)
            for i, (name, size) in enumerate(zip(NORMS, (R, N, N), strict=True))
        }
    return inputs


def run(function, inputs, **changes):
    """The output and the states behind the call; those of `inputs` stay."""
    arguments = inputs | changes
    states = {name: arguments[name].clone() for name in STATES}
    for name, state in states.items():  # as the state lies
        if state.numel() > 0:
            states[name] = torch.empty_strided(
                state.shape, arguments[name].stride(), dtype=state.dtype, device=state.device
            ).copy_(state)
    return function(**arguments | states), *states.values()


def check(ops, inputs, dtype, **changes):
    names = ("out", *STATES)
    actual = run(ops.mamba_update, inputs, **changes)
    plain = run(reference.mamba_update, inputs, **changes)
    exact = run(reference.mamba_update, to_float64(inputs), **changes)
    for name, a, p, e in zip(names, actual, plain, exact, strict=True):
        assert_close(a, p, e, dtype=dtype, name=name)
    return actual


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("B,n", [(3, None), (1, 1), (2, 5), (16, 1), (1, 16), (5, 4)])
def test_matches_reference(ops, B, n, layout, dtype):
    """20 tokens are the single ops', and so are the types that no tensor core takes."""
    check(ops, make_inputs(B, n, dtype=dtype, layout=layout), dtype)


# Slices of 256 channels, groups of 64; tiles of 8 outputs, up to three a warp; x_proj has R + 2 N of them.
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "C,N,R,K,single_ops",
    [
        pytest.param(160, 4, 8, 4, 0, id="tiny"),
        pytest.param(1536, 16, 48, 4, 0, id="125m"),
        pytest.param(520, 16, 100, 4, 0, id="1.5b"),
        pytest.param(8, 4, 4, 2, 0, id="least"),
        pytest.param(8, 1, 1, 2, 7, id="one-state"),
        pytest.param(64, 16, 128, 8, 0, id="most"),
        pytest.param(248, 12, 68, 3, 0, id="248"),
        pytest.param(248, 12, 66, 3, 7, id="rank-not-in-packs"),
        pytest.param(264, 8, 12, 1, 0, id="no-history"),
        pytest.param(264, 7, 12, 1, 7, id="states-not-in-packs"),
        pytest.param(4360, 4, 8, 2, 0, id="many-slices"),
        pytest.param(64, 17, 8, 4, 7, id="too-many-states"),
        pytest.param(64, 16, 132, 4, 7, id="too-high-rank"),
        pytest.param(68, 16, 8, 4, 7, id="channels-not-in-packs"),
    ],
)
def test_sizes(ops, monkeypatch, C, N, R, K, single_ops, dtype):
    names = []
    if ops is not F:
        launch = ops._launch
        monkeypatch.setattr(ops, "_launch", lambda op, values: names.append(op) or launch(op, values))
    check(ops, make_inputs(2, 3, C=C, N=N, R=R, K=K, dtype=dtype), dtype)
    if ops is not F:
        assert names[0] == "mamba_update" and len(names) == 1 + single_ops


@pytest.mark.parametrize("B", range(1, 17))
def test_every_number_of_rows(ops, B):
    check(ops, make_inputs(B, 16 // B, C=136, N=8, R=12, K=3), torch.bfloat16)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("parameter_dtype", [torch.float32, None], ids=["fp32", "same"])
@pytest.mark.parametrize("norms", [True, False], ids=["norms", "no_norms"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_switches(ops, bias, norms, parameter_dtype, dtype):
    inputs = make_inputs(2, 2, C=264, dtype=dtype, norms=norms, bias=bias, parameter_dtype=parameter_dtype)
    if parameter_dtype is None:
        inputs["A"] = inputs["A"].to(dtype)
    check(ops, inputs, dtype, eps=1e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("C,n", [(64, 2), (264, None)])
def test_slots_and_padding(ops, C, n, layout, dtype):
    inputs = make_inputs(4, n, C=C, rows=7, dtype=dtype, layout=layout)
    out, conv_state, ssm_state = check(ops, inputs, dtype, slots=int32(5, -1, 0, 3))
    assert (out[1] == 0).all() and not (out[0] == 0).all()
    untouched = [1, 2, 4, 6]
    for before, after in ((inputs["conv_state"], conv_state), (inputs["ssm_state"], ssm_state)):
        assert torch.equal(after[untouched], before[untouched])
        assert not any(torch.equal(after[slot], before[slot]) for slot in (5, 0, 3))


def test_all_rows_padding(ops):
    inputs = make_inputs(3, 2, rows=4)
    out, conv_state, ssm_state = run(ops.mamba_update, inputs, slots=int32(-1, -1, -1))
    assert (out == 0).all()
    assert torch.equal(conv_state, inputs["conv_state"]) and torch.equal(ssm_state, inputs["ssm_state"])


def test_impossible_slots_reach_no_other_memory(ops):
    skip_unless_values_go_unread(ops)
    inputs = make_inputs(3, 2, rows=4)
    out, conv_state, ssm_state = run(ops.mamba_update, inputs, slots=int32(4, 2**31 - 1, -(2**31)))
    assert (out == 0).all()
    assert torch.equal(conv_state, inputs["conv_state"]) and torch.equal(ssm_state, inputs["ssm_state"])


def tokens_of(inputs, tokens, rows=slice(None)):
    return inputs | {name: inputs[name][rows, tokens] for name in TOKENS}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("R", [12, 128])
def test_bits_depend_on_neither_step_nor_batch_nor_layout(ops, R, dtype):
    if ops is F and DEVICE == "cpu" and not own_products(dtype):
        pytest.skip("the library's products round as they like")
    inputs = make_inputs(3, 5, C=264, R=R, rows=5, dtype=dtype) | {"slots": int32(4, 0, 2)}
    whole = run(ops.mamba_update, inputs)
    outs, states = [], {}
    for tokens in (slice(0, 1), slice(1, 4), slice(4, 5)):
        out, *after = run(ops.mamba_update, tokens_of(inputs, tokens) | states)
        outs, states = [*outs, out], dict(zip(STATES, after, strict=True))
    for one, all_at_once in zip((torch.cat(outs, 1), *states.values()), whole, strict=True):
        assert torch.equal(one, all_at_once)
    alone = run(ops.mamba_update, tokens_of(inputs, slice(None), slice(1, 2)), slots=int32(0))
    assert torch.equal(alone[0], whole[0][1:2])
    assert all(torch.equal(state[0], expected[0]) for state, expected in zip(alone[1:], whole[1:], strict=True))
    for layout in (strided, unaligned) if ops is F else (strided,):
        laid_out = {n: layout(t) if t.dim() > 1 else t for n, t in inputs.items() if n != "conv_weight"}
        other = run(ops.mamba_update, inputs | laid_out)
        assert all(torch.equal(a, b) for a, b in zip(other, whole, strict=True))


@pytest.mark.parametrize(
    "name,index", [("x", (1, 0, 3)), ("x", (1, 1, 70)), ("z", (1, 0, 5)), ("conv_state", (1, 0, 3))]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_nan_and_infinity_stay_in_their_row(ops, name, index, value):
    inputs = make_inputs(3, 2, C=72)
    clean = run(ops.mamba_update, inputs)
    inputs[name][index] = value
    marked = run(ops.mamba_update, inputs)
    for a, b in zip(marked, clean, strict=True):
        assert torch.equal(a[[0, 2]], b[[0, 2]])
    assert not torch.isfinite(marked[0][1]).all()


def test_equals_the_single_ops():
    """Which is what it is on a CPU."""
    inputs = make_inputs(3, 4, dtype=torch.float32, rows=5)
    slots = int32(4, -1, 0)
    out, *states = run(F.mamba_update, inputs, slots=slots)
    conv_state, ssm_state = (inputs[name].clone() for name in STATES)
    u = F.causal_conv1d_update(inputs["x"], conv_state, inputs["conv_weight"], inputs["conv_bias"], slots_in=slots)
    dt, B, C = F.linear(u, inputs["x_proj_weight"]).split([8, 16, 16], -1)
    dt, B, C = (F.rms_norm(part, inputs[name]) for part, name in zip((dt, B, C), NORMS, strict=True))
    expected = F.selective_state_update(
        ssm_state, u, F.linear(dt, inputs["dt_proj_weight"]), inputs["A"], B, C, inputs["D"], inputs["z"],
        dt_bias=inputs["dt_bias"], slots_in=slots,
    )  # fmt: skip
    assert torch.equal(out, expected)
    assert torch.equal(states[0], conv_state) and torch.equal(states[1], ssm_state)


@pytest.mark.parametrize("slots", [(2, 0, 1), (-1, 1, 0), (-1, -1, -1)], ids=str)
def test_counters_may_be_the_callers(ops, slots):
    """They serve one call after the other, and are zeros again after each."""
    inputs = make_inputs(3, 2, C=264) | {"slots": int32(*slots)}
    expected, counters = run(ops.mamba_update, inputs), torch.zeros(5, dtype=torch.int32)
    for _ in range(2):
        for a, e in zip(run(ops.mamba_update, inputs, counters=counters), expected, strict=True):
            assert torch.equal(a, e)
        assert not counters.any()


def test_no_rows(ops):
    out, conv_state, ssm_state = run(ops.mamba_update, make_inputs(0, 2))
    assert out.shape == (0, 2, 64) and conv_state.shape == (0, 3, 64) and ssm_state.shape == (0, 64, 16)


def test_threads_do_not_change_bits():
    inputs = make_inputs(8, 16, C=600, dtype=torch.float32)
    assert_threads_do_not_matter(lambda: run(F.mamba_update, inputs)[0])


def ordered(inputs, slots=None, eps=1e-6, counters=None):
    """Positional arguments of torch.ops.hymba_ops.mamba_update."""
    names = [n for n in inputs if n not in NORMS]
    return [*(inputs[n] for n in names), *(inputs.get(n) for n in NORMS), eps, slots, counters]


@pytest.mark.parametrize("norms", [True, False])
def test_opcheck(norms):
    for n, slots, counters in ((2, int32(0, 3, -1), None), (None, None, torch.zeros(2, dtype=torch.int32))):
        inputs = make_inputs(3, n, dtype=torch.float32, norms=norms, rows=3 if slots is None else 5)
        arguments = ordered(inputs, slots, counters=counters)
        torch.library.opcheck(torch.ops.hymba_ops.mamba_update.default, arguments)


def test_compiles_with_the_states_changed_in_place():
    inputs = make_inputs(3, 2, dtype=torch.float32)

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def f(**inputs):
        return F.mamba_update(**inputs) + 1

    actual, expected = run(f, inputs), run(lambda **inputs: F.mamba_update(**inputs) + 1, inputs)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


HALF = torch.float16
BAD_INPUTS = [
    bad_input({"x": torch.zeros(64)}, ValueError, r"x must have shape \[B, C\] or \[B, n, C\], got \[64\]"),
    bad_input({"x": torch.zeros(3, 17, 64)}, ValueError, r"x must have 1 to 16 tokens, got 17"),
    bad_input({"x": torch.zeros(3, 2, 64, dtype=torch.int32)}, ValueError, r"x must be float16.*, got int32"),
    bad_input({"z": torch.zeros(3, 2, 63)}, ValueError, r"z must have x's shape \[3, 2, 64\], got \[3, 2, 63\]"),
    bad_input({"z": torch.zeros(3, 2, 64, dtype=HALF)}, ValueError, r"z must have x's dtype .*got float16"),
    bad_input(
        {"conv_weight": torch.zeros(63, 4)}, ValueError, r"conv_weight must have shape \[C, K\] = \[64, \*\], got"
    ),
    bad_input({"conv_weight": torch.zeros(64, 9)}, ValueError, r"conv_weight must have a width of 1 to 8, got 9"),
    bad_input({"conv_bias": torch.zeros(63)}, ValueError, r"conv_bias must have shape \[C\] = \[64\], got \[63\]"),
    bad_input(
        {"conv_state": torch.zeros(3, 2, 64)}, ValueError, r"conv_state must have shape .* = \[\*, 3, 64\], got \[3, 2"
    ),
    bad_input(
        {"conv_state": torch.zeros(3, 3, 64, dtype=HALF)}, ValueError, r"conv_state must have x's dtype .*float16"
    ),
    bad_input(
        {"conv_state": torch.zeros(1, 3, 64).expand(3, 3, 64)},
        ValueError,
        r"conv_state must have memory .*got stride 0",
    ),
    bad_input(
        {"conv_state": torch.zeros(4, 3, 64), "ssm_state": torch.zeros(4, 64, 16)},
        ValueError,
        r"conv_state must have x's 3 rows where slots is not given, got 4",
    ),
    bad_input(
        {"ssm_state": torch.zeros(4, 64, 16)}, ValueError, r"ssm_state must have shape .* = \[3, 64, 16\], got \[4, 64"
    ),
    bad_input(
        {"ssm_state": torch.zeros(3, 64, 16).half()}, ValueError, r"ssm_state must be float32 where x is float32"
    ),
    bad_input(
        {"ssm_state": torch.zeros(3, 1, 16).expand(3, 64, 16)}, ValueError, r"ssm_state must have memory .*got stride 0"
    ),
    bad_input({"A": torch.zeros(63, 16)}, ValueError, r"A must have shape \[C, N\] = \[64, \*\], got \[63, 16\]"),
    bad_input({"A": torch.zeros(64, 257)}, ValueError, r"A must have 1 to 256 states, got 257"),
    bad_input(
        {"x_proj_weight": torch.zeros(39, 64)}, ValueError, r"x_proj_weight must have shape .* = \[40, 64\], got \[39"
    ),
    bad_input({"x_proj_weight": torch.zeros(40, 64, dtype=HALF)}, ValueError, r"x_proj_weight must have x's dtype"),
    bad_input({"dt_proj_weight": torch.zeros(63, 8)}, ValueError, r"dt_proj_weight must have shape .*\[64, \*\], got"),
    bad_input(
        {"dt_proj_weight": torch.zeros(64, 0)}, ValueError, r"dt_proj_weight must have a rank of at least 1, got 0"
    ),
    bad_input({"dt_bias": torch.zeros(63)}, ValueError, r"dt_bias must have shape \[C\] = \[64\], got \[63\]"),
    bad_input({"D": torch.zeros(64, dtype=HALF)}, ValueError, r"D must have x's dtype .*got float16"),
    bad_input({"dt_norm": torch.zeros(9)}, ValueError, r"dt_norm must have shape \[R\] = \[8\], got \[9\]"),
    bad_input({"C_norm": torch.zeros(15)}, ValueError, r"C_norm must have shape \[N\] = \[16\], got \[15\]"),
    bad_input({"B_norm": None}, ValueError, r"B_norm must be given where dt_norm is, and only there, got None"),
    bad_input({"dt_norm": None}, ValueError, r"B_norm must be given where dt_norm is, and only there, got one"),
    bad_input(
        {"slots": int32(0, 1, 3)}, ValueError, r"slots must have values from -1 to 2 \(conv_state's rows\), got 3"
    ),
    bad_input({"slots": int32(1, 1, 0)}, ValueError, r"slots must name each slot once, got slot 1 in rows 0 and 1"),
    bad_input({"slots": int32(1, 0)}, ValueError, r"slots must have shape \[B\] = \[3\], got \[2\]"),
    bad_input({"counters": int32(0)}, ValueError, r"counters must have at least 2 elements, got \[1\]"),
    bad_input({"counters": torch.zeros(2)}, ValueError, r"counters must be int32, got float32"),
    bad_input({"D": torch.zeros(64).requires_grad_()}, ValueError, r"D must not require grad"),
    bad_input(
        {"x_proj_weight": torch.zeros(40, 64, device="meta")}, ValueError, r"x_proj_weight must be on x's device"
    ),
    bad_input({"D": None}, ValueError, r"D must be a tensor, got None"),
    bad_input({"A": 1.0}, TypeError, r"'Tensor' for argument 'A'.*float"),
]


@pytest.mark.parametrize("change,error,message", BAD_INPUTS)
def test_bad_input_is_refused_and_the_states_kept(change, error, message):
    inputs = make_inputs(3, 2, dtype=torch.float32) | change
    before = {name: inputs[name].clone() for name in STATES}
    with pytest.raises(error, match=f"^mamba_update: {message}" if error is ValueError else message):
        F.mamba_update(**inputs)
    assert all(torch.equal(inputs[name], before[name]) for name in STATES)
