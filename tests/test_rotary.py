"""rotary against python_reference."""

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
from tolerance import assert_close


def frequencies(D, base=10000.0):
    return (base ** (-torch.arange(0, D, 2, dtype=torch.float32) / D)).to(DEVICE)


def integers(values):
    return torch.as_tensor(values, dtype=torch.int32, device=DEVICE)


def check(op, x, positions, inv_freq):
    """positions and inv_freq stay int32 and float32 for the float64 run: the angles are part of the definition."""
    actual = op(x, positions, inv_freq)
    exact = reference.rotary(x.double(), positions, inv_freq)
    assert_close(actual, reference.rotary(x, positions, inv_freq), exact, dtype=x.dtype)
    return actual


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("D", [2, 4, 6, 14, 16, 18, 30, 32, 34, 64, 256], ids=lambda d: f"D{d}")
def test_matches_reference(ops, D, layout, dtype):
    check(ops.rotary, layout(randn(2, 7, 3, D, dtype=dtype)), integers(range(5, 12)), frequencies(D))


# csrc/cuda/rotary.cu: a tile has 256 phases, whole tokens of D / 2 frequencies or a part of one's; in a tile of bfloat16
# packs every 8th head is one thread's.
@pytest.mark.parametrize("D,tokens,heads", [(64, 7, 9), (64, 8, 8), (64, 9, 7), (510, 3, 1), (512, 3, 2), (514, 3, 1),
                                            (1040, 2, 9), (2, 257, 1), (48, 11, 5)])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_sizes_around_tiles(ops, dtype, D, tokens, heads):
    check(ops.rotary, randn(1, tokens, heads, D, dtype=dtype), integers(range(tokens)), frequencies(D))


@pytest.mark.parametrize("dtype", DTYPES)
def test_positions_of_each_row(ops, dtype):
    positions = integers([[0, 1, 2, 3], [100, 7, 100, 2**20]])
    x = randn(2, 4, 3, 16, dtype=dtype)
    out = check(ops.rotary, x, positions, frequencies(16))
    assert torch.equal(out[0, 0], x[0, 0])  # position 0 turns nothing
    strided = integers([[0] * 9] * 2)[:, 2:6].copy_(positions)
    assert torch.equal(ops.rotary(x, strided, frequencies(16)), out)


@pytest.mark.parametrize("farthest", [1_000, 1_000_000, 2**30])
def test_far_positions_keep_float32_accuracy(ops, farthest):
    """The argument reduction must not lose bits."""
    seeded = torch.Generator().manual_seed(0)
    positions = torch.randint(0, farthest, (1, 4000), dtype=torch.int32, generator=seeded, device="cpu")
    x, positions = torch.ones(1, 4000, 1, 16, device=DEVICE), positions.to(DEVICE)
    inv_freq = frequencies(16, 3.0)
    exact = reference.rotary(x.double(), positions, inv_freq)
    assert (ops.rotary(x, positions, inv_freq).double() - exact).abs().max() < 5e-7
    if farthest < 2**30:
        assert (ops.rotary(x.double(), positions, inv_freq) - exact).abs().max() < 1e-15


def test_slice_of_a_projection(ops):
    q = randn(2, 5, 200)[..., 16:144].unflatten(-1, (8, 16))
    check(ops.rotary, q, integers(range(5)), frequencies(16))


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_and_neighbours_do_not_change_bits(ops, dtype):
    x, positions = randn(1, 24, 8, 32, dtype=dtype), integers(range(24))
    out = ops.rotary(x, positions, frequencies(32))
    odd_tokens = odd_rows(x.flatten(-2)).unflatten(-1, (8, 32))  # their heads are aligned, and odd_rows(x)'s tokens
    for other in (strided(x), unaligned(x), odd_rows(x), odd_tokens):
        assert torch.equal(ops.rotary(other, positions, frequencies(32)), out)
    assert torch.equal(ops.rotary(x[:, 3:9], positions[3:9], frequencies(32)), out[:, 3:9])


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_nan_and_inf_stay_in_their_pair(ops, value):
    x = randn(1, 3, 2, 16)
    x[0, 1, 1, 3] = value
    check(ops.rotary, x, integers(range(1, 4)), frequencies(16))


