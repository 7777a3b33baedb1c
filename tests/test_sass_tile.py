"""What tools/sass_model/tile.py counts in a round of a kernel's loop, and what the kernels' descriptions ask for."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from test_sass_model import H100, instruction, model

from tools.sass_model.bounds import tally
from tools.sass_model.kernels import Plan, Tile, blocks_with, enters, most
from tools.sass_model.kernels.attention import WORKLOADS as ATTENTION
from tools.sass_model.kernels.selective_scan_sm90 import WORKLOADS as SCAN
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
    for workload, special, tensor, memory in ((ATTENTION[0], 130, 384, 64 * 192 * 2), (SCAN[0], 608, 16, 10240)):
        tile = workload.plan(loops).tile
        assert tile is not None
        assert (tile.asked["special"], tile.asked["tensor"], tile.memory_bytes) == (special, tensor, memory)
