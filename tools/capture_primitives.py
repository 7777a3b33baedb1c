#!/usr/bin/env python3
"""Records what the primitives of csrc/cuda/primitives give on this machine's GPU, for CI to compare the emulator with.

    python tools/capture_primitives.py [tests/golden/primitives/NAME.npz]

Needs nvcc, a GPU, its nvidia-smi and numpy. Hopper's own primitives are recorded at compute capability 9.0 only.
Compares with the expectations of tests/primitives/cases.py too, and ends with status 1 where a primitive does not give
what it should.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from primitives.cases import CASES, assert_agrees, capture  # type: ignore[import-not-found]  # noqa: E402  (tests/)


def is_hopper() -> bool:
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader", "--id=0"]
    return subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip() == "9.0"


def build(folder: Path, *, hopper: bool) -> ctypes.CDLL:
    library = folder / "libprobes.so"
    sources = [ROOT / "tools/capture_primitives.cu", ROOT / "tests/primitives/probes.cu"]
    options = ["-arch=native"]
    if hopper:
        sources.append(ROOT / "tests/primitives/probes_sm90.cu")
        options = ["-gencode=arch=compute_90a,code=sm_90a", "-DHYMBA_PROBES_SM90"]
    subprocess.run(
        ["nvcc", "-std=c++20", "-O3", *options, "-shared", "-Xcompiler", "-fPIC", "-I", ROOT / "csrc", "-I",
         ROOT / "tests", "-o", library, *sources],
        check=True,
    )  # fmt: skip
    probes = ctypes.CDLL(str(library))
    probes.hymba_run_probe.restype = ctypes.c_char_p
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    probes.hymba_run_probe.argtypes = [ctypes.c_char_p, pointer, size, pointer, size, ctypes.c_int]
    probes.hymba_device_name.restype = ctypes.c_char_p
    return probes


def main() -> int:
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "primitives.npz"
    file.parent.mkdir(parents=True, exist_ok=True)
    hopper = is_hopper()
    names = [name for name, case in CASES.items() if hopper or not case.sm90]
    with tempfile.TemporaryDirectory() as folder:
        probes = build(Path(folder), hopper=hopper)

        def run(name: str, inputs: np.ndarray, like: np.ndarray) -> np.ndarray:
            out, items = np.empty_like(like), len(inputs)
            error = probes.hymba_run_probe(
                name.encode(), inputs.ctypes.data, inputs.nbytes // items, out.ctypes.data, out.nbytes // items, items
            )
            if error is not None:
                sys.exit(f"{name}: {error.decode()}")
            return out

        capture(run, file, probes.hymba_device_name().decode(), names)
    failed = 0
    with np.load(file) as captured:
        for name in names:
            case = CASES[name]
            try:
                assert_agrees(name, captured[f"{name}.out"], case.expected(case.inputs))
            except AssertionError as error:
                failed += 1
                print(f"not as expected: {error}")
        print(f"{len(names)} primitives of {captured['device']} in {file}, {failed} of them not as expected")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
