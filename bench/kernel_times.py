#!/usr/bin/env python3
"""Each kernel's own time on a GPU beside what tools/sass_model predicts for it.

    python bench/kernel_times.py --json bench/results/h100_kernels.json      # all that tools/sass_model/kernels has
    python bench/kernel_times.py --ops attention_sm90,rms_norm               # of these csrc/cuda/*.cu
    python bench/kernel_times.py --no-predictions                            # times only: nothing is compiled

Runs the call of every workload (bench/kernel_calls.py) under torch's profiler, each call by itself, so that no kernel
overlaps another, on inputs that the L2 cache does not hold, and keeps the durations of the workload's kernel, found by
its name. A workload that is a part of a launch's blocks has the launch's time. Predictions are for an H100 SXM and need
nvcc and the disassemblers (docs/sass_model.md); they are made beside the measuring. tools/check_cubins.py --write puts
what bench/results/*_kernels.json has into the tables of docs/.

Exit status: 1 where a kernel was not found in its call's profile, 2 where nothing can be measured.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.profiler import ProfilerActivity

from bench import options, report
from bench.kernel_calls import make_call
from bench.runner import Call, CannotRun, Progress, first_line, inputs_beyond_cache, missing_kernels
from tools import check_cubins, cubins
from tools.sass_model.kernels import Case, Workload, workloads
from tools.sass_model.predict import Prediction

WARM_UP, CALLS = 3, 20


@dataclass(frozen=True)
class Kernel:
    """One that ran."""

    name: str  # as tools/cubins.py shortens it
    us: float
    blocks: int


@dataclass(frozen=True)
class Launch:
    """What a call's profile is searched for: a kernel, all of whose workloads in this call have its time."""

    op: str  # csrc/cuda/<op>.cu
    kernel: str
    case: Case
    workloads: tuple[Workload, ...]

    @property
    def blocks(self) -> int:
        whole = [workload.blocks for workload in self.workloads if not workload.part]
        return whole[0] if whole else sum(workload.blocks for workload in self.workloads)


def launches_of(ops: Sequence[str]) -> list[Launch]:
    found: dict[tuple[str, str, Case], list[Workload]] = {}
    for op in ops:
        for workload in workloads(op):
            found.setdefault((op, workload.kernel, workload.case), []).append(workload)
    return [Launch(*key, tuple(described)) for key, described in found.items()]


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = tuple(source.stem for source in cubins.sources() if workloads(source.stem))
    parser.add_argument("--ops", default=",".join(every), help="sources of csrc/cuda (default: all)")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument("--no-predictions", dest="predict", action="store_false", help="leave out what needs nvcc")
    arguments = parser.parse_args(argv)
    arguments.ops = options.choices("--ops", arguments.ops, every)
    options.check_outputs(arguments.json, None)
    return arguments


# ---- Measuring ----


def measure(launches: Sequence[Launch], device: torch.device, path: Path | None) -> dict[str, Any]:
    """Results as --json writes them, after every call's."""
    results: dict[str, Any] = {
        "machine": report.describe_machine(device), "commit": report.commit(), "rows": [], "missing": []
    }  # fmt: skip
    cases: dict[Case, list[Launch]] = {}
    for launch in launches:
        cases.setdefault(launch.case, []).append(launch)
    progress = Progress(len(cases))
    for case, wanted in cases.items():
        try:
            kernels, failure = time_case(case, wanted, device), ""
        except (RuntimeError, ValueError, TypeError) as error:
            kernels, failure = [], f"{type(error).__name__}: {first_line(error)}"
        for launch in wanted:
            add_result(results, launch, kernels, failure)
        progress.step(f"{case.op}: {case.text}")
        if path:
            path.write_text(json.dumps(results, indent=1) + "\n")
    progress.close()
    return results


def time_case(case: Case, launches: Sequence[Launch], device: torch.device) -> list[Kernel]:
    """What ran in CALLS calls, each on the input that was longest not used."""
    size = max(workload.device_bytes for launch in launches for workload in launch.workloads)
    inputs = itertools.cycle([make_call(case, device) for _ in range(inputs_beyond_cache(size, device))])
    for call in itertools.islice(inputs, WARM_UP):
        call()
    torch.cuda.synchronize(device)
    calls = list(itertools.islice(inputs, CALLS))
    return profiled(calls) or profiled(calls)  # a process's first profile may miss what its library starts up beside


def profiled(calls: Sequence[Call]) -> list[Kernel]:
    """The kernels of the calls. Each call ends before the next begins."""
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for call in calls:
            call()
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        return traced_kernels(json.loads(trace.read_text()))


def traced_kernels(trace: dict[str, Any]) -> list[Kernel]:
    """Those of a trace in Chrome's format, whose times are in microseconds."""
    return [
        Kernel(cubins.short_name(event["name"]), float(event["dur"]), math.prod(event["args"].get("grid", ())))
        for event in trace["traceEvents"]
        if event.get("cat") == "kernel"
    ]


