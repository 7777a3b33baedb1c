"""One token of 32 rows: one round of the loop over tokens; no padding."""

from tools.sass_model.kernels import INNER, Case, Plan, Workload, most
from tools.sass_model.predict import KernelModel

_BATCH, _STATES = 32, 16
_LANES, _THREADS = 2, 128


def _plan(model: KernelModel) -> Plan:
    step = most(model, "MUFU.EX2")
    return Plan({loop: 0.0 for loop in model.loops if loop is not step})


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
