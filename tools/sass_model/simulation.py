"""In-order issue of the warps of one sub-partition, by the compiler's stall counts and scoreboards.

Every clock one warp may issue one instruction. An instruction waits for its scoreboards and for its pipes, which are
busy for its cost; the SM-wide pipes run at a quarter of their rate, the share of one sub-partition. BAR 0 waits for the
warps of the block that are here. Of warps that can issue, the last one goes on; else the one furthest behind.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cache

from tools.sass_model.disassembly import NO_BARRIER, Instruction
from tools.sass_model.machine import (
    BARRIER_RELEASE,
    LATENCY,
    LDS_CLOCKS_PER_8_BYTES,
    QUEUE,
    READ_RELEASE,
    SM_PIPES,
    SUBPARTITIONS,
    Assumptions,
    Card,
    access_bytes,
    latency_class,
    pipe_cycles,
)

FP32_HALVES = ("fmalite", "fmaheavy")
NEVER = float("inf")


@dataclass(frozen=True)
class Step:
    """What the simulation needs of an instruction."""

    pipes: tuple[tuple[str, float], ...]
    stall: int
    latency: float
    write_barrier: int
    read_barrier: int
    waits: tuple[int, ...]
    block_barrier: bool


def prepare(instruction: Instruction, card: Card, assume: Assumptions) -> Step:
    kind = latency_class(instruction.base)
    latency = assume.global_latency if kind == "ldg" else LATENCY[kind]
    if kind == "lds":
        latency += LDS_CLOCKS_PER_8_BYTES * (access_bytes(instruction.opcode) // 8)
    pipes = []
    for pipe, cycles in pipe_cycles(instruction, card, assume):
        if pipe == "l2":  # its queue is the memory system's
            continue
        if card.fp32_halves and pipe in ("fma", "fmaheavy"):
            pipes.append(("fp32" if pipe == "fma" else pipe, 2.0))
        elif not card.fp32_halves and pipe in ("fmaheavy", "half"):
            pipes.append(("fma" if pipe == "fmaheavy" else "tensor", cycles))
        else:
            pipes.append((pipe, cycles * (SUBPARTITIONS if pipe in SM_PIPES else 1)))
    return Step(
        tuple(pipes),
        max(1, instruction.stall),
        latency,
        instruction.write_barrier,
        instruction.read_barrier,
        tuple(n for n in range(6) if instruction.wait_mask >> n & 1),
        instruction.base == "BAR"
        and "ARV" not in instruction.opcode
        and re.match(r"0x0\b|RZ|$", instruction.operands) is not None,
    )


class _Warp:
    def __init__(self, block: int, steps: list[Step]) -> None:
        self.block = block
        self.steps = steps
        self.at = 0
        self.rounds: list[float] = []  # when each ended
        self.earliest = 0.0  # by the stall count of the last instruction
        self.scoreboards = [0.0] * 6
        self.parked = False
        self.ready = 0.0  # `earliest` and the next instruction's scoreboards

    def look_ahead(self) -> None:
        self.ready = max([self.earliest, *(self.scoreboards[n] for n in self.steps[self.at].waits)])

    @property
    def progress(self) -> float:
        return len(self.rounds) + self.at / len(self.steps)


def simulate(orders: list[tuple[int, list[Instruction]]], rounds: int, card: Card, assume: Assumptions) -> float:
    """Cycles in which each warp does one round, in the steady state; `rounds`, at least 2, are simulated.

    `orders`: a warp's block and the instructions of its round, for each warp of one sub-partition.
    """

    @cache
    def step_of(instruction: Instruction) -> Step:
        return prepare(instruction, card, assume)

    warps = [_Warp(block, [step_of(i) for i in order]) for block, order in orders]
    barriers = {(warp.block, sum(step.block_barrier for step in warp.steps)) for warp in warps}
    if len(barriers) > len({warp.block for warp in warps}):
        raise ValueError("warps of a block wait at different numbers of block barriers in a round: it would never end")
    clock = _run(warps, rounds)
    # A warp that others kept from issuing for the whole time adds next to nothing to the rounds per clock.
    per_clock = [(len(w.rounds) - 1) / (w.rounds[-1] - w.rounds[0]) if len(w.rounds) > 1 else 1 / clock for w in warps]
    return len(warps) / sum(per_clock)


def _run(warps: list[_Warp], rounds: int) -> float:
    """Until every warp has done its rounds, or all together four times as many; the clock then."""
    busy: dict[str, float] = defaultdict(float)
    clock = 0.0
    last: _Warp | None = None
    while min(len(w.rounds) for w in warps) < rounds and sum(len(w.rounds) for w in warps) < 4 * rounds * len(warps):
        issue_at, chosen = _choose(warps, busy, clock, last)
        _issue(chosen, issue_at, busy)
        clock, last = issue_at + 1, chosen
        if chosen.steps[chosen.at].block_barrier:
            _arrive(chosen, [w for w in warps if w.block == chosen.block], clock)
        chosen.at += 1
        if chosen.at == len(chosen.steps):
            chosen.at = 0
            chosen.rounds.append(clock)
        chosen.look_ahead()
    return clock


def _choose(warps: list[_Warp], busy: dict[str, float], clock: float, last: _Warp | None) -> tuple[float, _Warp]:
    """The clock of the next issue, and whose it is."""
    issue_at, candidates = NEVER, []
    for warp in warps:
        if warp.parked:
            continue
        ready = max(clock, warp.ready)
        for pipe, _ in warp.steps[warp.at].pipes:
            free = min(busy[half] for half in FP32_HALVES) if pipe == "fp32" else busy[pipe] - QUEUE.get(pipe, 0)
            ready = max(ready, free)
        if ready < issue_at:
            issue_at, candidates = ready, [warp]
        elif ready == issue_at:
            candidates.append(warp)
    chosen = last if last in candidates else min(candidates, key=lambda w: w.progress)
    return issue_at, chosen


def _issue(warp: _Warp, clock: float, busy: dict[str, float]) -> None:
    step = warp.steps[warp.at]
    begin = clock
    for pipe, cycles in step.pipes:
        if pipe == "fp32":  # whichever half is free first
            pipe = min(FP32_HALVES, key=lambda half: busy[half])
        begin = max(begin, busy[pipe])
        busy[pipe] = max(busy[pipe], clock) + cycles
    if step.write_barrier != NO_BARRIER:
        warp.scoreboards[step.write_barrier] = max(warp.scoreboards[step.write_barrier], begin + step.latency)
    if step.read_barrier != NO_BARRIER:
        warp.scoreboards[step.read_barrier] = max(warp.scoreboards[step.read_barrier], clock + READ_RELEASE)
    warp.earliest = clock + step.stall


def _arrive(warp: _Warp, block: list[_Warp], clock: float) -> None:
    warp.parked = True
    if all(mate.parked for mate in block):
        for mate in block:
            mate.parked = False
            mate.earliest = max(mate.earliest, clock + BARRIER_RELEASE)
            mate.look_ahead()
