#!/usr/bin/env python3
"""Records what the primitives of csrc/cuda/primitives give on this machine's GPU, for CI to compare the emulator with.

    python tools/capture_primitives.py [tests/golden/primitives/NAME.npz]

Needs nvcc, a GPU and numpy. Compares with the expectations of tests/primitives/cases.py too, and ends with status 1
where a primitive does not give what it should.
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


def build(folder: Path) -> ctypes.CDLL:
    library = folder / "libprobes.so"
    subprocess.run(
        ["nvcc", "-std=c++20", "-O3", "-arch=native", "-shared", "-Xcompiler", "-fPIC", "-I", ROOT / "csrc", "-I",
         ROOT / "tests", "-o", library, ROOT / "tools/capture_primitives.cu", ROOT / "tests/primitives/probes.cu"],
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
    with tempfile.TemporaryDirectory() as folder:
        probes = build(Path(folder))

        def run(name: str, inputs: np.ndarray, like: np.ndarray) -> np.ndarray:
            out, items = np.empty_like(like), len(inputs)
            error = probes.hymba_run_probe(
                name.encode(), inputs.ctypes.data, inputs.nbytes // items, out.ctypes.data, out.nbytes // items, items
            )
            if error is not None:
                sys.exit(f"{name}: {error.decode()}")
            return out

        capture(run, file, probes.hymba_device_name().decode())
    failed = 0
    with np.load(file) as captured:
        for name, case in CASES.items():
            try:
                assert_agrees(name, captured[f"{name}.out"], case.expected(case.inputs))
            except AssertionError as error:
                failed += 1
                print(f"not as expected: {error}")
        print(f"{len(CASES)} primitives of {captured['device']} in {file}, {failed} of them not as expected")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
