"""The emulator finds every kind of fault that it is there for, and says nothing where there is none.

The kernels are those of tests/emulator/faults. CI runs them in all modes.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from emulator import client
from emulator.client import MODES, Client, EmulationError
from emulator.shipped import Shipped

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.emulated

ALL = frozenset(MODES)
LATE = ALL - {"eager"}
WRONG_VALUE = None

# Fault: what finds it, as pairs of modes and the report (a regular expression), or WRONG_VALUE; the first that fits counts.
FAULTS = {
    "missing_barrier": [
        ({"ascending", "descending", "random"}, WRONG_VALUE),
        ({"races"}, "data race on shared memory"),
    ],
    "missing_barrier_before_reuse": [({"ascending", "descending"}, WRONG_VALUE), ({"races"}, "data race on shared")],
    "barrier_that_some_skip": [(ALL, r"deadlock.*32 threads.*wait in __syncthreads at .*barriers\.cu:\d+")],
    "barrier_that_some_lanes_skip": [(ALL, "deadlock.*wait in __syncthreads")],
    "return_before_barrier": [(ALL, "deadlock.*wait in __syncthreads.*1 of 64 threads have returned")],
    "barriers_at_two_places": [(ALL, r"divergent __syncthreads: at .*barriers\.cu:\d+")],
    "named_barrier_of_another_count": [(ALL, "barrier 1 completes with (64|96) threads")],
    "arrival_that_never_comes": [(ALL, "deadlock.*wait in bar.sync")],
    "consumer_that_does_not_wait": [({"ascending"}, WRONG_VALUE), ({"races"}, "data race on shared memory")],
    "store_after_arrival": [({"races"}, "data race on shared memory")],
    "arrival_twice": [(ALL, "this warp has arrived there already")],
    "missing_syncwarp": [({"ascending", "descending"}, WRONG_VALUE), ({"races"}, "data race on shared memory")],
    "shuffle_instead_of_syncwarp": [({"races"}, "data race on shared memory")],
    "shuffle_under_divergence": [(ALL, "deadlock.*wait in __shfl_xor_sync|lanes that have returned")],
    "mask_of_lanes_that_returned": [(ALL, "lanes that have returned|deadlock.*wait in __shfl_xor_sync")],
    "shuffle_from_outside_the_mask": [(ALL, "reads lane 16, which is not one of them")],
    "mask_without_the_caller": [(ALL, "leaves out the calling lane")],
    "lanes_in_two_reductions": [(ALL, "divergent warp: lane .*warps.cu")],
    "off_by_one": [(ALL, WRONG_VALUE)],
    "matrix_rows_in_the_same_banks": [(ALL, "load_matrices: bank conflict of the rows of lanes 0 and 1")],
    "global_read_out_of_bounds": [
        ({"sanitized"}, r"AddressSanitizer.*memory\.cu:\d+.*in global_read_out_of_bounds<true>")
    ],
    "pack_read_out_of_bounds": [({"sanitized"}, "AddressSanitizer")],
    "global_read_before_the_beginning": [({"sanitized"}, "AddressSanitizer")],
    "global_store_out_of_bounds": [({"sanitized"}, "AddressSanitizer"), (ALL, "bytes behind the end|AddressSanitizer")],
    "store_to_an_input": [(ALL, "changed its input")],
    "shared_store_behind_the_end": [(ALL, "shared memory|AddressSanitizer")],
    "shared_read_behind_the_end": [({"sanitized"}, "AddressSanitizer"), ({"races"}, "behind the end of an array")],
    "carved_store_behind_the_end": [(ALL, "shared memory|AddressSanitizer")],
    "dynamic_store_behind_the_end": [(ALL, "shared memory|AddressSanitizer")],
    "misaligned_pack_load": [(ALL, "load: the address 0x.* is not aligned to its 16 bytes")],
    "misaligned_pack_store": [(ALL, "store: the address 0x.* is not aligned to its 16 bytes")],
    "misaligned_reinterpret_cast": [({"sanitized"}, "misaligned address")],
    "uninitialised_shared_memory": [(ALL, WRONG_VALUE)],
    "result_not_written": [(ALL, WRONG_VALUE)],
    "null_pointer": [(ALL, "(Segmentation fault|AddressSanitizer|null pointer).*in null_pointer<true>, block")],
    "two_blocks_write_a_cell": [({"races"}, "data race on global memory.*by a thread of another block")],
    "block_reads_what_another_writes": [({"races"}, "data race on global memory.*by a thread of another block")],
    "threads_write_a_shared_cell": [({"races"}, "data race on shared memory.*writes after a write")],
    "store_beside_atomics": [({"races"}, "data race on shared memory")],
    "global_cells_of_other_threads": [({"races"}, "data race on global memory.*by thread number")],
    "missing_wait_for_blocks": [
        ({"descending"}, WRONG_VALUE),
        ({"races"}, "data race on global memory.*another block"),
    ],
    "count_that_never_comes": [(ALL, r"deadlock: no block can go on.*grid\.cu:\d+ for 1 blocks, 0 have come")],
    "read_before_wait_for_blocks": [({"descending"}, WRONG_VALUE), ({"races"}, "data race on global memory.*another")],
    "count_without_barrier": [({"races"}, "data race on global memory.*another block")],
    "wait_for_blocks_without_barrier": [({"descending"}, WRONG_VALUE), ({"races"}, "data race on global memory")],
    "load_constant_of_a_result": [({"races"}, "load_constant of global memory .* that the kernel itself writes")],
    "wait_for_a_later_block": [(ALL, r"block \(0, 0, 0\).* waits for 1 blocks, of which 0 stand before it")],
    "wait_for_too_few_blocks": [({"races"}, "data race on global memory.*another block")],
    "join_before_all_have_come": [(ALL - {"races"}, WRONG_VALUE), ({"races"}, "data race on global memory")],
    "read_before_wait_for_previous_grid": [({"races"}, "reads global memory .* before wait_for_previous_grid")],
    "write_before_wait_for_previous_grid": [({"races"}, "writes global memory .* before wait_for_previous_grid")],
    "load_constant_behind_wait_for_previous_grid": [({"races"}, "load_constant of global memory .* grid before")],
    "next_grid_started_before_the_wait": [({"races"}, "reads global memory .* before wait_for_previous_grid")],
    "grid_beside_another_that_does_not_wait_to_end": [
        ({"races"}, "reads global memory .* beside the previous one, which has ended without waiting for it")
    ],
    "input_read_before_wait_for_previous_grid": [({"races"}, "reads global memory .* before wait_for_previous_grid")],
    "copy_behind_the_wait_of_a_warp": [({"races"}, "(reads|writes) global memory .* before wait_for_previous_grid")],
    "copy_not_waited_for": [(LATE, WRONG_VALUE)],
    "wait_one_group_too_lax": [(LATE, WRONG_VALUE)],
    "copy_not_committed": [(LATE, WRONG_VALUE)],
    "copies_of_others_without_barrier": [
        ({"ascending", "descending"}, WRONG_VALUE),
        ({"races"}, "data race on shared"),
    ],
    "stage_refilled_too_early": [({"ascending", "eager"}, WRONG_VALUE), ({"races"}, "data race on shared memory")],
    "return_with_copy_under_way": [(ALL, "returns while its cp.async copies are under way")],
    "copy_from_out_of_bounds": [({"sanitized"}, "AddressSanitizer"), (ALL - {"sanitized"}, WRONG_VALUE)],
    "misaligned_copy": [(ALL, "cp.async to shared memory: the address 0x.* is not aligned to its 16 bytes")],
    "load_not_waited_for": [({"races"}, "data race on shared memory")],
    "wait_for_the_other_phase": [({"ascending"}, "deadlock.*wait in mbarrier_wait")],
    "load_of_other_bytes_than_expected": [(ALL, "has had its 1 arrivals|deadlock.*wait in mbarrier_wait")],
    "mbarrier_without_fence": [(ALL, "initialised without fence.mbarrier_init")],
    "mbarrier_not_initialised": [(ALL, "the mbarrier at 0x.* is not initialised")],
    "slot_refilled_too_early": [(LATE - {"random"}, "has had its 1 arrivals|data race on shared memory")],
    "return_with_load_under_way": [(LATE, "TMA loads are under way")],
    "load_over_a_store_without_proxy_fence": [({"races"}, "a TMA load overwrites .*without fence.proxy.async")],
    "product_not_waited_for": [(ALL, WRONG_VALUE)],
    "product_without_fence": [(ALL, "no wgmma_fence names its")],
    "product_of_a_store_without_proxy_fence": [({"races"}, "wgmma reads .*without fence.proxy.async")],
    "operand_changed_under_way": [(LATE - {"random"}, WRONG_VALUE)],
    "sums_written_under_way": [(ALL, "accumulators have been written before the wait")],
    "product_not_committed": [(ALL, WRONG_VALUE)],
    "product_of_two_tiles": [(ALL, "name different tiles")],
    "product_that_a_warp_skips": [(ALL, "deadlock.*wait in wgmma")],
    "more_registers_than_there_are": [(ALL, "deadlock.*wait in setmaxnreg.inc")],
    "registers_counted_from_two_numbers": [(ALL, "setmaxnreg.*where the block began with")],
    "copy_to_global_memory": [(ALL, "cp.async: the destination 0x.* is not in shared memory")],
}


def run_fault(mode: str, name: str, planted: bool) -> bool:
    """Whether the results are right."""
    arguments = [("name", name), ("planted", planted), ("in", Shipped.contiguous(np.arange(64, dtype=np.float32)))]
    (out, expected), _ = Client(MODES[mode]).run("run_fault", arguments, set())
    return out.memory == expected.memory


def pytest_generate_tests(metafunc):
    """The faults that each mode of --emulator-mode must find, with what finds them."""
    if "found_by" not in metafunc.fixturenames:
        return
    cases = [
        pytest.param(mode, name, next(report for modes, report in reports if mode in modes), id=f"{mode}-{name}")
        for mode in metafunc.config.getoption("--emulator-mode")
        for name, reports in FAULTS.items()
        if any(mode in modes for modes, _ in reports)
    ]
    metafunc.parametrize("mode,name,found_by", cases)


@pytest.mark.parametrize("name", FAULTS)
def test_sound_kernel_passes(emulator_mode, name):
    assert run_fault(emulator_mode, name, planted=False)


def test_planted_fault_is_found(mode, name, found_by):
    if found_by is WRONG_VALUE:
        assert not run_fault(mode, name, planted=True)
    else:
        with pytest.raises(EmulationError, match=f"(?s){found_by}"):
            run_fault(mode, name, planted=True)


def test_every_fault_is_named_here(emulator_mode):
    (names,), _ = Client(MODES[emulator_mode]).run("fault_names", [], set())
    assert sorted(names) == sorted([*FAULTS, "endless_loop"])


def test_every_kernel_file_is_emulated(emulator_mode):
    files = {file.stem.removesuffix("_sm90") for file in (ROOT / "csrc" / "cuda").glob("*.cu")}
    assert files <= set(Client(MODES[emulator_mode]).ops)


def test_report_names_kernel_block_thread_and_source_lines(emulator_mode):
    with pytest.raises(EmulationError) as report:
        run_fault(emulator_mode, "misaligned_pack_load", planted=True)
    text = str(report.value)
    assert "misaligned_pack_load<true>, block (0, 0, 0), thread (" in text
    assert re.search(r"\n    csrc/cuda/primitives/memory\.cuh:\d+ in load<4, float>\n", text)
    assert re.search(r"\n    tests/emulator/faults/memory\.cu:\d+ in misaligned_pack_load<true>", text)


def test_endless_loop_is_ended(emulator_mode, monkeypatch):
    assert run_fault(emulator_mode, "endless_loop", planted=False)
    monkeypatch.setattr(client, "CASE_SECONDS", 1)
    with pytest.raises(EmulationError, match="has not ended after 1 s"):
        run_fault(emulator_mode, "endless_loop", planted=True)


def test_crash_costs_only_its_own_case(emulator_mode):
    with pytest.raises(EmulationError):
        run_fault(emulator_mode, "null_pointer", planted=True)
    assert run_fault(emulator_mode, "missing_barrier", planted=False)
