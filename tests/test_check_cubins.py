"""What tools/check_cubins.py and tools/cubins.py read, refuse and write."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tools import check_cubins, cubins, measured, tables
from tools.check_cubins import listed, make_row, renew
from tools.cubins import CompileError, LaunchLine, PtxasReport
from tools.sass_model.bounds import Occupancy
from tools.sass_model.disassembly import NO_BARRIER, Instruction, Kernel
from tools.sass_model.kernels import Case, Plan, Tile, Workload
from tools.sass_model.predict import KernelModel
from tools.tables import Row

PTXAS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z5firstv' for 'sm_80'
ptxas info    : Function properties for _Z5firstv
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Function properties for called
    16 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 31 registers, used 1 barriers, 8 bytes cumulative stack size, 64 bytes smem
ptxas info    : Compiling entry function '_Z6secondv' for 'sm_80'
ptxas info    : Function properties for _Z6secondv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 255 registers, 400 bytes cmem[0]
"""


def test_ptxas_reports():
    assert cubins.parse_ptxas(PTXAS) == [
        PtxasReport("_Z5firstv", registers=31, shared=64, stack=16, spills=16),
        PtxasReport("_Z6secondv", registers=255, shared=0, stack=0, spills=0),
    ]
    with pytest.raises(CompileError, match="cannot read"):
        cubins.parse_ptxas("ptxas info : Compiling entry function 'f' for 'sm_80'\n")


def test_serialised_products_are_refused():
    cubins.refuse_serialised(PTXAS, "a.cu")
    warning = (
        "ptxas info    : (C7512) Potential Performance Loss: wgmma.mma_async instructions are serialized due to "
        "insufficient register resources for the wgmma pipeline in the function 'k'\n"
    )
    with pytest.raises(CompileError, match=r"a\.cu: ptxas info.*C7512"):
        cubins.refuse_serialised(PTXAS + warning, "a.cu")


def test_launch_lines():
    text = """
// launch: scan_kernel<*, 64> threads 384, shared 86016
  // launch: scan_kernel<*> threads 256
// launches nothing
"""
    lines = cubins.launch_lines(text)
    assert lines == [LaunchLine("scan_kernel<*, 64>", 384, 86016), LaunchLine("scan_kernel<*>", 256, 0)]
    assert cubins.matching(lines, "scan_kernel<bfloat16, 64>") is lines[0]
    assert cubins.matching(lines, "scan_kernel<float, 32>") is lines[1]
    assert cubins.matching(lines, "carry_kernel<float>") is None
    with pytest.raises(CompileError, match="expected '// launch: <kernel> threads <n>"):
        cubins.launch_lines("// launch: scan_kernel, 256 threads\n")


def test_dynamic_shared_memory_is_seen_in_kernels_only():
    assert cubins.uses_dynamic_shared("void k() {\n  HYMBA_DYNAMIC_SHARED(bytes);\n}")
    assert not cubins.uses_dynamic_shared("//   HYMBA_DYNAMIC_SHARED(bytes);\n#define HYMBA_DYNAMIC_SHARED(name) x\n")


def test_sources_carry_their_headers():
    text = cubins.source_text(cubins.ROOT / "csrc" / "cuda" / "norm_average.cu")
    assert "norm_average_kernel" in text
    for source in cubins.sources():
        cubins.launch_lines(cubins.source_text(source))


def test_names_are_short():
    mangled = "_ZN5hymba4cuda12_GLOBAL__N_16kernelINS_8bfloat16ELb1ELi4EEEvPKf"
    assert cubins.demangle([mangled, "_Z1kv"]) == ["kernel<bfloat16, true, 4>", "k"]


CLEAN = PtxasReport("k", registers=64, shared=512, stack=0, spills=0)


def instruction(opcode: str) -> Instruction:
    return Instruction(0, None, opcode, "", None, 1, NO_BARRIER, NO_BARRIER, 0)


def row(report: PtxasReport = CLEAN, opcodes: tuple[str, ...] = (), line=None, bound: int | None = 256) -> Row:
    code = [instruction(opcode) for opcode in (*opcodes, "EXIT")]
    model = KernelModel(Kernel("k", 90, report.registers, report.shared, report.stack, code))
    return make_row("some_op", "k", "sm_90", report, model, line, bound)


