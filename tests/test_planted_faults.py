"""The tests find what may go wrong in attention's kernel for Hopper: each fault is planted into a copy of its source.

A fault is found where the emulator reports it, or where results have other bits than the sound kernel's. CI runs some;

    python -m pytest -m emulated tests/test_planted_faults.py --all-faults --emulator-mode ascending,random,races

runs all of them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import pytest
import torch

from attention_cases import make_inputs
from emulator.client import MODES, EmulationError
from emulator.ops import EmulatedOps
from emulator.planted import build_planted
from kernel_cases import cu_seqlens, randn

pytestmark = pytest.mark.emulated

UNIT = "attention_sm90"
KERNEL, ROWS, PRODUCER, ITEMS, TILE, PLAN, LAUNCH = (
    f"{UNIT}{suffix}" for suffix in (".cuh", "_rows.cuh", "_producer.cuh", "_items.cuh", "_tile.cuh", "_plan.cuh", ".cu")
)  # fmt: skip


@dataclass(frozen=True)
class Fault:
    changes: tuple[tuple[str, str, str], ...]  # file, text, what stands there instead
    mode: str = "ascending"  # one that finds it
    report: str = "."  # the emulator's, where it reports something; else other bits
    in_ci: bool = False


def fault(file, old, new, **options):
    return Fault(((file, old, new),), **options)


WAIT_ALL = """      rows_.wait_all();
      give_back(shared_.empty + done);
      if (moved) rows_.rescale();
