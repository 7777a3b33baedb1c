#!/usr/bin/env python3
"""Gates on every CUDA kernel's machine code, its budgets, and what the static model says of it. Needs nvcc, no GPU.

    tools/check_cubins.py                       # compile, gate, print the tables
    tools/check_cubins.py selective_scan        # only this op's
    tools/check_cubins.py --check               # and refuse if the tables in docs/ are not these (CI)
    tools/check_cubins.py --write               # write them there

A spill, a stack frame, a load or store of local memory, a block that fits no SM, a launch line that is not true, or
wgmma without overlap (tools/overlap.py) fails. Tables stand between markers in docs/*.md: `<!-- budgets: OP -->`,
`<!-- predictions: OP -->` or `<!-- instructions: OP -->`, and `<!-- end -->`; OP may be `all`. `<!-- model: NAME -->`
is what tools/sass_model/NAME.py says of several launches. They hold for one nvcc: with another, --check compares only
which kernels they list. Times that were measured (tools/measured.py) stand beside the predictions.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools import cubins, measured
from tools.cubins import ROOT, CompileError, LaunchLine, PtxasReport
from tools.measured import Results, sources
from tools.overlap import wgmma_problems
from tools.sass_model import decode_step, pair
from tools.sass_model.control_flow import Loop
from tools.sass_model.disassembly import ToolError, read_cubin
from tools.sass_model.kernels import Workload, workloads
from tools.sass_model.machine import Assumptions
from tools.sass_model.pair import CubinOf
from tools.sass_model.predict import KernelModel, Launch, predict
from tools.sass_model.tile import count
from tools.tables import NOTES, TABLES, Forecast, Row

JOBS = 2
PREDICTED = ("sm_90", "sm_90a")  # on an H100


@dataclass
class Result:
    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def check_source(nvcc: str, source: Path, arch: str, folder: Path) -> Result:
    """One source for one architecture, in a process of its own."""
    try:
        compiled = cubins.compile_cubin(nvcc, source, arch, folder)
        text = cubins.source_text(source)
        lines = cubins.launch_lines(text)
        bounds = cubins.launch_bounds(compiled.cubin)
        kernels = {kernel.name: kernel for kernel in read_cubin(compiled.cubin)}
    except (CompileError, ToolError) as error:
        return Result(problems=[str(error)])
    result = Result()
    if not compiled.reports:
        result.problems.append(f"{source.name}: no kernel for {arch}")
    names = cubins.demangle([report.name for report in compiled.reports])
    for line in lines:
        if not any(fnmatch.fnmatchcase(name, line.pattern) for name in names):
            result.problems.append(f"{source.name}: no kernel is called {line.pattern}, of a launch line")
    if cubins.uses_dynamic_shared(text) and not any(line.shared for line in lines):
        result.problems.append(f"{source.name}: uses dynamic shared memory, but no launch line says how much")
    for name, report in zip(names, compiled.reports, strict=True):
        model = KernelModel(kernels[report.name])
        try:
            row = make_row(
                source.stem, name, arch, report, model, cubins.matching(lines, name), bounds.get(report.name)
            )
        except (CompileError, ValueError) as error:
            result.problems.append(f"{source.name}, {name}, {arch}: {error}")
            continue
        result.rows.append(row)
    return result


def make_row(
    op: str,
    name: str,
    arch: str,
    report: PtxasReport,
    model: KernelModel,
    line: LaunchLine | None,
    bound: int | None,
) -> Row:
    threads = line.threads if line else bound
    if threads is None:
        raise CompileError("neither __launch_bounds__ nor a launch line says how many threads a block has")
    dynamic = line.shared if line else 0
    fits = model.occupancy(threads, dynamic)
    row = Row(op, name, arch, report.registers, report.shared, dynamic, threads, fits, main_loop(model))
    local = model.opcodes["LDL"] + model.opcodes["STL"]
    row.problems += [
        text
        for wrong, text in (
            (report.spills, f"{report.spills} bytes spilled"),
            (report.stack, f"a stack frame of {report.stack} bytes"),
            (local, f"{local} loads and stores of local memory"),
            (fits.blocks == 0, f"no block of {threads} threads fits an SM: {fits.limit}"),
            (bound is not None and threads > bound, f"launched with {threads} threads, __launch_bounds__ {bound}"),
        )
        if wrong
    ]
    row.problems += wgmma_problems(model)
    if arch in PREDICTED and not row.problems:
        row.forecasts = [
            forecast(model, workload, threads, dynamic)
            for workload in workloads(op)
            if fnmatch.fnmatchcase(name, workload.kernel)
        ]
    return row


def main_loop(model: KernelModel) -> tuple[int, float, str] | None:
    """Of the loops without inner ones, but for waits at mbarriers, that with most instructions, each counted once."""
    innermost = [loop for loop in model.loops if all(_waits(model, child) for child in loop.children)]
    if not innermost:
        return None
    loop = max(innermost, key=model.size)
    cycles, pipe = model.tally(loop).bound
    return len(model.own(loop)), cycles, pipe


def _waits(model: KernelModel, loop: Loop) -> bool:
    """Whether a loop does nothing but ask an mbarrier again."""
    return model.count(loop, "SYNCS") > 0 and model.size(loop) <= 3


def forecast(model: KernelModel, workload: Workload, threads: int, shared: int) -> Forecast:
    model = KernelModel(model.kernel, Assumptions(broadcast_shared_loads=workload.broadcast_shared_loads), model.card)
    plan = workload.plan(model)
    launch = Launch(threads, shared, workload.blocks, device_bytes=workload.device_bytes, **plan.launch_options())
    return Forecast(workload, predict(model, launch), count(model, launch, plan.tile) if plan.tile else None)


MODELS: dict[str, Callable[[CubinOf], list[str]]] = {"decode_step": decode_step.report, "pair": pair.report}
MARKED = re.compile(rf"<!-- ({'|'.join(TABLES)}|model): (\w+) -->\n(.*?)<!-- end -->", re.DOTALL)


def renew(
    page: str,
    rows: list[Row],
    nvcc: str,
    models: Mapping[str, list[str]] = MappingProxyType({}),
    results: Sequence[Results] = (),
) -> str:
    """A page of docs/ with its tables made anew. models: what each says."""

    def block(match: re.Match[str]) -> str:
        kind, op = match[1], match[2]
        if kind == "model":
            lines = models[op]
            return f"<!-- model: {op} -->\n" + "\n".join([f"By nvcc {nvcc}, predicted.", "", *lines]) + "\n<!-- end -->"
        lines = TABLES[kind]([row for row in rows if op in ("all", row.op)], results)
        note = NOTES[kind].format(sources(results))
        return f"<!-- {kind}: {op} -->\n" + "\n".join([f"By nvcc {nvcc}{note}", "", *lines]) + "\n<!-- end -->"

    return MARKED.sub(block, page)


def listed(page: str, whole: bool) -> list[str]:
    """The tables of a page, or the kernels in them."""
    tables = [match[3] for match in MARKED.finditer(page)]
    return (
        tables if whole else [name for table in tables for name in re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)]
    )


def update_docs(
    rows: list[Row],
    nvcc: str,
    write: bool,
    models: Mapping[str, list[str]] = MappingProxyType({}),
    results: Sequence[Results] = (),
) -> list[str]:
    """Pages whose tables are out of date; with `write` they are no longer."""
    stale = []
    for path in sorted(ROOT.glob("docs/*.md")):
        page = path.read_text()
        new = renew(page, rows, nvcc, models, results)
        if write:
            path.write_text(new)
            continue
        same_compiler = f"By nvcc {nvcc}" in page
        if listed(page, same_compiler) != listed(new, same_compiler):
            stale.append(f"docs/{path.name} is out of date: run tools/check_cubins.py --write and read what changed")
    return stale


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", help="default: all")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.ops and (options.check or options.write):
        parser.error("--check and --write take all ops")
    chosen = [source for source in cubins.sources() if not options.ops or source.stem in options.ops]
    if not chosen:
        parser.error(f"no csrc/cuda/*.cu is called {' or '.join(options.ops)}")
    try:
        nvcc = cubins.find_nvcc()
        version = cubins.nvcc_version(nvcc)
    except CompileError as error:
        sys.exit(f"check_cubins: {error}")
    folder = ROOT / "build" / "cubins"
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(min(JOBS, os.cpu_count() or 1)) as pool:
        jobs = [
            pool.submit(check_source, nvcc, source, arch, folder)
            for source in chosen
            for arch in cubins.architectures(source)
        ]
        checked = [job.result() for job in jobs]
    rows = sorted((row for result in checked for row in result.rows), key=lambda row: (row.op, row.kernel, row.arch))
    problems = [text for result in checked for text in result.problems]
    problems += [f"{row.kernel}, {row.arch}: {text}" for row in rows for text in row.problems]
    results = measured.read()
    print("\n\n".join("\n".join(table(rows, results)) for table in TABLES.values()))
    if not problems and (options.check or options.write):
        made = partial(pair.hopper_cubin, folder)
        problems += pair.problems(made)
        models = {name: say(made) for name, say in MODELS.items()}
        problems += update_docs(rows, version, options.write, models, results)
    for problem in problems:
        print(f"check_cubins: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
