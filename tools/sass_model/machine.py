"""Cards, pipes and costs. Sources of every number: docs/sass_model.md; nothing here was measured by us.

A cost is the cycles for which one warp instruction keeps a pipe busy. Pipes belong to a sub-partition (four per SM);
the whole SM shares `lsu` and `l2`. Every instruction also takes one issue slot.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tools.sass_model.disassembly import Instruction

SUBPARTITIONS = 4
WARP = 32
SM_PIPES = ("lsu", "l2")


@dataclass(frozen=True)
class Card:
    name: str
    sms: int
    ghz: float
    bytes_per_second: float  # device memory, what copies reach
    shared_per_sm: int  # bytes
    fp32: float  # cycles of a warp's FFMA
    fp16: float  # HFMA2
    fp64: float
    hmma: float  # m16n8k16 of 16-bit types
    fp32_halves: bool  # two half-rate fp32 pipes, of which one takes IMAD, and HFMA2 takes both


CARDS = {
    80: Card("A100 SXM", 108, 1.410, 1.7e12, 164 * 1024, fp32=2, fp16=1, fp64=4, hmma=8.0, fp32_halves=False),
    90: Card("H100 SXM", 132, 1.755, 3.0e12, 228 * 1024, fp32=1, fp16=1, fp64=2, hmma=4.0 / 0.63, fp32_halves=True),
}

XU_CYCLES = 8  # 16 results a clock and SM
ALU_CYCLES = UNIFORM_CYCLES = BRANCH_CYCLES = HEAVY_CYCLES = 2  # 64 results a clock and SM
SHARED_BYTES_PER_CLOCK, L2_BYTES_PER_CLOCK = 128, 64  # per SM
WGMMA_CYCLES_PER_COLUMN = 0.5  # 512 16-bit multiply-adds a clock and sub-partition; every dtype's K fills one such step

# Clocks from issue to result, by latency class.
LATENCY = {
    "xu": 18,
    "lds": 29,
    "ldsm": 33,
    "shfl": 24,
    "ldg": 480,
    "constant": 30,
    "atomic": 400,
    "misc": 20,
    "hmma": 33,
    "alu": 4.5,
    "fma": 4,
    "uniform": 6,
}
LDS_CLOCKS_PER_8_BYTES = 2
QUEUE = {"lsu": 64, "xu": 8}  # clocks of work that may wait in front of a pipe without stopping issue
READ_RELEASE = 12  # clocks until a store or load has read its source registers
BARRIER_RELEASE = 10  # clocks from the last warp's arrival to the others' next instruction


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


FP32 = _names("FFMA FMUL FADD FFMA32I FMUL32I FADD32I")
HEAVY = _names("IMAD IMUL IDP XMAD IMAD32I")
HALF = _names("HFMA2 HADD2 HMUL2 HFMA2_MMA")
FP64 = _names("DFMA DMUL DADD DSETP")
XU = _names("MUFU F2F F2I I2F FRND POPC FLO BREV")
MMA = _names("HMMA IMMA DMMA")
WGMMA = _names("HGMMA QGMMA IGMMA")
SHARED_MEMORY = _names("LDS STS ATOMS")
SHARED_MATRIX = _names("LDSM STSM")
GLOBAL_MEMORY = _names("LDG STG LD ST LDL STL RED ATOM ATOMG LDGSTS")
BRANCH = _names("BRA BRX JMP CALL RET BSSY BSYNC EXIT BREAK WARPSYNC BMOV BPT KILL YIELD NANOSLEEP")
ALU = _names(
    """IADD3 IADD LOP3 LOP SHF SHL SHR PRMT SEL FSEL FMNMX FSETP ISETP LEA MOV PLOP3 IMNMX CSEL IABS SGXT BMSK P2R R2P
    VOTE MOV32I FSET FCHK I2FP F2FP VIADD VIMNMX VIADDMNMX VIMNMX3 ISCADD VABSDIFF VOTEU IADD32I LOP32I FSWZADD LEPC
    CS2R HMNMX2 HSETP2 HSET2 R2UR"""
)
# An issue slot and no pipe of the model: barriers, fences, constants, asynchronous copies' bookkeeping, bulk copies.
ISSUE_ONLY = _names(
    """NOP BAR DEPBAR LDGDEPBAR S2R S2UR LDC MEMBAR ERRBAR CCTL SYNCS FENCE ARRIVES PREEXIT ACQBULK WARPGROUP ELECT B2R
    ENDCOLLECTIVE
    UTMALDG UTMASTG UTMAPF UTMACMDFLUSH UTMACCTL UBLKCP UCGABAR_ARV UCGABAR_WAIT"""
)
LOADS_AND_STORES = (SHARED_MEMORY | SHARED_MATRIX | GLOBAL_MEMORY) - {"ATOMS", "LD", "ST", "RED", "ATOM", "ATOMG"}
CONSTANT = _names("LDC ULDC S2R S2UR CS2R")

_MMA_SHARE = {"16816": 1.0, "16832": 1.0, "1688": 0.5, "1684": 0.25, "884": 0.25}  # of m16n8k16


@dataclass(frozen=True)
class Assumptions:
    """What the machine code does not say, or what sources disagree on."""

    broadcast_shared_loads: bool = False  # shared loads cost one wavefront instead of all lanes' bytes
    pack_on_xu: bool = False  # F2FP (two fp32 to bf16x2) on the special-function unit
    predicated_share: float = 1.0  # of predicated instructions, how many reach their pipe
    global_latency: float = LATENCY["ldg"]


def access_bytes(opcode: str) -> int:
    """Bytes per lane of a load or store.

    >>> [access_bytes(o) for o in ("LDG.E.128", "LDG.E.64.CONSTANT", "STS", "LDG.E.U16", "LDS.U8")]
    [16, 8, 4, 2, 1]
    """
    widths = re.findall(r"\.[US]?(128|64|16|8)\b", opcode)
    return int(widths[0]) // 8 if widths else 4


def pipe_cycles(instruction: Instruction, card: Card, assume: Assumptions) -> list[tuple[str, float]]:
    """[(pipe, cycles)] of one warp instruction, beside its issue slot."""
    opcode, base = instruction.opcode, instruction.base
    if instruction.is_padding:
        return []
    if base in XU or (base == "F2FP" and assume.pack_on_xu):
        return [("xu", XU_CYCLES)]
    if base in FP32:
        return [("fma", card.fp32)]
    if base in HEAVY:
        return [("fmaheavy", HEAVY_CYCLES)]
    if base in HALF:
        return [("half", card.fp16)]
    if base in FP64:
        return [("fp64", card.fp64)]
    if base in MMA or base in WGMMA:
        return [("tensor", _tensor_cycles(opcode, base, card))]
    if base == "SHFL":
        return [("lsu", 1)]
    if base in SHARED_MEMORY:
        broadcast = base == "LDS" and assume.broadcast_shared_loads
        return [("lsu", 1 if broadcast else max(1, access_bytes(opcode) * WARP / SHARED_BYTES_PER_CLOCK))]
    if base in SHARED_MATRIX:
        return [("lsu", int((re.findall(r"\.(\d)$", opcode) or ["1"])[0]))]
    if base in GLOBAL_MEMORY:
        moved = access_bytes(opcode) * WARP
        return [("lsu", max(1, moved / SHARED_BYTES_PER_CLOCK)), ("l2", moved / L2_BYTES_PER_CLOCK)]
    if base in BRANCH:
        return [("branch", BRANCH_CYCLES)]
    if base in ISSUE_ONLY:
        return []
    if base in ALU:
        return [("alu", ALU_CYCLES)]
    if base.startswith("U"):
        return [("uniform", UNIFORM_CYCLES)]
    return []


def is_known(base: str) -> bool:
    """Whether the tables have this opcode; an unknown one counts as an issue slot."""
    pipes = (
        FP32,
        HEAVY,
        HALF,
        FP64,
        XU,
        MMA,
        WGMMA,
        SHARED_MEMORY,
        SHARED_MATRIX,
        GLOBAL_MEMORY,
        BRANCH,
        ALU,
        ISSUE_ONLY,
    )
    return base in ("SHFL",) or base.startswith("U") or any(base in pipe for pipe in pipes)


def _tensor_cycles(opcode: str, base: str, card: Card) -> float:
    tf32 = "TF32" in opcode
    if base in MMA:
        shape = re.search(r"\.(16816|1688|16832|1684|884)", opcode)
        return card.hmma * (_MMA_SHARE[shape[1]] if shape else 1.0) * (2 if tf32 else 1)
    shape = re.search(r"\.\d+x(\d+)x\d+", opcode)
    if shape is None:
        raise ValueError(f"{opcode}: a wgmma without its shape")
    return int(shape[1]) * WGMMA_CYCLES_PER_COLUMN


def latency_class(base: str) -> str:
    for name, bases in _LATENCY_CLASSES:
        if base in bases:
            return name
    if base.startswith("U"):
        return "uniform"
    return "alu" if base in ALU else "misc"


_LATENCY_CLASSES = (
    ("misc", {"R2UR"}),
    ("xu", XU),
    ("lds", {"LDS", "ATOMS"}),
    ("ldsm", {"LDSM"}),
    ("shfl", {"SHFL"}),
    ("ldg", {"LDG", "LD", "LDL"}),
    ("atomic", {"ATOM", "ATOMG"}),
    ("constant", CONSTANT),
    ("hmma", {"HMMA", "IMMA"}),
    ("fma", FP32 | HEAVY | HALF),
)
