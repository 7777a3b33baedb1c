"""Builds hymba_ops/_C.abi3.so: every back end in one shared object, against torch's stable ABI.

CPU kernels are compiled once per instruction set, CUDA kernels by nvcc where there is one; ninja runs it all.
Environment: HYMBA_OPS_CUDA=0 leaves the CUDA kernels out, HYMBA_OPS_CUDA=1 demands them; CUDA_HOME finds nvcc;
MAX_JOBS limits ninja.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
STABLE_ABI_2_11 = "0x020b000000000000"

ISA_FLAGS = {"baseline": ""}
if platform.machine() in ("x86_64", "AMD64"):
    ISA_FLAGS["avx2"] = "-mavx2 -mfma -mf16c"
    ISA_FLAGS["avx512"] = "-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512"

# What the shared object holds of a CUDA source: code for a GPU (sm_*), and PTX (compute_*) that drivers compile for
# later ones; by nvcc's name for what each is compiled from. Files that use Hopper's own instructions are *_sm90.cu.
# Kernels that overlap (csrc/cuda/primitives/grid.cuh) do so by instructions of 9.0, which code from compute_80 lacks.
CUDA_TARGETS = {"sm_80": "compute_80", "compute_80": "compute_80"}
CUDA_TARGETS_OVERLAPPING = {"sm_80": "compute_80", "sm_90": "compute_90", "compute_90": "compute_90"}
CUDA_TARGETS_SM90 = {"sm_90a": "compute_90a"}
CUDA_OVERLAPPING = ("decode_attention", "gated_mlp", "linear", "mamba_update", "norm_project")
CUDA_SOURCES = sorted(ROOT.glob("csrc/cuda/*.cu"))


def cuda_targets(source: Path) -> dict[str, str]:
    if source.stem.endswith("_sm90"):
        return CUDA_TARGETS_SM90
    return CUDA_TARGETS_OVERLAPPING if source.stem in CUDA_OVERLAPPING else CUDA_TARGETS


def gencode(source: Path) -> str:
    """nvcc's flags for a source."""
    return " ".join(f"-gencode=arch={arch},code={code}" for code, arch in cuda_targets(source).items())


def cuda_architectures() -> str:
    """What build_info() says of all sources: "sm_80, compute_80 PTX" and the like."""
    names = dict.fromkeys(code for source in CUDA_SOURCES for code in cuda_targets(source))
    return ", ".join(f"{name} PTX" if name.startswith("compute") else name for name in names)


def find_nvcc() -> Path | None:
    """The nvcc to use, or None for a CPU-only build."""
    wanted = os.environ.get("HYMBA_OPS_CUDA")
    if wanted not in (None, "0", "1"):
        sys.exit(f"HYMBA_OPS_CUDA must be 0 or 1, got {wanted!r}")
    if wanted == "0":
        return None
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    found = shutil.which("nvcc", path=f"{home}/bin") or shutil.which("nvcc")
    if found is None and wanted == "1":
        sys.exit("HYMBA_OPS_CUDA=1, but there is no nvcc in CUDA_HOME/bin, /usr/local/cuda/bin or on PATH")
    return Path(found).resolve() if found else None


