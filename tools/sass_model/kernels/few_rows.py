"""Plans for what csrc/cuda/linear_few_rows.cuh and few_rows_norm.cuh are in a kernel, of one row."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tools.sass_model.control_flow import Loop
from tools.sass_model.kernels import Plan, Tile, most
from tools.sass_model.predict import KernelModel

_WARPS, _CHUNK, _TILE_OUTPUTS = 8, 32, 16  # k of a warp's round; outputs of an mma
_SMS = 132  # of an H100
_SPAN, _LINE = 256, 128  # elements whose squares a warp sums at once; bytes of a prefetch


def _tiles_of_block(outputs: int, norm: bool) -> int:
    """An SM has three blocks of the kernels that begin with a norm, two of the others."""
    return math.ceil(math.ceil(outputs / _TILE_OUTPUTS) / (_SMS * (3 if norm else 2)))


def blocks_of(outputs: int, norm: bool = True) -> int:
    return math.ceil(math.ceil(outputs / _TILE_OUTPUTS) / _tiles_of_block(outputs, norm))


def product_plan(
    model: KernelModel, loops: Sequence[Loop], outputs: int, inner: int, weights: int, norm: bool = False
) -> Plan:
    """Rounds of a block's tiles and of a warp's chunks of k (`inner`), of all other loops none.

    A warp's last rounds, fewer than the loop's, and a chunk that is not whole have code of their own; here those run
    that the busiest warp needs.
    """
    leaves = [loop for loop in loops if all(other.parent is not loop for other in loops)]
    loop = most(model, "HMMA", leaves)
    tiles = loop.parent
    assert tiles is not None
    each = model.count(loop, "HMMA") // (2 * weights)  # rounds of the loop's
    all_rounds = math.ceil(inner // _CHUNK / _WARPS)
    trips: dict[Loop, float] = {other: 0.0 for other in model.loops if other not in loops}
    trips |= {tiles: _tiles_of_block(outputs, norm), loop: all_rounds // each}
    for other in loops:
        if model.count(other, "CCTL") and not model.count(other, "LDG"):
            trips[other] = math.ceil(2 * inner / _LINE / 32)
            if other.parent is not None:
                trips[other.parent] = _tiles_of_block(outputs, norm)
    if norm:
        trips |= _norm_trips(model, loops, inner)

    x_in_shared = model.count(loop, "LDS") > 0
    asked = {
        "tensor": 2 * weights * _WARPS * each,
        "loads": (2 * weights + (0 if x_in_shared else 1)) * _WARPS * each,
        "shared loads": _WARPS * each if x_in_shared else 0,
    }
    memory = 2 * _TILE_OUTPUTS * weights * _CHUNK * _WARPS * each
    tile = Tile(f"8 rows x 16 outputs x {_CHUNK * _WARPS * each} k", (loop,), asked, memory)
    return Plan(trips, weights=_last_rounds(model, tiles, weights, all_rounds % each, inner % _CHUNK > 0), tile=tile)


def _last_rounds(model: KernelModel, tiles: Loop, weights: int, rounds: int, partial: bool) -> dict[int, float]:
    """Which of the basic blocks that end a tile's products run: those of so many rounds, and a partial chunk's, which
    is the last one."""
    found = [
        (sum(i.opcode.startswith("HMMA") for i in model.code(block)) // (2 * weights), model.flow.address(block))
        for block in model.own_blocks(tiles)
    ]
    with_products = [(count, address) for count, address in found if count > 0]
    runs = {address: 0.0 for _, address in with_products}
    whole = [address for count, address in with_products if count == rounds]
    if whole:
        runs[whole[0]] = 1.0
    if partial:
        runs[with_products[-1][1]] = 1.0
    return runs


def _norm_trips(model: KernelModel, loops: Sequence[Loop], inner: int) -> dict[Loop, float]:
    """Rounds of the spans, and of the sum over them, which one warp makes."""
    spans = math.ceil(inner / _SPAN)
    trips: dict[Loop, float] = {}
    for loop in loops:
        shared, sums = model.count(loop, "LDS"), model.count(loop, "FADD")
        if loop.parent is not None and model.count(loop, "SHFL") + model.count(loop, "FMUL") >= 5:
            if not model.count(loop, "STG"):
                trips[loop] = math.ceil(spans / _WARPS)
        elif shared == sums and 0 < shared <= 4:
            trips[loop] = spans // shared if shared > 1 else spans % 4
    return trips
