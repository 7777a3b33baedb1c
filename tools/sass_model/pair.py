"""Two launches side by side: do their blocks fit an SM together, and what is saved over one after the other?

python -m tools.sass_model.pair          # attention beside the selective scan, 1.5B layer: compiles both, needs nvcc
"""

from __future__ import annotations

import fnmatch
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tools import cubins
from tools.sass_model.bounds import (
    MAX_BLOCKS,
    MAX_WARPS,
    REGISTERS_PER_SUBPARTITION,
    registers_per_warp,
    shared_per_block,
)
from tools.sass_model.disassembly import read_cubin
from tools.sass_model.kernels import Workload, workloads
from tools.sass_model.machine import SUBPARTITIONS, WARP, Assumptions
from tools.sass_model.predict import KernelModel, Launch, predict


@dataclass(frozen=True)
class Side:
    model: KernelModel
    launch: Launch


@dataclass(frozen=True)
class Pair:
    together: tuple[tuple[int, int], ...]  # blocks of the first and of the second that an SM holds: the fullest mixes
    bound_us: float  # the pipe that both keep busiest, their work spread evenly; no less than either takes alone
    binds: str
    serial_bound_us: float  # one after the other: the two bounds
    serial_simulated_us: float
    first_simulated_us: float
    second_simulated_us: float


def pair(first: Side, second: Side) -> Pair:
    """Bounds of two launches at once. What they do to each other's latencies and caches is not in them."""
    alone = [predict(side.model, side.launch) for side in (first, second)]
    pipes: Counter[str] = Counter()
    for prediction in alone:
        pipes.update({**prediction.even_pipes_us, "bytes": prediction.bytes_us or 0.0})
    binds = max(pipes, key=lambda pipe: pipes[pipe])
    slowest = max(prediction.bound_us for prediction in alone)
    simulated = [prediction.simulated_us or 0.0 for prediction in alone]
    return Pair(
        together=blocks_together(first, second),
        bound_us=max(pipes[binds], slowest),
        binds=binds if pipes[binds] >= slowest else "the longer one alone",
        serial_bound_us=sum(prediction.bound_us for prediction in alone),
        serial_simulated_us=sum(simulated),
        first_simulated_us=simulated[0],
        second_simulated_us=simulated[1],
    )


def blocks_together(first: Side, second: Side) -> tuple[tuple[int, int], ...]:
    """Mixes of both kinds of blocks to which an SM can take no further block of either kind."""
    card = first.model.card

    def fit(counts: tuple[int, int]) -> bool:
        registers = warps = shared = 0
        for side, count in zip((first, second), counts, strict=True):
            on_subpartition = math.ceil(count * math.ceil(side.launch.threads / WARP) / SUBPARTITIONS)
            warps += on_subpartition
            registers += on_subpartition * registers_per_warp(side.model.kernel.registers)
            shared += count * shared_per_block(side.model.kernel.shared + side.launch.shared)
        return (
            registers <= REGISTERS_PER_SUBPARTITION
            and warps <= MAX_WARPS // SUBPARTITIONS
            and shared <= card.shared_per_sm
            and sum(counts) <= MAX_BLOCKS
        )

    mixes = [(a, b) for a in range(MAX_BLOCKS + 1) for b in range(MAX_BLOCKS + 1) if fit((a, b))]
    return tuple((a, b) for a, b in mixes if not fit((a + 1, b)) and not fit((a, b + 1)))


# ---- Command line ----


CubinOf = Callable[[str], Path]  # of csrc/cuda/<op>.cu, for Hopper


@contextmanager
def compiled() -> Iterator[CubinOf]:
    """Cubins that are made when they are asked for, and last as long as the context."""
    nvcc = cubins.find_nvcc()
    with tempfile.TemporaryDirectory() as folder:

        def cubin_of(op: str) -> Path:
            path = hopper_cubin(Path(folder), op)
            if not path.exists():
                source = cubins.source_of(op)
                cubins.compile_cubin(nvcc, source, cubins.hopper_architecture(source), Path(folder))
            return path

        yield cubin_of


def hopper_cubin(folder: Path, op: str) -> Path:
    """Where compile_cubin puts it."""
    return folder / f"{op}.{cubins.hopper_architecture(cubins.source_of(op))}.cubin"


def described(cubin_of: CubinOf, op: str, workload: Workload) -> Side:
    """A workload of tools/sass_model/kernels and its kernel."""
    kernels = {kernel.name: kernel for kernel in read_cubin(cubin_of(op))}
    bounds = cubins.launch_bounds(cubin_of(op))
    names = dict(zip(cubins.demangle(list(kernels)), kernels, strict=True))
    name = next(name for name in names if fnmatch.fnmatchcase(name, workload.kernel))
    line = cubins.matching(cubins.launch_lines(cubins.source_text(cubins.source_of(op))), name)
    threads = line.threads if line else bounds[names[name]]
    model = KernelModel(kernels[names[name]], Assumptions(broadcast_shared_loads=workload.broadcast_shared_loads))
    options = workload.plan(model).launch_options()
    shared = line.shared if line else 0
    return Side(model, Launch(threads, shared, workload.blocks, device_bytes=workload.device_bytes, **options))


def batched(side: Side, batch: int) -> Side:
    """`batch` sequences in place of one."""
    blocks, moved = side.launch.blocks or side.model.card.sms, side.launch.device_bytes
    return Side(side.model, replace(side.launch, blocks=blocks * batch, device_bytes=moved * batch))


def table(rows: Sequence[tuple[str, Pair]]) -> list[str]:
    lines = [
        "| side by side | blocks an SM holds | bound us | one after the other: bounds | simulated: each, sum |",
        "| --- | --- | --- | --- | --- |",
    ]
    for what, p in rows:
        mixes = " or ".join(str(mix) for mix in p.together)
        lines.append(
            f"| {what} | {mixes} | {p.bound_us:.0f} ({p.binds}) | {p.serial_bound_us:.0f} | "
            f"{p.first_simulated_us:.0f}, {p.second_simulated_us:.0f}, {p.serial_simulated_us:.0f} |"
        )
    return lines


def problems(cubin_of: CubinOf) -> list[str]:
    """The layer's two kernels are made to fit an SM together."""
    attention, scan = (described(cubin_of, op, workloads(op)[0]) for op in ("attention_sm90", "selective_scan_sm90"))
    mixes = blocks_together(attention, scan)
    return [] if (1, 1) in mixes else [f"attention and the scan do not fit an SM together: it holds {mixes}"]


def report(cubin_of: CubinOf) -> list[str]:
    scan = described(cubin_of, "selective_scan_sm90", workloads("selective_scan_sm90")[0])
    rows = []
    for workload in workloads("attention_sm90"):
        attention = described(cubin_of, "attention_sm90", workload)
        for batch in (1, 8):
            what = f"{workload.what}, batch {batch}, and the scan"
            rows.append((what, pair(batched(attention, batch), batched(scan, batch))))
    return table(rows)


def main() -> None:
    with compiled() as cubin_of:
        print("\n".join(report(cubin_of)))


if __name__ == "__main__":
    main()
