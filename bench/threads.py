"""--threads: hymba_ops' layer and its parts at several thread counts."""

from __future__ import annotations

import torch

import hymba_ops
from bench import parts
from bench.cases import Case
from bench.report import Rows
from bench.runner import Progress, time_rounds


def default_counts(cores: int) -> list[int]:
    """1, 2, 4 and so on below the number of cores, and that number."""
    return [1 << i for i in range(cores.bit_length()) if 1 << i < cores] + [cores]


def time_threads(case: Case, config: hymba_ops.HymbaConfig, counts: list[int], progress: Progress) -> Rows:
    """A row for the whole layer ("layer") and each part at each count; speedup: over the first count, one thread."""
    hidden = case.inputs[0]
    calls = parts.part_calls(case.layers["hymba_ops"], case.layers["plain"], config, case.index, hidden)
    candidates = {"layer": case.calls("hymba_ops")} | {part: [calls[part]["hymba_ops"]] for part in calls}
    rows: Rows = []
    before = torch.get_num_threads()
    try:
        for count in counts:
            torch.set_num_threads(count)
            timings = time_rounds(candidates, hidden.device, seconds=0.5)
            rows += [
                {"layer": case.name, "part": part, "threads": count, "ms": timing.ms, "ms_min": timing.ms_min,
                 "ms_max": timing.ms_max} for part, timing in timings.items()
            ]  # fmt: skip
            progress.step(f"{case.name}: threads = {count}")
    finally:
        torch.set_num_threads(before)
    alone = {row["part"]: row["ms"] for row in rows if row["threads"] == counts[0]}
    for row in rows:
        row["speedup"] = alone[row["part"]] / row["ms"]
    return rows
