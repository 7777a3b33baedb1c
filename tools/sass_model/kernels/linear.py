"""The epilogue behind the library's product: a pack a thread. Gate and residual are both counted, one of them runs."""

import math

from tools.sass_model.kernels import HIDDEN, META_TOKENS, TOKENS, Plan, Workload
from tools.sass_model.predict import KernelModel

_ROWS = TOKENS + META_TOKENS
_MLP, _VECTOR, _THREADS = 5504, 8, 256


def _plan(model: KernelModel) -> Plan:
    return Plan({})


def _workload(name: str, outputs: int) -> Workload:
    return Workload(
        kernel="linear_epilogue_kernel<bfloat16, 8>",
        what=f"{name}, {outputs} wide, 8192 + 128 tokens, bf16",
        tokens=_ROWS,
        blocks=math.ceil(_ROWS * outputs / _VECTOR / _THREADS),
        device_bytes=3 * 2 * outputs * _ROWS,
        plan=_plan,
    )


WORKLOADS = [_workload("gate of the MLP", _MLP), _workload("residual of out_proj", HIDDEN)]
