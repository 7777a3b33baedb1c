"""The tests find what may go wrong between the blocks and launches of a decode step: as test_planted_faults.py."""

from __future__ import annotations

import functools

import pytest
import test_decode_branches
import test_gated_mlp
import test_norm_project
import torch
from test_decode_branches import fresh, same
from test_planted_faults import Fault, fault

from emulator.client import MODES, EmulationError
from emulator.ops import EmulatedOps
from emulator.planted import build_planted

pytestmark = pytest.mark.emulated

FEW, NORM, MLP, SPLITS, DECODE = (
    "linear_few_rows.cuh", "few_rows_norm.cuh", "gated_mlp.cu", "decode_attention_splits.cuh", "decode_attention_mma.cuh",
)  # fmt: skip
SLICES, CHANNELS = "mamba_slices.cuh", "mamba_channels.cuh"
RACE = "data race on global memory"
EARLY = "before wait_for_previous_grid"

AFTER_WAIT = "    wait_for_previous_grid();\n    start_next_grid();\n"
BEFORE_WAIT = "    start_next_grid();\n    wait_for_previous_grid();\n"

# By unit: the source that is compiled anew.
FAULTS = {
    "gated_mlp": {
        "down does not wait for gate and up": fault(
            MLP, "    wait_for_blocks(&p.counters[0], inner_blocks);\n", "", mode="races", report=RACE, in_ci=True
        ),
        "down waits for one block too few": fault(
            MLP, "wait_for_blocks(&p.counters[0], inner_blocks)", "wait_for_blocks(&p.counters[0], inner_blocks - 1)",
            mode="races", report=RACE,
        ),
        "counters are not set back": fault(MLP, "p.counters[0] = p.counters[1] = 0", "p.counters[1] = 0"),
        "counters set back too early": fault(MLP, "gridDim.x - inner_blocks - 1)", "gridDim.x - inner_blocks - 2)"),
        "rows normed before the previous grid has ended": fault(
            MLP, "    wait_for_previous_grid();\n    rows.make();", "    rows.make();", mode="races", report=EARLY, in_ci=True
        ),
        "the residual read before the previous grid has ended": fault(
            MLP, "  wait_for_previous_grid();\n  if (threadIdx.x == 0) {", "  if (threadIdx.x == 0) {", mode="races", report="."
        ),
        "sums read before they are there": fault(
            FEW, "      add_products(operands, output);\n      __syncthreads();\n", "      add_products(operands, output);\n",
            mode="races", report="data race on shared",
        ),
        "sums of the next outputs too early": fault(
            FEW, "i % kTileOutputs, i / kTileOutputs);\n      __syncthreads();\n", "i % kTileOutputs, i / kTileOutputs);\n",
            mode="races", report="data race on shared",
        ),
    },
    "norm_project": {
        "squares read before they are there": fault(
            NORM, "    __syncthreads();\n    if (threadIdx.x < kBranches", "    if (threadIdx.x < kBranches",
            mode="races", report="data race on shared",
        ),
        "one span too few": fault(NORM, "span < tiles_.spans; ++span) sum", "span < tiles_.spans - 1; ++span) sum"),
        "a partial chunk left out": fault(FEW, "if (p_.inner % kChunk != 0 &&", "if (p_.inner % kChunk == -1 &&"),
        "a partial chunk by the wrong warp": fault(FEW, "chunks % kFewRowsWarps == warp()", "chunks % kFewRowsWarps != warp()"),
        "rows behind the last tile": fault(FEW, "  return p.rows > kTileRows ?", "  return p.rows > kTileRows + 4 ?"),
    },
    "decode_attention": {
        "a split not counted": fault(SPLITS, "static_cast<uint32_t>(used) - 1;", "static_cast<uint32_t>(used) - 2;"),
        "joined before all have come": fault(
            SPLITS, "last = count_block(counter) == static_cast<uint32_t>(used) - 1;",
            "last = count_block(counter) == static_cast<uint32_t>(used) / 2;",
        ),
        "counted before all is written": fault(
            SPLITS, "  HYMBA_SHARED(bool, last);\n  __syncthreads();\n", "  HYMBA_SHARED(bool, last);\n", mode="races", report=RACE
        ),
        "the counter not set back": fault(SPLITS, "    if (last) *counter = 0;", "    if (!last) *counter += 0;"),
        "no wait to begin by itself": fault(
            DECODE, "  if (!params.beside_previous) wait_for_previous_grid();\n", "", mode="races", report=EARLY, in_ci=True
        ),
    },
    "mamba_update": {
        "attention beside it may begin too early": Fault(
            ((SLICES, AFTER_WAIT, BEFORE_WAIT), (CHANNELS, AFTER_WAIT, BEFORE_WAIT)), mode="races", report=EARLY, in_ci=True
        ),
        "channels do not wait for the slices": fault(
            CHANNELS, "    if (threadIdx.x == 0) wait_for_blocks(", "    if (threadIdx.x > 9999) wait_for_blocks(", mode="races", report=RACE
        ),
    },
}  # fmt: skip


def cases(ops):
    """Results of a few calls that together reach everything, of sizes that the one kernels take."""
    args, kwargs = test_gated_mlp.make_inputs(3, 264, inner=520, dtype=torch.bfloat16)
    yield ops.gated_mlp(*args, **kwargs)
    for name in test_norm_project.OPS:
        for rows in (2, 11):
            yield getattr(ops, name)(*test_norm_project.make_inputs(name, rows, 776, outputs=200, dtype=torch.bfloat16))
    for lengths, n in (((400, 9), 2), ((150,), 1)):
        inputs = test_decode_branches.make_inputs(lengths, n, window=350, C=520)
        attention, mamba = fresh(*inputs)
        yield from ops.decode_branches(**attention, **mamba)
        attention, _ = fresh(*inputs)
        yield ops.decode_attention(**attention)


def results(mode: str, folder=None) -> list[torch.Tensor]:
    return list(cases(EmulatedOps(MODES[mode], folder)))


@functools.cache
def sound(mode: str) -> list[torch.Tensor]:
    return results(mode)


def pytest_generate_tests(metafunc):
    config = metafunc.config
    if "name" in metafunc.fixturenames:
        chosen = [
            (unit, name)
            for unit, faults in FAULTS.items()
            for name, planted in faults.items()
            if planted.mode in config.getoption("--emulator-mode")
            and (planted.in_ci or config.getoption("--all-faults"))
        ]
        metafunc.parametrize("unit,name", chosen)


def test_the_sound_kernels_give_the_same_bits_in_every_mode(emulator_mode):
    for ours, ascending in zip(sound(emulator_mode), sound("ascending"), strict=True):
        assert same(ours, ascending)


def test_planted_fault_is_found(unit, name, tmp_path):
    planted = FAULTS[unit][name]
    folder = build_planted(MODES[planted.mode].flavour, unit, planted.changes, tmp_path)
    if planted.report != ".":
        with pytest.raises(EmulationError, match=planted.report):
            results(planted.mode, folder)
        return
    try:
        found = any(not same(*pair) for pair in zip(results(planted.mode, folder), sound("ascending"), strict=True))
    except (EmulationError, AssertionError):  # counters that are not zero again are the latter
        found = True
    assert found
