"""What each probe (probes.cu) is given, what it should give, and how far off a result may be. numpy only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BLOCK = 64  # probes.h: kBlock
# The error of the special-function unit's approximations, with a factor of 2 for the last bit's rounding.
APPROXIMATION = 2.0**-21
SMALLEST_NORMAL = np.float32(2.0**-126)


@dataclass
class Case:
    """`inputs` [items, ...]; expected(inputs) is what comes out, bit for bit where `tolerance` is 0.

    Else to `tolerance` of the value, or, unless `relative`, of 1 where the value is smaller.
    """

    inputs: np.ndarray
    expected: Callable[[np.ndarray], np.ndarray]
    tolerance: float = 0.0
    relative: bool = True
    sm90: bool = False  # a probe of probes_sm90.cu


def _whole_blocks(values: np.ndarray) -> np.ndarray:
    """The values, from the start again until the last block is full."""
    return np.resize(values, (-(-len(values) // BLOCK) * BLOCK, *values.shape[1:]))


def _floats(*ranges: tuple[float, float]) -> np.ndarray:
    """Random numbers of each range, and the special ones."""
    random = np.random.default_rng(0)
    special = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1e-38, 1.5e-38], np.float32)
    parts = [random.uniform(*bounds, 200).astype(np.float32) for bounds in ranges]
    return _whole_blocks(np.concatenate([special, *parts]))


def _flush(x: np.ndarray) -> np.ndarray:
    """Subnormal numbers become zero."""
    return np.where(np.abs(x) < SMALLEST_NORMAL, np.copysign(np.float32(0), x), x)


def _approximation(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    def expected(x: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return _flush(function(_flush(x).astype(np.float64)).astype(np.float32))

    return expected


def _to_bf16(x: np.ndarray) -> np.ndarray:
    """By adding half of the last kept bit, ties to even."""
    bits = x.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), rounded)


def _to_f16(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.where(np.isnan(x), np.uint16(0x7FFF), x.astype(np.float16).view(np.uint16))


def _from_bf16(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.uint32) << 16).view(np.float32)


def _sums(group: int) -> Callable[[np.ndarray], np.ndarray]:
    """Each item becomes the sum of its group's items."""
    return lambda x: np.repeat(x.reshape(-1, group).astype(np.float64).sum(1), group).astype(np.float32)