"""
V_WAIT = "      mbarrier_wait(shared_.v_full + v_.stage, v_.parity | (__float_as_uint(rows_.sums()) & zero));\n"

FAULTS = {
    # ---- barriers and waits ----
    "no wait for K": fault(
        KERNEL, "      mbarrier_wait(shared_.k_full + k_.stage, k_.parity);\n      rows_.fence_all", "      rows_.fence_all", in_ci=True
    ),
    "no wait for V": fault(KERNEL, V_WAIT, ""),
    "no wait for Q": fault(KERNEL, "      mbarrier_wait(shared_.q_full, q_parity);\n", "", mode="random"),
    "scores read before the wait": fault(KERNEL, "wait_scores<1>", "wait_scores<2>"),
    "probabilities overwritten under P V": fault(KERNEL, WAIT_ALL, "      rows_.round();\n" + WAIT_ALL, in_ci=True),
    "output rescaled under P V": fault(
        KERNEL, WAIT_ALL, "      if (moved) rows_.rescale();\n      rows_.wait_all();\n      give_back(shared_.empty + done);\n"
    ),
    "stage given back before P V is done": fault(
        KERNEL, "      rows_.wait_all();\n      give_back(shared_.empty + done);",
        "      give_back(shared_.empty + done);\n      rows_.wait_all();", mode="random", in_ci=True,
    ),
    "Q given back too early": fault(KERNEL, "    rows_.template wait_scores<0>();\n", "    give_back(shared_.q_empty);\n    rows_.template wait_scores<0>();\n"),
    "the producer waits for no stage": fault(PRODUCER, "    mbarrier_wait(shared_.empty + ring_.stage, ring_.parity);\n", ""),
    "the producer does not wait for Q's place": fault(PRODUCER, "        mbarrier_wait(shared_.q_empty, q_parity);\n", ""),
    "fewer bytes announced than come": fault(PRODUCER, "expect(full, kParts * ", "expect(full, "),
    "the ring's parity never turns": fault(TILE, "      parity ^= 1;\n", ""),
    "more registers than there are": fault(KERNEL, "Tile::kConsumerRegisters>()", "Tile::kConsumerRegisters + 8>()", report="setmaxnreg"),
    "a wait under a warp's condition": fault(
        KERNEL, WAIT_ALL, "      if (moved) rows_.wait_all();\n" + WAIT_ALL, report="divergent warpgroup", in_ci=True
    ),
    # ---- softmax ----
    "no rescaling": fault(KERNEL, "      if (moved) rows_.rescale();\n", ""),
    "rescaling by the other row's factor": fault(ROWS, "factor_[i / 2 % 2]", "factor_[i % 2]", in_ci=True),
    "a maximum that never moves": fault(ROWS, "largest[r] > max_[r] + growth_;", "largest[r] > max_[r] + growth_ && max_[r] == -INFINITY;"),
    "sums that are not rescaled": fault(ROWS, "      sum_[r] *= factor_[r];\n", ""),
    "scores far from zero treated as near": fault(ROWS, "kFar = 1 << 24", "kFar = INFINITY"),
    "scores far from zero forgotten": fault(ROWS, "    if (far_) subtract_origins();\n", ""),
    # ---- masks ----
    "diagonal off by one": fault(ROWS, "columns_to(min(position, last_counts) - first)", "columns_to(min(position - 1, last_counts) - first)"),
    "window off by one": fault(ROWS, "columns_to(position - window_ - 1 - first)", "columns_to(position - window_ - first)"),
    "keys behind the prefix count twice": fault(ROWS, "in_prefix ? num_meta_ - 1 : kMaxPosition", "kMaxPosition", in_ci=True),
    "the window's edge is not masked": fault(ROWS, "(in_prefix || high_row - window_ <= first);", "true;"),
    "a warp takes its first row's window for all": fault(ROWS, "high_row - window_ <= first", "low_row - window_ <= first"),
    "one tile too few": fault(ITEMS, "max((end - others + kKeys - 1) / kKeys, 0)", "max((end - others - 1) / kKeys, 0)"),
    "tiles begin where an item's window does": fault(
        ITEMS, "const int first = max(window_begin - num_meta, 0) / kKeys;\n", "const int first = max(window_begin - num_meta, 0);\n"
    ),
    # ---- places ----
    "results behind an item's queries": fault(ROWS, "if (query >= queries || chunk", "if (chunk"),
    "columns of V in the wrong order": fault(KERNEL, "wgmma_tile(shared.v, Tile::kKeys * kPartBytes)", "wgmma_tile(shared.v, Tile::kKeys * kPart)"),
    "the second half of K's columns": fault(ROWS, "keys + (part * kKeys * kPartBytes + step)", "keys + step"),
    "meta keys count as own ones": fault(PRODUCER, "item.k_row + key - static_cast<int>(p_.meta_len)", "item.k_row + key"),
    "a batch's first keys for all": fault(PRODUCER, "const int batch = meta ? 0 : item.batch;", "const int batch = 0;"),
    "an item left out": fault(ITEMS, "blocks - 1 - block", "max(blocks - 1 - block, 1)"),
    "rows of the results not synchronised": fault(
        ROWS, "    __syncwarp();\n    constexpr int kChunks", "    constexpr int kChunks", mode="races", report="data race on shared", in_ci=True
    ),
    # ---- ends of sequences, negative scales ----
    "values behind a sequence's end": fault(PRODUCER, "    clear_rows(values, max(item.keys - key, 0));\n", "", in_ci=True),
    "values cleared before they are there": fault(PRODUCER, "    mbarrier_wait(shared_.v_landed, landed_parity_);\n    landed_parity_ ^= 1;\n", ""),
    "cleared values without a proxy fence": fault(
        PRODUCER, "    async_proxy_fence();\n    __syncwarp();\n", "    __syncwarp();\n", mode="races", report="without fence.proxy.async", in_ci=True
    ),
    "cleared values announced by a lane that is ahead": fault(
        PRODUCER, "    async_proxy_fence();\n    __syncwarp();\n", "    async_proxy_fence();\n"
    ),
    "negated queries without a proxy fence": fault(
        KERNEL, "    async_proxy_fence();\n    barrier_sync", "    barrier_sync", mode="races", report="without fence.proxy.async"
    ),
    "negated queries without a barrier": fault(KERNEL, "    barrier_sync(1 + warpgroup_, kWarpgroup);\n", "", mode="races", report="without fence.proxy.async"),
    # ---- the list of packed sequences' items ----
    "a sequence's last queries have no item": fault(PLAN, "query >= seq.q_len", "query + room_ > seq.q_len"),
    "short items first": fault(PLAN, "(most - tiles) * kPlanBuckets / most", "(tiles - 1) * kPlanBuckets / most"),
    "places of the threads before": fault(PLAN, "int place = through - in_bucket + before;", "int place = through - in_bucket;"),
    "counts read before they are there": fault(
        PLAN, "++places[thread][bucket(item)];\n  __syncthreads();\n", "++places[thread][bucket(item)];\n", mode="races", report="data race"
    ),
}  # fmt: skip


def cases(ops):
    """Results of a few calls that together reach everything."""
    bf16 = torch.bfloat16
    shape = {"heads": (10, 2), "dims": (64, 128), "dtype": bf16}
    q, k, v = make_inputs(330, **shape)
    yield from ops.attention(q, k, v, window=90, num_meta=70, return_lse=True)
    yield ops.attention(q[:, :90].contiguous(), k, v, window=200, scale=-0.3)
    yield ops.attention(*(x * 1e16 for x in (q, k)), v, window=100)
    meta_k, meta_v = (randn(70, 2, dim, dtype=bf16, seed=dim) for dim in (64, 128))
    yield ops.attention(*make_inputs(60, 170, B=2, **shape), window=100, meta_k=meta_k, meta_v=meta_v)
    yield ops.attention(*make_inputs(90, **{**shape, "dims": (128, 128)}))
    # More tiles than the ring has stages, maxima that move in each of them.
    q, k, v = make_inputs(600, dims=(64, 128), dtype=bf16)
    growing = (k.abs() * torch.arange(1, 601)[:, None, None] / 40).to(bf16)
    yield from ops.attention(q.abs(), growing, v, return_lse=True)
    # Packed: NaN in another sequence, sequences without tokens.
    for x in (q, k, v):
        x[:, 290:340] = float("nan")
    lengths = 40, 250, *(0,) * 300, 50, 0, 100, 60
    yield ops.attention(q, k, v, window=90, num_meta=4, cu_seqlens=cu_seqlens(*lengths))
    yield ops.attention_sm90_items(q, k, v, window=90, num_meta=4, cu_seqlens=cu_seqlens(*lengths))


def results(mode: str, folder=None) -> list[torch.Tensor]:
    return list(cases(EmulatedOps(replace(MODES[mode], capability=90), folder)))


@functools.cache
def sound(mode: str) -> list[torch.Tensor]:
    return results(mode)


def same(left, right) -> bool:
    return torch.equal(left.view(torch.int16), right.view(torch.int16))


def pytest_generate_tests(metafunc):
    """Of the modes of --emulator-mode: faults that CI looks for, or with --all-faults all that the mode finds."""
    config = metafunc.config
    if "name" in metafunc.fixturenames:
        names = [
            name
            for name, planted in FAULTS.items()
            if planted.mode in config.getoption("--emulator-mode")
            and (planted.in_ci or config.getoption("--all-faults"))
        ]
        metafunc.parametrize("name", names)


def test_the_sound_kernel_gives_the_same_bits_in_every_mode(emulator_mode):
    for ours, ascending in zip(sound(emulator_mode), sound("ascending"), strict=True):
        assert same(ours, ascending)


def test_planted_fault_is_found(name, tmp_path):
    planted = FAULTS[name]
    folder = build_planted(MODES[planted.mode].flavour, UNIT, planted.changes, tmp_path)
    if planted.report != ".":
        with pytest.raises(EmulationError, match=planted.report):
            results(planted.mode, folder)
        return
    right = sound("ascending")
    try:
        found = any(not same(*pair) for pair in zip(results(planted.mode, folder), right, strict=True))
    except EmulationError:
        found = True
    assert found
