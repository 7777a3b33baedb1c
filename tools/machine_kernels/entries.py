"""What is measured, and what the static model assumes of it, by machine.py and decode_step.py themselves.

An entry takes its figure from the values of one measurement of the library (*.cu): which they are, it says there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from tools.sass_model.bounds import tally
from tools.sass_model.decode_step import Grid, Role, Terms, simulate
from tools.sass_model.disassembly import NO_BARRIER, Instruction
from tools.sass_model.machine import (
    L2_BYTES_PER_CLOCK,
    LATENCY,
    SUBPARTITIONS,
    WGMMA_CYCLES_PER_COLUMN,
    Assumptions,
    Card,
)

Figure = float | str
ULP = 2.0**-23  # of 1


@dataclass(frozen=True)
class Entry:
    name: str
    what: str
    unit: str
    measure: str  # of the library
    measured: Callable[[Sequence[float]], Figure]  # of its values
    assumed: Callable[[Card], Figure] | None = None  # None: the model does without
    otherwise: Callable[[Card], float] | None = None  # what it takes with the other choice of Assumptions
    hopper: bool = False  # only compute capability 9.0 has it


def clocks(opcodes: Sequence[str], card: Card, assume: Assumptions | None = None) -> float:
    """Of a sub-partition for each warp that runs these; what all of an SM share counts four times."""
    code = [Instruction(0, None, opcode, "", None, 1, NO_BARRIER, NO_BARRIER, 0) for opcode in opcodes]
    return tally([(instruction, 1.0) for instruction in code], card, assume or Assumptions()).bound[0]


def at(index: int) -> Callable[[Sequence[float]], float]:
    return lambda values: values[index]


def per_million(index: int) -> Callable[[Sequence[float]], float]:
    return lambda values: values[index] * 1e-6


def terms(card: Card) -> Terms:
    return replace(Terms(), bandwidth=card.bytes_per_second * 1e-6)


# ---- instructions ----


def pipe_entries() -> Iterator[Entry]:
    def rate(name: str, what: str, *opcodes: str, other: Assumptions | None = None) -> Entry:
        """Clocks a warp instruction on a sub-partition, with as many warps as are best."""
        return Entry(
            name, what, "clocks", name, min, lambda card: clocks(opcodes, card),
            None if other is None else lambda card: clocks(opcodes, card, other),
        )  # fmt: skip

    yield Entry("sm_ghz", "the SM's clock", "GHz", "sm_ghz", at(0), lambda card: card.ghz)
    yield rate("ex2", "ex2.approx", "MUFU.EX2")
    yield rate("ffma", "FFMA", "FFMA")
    yield rate("imad", "IMAD", "IMAD")
    yield rate("lop3", "LOP3", "LOP3.LUT")
    yield rate("fmnmx", "FMNMX", "FMNMX")
    yield rate("f2fp", "F2FP, two floats to bf16", "F2FP.BF16.F32.PACK_AB", other=Assumptions(pack_on_xu=True))
    yield rate("hfma2", "HFMA2", "HFMA2")
    for fmas in (2, 4, 6, 8):
        code = ["MUFU.EX2", *["FFMA"] * fmas]
        yield rate(f"exp_{fmas}_ffma", f"ex2.approx and {fmas} FFMA beside it", *code)
    yield rate("mma_tf32", "mma m16n8k8 tf32", "HMMA.1688.F32.TF32")
    yield rate("mma_bf16", "mma m16n8k16 bf16", "HMMA.16816.F32.BF16")


def shared_entries() -> Iterator[Entry]:
    """Clocks of the SM for a warp's load."""

    def load(name: str, what: str, opcode: str, *, broadcast: bool) -> Entry:
        def assumed(card: Card, together: bool) -> float:
            return clocks([opcode], card, Assumptions(broadcast_shared_loads=together)) / SUBPARTITIONS

        return Entry(
            name, what, "SM clocks", name, min, lambda card: assumed(card, broadcast),
            (lambda card: assumed(card, False)) if broadcast else None,
        )  # fmt: skip

    yield Entry("shfl", "SHFL", "SM clocks", "shfl", min, lambda card: clocks(["SHFL.BFLY"], card) / SUBPARTITIONS)
    for bits in (32, 64, 128):
        opcode = "LDS" if bits == 32 else f"LDS.{bits}"
        yield load(f"lds{bits}", f"{opcode}, every lane its own", opcode, broadcast=False)
        for lanes in (2, 4, 8, 16, 32) if bits > 32 else ():
            for order, where in (("neighbours", "neighbours"), ("apart", "far lanes")):
                what = f"{opcode}, {lanes} lanes read the same: {where}"
                yield load(f"lds{bits}_{order}{lanes}", what, opcode, broadcast=True)
    yield load("scan_dt", "LDS.128 of the scan's dt and dt x: 8 rows, 4 lanes each", "LDS.128", broadcast=True)
    yield load("scan_b", "LDS.64 of the scan's B: 4 pairs of states, 8 lanes each", "LDS.64", broadcast=True)
    yield load("scan_c", "LDS.64 of the scan's C: 8 tokens by 4 pairs of states", "LDS.64", broadcast=True)


