"""One token of 32 rows: one round of the loop for single tokens with SiLU."""

from tools.sass_model.kernels import INNER, Case, Plan, Workload
from tools.sass_model.predict import KernelModel

_BATCH, _WIDTH = 32, 4
_PACK, _THREADS = 8, 64


def _plan(model: KernelModel) -> Plan:
    step = min(
        (loop for loop in model.loops if model.count(loop, "MUFU.EX2")), key=lambda loop: model.count(loop, "MUFU.EX2")
    )
    return Plan({loop: 0.0 for loop in model.loops if loop is not step})


WORKLOADS = [
    Workload(
        kernel="causal_conv1d_update_kernel<bfloat16, 8, 4>",
        case=Case("causal_conv1d_update", batch=_BATCH, length=1),
        blocks=_BATCH * (INNER // _PACK) // _THREADS,
        device_bytes=2 * INNER * (_BATCH * (2 + 2 * (_WIDTH - 1)) + _WIDTH + 1),  # x, out, the state twice; the filter
        plan=_plan,
    )
]
