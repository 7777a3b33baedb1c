"""Kernels' times on GPUs: the files that bench/kernel_times.py writes, kept as bench/results/<card>_kernels.json."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.cubins import ROOT
from tools.sass_model.kernels import Workload

NOT_YET = "not yet"


@dataclass(frozen=True)
class Results:
    """A file: one run on one card."""

    file: str  # below the clone's root
    card: str
    driver: str
    commit: str
    us: Mapping[tuple[str, str], float]  # kernel and call (Case.text) to the time of the launch


def read(root: Path = ROOT) -> list[Results]:
    return [_results(path, str(path.relative_to(root))) for path in sorted(root.glob("bench/results/*_kernels.json"))]


def _results(path: Path, name: str) -> Results:
    found: dict[str, Any] = json.loads(path.read_text())
    times = {(row["kernel"], row["what"]): float(row["us"]) for row in found["rows"]}
    commit = found["commit"] or "unknown"
    changed = " with changes" if commit.endswith("+") else ""
    machine = found["machine"]
    return Results(name, card_of(machine["device"]), machine["driver"] or "unknown", commit[:12] + changed, times)


def card_of(device: str) -> str:
    """As people call it: "H100" of "NVIDIA H100 80GB HBM3"."""
    words = re.split(r"[\s-]+", device)
    return next((word for word in words if re.search(r"\d", word) and not word.endswith("GB")), device)


def cell(results: Sequence[Results], workload: Workload) -> str:
    """Of a table: "190.3 (H100)" for each card, or that there is none yet."""
    key = (workload.kernel, workload.case.text)
    times = [f"{file.us[key]:.1f} ({file.card})" for file in results if key in file.us]
    whole = " whole launch" if workload.part else ""
    return ", ".join(times) + whole if times else NOT_YET


def sources(results: Sequence[Results]) -> str:
    """Of a sentence: where the times are from."""
    found = [f"{file.card} ({file.file}, driver {file.driver}, commit {file.commit})" for file in results]
    return ", ".join(found) or NOT_YET
