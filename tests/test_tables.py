"""bench/tables.py: what README.md and docs/ say was measured is what bench/results/ has."""

from __future__ import annotations

import json

import pytest

from bench import tables

CPU = {"device": "a CPU, 2 cores", "threads": 2, "kernels": "cpu avx2", "torch": "2.13.0"}
GPU = CPU | {
    "device": "NVIDIA H100", "driver": "580.1", "max_clock": "1980 MHz", "power_limit": "700.00 W", "kernels": "cuda",
    "gemm_gflops": 798000.0, "exp_g_per_s": 3600.0, "bandwidth_gb_per_s": 3012.0,
}  # fmt: skip
LAYER = {
    "implementation": "hymba_ops", "layer": "sliding", "dtype": "bfloat16", "batch": 1, "seq_len": 8192, "ms": 1.9274,
    "ms_min": 1.9, "ms_max": 2.004, "tokens_per_s": 4250000.0, "ratio_to_best_plain": None, "floor_ms": 1.5,
    "ratio_to_floor": 1.285, "peak_bytes": 3 << 20,
}  # fmt: skip


@pytest.fixture
def page(tmp_path):
    """page(kind, result...) -> the lines of a table of these results."""

    def render(kind, *results):
        for number, result in enumerate(results):
            (tmp_path / f"card_{number}.json").write_text(json.dumps(result))
        return tables.renew(
            f"before\n<!-- results: {kind} card_* -->\nold\n<!-- end -->\nbehind\n", tmp_path
        ).splitlines()

    return render


def test_the_pages_are_up_to_date(capsys):
    assert tables.main(["--check"]) == 0, capsys.readouterr().err


def test_a_page_that_is_not_is_refused_and_renewed(tmp_path, monkeypatch, capsys):
    (tmp_path / "one.json").write_text(json.dumps({"machine": CPU, "rows": [LAYER]}))
    path = tmp_path / "page.md"
    path.write_text("text\n<!-- results: layer one -->\n<!-- end -->\n")
    monkeypatch.setattr(tables, "PAGES", (path,))
    monkeypatch.setattr(tables.renew, "__defaults__", (tmp_path,))
    assert tables.main(["--check"]) == 1
    assert capsys.readouterr().err == "tables: page.md is out of date: run bench/tables.py --write\n"
    assert tables.main(["--write"]) == tables.main(["--check"]) == 0
    assert path.read_text().startswith(
        "text\n<!-- results: layer one -->\na CPU, 2 cores, 2 threads, kernels: cpu avx2"
    )
    assert tables.main([]) == 0 and "| sliding | bfloat16 | 1, 8192 |" in capsys.readouterr().out


def test_layers(page):
    lines = page("layer", {"machine": GPU, "commit": "0123456789abcdef", "rows": [LAYER], "not_run": [
        {"layer": "sliding", "part": "layer", "implementation": "flex", "reason": "no compiler"},
    ]})  # fmt: skip
    assert lines[0] == "before" and lines[-1] == "behind" and "old" not in lines
    assert lines[2] == (
        "NVIDIA H100, driver 580.1, 1980 MHz, 700.00 W, kernels: cuda, torch 2.13.0, ceilings 798000 GFLOP/s, 3600 "
        "Gexp/s, 3012 GB/s, commit 0123456789."
    )
    assert lines[6] == (
        "| sliding | bfloat16 | 1, 8192 | hymba_ops | 1.93 (1.90 to 2.00) | 4250000 | - | 1.50 | 1.28 | 3.00 |"
    )
    assert lines[7:9] == ["", "Could not run: flex (layer): no compiler"]


def test_each_machine_is_named_once(page):
    lines = page("layer", *({"machine": machine, "rows": [LAYER]} for machine in (CPU, CPU, GPU)))
    assert [line[:16] for line in lines[2:5]] == ["- a CPU, 2 cores", "- NVIDIA H100, d", ""]
    assert lines[5].startswith("| machine | layer |")
    assert [line.split(" | ")[0] for line in lines[7:10]] == ["| cpu avx2", "| cpu avx2", "| H100"]


def test_parts(page):
    part = {"layer": "sliding", "part": "scan", "implementation": "hymba_ops", "ms": 0.25, "floor_ms": 0.2}
    others = [part | {"implementation": name, "ms": ms} for name, ms in (("plain", 5.0), ("mamba_ssm", 1.0))]
    lines = page("parts", {"machine": CPU, "rows": [LAYER], "parts": [part, *others]})
    assert lines[6] == "| sliding | bfloat16 | 1, 8192 | scan | 0.25 | 5.00 | 20.0 | 0.2 | 1.25 | mamba_ssm 1.00 |"


def test_memory(page):
    row = {"layer": "sliding", "dtype": "float32", "batch": 1, "length": 8320, "implementation": "plain",
           "growth_bytes": 100 << 20, "first_call_bytes": 1 << 20, "multiple": 7.27}  # fmt: skip
    assert page("memory", {"machine": CPU, "memory": [row]})[6] == (
        "| sliding | float32 | 1, 8320 | plain | 100 | 7.27 | 1.00 |"
    )


def sweep_row(op, dtype, ratio, **more):
    return {"op": op, "layer": "", "dtype": dtype, "batch": 1, "seq_len": 1, "ms": 2.0, "ratio": ratio} | more


def test_ratios(page):
    rows = [sweep_row("scan", "float32", 2.0), sweep_row("scan", "float32", 3.5), sweep_row("scan", "bfloat16", 11.0),
            sweep_row("conv", "float32", 0.9)]  # fmt: skip
    lines = page("ratios", {"machine": CPU, "rows": rows, "slower": rows[-1:]})
    assert lines[4] == "4 cases, slower than the best plain form in 1."
    assert lines[6:10] == [
        "| op | float32 | bfloat16 | cases |",
        "| --- | --- | --- | --- |",
        "| scan | 2.00 to 3.50 | 11.0 to 11.0 | 3 |",
        "| conv | 0.9 to 0.9 | - | 1 |",
    ]


def test_op_times(page):
    row = sweep_row("attention", "bfloat16", 3.0, floor_ms=1.6, ratio_to_floor=1.25, peers_ms={"flex": 4.0},
                    peers_not_run={"sdpa": "no memory"})  # fmt: skip
    assert page("op_times", {"machine": GPU, "rows": [row]})[6].endswith(
        "| 2.00 | 3.00 | 1.60 | 1.25 | flex 4.00, sdpa could not run: no memory |"
    )


def test_decode_steps(page):
    row = LAYER | {"layer": "model", "context": 2048, "us_per_layer": 38.0, "bytes": 3.17e9, "share_of_copy": 0.854}
    plain = row | {"implementation": "plain", "ms": 4.0}
    refused = {"layer": "model", "batch": 1, "context": 2048, "implementation": "sdpa", "reason": "no memory"}
    lines = page("decode", {"machine": GPU, "rows": [plain, row], "not_run": [refused]})
    assert lines[6:10] == [
        "| model | bfloat16 | 1 | 2048 | 1.93 (1.90 to 2.00) | 38.0 | 4250000 | - | 3170 | 85% | 1.50 | 1.28 | plain 4.00 |",
        "",
        "Could not run: sdpa (model, batch 1, context 2048): no memory",
        "<!-- end -->",
    ]


@pytest.mark.parametrize(
    "value,text",
    [(1234.5, "1234"), (99.97, "100"), (12.345, "12.3"), (9.996, "10.0"), (1.0, "1.00"), (0.01234, "0.0123")],
)
def test_numbers(value, text):
    assert tables.number(value) == text


def test_what_is_not_measured_yet(page):
    assert page("layer")[2] == "Not measured yet: bench/results/ has no card_*."


@pytest.mark.parametrize(
    "marker,reason",
    [
        ("layers card_*", "no table is called layers"),
        ("layer nowhere", "no .*/nowhere.json"),
        ("memory card_0", "card_0 has no 'memory' for a table memory"),
    ],
)
def test_markers_that_ask_for_what_is_not_there(page, tmp_path, marker, reason):
    page("layer", {"machine": CPU, "rows": [LAYER]})
    with pytest.raises(tables.Unusable, match=reason):
        tables.renew(f"<!-- results: {marker} -->\n<!-- end -->", tmp_path)
