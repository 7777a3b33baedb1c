"""What tools/sass_model/tile.py counts in a round of a kernel's loop, and what the kernels' descriptions ask for."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from test_sass_model import H100, instruction, model

from tools.sass_model.bounds import tally
from tools.sass_model.disassembly import NO_BARRIER, Instruction, Kernel
from tools.sass_model.kernels import Plan, Tile, blocks_with, enters, most, own_code, without, workloads
from tools.sass_model.machine import Assumptions
from tools.sass_model.predict import KernelModel, Launch
from tools.sass_model.tile import CLASSES, ISSUED, TileCounts, count


def counts(kernel: KernelModel, plan: Plan, threads: int) -> TileCounts:
    assert plan.tile is not None
    return count(kernel, Launch(threads, **plan.launch_options()), plan.tile)


def test_a_round_has_its_inner_loops_and_the_warps_of_its_role():
    # By hand from the golden code: a round of the outer loop that all run is 9 instructions, of which workers add 11
    # and copiers 13; the inner loop is 12.
    roles = model("roles")
    inner = most(roles, "MUFU")
    tile = Tile("32 tokens", (inner.parent,), {"special": 100.0, "loads": 8.0}, memory_bytes=512)
    plan = Plan({inner.parent: 7, inner: 32}, ((4, inner), (4, None)), tile=tile)
    got = counts(roles, plan, 256)
    assert got.always == {
        ISSUED: 8 * 9 + 4 * 11 + 4 * 13 + 4 * 32 * 12,
        "special": 4 * 32,
        "float": 4 * 32 * 3,  # two FMUL, FADD
        "shared loads": 4 * 32,
        "loads": 4,
        "stores": 4,
    }
    assert (got.asked("special"), got.asked("float"), got.asked(ISSUED)) == (100, 0, 108)


def test_roles_with_loops_of_their_own_make_one_tile():
    apart = model("apart")
    inner, copies = most(apart, "MUFU"), most(apart, "LDG")
    tile = Tile("32 tokens", (inner.parent, copies), {}, memory_bytes=512)
    plan = Plan({inner.parent: 7, inner: 32, copies: 7}, ((4, inner.parent), (4, copies)), tile=tile)
    got = counts(apart, plan, 256).always
    assert (got["special"], got["loads"], got["stores"], got[ISSUED]) == (128, 4, 4, 4 * (16 + 32 * 13 + 13))


def test_what_some_tiles_run_is_told_apart():
    nested = model("nested")
    outer, inner = nested.loops
    first, last = 0xD0, 0x200
    tile = Tile("a tile", (outer,), {}, 256, {"first": frozenset({first}), "rest": frozenset({0x160, last})})
    got = counts(nested, Plan({inner: 10}, weights={first: 0.25, last: 0.5}, tile=tile), 64)
    assert +got.always == {ISSUED: 2 * 10 * 8, "float": 2 * 10, "shared loads": 2 * 10}
    assert got.sometimes["first"][0] == 0.25 and got.sometimes["rest"][0] == 0.75
    assert got.sometimes["first"][1][ISSUED] == 2 * 9 and got.sometimes["first"][1]["loads"] == 2
    assert got.sometimes["rest"][1][ISSUED] == 2 * 6 and got.sometimes["rest"][1]["shared loads"] == 0


def test_the_whole_kernel_can_be_a_tile():
    nested = model("nested")
    got = counts(nested, Plan(dict.fromkeys(nested.loops, 0.0), tile=Tile("a row", (None,), {}, 4)), 64).always
    assert (got[ISSUED], got["stores"]) == (2 * 18, 2)


def test_classes_are_checked_and_disjoint():
    with pytest.raises(ValueError, match=r"no class of instructions is called \['mufu'\]"):
        Tile("a tile", (None,), {"mufu": 1.0}, 0)
    bases = [base for kind in CLASSES.values() for base in kind]
    assert len(bases) == len(set(bases))


def test_padding_loads_nothing():
    padding = replace(instruction("LDS", "RZ, [RZ]"), predicate="!PT")
    assert +Counter(tally([(padding, 1.0)], H100, Assumptions()).pipes) == {"issue": 1}
    nested = model("nested")
    nested.kernel.instructions[0] = padding
    tile = Tile("a row", (None,), {}, 4)
    got = counts(nested, Plan(dict.fromkeys(nested.loops, 0.0), tile=tile), 32).always
    assert (got[ISSUED], got["shared loads"]) == (18, 0)


def test_blocks_that_lead_into_a_loop():
    nested = model("nested")
    outer, inner = nested.loops
    assert enters(nested, inner) == {0x160} and enters(nested, outer) == {0x60}
    assert blocks_with(nested, outer, "BAR") == {0xD0, 0x200} and blocks_with(nested, outer, "FFMA") == set()


def test_what_the_mathematics_asks_for_by_hand():
    """Of the layer's shapes, from kernels that have nothing of what a plan looks for but the loops' opcodes."""
    loops = model("apart")
    for op, special, tensor, memory in (
        ("attention", 130, 384, 64 * 192 * 2),
        ("selective_scan_sm90", 608, 16, 10240),
    ):
        tile = workloads(op)[0].plan(loops).tile
        assert tile is not None
        assert (tile.asked["special"], tile.asked["tensor"], tile.memory_bytes) == (special, tensor, memory)
    # Four rows of 1600, 32 of 100: two squares a pair of elements, one weight a block.
    for (special, floats, loads, memory), workload in zip(
        ((4, 600, 31.25, 25600), (8, 300, 12.890625, 12800)), workloads("rms_norm")[:2], strict=True
    ):
        tile = workload.plan(loops).tile
        assert tile is not None
        assert (tile.asked["special"], tile.asked["float"], tile.asked["loads"]) == (special, floats, loads)
        assert tile.memory_bytes == memory


def test_code_of_one_branch():
    apart = model("apart")
    inner, copies = most(apart, "MUFU"), most(apart, "LDG")
    blocks = own_code(apart, copies, inner)
    assert {apart.flow.address(block) for block in blocks} == {0x2C0, 0x2F0, 0x350, 0x420}
    plan = without(apart, blocks)
    assert plan.trips == {copies: 0.0} and set(plan.weights) == {0x2C0, 0x2F0, 0x350, 0x420}
    assert set(plan.weights.values()) == {0.0}


def update_kernel(parameter: list[str], other: list[str]) -> KernelModel:
    """As the update ops' kernels are built: padding's zeros, two kinds of a parameter, a loop over tokens."""
    code = [
        ("ISETP", ""), ("BRA", "zeros"), ("BRA", "other"), *((opcode, "") for opcode in parameter), ("BRA", "begin"),
        ("LABEL", "other"), *((opcode, "") for opcode in other), ("LABEL", "begin"), ("MOV", ""),
        ("LABEL", "token"), ("FFMA", ""), ("MUFU.EX2", ""), ("BRA", "token"), ("EXIT", ""),
        ("LABEL", "zeros"), ("STG.E", ""), ("BRA", "zeros"), ("EXIT", ""),
    ]  # fmt: skip
    at, labels, instructions = 0, {}, []
    for opcode, name in code:
        if opcode == "LABEL":
            labels[name] = at
        else:
            at += 16
    at = 0
    for opcode, name in code:
        if opcode != "LABEL":
            predicate = "P0" if name in ("zeros", "other", "token") else None
            target = labels.get(name) if opcode == "BRA" else None
            instructions.append(Instruction(at, predicate, opcode, "", target, 1, NO_BARRIER, NO_BARRIER, 0))
            at += 16
    return KernelModel(Kernel("update", 90, 32, instructions=instructions))


def test_updates_leave_out_padding_and_the_other_kind_of_parameters():
    # Float32 taps are loaded without a PRMT, rates in the inputs' type with one.
    conv = update_kernel(["LDG.E.128"], ["LDG.E.128", "PRMT"])
    state = update_kernel(["LDG.E.64", "PRMT"], ["LDG.E.128"])
    for op, kernel in (("causal_conv1d_update", conv), ("selective_state_update", state)):
        plan = workloads(op)[0].plan(kernel)
        token, zeros = most(kernel, "MUFU"), most(kernel, "STG")
        assert plan.trips.get(token, 1.0) == 1 and plan.trips[zeros] == 0
        other_kind = kernel.flow.address(2)
        assert plan.weights.pop(other_kind) == 0 and kernel.code(2)[0].opcode.startswith("LDG")
        assert set(plan.weights.values()) == {0.0}
        assert {kernel.flow.address(block) for block in zeros.blocks} <= set(plan.weights)
        assert not any(i.opcode.startswith(("LDG", "FFMA")) for block in kernel.flow.reachable
                       if kernel.flow.address(block) in plan.weights for i in kernel.code(block))  # fmt: skip
        assert plan.tile is not None
    # 512 channels: SiLU's two; x, three inputs, four taps and a bias in, the output and three inputs out.
    asked = workloads("causal_conv1d_update")[0].plan(conv).tile.asked
    assert (asked["special"], asked["float"], asked["loads"], asked["stores"]) == (32, 112, 18, 8)
    # 64 channels of 16 states: 1024 decays, softplus and gate.
    asked = workloads("selective_state_update")[0].plan(state).tile.asked
    assert (asked["special"], asked["float"], asked["stores"]) == (38, 162, 8.25)
