"""A product of few rows whose blocks norm the rows first."""

from functools import partial

from tools.sass_model.kernels import HIDDEN, INNER, Plan, Workload
from tools.sass_model.kernels.few_rows import blocks_of, product_plan
from tools.sass_model.predict import KernelModel

_IN_PROJ = 8960


def _plan(outputs: int, inner: int, model: KernelModel) -> Plan:
    return product_plan(model, model.loops, outputs, inner, 1, norm=True)


def _workload(name: str, outputs: int, inner: int, branches: int) -> Workload:
    return Workload(
        kernel=f"norm_few_rows_kernel<bfloat16, 1, {branches}>",
        what=f"{name}, {outputs} x {inner}, 1 row, bf16",
        tokens=1,
        blocks=blocks_of(outputs),
        device_bytes=2 * outputs * inner,
        plan=partial(_plan, outputs, inner),
    )


WORKLOADS = [
    _workload("norm, in_proj", _IN_PROJ, HIDDEN, 1),
    _workload("norm-average, out_proj", HIDDEN, INNER, 2),
]
