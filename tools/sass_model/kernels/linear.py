"""The product of few rows: chunks of k a warp; and the epilogue behind the library's: a pack a thread.

Of the epilogue's gate and residual both are counted, one of them runs.
"""

import math
from functools import partial

from tools.sass_model.kernels import HIDDEN, INNER, META_TOKENS, TOKENS, Case, Plan, Workload
from tools.sass_model.kernels.few_rows import blocks_of, product_plan
from tools.sass_model.predict import KernelModel

_ROWS = TOKENS + META_TOKENS
_MLP, _VECTOR, _THREADS = 5504, 8, 256
_IN_PROJ = 8960


def _plan(model: KernelModel) -> Plan:
    return Plan({})


def _few_plan(outputs: int, inner: int, weights: int, model: KernelModel) -> Plan:
    return product_plan(model, model.loops, outputs, inner, weights)


def _few_rows(name: str, outputs: int, inner: int, weights: int = 1) -> Workload:
    return Workload(
        kernel=f"few_rows_kernel<bfloat16, 8, 1, {weights}>",
        case=Case("linear" if weights == 1 else "gated_linear", name, length=1),
        detail=f"{weights * outputs} x {inner}",
        blocks=blocks_of(outputs, norm=False),
        device_bytes=2 * weights * outputs * inner,
        plan=partial(_few_plan, outputs, inner, weights),
    )


def _epilogue(op: str, name: str, outputs: int) -> Workload:
    return Workload(
        kernel="linear_epilogue_kernel<bfloat16, 8>",
        case=Case(op, name),
        detail=f"{outputs} wide",
        blocks=math.ceil(_ROWS * outputs / _VECTOR / _THREADS),
        device_bytes=3 * 2 * outputs * _ROWS,
        plan=_plan,
    )


WORKLOADS = [
    _few_rows("in_proj", _IN_PROJ, HIDDEN),
    _few_rows("out_proj", HIDDEN, INNER),
    _few_rows("gate and up", _MLP, HIDDEN, 2),
    _few_rows("down", HIDDEN, _MLP),
    _epilogue("gated_linear", "gate of the MLP", _MLP),
    _epilogue("linear", "residual of out_proj", HIDDEN),
]
