"""The built _C.abi3.so: what it needs, what it exports, what device code it holds, and the wheel that it goes into."""

from __future__ import annotations

import platform
import re
import runpy
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import setuptools
import torch

import hymba_ops
from tools import cubins
from tools.sass_model.disassembly import ToolError, find_tool

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = Path(hymba_ops.__file__).resolve().parent / "_C.abi3.so"
TORCH_LIBRARY = Path(torch.__file__).resolve().parent / "lib" / "libtorch_cpu.so"
MOST_BYTES = 32 << 20  # of the wheel; docs/build.md says so

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")


def output(tool, *options):
    if shutil.which(tool) is None:
        pytest.skip(f"needs {tool} (binutils)")
    return subprocess.run([tool, *options], capture_output=True, text=True, check=True).stdout


def symbols(path, *options):
    """(type, demangled name) of each symbol that nm lists."""
    lines = (
        re.match(r"[0-9a-f ]*? ?([A-Za-z]) (.*)", line) for line in output("nm", "-C", *options, path).splitlines()
    )
    return [match.groups() for match in lines if match]


# ---- What it needs ----


def undefined():
    return {name for _, name in symbols(LIBRARY, "-D", "--undefined-only")}


def torch_symbols():
    return {name for name in undefined() if re.match(r"(aoti_)?torch_", name)}


def test_needs_torch_and_the_runtimes_only():
    """No Python, no CUDA library, no C++ of torch's own: so that one wheel serves every Python and every torch."""
    runtimes = re.compile(r".*@@?(GLIBC|GLIBCXX|CXXABI|GCC)_|(_ITM_(de)?registerTMCloneTable|__gmon_start__)$")
    assert [name for name in undefined() - torch_symbols() if not runtimes.match(name)] == []


def test_torch_symbols_are_the_cpu_library_s():
    """A CUDA torch has more of them (the current stream is one), which must be looked up at run time."""
    exported = {name for _, name in symbols(TORCH_LIBRARY, "-D", "--defined-only")}
    assert "torch_call_dispatcher" in torch_symbols()
    assert "aoti_torch_get_current_cuda_stream" not in torch_symbols()
    assert torch_symbols() <= exported


def test_needed_libraries():
    dynamic = output("readelf", "-d", "-W", LIBRARY)
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic))
    loader = {name for name in needed if name.startswith("ld-linux")}
    before_glibc_2_34 = {"libdl.so.2", "librt.so.1", "libpthread.so.0"}
    always = {"libtorch_cpu.so", "libstdc++.so.6", "libgcc_s.so.1", "libc.so.6"}
    assert always <= needed <= always | {"libm.so.6"} | loader | before_glibc_2_34
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic  # it would be this machine's folder


# ---- What it exports ----


def test_exports_nothing_of_its_own():
    """Two libraries with the same C++ names, or two CUDA runtimes, in one process must not mix."""
    exported = [name for _, name in symbols(LIBRARY, "-D", "--defined-only")]
    assert [name for name in exported if "hymba" in name or name.startswith("cuda")] == []


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_instruction_sets_do_not_leak(isa):
    """The linker keeps one copy of each weak symbol: compiled for AVX-512 it would crash machines without."""
    objects = sorted(ROOT.glob(f"build/temp*/cpu_*_{isa}.o"))
    if not objects:
        pytest.skip("needs the object files of a build in place (build/temp*)")
    personality = "DW.ref.__gxx_personality_v0"  # data: the address of the C++ runtime's unwinder
    leaks = [
        f"{path.name}: {name}"
        for path in objects
        for kind, name in symbols(path, "--defined-only")
        if kind in "WwVvu" and f"hymba::cpu::{isa}::" not in name and name != personality
    ]
    assert not leaks


# ---- Device code ----


@pytest.fixture
def setup_py(monkeypatch):
    """setup.py's names, and what it hands to setuptools."""
    handed = {}
    monkeypatch.setattr(setuptools, "setup", handed.update)
    return runpy.run_path(str(ROOT / "setup.py")) | {"handed": handed}


def test_build_info_names_setup_py_s_architectures(setup_py):
    assert hymba_ops.build_info()["cuda_architectures"] in ("", setup_py["cuda_architectures"]())


def test_architectures_of_sources(setup_py, monkeypatch):
    sources = [Path("csrc/cuda/a.cu"), Path("csrc/cuda/b_sm90.cu"), Path("csrc/cuda/linear.cu")]
    monkeypatch.setitem(setup_py["cuda_architectures"].__globals__, "CUDA_SOURCES", sources)
    assert setup_py["cuda_architectures"]() == "sm_80, compute_80 PTX, sm_90a, sm_90, compute_90 PTX"
    assert [setup_py["gencode"](source) for source in sources] == [
        "-gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_80,code=compute_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90,code=sm_90 "
        "-gencode=arch=compute_90,code=compute_90",
    ]


def test_kernels_that_overlap_have_code_for_it(setup_py):
    overlapping = [source.stem for source in cubins.sources() if cubins.overlaps(source)]
    assert sorted(setup_py["CUDA_OVERLAPPING"]) == overlapping


def test_device_code_is_what_build_info_says(setup_py):
    """cuobjdump's list of machine code and PTX; every source compiled for CUDA has its own."""
    try:
        cuobjdump = find_tool("cuobjdump")
    except ToolError as reason:
        pytest.skip(str(reason))

    def listed(option, pattern):
        done = subprocess.run([cuobjdump, option, LIBRARY], capture_output=True, text=True)
        return re.findall(pattern, done.stdout)  # an object without device code is an error to cuobjdump

    machine_code = listed("--list-elf", r"\.(sm_\w+)\.cubin")
    ptx = listed("--list-ptx", r"\.sm_(\w+)\.ptx")
    found = {*machine_code, *(f"compute_{number} PTX" for number in ptx)}
    assert found == set(filter(None, hymba_ops.build_info()["cuda_architectures"].split(", ")))
    if found:
        targets = [code for source in setup_py["CUDA_SOURCES"] for code in setup_py["cuda_targets"](source)]
        assert len(machine_code) == sum(code.startswith("sm_") for code in targets)


# ---- The wheel ----


def test_wheel_tag(setup_py):
    """One wheel for CPython 3.10 and later."""
    distribution = setuptools.Distribution(setup_py["handed"])
    wheel = distribution.get_command_obj("bdist_wheel")
    wheel.ensure_finalized()
    assert wheel.get_tag() == ("cp310", "abi3", f"linux_{platform.machine()}")


def test_wheel_size():
    """The shared object, compressed as in a wheel, and half a megabyte for all the rest."""
    assert len(zlib.compress(LIBRARY.read_bytes())) + (1 << 19) < MOST_BYTES
