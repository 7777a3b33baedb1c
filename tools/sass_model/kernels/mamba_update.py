"""One token of one row and of 16: the slices' blocks by themselves, and the channels' blocks by themselves.

The two follow each other: a channel's block has its weights and states by the time that the slices are there, so the
sum of both simulations is near what a launch takes, with once too many a first load. A block that waits polls once.
Both kinds of parameters (float32 and the inputs' type) are counted, of which one runs.
"""

import math
from functools import partial

from tools.sass_model.kernels import INNER, Plan, Workload, most
from tools.sass_model.predict import KernelModel

_RANK, _STATES, _WIDTH = 100, 16, 4
_SLICE, _GROUP, _WARPS = 256, 64, 8  # channels of a block
_OUTPUTS = _RANK + 2 * _STATES
_SLICES, _GROUPS = math.ceil(INNER / _SLICE), math.ceil(INNER / _GROUP)


def _plan(slices: bool, batch: int, model: KernelModel) -> Plan:
    """Rounds of the loops over rows; what belongs to the other kind of block, and padding, does not run."""
    copies, spin = most(model, "LDGSTS"), most(model, "YIELD")
    branches = [model.flow.branch(loop, None, [other.header]) for loop, other in ((copies, spin), (spin, copies))]
    mine, others = branches if slices else branches[::-1]
    weights = {model.flow.address(block): 0.0 for block in others.own}
    trips = {loop: 0.0 for loop in model.loops if loop.header in others.own}
    if slices:
        rows = [loop for loop in model.loops if loop.header in mine.own and model.count(loop, "MUFU.EX2")]
        outer = next(loop for loop in model.loops if any(loop is row.parent for row in rows))
        trips |= {copies: math.ceil(batch * _WIDTH / _WARPS), outer: batch}
    return Plan(trips, weights=weights)


def _workloads(batch: int) -> list[Workload]:
    sums, u = 4 * _SLICES * batch * _OUTPUTS, 2 * batch * INNER
    what = f"1.5B layer, batch {batch}, 1 token, bf16"
    return [
        Workload(
            kernel="mamba_update_kernel<bfloat16>",
            what=f"{what}: slices",
            tokens=batch,
            blocks=_SLICES,
            device_bytes=2 * INNER * (_OUTPUTS + _WIDTH + 1) + u * (2 * _WIDTH - 1) + u + sums,
            plan=partial(_plan, True, batch),
        ),
        Workload(
            kernel="mamba_update_kernel<bfloat16>",
            what=f"{what}: channels",
            tokens=batch,
            blocks=_GROUPS * batch,
            # dt_proj; A in float32, D, dt_bias; the states twice; u, z and out; what the slices left.
            device_bytes=2 * INNER * (_RANK + 2) + 4 * INNER * _STATES * (2 * batch + 1) + 3 * u + sums,
            plan=partial(_plan, False, batch),
        ),
    ]


WORKLOADS = [workload for batch in (1, 16) for workload in _workloads(batch)]
