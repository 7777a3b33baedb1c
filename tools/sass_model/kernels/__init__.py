"""Launches of this project's kernels that are predicted: one module per op, named as its csrc/cuda/<op>.cu.

A module has `WORKLOADS`, a list of `Workload`: each says which call of which op makes it (`Case`), so that
bench/kernel_times.py can run and time it. Block size and shared memory are the source's own (`// launch:` lines
and __launch_bounds__, see tools/cubins.py). Trip counts are functions of the kernel's loops, because loop numbers and
unrolling change with the compiler: find a loop by what it does (`most`), and count its rounds by work (`rounds`).

A plan may say what a round's mathematics asks for (`Tile`): the least instructions of each class, from shapes alone.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from tools.sass_model.control_flow import Loop
from tools.sass_model.machine import WARP
from tools.sass_model.predict import REST, KernelModel
from tools.sass_model.tile import Tile

__all__ = [
    "REST",
    "Case",
    "Plan",
    "Tile",
    "Workload",
    "blocks_with",
    "enters",
    "most",
    "own_code",
    "packs",
    "rounds",
    "warps_of",
    "without",
    "workloads",
]

# The 1.5B layer that the predictions are for.
TOKENS, META_TOKENS = 8192, 128
HIDDEN, INNER = 1600, 3200
WINDOW = 1024


@dataclass(frozen=True)
class Plan:
    """How often each loop of a kernel runs, and which warps run what."""

    trips: dict[Loop, float]  # rounds per entry; loops left out: 1
    roles: tuple[
        tuple[int, Loop | None], ...
    ] = ()  # warps of a block and the loop that only they enter, None: the rest
    weights: dict[int, float] = field(default_factory=dict)  # how often the basic block at an address runs per round
    tile: Tile | None = None  # a round beside what its mathematics asks for

    def launch_options(self) -> dict[str, Any]:
        """As predict.Launch has them."""
        roles = tuple((warps, loop.id if loop else REST) for warps, loop in self.roles)
        return {
            "trips": {loop.id: trips for loop, trips in self.trips.items()},
            "roles": roles,
            "weights": self.weights,
        }


@dataclass(frozen=True)
class Case:
    """A call of an op at the 1.5B layer's sizes, in bfloat16. bench/kernel_calls.py makes it."""

    op: str  # a function of hymba_ops
    name: str = "1.5B layer"  # of those calls of the op that the layer has, where it has several
    layer: str = ""  # sliding or global, where that makes a difference
    batch: int = 1
    length: int = TOKENS + META_TOKENS  # positions of a row of the batch

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    @property
    def text(self) -> str:
        layers = {"": [], "sliding": [f"window {WINDOW}"], "global": ["global"]}[self.layer]
        one = self.length == 1
        length = "1 token" if one else f"{self.length - META_TOKENS} + {META_TOKENS} tokens"
        batch = [f"batch {self.batch}"] if one or self.batch > 1 else []
        return ", ".join([self.name, *layers, *batch, length, "bf16"])


@dataclass(frozen=True)
class Workload:
    """A launch, or some of its blocks, where blocks do different things and are described one by one."""

    kernel: str  # as tools/check_cubins.py prints it
    case: Case
    blocks: int
    device_bytes: float
    plan: Callable[[KernelModel], Plan]
    detail: str = ""  # of sizes
    part: str = ""  # the blocks that this is, of the launch; empty: all. Only the launch can be timed
    broadcast_shared_loads: bool = False

    @property
    def tokens(self) -> int:
        """Of all sequences, meta tokens too."""
        return self.case.tokens

    @property
    def what(self) -> str:
        whole = ", ".join(filter(None, (self.case.text, self.detail)))
        return f"{whole}: {self.part}" if self.part else whole


def workloads(op: str) -> list[Workload]:
    """Those of csrc/cuda/<op>.cu; none where nobody has described any."""
    name = f"{__name__}.{op}"
    if importlib.util.find_spec(name) is None:
        return []
    found: list[Workload] = importlib.import_module(name).WORKLOADS
    return found


def warps_of(lanes: float) -> float:
    """The warp instructions that do something once for each of so many elements, one a lane."""
    return lanes / WARP


def packs(size: float) -> float:
    """The warp instructions that move so many bytes, 16 a lane."""
    return size / (16 * WARP)


def most(model: KernelModel, opcode: str, loops: Iterable[Loop] | None = None) -> Loop:
    """The loop with most of its own instructions of that kind, as "MUFU.EX2"."""
    return max(model.loops if loops is None else loops, key=lambda loop: model.count(loop, opcode))


def rounds(model: KernelModel, loop: Loop, opcode: str, total: float) -> float:
    """Rounds of a loop in which a warp issues `total` instructions of a kind, however the compiler unrolled it."""
    each = model.count(loop, opcode)
    if each == 0:
        raise ValueError(f"{loop.id} of {model.kernel.name} has no {opcode}")
    return total / each


def blocks_with(model: KernelModel, loop: Loop | None, opcode: str) -> set[int]:
    """Addresses of a loop's own basic blocks that have an instruction of that kind."""
    return {
        model.flow.address(block)
        for block in model.own_blocks(loop)
        if any(instruction.opcode.startswith(opcode) for instruction in model.code(block))
    }


def enters(model: KernelModel, loop: Loop) -> set[int]:
    """Addresses of the basic blocks around a loop that lead nowhere but into it."""
    return {
        model.flow.address(block)
        for block in model.own_blocks(loop.parent)
        if model.flow.successors[block] == [loop.header]
    }


def own_code(model: KernelModel, inside: Loop, elsewhere: Loop) -> frozenset[int]:
    """The basic blocks that only those run who come to the first loop, and not to the second."""
    return model.flow.branch(inside, None, [elsewhere.header]).own


def without(model: KernelModel, blocks: frozenset[int]) -> Plan:
    """The plan of a launch that runs all code but these basic blocks."""
    return Plan(
        {loop: 0.0 for loop in model.loops if loop.header in blocks},
        weights={model.flow.address(block): 0.0 for block in blocks},
    )
