"""One kernel and one launch of it: what each loop costs, and how long the launch takes at best.

model = KernelModel(kernel)                       # what the machine code alone says
prediction = predict(model, Launch(threads=128, blocks=100, trips={"L0": 130, "L1": 8}))
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from tools.sass_model.bounds import PARTIAL_PIPES, Occupancy, Pipes, Tally, carried_chain, occupancy, tally
from tools.sass_model.control_flow import Branch, ControlFlow, Loop, analyse
from tools.sass_model.disassembly import Instruction, Kernel
from tools.sass_model.machine import CARDS, SM_PIPES, SUBPARTITIONS, WARP, Assumptions, Card, is_known
from tools.sass_model.simulation import simulate

REST = "rest"
# A warp's path that is at most so long is simulated from entry to exit, a longer one by a round of each outermost loop.
WHOLE_PATH = 4000
SIMULATED_ROUNDS = 2
_OFTEN = 0.5  # a block that runs less often is left out of simulated paths


@dataclass(frozen=True)
class Launch:
    threads: int  # per block
    shared: int = 0  # dynamic bytes per block
    blocks: int | None = None  # None: one per SM
    trips: Mapping[str, float] = field(
        default_factory=dict
    )  # rounds of a loop per entry; 1 where not given, 0: never entered
    roles: tuple[tuple[int, str], ...] = ()  # warps of a block, and a loop that only they enter, or "rest"
    weights: Mapping[int, float] = field(default_factory=dict)  # how often the basic block at an address runs per round
    device_bytes: float = 0.0  # what the launch moves to and from device memory
    elements: float = 0.0  # of the problem, in whatever unit the figures per element should have


class KernelModel:
    """What a kernel's machine code says without its launch."""

    def __init__(self, kernel: Kernel, assume: Assumptions | None = None, card: Card | None = None) -> None:
        self.kernel = kernel
        self.assume = assume or Assumptions()
        self.card = card or CARDS[kernel.arch // 10 * 10]
        self.flow: ControlFlow = analyse(kernel.instructions)

    @property
    def loops(self) -> list[Loop]:
        return self.flow.loops

    @cached_property
    def opcodes(self) -> Counter[str]:
        return Counter(instruction.base for instruction in self.kernel.instructions)

    @property
    def unknown_opcodes(self) -> list[str]:
        return sorted(base for base in self.opcodes if not is_known(base))

    def own_blocks(self, loop: Loop | None) -> list[int]:
        """Blocks of a loop (None: of no loop) that are in no inner one."""
        return [block for block in sorted(self.flow.reachable) if self.innermost[block] is loop]

    def own(self, loop: Loop | None) -> list[Instruction]:
        return [instruction for block in self.own_blocks(loop) for instruction in self.code(block)]

    def code(self, block: int) -> list[Instruction]:
        first, end = self.flow.blocks[block]
        return self.kernel.instructions[first:end]

    def count(self, loop: Loop | None, opcode: str) -> int:
        """How many of a loop's own instructions begin with `opcode`, as "MUFU.EX2"."""
        return sum(instruction.opcode.startswith(opcode) for instruction in self.own(loop))

    def tally(self, loop: Loop) -> Tally:
        """A loop's own instructions, all once, by a warp that runs all of them."""
        return tally([(instruction, 1.0) for instruction in self.own(loop)], self.card, self.assume)

    def size(self, loop: Loop) -> int:
        """Instructions of a loop and of all inside it, each once."""
        return sum(len(self.code(block)) for block in loop.blocks)

    def occupancy(self, threads: int, shared: int) -> Occupancy:
        return occupancy(self.kernel.registers, self.kernel.shared + shared, threads, self.card)

    @cached_property
    def innermost(self) -> dict[int, Loop | None]:
        return {block: self.flow.innermost(block) for block in self.flow.reachable}


@dataclass(frozen=True)
class LoopCost:
    loop: Loop
    trips: float
    address: int
    instructions: int  # of its own, as its inner loops' too are everywhere here
    tally: Tally
    chain: float  # clocks a round
    simulated: Mapping[int, float]  # clocks a round by warps of a sub-partition


@dataclass(frozen=True)
class Prediction:
    occupancy: Occupancy
    blocks_per_sm: int  # of the SM that has most
    resident: int  # of them, at a time
    warps_per_subpartition: int
    bound_us: float  # the busiest pipe of the busiest sub-partition
    binds: str
    even_us: float  # were the work spread evenly over all sub-partitions
    simulated_us: float | None
    bytes_us: float | None
    pipes_us: Mapping[str, float]
    even_pipes_us: Mapping[str, float]  # as even_us
    cycles_per_element: float | None  # SM clocks of the bound


class _Run:
    """A launch of a kernel: which warps run what, how often."""

    def __init__(self, model: KernelModel, launch: Launch) -> None:
        self.model, self.launch = model, launch
        self.warps = math.ceil(launch.threads / WARP)
        unknown = set(launch.trips) - {loop.id for loop in model.loops}
        if unknown:
            raise ValueError(f"trips for {sorted(unknown)}, but the kernel has {[loop.id for loop in model.loops]}")
        self.by_id = {loop.id: loop for loop in model.loops}
        self.main_loops = [loop for loop in model.loops if loop.parent is None and self.trips(loop) > 1]
        self.roles = self._roles()

    def trips(self, loop: Loop) -> float:
        return self.launch.trips.get(loop.id, 1.0)

    def weight(self, block: int) -> float:
        return self.launch.weights.get(self.model.flow.address(block), 1.0)

    def _roles(self) -> list[tuple[int, frozenset[int]]]:
        """(warps of a block, the basic blocks that they run)."""
        everything = frozenset(self.model.flow.reachable)
        if not self.launch.roles:
            return [(self.warps, everything)]
        if sum(warps for warps, _ in self.launch.roles) != self.warps:
            raise ValueError(f"the roles {self.launch.roles} do not add up to {self.warps} warps")
        branches = {name: self._branch(self.by_id[name]) for _, name in self.launch.roles if name != REST}
        regions = {name: branch.run for name, branch in branches.items()}
        regions[REST] = everything.difference(*(branch.own for branch in branches.values()))
        return [(warps, regions[name]) for warps, name in self.launch.roles]

    def _branch(self, loop: Loop) -> Branch:
        """Roles part inside a main loop that they share, or before their own main loops."""
        flow = self.model.flow
        main = next((main for main in self.main_loops if loop.blocks < main.blocks), None)
        if main is None:
            return flow.branch(loop, None, [other.header for other in self.main_loops if other is not loop])
        branch = flow.branch(loop, main, flow.latches(main))
        return Branch(branch.run | (flow.reachable - main.blocks), branch.own)

    def share(self, block: int) -> float:
        """The part of a block's warps that run this basic block."""
        return sum(warps for warps, region in self.roles if block in region) / self.warps

    def tally(self, loop: Loop | None) -> Tally:
        return tally(
            [
                (instruction, self.weight(block) * self.share(block))
                for block in self.model.own_blocks(loop)
                for instruction in self.model.code(block)
            ],
            self.model.card,
            self.model.assume,
        )

    def path(self, loop: Loop | None, region: frozenset[int]) -> list[Instruction]:
        """A warp's instructions in one round of `loop` (None: from entry to exit), by address, inner loops unrolled."""
        inner = {child.header: child for child in self.model.loops if child.parent is loop}
        path: list[Instruction] = []
        for block in sorted(region if loop is None else loop.blocks & region):
            if block in inner:
                path += self.path(inner[block], region) * round(self.trips(inner[block]))
            elif self.model.innermost[block] is loop and self.weight(block) >= _OFTEN:
                path += self.model.code(block)
        return path

    def paths(self, loops: list[Loop | None], resident: int) -> list[tuple[int, list[Instruction]]]:
        """(block, path) of each warp on the busiest sub-partition, in a round of its role's loop. Roles whose code runs
        less often than not have none."""
        paths = [self.path(loop, region) for loop, (_, region) in zip(loops, self.roles, strict=True)]
        if self.warps < SUBPARTITIONS:
            return [(n, paths[0]) for n in range(math.ceil(resident * self.warps / SUBPARTITIONS))]
        here = [math.ceil(warps / SUBPARTITIONS) for warps, _ in self.roles]
        return [
            (block, path)
            for block in range(resident)
            for n, path in zip(here, paths, strict=True)
            for _ in range(n if path else 0)
        ]

    def length(self, loop: Loop | None) -> float:
        """Instructions of one round of `loop`, inner loops as often as they run, all roles'."""
        inner = [child for child in self.model.loops if child.parent is loop]
        return len(self.model.own(loop)) + sum(self.trips(child) * self.length(child) for child in inner)

    def executed(self, loop: Loop | None, rounds: float = 1.0) -> Iterator[tuple[Instruction, float]]:
        for block in self.model.own_blocks(loop):
            warps = rounds * self.weight(block) * self.share(block) * self.warps
            yield from ((instruction, warps) for instruction in self.model.code(block))
        for child in self.model.loops:
            if child.parent is loop:
                yield from self.executed(child, rounds * self.trips(child))

    def simulated_cycles(self, resident: int) -> float:
        """Clocks of the resident blocks from start to end."""
        if self.length(None) <= WHOLE_PATH or not self.main_loops:
            return self._clocks([None] * len(self.roles), resident)
        if not self.launch.roles:
            return sum(self._clocks([loop], resident) * self.trips(loop) for loop in self.main_loops)
        loops: list[Loop | None] = []
        for _, region in self.roles:
            mine = [loop for loop in self.main_loops if loop.header in region]
            if len(mine) != 1:
                raise ValueError(
                    f"a role runs {len(mine)} outermost loops of several rounds; only one can be simulated"
                )
            loops += mine
        return self._clocks(loops, resident) * max(self.trips(loop) for loop in self.main_loops)

    def _clocks(self, loops: list[Loop | None], resident: int) -> float:
        return simulate(self.paths(loops, resident), SIMULATED_ROUNDS, self.model.card, self.model.assume)


def executed(model: KernelModel, launch: Launch, loop: Loop | None) -> Iterator[tuple[Instruction, float]]:
    """The code of one round of `loop` (None: from entry to exit), inner loops as often as they run, and how many of a
    block's warps execute each instruction: parts of one where a launch's weights say so."""
    return _Run(model, launch).executed(loop)


def loop_costs(model: KernelModel, launch: Launch, simulated_rounds: int = 4) -> list[LoopCost]:
    """Each loop's own code by itself; `simulated_rounds` 0 leaves the simulation out."""
    run = _Run(model, launch)
    costs = []
    for loop in model.loops:
        blocks = [block for block in model.own_blocks(loop) if run.weight(block) >= _OFTEN]
        order = [instruction for block in blocks for instruction in model.code(block)]
        simulated = {
            warps: simulate([(n, order) for n in range(warps)], simulated_rounds, model.card, model.assume)
            for warps in ((1, 2, 4) if simulated_rounds and order else ())
        }
        address = model.flow.address(loop.header)
        own = len(model.own(loop))
        costs.append(LoopCost(loop, run.trips(loop), address, own, run.tally(loop), carried_chain(order), simulated))
    return costs


def predict(model: KernelModel, launch: Launch, simulation: bool = True) -> Prediction:
    """The launch's time on the model's card."""
    run, card = _Run(model, launch), model.card
    blocks = launch.blocks or card.sms
    fits = model.occupancy(launch.threads, launch.shared)
    if fits.blocks == 0:
        raise ValueError(f"a block of {launch.threads} threads does not fit an SM: {fits.limit}")
    per_sm = math.ceil(blocks / card.sms)
    resident = min(per_sm, fits.blocks)

    total: Pipes = defaultdict(float)  # cycles of an average warp
    for loop in [None, *model.loops]:
        times, around = 1.0, loop
        while around is not None:
            times *= run.trips(around)
            around = around.parent
        for pipe, cycles in run.tally(loop).pipes.items():
            total[pipe] += cycles * times
    per_warp = {pipe: cycles for pipe, cycles in total.items() if cycles and pipe not in PARTIAL_PIPES}

    # Warps that load a pipe of the busiest SM or sub-partition, and on average, were blocks and warps divisible.
    most_warps = {"sm": per_sm * run.warps, "subpartition": math.ceil(per_sm * run.warps / SUBPARTITIONS)}
    average_warps = blocks * run.warps / card.sms
    busiest = {p: c * most_warps["sm" if p in SM_PIPES else "subpartition"] for p, c in per_warp.items()}
    even = {p: c * average_warps / (1 if p in SM_PIPES else SUBPARTITIONS) for p, c in per_warp.items()}
    binds = max(busiest, key=lambda pipe: (busiest[pipe], pipe))
    us_per_cycle = 1e-3 / card.ghz
    simulated = run.simulated_cycles(resident) * per_sm / resident if simulation else None
    return Prediction(
        occupancy=fits,
        blocks_per_sm=per_sm,
        resident=resident,
        warps_per_subpartition=math.ceil(resident * run.warps / SUBPARTITIONS),
        bound_us=busiest[binds] * us_per_cycle,
        binds=binds,
        even_us=max(even.values()) * us_per_cycle,
        simulated_us=None if simulated is None else simulated * us_per_cycle,
        bytes_us=launch.device_bytes / card.bytes_per_second * 1e6 if launch.device_bytes else None,
        pipes_us={pipe: cycles * us_per_cycle for pipe, cycles in busiest.items()},
        even_pipes_us={pipe: cycles * us_per_cycle for pipe, cycles in even.items()},
        cycles_per_element=busiest[binds] * card.sms / launch.elements if launch.elements else None,
    )
