"""What is known of kernels as tables of Markdown: tools/check_cubins.py puts them into docs/*.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tools.measured import Results, cell
from tools.sass_model.bounds import Occupancy
from tools.sass_model.kernels import Workload
from tools.sass_model.predict import Prediction
from tools.sass_model.tile import CLASSES, ISSUED, TileCounts


@dataclass(frozen=True)
class Forecast:
    """What the static model says of a launch."""

    workload: Workload
    prediction: Prediction
    tile: TileCounts | None  # of plans that describe one


@dataclass
class Row:
    """A kernel on an architecture."""

    op: str
    kernel: str
    arch: str
    registers: int
    shared: int  # static
    dynamic: int
    threads: int
    occupancy: Occupancy
    main_loop: tuple[int, float, str] | None  # own instructions, cycles a warp on the busiest pipe, that pipe
    forecasts: list[Forecast] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def budgets_table(rows: Sequence[Row]) -> list[str]:
    """A line per kernel, both architectures beside each other."""
    lines = [
        "| kernel | threads | shared | sm_80: registers; blocks, warps an SM | sm_90 | main loop on sm_90 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    by_kernel: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_kernel.setdefault(row.kernel, {})[row.arch[:5]] = row

    def budget(row: Row | None) -> str:
        fits = row.occupancy if row else None
        return f"{row.registers}; {fits.blocks}, {fits.warps} ({fits.limit})" if row and fits else "-"

    for kernel, archs in by_kernel.items():
        row, hopper = next(iter(archs.values())), archs.get("sm_90")
        loop = "-"
        if hopper and hopper.main_loop:
            instructions, cycles, pipe = hopper.main_loop
            loop = f"{instructions} instructions, {cycles:g} cycles ({pipe})"
        lines.append(
            f"| `{kernel}` | {row.threads} | {row.shared} + {row.dynamic} | {budget(archs.get('sm_80'))} | "
            f"{budget(hopper)} | {loop} |"
        )
    return lines


def predictions_table(rows: Sequence[Row], results: Sequence[Results]) -> list[str]:
    """A line per described launch, or part of one."""
    lines = [
        "| kernel | launch | bound us | evenly spread us | simulated us | bytes us | measured us | bound ns a token |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        for said in row.forecasts:
            workload, p = said.workload, said.prediction
            what = workload.what + (", shared loads as broadcasts" if workload.broadcast_shared_loads else "")
            simulated, moved = ("-" if t is None else f"{t:.1f}" for t in (p.simulated_us, p.bytes_us))
            lines.append(
                f"| `{row.kernel}` | {what} | {p.bound_us:.1f} ({p.binds}) | {p.even_us:.1f} | {simulated} | "
                f"{moved} | {cell(results, workload)} | {p.bound_us * 1e3 / workload.tokens:.2f} |"
            )
    return lines


def instructions_table(rows: Sequence[Row], results: Sequence[Results]) -> list[str]:
    """A line per described tile, and one for each stretch of code that only some tiles run."""
    kinds = [*CLASSES, ISSUED]
    titles = ["kernel", "a block's tile", *kinds, "blocks, warps an SM", "bytes a tile", "bound, simulated us",
              "measured us"]  # fmt: skip
    lines = [titles, ["---"] * len(titles)]
    for row in rows:
        for said in row.forecasts:
            if (counts := said.tile) is None:
                continue
            p, fits = said.prediction, said.prediction.occupancy
            times = ", ".join("-" if us is None else f"{us:.1f}" for us in (p.bound_us, p.simulated_us))
            lines.append([
                f"`{row.kernel}`", f"{counts.tile.what}; {said.workload.what}",
                *(_beside(counts.always[kind], counts.asked(kind)) for kind in kinds),
                f"{fits.blocks}, {fits.warps}", f"{counts.tile.memory_bytes:g}", times, cell(results, said.workload),
            ])  # fmt: skip
            for name, (share, added) in counts.sometimes.items():
                cells = [f"+{added[kind]:g}" if added[kind] else "" for kind in kinds]
                lines.append([f"`{row.kernel}`", f"{name}: counted in {share:.0%} of tiles", *cells, *[""] * 4])
    return [f"| {' | '.join(line)} |" for line in lines]


def _beside(issued: float, asked: float) -> str:
    return f"{issued:g} / {asked:g} = {issued / asked:.2f}" if asked else f"{issued:g} / 0"


# What `<!-- KIND: OP -->` stands for: a table, and the sentence about it, which begins "By nvcc <version>".
TABLES: dict[str, Callable[[Sequence[Row], Sequence[Results]], list[str]]] = {
    "budgets": lambda rows, _: budgets_table(rows),
    "predictions": predictions_table,
    "instructions": instructions_table,
}
NOTES = {
    "budgets": ".",
    "predictions": ", predicted for an H100 SXM; measured: {}.",
    "instructions": (
        ", sm_90. Warp instructions of a block's tile: issued / asked for by the mathematics = ratio. Measured: {}."
    ),
}
