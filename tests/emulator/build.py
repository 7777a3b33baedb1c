"""Builds the emulated kernels (target hymba_emulated of CMakeLists.txt) in build/emulator; only what has changed."""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "emulator"


class BuildError(Exception):
    """The emulated kernels cannot be built here; the message says why."""


def build(flavour: str) -> Path:
    """The folder of the up-to-date module hymba_emulated in this flavour (see CMakeLists.txt)."""
    folder_or_error = _build_once(flavour)
    if isinstance(folder_or_error, BuildError):
        raise folder_or_error
    return folder_or_error


@functools.cache
def _build_once(flavour: str) -> Path | BuildError:
    """What is tried once a process, so that the tests behind a failed build do not repeat it."""
    try:
        return _build(flavour)
    except BuildError as error:
        return error


def _build(flavour: str) -> Path:
    cmake, ninja = find_tool("cmake"), find_tool("ninja")
    if importlib.util.find_spec("pybind11") is None:
        raise BuildError(f"the emulated kernels need pybind11: {sys.executable} -m pip install pybind11")
    import pybind11

    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w") as lock:  # several pytest processes may come at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (BUILD / "build.ninja").exists():
            _run(
                [cmake, "-S", ROOT, "-B", BUILD, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", "-DHYMBA_EMULATOR=ON",
                 f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython3_EXECUTABLE={sys.executable}"]
            )  # fmt: skip
        _run([ninja, "-C", BUILD, f"emulated_{flavour}"])
    return BUILD / flavour


def find_tool(name: str) -> str:
    beside_python = Path(sys.executable).parent / name
    found = shutil.which(name) or (str(beside_python) if os.access(beside_python, os.X_OK) else None)
    if found is None:
        raise BuildError(f"the emulated kernels need {name}, which is neither on PATH nor beside {sys.executable}")
    return found


def _run(command: list[str | Path]) -> None:
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        text = "\n".join((run.stdout + run.stderr).splitlines()[-60:])
        raise BuildError(f"building the emulated kernels failed: {' '.join(map(str, command))}\n{text}")