def test_a_clean_kernel_passes():
    clean = row()
    assert clean.problems == [] and clean.threads == 256
    assert clean.occupancy == Occupancy(4, 32, "registers")
    assert row(line=LaunchLine("k", 128, 100 * 1024)).occupancy == Occupancy(2, 8, "shared memory")


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"report": replace(CLEAN, spills=4)}, "4 bytes spilled"),
        ({"report": replace(CLEAN, stack=16)}, "a stack frame of 16 bytes"),
        ({"opcodes": ("LDL.64", "STL", "LDS")}, "2 loads and stores of local memory"),
        ({"line": LaunchLine("k", 256, 228 * 1024)}, "no block of 256 threads fits an SM: shared memory"),
        ({"line": LaunchLine("k", 512, 0)}, "launched with 512 threads, __launch_bounds__ 256"),
    ],
)
def test_gates(changes, problem):
    assert problem in row(**changes).problems


def test_a_kernel_without_a_block_size_is_refused():
    with pytest.raises(CompileError, match="neither __launch_bounds__ nor a launch line"):
        row(bound=None)


PAGE = "# Title\n\n<!-- budgets: some_op -->\n<!-- end -->\n\nText.\n\n<!-- budgets: other_op -->\nold\n<!-- end -->\n"


def test_tables_between_markers():
    page = renew(PAGE, [row()], "13.0.88")
    assert "| `k` | 256 | 512 + 0 | - | 64; 4, 32 (registers) | - |" in page
    assert page.startswith("# Title\n\n<!-- budgets: some_op -->\nBy nvcc 13.0.88.\n")
    assert "\n\nText.\n\n" in page and "old" not in page
    assert renew(page, [row()], "13.0.88") == page


def test_a_page_has_what_models_say():
    page = "before\n<!-- model: some_model -->\n<!-- end -->\nbehind\n"
    page = renew(page, [], "13.0.88", {"some_model": ["| said |"]})
    assert page == "before\n<!-- model: some_model -->\nBy nvcc 13.0.88, predicted.\n\n| said |\n<!-- end -->\nbehind\n"
    assert listed(page, whole=True) == ["By nvcc 13.0.88, predicted.\n\n| said |\n"]


CALL = Case("some_op", "a launch", batch=2, length=500)


def described(plan):
    return Workload("k", CALL, blocks=132, device_bytes=3e6, plan=plan)


def test_predictions_table():
    launch = described(lambda _: Plan({}))
    kernel = KernelModel(Kernel("k", 90, 32, instructions=[instruction("FFMA")] * 100 + [instruction("EXIT")]))
    rows = [row()]
    for workload in (launch, replace(launch, broadcast_shared_loads=True)):
        rows[0].forecasts.append(check_cubins.forecast(kernel, workload, threads=512, shared=0))
    # 101 instructions of 16 warps on 4 sub-partitions; stall counts of 1, so issue binds the simulation too.
    bound = 101 * 4 / 1755
    figures = f"| {bound:.1f} (issue) | {bound:.1f} | {bound:.1f} | 1.0 | not yet | {bound:.2f} |"
    assert tables.predictions_table(rows, [])[2:] == [
        f"| `k` | {CALL.text} {figures}",
        f"| `k` | {CALL.text}, shared loads as broadcasts {figures}",
    ]


def test_instructions_table():
    code = [instruction(opcode) for opcode in (*["FFMA"] * 100, *["LDG.E"] * 8, "EXIT")]
    model = KernelModel(Kernel("k", 90, 32, instructions=code))
    tile = Tile(
        "a row", (None,), {"float": 1000.0, "loads": 128.0}, memory_bytes=4096, sometimes={"all": frozenset({0})}
    )
    plan = Plan({}, weights={0: 0.75}, tile=tile)
    launch = described(lambda _: plan)
    undescribed = replace(launch, plan=lambda _: Plan({}))
    rows = [row()]
    rows[0].forecasts = [check_cubins.forecast(model, w, threads=512, shared=0) for w in (launch, undescribed)]
    times = ", ".join(f"{us:.1f}" for us in (109 * 0.75 * 4 / 1755, rows[0].forecasts[0].prediction.simulated_us))
    # 16 warps; the only basic block runs in three quarters of the tiles, so nothing always does.
    assert tables.instructions_table(rows, [])[2:] == [
        f"| `k` | a row; {CALL.text} | 0 / 0 | 0 / 0 | 0 / 1000 = 0.00 | 0 / 0 | 0 / 0 | 0 / 128 = 0.00 | 0 / 0 | "
        f"0 / 1128 = 0.00 | 4, 64 | 4096 | {times} | not yet |",
        "| `k` | all: counted in 75% of tiles |  |  | +1600 |  |  | +128 |  | +1744 |  |  |  |  |",
    ]
    page = renew("<!-- instructions: some_op -->\n<!-- end -->\n", rows, "13.0.88")
    assert page.splitlines()[1].startswith("By nvcc 13.0.88, sm_90. Warp instructions of a block's tile")
    assert "asked for by the mathematics = ratio. Measured: not yet." in page
    assert listed(page, whole=False) == ["`k`", "`k`"]


# ---- Measured ----


