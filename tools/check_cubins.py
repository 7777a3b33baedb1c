#!/usr/bin/env python3
"""Compiles every csrc/cuda/*.cu to cubins for the architectures it names and gates on what ptxas says.

A spill or a stack frame (register arrays indexed at run time show as one) fails. Prints registers and shared memory per
kernel. Needs nvcc (CUDA_HOME/bin or PATH), no GPU.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Kernel:
    name: str
    arch: str
    registers: int = 0
    shared: int = 0
    stack: int = 0
    spills: int = 0


def find_nvcc() -> str:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    nvcc = shutil.which("nvcc", path=f"{home}/bin") or shutil.which("nvcc")
    if nvcc is None:
        sys.exit("check_cubins: no nvcc in CUDA_HOME/bin, /usr/local/cuda/bin or on PATH")
    return nvcc


def architectures(source: Path) -> list[str]:
    """As setup.py: sm_90a for files named *_sm90.cu, else sm_80 (and sm_90, to see the registers there)."""
    return ["sm_90a"] if source.stem.endswith("_sm90") else ["sm_80", "sm_90"]


def parse_ptxas(text: str) -> list[Kernel]:
    """Kernels from `ptxas -v` output.

    >>> parse_ptxas('''ptxas info : Compiling entry function '_Z1kv' for 'sm_80'
    ... ptxas info : Function properties for _Z1kv
    ...     8 bytes stack frame, 4 bytes spill stores, 0 bytes spill loads
    ... ptxas info : Used 31 registers, 64 bytes smem''')
    [Kernel(name='_Z1kv', arch='sm_80', registers=31, shared=64, stack=8, spills=4)]
    """
    kernels: list[Kernel] = []
    for line in text.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)' for '(\S+)'", line):
            kernels.append(Kernel(*match.groups()))
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, stores, loads = map(int, match.groups())
            kernels[-1].stack = max(kernels[-1].stack, stack)
            kernels[-1].spills += stores + loads
        elif match := re.search(r"Used (\d+) registers", line):
            kernels[-1].registers = int(match[1])
            shared = re.search(r"(\d+) bytes smem", line)
            kernels[-1].shared = int(shared[1]) if shared else 0
    return kernels


def demangle(names: list[str]) -> list[str]:
    text = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True).stdout
    noise = r"^void |hymba::cuda::|\(anonymous namespace\)::|\(.*\)$|hymba::"
    return [re.sub(noise, "", line) for line in text.splitlines()]


def main() -> int:
    nvcc = find_nvcc()
    failed = False
    print(f"{'kernel':58} {'arch':7} {'registers':>9} {'shared':>7} {'stack':>6} {'spills':>6}")
    for source in sorted(ROOT.glob("csrc/cuda/*.cu")):
        for arch in architectures(source):
            with tempfile.TemporaryDirectory() as folder:
                command = [nvcc, "-std=c++20", "-O3", f"-I{ROOT}/csrc", f"-arch={arch}", "-cubin", "-Xptxas", "-v"]
                run = subprocess.run(
                    [*command, str(source), "-o", f"{folder}/out.cubin"], capture_output=True, text=True
                )
            if run.returncode != 0:
                print(run.stdout + run.stderr)
                print(f"{source.name}: does not compile for {arch}")
                failed = True
                continue
            kernels = parse_ptxas(run.stderr + run.stdout)
            if not kernels:
                print(f"{source.name}: ptxas reported no kernel for {arch}")
                failed = True
            for kernel, name in zip(kernels, demangle([k.name for k in kernels]) if kernels else [], strict=True):
                bad = kernel.stack > 0 or kernel.spills > 0
                failed = failed or bad
                print(
                    f"{name:58} {kernel.arch:7} {kernel.registers:9} {kernel.shared:7} {kernel.stack:6} "
                    f"{kernel.spills:6}{'  <- spills or stack frame' if bad else ''}"
                )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
