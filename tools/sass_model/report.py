"""The command line's text and JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tools.sass_model.predict import KernelModel, Launch, LoopCost, Prediction


def text(model: KernelModel, launch: Launch, costs: list[LoopCost], prediction: Prediction | None) -> str:
    kernel, fits = model.kernel, model.occupancy(launch.threads, launch.shared)
    lines = [
        f"{kernel.name}  [sm_{kernel.arch}, {model.card.name}]",
        f"  registers {kernel.registers}, static shared {kernel.shared}, stack {kernel.stack}, "
        f"LDL/STL {model.opcodes['LDL']}/{model.opcodes['STL']}, {len(kernel.instructions)} instructions",
        f"  occupancy {fits.blocks} blocks, {fits.warps} warps an SM, limited by {fits.limit}"
        + ("" if fits.blocks else ": DOES NOT FIT"),
    ]
    if model.unknown_opcodes:
        lines.append(f"  counted as an issue slot only, not in the tables: {' '.join(model.unknown_opcodes)}")
    for cost in costs:
        lines += _loop_lines(cost)
    if prediction is not None:
        lines += _time_lines(launch, prediction)
    return "\n".join(lines)


def _loop_lines(cost: LoopCost) -> list[str]:
    cycles, pipe = cost.tally.bound
    parent = cost.loop.parent.id if cost.loop.parent else "-"
    simulated = "".join(f" {warps}: {clocks:.1f}" for warps, clocks in cost.simulated.items())
    memory = _counts(cost.tally.memory)
    sim = f"; simulated by warps{simulated}" if simulated else ""
    return [
        f"  {cost.loop.id} at {cost.address:#x} in {parent} x{cost.trips:g}: {cost.instructions} own instructions "
        f"({cost.tally.predicated} predicated); bound {cycles:.1f} cycles a warp ({pipe}), "
        f"carried chain {cost.chain:.1f}{sim}",
        f"     pipes  {_counts(cost.tally.pipes)}",
        f"     mix    {_counts(cost.tally.mix)}" + (f"   memory {memory}" if memory else ""),
    ]


def _time_lines(launch: Launch, p: Prediction) -> list[str]:
    def us(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f}"

    per_element = "" if p.cycles_per_element is None else f", {p.cycles_per_element:.3f} SM cycles an element"
    return [
        f"  TIME  bound {us(p.bound_us)} us ({p.binds}; {us(p.even_us)} if spread evenly), "
        f"simulated {us(p.simulated_us)}, bytes {us(p.bytes_us)}{per_element}; {p.blocks_per_sm} blocks of "
        f"{launch.threads} an SM, {p.resident} at a time, {p.warps_per_subpartition} warps a sub-partition",
        "        " + "  ".join(f"{pipe} {us(t)}" for pipe, t in sorted(p.pipes_us.items(), key=lambda x: -x[1])),
    ]


def _counts(counts: dict[str, Any]) -> str:
    return " ".join(f"{name}:{round(n, 2):g}" for name, n in sorted(counts.items(), key=lambda x: -x[1]) if n)


def as_json(model: KernelModel, launch: Launch, costs: list[LoopCost], prediction: Prediction | None) -> dict[str, Any]:
    kernel = model.kernel
    return {
        "kernel": kernel.name,
        "arch": f"sm_{kernel.arch}",
        "card": model.card.name,
        "registers": kernel.registers,
        "shared_static": kernel.shared,
        "stack": kernel.stack,
        "local_loads": model.opcodes["LDL"],
        "local_stores": model.opcodes["STL"],
        "instructions": len(kernel.instructions),
        "unknown_opcodes": model.unknown_opcodes,
        "occupancy": asdict(model.occupancy(launch.threads, launch.shared)),
        "loops": [
            {
                "id": cost.loop.id,
                "at": cost.address,
                "parent": cost.loop.parent.id if cost.loop.parent else None,
                "trips": cost.trips,
                "own_instructions": cost.instructions,
                "predicated": cost.tally.predicated,
                "pipes": dict(cost.tally.pipes),
                "mix": dict(cost.tally.mix),
                "memory": dict(cost.tally.memory),
                "bound": cost.tally.bound[0],
                "binds": cost.tally.bound[1],
                "chain": cost.chain,
                "simulated": dict(cost.simulated),
            }
            for cost in costs
        ],
        "time": asdict(prediction) if prediction else None,
    }