def add_result(results: dict[str, Any], launch: Launch, kernels: Sequence[Kernel], failure: str) -> None:
    mine = [kernel for kernel in kernels if kernel.name == launch.kernel]
    row: dict[str, Any] = {"op": launch.op, "kernel": launch.kernel, "what": launch.case.text}
    if not mine:
        results["missing"].append(row | {"failure": failure, "seen": sorted({kernel.name for kernel in kernels})})
        return
    times = [kernel.us for kernel in mine]
    results["rows"].append(row | {
        "us": statistics.median(times), "us_min": min(times), "us_max": max(times), "launches": len(times),
        "blocks": mine[0].blocks, "described_blocks": launch.blocks,
        "parts": [workload.part for workload in launch.workloads if workload.part],
    })  # fmt: skip


# ---- Predicting ----

Predictions = dict[tuple[str, str], Prediction]  # of a kernel and Workload.what


@contextmanager
def predicting(ops: Sequence[str]) -> Iterator[list[Future[check_cubins.Result]]]:
    """Compiles and predicts in processes of their own, which begin before this one uses the GPU."""
    sources = [source for source in cubins.sources() if source.stem in ops]
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(min(len(sources), os.cpu_count() or 1)) as pool:
        nvcc = cubins.find_nvcc()
        yield [
            pool.submit(check_cubins.check_source, nvcc, source, arch, Path(folder))
            for source in sources
            for arch in cubins.architectures(source)
            if arch in check_cubins.PREDICTED
        ]


def gather(jobs: Sequence[Future[check_cubins.Result]], problems: list[str]) -> Predictions:
    """What they say; what went wrong is added to `problems`."""
    said: Predictions = {}
    for job in jobs:
        result = job.result()
        problems += result.problems
        for row in result.rows:
            said |= {(row.kernel, made.workload.what): made.prediction for made in row.forecasts}
    return said


# ---- Tables ----


def print_times(launches: Sequence[Launch], results: dict[str, Any], said: Predictions) -> None:
    times = {(row["kernel"], row["what"]): row for row in results["rows"]}
    lines: list[tuple[str, ...]] = [("kernel", "launch", "us", "(min - max)", "bound us", "simulated us", "bytes us",
                                     "x max(bound, bytes)")]  # fmt: skip
    for launch in launches:
        row = times.get((launch.kernel, launch.case.text))
        for workload in launch.workloads:
            us, spread = (
                (f"{row['us']:.1f}", f"({row['us_min']:.1f} - {row['us_max']:.1f})") if row else ("not found", "")
            )
            lines.append((workload.kernel, workload.what, us, spread, *_predicted(workload, row, said)))
    report.print_machine(results["machine"])
    report.print_table(lines, left=2)
    print("\nus: median of the launch; behind a colon is a part of it. bound, simulated, bytes: for an H100 SXM.")


def _predicted(workload: Workload, row: dict[str, Any] | None, said: Predictions) -> tuple[str, str, str, str]:
    prediction = said.get((workload.kernel, workload.what))
    if prediction is None:
        return "-", "-", "-", "-"
    simulated, moved = prediction.simulated_us, prediction.bytes_us
    ratio = row["us"] / max(prediction.bound_us, moved or 0.0) if row and not workload.part else None
    figures = (f"{prediction.bound_us:.1f}", *("-" if us is None else f"{us:.1f}" for us in (simulated, moved)))
    return *figures, "-" if ratio is None else f"{ratio:.2f}"


def print_problems(results: dict[str, Any]) -> None:
    for row in results["rows"]:
        if row["blocks"] != row["described_blocks"]:
            print(
                f"kernel_times: note: {row['kernel']} ({row['what']}) has {row['blocks']} blocks, of which "
                f"{row['described_blocks']} are described"
            )
    for row in results["missing"]:
        why = row["failure"] or f"its call ran {', '.join(row['seen']) or 'no kernel that the profiler saw'}"
        print(f"kernel_times: not found: {row['kernel']} ({row['what']}): {why}")


def main(argv: list[str] | None = None) -> int:
    try:
        arguments = parse_arguments(argv)
        if not torch.cuda.is_available():
            raise CannotRun(f"this torch ({torch.__version__}) sees no CUDA device")
        device = torch.device("cuda")
        launches = launches_of(arguments.ops)
        if missing := missing_kernels({launch.case.op for launch in launches}, device):
            raise CannotRun(f"hymba_ops has no CUDA kernel of {', '.join(sorted(missing))}")
    except CannotRun as reason:
        print(f"kernel_times: {reason}", file=sys.stderr)
        return 2
    problems: list[str] = []
    with ExitStack() as stack, torch.inference_mode():
        jobs = []
        if arguments.predict:
            try:
                jobs = stack.enter_context(predicting(arguments.ops))
            except cubins.CompileError as reason:
                problems.append(str(reason))
        results = measure(launches, device, Path(arguments.json) if arguments.json else None)
        said = gather(jobs, problems)
    print_times(launches, results, said)
    for problem in problems:
        print(f"kernel_times: no prediction: {problem}")
    print_problems(results)
    return 1 if results["missing"] else 0


if __name__ == "__main__":
    sys.exit(main())
