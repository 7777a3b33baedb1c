"""selective_scan against python_reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import python_reference as reference
from hymba_ops import functional as F

from emulator.client import MODES
from emulator.ops import EmulatedOps
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
)
from tolerance import check_against_reference

CHUNK = 64  # csrc/cpu/scan_states.h; also the checkpoint interval and the channel block
# dtype and channels that the two CUDA kernels take (csrc/cuda/selective_scan_lanes.cuh, _tiled.cuh).
KERNELS = [pytest.param(torch.float32, 20, id="fp32"), pytest.param(torch.bfloat16, 24, id="tiled")]
NAMES = ("x", "dt", "A", "B", "C", "D", "z")


def make_inputs(T, *, B=1, C=20, N=16, dtype=torch.float32, layout=dense, seed=0):
    """x, dt, A, B, C, D, z and dt_bias, with decays from nearly 0 to nearly 1."""
    return {
        "x": layout(randn(B, T, C, dtype=dtype, seed=seed)),
        "dt": layout(randn(B, T, C, dtype=dtype, seed=seed + 1, scale=2.0)),
        "A": -randn(C, N, seed=seed + 2).exp(),
        "B": layout(randn(B, T, N, dtype=dtype, seed=seed + 3)),
        "C": layout(randn(B, T, N, dtype=dtype, seed=seed + 4)),
        "D": randn(C, seed=seed + 5),
        "z": layout(randn(B, T, C, dtype=dtype, seed=seed + 6)),
        "dt_bias": randn(C, seed=seed + 7) - 1,
    }


def state_of(dtype, *shape, seed=9):
    return randn(*shape, dtype=torch.float64 if dtype == torch.float64 else torch.float32, seed=seed)


def run(function, inputs, **kwargs):
    keywords = {name: value for name, value in inputs.items() if name not in NAMES}
    return function(*[inputs[name] for name in NAMES], **keywords, **kwargs)


def check(ops, inputs, *, dtype, **kwargs):
    def call(function):
        return lambda *args, **options: function(*args, return_final_state=True, **options)

    inputs = {**inputs, **kwargs}
    if dtype == torch.float64:  # parameters of the op's dtype or float32: exact in both
        inputs = {k: v.double() if k in ("A", "D", "dt_bias") and v is not None else v for k, v in inputs.items()}
    arguments = [inputs.pop(name) for name in NAMES]
    return check_against_reference(
        call(ops.selective_scan), call(reference.selective_scan), *arguments, dtype=dtype, names=("out", "final_state"),
        **inputs,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("with_state", [True, False], ids=["state", "no-state"])
def test_matches_reference(ops, with_state, layout, dtype):
    state = layout(state_of(dtype, 2, 40, 16)) if with_state else None
    check(ops, make_inputs(70, B=2, C=40, dtype=dtype, layout=layout), dtype=dtype, initial_state=state)


@pytest.mark.parametrize("missing", ["D", "z", "dt_bias", "all"])
@pytest.mark.parametrize("softplus", [True, False], ids=["softplus", "no-softplus"])
def test_optional_parts(ops, missing, softplus):
    inputs = make_inputs(20)
    if not softplus:
        inputs["dt"], inputs["dt_bias"] = inputs["dt"].abs(), inputs["dt_bias"].abs()
    for name in ("D", "z", "dt_bias") if missing == "all" else (missing,):
        inputs[name] = None
    check(ops, inputs, dtype=torch.float32, dt_softplus=softplus)


@pytest.mark.parametrize("N", [1, 2, 3, 5, 8, 15, 16, 17, 32, 64, 256], ids=lambda n: f"N{n}")
def test_state_sizes(ops, N):
    check(ops, make_inputs(20, N=N), dtype=torch.float32, initial_state=randn(1, 20, N, seed=9))


@pytest.mark.parametrize("C", [1, 7, 8, 9, 15, 16, 17, CHUNK - 1, CHUNK, CHUNK + 1, 130], ids=lambda c: f"C{c}")
def test_channels_around_vectors_and_blocks(ops, C):
    check(ops, make_inputs(9, C=C, B=2), dtype=torch.float32)


@pytest.mark.parametrize("T", [0, 1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 300])
def test_lengths_around_chunks(ops, T):
    check(ops, make_inputs(T, B=2), dtype=torch.float32, initial_state=randn(2, 20, 16, seed=9))


@pytest.mark.parametrize("cut", [0, 1, 30, CHUNK, 99, 100])
@pytest.mark.parametrize("dtype,C", KERNELS)
def test_split_anywhere_equals_whole(ops, cut, dtype, C):
    inputs = make_inputs(100, C=C, dtype=dtype)
    whole, last = run(ops.selective_scan, inputs, return_final_state=True)
    parts, state = [], None
    for rows in (slice(0, cut), slice(cut, 100)):
        part = {name: x[:, rows] if name in ("x", "dt", "B", "C", "z") else x for name, x in inputs.items()}
        out, state = run(ops.selective_scan, part, initial_state=state, return_final_state=True)
        parts.append(out)
    assert torch.equal(torch.cat(parts, 1), whole) and torch.equal(state, last)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_matches_reference(ops, layout, dtype):
    inputs = make_inputs(110, C=40, dtype=dtype, layout=layout)  # 6 rows belong to no sequence
    state = layout(state_of(dtype, 4, 40, 16))
    out, last = check(ops, inputs, dtype=dtype, initial_state=state, cu_seqlens=cu_seqlens(33, 0, 1, 70))
    assert (out[:, 104:] == 0).all() and torch.equal(last[1], state[1])


@pytest.mark.parametrize("dtype,C", KERNELS)
def test_packed_equals_singles_bitwise(ops, dtype, C):
    lengths = (33, 0, 1, 70, 6)
    inputs, states, starts = make_inputs(110, C=C, dtype=dtype), randn(5, C, 16, seed=9), cu_seqlens(*lengths)
    packed, last = run(ops.selective_scan, inputs, initial_state=states, cu_seqlens=starts, return_final_state=True)
    for i in range(len(lengths)):
        rows = slice(*starts[i : i + 2].tolist())
        part = {name: x[:, rows] if name in ("x", "dt", "B", "C", "z") else x for name, x in inputs.items()}
        single = run(ops.selective_scan, part, initial_state=states[i : i + 1], return_final_state=True)
        assert torch.equal(packed[:, rows], single[0]) and torch.equal(last[i : i + 1], single[1])


@pytest.mark.parametrize("dtype,C", KERNELS)
def test_neighbours_do_not_matter(ops, dtype, C):
    inputs = make_inputs(40, C=C, dtype=dtype)
    clean = run(ops.selective_scan, {n: x[:, :15] if n in ("x", "dt", "B", "C", "z") else x for n, x in inputs.items()})
    for name in ("x", "dt", "B", "C", "z"):
        inputs[name][:, 15:] = float("nan")
    assert torch.equal(run(ops.selective_scan, inputs, cu_seqlens=cu_seqlens(15, 25))[:, :15], clean)


def op(ops, inputs, *, initial_state=None, starts=None, final=True, checkpoints=True):
    """What the op has beside the public function's outputs: checkpoints."""
    order = [inputs[n] for n in NAMES]
    if isinstance(ops, EmulatedOps):
        return ops.selective_scan_outputs(
            *order, dt_bias=inputs["dt_bias"], initial_state=initial_state, return_final_state=final,
            cu_seqlens=starts, save_checkpoints=checkpoints,
        )  # fmt: skip
    return torch.ops.hymba_ops.selective_scan(
        *order, inputs["dt_bias"], True, initial_state, starts, final, checkpoints
    )


