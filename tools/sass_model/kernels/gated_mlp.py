"""The MLP of few rows in one launch: blocks of gate and up, and blocks of down, which are described one by one."""

from functools import partial

from tools.sass_model.control_flow import Loop
from tools.sass_model.kernels import HIDDEN, Plan, Workload
from tools.sass_model.kernels.few_rows import norm_trips, product_trips, blocks_of
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
    own, other = _roles(model)
    trips, tile = product_trips(model, own, _MLP, HIDDEN, 2)
    return Plan(dict.fromkeys(other, 0.0) | trips | norm_trips(model, own, HIDDEN), tile=tile)


def _down(model: KernelModel) -> Plan:
    other, own = _roles(model)
    trips, tile = product_trips(model, own, HIDDEN, _MLP, 1)
    return Plan(dict.fromkeys(other, 0.0) | trips, tile=tile)


def _workload(name: str, outputs: int, inner: int, weights: int, plan: partial[Plan]) -> Workload:
    return Workload(
        kernel="gated_mlp_kernel<bfloat16, 1>",
        what=f"{name}, {weights * outputs} x {inner}, 1 row, bf16",
        tokens=1,
        blocks=blocks_of(outputs),
        device_bytes=2 * weights * outputs * inner,
        plan=plan,
    )


WORKLOADS = [
    _workload("norm, gate and up", _MLP, HIDDEN, 2, partial(_gate_up)),
    _workload("down", HIDDEN, _MLP, 1, partial(_down)),
]
