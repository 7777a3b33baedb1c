"""The gates on machine code of wgmma (tools/overlap.py), on loops made up here."""

from __future__ import annotations

from dataclasses import replace

from tools.overlap import MOST_MOVES, wgmma_problems
from tools.sass_model.disassembly import NO_BARRIER, Instruction, Kernel
from tools.sass_model.predict import KernelModel

START, EXP, MOVE = ("HGMMA.64x64x16.F32.BF16", "R24"), ("MUFU.EX2", "R4, R4"), ("IMAD.MOV.U32", "R1, RZ, RZ, R2")
SOME, ALL = ("WARPGROUP.DEPBAR.LE", "gsb0, 0x1"), ("WARPGROUP.DEPBAR.LE", "gsb0, 0x0")


def problems(*code):
    """Of a kernel that is one loop over the code, given as (opcode, operands)."""
    instructions = [
        Instruction(16 * at, None, opcode, operands, None, 1, NO_BARRIER, NO_BARRIER, 0)
        for at, (opcode, operands) in enumerate([*code, ("BRA", ""), ("EXIT", "")])
    ]
    instructions[-2] = replace(instructions[-2], predicate="P0", target=0)
    return wgmma_problems(KernelModel(Kernel("k", 90, 128, instructions=instructions)))


def test_a_wait_behind_the_exponentials_passes():
    assert problems(START, SOME, *[EXP] * 10, ALL, EXP, *[MOVE] * MOST_MOVES) == []
    assert problems(EXP, *[MOVE] * 40) == []  # no products
    assert problems(START, ALL, EXP) == []  # none left under way


def test_a_wait_in_front_of_them_does_not():
    assert problems(START, SOME, ALL, *[EXP] * 10) == ["L0: 0 of 10 exponentials run beside products"]
    assert problems(START, SOME, *[EXP] * 4, ALL, *[EXP] * 6) == ["L0: 4 of 10 exponentials run beside products"]
    assert problems(START, *[EXP] * 10, SOME, ALL) == ["L0: 0 of 10 exponentials run beside products"]


def test_a_round_has_two_waits():
    assert problems(START, SOME, SOME, EXP, ALL) == ["L0: 2 waits that leave products under way and 1 that do not"]
    assert problems(START, SOME, EXP) == ["L0: 1 waits that leave products under way and 0 that do not"]


def test_moved_accumulators_are_seen():
    assert problems(START, SOME, EXP, ALL, *[MOVE] * 32) == ["L0: 32 moves of registers"]


def test_registers_of_a_warpgroup():
    give, take = ("USETMAXREG.DEALLOC.CTAPOOL", "0x20"), ("USETMAXREG.TRY_ALLOC.CTAPOOL", "UP0, 0xa0")
    assert problems(give, ("IADD3", "R31, R4, R5")) == []
    assert problems(give, ("IADD3", "R4, R32, R5")) == ["R32 where a thread has 32 registers"]
    assert problems(take, ("FFMA", "R159, R4, R5, R6")) == []
    assert problems(take, ("FFMA", "R160.reuse, R4, R5, R6")) == ["R160 where a thread has 160 registers"]
