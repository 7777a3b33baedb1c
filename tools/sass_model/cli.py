"""Command line: any cubin or .cu file, with trip counts given by hand.

python tools/sass_model scan.cubin --kernel SUBSTRING                       # loops L0, L1, ... with pipes, mix, bound
python tools/sass_model scan.cubin --kernel ... --threads 128 --shared 86016 --blocks 100 --trips L0=130,L1=0,L2=8
python tools/sass_model kernel.cu --nvcc "-std=c++20 -arch=sm_90 -Icsrc"    # compiles first
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from tools.sass_model.disassembly import Kernel, ToolError, read_cubin
from tools.sass_model.machine import CARDS, LATENCY, Assumptions, Card
from tools.sass_model.predict import KernelModel, Launch, loop_costs, predict
from tools.sass_model.report import as_json, text


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("sass_model", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("file", type=Path, help="a .cubin, or a .cu")
    p.add_argument("--nvcc", default="", help="flags for a .cu")
    p.add_argument("--kernel", default="", help="only kernels whose mangled name contains this")
    p.add_argument("--json", type=Path, help="write the result here")
    p.add_argument("--threads", type=int, default=128, help="per block")
    p.add_argument("--shared", type=int, default=0, help="dynamic shared memory, bytes per block")
    p.add_argument("--blocks", type=int, help="in the grid; default one per SM")
    p.add_argument("--trips", type=_pairs, default={}, help="L0=260,L1=8: rounds per entry of each loop; gives TIME")
    p.add_argument(
        "--weight", type=_pairs, default={}, help="0x1230=0.1: how often a basic block runs per round of its loop"
    )
    p.add_argument(
        "--role", type=_roles, default=(), help="8:L3,4:rest: 8 warps a block run the branch that holds L3, 4 the rest"
    )
    p.add_argument("--bytes", type=float, default=0, help="device memory traffic")
    p.add_argument("--elements", type=float, default=0, help="elements of the whole problem")
    p.add_argument("--sms", type=int)
    p.add_argument("--ghz", type=float)
    p.add_argument("--bandwidth", type=float, help="bytes a second")
    p.add_argument(
        "--broadcast", action="store_true", help="shared loads cost one wavefront instead of all lanes' bytes"
    )
    p.add_argument("--pack-on-xu", action="store_true", help="the fp32 to bf16x2 pack on the special-function unit")
    p.add_argument("--predicated-share", type=float, default=1.0, help="predicated instructions that reach their pipe")
    p.add_argument("--global-latency", type=float, default=LATENCY["ldg"])
    p.add_argument("--no-simulation", action="store_true")
    return p


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        kernels = [kernel for kernel in _read(options.file, options.nvcc) if options.kernel in kernel.name]
    except ToolError as error:
        sys.exit(f"sass_model: {error}")
    if not kernels:
        sys.exit(f"sass_model: {options.file} has no kernel whose name contains {options.kernel!r}")
    assume = Assumptions(options.broadcast, options.pack_on_xu, options.predicated_share, options.global_latency)
    launch = Launch(
        threads=options.threads,
        shared=options.shared,
        blocks=options.blocks,
        trips=options.trips,
        roles=options.role,
        weights={int(address, 16): weight for address, weight in options.weight.items()},
        device_bytes=options.bytes,
        elements=options.elements,
    )
    results = []
    for kernel in kernels:
        model = KernelModel(kernel, assume, _card(kernel, options))
        costs = loop_costs(model, launch, 0 if options.no_simulation else 4)
        prediction = predict(model, launch, not options.no_simulation) if options.trips else None
        print(text(model, launch, costs, prediction) + "\n")
        results.append(as_json(model, launch, costs, prediction))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    return 0


def _read(file: Path, nvcc_flags: str) -> list[Kernel]:
    if file.suffix != ".cu":
        return read_cubin(file)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        command = ["nvcc", *nvcc_flags.split(), "-cubin", "-o", str(cubin), str(file)]
        if subprocess.run(command).returncode != 0:
            raise ToolError(f"{' '.join(command)} failed")
        return read_cubin(cubin)


def _card(kernel: Kernel, options: argparse.Namespace) -> Card:
    given = {"sms": options.sms, "ghz": options.ghz, "bytes_per_second": options.bandwidth}
    return replace(CARDS[kernel.arch // 10 * 10], **{name: value for name, value in given.items() if value})


def _pairs(argument: str) -> dict[str, float]:
    return {name: float(value) for name, value in (pair.split("=") for pair in argument.split(","))}


def _roles(argument: str) -> tuple[tuple[int, str], ...]:
    return tuple((int(warps), loop) for warps, loop in (part.split(":") for part in argument.split(",")))
