"""A thread computes one sine and cosine, then turns every 8th head of its frequencies: tiles of 8 tokens."""

import math
from functools import partial

from tools.sass_model.kernels import META_TOKENS, TOKENS, Case, Plan, Tile, Workload, packs, rounds, warps_of
from tools.sass_model.predict import KernelModel

_ROWS = TOKENS + META_TOKENS
_HEAD_DIM, _GROUPS, _THREADS = 64, 8, 256
_TOKENS_OF_TILE = _THREADS // (_HEAD_DIM // 2)


def _plan(heads: int, model: KernelModel) -> Plan:
    loads = 2 * heads / _GROUPS  # 16-byte loads of a warp, on average
    elements, angles = _TOKENS_OF_TILE * heads * _HEAD_DIM, _THREADS
    asked = {
        # Two of each element that is turned; a product for an angle, nine for its sine and cosine, and doubles besides.
        "float": warps_of(2 * elements + 10 * angles),
        "max, round": warps_of(elements / 2),  # two at a time
        "shared loads": packs(2 * 4 * _GROUPS * _THREADS),  # a thread's sines and cosines
        "loads": packs(2 * elements),
        "stores": packs(2 * elements + 2 * 4 * angles),
    }
    tile = Tile(f"{_TOKENS_OF_TILE} tokens x {heads} heads", (None,), asked, memory_bytes=2 * 2 * elements)
    return Plan({loop: rounds(model, loop, "LDG.E.128", loads) for loop in model.loops}, tile=tile)


def _workload(name: str, heads: int) -> Workload:
    return Workload(
        kernel="rotary_kernel<bfloat16, 8>",
        case=Case("rotary", name),
        detail=f"{heads} heads of {_HEAD_DIM}",
        blocks=math.ceil(_ROWS / _TOKENS_OF_TILE),
        device_bytes=2 * 2 * heads * _HEAD_DIM * _ROWS,
        plan=partial(_plan, heads),
    )


WORKLOADS = [_workload("queries", 25), _workload("keys", 5)]
