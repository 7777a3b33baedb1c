"""Timing: rounds over all candidates, so that a machine's drift hits each alike; medians; peak extra memory."""

from __future__ import annotations

import ctypes
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import hymba_ops

Call = Callable[[], object]

_LEAD_CYCLES = 2_000_000  # about a millisecond of a GPU's clock
_MOST_INPUTS = 1024  # of tiny inputs: more would take longer to make than to time


class CannotRun(Exception):
    """The benchmark cannot run as asked; the text says why, in one line."""


@dataclass(frozen=True)
class Timing:
    """Of one candidate; peak_bytes is memory beyond what was in use before the call, None where it cannot be read."""

    ms: float
    ms_min: float
    ms_max: float
    peak_bytes: int | None


class Progress:
    """A bar on stderr where that is a terminal, else a line for each finished step."""

    def __init__(self, steps: int) -> None:
        self.steps, self.done = steps, 0
        self.is_terminal = sys.stderr.isatty()

    def step(self, text: str) -> None:
        self.done = min(self.done + 1, self.steps)
        if self.is_terminal:
            filled = 30 * self.done // self.steps
            bar = "#" * filled + "." * (30 - filled)
            sys.stderr.write(f"\r[{bar}] {self.done}/{self.steps} {text:50.50}")
        else:
            sys.stderr.write(f"{self.done}/{self.steps} {text}\n")
        sys.stderr.flush()

    def close(self) -> None:
        if self.is_terminal:
            sys.stderr.write("\r" + " " * 90 + "\r")


def time_rounds(
    candidates: dict[str, Sequence[Call]],
    device: torch.device,
    *,
    seconds: float = 3.0,
    least: int = 3,
    most: int = 30,
    warm: bool = False,
    on_done: Callable[[str], None] = lambda name: None,
) -> dict[str, Timing]:
    """Times each candidate about `seconds` long: `least` to `most` times, slow ones fewer times, those over 10 s once.

    Args:
        candidates: name to calls that do the same work, each on inputs of its own: the i-th of every candidate on the
            same. All candidates together go through them in turn, so that a GPU's find none in the L2 cache.
        warm: the candidates have run already; extra memory is not measured then.
        on_done: told each candidate's name after its first timed call.
    """
    counts, peaks, samples = {}, dict.fromkeys(candidates), {name: [] for name in candidates}
    inputs = itertools.count()
    for name, calls in candidates.items():
        if not warm:
            calls[0]()  # pages, caches, compilation
            peaks[name] = peak_extra_bytes(calls[0], device)
        first = elapsed_ms(calls[0], device)
        enough = least if first < 1e4 else 1  # a machine that others use can make a row take minutes
        counts[name] = max(enough, min(most, int(1e3 * seconds / max(first, 1e-3))))
        on_done(name)
    for turn in range(max(counts.values())):
        for name, calls in candidates.items():
            if turn < counts[name]:
                samples[name].append(elapsed_ms(calls[next(inputs) % len(calls)], device))
    return {
        name: Timing(statistics.median(times), min(times), max(times), peaks[name]) for name, times in samples.items()
    }


def elapsed_ms(call: Call, device: torch.device) -> float:
    """One call's time: wall clock on a CPU, events on a GPU, which waits first while the call's launches queue up: a
    short kernel's time is not that of its launch."""
    if device.type == "cuda":
        torch.cuda._sleep(_LEAD_CYCLES)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
    begin = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - begin)


def inputs_beyond_cache(size: float, device: torch.device) -> int:
    """How many inputs of `size` bytes a candidate goes through: on a GPU more than twice the L2 cache of them."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return min(_MOST_INPUTS, 1 + int(2 * cache / size)) if size else 1


def missing_kernels(ops: Iterable[str], device: torch.device) -> list[str]:
    """Those of hymba_ops' ops that have no kernel for the device."""
    if device.type == "cuda" and not hymba_ops.build_info()["cuda_architectures"]:
        return list(ops)
    key = device.type.upper()
    return [op for op in ops if not torch._C._dispatch_has_kernel_for_dispatch_key(f"hymba_ops::{op}", key)]


def peak_extra_bytes(call: Call, device: torch.device) -> int | None:
    """The most memory in use during the call beyond that before it, its result included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that malloc kept would hide what the call takes
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak resident set
    except (AttributeError, OSError):  # not glibc, not Linux
        return None
    before = status_bytes("VmRSS")
    call()
    return max(0, status_bytes("VmHWM") - before)


def relative_rms(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """rms of the difference over the rms of `expected`; both at least two-dimensional."""
    difference = total = 0.0
    for a, e in zip(actual.split(1024, dim=1), expected.split(1024, dim=1), strict=True):  # float64 copies stay small
        a, e = a.double(), e.double()
        difference += (a - e).square().sum().item()
        total += e.square().sum().item()
    if total == 0:
        return math.inf if difference else 0.0
    return math.sqrt(difference / total)


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def available_bytes(device: torch.device) -> int | None:
    """Free memory of the device; None where it cannot be read."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


def status_bytes(field: str) -> int:
    """A size in this process's status on Linux: VmRSS, VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
