"""Machine code of a cubin: kernels as lists of instructions with the compiler's control codes.

Needs `nvdisasm` and `cuobjdump`: the PyPI packages nvidia-cuda-nvdisasm and nvidia-cuda-cuobjdump, or a toolkit on
PATH.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass, field, replace
from pathlib import Path

INSTRUCTION_BYTES = 16
NO_BARRIER = 7
# The driver keeps this much shared memory for itself in every block; cubins from sm_90 on count it as the kernel's.
RESERVED_SHARED = 1024


class ToolError(RuntimeError):
    """A disassembler is missing, or refuses its input."""


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str | None  # "P0", "!UP1"
    opcode: str  # with its suffixes: "LDG.E.128"
    operands: str
    target: int | None  # address that a branch names
    stall: int  # clocks until the warp's next instruction may issue
    write_barrier: int  # scoreboard released when the result is there; NO_BARRIER: none
    read_barrier: int  # scoreboard released when the sources have been read
    wait_mask: int  # scoreboards waited for before issue

    @property
    def base(self) -> str:
        return self.opcode.split(".")[0]

    @property
    def is_padding(self) -> bool:
        """Takes an issue slot and does nothing, as the compiler's loads around asynchronous copies."""
        return self.predicate == "!PT"


@dataclass
class Kernel:
    name: str  # mangled
    arch: int  # 80, 90
    registers: int = 0
    shared: int = 0  # static, without the driver's
    stack: int = 0
    instructions: list[Instruction] = field(default_factory=list)


def find_tool(name: str) -> str:
    """Path of a CUDA binary: on PATH, or where its PyPI package puts it."""
    if found := shutil.which(name):
        return found
    packages = Path(sysconfig.get_path("purelib"))
    for candidate in sorted(packages.glob(f"nvidia/cu*/bin/{name}")):
        return str(candidate)
    raise ToolError(f"{name}: neither on PATH nor in {packages}; pip install nvidia-cuda-{name}")


def read_cubin(path: Path) -> list[Kernel]:
    """The kernels of a cubin, in the order of its sections."""
    resources = _run(find_tool("cuobjdump"), "-res-usage", str(path))
    return parse(_run(find_tool("nvdisasm"), "-c", "-hex", str(path)), resources)


def parse(sass: str, resources: str) -> list[Kernel]:
    """Kernels from the text of `nvdisasm -c -hex` and `cuobjdump -res-usage`."""
    arch_line = re.search(r"\.target\s+sm_(\d+)", sass)
    if arch_line is None:
        raise ToolError("nvdisasm's output names no target architecture")
    arch = int(arch_line[1])
    sections = re.split(r"^\s*\.section\s+\.text\.(\S+?),.*$", sass, flags=re.MULTILINE)
    used = {
        match[1]: (int(match[2]), int(match[3]), int(match[4]))
        for match in re.finditer(r"Function (\S+):\s*\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+)", resources)
    }
    kernels = []
    for name, body in zip(sections[1::2], sections[2::2], strict=True):
        if name not in used:
            continue  # a device function of its own; calls are not followed
        registers, stack, shared = used[name]
        if arch >= 90 and shared >= RESERVED_SHARED:
            shared -= RESERVED_SHARED
        kernels.append(Kernel(name, arch, registers, shared, stack, parse_instructions(body)))
    return kernels


def parse_instructions(body: str) -> list[Instruction]:
    """Instructions of one function: each is a line with the first word of its code and a line with the second."""
    labels: dict[str, int] = {}
    instructions: list[Instruction] = []
    targets: list[str | None] = []
    first_line: re.Match[str] | None = None
    for line in body.splitlines():
        if match := re.match(r"(\.L\w+):", line):
            labels[match[1]] = len(instructions) * INSTRUCTION_BYTES
        elif match := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s*/\* 0x", line):
            first_line = match
        elif first_line and (match := re.match(r"\s*/\* 0x([0-9a-f]{16}) \*/", line)):
            instruction, label = _instruction(first_line, int(match[1], 16))
            instructions.append(instruction)
            targets.append(label)
            first_line = None
    instructions = [
        replace(instruction, target=labels.get(label)) if label else instruction
        for instruction, label in zip(instructions, targets, strict=True)
    ]
    while instructions and instructions[-1].opcode == "NOP":  # padding
        instructions.pop()
    return instructions


def _instruction(line: re.Match[str], high_word: int) -> tuple[Instruction, str | None]:
    text = re.match(r"(?:\{\s*)?(?:@(!?\w+)\s+)?(\S+)\s*(.*)", line[2])
    assert text is not None
    label = re.search(r"\((\.L\w+)\)", text[3])
    control = high_word >> 41  # bits 105 to 125: stall, yield, write barrier, read barrier, wait mask
    instruction = Instruction(
        address=int(line[1], 16),
        predicate=text[1],
        opcode=text[2],
        operands=text[3],
        target=None,
        stall=control & 15,
        write_barrier=(control >> 5) & 7,
        read_barrier=(control >> 8) & 7,
        wait_mask=(control >> 11) & 63,
    )
    return instruction, label[1] if label else None


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise ToolError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout
