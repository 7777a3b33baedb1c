"""The MLP of few rows in one launch: blocks of gate and up, and blocks of down, which are described one by one."""

from collections.abc import Callable

from tools.sass_model.control_flow import Loop
from tools.sass_model.kernels import HIDDEN, Case, Plan, Workload
from tools.sass_model.kernels.few_rows import blocks_of, product_plan
from tools.sass_model.predict import KernelModel

_MLP = 5504


def _roles(model: KernelModel) -> tuple[list[Loop], list[Loop]]:
    """The loops of gate and up, and those of down: either ends with storing its results."""
    loops = sorted(model.loops, key=lambda loop: loop.header)
    end = next(i for i, loop in enumerate(loops) if model.count(loop, "STG")) + 1
    first, second = loops[:end], loops[end:]
    norms = any(model.count(loop, "SHFL") for loop in first)
    return (first, second) if norms else (second, first)


def _gate_up(model: KernelModel) -> Plan:
    own, _ = _roles(model)
    return product_plan(model, own, _MLP, HIDDEN, 2, norm=True)


def _down(model: KernelModel) -> Plan:
    _, own = _roles(model)
    return product_plan(model, own, HIDDEN, _MLP, 1)


def _workload(part: str, outputs: int, inner: int, weights: int, plan: Callable[[KernelModel], Plan]) -> Workload:
    return Workload(
        kernel="gated_mlp_kernel<bfloat16, 1>",
        case=Case("gated_mlp", length=1),
        part=f"{part}, {weights * outputs} x {inner}",
        blocks=blocks_of(outputs),
        device_bytes=2 * weights * outputs * inner,
        plan=plan,
    )


WORKLOADS = [
    _workload("norm, gate and up", _MLP, HIDDEN, 2, _gate_up),
    _workload("down", HIDDEN, _MLP, 1, _down),
]
