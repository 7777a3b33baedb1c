"""Two passes over a row of each branch; a block a row. Both kinds of weights' loads are counted, one of them runs."""

import math

from tools.sass_model.kernels import INNER, META_TOKENS, TOKENS, Plan, Workload, rounds
from tools.sass_model.predict import KernelModel

_ROWS = TOKENS + META_TOKENS
_VECTOR = 8  # bf16 elements in a 16-byte load
_WARPS = 8


def _plan(model: KernelModel) -> Plan:
    loads = 2 * math.ceil(INNER / _VECTOR / 32) / _WARPS  # 16-byte loads of a warp in one pass, on average
    return Plan({loop: rounds(model, loop, "LDG.E.128", loads) for loop in model.loops})


WORKLOADS = [
    Workload(
        kernel="norm_average_kernel<bfloat16, true>",
        what="1.5B layer, 8192 + 128 tokens, bf16",
        tokens=_ROWS,
        blocks=_ROWS,
        device_bytes=3 * 2 * INNER * _ROWS,
        plan=_plan,
    )
]
