"""One token of one row and of 16: the slices' blocks and the channels' blocks, one by one.

All blocks fit the GPU at once. A channel's block has the weights and states of its first group by the time that the
slices are there, so its way counts from the end of that wait; of its later groups it counts the loads too. Both kinds
of parameters (float32 and the inputs' type) are counted, of which one runs.
"""

import math
from functools import partial

from tools.sass_model.control_flow import Loop
from tools.sass_model.kernels import INNER, Case, Plan, Workload, blocks_with, most, own_code, without
from tools.sass_model.predict import KernelModel

_RANK, _STATES, _WIDTH = 100, 16, 4
_SLICE, _GROUP, _WARPS = 256, 64, 8  # channels of a block; its warps
_OUTPUTS = _RANK + 2 * _STATES
_SLICES, _GROUPS = math.ceil(INNER / _SLICE), math.ceil(INNER / _GROUP)
_SMS, _BLOCKS = 132, 2  # of an H100; of an SM


def _rounds(batch: int) -> int:
    """Groups of a block, one after the other."""
    return math.ceil(batch * _GROUPS / (_SMS * _BLOCKS - _SLICES))


def _waits(model: KernelModel) -> tuple[Loop, Loop]:
    """The loops that poll: of rows, and of padding."""
    polls = [loop for loop in model.loops if model.count(loop, "YIELD")]
    padding, rows = sorted(polls, key=lambda poll: len(_behind(model, poll)))
    return rows, padding


def _behind(model: KernelModel, loop: Loop) -> set[int]:
    """The loop's blocks of code, and all that follow."""
    behind: set[int] = set()
    found = [loop.header]
    while found:
        block = found.pop()
        behind.add(block)
        found += set(model.flow.successors[block]) - behind
    return behind


def _slices(batch: int, model: KernelModel) -> Plan:
    copies, (poll, _) = most(model, "LDGSTS"), _waits(model)
    slices = own_code(model, copies, poll)
    plan = without(model, own_code(model, poll, copies))
    own = [loop for loop in model.loops if loop.header in slices]
    row = next(loop for loop in own if any(child.parent is loop and model.count(child, "MUFU.EX2") for child in own))
    states = next(loop for loop in own if model.count(loop, "SHFL") and model.count(loop, "LDG"))
    plan.trips[row] = batch
    plan.trips[copies] = math.ceil(_OUTPUTS / _WARPS / model.count(copies, "LDGSTS"))
    # The first rows are loaded before the loop.
    plan.trips[states] = math.ceil(batch * (_WIDTH - 1) / _WARPS / model.count(states, "LDG")) - 1
    return plan


def _channels(batch: int, model: KernelModel) -> Plan:
    copies, (poll, padding) = most(model, "LDGSTS"), _waits(model)
    left_out = set(own_code(model, copies, poll) | own_code(model, padding, poll))
    left_out |= model.flow.reachable - _behind(model, poll)
    plan = without(model, frozenset(left_out))
    groups = next(loop for loop in model.loops if loop.parent is None and model.count(loop, "LDG.E.64"))
    plan.trips[groups] = rounds = _rounds(batch)
    tokens = next(loop for loop in model.loops if loop.parent is groups and model.count(loop, "SHFL"))
    stores = blocks_with(model, groups, "STG")
    for block in model.own_blocks(groups):  # all but the first group's are loaded behind its tokens
        if block > max(tokens.blocks) and model.flow.address(block) not in stores:
            plan.weights[model.flow.address(block)] = (rounds - 1) / rounds
    return plan


def _workloads(batch: int) -> list[Workload]:
    sums, tokens = 4 * _SLICES * batch * _OUTPUTS, 2 * batch * INNER
    case = Case("mamba_update", batch=batch, length=1)
    return [
        Workload(
            kernel="mamba_update_kernel<bfloat16>",
            case=case,
            part="slices",
            blocks=_SLICES,
            # x_proj, the filter with its bias; x, the states twice, u; what the channels add up.
            device_bytes=2 * INNER * (_OUTPUTS + _WIDTH + 1) + tokens * (2 * _WIDTH) + sums,
            plan=partial(_slices, batch),
        ),
        Workload(
            kernel="mamba_update_kernel<bfloat16>",
            case=case,
            part="channels behind their wait",
            blocks=math.ceil(_GROUPS / _rounds(batch)) * batch,
            # dt_proj, D and dt_bias; A in float32, the states twice; u, z and out; what the slices left.
            device_bytes=2 * INNER * (_RANK + 2) + 4 * INNER * _STATES * (2 * batch + 1) + 3 * tokens + sums,
            plan=partial(_channels, batch),
        ),
    ]


WORKLOADS = [workload for batch in (1, 16) for workload in _workloads(batch)]
