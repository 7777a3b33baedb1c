"""Plans for what csrc/cuda/linear_few_rows.cuh and few_rows_norm.cuh are in a kernel, of one row."""

from __future__ import annotations

import math
from collections.abc import Iterable

from tools.sass_model.control_flow import Loop
from tools.sass_model.kernels import Tile, most
from tools.sass_model.predict import KernelModel

_WARPS, _CHUNK, _TILE_OUTPUTS = 8, 32, 16  # k of a warp's round; outputs of an mma
_SMS, _BLOCKS = 132, 3  # of an H100; of an SM
_SPAN, _LINE = 256, 128  # elements whose squares a warp sums at once; bytes of a prefetch


def _tiles_of_block(outputs: int) -> int:
    return math.ceil(math.ceil(outputs / _TILE_OUTPUTS) / (_SMS * _BLOCKS))


def blocks_of(outputs: int) -> int:
    return math.ceil(math.ceil(outputs / _TILE_OUTPUTS) / _tiles_of_block(outputs))


def product_trips(
    model: KernelModel, loops: Iterable[Loop], outputs: int, inner: int, weights: int
) -> tuple[dict[Loop, float], Tile]:
    """Rounds of a block's tiles and of a warp's chunks of k, and what a round of the latter asks for. `inner`: k."""
    loops = list(loops)
    loop = most(model, "HMMA", loops)
    assert loop.parent is not None
    each = model.count(loop, "HMMA") / (2 * weights)  # chunks of a round
    trips: dict[Loop, float] = {
        loop.parent: _tiles_of_block(outputs),
        loop: math.ceil(math.ceil(inner / _CHUNK) / _WARPS / each),
    }
    for other in loops:
        if model.count(other, "CCTL") and not model.count(other, "LDG"):
            trips[other] = math.ceil(2 * inner / _LINE / 32)
            if other.parent is not None:
                trips[other.parent] = _tiles_of_block(outputs)
    x_in_shared = model.count(loop, "LDS") > 0
    asked = {
        "tensor": 2 * weights * _WARPS * each,
        "loads": (2 * weights + (0 if x_in_shared else 1)) * _WARPS * each,
        "shared loads": _WARPS * each if x_in_shared else 0,
    }
    memory = 2 * _TILE_OUTPUTS * weights * _CHUNK * _WARPS * each
    return trips, Tile(f"8 rows x 16 outputs x {int(_CHUNK * _WARPS * each)} k", (loop,), asked, memory)


def norm_trips(model: KernelModel, loops: Iterable[Loop], inner: int) -> dict[Loop, float]:
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
