"""Builds the emulated kernels with a fault planted in one of them, beside the sound ones."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from emulator.build import BUILD, ROOT, BuildError, build, find_tool

CUDA = ROOT / "csrc" / "cuda"


class NotThereOnce(ValueError):
    """The text to replace does not stand in the source just once."""


def build_planted(flavour: str, unit: str, changes: list[tuple[str, str, str]], folder: Path) -> Path:
    """`folder` with the module, csrc/cuda/<unit>.cu compiled with changes of its files: (file, old text, new text)."""
    copies = folder / "cuda"
    copies.mkdir(parents=True)
    for path in {*CUDA.glob(f"{unit}*"), *(CUDA / file for file, _, _ in changes)}:
        (copies / path.name).write_text(path.read_text())
    for file, old, new in changes:
        text = (copies / file).read_text()
        if text.count(old) != 1:
            raise NotThereOnce(f"{file} has {text.count(old)} times:\n{old}")
        (copies / file).write_text(text.replace(old, new))
    build(flavour)

    listing = _run([find_tool("ninja"), "-C", BUILD, "-t", "commands", f"emulated_{flavour}"]).splitlines()
    (compile_line,) = (line for line in listing if line.endswith(f"-c {CUDA / unit}.cu"))
    command = shlex.split(compile_line)
    sound, planted = command[command.index("-o") + 1], str(folder / "planted.o")
    link = shlex.split(listing[-1].removeprefix(": && ").removesuffix(" && :"))
    include = command.index(f"-I{ROOT / 'csrc'}")
    command = [*command[:include], f"-I{folder}", *command[include:-1], str(copies / f"{unit}.cu")]
    _run([planted if word == sound else word for word in command])
    link[link.index("-o") + 1] = str(folder / "hymba_emulated.so")
    _run([planted if word == sound else word for word in link])
    return folder


def _run(command: list) -> str:
    run = subprocess.run(command, cwd=BUILD, capture_output=True, text=True)
    if run.returncode != 0:
        raise BuildError(f"{' '.join(map(str, command))}\n{run.stdout}{run.stderr}")
    return run.stdout
