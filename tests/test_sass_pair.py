"""Two launches side by side in the static model, on kernels of golden/sass/loops.cu."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tools.sass_model import pair as pair_model
from tools.sass_model.disassembly import parse
from tools.sass_model.pair import Side, batched, blocks_together, pair, table
from tools.sass_model.predict import KernelModel, Launch, predict

GOLDEN = Path(__file__).parent / "golden" / "sass"


def side(registers=12, **launch):
    """The kernel `nested`, which has 256 bytes of shared memory."""
    kernels = parse((GOLDEN / "loops.sass").read_text(), (GOLDEN / "loops.resources").read_text())
    kernel = next(k for k in kernels if k.name == "nested")
    return Side(KernelModel(replace(kernel, registers=registers)), Launch(**launch))


@pytest.mark.parametrize(
    "first, second, expected",
    [
        pytest.param({"threads": 1024}, {"threads": 512}, ((0, 4), (1, 2), (2, 0)), id="warps"),
        # 228 KB: two of 100 KB and 256 bytes, each with the driver's 1024
        pytest.param({"threads": 1024}, {"threads": 512, "shared": 102400}, ((1, 2), (2, 0)), id="shared"),
        pytest.param({"threads": 32}, {"threads": 32}, tuple((a, 32 - a) for a in range(33)), id="blocks"),
    ],
)
def test_blocks_of_both_on_an_sm(first, second, expected):
    assert blocks_together(side(**first), side(**second)) == expected


def test_blocks_by_registers():
    """255 registers: 8192 of a sub-partition's 16384 for each of a block's four warps; 118: 3840 for each of eight."""
    wide, narrow = side(registers=255, threads=128), side(registers=118, threads=256)
    assert blocks_together(wide, narrow) == ((0, 2), (1, 1), (2, 0))


def test_pipes_add_up():
    one = side(threads=256, blocks=132 * 3, trips={"L0": 10})
    alone, both = predict(one.model, one.launch), pair(one, batched(one, 2))
    assert both.bound_us == pytest.approx(3 * alone.even_us)
    assert both.binds == alone.binds
    assert both.serial_bound_us == pytest.approx(3 * alone.bound_us)
    assert both.serial_simulated_us == pytest.approx(both.first_simulated_us + both.second_simulated_us)
    assert both.first_simulated_us == pytest.approx(alone.simulated_us)


def test_no_less_than_either_alone():
    """One block is on one SM, however many others are idle."""
    one = side(threads=256, blocks=1, trips={"L0": 10})
    both = pair(one, one)
    assert both.bound_us == pytest.approx(predict(one.model, one.launch).bound_us)
    assert both.binds == "the longer one alone"


def test_bytes_add_up():
    one = side(threads=256, blocks=132, device_bytes=3e9)
    both = pair(one, one)
    assert (both.bound_us, both.binds) == (pytest.approx(2000), "bytes")


def test_two_that_do_not_fit_an_sm_together_are_refused(monkeypatch):
    sides = {"attention_sm90": side(registers=112, threads=384), "selective_scan_sm90": side(registers=88, threads=256)}
    monkeypatch.setattr(pair_model, "described", lambda cubin_of, op, workload: sides[op])
    assert pair_model.problems(None) == []
    sides["selective_scan_sm90"] = side(registers=96, threads=256)
    (problem,) = pair_model.problems(None)
    assert problem.endswith("it holds ((0, 2), (1, 0))")


def test_table():
    one = side(threads=1024, blocks=132, device_bytes=3e9)
    *_, row = table([("twice", pair(one, one))])
    assert row.startswith("| twice | (0, 2) or (1, 1) or (2, 0) | 2000 (bytes) |")