@pytest.mark.parametrize("shape", [(0, 3, 2, 8), (2, 0, 2, 8), (2, 3, 0, 8)], ids=str)
def test_empty(ops, shape):
    assert ops.rotary(torch.zeros(shape, device=DEVICE), integers([0] * shape[1]), frequencies(8)).shape == shape


def test_threads_do_not_change_bits():
    x, positions = randn(1, 600, 5, 64), integers(range(600))
    assert_threads_do_not_matter(lambda: F.rotary(x, positions, frequencies(64)))


def test_opcheck():
    for positions in (integers(range(6)), integers([[0] * 6] * 2)):
        torch.library.opcheck(torch.ops.hymba_ops.rotary.default, (randn(2, 6, 3, 16), positions, frequencies(16)))


def test_compiles_once_for_all_lengths():
    assert_compiles_once(
        lambda x, p, f: (F.rotary(x * 2, p, f),),
        lambda T: (randn(2, T, 3, 16), integers(range(T)), frequencies(16)),
        (7, 20, 3),
    )


def test_backward_is_refused_by_name():
    x, positions = randn(1, 3, 2, 8).requires_grad_(), integers(range(3))
    with pytest.raises(NotImplementedError, match="hymba_ops::rotary has no backward"):
        F.rotary(x, positions, frequencies(8)).sum().backward()


BAD_INPUTS = [
    bad_input({"x": torch.zeros(2, 6, 8)}, ValueError, r"x must have shape \[B, T, H, D\], got \[2, 6, 8\]"),
    bad_input({"x": torch.zeros(2, 6, 3, 7)}, ValueError, r"x must have an even head dim, got 7"),
    bad_input({"x": torch.zeros(2, 6, 3, 0)}, ValueError, r"x must have an even head dim, got 0"),
    bad_input({"x": torch.zeros(2, 6, 3, 8, dtype=torch.int32)}, ValueError, r"x must be float16.*, got int32"),
    bad_input({"x": torch.zeros(2, 6, 8, 3).mT}, ValueError, r"x must have a contiguous last .*got stride 3"),
    bad_input({"positions": torch.arange(6)}, ValueError, r"positions must be int32, got int64"),
    bad_input({"positions": torch.zeros(5, dtype=torch.int32)}, ValueError, r"positions must .* = \[6\], got \[5\]"),
    bad_input(
        {"positions": torch.zeros(3, 6, dtype=torch.int32)}, ValueError, r"positions must .* = \[2, 6\], got \[3"
    ),
    bad_input({"positions": torch.zeros((), dtype=torch.int32)}, ValueError, r"positions must have shape .*got \[\]"),
    bad_input({"inv_freq": torch.zeros(3)}, ValueError, r"inv_freq must have shape \[D / 2\] = \[4\], got \[3\]"),
    bad_input({"inv_freq": torch.zeros(4).double()}, ValueError, r"inv_freq must be float32, got float64"),
    bad_input({"positions": [0, 1]}, TypeError, r"'Tensor' for argument 'positions'.*list"),
]


@pytest.mark.skipif(DEVICE != "cpu", reason="the cases hold CPU tensors")
@pytest.mark.parametrize("change,error,message", BAD_INPUTS)
def test_bad_input_is_refused(change, error, message):
    arguments = {"x": torch.zeros(2, 6, 3, 8), "positions": torch.arange(6, dtype=torch.int32),
                 "inv_freq": torch.zeros(4), **change}  # fmt: skip
    with pytest.raises(error, match=message):
        F.rotary(*arguments.values())
