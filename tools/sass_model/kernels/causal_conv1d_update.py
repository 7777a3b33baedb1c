"""One token of 32 rows: one round of the loop for single tokens with SiLU; no padding. The filter is bfloat16."""

from tools.sass_model.kernels import (
    INNER,
    Case,
    Plan,
    Tile,
    Workload,
    blocks_with,
    own_code,
    packs,
    warps_of,
    without,
)
from tools.sass_model.predict import KernelModel

_BATCH, _WIDTH = 32, 4
_PACK, _THREADS = 8, 64


def _plan(model: KernelModel) -> Plan:
    step = min(
        (loop for loop in model.loops if model.count(loop, "MUFU.EX2")), key=lambda loop: model.count(loop, "MUFU.EX2")
    )
    zeros = next(loop for loop in model.loops if not model.count(loop, "FFMA"))
    plan = without(model, own_code(model, zeros, step))
    float_taps = blocks_with(model, None, "LDG.E.128") - blocks_with(model, None, "PRMT")
    channels = _PACK * _THREADS
    asked = {
        "special": warps_of(2 * channels),  # SiLU: an exponential and a reciprocal
        "float": warps_of((_WIDTH + 3) * channels),  # taps; SiLU's scale, sum and product
        "max, round": warps_of(channels / 2),  # two at a time; the state is in this type already
        "loads": packs(2 * channels * (1 + _WIDTH - 1 + _WIDTH + 1)),  # x, the state, taps and bias
        "stores": packs(2 * channels * (1 + _WIDTH - 1)),
    }
    moved = 2 * channels * (2 + 2 * (_WIDTH - 1) + _WIDTH + 1)
    return Plan(
        dict.fromkeys(model.loops, 0.0) | {step: 1.0},
        weights=plan.weights | dict.fromkeys(float_taps, 0.0),
        tile=Tile(f"1 token x {channels} channels", (None,), asked, moved),
    )


WORKLOADS = [
    Workload(
        kernel="causal_conv1d_update_kernel<bfloat16, 8, 4>",
        case=Case("causal_conv1d_update", batch=_BATCH, length=1),
        blocks=_BATCH * (INNER // _PACK) // _THREADS,
        device_bytes=2 * INNER * (_BATCH * (2 + 2 * (_WIDTH - 1)) + _WIDTH + 1),  # x, out, the state twice; the filter
        plan=_plan,
    )
]
