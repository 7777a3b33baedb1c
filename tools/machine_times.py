#!/usr/bin/env python3
"""Measures on this machine's GPU what the static model (tools/sass_model) assumes of it, beside its assumptions.

    python tools/machine_times.py                                        # a table, and build/machine_times.json
    python tools/machine_times.py --json bench/results/h100_machine.json

Needs nvcc, a GPU and its nvidia-smi, and takes some 20 seconds; ends with status 2 where one of them is missing, with 1
where a measurement failed. The file is written anew after each measurement, so that what stands there is kept whatever
comes next. What each decides: docs/sass_model.md.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.cubins import CompileError, find_nvcc, nvcc_version  # noqa: E402
from tools.machine_kernels.entries import ENTRIES, Entry, Figure  # noqa: E402
from tools.sass_model.machine import CARDS, Card  # noqa: E402

KERNELS = ROOT / "tools" / "machine_kernels"
MOST_VALUES = 64
COLUMNS = ("name", "driver_version", "compute_cap", "clocks.max.sm", "clocks.max.memory", "power.limit")
Run = Callable[[str], list[float]]  # a measurement's values, by its name


class CannotRunError(RuntimeError):
    """No GPU, or no nvcc."""


class MeasurementError(RuntimeError):
    """CUDA refused something."""


def card_of(capability: str) -> Card:
    return CARDS[90 if float(capability) >= 9 else 80]


# ---- the machine and the library ----


def device_facts() -> dict[str, str]:
    """What nvidia-smi says of the first GPU."""
    query = ["nvidia-smi", f"--query-gpu={','.join(COLUMNS)}", "--format=csv,noheader", "--id=0"]
    if shutil.which(query[0]) is None:
        raise CannotRunError("no GPU: nvidia-smi is not on PATH")
    done = subprocess.run(query, capture_output=True, text=True)
    if done.returncode != 0:
        raise CannotRunError(f"no GPU: nvidia-smi says {(done.stdout + done.stderr).strip()!r}")
    return dict(zip(COLUMNS, (cell.strip() for cell in done.stdout.splitlines()[0].split(",")), strict=True))


def is_hopper(capability: str) -> bool:
    return capability == "9.0"


def compiler_options(capability: str) -> list[str]:
    number = capability.replace(".", "") + ("a" if is_hopper(capability) else "")
    return ["-std=c++20", "-O3", f"-gencode=arch=compute_{number},code=sm_{number}", "-I", str(ROOT / "csrc")]


def sources(capability: str) -> list[Path]:
    found = sorted(KERNELS.glob("*.cu"))
    return [source for source in found if is_hopper(capability) or not source.stem.endswith("_sm90")]


def build(nvcc: str, folder: Path, capability: str) -> Path:
    """The shared library of all sources, each compiled by an nvcc of its own."""
    library = folder / "libmachine.so"
    options = [*compiler_options(capability), "-Xcompiler", "-fPIC"]
    if is_hopper(capability):
        options.append("-DHYMBA_MACHINE_SM90")
    files = sources(capability)
    objects = [folder / f"{source.stem}.o" for source in files]

    def run(command: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise CompileError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")

    with ThreadPoolExecutor(len(files)) as pool:
        list(
            pool.map(
                lambda pair: run([nvcc, *options, "-c", str(pair[0]), "-o", str(pair[1])]),
                zip(files, objects, strict=True),
            )
        )
    run([nvcc, *options, "-shared", "-o", str(library), *map(str, objects)])
    return library


def load(library: Path) -> Run:
    measure = ctypes.CDLL(str(library)).hymba_measure
    measure.restype = ctypes.c_char_p
    measure.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_double), ctypes.POINTER(ctypes.c_int)]

    def run(name: str) -> list[float]:
        values, count = (ctypes.c_double * MOST_VALUES)(), ctypes.c_int(MOST_VALUES)
        error = measure(name.encode(), values, ctypes.byref(count))
        if error is not None:
            raise MeasurementError(error.decode())
        return list(values[: count.value])

    return run


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


# ---- measuring ----


def record(entry: Entry, values: Sequence[float], card: Card) -> dict[str, Any]:
    return {
        "name": entry.name,
        "what": entry.what,
        "unit": entry.unit,
        "assumed": entry.assumed(card) if entry.assumed else None,
        "otherwise": entry.otherwise(card) if entry.otherwise else None,
        "measured": entry.measured(values),
        "values": list(values),
    }


def measure_all(run: Run, facts: Mapping[str, Any], save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """All entries that the device has; `save` gets what is there after each measurement."""
    hopper, card = is_hopper(facts["compute_cap"]), card_of(facts["compute_cap"])
    result: dict[str, Any] = {**facts, "card": card.name, "entries": [], "failed": {}}
    wanted = [entry for entry in ENTRIES if hopper or not entry.hopper]
    for name in dict.fromkeys(entry.measure for entry in wanted):
        try:
            values = run(name)
            result["entries"] += [record(entry, values, card) for entry in wanted if entry.measure == name]
        except (MeasurementError, ArithmeticError, LookupError, ValueError) as error:  # also values that make no sense
            result["failed"][name] = str(error)
        save(result)
    order = {entry.name: n for n, entry in enumerate(ENTRIES)}
    result["entries"].sort(key=lambda found: order[found["name"]])
    save(result)
    return result


# ---- tables ----


def text(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    return figure if isinstance(figure, str) else f"{figure:.3g}" if abs(figure) < 1000 else f"{figure:.0f}"


def ratio(measured: Figure, assumed: Figure | None) -> str:
    if assumed is None:
        return "-"
    if isinstance(measured, str) or isinstance(assumed, str):
        return "same" if measured == assumed else "differs"
    return f"{measured / assumed:.2f}" if assumed else "-"


def assumed_text(assumed: Figure | None, otherwise: float | None) -> str:
    return text(assumed) + (f" (or {text(otherwise)})" if otherwise not in (None, assumed) else "")


def printed(result: Mapping[str, Any]) -> list[str]:
    lines = [f"{'what':72} {'unit':>13} {'assumed':>12} {'measured':>12} ratio"]
    for found in result["entries"]:
        assumed, measured = assumed_text(found["assumed"], found["otherwise"]), text(found["measured"])
        beside = ratio(found["measured"], found["assumed"])
        lines.append(f"{found['what']:72} {found['unit']:>13} {assumed:>12} {measured:>12} {beside}")
    return lines + [f"{name} failed: {why}" for name, why in result["failed"].items()]


def machine_table(results: list[dict[str, Any]]) -> list[str]:
    """Markdown: the assumptions of today's model beside what each result (as this program writes them) has measured."""
    devices = [result["name"] for result in results] or ["measured"]
    lines = [
        f"| what | unit | assumed | {' | '.join(devices)} |",
        f"| --- | --- | --- | {'--- | ' * len(devices)}".strip(),
    ]
    tables = [{found["name"]: found for found in result["entries"]} for result in results]
    for entry in ENTRIES:
        assumed = entry.assumed(CARDS[90]) if entry.assumed else None
        otherwise = entry.otherwise(CARDS[90]) if entry.otherwise else None
        cells = []
        for table in tables:
            measured = table[entry.name]["measured"] if entry.name in table else None
            beside = "" if measured is None or assumed is None else f" ({ratio(measured, assumed)})"
            cells.append(text(measured) + beside)
        lines.append(f"| {entry.what} | {entry.unit} | {assumed_text(assumed, otherwise)} | "
                     f"{' | '.join(cells or ['not yet'])} |")  # fmt: skip
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "machine_times.json", metavar="FILE")
    parser.add_argument("--seconds", type=int, default=60, help="after which the measurements are stopped (60)")
    options = parser.parse_args(arguments)
    try:
        facts: dict[str, Any] = dict(device_facts())
        nvcc = find_nvcc()
    except (CannotRunError, CompileError) as error:
        print(f"machine_times: {error}")
        return 2
    options.json.parent.mkdir(parents=True, exist_ok=True)
    facts |= {"commit": commit(), "nvcc": nvcc_version(nvcc)}

    def save(result: Mapping[str, Any]) -> None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")

    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            run = load(build(nvcc, Path(folder), facts["compute_cap"]))
        except CompileError as error:
            print(f"machine_times: {error}")
            return 1
        compiled = time.monotonic()
        # The default action ends the process even inside a kernel that never does.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(options.seconds)
        result = measure_all(run, facts, save)
        signal.alarm(0)
    print("\n".join(printed(result)))
    print(
        f"{len(result['entries'])} entries of {facts['name']} in {options.json}, {len(result['failed'])} measurements "
        f"failed; {compiled - begin:.0f} s to compile, {time.monotonic() - compiled:.0f} s to measure"
    )
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
