"""Gates on machine code of wgmma: what runs beside the products, and what setmaxnreg leaves each warpgroup.

ptxas moves a wait for products to wherever no register holds it back, without a message. In front of the exponentials
that were meant to run meanwhile, it costs all overlap.
"""

from __future__ import annotations

import re

from tools.sass_model.control_flow import Loop
from tools.sass_model.disassembly import Instruction
from tools.sass_model.predict import KernelModel

# Of a loop with products: more move an accumulator.
MOST_MOVES = 16
LEAST_BESIDE = 0.9


def wgmma_problems(model: KernelModel) -> list[str]:
    """What is wrong with a kernel's use of wgmma; nothing where there is none."""
    loops = [loop for loop in model.loops if _waits(model.own(loop), pending=True)]
    return [text for loop in loops for text in _loop_problems(model, loop)] + _register_problems(model)


def _waits(code: list[Instruction], pending: bool) -> list[int]:
    """Addresses of the waits that leave a group of products under way, or none."""
    return [
        instruction.address
        for instruction in code
        if instruction.opcode.startswith("WARPGROUP.DEPBAR") and pending != instruction.operands.endswith(" 0x0")
    ]


def _loop_problems(model: KernelModel, loop: Loop) -> list[str]:
    """A round waits for one product, works on its result, and waits for the other."""
    code = model.own(loop)
    first, second = _waits(code, pending=True), _waits(code, pending=False)
    if len(first) != 1 or len(second) != 1:
        return [f"{loop.id}: {len(first)} waits that leave products under way and {len(second)} that do not"]
    exponentials = [i.address for i in code if i.opcode.startswith("MUFU.EX2")]
    beside = sum(first[0] < address < second[0] for address in exponentials)
    moves = sum(i.opcode.startswith(("MOV", "IMAD.MOV")) for i in code)
    problems = []
    if beside < LEAST_BESIDE * len(exponentials):
        problems.append(f"{loop.id}: {beside} of {len(exponentials)} exponentials run beside products")
    if moves > MOST_MOVES:
        problems.append(f"{loop.id}: {moves} moves of registers")
    return problems


def _register_problems(model: KernelModel) -> list[str]:
    """Registers above those that a warpgroup has by setmaxnreg."""
    problems = []
    for block in sorted(model.flow.reachable):
        code = model.code(block)
        for at, instruction in enumerate(code):
            if instruction.base != "USETMAXREG":
                continue
            have = int(instruction.operands.rpartition("0x")[2], 16)
            behind = [i for b in _reached(model, block) for i in model.code(b)]
            used = max((int(r) for i in code[at:] + behind for r in re.findall(r"\bR(\d+)\b", i.operands)), default=0)
            if used >= have:
                problems.append(f"R{used} where a thread has {have} registers")
    return problems


def _reached(model: KernelModel, block: int) -> set[int]:
    """The blocks behind a block."""
    found: set[int] = set()
    todo = [*model.flow.successors[block]]
    while todo:
        if (next_block := todo.pop()) not in found:
            found.add(next_block)
            todo += model.flow.successors[next_block]
    return found
