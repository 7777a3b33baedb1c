"""One token of 32 rows: one round of the loop over tokens; no padding. A, D and dt's bias are float32."""

from tools.sass_model.kernels import (
    INNER,
    Case,
    Plan,
    Tile,
    Workload,
    blocks_with,
    most,
    own_code,
    packs,
    warps_of,
    without,
)
from tools.sass_model.predict import KernelModel

_BATCH, _STATES = 32, 16
_LANES, _THREADS = 2, 128


def _plan(model: KernelModel) -> Plan:
    step = most(model, "MUFU.EX2")
    zeros = next(loop for loop in model.loops if not model.count(loop, "MUFU"))
    plan = without(model, own_code(model, zeros, step))
    short_rates = blocks_with(model, None, "LDG") & blocks_with(model, None, "PRMT")  # A in the inputs' type
    channels = _THREADS // _LANES
    states = channels * _STATES
    asked = {
        "special": warps_of(states + 3 * channels),  # decays; softplus, and two of the gate
        # dt A, B (dt x), the step and the sum of each state; softplus 10, its bias, dt x, D x, and four of the gate.
        "float": warps_of(4 * states + 17 * channels),
        "max, round": warps_of(channels + channels / 2),  # of softplus; two outputs become 16-bit at a time
        # State and A; x, dt, z, D and the bias; B and C.
        "loads": packs(2 * 4 * states + (3 * 2 + 2 * 4) * channels + 2 * 2 * _STATES),
        "stores": packs(4 * states + 2 * channels),
    }
    moved = 3 * 4 * states + (4 * 2 + 2 * 4) * channels + 2 * 2 * _STATES
    return Plan(
        {loop: 0.0 for loop in model.loops if loop is not step},
        weights=plan.weights | dict.fromkeys(short_rates, 0.0),
        tile=Tile(f"1 token x {channels} channels", (None,), asked, moved),
    )


WORKLOADS = [
    Workload(
        kernel="selective_state_update_kernel<bfloat16, true, 2, 2>",
        case=Case("selective_state_update", batch=_BATCH, length=1),
        blocks=_BATCH * INNER * _LANES // _THREADS,
        # The state twice and A in float32; x, dt, z and out; D and dt_bias in float32.
        device_bytes=4 * INNER * _STATES * (2 * _BATCH + 1) + 2 * 4 * INNER * _BATCH + 2 * 4 * INNER,
        plan=_plan,
    )
]