def _mma(x: np.ndarray) -> np.ndarray:
    """Sums [items, 4] of fragments [items, 6], four of a and two of b: csrc/cuda/primitives/mma.cuh."""
    out = np.empty((len(x), 4), np.float32)
    lanes = np.arange(32)
    g, q = lanes // 4, lanes % 4
    for warp in range(0, len(x), 32):
        lane = x[warp : warp + 32].astype(np.float64)
        a, b = np.empty((16, 8)), np.empty((8, 8))
        for i in range(4):
            a[g + i % 2 * 8, q + i // 2 * 4] = lane[:, i]
        for i in range(2):
            b[q + i * 4, g] = lane[:, 4 + i]
        sums = a @ b
        for i in range(4):
            out[warp : warp + 32, i] = sums[g + i // 2 * 8, q * 2 + i % 2] + (i + 1)
    return out


def _mma16(widen: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Sums [items, 4] of fragments [items, 12] of 16-bit elements, four pairs of a and two of b."""

    def expected(x: np.ndarray) -> np.ndarray:
        out = np.empty((len(x), 4), np.float32)
        lanes = np.arange(32)
        g, q = lanes // 4, lanes % 4
        for warp in range(0, len(x), 32):
            lane = widen(x[warp : warp + 32]).astype(np.float64)
            a, b = np.empty((16, 16)), np.empty((16, 8))
            for half in range(2):
                for i in range(4):
                    a[g + i % 2 * 8, q * 2 + i // 2 * 8 + half] = lane[:, 2 * i + half]
                for i in range(2):
                    b[q * 2 + i * 8 + half, g] = lane[:, 8 + 2 * i + half]
            sums = a @ b
            for i in range(4):
                out[warp : warp + 32, i] = sums[g + i // 2 * 8, q * 2 + i % 2] + (i + 1)
        return out

    return expected


def _matrices(transposed: bool) -> Callable[[np.ndarray], np.ndarray]:
    """Fragments [items, 8] of rows [items, 8]: of the four 8 x 8 matrices that a warp's rows are."""

    def expected(x: np.ndarray) -> np.ndarray:
        out = np.empty_like(x)
        for lane in range(32):
            for i in range(8):
                row, column = lane // 4, lane % 4 * 2 + i % 2
                row, column = (column, row) if transposed else (row, column)
                out[lane::32, i] = x[i // 2 * 8 + row :: 32, column]
        return out

    return expected


def _unless_even(x: np.ndarray) -> np.ndarray:
    return np.where(x[:, :1] % 2 == 1, x, np.uint8(0))


def _box(shape: tuple[int, ...], axes: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """Rows [items, 64] of each block's box, swizzled: of rows that lie as `shape`, dimensions in `axes`' order.

    The dimensions are then (..., y, x); the box has 4 of x, from 4 times the block's number on, and begins at y = -1.
    """

    def expected(rows: np.ndarray) -> np.ndarray:
        tensor = rows.reshape(*shape, 64).transpose(*axes, len(shape))
        tensor = np.concatenate([np.zeros_like(tensor[..., :1, :, :]), tensor[..., :-1, :, :]], axis=-3)
        out = []
        for block in range(len(rows) // 128):
            box = tensor[..., 4 * block : 4 * block + 4, :].reshape(128, 8, 8)
            row, chunk = np.arange(128)[:, None], np.arange(8)
            out.append(box[row, chunk ^ row % 8].reshape(128, 64))
        return np.concatenate(out)

    return expected


def _warpgroup_product(
    columns: int, registers: bool, widen: Callable[[np.ndarray], np.ndarray]
) -> Callable[[np.ndarray], np.ndarray]:
    """Sums [items, columns / 2] of items [items, 128], a row of a and one of b's tile (probes_sm90.cu)."""

    def expected(x: np.ndarray) -> np.ndarray:
        out = np.empty((len(x), columns // 2), np.float32)
        t, i = np.arange(128)[:, None], np.arange(columns // 2)
        row, column = t // 32 * 16 + t % 32 // 4 + i // 2 % 2 * 8, i // 4 * 8 + t % 4 * 2 + i % 2
        for block in range(0, len(x), 128):
            items = widen(x[block : block + 128]).astype(np.float64)
            a, tile = items[:64, :64], items[:, 64:]
            b = np.concatenate([tile[:64], tile[64:]], axis=1) if registers else tile.T
            out[block : block + 128] = (a @ b[:, :columns] + 1)[row, column]
        return out

    return expected


def _handed_over(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, 32)[:, ::-1].reshape(-1)


def _stored_matrices(x: np.ndarray) -> np.ndarray:
    """Rows [items, 4] of fragments: the way back of `_matrices`."""
    out = np.empty_like(x)
    for lane in range(32):
        for i in range(4):
            out[i * 8 + lane // 4 :: 32, lane % 4] = x[lane::32, i]
    return out


def _in_turn(x: np.ndarray) -> np.ndarray:
    """Sums of the blocks up to each, plus one, and in the first item the number of blocks."""
    out = np.zeros((len(x), 2), np.float32)
    out[:, 0] = np.cumsum(x.reshape(-1, BLOCK), axis=0, dtype=np.float32).reshape(-1) + np.float32(1)
    out[0, 1] = np.array(len(x) // BLOCK, np.uint32).view(np.float32)
    return out


def _all_16_bits() -> np.ndarray:
    """Every bit pattern but NaNs, whose payloads are nobody's promise."""
    bits = np.arange(2**16, dtype=np.uint16)
    return _whole_blocks(bits[~np.isnan(bits.view(np.float16)) & ~np.isnan(_from_bf16(bits))])


def _bytes(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (4 * BLOCK, count), dtype=np.uint8)


ROUNDED = _floats((-2, 2), (-1e-6, 1e-6), (-7e4, 7e4), (-3.4e38, 3.4e38))
FRAGMENTS = np.random.default_rng(2).normal(size=(4 * BLOCK, 6)).astype(np.float32)
ROWS = np.arange(2 * 128 * 64, dtype=np.uint16).reshape(-1, 64)
TILES = np.random.default_rng(4).normal(size=(128, 128)).astype(np.float32)
HALVES = np.random.default_rng(3).normal(size=(4 * BLOCK, 12)).astype(np.float32)
SUMMED = np.random.default_rng(1).normal(size=4 * BLOCK).astype(np.float32)

CASES = {
    "exp2_approx": Case(_floats((-2, 2), (-130, 130), (-1e-3, 1e-3)), _approximation(np.exp2), APPROXIMATION),
    "log2_approx": Case(
        _floats((0, 2), (0.99, 1.01), (0, 1e30), (-1, 0)), _approximation(np.log2), APPROXIMATION, False
    ),
    "reciprocal_approx": Case(
        _floats((-2, 2), (-1e30, 1e30), (-1e-30, 1e-30)), _approximation(np.reciprocal), APPROXIMATION
    ),
    "rsqrt_approx": Case(
        _floats((0, 2), (0, 1e30), (0, 1e-30), (-1, 0)), _approximation(lambda x: 1 / np.sqrt(x)), APPROXIMATION
    ),
    "widen_bf16": Case(_all_16_bits(), _from_bf16),
    "widen_f16": Case(_all_16_bits(), lambda x: x.view(np.float16).astype(np.float32)),
    "narrow_bf16": Case(ROUNDED, _to_bf16),
    "narrow_f16": Case(ROUNDED, _to_f16),
    "narrow_pair_bf16": Case(_whole_blocks(ROUNDED.reshape(-1, 2)), lambda x: _to_bf16(x).view(np.uint32)[:, 0]),
    "narrow_pair_f16": Case(_whole_blocks(ROUNDED.reshape(-1, 2)), lambda x: _to_f16(x).view(np.uint32)[:, 0]),
    **{f"load_store_{n}": Case(_bytes(n), np.copy) for n in (2, 4, 8, 16)},
    **{f"{kind}_{n}": Case(_bytes(n), np.copy) for kind in ("load_constant", "streaming") for n in (4, 8, 16)},
    **{f"copy_async_{n}": Case(_bytes(n), _unless_even) for n in (4, 8, 16)},
    "warp_sum": Case(SUMMED, _sums(32), 1e-6, relative=False),
    "warp_sum_8": Case(SUMMED, _sums(8), 1e-6, relative=False),
    "warp_max": Case(SUMMED, lambda x: np.repeat(x.reshape(-1, 32).max(1), 32)),
    "block_sum": Case(SUMMED, _sums(BLOCK), 1e-6, relative=False),
    "named_barriers": Case(SUMMED, lambda x: x.reshape(-1, 2, 32)[:, ::-1].reshape(-1)),
    "blocks_in_turn": Case(np.tile(SUMMED, 3), _in_turn),
    "block_barrier": Case(SUMMED, lambda x: x.reshape(-1, 2, 32)[:, ::-1].reshape(-1)),
    # What tf32 holds is exact; of other floats a GPU may cut or round the low 13 bits: a capture shows which.
    "mma_tf32": Case((FRAGMENTS.view(np.uint32) & 0xFFFFE000).view(np.float32), _mma, 1e-6, relative=False),
    "mma_tf32_of_floats": Case(FRAGMENTS, _mma, 2.0**-7, relative=False),
    "mma_bf16": Case(_to_bf16(HALVES), _mma16(_from_bf16), 1e-6, relative=False),
    "mma_f16": Case(_to_f16(HALVES), _mma16(lambda x: x.view(np.float16).astype(np.float32)), 1e-6, relative=False),
    **{
        name: Case(np.arange(4 * BLOCK * 8, dtype=np.uint16).reshape(-1, 8), _matrices(transposed))
        for name, transposed in (("load_matrices", False), ("load_matrices_transposed", True))
    },
    "load_box_4d": Case(ROWS, _box((4, 8, 8), (0, 1, 2)), sm90=True),
    "load_box_5d": Case(ROWS, _box((2, 2, 8, 8), (1, 0, 2, 3)), sm90=True),
    **{
        f"wgmma_{'registers_' * registers}{columns}_{kind}": Case(
            narrow(TILES),
            _warpgroup_product(columns, registers, widen),
            8e-6,  # 64 sums in float, each rounded
            relative=False,
            sm90=True,
        )
        for kind, narrow, widen, shapes in (
            ("bf16", _to_bf16, _from_bf16, ((64, False), (80, False), (128, False), (64, True), (128, True))),
            ("f16", _to_f16, lambda x: x.view(np.float16).astype(np.float32), ((80, False), (128, True))),
        )
        for columns, registers in shapes
    },
    "mbarriers": Case(SUMMED, _handed_over, sm90=True),
    "store_matrices": Case(np.arange(4 * 128, dtype=np.uint32).reshape(-1, 4), _stored_matrices, sm90=True),
    "set_registers": Case(np.arange(512, dtype=np.float32), np.copy, sm90=True),
}


def assert_agrees(name: str, actual: np.ndarray, expected: np.ndarray) -> None:
    """`actual` is what the probe should give, to its case's tolerance; NaN stands where NaN should."""
    case = CASES[name]
    assert actual.shape == expected.shape and actual.dtype == expected.dtype, name
    if case.tolerance == 0:
        kind = np.dtype(f"u{actual.itemsize}")
        wrong = (actual.view(kind) != expected.view(kind)) & ~((actual != actual) & (expected != expected))
    else:
        a, e = actual.astype(np.float64), expected.astype(np.float64)
        scale = np.abs(e) if case.relative else np.maximum(np.abs(e), 1)
        with np.errstate(invalid="ignore"):
            wrong = ~((a == e) | (np.abs(a - e) <= case.tolerance * scale) | (np.isnan(a) & np.isnan(e)))
    first = np.argmax(wrong)
    assert not wrong.any(), f"{name}: item {first} is {actual.flat[first]}, expected {expected.flat[first]}"


def capture(
    run: Callable[[str, np.ndarray, np.ndarray], np.ndarray], file: Path, device: str, names: Iterable[str] = ()
) -> None:
    """Writes inputs and outputs of these probes (default: all), as run(name, inputs, like) gives them, to a .npz file;
    `like` has the outputs' shape and dtype."""
    arrays = {"device": np.array(device)}
    for name in names or CASES:
        case = CASES[name]
        arrays[f"{name}.in"] = case.inputs
        arrays[f"{name}.out"] = run(name, case.inputs, np.empty_like(case.expected(case.inputs)))
    np.savez_compressed(file, **arrays)


def assert_agrees_with_capture(run: Callable[[str, np.ndarray, np.ndarray], np.ndarray], file: Path) -> None:
    """What run(...) gives for the captured inputs agrees with the captured outputs."""
    with np.load(file) as captured:
        hopper = any(f"{name}.out" in captured for name, case in CASES.items() if case.sm90)
        for name, case in CASES.items():
            if case.sm90 and not hopper:
                continue  # captured on another GPU
            assert f"{name}.out" in captured, f"{file} has no {name}: capture it again (tools/capture_primitives.py)"
            outputs = captured[f"{name}.out"]
            assert_agrees(name, run(name, captured[f"{name}.in"], outputs), outputs)
