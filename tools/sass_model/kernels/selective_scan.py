"""The tiled kernel: four warps of a block scan, four fetch, prepare and finish."""

import math

from tools.sass_model.kernels import INNER, META_TOKENS, TOKENS, Plan, Workload, blocks_with, most
from tools.sass_model.predict import KernelModel

_T = TOKENS + META_TOKENS
_TILE, _CHANNELS, _STATES = 32, 32, 16


def _plan(model: KernelModel) -> Plan:
    outer = [loop for loop in model.loops if loop.parent is None]
    tiles, beside = most(model, "HMMA", outer), most(model, "LDGSTS", outer)
    scan = most(model, "HMMA", [loop for loop in model.loops if loop.parent is tiles])  # eight tokens a round
    rounds = math.ceil(_T / _TILE)
    return Plan(
        {tiles: rounds, beside: rounds, scan: _TILE / 8 - 1},  # a tile's last eight tokens follow the loop
        roles=((4, tiles), (4, beside)),
        weights={address: 0.0 for address in blocks_with(model, tiles, "STG")},  # checkpoints, in training
    )


WORKLOADS = [
    Workload(
        kernel="tiled_scan_kernel<bfloat16>",
        what=f"1.5B layer, 8192 + 128 tokens, bf16, batch {batch}",
        tokens=_T * batch,
        blocks=math.ceil(INNER / _CHANNELS) * batch,
        device_bytes=(4 * 2 * INNER + 2 * 2 * _STATES) * _T * batch,
        plan=_plan,
        broadcast_shared_loads=True,
    )
    for batch in (1, 8)
]