def latency_entries() -> Iterator[Entry]:
    def latency(name: str, what: str, clocks: float) -> Entry:
        return Entry(f"{name}_latency", what, "clocks", f"{name}_latency", at(0), lambda card: clocks)

    yield latency("ex2", "ex2.approx that waits for the last", LATENCY["xu"])
    yield latency("ffma", "FFMA, the same", LATENCY["fma"])
    yield latency("lop3", "LOP3", LATENCY["alu"])
    yield latency("f2fp", "F2FP", LATENCY["alu"])
    yield latency("shfl", "SHFL", LATENCY["shfl"])
    yield latency("lds", "LDS", LATENCY["lds"])
    yield latency("ldc", "LDC that hits", LATENCY["constant"])
    yield latency("mma_tf32", "mma m16n8k8 tf32, to the next sum", LATENCY["hmma"])
    yield latency("mma_bf16", "mma m16n8k16 bf16, to the next sum", LATENCY["hmma"])
    yield latency("l2", "load that hits L2", LATENCY["ldg"])
    yield latency("atomic", "atomic exchange, to its result", LATENCY["atomic"])


# ---- tensor cores ----


def rounded(steps: float) -> str:
    """What 0.75 of a step became."""
    return {0.0: "truncated", 0.75: "kept", 1.0: "rounded"}.get(steps, "something else")


def operand_rounding(values: Sequence[float]) -> str:
    """1 and three quarters to the next tf32."""
    a, b = (rounded((value - 1) * 2**10) for value in values[:2])
    return a if a == b else f"a {a}, b {b}"


def sum_rounding(values: Sequence[float]) -> str:
    """1.75 ulp above 1, and below -1."""
    above, below = (rounded((abs(value) - 1) / ULP - 1) for value in values[2:4])
    return above if above == below else f"{above} above zero, {below} below"


def added_bits(values: Sequence[float]) -> float:
    """Bits behind a float's last that products of one mma keep until they are added up; 3 are the most asked for."""
    exact = [value == 1 + 2 ** (3 - bits) * ULP for bits, value in enumerate(values[4:7], 1)]
    return float((*exact, False).index(False))


def product_entries() -> Iterator[Entry]:
    emulated = "truncated"  # as_tf32() in csrc/cuda/primitives/mma.cuh
    yield Entry("tf32_operands", "tf32 mma: bits that tf32 lacks", "", "tf32_rounding", operand_rounding,
                lambda card: emulated)  # fmt: skip
    for kind in ("tf32", "bf16"):
        measure = f"{kind}_rounding"
        # The emulator adds up in float.
        yield Entry(f"{kind}_sums", f"{kind} mma: a sum", "", measure, sum_rounding, lambda card: "rounded")
        yield Entry(f"{kind}_bits", f"{kind} mma: bits behind an ulp, added up", "bits", measure, added_bits)


# ---- memory ----


def tb_per_second(card: Card) -> float:
    return card.bytes_per_second * 1e-12


COLD, WARM, BEHIND, BOTH, ISSUED = range(5)  # values of "prefetches"
MB16 = 16 * 2.0**20


def memory_entries() -> Iterator[Entry]:
    for index, whose in enumerate(("one SM alone", "each of all SMs")):
        yield Entry(f"l2_bandwidth_{index}", f"L2 to {whose}", "bytes a clock", "l2_bandwidth", at(index),
                    lambda card: float(L2_BYTES_PER_CLOCK))  # fmt: skip
    yield Entry("read", "device memory, read", "TB/s", "read", per_million(0), tb_per_second)
    yield Entry("copy", "device memory, copied (both ways)", "TB/s", "copy", per_million(0), tb_per_second)
    yield Entry("read_async", "device to shared memory, cp.async", "TB/s", "read_async", per_million(0), tb_per_second)

    def weights(card: Card) -> float:
        return MB16 / terms(card).bandwidth + terms(card).memory

    name, unit = "prefetches", "us"
    yield Entry("weights_read", "16 MB of weights, read by 3 blocks an SM", unit, name, at(COLD), weights)
    yield Entry("weights_prefetched", "the same, each block prefetching its part first", unit, name, at(BOTH), weights)
    yield Entry("weights_issued", "until prefetches of 16 MB are issued", unit, name, at(ISSUED))
    yield Entry("weights_hit", "reads behind such prefetches, of reads that hit L2", "times", name,
                lambda values: values[BEHIND] / values[WARM], lambda card: 1.0)  # fmt: skip


