"""What the benchmarks' command lines share: names, and refusals in one line before any work starts."""

from __future__ import annotations

import os
from pathlib import Path

import torch

import hymba_ops
from bench.runner import CannotRun

PRESETS = {"125m": "hymba_125m", "350m": "hymba_350m", "1.5b": "hymba_1_5b"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYERS = ("sliding", "global")


def preset(name: str) -> hymba_ops.HymbaConfig:
    return getattr(hymba_ops.HymbaConfig, PRESETS[name])()


def choices(option: str, text: str, allowed: tuple[str, ...]) -> list[str]:
    """The names in a comma-separated list, in the order of `allowed`."""
    chosen = text.split(",")
    for choice in chosen:
        if choice not in allowed:
            raise CannotRun(f"{option} must be of {', '.join(allowed)}, got {choice!r}")
    return [choice for choice in allowed if choice in chosen]


def counts(option: str, text: str, most: int | None = None) -> list[int]:
    """The numbers in a comma-separated list, each from 1 to `most`; ascending, each once."""
    limits = "at least 1" if most is None else f"from 1 to {most}"
    numbers = set()
    for word in text.split(","):
        if not word.strip().isdecimal() or int(word) < 1 or (most is not None and int(word) > most):
            raise CannotRun(f"{option} must be {limits}, got {word!r}")
        numbers.add(int(word))
    return sorted(numbers)


def at_least_one(option: str, value: int) -> None:
    if value < 1:
        raise CannotRun(f"{option} must be at least 1, got {value}")


def check_outputs(json_path: str | None, plot_path: str | None) -> None:
    """Refuses now what would be lost after minutes of timing."""
    for option, path in (("--json", json_path), ("--plot", plot_path)):
        if path and (Path(path).is_dir() or not os.access(Path(path).absolute().parent, os.W_OK)):
            raise CannotRun(f"{option} {path}: cannot write there")
    if plot_path:
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise CannotRun("--plot needs matplotlib: pip install matplotlib") from None
        formats = Figure().canvas.get_supported_filetypes()
        if Path(plot_path).suffix[1:].lower() not in formats:
            raise CannotRun(f"--plot {plot_path}: the name must end in one of {', '.join(sorted(formats))}")


def pick_device(wanted: str | None) -> torch.device:
    if wanted is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted not in ("cpu", "cuda"):
        raise CannotRun(f"--device must be cpu or cuda, got {wanted!r}")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise CannotRun(f"--device cuda: this torch ({torch.__version__}) sees no CUDA device")
    return torch.device(wanted)