@pytest.mark.parametrize("dtype,C", KERNELS)
def test_checkpoints_are_the_states_before_every_64th_token(ops, dtype, C):
    inputs, states = make_inputs(150, B=2, C=C, dtype=dtype), randn(2, C, 16, seed=9)
    checkpoints = op(ops, inputs, initial_state=states)[2]
    assert checkpoints.shape == (2, 3, C, 16) and torch.equal(checkpoints[:, 0], states)
    for i in (1, 2):
        prefix = {n: x[:, : 64 * i] if n in ("x", "dt", "B", "C", "z") else x for n, x in inputs.items()}
        assert torch.equal(checkpoints[:, i], op(ops, prefix, initial_state=states)[1])


@pytest.mark.parametrize("dtype,C", KERNELS)
def test_packed_checkpoints(ops, dtype, C):
    lengths = (70, 0, 64, 1)
    inputs, states, starts = make_inputs(150, C=C, dtype=dtype), randn(4, C, 16, seed=9), cu_seqlens(*lengths)
    checkpoints = op(ops, inputs, initial_state=states, starts=starts)[2]
    assert checkpoints.shape == (1, 150 // 64 + 4, C, 16)
    used = set()
    for i, length in enumerate(lengths):
        begin = int(starts[i])
        for chunk in range((length + 63) // 64):
            rows = slice(begin, begin + 64 * chunk)
            prefix = {n: x[:, rows] if n in ("x", "dt", "B", "C", "z") else x for n, x in inputs.items()}
            entry = begin // 64 + i + chunk
            assert torch.equal(checkpoints[0, entry], op(ops, prefix, initial_state=states[i : i + 1])[1][0])
            used.add(entry)
    assert len(used) == 4
    assert all((checkpoints[0, entry] == 0).all() for entry in set(range(6)) - used)


def test_outputs_not_asked_for_are_empty():
    _, final_state, checkpoints = op(F, make_inputs(5), final=False, checkpoints=False)
    assert final_state.shape == checkpoints.shape == (0,)


@pytest.mark.parametrize("dtype", DTYPES[1:3])
def test_parameters_of_the_activations_dtype(ops, dtype):
    inputs = make_inputs(20, dtype=dtype)
    inputs |= {name: inputs[name].to(dtype) for name in ("A", "D", "dt_bias")}
    check(ops, inputs, dtype=dtype)


@pytest.mark.parametrize("name", ["x", "dt", "z", "B"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("dtype,C", KERNELS)
def test_nan_and_inf_reach_what_the_reference_says(ops, name, value, dtype, C):
    inputs = make_inputs(20, C=C, dtype=dtype)
    inputs[name][0, 11, 5] = value
    check(ops, inputs, dtype=dtype)


@pytest.mark.parametrize("dtype,C", KERNELS)
def test_growing_states_overflow_as_in_the_reference(ops, dtype, C):
    inputs = make_inputs(40, C=C, dtype=dtype) | {"A": torch.full((C, 16), 2.0)}
    inputs["dt"] = inputs["dt"].abs() + 3
    for name in ("x", "B", "C"):  # of one sign: sums of opposite infinities depend on their order
        inputs[name] = inputs[name].abs()
    out, state = check(ops, inputs, dtype=dtype)
    assert not out.isfinite().all() and not state.isfinite().all()


# ---- CUDA: 16-bit types, 16 states, whole packs (csrc/cuda/selective_scan_tiled.cuh): 32 tokens by 32 channels ----


@pytest.mark.sm90
@pytest.mark.parametrize("dtype", DTYPES[1:3])
@pytest.mark.parametrize("T", [1, 7, 8, 9, 31, 32, 33, 64, 65, 97, 129], ids=lambda t: f"T{t}")
def test_lengths_around_tiles(ops, T, dtype):
    inputs = make_inputs(T, C=8, dtype=dtype, layout=strided)
    check(ops, inputs, dtype=dtype, initial_state=randn(1, 8, 16, seed=9))


@pytest.mark.parametrize("dtype", DTYPES[1:3])
@pytest.mark.parametrize("C", [24, 32, 40, 72], ids=lambda c: f"C{c}")
def test_channels_around_tiles(ops, C, dtype):
    check(ops, make_inputs(9, C=C, B=2, dtype=dtype), dtype=dtype)


@pytest.mark.parametrize("missing", ["D", "z", "dt_bias", "all"])
@pytest.mark.parametrize("softplus", [True, False], ids=["softplus", "no-softplus"])
def test_optional_parts_of_tiles(ops, missing, softplus):
    inputs = make_inputs(20, C=24, dtype=torch.bfloat16)
    if not softplus:
        inputs["dt"], inputs["dt_bias"] = inputs["dt"].abs(), inputs["dt_bias"].abs()
    for name in ("D", "z", "dt_bias") if missing == "all" else (missing,):
        inputs[name] = None
    check(ops, inputs, dtype=torch.bfloat16, dt_softplus=softplus)


def test_hopper_s_tiles_give_the_same_bits(emulator_mode):
    """csrc/cuda/selective_scan_sm90.cu divides registers in another way, and nothing else."""
    inputs = make_inputs(150, C=72, dtype=torch.bfloat16)
    options = {"cu_seqlens": cu_seqlens(70, 0, 80), "return_final_state": True}
    mode = MODES[emulator_mode]
    results = [run(EmulatedOps(m).selective_scan, inputs, **options) for m in (mode, replace(mode, capability=90))]
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_threads_do_not_change_bits():
    inputs = make_inputs(100, C=320)
    assert_threads_do_not_matter(lambda: run(F.selective_scan, inputs))


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_opcheck(packed):
    inputs = make_inputs(70)
    starts, state = (cu_seqlens(33, 0, 37), randn(3, 20, 16)) if packed else (None, None)
    args = (*(inputs[n] for n in NAMES), inputs["dt_bias"], True, state, starts, True, True)
    torch.library.opcheck(torch.ops.hymba_ops.selective_scan.default, args)


def test_compiles_once_for_all_lengths():
    def f(x, dt, A, B, C, D, z, dt_bias):
        return F.selective_scan(x * 2, dt, A, B, C, D, z, dt_bias=dt_bias, return_final_state=True)

    assert_compiles_once(f, lambda T: make_inputs(T).values(), (40, 17, 90))


def test_backward_is_refused_by_name():
    inputs = make_inputs(5)
    inputs["x"].requires_grad_()
    with pytest.raises(NotImplementedError, match="hymba_ops::selective_scan has no backward"):
        run(F.selective_scan, inputs).sum().backward()


BAD_INPUTS = [
    bad_input({"x": torch.zeros(6, 20)}, ValueError, r"x must have shape \[B, T, C\], got \[6, 20\]"),
    bad_input({"x": torch.zeros(1, 6, 20).long()}, ValueError, r"x must be float16.*, got int64"),
    bad_input({"x": torch.zeros(1, 20, 6).mT}, ValueError, r"x must have a contiguous last .*got stride 6"),
    bad_input(
        {"dt": torch.zeros(1, 5, 20)}, ValueError, r"dt must have shape \[B, T, C\] = \[1, 6, 20\], got \[1, 5, 20"
    ),
    bad_input({"dt": torch.zeros(1, 6, 20).half()}, ValueError, r"dt must have x's dtype float32, got float16"),
    bad_input({"A": torch.zeros(19, 16)}, ValueError, r"A must have shape \[C, N\] = \[20, \*\], got \[19, 16\]"),
    bad_input({"A": torch.zeros(20, 257)}, ValueError, r"A must have 1 to 256 states, got 257"),
    bad_input({"A": torch.zeros(20, 0)}, ValueError, r"A must have 1 to 256 states, got 0"),
    bad_input(
        {"A": torch.zeros(20, 16).double()}, ValueError, r"A must have x's dtype float32 or float32, got float64"
    ),
    bad_input(
        {"B": torch.zeros(1, 6, 15)}, ValueError, r"B must have shape \[B, T, N\] = \[1, 6, 16\], got \[1, 6, 15\]"
    ),
    bad_input(
        {"C": torch.zeros(2, 6, 16)}, ValueError, r"C must have shape \[B, T, N\] = \[1, 6, 16\], got \[2, 6, 16\]"
    ),
    bad_input({"D": torch.zeros(1, 20)}, ValueError, r"D must have shape \[C\] = \[20\], got \[1, 20\]"),
    bad_input(
        {"z": torch.zeros(1, 6, 21)}, ValueError, r"z must have shape \[B, T, C\] = \[1, 6, 20\], got \[1, 6, 21\]"
    ),
    bad_input({"dt_bias": torch.zeros(3)}, ValueError, r"dt_bias must have shape \[C\] = \[20\], got \[3\]"),
    bad_input({"initial_state": torch.zeros(2, 20, 16)}, ValueError, r"initial_state must .* = \[1, 20, 16\], got \[2"),
    bad_input(
        {"initial_state": torch.zeros(1, 20, 16).half()}, ValueError, r"initial_state must be float32 .*got float16"
    ),
    bad_input({"cu_seqlens": cu_seqlens(3, 4)}, ValueError, r"cu_seqlens must end at or below x's 6 rows, got 7"),
    bad_input(
        {"cu_seqlens": torch.tensor([0, 5, 4], dtype=torch.int32)}, ValueError, r"cu_seqlens must never decrease"
    ),
    bad_input({"A": None}, ValueError, r"A must be a tensor, got None"),
    bad_input({"B": 0.5}, TypeError, r"'Tensor' for argument 'B'.*float"),
]


@pytest.mark.parametrize("change,error,message", BAD_INPUTS)
def test_bad_input_is_refused(change, error, message):
    with pytest.raises(error, match=message):
        run(F.selective_scan, make_inputs(6) | change)


# ---- Long sequences of few channels, in pieces of 512 tokens ----

PIECE = 512  # csrc/cpu/selective_scan.cpp


@pytest.fixture
def many_threads():
    """Enough threads for every instruction set and dtype to cut up a sequence of 4 channels."""
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


def pieces_inputs(T, **kwargs):
    """Decays slow enough for a state to outlive a piece."""
    inputs = make_inputs(T, C=4, **kwargs)
    return inputs | {"A": inputs["A"] * 0.02}


@pytest.mark.parametrize("dtype", DTYPES)
def test_pieces_match_reference(ops, dtype, many_threads):
    check(ops, pieces_inputs(4 * PIECE + 70, dtype=dtype), dtype=dtype, initial_state=state_of(dtype, 1, 4, 16))


@pytest.mark.parametrize("T", [4 * PIECE - 1, 4 * PIECE, 4 * PIECE + 1, 5 * PIECE])
def test_lengths_around_pieces(ops, T, many_threads):
    check(ops, pieces_inputs(T, N=3), dtype=torch.float32)


def test_pieces_do_not_see_their_neighbours(ops, many_threads):
    lengths = (5 * PIECE + 3, 40, 0, 4 * PIECE)
    inputs, states, starts = pieces_inputs(sum(lengths) + 2), randn(4, 4, 16, seed=9), cu_seqlens(*lengths)
    packed, last = run(ops.selective_scan, inputs, initial_state=states, cu_seqlens=starts, return_final_state=True)
    for i in range(len(lengths)):
        rows = slice(*starts[i : i + 2].tolist())
        part = {name: x[:, rows] if name in ("x", "dt", "B", "C", "z") else x for name, x in inputs.items()}
        part |= {name: torch.cat([part[name]] * 3) for name in ("x", "dt", "B", "C", "z")}
        batch = run(ops.selective_scan, part, initial_state=states[[i] * 3], return_final_state=True)
        assert torch.equal(packed[0, rows], batch[0][1]) and torch.equal(last[i], batch[1][2])
    assert (packed[:, -2:] == 0).all()


def test_checkpoints_of_pieces(ops, many_threads):
    inputs, states = pieces_inputs(4 * PIECE + 70), randn(1, 4, 16, seed=9)
    checkpoints = op(ops, inputs, initial_state=states)[2]
    for i in (0, 1, 8, 9, 31, 33):
        prefix = {n: x[:, : 64 * i] if n in ("x", "dt", "B", "C", "z") else x for n, x in inputs.items()}
        before = run(reference.selective_scan, prefix, initial_state=states, return_final_state=True)[1]
        torch.testing.assert_close(checkpoints[:, i], before, rtol=1e-4, atol=1e-5)


def test_overflowing_pieces(ops, many_threads):
    inputs = pieces_inputs(4 * PIECE) | {"A": torch.full((4, 16), 2.0)}
    inputs["dt"] = inputs["dt"].abs() + 3
    for name in ("x", "B", "C"):
        inputs[name] = inputs[name].abs()
    inputs["x"][:, : 2 * PIECE] = 0  # a zero state for two pieces whose decay products are infinite
    out, state = check(ops, inputs, dtype=torch.float32)
    assert out[:, : 2 * PIECE].isfinite().all() and not state.isfinite().all()
