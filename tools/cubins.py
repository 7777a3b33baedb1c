"""Compiles csrc/cuda/*.cu to cubins, and reads what ptxas and the sources say about each kernel.

A kernel's block size is its __launch_bounds__. Where launches use fewer threads, or dynamic shared memory, the source
(or a header of csrc/cuda that it includes) says so in a line of its own:

    // launch: selective_scan_kernel<*, 64> threads 384, shared 86016

The name is the demangled one without namespaces, as tools/check_cubins.py prints it, with * and ?; of several lines the
first that fits counts. Where a launch's shared memory depends on its sizes, the line has those of the 1.5B layer.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tools.sass_model.disassembly import find_tool

ROOT = Path(__file__).resolve().parent.parent


class CompileError(RuntimeError):
    """A kernel does not compile, or nvcc is missing."""


@dataclass(frozen=True)
class PtxasReport:
    name: str  # mangled
    registers: int
    shared: int
    stack: int
    spills: int  # bytes stored and loaded


@dataclass(frozen=True)
class LaunchLine:
    pattern: str
    threads: int
    shared: int


@dataclass(frozen=True)
class Compiled:
    cubin: Path
    reports: list[PtxasReport]


def sources() -> list[Path]:
    return sorted(ROOT.glob("csrc/cuda/*.cu"))


def architectures(source: Path) -> dict[str, str]:
    """Architecture and nvcc's -gencode for it, as setup.py: a GPU of 9.0 runs compute_80's PTX, but for *_sm90.cu and
    kernels that overlap."""
    if source.stem.endswith("_sm90"):
        return {"sm_90a": "arch=compute_90a,code=sm_90a"}
    compute = "compute_90" if overlaps(source) else "compute_80"
    return {"sm_80": "arch=compute_80,code=sm_80", "sm_90": f"arch={compute},code=sm_90"}


def hopper_architecture(source: Path) -> str:
    """Of the code that runs on an H100."""
    return next(arch for arch in architectures(source) if arch.startswith("sm_90"))


def source_of(op: str) -> Path:
    return ROOT / "csrc" / "cuda" / f"{op}.cu"


def overlaps(source: Path) -> bool:
    return "wait_for_previous_grid();" in source_text(source)


def source_text(source: Path) -> str:
    """A source with the headers of csrc/cuda that it includes."""
    found, todo = {}, [source]
    while todo:
        path = todo.pop()
        if path not in found:
            found[path] = path.read_text()
            todo += [
                ROOT / "csrc" / name for name in re.findall(r'^#include "(cuda/.*\.cuh)"', found[path], re.MULTILINE)
            ]
    return "\n".join(found.values())


def uses_dynamic_shared(text: str) -> bool:
    return re.search(r"^\s*HYMBA_DYNAMIC_SHARED\(", text, re.MULTILINE) is not None


def find_nvcc() -> str:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    nvcc = shutil.which("nvcc", path=f"{home}/bin") or shutil.which("nvcc")
    if nvcc is None:
        raise CompileError("no nvcc in CUDA_HOME/bin, /usr/local/cuda/bin or on PATH")
    return nvcc


def nvcc_version(nvcc: str) -> str:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"V([\d.]+)", text)
    if found is None:
        raise CompileError(f"{nvcc} --version names no version:\n{text}")
    return found[1]


def compile_cubin(nvcc: str, source: Path, arch: str, folder: Path) -> Compiled:
    cubin = folder / f"{source.stem}.{arch}.cubin"
    flags = ["-std=c++20", "-O3", f"-I{ROOT}/csrc", f"-gencode={architectures(source)[arch]}", "-Xptxas", "-v"]
    run = subprocess.run([nvcc, *flags, "-cubin", str(source), "-o", str(cubin)], capture_output=True, text=True)
    if run.returncode != 0:
        raise CompileError(f"{source.name} does not compile for {arch}:\n{run.stdout}{run.stderr}")
    refuse_serialised(run.stderr + run.stdout, source.name)
    return Compiled(cubin, parse_ptxas(run.stderr + run.stdout))


def refuse_serialised(text: str, name: str) -> None:
    """ptxas waits for each wgmma where it cannot follow the registers, and says so in a warning."""
    if found := re.search(r"^.*wgmma.*serialized.*$", text, re.MULTILINE):
        raise CompileError(f"{name}: {found[0].strip()}")


def parse_ptxas(text: str) -> list[PtxasReport]:
    """Kernels from the output of `ptxas -v`; a called function's stack and spills count as its kernel's."""
    reports = []
    for part in re.split(r"(?=Compiling entry function)", text)[1:]:
        frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        name = re.search(r"Compiling entry function '(\S+)'", part)
        registers = re.search(r"Used (\d+) registers", part)
        if name is None or registers is None or not frames:
            raise CompileError(f"ptxas -v wrote what this tool cannot read:\n{part}")
        shared = re.search(r"(\d+) bytes smem", part)
        reports.append(
            PtxasReport(
                name[1],
                registers=int(registers[1]),
                shared=int(shared[1]) if shared else 0,
                stack=max(int(stack) for stack, _, _ in frames),
                spills=sum(int(stores) + int(loads) for _, stores, loads in frames),
            )
        )
    return reports


def demangle(names: list[str]) -> list[str]:
    """Kernels' names as people read them."""
    if not names:
        return []
    text = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True).stdout
    return [short_name(line) for line in text.splitlines()]


def short_name(demangled: str) -> str:
    """A kernel's name without return type, parameters and the project's namespaces.

    The same whoever demangled it: c++filt writes `(bool)1` where the C++ runtime, and so torch's profiler, writes
    `true`; others write `(int)8`.
    """
    name = re.sub(r"^void |hymba::cuda::|\(anonymous namespace\)::|hymba::", "", demangled)
    name = name.replace("(bool)1", "true").replace("(bool)0", "false")
    return re.sub(r"\(.*\)$", "", re.sub(r"\((?:unsigned )?\w+\)(?=-?\d)", "", name))


def launch_bounds(cubin: Path) -> dict[str, int]:
    """Mangled name to the threads of its __launch_bounds__, where it has them."""
    command = [find_tool("cuobjdump"), "-elf", str(cubin)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    bounds = {}
    for section in re.split(r"^\.nv\.info\.", text, flags=re.MULTILINE)[1:]:
        if found := re.search(r"EIATTR_(?:MAX_THREADS|REQNTID)\s+Format:.*\s+Value:\s+(\w+) (\w+) (\w+)", section):
            x, y, z = (int(value, 16) for value in found.groups())
            bounds[section.split(maxsplit=1)[0]] = x * y * z
    return bounds


def launch_lines(text: str) -> list[LaunchLine]:
    """The `// launch:` lines of a source."""
    lines = []
    for line in re.findall(r"^\s*// launch:.*$", text, flags=re.MULTILINE):
        found = re.fullmatch(r"\s*// launch: (\S.*?) threads (\d+)(?:, shared (\d+))?", line)
        if found is None:
            raise CompileError(f"expected '// launch: <kernel> threads <n>[, shared <bytes>]', got '{line.strip()}'")
        lines.append(LaunchLine(found[1], int(found[2]), int(found[3] or 0)))
    return lines


def matching(lines: list[LaunchLine], kernel: str) -> LaunchLine | None:
    return next((line for line in lines if fnmatch.fnmatchcase(kernel, line.pattern)), None)