def write_results(root, name, device, driver="580.1", commit="0123456789abcdef+", **rows):
    """rows: a kernel's name and its time in CALL."""
    folder = root / "bench" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    found = [{"op": "some_op", "kernel": kernel, "what": CALL.text, "us": us} for kernel, us in rows.items()]
    results = {"machine": {"device": device, "driver": driver}, "commit": commit, "rows": found, "missing": []}
    (folder / name).write_text(json.dumps(results))


def test_measured_times_stand_in_both_tables(tmp_path):
    write_results(tmp_path, "h100_kernels.json", "NVIDIA H100 80GB HBM3", k=190.26, other=1.0)
    write_results(tmp_path, "h200_kernels.json", "NVIDIA H200", driver=None, commit=None, k=170.0)
    write_results(tmp_path, "cpu_sweep.json", "NVIDIA A100")  # another benchmark's
    results = measured.read(tmp_path)
    plan = Plan({}, tile=Tile("a row", (None,), {"float": 16.0}, memory_bytes=4096))
    kernel = KernelModel(Kernel("k", 90, 32, instructions=[instruction("FFMA"), instruction("EXIT")]))
    elsewhere = replace(described(lambda _: plan), case=replace(CALL, batch=3))
    part = replace(described(lambda _: plan), part="some blocks")
    rows = [row()]
    rows[0].forecasts = [
        check_cubins.forecast(kernel, workload, threads=512, shared=0)
        for workload in (described(lambda _: plan), part, elsewhere)
    ]
    times = ["190.3 (H100), 170.0 (H200)", "190.3 (H100), 170.0 (H200) whole launch", "not yet"]
    predictions, instructions = (
        table(rows, results) for table in (tables.predictions_table, tables.instructions_table)
    )
    column = predictions[0].split(" | ").index("measured us")
    assert [line.split(" | ")[column] for line in predictions[2:]] == times
    assert [line.removesuffix(" |").split(" | ")[-1] for line in instructions[2:]] == times
    assert f"{CALL.text}: some blocks" in predictions[3]

    marked = "<!-- predictions: some_op -->\n<!-- end -->\n<!-- instructions: all -->\n<!-- end -->\n"
    page = renew(marked, rows, "13.0.88", results=results)
    said = (
        "easured: H100 (bench/results/h100_kernels.json, driver 580.1, commit 0123456789ab with changes), "
        "H200 (bench/results/h200_kernels.json, driver unknown, commit unknown).\n"
    )
    assert page.count(said) == 2 and f"predicted for an H100 SXM; m{said}" in page
    assert renew(page, rows, "13.0.88", results=results) == page
    assert renew(page, rows, "13.0.88").count("easured: not yet.") == 2


@pytest.mark.parametrize(
    "device, card",
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA GeForce RTX 4090", "4090"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("Some Card", "Some Card"),
    ],
)
def test_cards_are_called_as_people_call_them(device, card):
    assert measured.card_of(device) == card


def test_new_times_make_a_page_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(check_cubins, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "cuda_some_op.md"
    page.write_text("<!-- predictions: some_op -->\n<!-- end -->\n")
    kernel = KernelModel(Kernel("k", 90, 32, instructions=[instruction("EXIT")]))
    rows = [row()]
    rows[0].forecasts = [check_cubins.forecast(kernel, described(lambda _: Plan({})), threads=512, shared=0)]
    assert measured.read(tmp_path) == []
    assert check_cubins.update_docs(rows, "13.0", write=True) == []
    write_results(tmp_path, "h100_kernels.json", "NVIDIA H100", k=5.0)
    results = measured.read(tmp_path)
    assert "is out of date" in check_cubins.update_docs(rows, "13.0", write=False, results=results)[0]
    assert check_cubins.update_docs(rows, "13.0", write=True, results=results) == []
    assert "5.0 (H100)" in page.read_text()
    assert check_cubins.update_docs(rows, "13.0", write=False, results=results) == []


def test_a_page_is_stale_when_its_figures_differ_or_with_another_nvcc_its_kernels(tmp_path, monkeypatch):
    monkeypatch.setattr(check_cubins, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "cuda_some_op.md"
    page.write_text(PAGE)
    rows, changed = [row()], [row(replace(CLEAN, registers=65))]
    assert check_cubins.update_docs(rows, "13.0", write=True) == []
    assert check_cubins.update_docs(rows, "13.0", write=False) == []
    assert "cuda_some_op.md is out of date" in check_cubins.update_docs(changed, "13.0", write=False)[0]
    assert check_cubins.update_docs(changed, "13.1", write=False) == []
    assert check_cubins.update_docs([], "13.1", write=False) != []
    assert listed(page.read_text(), whole=False) == ["`k`"]
