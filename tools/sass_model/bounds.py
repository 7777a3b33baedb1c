"""What limits a stretch of code: cycles per pipe, the loop-carried register chain, and a kernel's occupancy."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from tools.sass_model.disassembly import RESERVED_SHARED, Instruction
from tools.sass_model.machine import (
    LATENCY,
    LOADS_AND_STORES,
    SHARED_MATRIX,
    SM_PIPES,
    SUBPARTITIONS,
    WARP,
    Assumptions,
    Card,
    access_bytes,
    latency_class,
    pipe_cycles,
)

Pipes = defaultdict[str, float]
PARTIAL_PIPES = ("fmaheavy",)  # counted within "fma" too


@dataclass
class Tally:
    """What one warp does in a stretch of code, on average over a block's warps."""

    pipes: Pipes = field(default_factory=lambda: defaultdict(float))  # cycles; "issue": slots
    mix: Pipes = field(default_factory=lambda: defaultdict(float))  # instructions by opcode, without suffixes
    memory: Pipes = field(default_factory=lambda: defaultdict(float))  # loads and stores by opcode and width in bits
    predicated: int = 0

    @property
    def bound(self) -> tuple[float, str]:
        """A sub-partition's cycles per warp on its busiest pipe, and that pipe; four of them share an SM-wide pipe."""
        cycles = {
            pipe: c * SUBPARTITIONS if pipe in SM_PIPES else c
            for pipe, c in self.pipes.items()
            if pipe not in PARTIAL_PIPES
        }
        if not cycles:
            return 0.0, "issue"
        busiest = max(cycles, key=lambda pipe: cycles[pipe])
        return cycles[busiest], busiest


def tally(weighted: Iterable[tuple[Instruction, float]], card: Card, assume: Assumptions) -> Tally:
    """Sums over instructions, each counted `weight` times."""
    result = Tally()
    pipes = result.pipes
    for instruction, weight in weighted:
        base = instruction.base
        pipes["issue"] += weight
        result.mix[base] += weight
        result.predicated += instruction.predicate is not None
        reaching = weight * (assume.predicated_share if instruction.predicate not in (None, "PT") else 1)
        for pipe, cycles in pipe_cycles(instruction, card, assume):
            pipes[pipe] += cycles * reaching
        if base in LOADS_AND_STORES:
            name = instruction.opcode if base in SHARED_MATRIX else f"{base}.{access_bytes(instruction.opcode) * 8}"
            result.memory[name] += weight
    half = pipes.pop("half", 0)
    if card.fp32_halves:
        pipes["fma"] = max(pipes["fmaheavy"] + half, pipes["fma"] + pipes["fmaheavy"] / 2 + half)
    else:
        pipes["fma"] += pipes["fmaheavy"]
        pipes["tensor"] += half  # fp16x2 shares the tensor cores' port
    return result


def carried_chain(order: list[Instruction]) -> float:
    """Clocks a round of the longest loop-carried register dependence: dataflow with unlimited issue, several rounds."""
    ready: dict[str, float] = {}
    ends: list[float] = []
    for _ in range(6):
        for instruction in order:
            results, sources = _registers(instruction)
            latency_name = latency_class(instruction.base)
            latency = 0 if latency_name == "ldg" else LATENCY[latency_name]  # its address, not its data, is carried
            done = max((ready.get(register, 0) for register in sources), default=0) + latency
            ready.update(dict.fromkeys(results, done))
        ends.append(max(ready.values(), default=0))
    return (ends[-1] - ends[-3]) / 2


_NO_RESULT = {"STG", "STS", "ST", "STL", "RED", "BRA", "BAR", "EXIT", "LDGSTS", "SYNCS"}


def _registers(instruction: Instruction) -> tuple[list[str], list[str]]:
    """Registers that an instruction writes, and those that it reads."""
    base, opcode = instruction.base, instruction.opcode
    operands = [operand.strip() for operand in instruction.operands.split(",")]
    num_results = 2 if re.match(r"U?P[T\d]", operands[0]) else 1
    if base in _NO_RESULT or not operands[0]:
        num_results = 0
    sources = [name for operand in operands[num_results:] for name in _names(operand)]
    sources += _names(instruction.predicate or "")
    if base == "HMMA":  # m16n8k16: A in four registers, B in two, C in four
        for first, count in zip(sources[:3], (4, 2, 4), strict=False):
            sources += [_plus(first, i) for i in range(1, count) if first.startswith("R")]
    width = 2 if ".64" in opcode or "WIDE" in opcode else 1
    if ".128" in opcode or base in ("HMMA", "LDSM"):
        width = 4
    results = []
    for name in (name for operand in operands[:num_results] for name in _names(operand)):
        results += [_plus(name, i) for i in range(width)] if "P" not in name else [name]
    return results, sources


def _names(text: str) -> list[str]:
    return re.findall(r"\b(U?R\d+|U?P\d)\b", text)


def _plus(register: str, offset: int) -> str:
    file, number = register.rstrip("0123456789"), register.lstrip("UR")
    return f"{file}{int(number) + offset}"


@dataclass(frozen=True)
class Occupancy:
    blocks: int  # per SM
    warps: int
    limit: str  # "registers", "shared memory", "warps" or "blocks"


REGISTERS_PER_SUBPARTITION = 16384
REGISTER_UNIT = 256  # per warp
SHARED_UNIT = 128
MAX_WARPS, MAX_BLOCKS = 64, 32


def registers_per_warp(registers: int) -> int:
    return _round_up(max(1, registers) * WARP, REGISTER_UNIT)


def shared_per_block(shared: int) -> int:
    """Of an SM's bytes; `shared`: a block's static and dynamic ones."""
    return _round_up(shared + RESERVED_SHARED, SHARED_UNIT)


def occupancy(registers: int, shared: int, threads: int, card: Card) -> Occupancy:
    """Resident blocks per SM, by the rules of CUDA's cuda_occupancy.h. `shared`: a block's static and dynamic bytes."""
    warps = math.ceil(threads / WARP)
    limits = {
        "registers": REGISTERS_PER_SUBPARTITION // registers_per_warp(registers) * SUBPARTITIONS // warps,
        "shared memory": card.shared_per_sm // shared_per_block(shared),
        "warps": MAX_WARPS // warps,
        "blocks": MAX_BLOCKS,
    }
    limit = min(limits, key=lambda name: limits[name])
    return Occupancy(limits[limit], limits[limit] * warps, limit)


def _round_up(value: int, unit: int) -> int:
    return math.ceil(value / unit) * unit
