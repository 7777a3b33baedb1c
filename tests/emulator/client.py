"""Runs cases in worker processes, one for each flavour of the module. A case that kills its worker hurts no other."""

from __future__ import annotations

import os
import pickle
import select
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from emulator.build import BuildError, build

TESTS = Path(__file__).resolve().parents[1]
CASE_SECONDS = 120  # of CPU time: a kernel that has not ended by then hangs


class EmulationError(AssertionError):
    """The emulated kernel broke a rule, crashed or hung."""


@dataclass(frozen=True)
class Mode:
    """A way to run: a flavour of the module, the order in which threads run, when copies arrive."""

    flavour: str = "plain"
    schedule: str = "ascending"
    seed: int = 1  # of schedule "random"
    eager_copies: bool = False
    capability: int = 80  # what the device says it is: 90 chooses the kernels for Hopper

    def settings(self) -> tuple[str, int, bool, bool, int]:
        """The arguments of the module's set_mode."""
        return self.schedule, self.seed, self.eager_copies, self.flavour == "races", self.capability


MODES = {
    "ascending": Mode(),
    "descending": Mode(schedule="descending"),
    "random": Mode(schedule="random"),
    "eager": Mode(eager_copies=True),
    "sanitized": Mode(flavour="sanitized"),
    "races": Mode(flavour="races"),
}


class Worker:
    """A process with one flavour of the module loaded: the built one, or that in another folder."""

    def __init__(self, flavour: str, folder: Path | None = None):
        folder = folder or build(flavour)
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "emulator.worker", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            env=_environment(flavour),
        )
        self.ops = self._receive()

    def run(self, case: tuple) -> tuple:
        """The worker's reply; EmulationError where there is none."""
        pickle.dump(case, self._process.stdin)
        self._process.stdin.flush()
        return self._receive()

    def alive(self) -> bool:
        return self._process.poll() is None

    def _cpu_seconds(self) -> float:
        stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._messages.close()

    def _receive(self):
        deadline = self._cpu_seconds() + CASE_SECONDS
        while not select.select([self._process.stdout], [], [], 0.5)[0]:
            if self._cpu_seconds() > deadline:
                self._process.kill()
                self._process.wait()
                raise EmulationError(f"the emulated kernel has not ended after {CASE_SECONDS} s")
        try:
            return pickle.load(self._process.stdout)
        except (EOFError, pickle.UnpicklingError):
            status = self._process.wait()
            self._messages.seek(0)
            text = self._messages.read().decode(errors="replace")
            raise EmulationError(f"the emulated kernel's process has died (status {status}):\n{text}") from None


def _environment(flavour: str) -> dict[str, str]:
    environment = dict(os.environ, PYTHONPATH=str(TESTS), OPENBLAS_NUM_THREADS="1")
    if flavour == "sanitized":
        # Python itself is not built with ASan, so its run time must be loaded first, and libstdc++ for its hooks of
        # exceptions. Leaks are Python's own. The module says where an abort came from.
        environment["LD_PRELOAD"] = f"{_compiler_library('libasan.so')} {_compiler_library('libstdc++.so')}"
        environment["ASAN_OPTIONS"] = "detect_leaks=0"
        environment["UBSAN_OPTIONS"] = "print_stacktrace=1:abort_on_error=1"
    return environment


def _compiler_library(name: str) -> str:
    compiler = os.environ.get("CXX", "g++")
    path = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
    if not os.path.isabs(path):
        raise BuildError(f"{compiler} has no {name}")
    return path


class Client:
    """Runs cases in one mode, on the built module or that in a folder (planted.py)."""

    _workers: dict[tuple[str, Path | None], Worker] = {}  # by flavour and folder, shared by all clients

    def __init__(self, mode: Mode, folder: Path | None = None):
        self._mode = mode
        self._folder = folder

    @property
    def ops(self) -> list[str]:
        """What the module offers."""
        return self._worker().ops

    def run(self, op: str, arguments: list[tuple], changes: set[str]) -> tuple[list, dict]:
        """Results and changed arguments (memory by name) of op(*arguments); arguments are (name, value)."""
        status, *reply = self._worker().run((op, arguments, changes, self._mode.settings()))
        if status == "error":
            raise EmulationError(f"{op}: {reply[0]}")
        return tuple(reply)

    def _worker(self) -> Worker:
        key = self._mode.flavour, self._folder
        worker = self._workers.get(key)
        if worker is None or not worker.alive():
            worker = self._workers[key] = Worker(*key)
        return worker

    @classmethod
    def stop_workers(cls) -> None:
        for worker in cls._workers.values():
            worker.stop()
        cls._workers.clear()
