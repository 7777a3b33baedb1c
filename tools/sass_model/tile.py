"""A round of a kernel's main loop beside what its mathematics asks for, in warp instructions of a whole block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tools.sass_model.control_flow import Loop
from tools.sass_model.disassembly import Instruction
from tools.sass_model.machine import FP32, MMA, WGMMA
from tools.sass_model.predict import KernelModel, Launch, executed

CLASSES: dict[str, frozenset[str]] = {
    "tensor": MMA | WGMMA,
    "special": frozenset({"MUFU"}),
    "float": FP32,
    "max, round": frozenset({"FMNMX", "F2FP"}),
    "shared loads": frozenset({"LDS", "LDSM"}),
    "loads": frozenset({"LDGSTS", "LDG"}),
    "stores": frozenset({"STS", "STG"}),
}
ISSUED = "issued"  # all instructions


@dataclass(frozen=True)
class Tile:
    """A round, and what it is for."""

    what: str  # "64 rows x 64 keys"
    loops: tuple[Loop | None, ...]  # whose rounds make it: one for each role of warps; None: the kernel without a loop
    asked: Mapping[str, float]  # by class: the least that the mathematics needs; classes left out: none
    memory_bytes: float  # read from and written to global memory
    sometimes: Mapping[str, frozenset[int]] = field(
        default_factory=dict
    )  # addresses of basic blocks that few tiles run

    def __post_init__(self) -> None:
        if unknown := set(self.asked) - set(CLASSES):
            raise ValueError(f"no class of instructions is called {sorted(unknown)}, there are {list(CLASSES)}")


@dataclass(frozen=True)
class TileCounts:
    tile: Tile
    always: Counter[str]  # by class and ISSUED: without what is in `sometimes`
    sometimes: dict[str, tuple[float, Counter[str]]]  # the part of tiles that run it, and what it adds to these

    def asked(self, kind: str) -> float:
        return sum(self.tile.asked.values()) if kind == ISSUED else self.tile.asked.get(kind, 0.0)


def count(model: KernelModel, launch: Launch, tile: Tile) -> TileCounts:
    """What a block's warps issue in a tile, as the launch weighs basic blocks and inner loops."""
    never = dict.fromkeys((address for blocks in tile.sometimes.values() for address in blocks), 0.0)
    always = _by_class(model, _weighted(launch, never), tile)
    sometimes = {}
    for name, blocks in tile.sometimes.items():
        weights = [launch.weights.get(address, 1.0) for address in blocks]
        added = _by_class(model, _weighted(launch, never | dict.fromkeys(blocks, 1.0)), tile)
        added.subtract(always)
        sometimes[name] = (sum(weights) / len(weights) if weights else 0.0, added)
    return TileCounts(tile, always, sometimes)


def _weighted(launch: Launch, weights: dict[int, float]) -> Launch:
    return replace(launch, weights={**launch.weights, **weights})


def _by_class(model: KernelModel, launch: Launch, tile: Tile) -> Counter[str]:
    counts: Counter[str] = Counter()
    for loop in tile.loops:
        for instruction, warps in executed(model, launch, loop):
            for kind in _classes(instruction):
                counts[kind] += warps  # type: ignore[assignment]  # parts of warps: blocks that run in some rounds
    return counts


def _classes(instruction: Instruction) -> list[str]:
    if instruction.is_padding:
        return [ISSUED]
    return [ISSUED, *(kind for kind, bases in CLASSES.items() if instruction.base in bases)]