# ---- launches ----

# Values of "pair_*": us behind the trigger, to start; behind the first grid's end, to pass the wait and to start; each
# of the first, median and last block. Then the share of pairs that overlap.
STARTED, WAITED, GAP, OVERLAP = 1, 4, 7, 9


def overlaps(values: Sequence[float]) -> str:
    return "yes" if values[OVERLAP] > 0.5 else "no"


def empty_launch(card: Card) -> float:
    """us that a row of launches takes for each, whose blocks only wait."""
    role = Role("empty", card.sms, 1 / 8, bytes=0, path=0)
    return simulate([Grid((role,))], card.sms, terms(card), layers=16).us


def launch_entries() -> Iterator[Entry]:
    yield Entry("timer_step", "step of globaltimer, from which the rest is", "ns", "timer_step", at(0))
    yield Entry("memory", "`memory`: load to data, memory idle", "us", "memory_latency",
                lambda values: values[1] * 1e-3, lambda card: terms(card).memory)  # fmt: skip
    yield Entry("block_end", "`block_end`: last store to behind the wait of other blocks", "us", "block_waits", at(1),
                lambda card: terms(card).block_end)  # fmt: skip
    for place in ("stream", "graph"):
        where = f"in a {place}"
        early, late, ordinary = (f"pair_{which}_{place}" for which in ("early", "late", "ordinary"))
        yield Entry(f"overlap_{place}", f"a dependent launch begins before the one before ends, {where}", "", early,
                    overlaps, lambda card: "yes", hopper=True)  # fmt: skip
        yield Entry(f"start_early_{place}", f"`start`: first instruction says so, {where}", "us", early, at(STARTED),
                    lambda card: terms(card).start, hopper=True)  # fmt: skip
        yield Entry(f"start_late_{place}", f"`start`: said 5 us later, {where}", "us", late, at(STARTED),
                    lambda card: terms(card).start, hopper=True)  # fmt: skip
        yield Entry(f"grid_end_{place}", f"`grid_end`: last store to behind the wait, {where}", "us", early, at(WAITED),
                    lambda card: terms(card).grid_end, hopper=True)  # fmt: skip
        yield Entry(f"chain_{place}", f"launch to launch, blocks that only wait, {where}", "us", f"chain_{place}",
                    at(0), empty_launch, hopper=True)  # fmt: skip
        yield Entry(f"gap_{place}", f"ordinary launch: last store to first instruction, {where}", "us", ordinary,
                    at(GAP))  # fmt: skip
        yield Entry(f"chain_ordinary_{place}", f"ordinary launch to launch, {where}", "us", f"chain_ordinary_{place}",
                    at(0))  # fmt: skip


# ---- compute capability 9.0's own, last: should one of them fail, so does all that follows ----


def wgmma_clocks(columns: int) -> Callable[[Card], float]:
    return lambda card: columns * WGMMA_CYCLES_PER_COLUMN


def hopper_entries() -> Iterator[Entry]:
    for name, what, columns in (
        ("scores", "wgmma m64n64k16, a in shared memory", 64),
        ("values", "wgmma m64n128k16, a in registers", 128),
    ):
        for groups in (1, 2, 3):
            together = f"{what}: {groups} warpgroup{'s' * (groups > 1)}"
            yield Entry(f"wgmma_{name}_{groups}", together, "clocks", f"wgmma_{name}", at(groups - 1),
                        wgmma_clocks(columns), hopper=True)  # fmt: skip
    yield Entry("read_bulk", "device to shared memory, bulk copies", "TB/s", "read_bulk", per_million(0), tb_per_second,
                hopper=True)  # fmt: skip


ENTRIES: tuple[Entry, ...] = (
    *pipe_entries(),
    *shared_entries(),
    *latency_entries(),
    *product_entries(),
    *memory_entries(),
    *launch_entries(),
    *hopper_entries(),
)
