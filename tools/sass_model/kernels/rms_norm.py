"""A row is read, summed and written by two warps (hidden states) or 8 lanes (dt, B), which hold up to 4 chunks each.

Both kinds of weights' loads are counted, one of them runs; and the second reading of a row that registers do not hold,
which does not run. Rounds without elements run, but for their loads and stores.
"""

import math

from tools.sass_model.kernels import HIDDEN, META_TOKENS, TOKENS, Case, Plan, Workload
from tools.sass_model.predict import KernelModel

_ROWS = TOKENS + META_TOKENS
_THREADS, _WARP = 256, 32


def _plan(model: KernelModel) -> Plan:
    return Plan({})


def _workload(name: str, dim: int, lanes: int) -> Workload:
    return Workload(
        kernel=f"rms_norm_kernel<bfloat16, {lanes}, true, true>",
        case=Case("rms_norm", name),
        detail=f"{dim} wide",
        blocks=math.ceil(_ROWS * lanes / _THREADS),
        device_bytes=2 * 2 * dim * _ROWS,
        plan=_plan,
    )


WORKLOADS = [_workload("hidden states", HIDDEN, 2 * _WARP), _workload("dt", 100, 8), _workload("B", 16, 8)]
