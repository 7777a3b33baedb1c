"""The static model of machine code, on kernels of golden/sass/loops.cu whose figures are counted by hand."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tools.sass_model.bounds import carried_chain, occupancy, tally
from tools.sass_model.disassembly import NO_BARRIER, Instruction, parse
from tools.sass_model.kernels import REST, Plan, most, rounds
from tools.sass_model.machine import CARDS, Assumptions, access_bytes, is_known, latency_class, pipe_cycles
from tools.sass_model.predict import KernelModel, Launch, loop_costs, predict
from tools.sass_model.simulation import simulate

A100, H100 = CARDS[80], CARDS[90]
GOLDEN = Path(__file__).parent / "golden" / "sass"


def kernel(name: str):
    kernels = parse((GOLDEN / "loops.sass").read_text(), (GOLDEN / "loops.resources").read_text())
    return next(k for k in kernels if k.name == name)


def model(name: str) -> KernelModel:
    return KernelModel(kernel(name))


def instruction(opcode: str, operands: str = "", stall: int = 1, write: int = NO_BARRIER, wait: int = 0) -> Instruction:
    return Instruction(0, None, opcode, operands, None, stall, write, NO_BARRIER, wait)


# ---- reading ----


def test_kernel_and_its_resources():
    nested = kernel("nested")
    assert (nested.arch, nested.registers, nested.stack) == (90, 12, 0)
    assert nested.shared == 256  # 64 floats; the driver's 1024 bytes taken off
    assert len(nested.instructions) == 0x2A0 // 16  # up to the endless branch after EXIT, without the padding
    assert [i.address for i in nested.instructions] == list(range(0, 0x2A0, 16))


def test_instruction_fields_and_control_codes():
    by_address = {i.address: i for i in kernel("nested").instructions}
    compare = by_address[0x30]  # 0x000fda000bf01270
    assert (compare.opcode, compare.base, compare.predicate) == ("ISETP.LT.AND", "ISETP", None)
    assert compare.operands == "P0, PT, RZ, UR4, PT"
    assert (compare.stall, compare.write_barrier, compare.read_barrier, compare.wait_mask) == (13, 7, 7, 0)
    special = by_address[0x60]  # 0x000e220000002100
    assert (special.stall, special.write_barrier) == (1, 0)
    backward = by_address[0x1F0]
    assert (backward.predicate, backward.base, backward.target) == ("!P0", "BRA", 0x180)
    load, use = by_address[0x1D0], by_address[0x1E0]
    assert load.opcode == "LDS" and use.wait_mask >> load.write_barrier & 1


def test_a_cubin_without_target_is_refused():
    with pytest.raises(RuntimeError, match="no target architecture"):
        parse("", "")


# ---- control flow ----


def test_loop_nesting():
    nested = model("nested")
    outer, inner = nested.loops
    assert [loop.id for loop in nested.loops] == ["L0", "L1"]
    assert (outer.parent, inner.parent, outer.children) == (None, outer, [inner])
    assert [nested.flow.address(loop.header) for loop in nested.loops] == [0xD0, 0x180]
    assert [i.address for i in nested.own(inner)] == list(range(0x180, 0x200, 16))
    assert len(nested.own(outer)) == 9 + 2 + 4  # to the branch around the inner loop, its set-up, after it
    assert len(nested.own(None)) == 13 + 5
    assert nested.size(outer) == 15 + 8


def test_endless_branch_after_exit_is_no_loop():
    last = kernel("nested").instructions[-1]
    assert last.base == "BRA" and last.target == last.address
    assert len(model("nested").loops) == 2


def test_branch_of_a_role_inside_a_shared_loop():
    roles = model("roles")
    outer, inner = roles.loops
    branch = roles.flow.branch(inner, outer, roles.flow.latches(outer))
    address = roles.flow.address
    assert {address(b) for b in branch.own} == {0xD0, 0x100, 0x170, 0x230}
    copies = next(b for b in outer.blocks if address(b) == 0x240)
    assert copies not in branch.run and outer.header in branch.run


def test_a_loop_that_all_warps_enter_makes_no_role():
    roles = model("roles")
    with pytest.raises(ValueError, match="all warps enter L0"):
        roles.flow.branch(roles.loops[0], None, [roles.loops[1].header])


# ---- pipes ----


def test_pipe_cycles_of_the_inner_loop():
    nested = model("nested")
    inner = nested.tally(nested.loops[1])  # IMAD UIADD3 IADD3 LOP3 ISETP LDS FFMA BRA
    assert inner.mix == dict.fromkeys(["IMAD", "UIADD3", "IADD3", "LOP3", "ISETP", "LDS", "FFMA", "BRA"], 1)
    assert inner.pipes == {"issue": 8, "alu": 6, "fma": 2, "fmaheavy": 2, "lsu": 1, "uniform": 2, "branch": 2}
    assert inner.memory == {"LDS.32": 1}
    assert inner.predicated == 1
    assert inner.bound == (8, "issue")


def test_sm_wide_pipes_count_four_times():
    roles = model("roles")
    outer = roles.tally(roles.loops[0])
    assert outer.pipes["l2"] == 2  # one LDG of 4 bytes a lane: 128 bytes at 64 a clock
    assert outer.pipes["lsu"] == 2  # LDG and STS
    assert outer.bound == (outer.pipes["issue"], "issue")
    loads = tally([(instruction("LDG.E.128"), 3.0)], H100, Assumptions())
    assert loads.bound == (3 * 8 * 4, "l2")
    assert roles.tally(roles.loops[1]).bound == (12, "issue")


def test_predicated_instructions_may_count_less():
    roles = KernelModel(kernel("roles"), Assumptions(predicated_share=0.0))
    pipes = roles.tally(roles.loops[1]).pipes  # FADD and half of IMAD; two FMULs and the branch are predicated
    assert (pipes["fma"], pipes["branch"], pipes["issue"]) == (2, 0, 12)


@pytest.mark.parametrize(
    "opcode, card, expected",
    [
        ("FFMA", H100, [("fma", 1)]),
        ("FFMA", A100, [("fma", 2)]),
        ("IMAD.WIDE.U32", H100, [("fmaheavy", 2)]),
        ("MUFU.EX2", H100, [("xu", 8)]),
        ("SHFL.BFLY", H100, [("lsu", 1)]),
        ("LDS.128", H100, [("lsu", 4)]),
        ("STS.U8", H100, [("lsu", 1)]),
        ("LDG.E.128", H100, [("lsu", 4), ("l2", 8)]),
        ("LDG.E.U16", H100, [("lsu", 1), ("l2", 1)]),
        ("LDGSTS.E.BYPASS.LTC128B.128", H100, [("lsu", 4), ("l2", 8)]),
        ("LDSM.16.M88.4", H100, [("lsu", 4)]),
        ("HMMA.16816.F32.BF16", A100, [("tensor", 8)]),
        ("HMMA.1688.F32.TF32", A100, [("tensor", 8)]),
        ("HMMA.1684.F32.TF32", A100, [("tensor", 4)]),
        ("HGMMA.64x128x16.F32.BF16", H100, [("tensor", 64)]),
        ("HGMMA.64x128x8.F32.TF32", H100, [("tensor", 64)]),
        ("UIADD3", H100, [("uniform", 2)]),
        ("R2UR", H100, [("alu", 2)]),
        ("BAR.SYNC.DEFER_BLOCKING", H100, []),
    ],
)
def test_costs(opcode, card, expected):
    assert pipe_cycles(instruction(opcode), card, Assumptions()) == expected


def test_assumptions_change_costs():
    assert pipe_cycles(instruction("LDS.128"), H100, Assumptions(broadcast_shared_loads=True)) == [("lsu", 1)]
    assert pipe_cycles(instruction("F2FP.BF16.F32.PACK_AB"), H100, Assumptions()) == [("alu", 2)]
    assert pipe_cycles(instruction("F2FP.BF16.F32.PACK_AB"), H100, Assumptions(pack_on_xu=True)) == [("xu", 8)]


def test_opcodes():
    assert [access_bytes(o) for o in ("LDG.E.128", "LDG.E.64.CONSTANT", "STS", "LDG.E.U16", "LDS.S8")] == [
        16,
        8,
        4,
        2,
        1,
    ]
    assert [latency_class(b) for b in ("ULDC", "UIADD3", "R2UR", "FFMA", "ISETP")] == [
        "constant",
        "uniform",
        "misc",
        "fma",
        "alu",
    ]
    assert is_known("FFMA") and is_known("SHFL") and not is_known("QFROB")


def test_unknown_opcodes_are_named():
    strange = kernel("nested")
    strange.instructions.insert(0, instruction("QFROB.X"))
    assert KernelModel(strange).unknown_opcodes == ["QFROB"]
    assert model("nested").unknown_opcodes == []


# ---- chains and occupancy ----


def test_carried_chain_is_the_recurrence():
    chain = [
        instruction("FADD", "R1, R1, R2"),
        instruction("FMUL", "R3, R1, R1"),  # not carried
        instruction("MUFU.EX2", "R1, R1"),
    ]
    assert carried_chain(chain) == 4 + 18
    assert carried_chain([instruction("FADD", "R1, R2, R3")]) == 0


@pytest.mark.parametrize(
    "registers, shared, threads, blocks, limit",
    [
        (64, 0, 256, 4, "registers"),  # 2048 a warp: 8 warps a sub-partition, 32 an SM
        (80, 0, 192, 4, "registers"),  # 2560 a warp: 6 a sub-partition, 24 an SM, 6 warps a block
        (24, 0, 512, 4, "warps"),
        (16, 0, 32, 32, "blocks"),
        (32, 75 * 1024, 128, 3, "shared memory"),  # 76 KiB with the driver's
        (32, 75 * 1024 + 1, 128, 2, "shared memory"),
        (32, 228 * 1024, 128, 0, "shared memory"),
    ],
)
def test_occupancy(registers, shared, threads, blocks, limit):
    fits = occupancy(registers, shared, threads, H100)
    assert (fits.blocks, fits.limit) == (blocks, limit)
    assert fits.warps == blocks * -(-threads // 32)


OCCUPANCY_PROGRAM = """
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <cuda_occupancy.h>
int main() {
  for (int major : {8, 9})
    for (int registers = 16; registers <= 255; registers += 7)
      for (int threads = 32; threads <= 1024; threads += 96)
        for (size_t shared = 0; shared <= 160 * 1024; shared += 9999) {
          cudaOccDeviceProp device;
          memset(&device, 0, sizeof device);
          device.computeMajor = major;
          device.maxThreadsPerBlock = 1024;
          device.maxThreadsPerMultiprocessor = 2048;
          device.regsPerBlock = device.regsPerMultiprocessor = 65536;
          device.warpSize = 32;
          device.sharedMemPerBlock = 48 * 1024;
          device.sharedMemPerMultiprocessor = (major == 8 ? 164 : 228) * 1024;
          device.sharedMemPerBlockOptin = (major == 8 ? 163 : 227) * 1024;
          device.reservedSharedMemPerBlock = 1024;
          device.numSms = 108;
          cudaOccFuncAttributes kernel;
          memset(&kernel, 0, sizeof kernel);
          kernel.maxThreadsPerBlock = 1024;
          kernel.numRegs = registers;
          kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
          kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
          kernel.maxDynamicSharedSizeBytes = 227 * 1024;
          kernel.numBlockBarriers = 1;
          cudaOccDeviceState state;
          memset(&state, 0, sizeof state);
          state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
          cudaOccResult result;
          const int error = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, shared);
          if (error == 0)
            printf("%d %d %zu %d %d\\n", major, registers, shared, threads, result.activeBlocksPerMultiprocessor);
        }
}
"""


def test_occupancy_is_cudas_own(tmp_path):
    include = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"
    if not (include / "cuda_occupancy.h").exists():
        pytest.skip("needs a CUDA toolkit's cuda_occupancy.h")
    (tmp_path / "occupancy.cpp").write_text(OCCUPANCY_PROGRAM)
    program = tmp_path / "occupancy"
    subprocess.run(["g++", f"-I{include}", "-o", program, tmp_path / "occupancy.cpp"], check=True)
    lines = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) > 5000
    for line in lines:
        major, registers, shared, threads, blocks = map(int, line.split())
        fits = occupancy(registers, shared, threads, CARDS[major * 10])
        assert fits.blocks == blocks, line


# ---- time ----


def test_bound_by_hand():
    # Per warp: 18 instructions outside, 15 in each of 10 rounds, 8 in each of 10 x 64.
    launch = Launch(threads=64, blocks=3 * 132, trips={"L0": 10, "L1": 64}, device_bytes=3e6, elements=1000)
    p = predict(model("nested"), launch)
    issue, clock = 18 + 10 * 15 + 640 * 8, 1755
    assert (p.blocks_per_sm, p.resident, p.binds) == (3, 3, "issue")
    assert p.bound_us == pytest.approx(2 * issue / clock)  # 6 warps on 4 sub-partitions: two on one
    assert p.even_us == pytest.approx(1.5 * issue / clock)
    assert p.pipes_us["lsu"] == pytest.approx(6 * (1 + 10 * 2 + 640) / clock)
    assert p.bytes_us == pytest.approx(1.0)
    assert p.cycles_per_element == pytest.approx(2 * issue * 132 / 1000)
    assert p.simulated_us > p.bound_us


def test_trips_multiply_through_the_nest():
    def issue(**trips):
        return predict(model("nested"), Launch(32, trips=trips), simulation=False).pipes_us["issue"]

    assert issue(L0=2, L1=6) - issue(L0=2, L1=5) == pytest.approx(2 * 8 / 1755)
    assert issue(L0=0, L1=100) == pytest.approx(18 / 1755)
    with pytest.raises(ValueError, match=r"trips for \['L7'\]"):
        issue(L7=1)


def test_roles_share_the_work():
    roles = model("roles")
    launch = Launch(256, trips={"L0": 100, "L1": 32}, roles=((4, "L1"), (4, REST)))
    costs = loop_costs(roles, launch, simulated_rounds=0)
    outer = costs[0].tally
    assert outer.mix["LDG"] == 0.5 and outer.mix["BAR"] == 1
    assert costs[1].tally.pipes["xu"] == 4  # one MUFU by half the warps
    p = predict(roles, launch)
    assert p.pipes_us["xu"] == pytest.approx(8 * 100 * 32 / 1755)  # a worker and a copier a sub-partition
    alone = predict(roles, Launch(256, trips={"L0": 100, "L1": 32}), simulation=False)
    assert alone.pipes_us["xu"] == pytest.approx(2 * p.pipes_us["xu"])


def test_roles_with_outer_loops_of_their_own():
    apart = model("apart")
    inner, copies = most(apart, "MUFU"), most(apart, "LDG")
    workers = inner.parent
    assert workers is not None and copies.parent is None
    trips = {workers.id: 100, inner.id: 32, copies.id: 100}
    for roles in (((4, workers.id), (4, copies.id)), ((4, workers.id), (4, REST))):
        p = predict(apart, Launch(256, trips=trips, roles=roles))
        assert p.pipes_us["xu"] == pytest.approx(8 * 100 * 32 / 1755)
        assert p.simulated_us > p.bound_us
    shared = predict(model("roles"), Launch(256, trips={"L0": 100, "L1": 32}, roles=((4, "L1"), (4, REST))))
    assert p.simulated_us == pytest.approx(shared.simulated_us, rel=0.1)


@pytest.mark.parametrize(
    "roles, message",
    [(((4, "L1"),), "do not add up to 8 warps"), (((4, "L0"), (4, REST)), "all warps enter L0")],
)
def test_wrong_roles(roles, message):
    with pytest.raises(ValueError, match=message):
        predict(model("roles"), Launch(256, trips={"L0": 100}, roles=roles))


def test_a_block_that_does_not_fit():
    with pytest.raises(ValueError, match="does not fit an SM: shared memory"):
        predict(model("nested"), Launch(64, shared=240 * 1024))


def test_plans_find_loops_by_work():
    roles = model("roles")
    inner = most(roles, "MUFU.EX2")
    assert inner.id == "L1" and most(roles, "LDG").id == "L0"
    assert rounds(roles, inner, "MUFU.EX2", 32) == 32
    with pytest.raises(ValueError, match="L1 of roles has no HMMA"):
        rounds(roles, inner, "HMMA", 1)
    plan = Plan({inner: 7.0}, ((4, inner), (4, None)))
    assert plan.launch_options() == {"trips": {"L1": 7.0}, "roles": ((4, "L1"), (4, REST)), "weights": {}}


# ---- simulation ----


def clocks(order: list[Instruction], warps: int, blocks: int | None = None, card=H100) -> float:
    return simulate([(n % (blocks or warps), order) for n in range(warps)], 6, card, Assumptions())


def test_dependent_instructions_hide_behind_other_warps():
    order = [instruction("FFMA", stall=4)] * 8
    assert clocks(order, 1) == 32
    assert clocks(order, 4) == pytest.approx(32, abs=1)
    assert clocks(order, 8) == pytest.approx(64, abs=1)
    assert clocks(order, 8, card=A100) == pytest.approx(128, abs=1)


def test_a_busy_pipe_bounds_the_round():
    order = [instruction("MUFU.EX2", stall=2)] * 4 + [instruction("FFMA", stall=2)] * 4
    assert clocks(order, 2) == pytest.approx(2 * 4 * 8, abs=1)


def test_scoreboards_wait_for_the_result():
    order = [instruction("LDS", write=0), instruction("FADD", wait=1, stall=4)]
    assert clocks(order, 1) == 29 + 4
    assert clocks([order[0], instruction("FADD", wait=2, stall=4)], 1) < 10  # another scoreboard


def test_block_barriers_keep_warps_together():
    barrier = instruction("BAR.SYNC.DEFER_BLOCKING", "0x0")
    fast, slow = [instruction("FADD", stall=4), barrier], [instruction("FADD", stall=4)] * 50 + [barrier]
    together = simulate([(0, fast), (0, slow)], 6, H100, Assumptions())
    assert together == pytest.approx(200 + 10, abs=5)
    assert simulate([(0, fast), (1, slow)], 6, H100, Assumptions()) < together / 2
    with pytest.raises(ValueError, match="different numbers of block barriers"):
        simulate([(0, fast), (0, slow[:-1])], 6, H100, Assumptions())


def test_named_barriers_do_not_park_a_warp():
    order = [instruction("BAR.SYNC.DEFER_BLOCKING", "0x1, 0x80"), instruction("FADD", stall=4)]
    assert clocks(order, 1) == 5
