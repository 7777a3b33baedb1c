"""A product of few rows whose blocks norm the rows first."""

from functools import partial

from tools.sass_model.kernels import HIDDEN, INNER, Case, Plan, Workload
from tools.sass_model.kernels.few_rows import blocks_of, product_plan
from tools.sass_model.predict import KernelModel

_IN_PROJ = 8960


def _plan(outputs: int, inner: int, model: KernelModel) -> Plan:
    return product_plan(model, model.loops, outputs, inner, 1, norm=True)


def _workload(op: str, name: str, outputs: int, inner: int, branches: int) -> Workload:
    return Workload(
        kernel=f"norm_few_rows_kernel<bfloat16, 1, {branches}>",
        case=Case(op, name, length=1),
        detail=f"{outputs} x {inner}",
        blocks=blocks_of(outputs),
        device_bytes=2 * outputs * inner,
        plan=partial(_plan, outputs, inner),
    )


WORKLOADS = [
    _workload("norm_project", "norm, in_proj", _IN_PROJ, HIDDEN, 1),
    _workload("norm_average_project", "norm-average, out_proj", HIDDEN, INNER, 2),
]
