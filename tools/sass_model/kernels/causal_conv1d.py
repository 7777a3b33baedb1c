"""A chunk of 32 rows a thread, four in a round of the loop with SiLU. One sequence: no search, no row without one."""

import math

from tools.sass_model.kernels import (
    INNER,
    META_TOKENS,
    TOKENS,
    Case,
    Plan,
    Tile,
    Workload,
    most,
    packs,
    rounds,
    warps_of,
)
from tools.sass_model.predict import KernelModel

_ROWS = TOKENS + META_TOKENS
_PACK = 8  # bf16 channels of a thread
_CHUNK, _THREADS, _WIDTH = 32, 128, 4


def _plan(model: KernelModel) -> Plan:
    walk = most(model, "MUFU.EX2")
    trips = {loop: 0.0 for loop in model.loops if loop not in (walk, walk.parent)}
    trips[walk] = rounds(model, walk, "STG.E.128", _CHUNK)
    rows = model.count(walk, "STG.E.128")
    items = rows * _PACK * _THREADS
    asked = {
        "special": warps_of(2 * items),  # SiLU: an exponential and a reciprocal
        "float": warps_of((_WIDTH + 3) * items),  # taps; SiLU's scale, sum and product
        "max, round": warps_of(items / 2),  # two at a time
        "loads": packs(2 * items),
        "stores": packs(2 * items),
    }
    return Plan(trips, tile=Tile(f"{rows} rows x {_PACK * _THREADS} channels", (walk,), asked, 2 * 2 * items))


WORKLOADS = [
    Workload(
        kernel="causal_conv1d_kernel<bfloat16, 8, 4>",
        case=Case("causal_conv1d"),
        blocks=math.ceil(_ROWS // _CHUNK * (INNER // _PACK) / _THREADS),
        device_bytes=2 * INNER * (_ROWS + _ROWS * (1 + (_WIDTH - 1) / _CHUNK)),  # a chunk re-reads three rows
        plan=_plan,
    )
]