def ninja_file(build_dir: Path, library: Path, nvcc: Path | None) -> str:
    """The text of build.ninja: one rule per kind of source, one line per object."""
    import torch
    from torch.utils.cpp_extension import include_paths

    includes = " ".join(f"-isystem {path}" for path in include_paths())
    common = f"-std=c++20 -O3 -fPIC -fvisibility=hidden -Wall -I{ROOT}/csrc"
    maths = (
        "-ffp-contract=fast -fno-math-errno -fno-trapping-math -Wno-psabi -Wno-maybe-uninitialized -Wno-uninitialized"
    )
    cuda_flags, cuda_link = "", ""
    if nvcc:
        cuda_root = nvcc.parent.parent
        cuda_flags = (
            f"-DHYMBA_WITH_CUDA -DHYMBA_CUDA_ARCHITECTURES='\"{cuda_architectures()}\"' -isystem {cuda_root}/include"
        )
        cuda_link = f"-L{cuda_root}/lib64 -lcudart_static -lrt -lpthread"
    torch_flags = f"-DTORCH_TARGET_VERSION={STABLE_ABI_2_11} {includes}"
    torch_link = f"-L{Path(torch.__file__).parent}/lib -ltorch_cpu"
    tail = "-MMD -MF $out.d -c $in -o $out"
    rules = {
        "torch_side": f"$cxx {common} {torch_flags} {cuda_flags} {tail}",
        "cpu_kernel": f"$cxx {common} {maths} -DHYMBA_ISA=$isa $isa_flags {tail}",
        "cuda_kernel": f"{nvcc} -std=c++20 -O3 -I{ROOT}/csrc -Xcompiler -fPIC,-fvisibility=hidden $gencode {tail}",
        "link": f"$cxx -shared -o $out $in {torch_link} {cuda_link} -ldl -Wl,--exclude-libs,ALL",
    }
    lines = [f"cxx = {os.environ.get('CXX', 'g++')}"]
    for name, command in rules.items():
        dependencies = "" if name == "link" else "  depfile = $out.d\n  deps = gcc\n"
        lines.append(f"rule {name}\n  command = {command}\n  description = {name} $out\n{dependencies}")

    objects = []

    def compile_line(rule: str, source: Path, suffix: str = "", **variables: str) -> None:
        out = build_dir / f"{source.parent.name}_{source.stem}{suffix}.o"
        objects.append(str(out))
        lines.append(f"build {out}: {rule} {source}\n" + "".join(f"  {k} = {v}\n" for k, v in variables.items()))

    csrc = ROOT / "csrc"
    torch_side = [csrc / "library.cpp", *sorted(csrc.glob("core/*.cpp")), *sorted(csrc.glob("ops/*.cpp"))]
    for source in torch_side:
        if source.name != "parallel_std.cpp":  # the CMake build's threads
            compile_line("torch_side", source)
    for source in sorted(csrc.glob("cpu/*.cpp")):
        for isa, flags in ISA_FLAGS.items():
            compile_line("cpu_kernel", source, f"_{isa}", isa=isa, isa_flags=flags)
    for source in CUDA_SOURCES if nvcc else []:
        compile_line("cuda_kernel", source, gencode=gencode(source))
    lines.append(f"build {library}: link {' '.join(objects)}\n")
    return "\n".join(lines)


class BuildWithNinja(build_ext):
    """Builds the shared object, and leaves a copy beside the sources so that the clone's root can be imported too."""

    def build_extension(self, ext: Extension) -> None:
        build_dir = Path(self.build_temp).resolve()
        build_dir.mkdir(parents=True, exist_ok=True)
        library = Path(self.get_ext_fullpath(ext.name)).resolve()
        library.parent.mkdir(parents=True, exist_ok=True)
        nvcc = find_nvcc()
        print(f"hymba_ops: CUDA kernels by {nvcc}" if nvcc else "hymba_ops: no nvcc: building for the CPU only")
        (build_dir / "build.ninja").write_text(ninja_file(build_dir, library, nvcc))
        jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
        subprocess.run([sys.executable, "-m", "ninja", "-C", str(build_dir), *jobs], check=True)
        beside_sources = ROOT / "hymba_ops" / library.name
        if library != beside_sources:
            # Replaced, not overwritten: a process that has the old one loaded keeps it.
            temporary = beside_sources.with_suffix(".new")
            shutil.copy2(library, temporary)
            temporary.replace(beside_sources)


setup(
    ext_modules=[Extension("hymba_ops._C", sources=[], py_limited_api=True)],
    cmdclass={"build_ext": BuildWithNinja},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
