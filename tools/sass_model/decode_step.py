"""A decode step of a layer: launches that overlap, block by block. How long does it take at best?

python -m tools.sass_model.decode_step          # 1.5B layer, batch 1, bf16, sm_90: compiles the kernels, needs nvcc

The static model (predict.py) knows a launch's blocks, their registers and their way from entry to exit. This adds what
lies between launches: a block asks for its weights when it starts, which it does as soon as an SM has room and all
blocks of the launch before have started; but it goes on only when that launch has ended (griddepcontrol.wait), or the
blocks of its own launch have that it waits for. Device memory serves what is asked for in order.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tools.sass_model.kernels import workloads
from tools.sass_model.machine import CARDS
from tools.sass_model.pair import CubinOf, Side, compiled, described
from tools.sass_model.predict import KernelModel, predict

_BATCH = "batch 1,"


@dataclass(frozen=True)
class Terms:
    """Microseconds, all assumed: none has been measured."""

    bandwidth: float = 3.0e6  # bytes a microsecond of device memory
    memory: float = 0.7  # from a load to its data, with device memory idle
    start: float = 0.5  # from the moment that a block may start to its first load
    grid_end: float = 1.0  # from a grid's last store to the end of the next one's wait
    block_end: float = 0.8  # the same between blocks: barrier, fence, atomic; the polling load


@dataclass(frozen=True)
class Role:
    """Blocks of a launch that do the same."""

    name: str
    blocks: int
    share: float  # of an SM that a block takes
    bytes: float  # of device memory, all blocks together
    path: float  # us from its wait to its end, beside as many other blocks as an SM holds, data in L2
    waits: bool = False  # for the role before it in the launch, not only for the launch before


@dataclass(frozen=True)
class Grid:
    """A launch: roles in the order of their blocks."""

    roles: tuple[Role, ...]
    starts_next_late: bool = False  # only once its blocks know the end of the launch before
    beside_previous: bool = False  # waits for the launch before only in order to end


@dataclass(frozen=True)
class Step:
    us: float  # a layer in a row of them
    ends: tuple[float, ...]  # of the launches, from the end of the layer before
    bytes_us: float

    @property
    def ratio(self) -> float:
        return self.us / self.bytes_us


def simulate(grids: Sequence[Grid], sms: int, terms: Terms, *, layers: int = 6) -> Step:
    """The last of `layers` equal layers."""
    free, memory_free = float(sms), 0.0
    running: list[tuple[float, float]] = []  # end, share
    previous_end = -terms.grid_end  # nothing precedes the first launch
    may_start = now = 0.0
    ends: list[float] = []
    for grid in list(grids) * layers:
        known = previous_end + terms.grid_end  # when its blocks know the end of the launch before
        role_end = grid_end = 0.0
        for role in grid.roles:
            ready = 0.0 if grid.beside_previous else known
            if role.waits:
                ready = max(ready, role_end + terms.block_end)
            for _ in range(role.blocks):
                now = max(now, may_start)
                while free < role.share - 1e-9:
                    end, share = heapq.heappop(running)
                    now, free = max(now, end), free + share
                free -= role.share
                begin = now + terms.start
                memory_free = max(memory_free, begin) + role.bytes / role.blocks / terms.bandwidth
                end = max(max(ready, begin) + role.path, memory_free + terms.memory)
                if grid.beside_previous:
                    end = max(end, known)
                heapq.heappush(running, (end, role.share))
                role_end = max(role_end, end)
            grid_end = max(grid_end, role_end)
        may_start = max(now, known) if grid.starts_next_late else now
        previous_end = grid_end
        ends.append(grid_end)
    own, before = ends[-len(grids) :], ends[-len(grids) - 1]
    moved = sum(role.bytes for grid in grids for role in grid.roles)
    return Step(own[-1] - before, tuple(end - before for end in own), moved / terms.bandwidth)


# ---- The 1.5B layer ----


def before_wait(model: KernelModel) -> set[int]:
    """Addresses of the basic blocks that only run before griddepcontrol.wait."""
    flow = model.flow
    behind = {block for block in flow.reachable if any(i.base == "ACQBULK" for i in model.code(block))}
    assert behind, f"{model.kernel.name} waits for no grid"
    new = list(behind)
    while new:
        found = [after for after in flow.successors[new.pop()] if after not in behind]
        behind.update(found)
        new += found
    return {flow.address(block) for block in set(flow.reachable) - behind}


def role_of(side: Side, name: str, *, waits: bool = False) -> Role:
    """The way counts from the wait on: what is before it runs while the launch before ends."""
    before = dict.fromkeys(before_wait(side.model), 0.0)
    prediction = predict(side.model, replace(side.launch, weights={**side.launch.weights, **before}))
    assert prediction.simulated_us is not None and side.launch.blocks is not None
    waves = max(prediction.blocks_per_sm / prediction.resident, 1.0)
    held = side.model.occupancy(side.launch.threads, side.launch.shared).blocks
    path = prediction.simulated_us / waves
    return Role(name, side.launch.blocks, 1 / held, side.launch.device_bytes, path, waits=waits)


def layer(cubin_of: CubinOf, *, sliding: bool) -> list[Grid]:
    """The launches of a layer that makes its own keys, one row behind 8192 + 128 tokens."""

    def role(op: str, what: str, name: str, *, waits: bool = False) -> Role:
        workload = next(workload for workload in workloads(op) if what in workload.what)
        return role_of(described(cubin_of, op, workload), name, waits=waits)

    if sliding:
        attention = [role("decode_attention", f"window 1024, {_BATCH}", "attention")]
    else:
        attention = [
            role("decode_attention", f"global, {_BATCH}", "attention"),
            role("decode_attention", "the blocks that join", "of it the blocks that join"),
        ]
    step = f"{_BATCH} 1 token, bf16"
    return [
        Grid((role("norm_project", "in_proj", "norm, in_proj"),)),
        Grid(
            (
                role("mamba_update", f"{step}: slices", "conv, x_proj"),
                role("mamba_update", f"{step}: channels", "norms, dt_proj, state, gate", waits=True),
            ),
            starts_next_late=True,
        ),
        Grid(tuple(attention), beside_previous=True),
        Grid((role("norm_project", "out_proj", "norm-average, out_proj"),)),
        Grid(
            (
                role("gated_mlp", "gate and up", "norm, gate and up"),
                role("gated_mlp", "down", "down", waits=True),
            )
        ),
    ]


def table(grids: Sequence[Grid], step: Step, terms: Terms) -> list[str]:
    lines = [
        "| launch | blocks | of an SM | MB | a block's way, us | ends at us |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for number, (grid, end) in enumerate(zip(grids, step.ends, strict=True), 1):
        for role in grid.roles:
            last = f"{end:.1f}" if role is grid.roles[-1] else ""
            cells = (
                f"{number} {role.name}",
                f"{role.blocks}",
                f"1/{round(1 / role.share)}",
                f"{role.bytes / 1e6:.2f}",
                f"{role.path:.1f}",
                last,
            )
            lines.append(f"| {' | '.join(cells)} |")
    return [
        *lines,
        "",
        f"A layer among others: **{step.us:.1f} us**, {step.ratio:.2f} times its bytes at "
        f"{terms.bandwidth / 1e6:.1f} TB/s ({step.bytes_us:.1f} us).",
    ]


def report(cubin_of: CubinOf) -> list[str]:
    terms, lines = Terms(), []
    for what, sliding in (("A sliding layer:", True), ("A global layer:", False)):
        grids = layer(cubin_of, sliding=sliding)
        lines += [what, "", *table(grids, simulate(grids, CARDS[90].sms, terms), terms), ""]
    return lines[:-1]


def main() -> None:
    with compiled() as cubin_of:
        print("\n".join(report(cubin_of)))


if __name__ == "__main__":
    main()
