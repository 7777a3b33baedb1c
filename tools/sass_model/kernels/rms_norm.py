"""A row is read, summed and written by two warps (hidden states) or 8 lanes (dt, B), which hold up to 4 chunks each.

Weights are bfloat16. Rounds without elements run, but for their loads and stores.
"""

import math
from functools import partial

from tools.sass_model.kernels import (
    HIDDEN,
    META_TOKENS,
    TOKENS,
    Case,
    Plan,
    Tile,
    Workload,
    blocks_with,
    packs,
    warps_of,
)
from tools.sass_model.predict import KernelModel

_ROWS = TOKENS + META_TOKENS
_THREADS, _WARP = 256, 32


def _plan(dim: int, lanes: int, model: KernelModel) -> Plan:
    loads, widened = blocks_with(model, None, "LDG"), blocks_with(model, None, "PRMT")
    rows = _THREADS // lanes
    elements = rows * dim
    asked = {
        "special": float(min(rows, _THREADS // _WARP)),  # a square root a row, of a warp's rows at once
        # Of each element the square, its weight times the row's factor, and that times the element.
        "float": warps_of(3 * elements),
        "max, round": warps_of(elements / 2),  # two at a time
        "loads": packs(2 * (elements + dim)),  # rows, and the weight once a block
        "stores": packs(2 * elements),
    }
    tile = Tile(f"{rows} rows", (None,), asked, memory_bytes=2 * 2 * elements)
    return Plan({}, weights=dict.fromkeys(loads - widened, 0.0), tile=tile)  # weights that are float32


def _workload(name: str, dim: int, lanes: int) -> Workload:
    return Workload(
        kernel=f"rms_norm_kernel<bfloat16, {lanes}, true, true>",
        case=Case("rms_norm", name),
        detail=f"{dim} wide",
        blocks=math.ceil(_ROWS * lanes / _THREADS),
        device_bytes=2 * 2 * dim * _ROWS,
        plan=partial(_plan, dim, lanes),
    )


WORKLOADS = [_workload("hidden states", HIDDEN, 2 * _WARP), _workload("dt", 100, 8), _workload("B", 16, 8)]
