"""The tiled kernel: four warps of a block scan, four fetch, prepare and finish."""

import math

from tools.sass_model.kernels import (
    INNER,
    META_TOKENS,
    TOKENS,
    Case,
    Plan,
    Tile,
    Workload,
    blocks_with,
    most,
    packs,
    warps_of,
)
from tools.sass_model.predict import KernelModel

_T = TOKENS + META_TOKENS
_TILE, _CHANNELS, _STATES, _WORKERS = 32, 32, 16, 4


def _plan(model: KernelModel) -> Plan:
    outer = [loop for loop in model.loops if loop.parent is None]
    tiles, beside = most(model, "HMMA", outer), most(model, "LDGSTS", outer)
    scan = most(model, "HMMA", [loop for loop in model.loops if loop.parent is tiles])  # eight tokens a round
    rounds = math.ceil(_T / _TILE)
    # Checkpoints, in training, and tokens behind the end of a tile: there are none.
    unused = blocks_with(model, tiles, "STG") | (
        blocks_with(model, beside, "FSEL") - blocks_with(model, beside, "FADD")
    )
    return Plan(
        {tiles: rounds, beside: rounds, scan: _TILE / 8 - 1},  # a tile's last eight tokens follow the loop
        roles=((_WORKERS, tiles), (4, beside)),
        weights=dict.fromkeys(unused, 0.0),
        tile=Tile(f"{_TILE} tokens x {_CHANNELS} channels", (tiles, beside), _asked(), _memory_bytes(_TILE, _CHANNELS)),
    )


def _memory_bytes(tokens: int, channels: int) -> float:
    """x, dt, z and the output, B and C."""
    return (4 * channels + 2 * _STATES) * 2 * tokens


def _asked() -> dict[str, float]:
    items, states = _TILE * _CHANNELS, _TILE * _CHANNELS * _STATES
    # What a worker reads, as floats: dt and dt x of 16 channels, B and C of 8 states.
    worker_bytes = 4 * _TILE * (2 * 16 + 2 * 8)
    # What goes through shared memory for helpers, once: copied inputs, sums, and outputs on their way into rows.
    copied, sums, outputs = 2 * (3 * items + 2 * _TILE * _STATES), 4 * items, 2 * items
    prepared = 4 * (2 * items + 2 * _TILE * _STATES)  # dt, dt x, B and C as floats
    return {
        "tensor": states / (16 * 8 * 8),  # the sum over states, by m16n8k8, were all of its columns used
        "special": warps_of(states + 3 * items),  # decays; softplus, and two of the gate
        # dt A, B (dt x) and the step of each state; softplus 10, its bias, dt x, D x, and four of the gate.
        "float": warps_of(3 * states + 17 * items),
        "max, round": warps_of(items + items / 2),  # of softplus; two outputs become 16-bit at a time
        "shared loads": _WORKERS * packs(worker_bytes) + packs(copied + sums + outputs),
        "loads": packs(copied),
        "stores": packs(prepared + sums + outputs + outputs),  # at last to global memory
    }


WORKLOADS = [
    Workload(
        kernel="sm90_tiled_scan_kernel<bfloat16>",
        case=Case("selective_scan", batch=batch),
        blocks=math.ceil(INNER / _CHANNELS) * batch,
        device_bytes=_memory_bytes(_T, INNER) * batch,
        plan=_plan,
        broadcast_shared_loads=True,
    )
    for batch in (1, 8)
]
