"""tools/machine_times.py: its kernels hold what they are to measure; its tables, by a library that makes up times."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tools import cubins, machine_times
from tools.machine_kernels.entries import ENTRIES, added_bits, operand_rounding, sum_rounding
from tools.machine_times import CannotRunError, MeasurementError, machine_table, measure_all, printed
from tools.sass_model.bounds import carried_chain
from tools.sass_model.disassembly import Kernel, ToolError, find_tool, read_cubin
from tools.sass_model.machine import CARDS, SUBPARTITIONS, Assumptions
from tools.sass_model.predict import KernelModel

BY_NAME = {entry.name: entry for entry in ENTRIES}
FACTS = {"name": "H100", "compute_cap": "9.0"}


# ---- what the machine code holds ----


@dataclass(frozen=True)
class LoopCase:
    """A measured loop: `what` it consists of, but for counting rounds. The entry's assumption is of a `per`-th of it."""

    loop: str
    what: dict[str, int]
    entry: str
    per: int
    sm_wide: bool = False
    latency: bool = False
    others: int = 4  # instructions that belong to none of it
    assume: Assumptions = Assumptions()


def rate(loop, opcode, count, entry, **options):
    return LoopCase(f"Chains<{loop}, 8>", {opcode: count}, entry, count, **options)


def chain(loop, opcode, count, entry, **options):
    return LoopCase(loop, {opcode: count}, f"{entry}_latency", count, latency=True, **options)


LOOPS = [
    rate("Ex2", "MUFU.EX2", 64, "ex2"),
    rate("Ffma", "FFMA", 128, "ffma"),
    rate("Imad", "IMAD", 128, "imad"),
    rate("Lop3", "LOP3.LUT", 128, "lop3"),
    rate("Fmnmx", "FMNMX", 128, "fmnmx"),
    rate("F2fp", "F2FP.BF16.F32.PACK_AB", 128, "f2fp"),
    rate("Shfl", "SHFL.BFLY", 64, "shfl", sm_wide=True),
    LoopCase("Chains<Hfma2, 8>", {"HFMA2": 64, "HFMA2.MMA": 64}, "hfma2", 128),
    *(
        LoopCase(f"ExpBesideFmas<{n}>", {"MUFU.EX2": 16, "FFMA": 16 * n}, f"exp_{n}_ffma", 16)
        for n in (2, 4, 6, 8)
    ),
    LoopCase("SharedLoads<4>", {"LDS": 16, "FADD": 16}, "lds32", 16, sm_wide=True),
    LoopCase("SharedLoads<8>", {"LDS.64": 16, "FFMA": 16}, "lds64", 16, sm_wide=True),
    LoopCase("SharedLoads<16>", {"LDS.128": 16, "FFMA": 32}, "lds128", 16, sm_wide=True),
    LoopCase("SharedLoads<8>", {"LDS.64": 16, "FFMA": 16}, "scan_b", 16, sm_wide=True,
             assume=Assumptions(broadcast_shared_loads=True)),
    LoopCase("SharedLoads<16>", {"LDS.128": 16, "FFMA": 32}, "scan_dt", 16, sm_wide=True,
             assume=Assumptions(broadcast_shared_loads=True)),
    LoopCase("Products<Tf32, 4>", {"HMMA.1688.F32.TF32": 32}, "mma_tf32", 32, others=8),
    LoopCase("Products<Bf16, 4>", {"HMMA.16816.F32.BF16": 32}, "mma_bf16", 32, others=8),
    # R2UR: descriptors to uniform registers, for which there is room.
    LoopCase("Scores", {"HGMMA.64x64x16.F32.BF16": 32, "R2UR": 64}, "wgmma_scores_1", 32, others=20),
    LoopCase("Values", {"HGMMA.64x128x16.F32.BF16": 32}, "wgmma_values_1", 32, others=32),
    chain("Chains<Ex2, 1>", "MUFU.EX2", 64, "ex2"),
    chain("Chains<Ffma, 1>", "FFMA", 128, "ffma"),
    chain("Chains<Lop3, 1>", "LOP3.LUT", 128, "lop3"),
    chain("Chains<F2fp, 1>", "F2FP.BF16.F32.PACK_AB", 128, "f2fp"),
    chain("Chains<Shfl, 1>", "SHFL.BFLY", 64, "shfl"),
    chain("SharedChase", "LDS", 32, "lds"),
    chain("ConstantChase", "LDC", 32, "ldc"),
    chain("Products<Tf32, 1>", "HMMA.1688.F32.TF32", 32, "mma_tf32", others=8),
    chain("Products<Bf16, 1>", "HMMA.16816.F32.BF16", 32, "mma_bf16", others=8),
    chain("AtomicChase", "ATOMG.E.EXCH.STRONG.GPU", 16, "atomic"),
]  # fmt: skip
PADDING = {"NOP"}
# Not of the measured instructions' pipes, or so few that they do not matter: counting rounds, addresses, waits.
OVERHEAD = {"UIADD3", "IADD3", "ISETP", "BRA", "LDC", "MOV", "IMAD.MOV.U32", "UMOV", "ULEA", "ULOP3", "USHF", "S2UR",
            "WARPGROUP"}  # fmt: skip


def need_nvcc() -> str:
    try:
        find_tool("cuobjdump"), find_tool("nvdisasm")
        return cubins.find_nvcc()
    except (ToolError, cubins.CompileError) as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """As machine_times builds it on an H100."""
    return machine_times.build(need_nvcc(), tmp_path_factory.mktemp("machine"), "9.0")


@pytest.fixture(scope="module")
def kernels(library) -> dict[str, Kernel]:
    """The library's machine code."""
    subprocess.run([find_tool("cuobjdump"), "-xelf", "all", library], cwd=library.parent, check=True)
    found = [kernel for cubin in sorted(library.parent.glob("*.cubin")) for kernel in read_cubin(cubin)]
    names = cubins.demangle([kernel.name for kernel in found])
    return {name.replace("machine::", ""): kernel for name, kernel in zip(names, found, strict=True)}


def without_spills(kernel: Kernel) -> bool:
    return kernel.stack == 0 and not any(i.base in ("LDL", "STL") for i in kernel.instructions)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.entry) for case in LOOPS])
def test_loops_hold_what_they_measure(kernels, case):
    (kernel,) = (kernel for name, kernel in kernels.items() if name.startswith(f"loop_kernel<{case.loop}"))
    model = KernelModel(kernel, case.assume)
    loop = max(model.loops, key=model.size)
    own = [instruction for instruction in model.own(loop) if instruction.opcode not in PADDING]
    assert without_spills(kernel) and loop.children == []
    counts = Counter(instruction.opcode for instruction in own)
    assert {opcode: counts.pop(opcode) for opcode in case.what} == case.what
    assert all(opcode in OVERHEAD or opcode.split(".")[0] in OVERHEAD for opcode in counts), counts
    assert counts.total() <= case.others, counts
    predicted = carried_chain(own) if case.latency else model.tally(loop).bound[0]
    predicted /= case.per * (SUBPARTITIONS if case.sm_wide else 1)
    assert predicted == pytest.approx(BY_NAME[case.entry].assumed(CARDS[90]), rel=0.03)


def opcodes(kernels, name):
    """Of the only kernel whose name begins so, in the order of its code; without padding."""
    (kernel,) = (kernel for known, kernel in kernels.items() if known.startswith(name))
    assert without_spills(kernel)
    return [i.opcode for i in kernel.instructions if not i.is_padding]


@pytest.mark.parametrize(
    "name, expected",
    [
        ("read_kernel", {"LDG.E.128": 8, "STG.E.128": 0}),
        ("copy_kernel", {"LDG.E.128": 8, "STG.E.128": 8}),
        ("read_async_kernel", {"LDGSTS.E.BYPASS.128": 2, "LDG.E.128": 0}),
        ("read_bulk_kernel", {"UBLKCP.S.G": 1, "SYNCS.ARRIVE.TRANS64": 1}),
        ("loop_kernel<L2Reads", {"LDG.E.128.STRONG.GPU": 8}),
        ("loop_kernel<LinkChase", {"LDG.E.64.STRONG.GPU": 16}),
        ("tf32_dot_kernel", {"HMMA.1688.F32.TF32": 1}),
        ("bf16_dot_kernel", {"HMMA.16816.F32.BF16": 1}),
    ],
)
def test_accesses(kernels, name, expected):
    counts = Counter(opcodes(kernels, name))
    assert {opcode: counts[opcode] for opcode in expected} == expected


@pytest.mark.parametrize("prefetches", [True, False])
@pytest.mark.parametrize("reads", [True, False])
def test_prefetches_come_before_loads(kernels, prefetches, reads):
    if not prefetches and not reads:
        return
    code = opcodes(kernels, f"weights_kernel<{'true' if prefetches else 'false'}, {'true' if reads else 'false'}>")
    asked, loaded = ([n for n, opcode in enumerate(code) if opcode.startswith(o)] for o in ("CCTL.E.PF2", "LDG"))
    assert bool(asked) == prefetches and bool(loaded) == reads
    assert not asked or not loaded or max(asked) < min(loaded)
    stamps = [n for n, opcode in enumerate(code) if opcode == "CS2R"]
    assert len(stamps) == 2 and stamps[0] < min(asked + loaded) and max(asked + loaded) < stamps[1]


def test_stamps_are_taken_at_their_points(kernels):
    """CS2R reads globaltimer, ACQBULK waits for the grid before, PREEXIT lets the next one start."""
    second = opcodes(kernels, "second_kernel")
    assert second[1:4] == ["CS2R", "ACQBULK", "CS2R"]  # 0: the stack pointer
    first = opcodes(kernels, "first_kernel")
    trigger, barrier = first.index("PREEXIT"), first.index("BAR.SYNC.DEFER_BLOCKING")
    assert first[trigger - 1] == "CS2R" and trigger < barrier
    assert first[barrier:].count("CS2R") == 1
    chain_code = opcodes(kernels, "chain_kernel")
    assert chain_code.index("PREEXIT") < chain_code.index("ACQBULK") < chain_code.index("CS2R")
    waiting = opcodes(kernels, "wait_kernel")
    assert waiting.index("LDG.E.STRONG.GPU") < waiting.index("CCTL.IVALL") < waiting.index("CS2R")
    assert "ATOMG.E.ADD.STRONG.GPU" in waiting


def test_kernels_for_other_gpus_do_not_spill(tmp_path):
    nvcc = need_nvcc()

    def compiled(source: Path) -> list[Kernel]:
        cubin = tmp_path / f"{source.stem}.cubin"
        options = machine_times.compiler_options("8.0")
        subprocess.run([nvcc, *options, "-cubin", source, "-o", cubin], check=True, capture_output=True)
        return read_cubin(cubin)

    sources = [source for source in machine_times.sources("8.0") if source.stem != "library"]
    assert [source.stem for source in sources] == ["launches", "memory", "pipes", "products"]
    with ThreadPoolExecutor(2) as pool:
        found = [kernel for all_of_one in pool.map(compiled, sources) for kernel in all_of_one]
    assert len(found) > 40 and all(without_spills(kernel) for kernel in found)


def test_the_library_has_every_measurement(library):
    run = machine_times.load(library)
    for entry in ENTRIES:
        try:
            entry.measured(run(entry.measure))  # where there is a GPU
        except MeasurementError as error:
            assert "CUDA" in str(error) or "device" in str(error), entry.name
    with pytest.raises(MeasurementError, match="no such measurement"):
        run("nothing")


# ---- tables, from made-up times ----


def made_up(name: str) -> list[float]:
    """Twice what is assumed of a bandwidth or time, for all that a measurement might be asked; all tensor cores round."""
    if name.endswith("_rounding"):
        return [
            1 + 2.0**-10,
            1 + 2.0**-10,
            1 + 2 * 2.0**-23,
            -1 - 2 * 2.0**-23,
            1 + 4 * 2.0**-23,
            1 + 2 * 2.0**-23,
            1.0,
        ]
    if name in ("read", "copy", "read_async", "read_bulk"):
        return [6e6]
    if name == "memory_latency":
        return [2457.0, 1400.0]
    if name == "prefetches":
        return [12.6, 5.0, 10.0, 12.6, 1.0]
    if name.startswith("pair"):
        return [0.5, 1.0, 2.0, 1.5, 2.0, 3.0, -19.0, -18.0, -17.0, 1.0]
    entries = [entry for entry in ENTRIES if entry.measure == name]
    assumed = entries[0].assumed(CARDS[90]) if entries[0].assumed else 2.5
    return [2 * assumed] * 3


def test_everything_twice_as_slow():
    saved = []
    result = measure_all(made_up, FACTS, lambda partial: saved.append(json.dumps(partial)))
    assert [found["name"] for found in result["entries"]] == list(BY_NAME)
    assert result["failed"] == {} and result["card"] == "H100 SXM" and json.loads(saved[-1]) == result
    assert len(json.loads(saved[0])["entries"]) == 1
    lines = dict(zip(BY_NAME, printed(result)[1:], strict=True))
    assert lines["f2fp"].split()[-5:] == ["2", "(or", "8)", "4", "2.00"]
    assert lines["tf32_operands"].split()[-3:] == ["truncated", "rounded", "differs"]
    assert lines["tf32_sums"].endswith("rounded same") and lines["overlap_graph"].endswith("yes same")
    assert lines["gap_stream"].split()[-3:] == ["-", "-18", "-"]
    numbers = [
        line
        for name, line in lines.items()
        if not isinstance(BY_NAME[name].measured(made_up(BY_NAME[name].measure)), str)
    ]
    assert all(line.split()[-1] in ("2.00", "-") for line in numbers)


def test_another_gpu_lacks_hoppers_own():
    asked = []
    result = measure_all(lambda name: asked.append(name) or made_up(name), {"compute_cap": "8.0"}, lambda partial: None)
    assert result["card"] == "A100 SXM" and not any("wgmma" in name or "early" in name for name in asked)
    assert next(found for found in result["entries"] if found["name"] == "ffma")["assumed"] == 2


@pytest.mark.parametrize("values, why", [(None, "an illegal instruction"), ([], "index"), ([1, 0, 1, 1, 1], "by zero")])
def test_a_failed_measurement_leaves_the_others(values, why):
    def run(name):
        if name == "prefetches" and values is None:
            raise MeasurementError("an illegal instruction was encountered")
        return values if name == "prefetches" else made_up(name)

    result = measure_all(run, FACTS, lambda partial: None)
    assert why in result["failed"].pop("prefetches") and result["failed"] == {}
    assert len(result["entries"]) == len(ENTRIES) - 4
    result["failed"] = {"prefetches": why}
    assert printed(result)[-1] == f"prefetches failed: {why}"


def test_machine_table():
    assert machine_table([])[2] == f"| the SM's clock | GHz | {text_of('sm_ghz')} | not yet |"
    first = measure_all(made_up, FACTS, lambda partial: None)
    second = {"name": "H200", "entries": [found for found in first["entries"] if found["name"] == "ex2"]}
    lines = machine_table([first, second])
    assert lines[:2] == ["| what | unit | assumed | H100 | H200 |", "| --- | --- | --- | --- | --- |"]
    assert lines[3] == "| ex2.approx | clocks | 8 | 16 (2.00) | 16 (2.00) |"
    assert "| LDS.128 of the scan's dt and dt x: 8 rows, 4 lanes each | SM clocks | 1 (or 4) | 2 (2.00) | - |" in lines
    assert len(lines) == len(ENTRIES) + 2


def text_of(name):
    return machine_times.text(BY_NAME[name].assumed(CARDS[90]))


@pytest.mark.parametrize(
    "values, operands, sums, bits",
    [
        ([1.0, 1.0, 1 + 2.0**-23, -1 - 2.0**-23, 1 + 4 * 2.0**-23, 1.0, 1.0], "truncated", "truncated", 1),
        ([1 + 2.0**-10, 1.0, 1 + 2.0**-23, -1 - 2.0**-22, 1.0, 1.0, 1 + 2.0**-23], "a rounded, b truncated",
         "truncated above zero, rounded below", 0),
        ([1 + 0.75 * 2.0**-10] * 2 + [1.0, -1.0, 1 + 2.0**-21, 1 + 2.0**-22, 1 + 2.0**-23], "kept", "something else", 3),
    ],
)  # fmt: skip
def test_rounding_is_named(values, operands, sums, bits):
    assert (operand_rounding(values), sum_rounding(values), added_bits(values)) == (operands, sums, bits)


def test_figures():
    assert [machine_times.text(figure) for figure in (None, "yes", 0.5, 18.0, 480, 12345.6)] == [
        "-", "yes", "0.5", "18", "480", "12346",
    ]  # fmt: skip


# ---- the command ----


def program(tmp_path, monkeypatch, name, text):
    (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
    (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine_times.main([]) == 2
    assert capsys.readouterr().out == "machine_times: no GPU: nvidia-smi is not on PATH\n"
    program(tmp_path, monkeypatch, "nvidia-smi", "echo No devices were found; exit 6")
    assert machine_times.main([]) == 2
    assert capsys.readouterr().out == "machine_times: no GPU: nvidia-smi says 'No devices were found'\n"
    with pytest.raises(CannotRunError):
        machine_times.device_facts()


SMI = "echo NVIDIA H100 80GB HBM3, 580.1, 9.0, 1980 MHz, 2619 MHz, 700.00 W"


def test_without_nvcc_it_says_so(tmp_path, monkeypatch, capsys):
    program(tmp_path, monkeypatch, "nvidia-smi", SMI)
    monkeypatch.setattr(machine_times, "find_nvcc", lambda: (_ for _ in ()).throw(cubins.CompileError("no nvcc")))
    assert machine_times.main([]) == 2
    assert capsys.readouterr().out == "machine_times: no nvcc\n"


@pytest.mark.parametrize("fails", [False, True])
def test_the_command(tmp_path, monkeypatch, capsys, fails):
    def run(name):
        if fails and name == "ex2":
            raise MeasurementError("unspecified launch failure")
        return made_up(name)

    program(tmp_path, monkeypatch, "nvidia-smi", SMI)
    program(tmp_path, monkeypatch, "nvcc", "echo release 13.0, V13.0.88")
    monkeypatch.setattr(machine_times, "find_nvcc", lambda: str(tmp_path / "nvcc"))
    monkeypatch.setattr(machine_times, "build", lambda nvcc, folder, capability: folder / capability)
    monkeypatch.setattr(machine_times, "load", lambda library: run if library.name == "9.0" else None)
    file = tmp_path / "out" / "h100_machine.json"
    assert machine_times.main(["--json", str(file)]) == (1 if fails else 0)
    stored = json.loads(file.read_text())
    assert stored["name"] == "NVIDIA H100 80GB HBM3" and stored["nvcc"] == "13.0.88" and stored["commit"]
    assert stored["driver_version"] == "580.1" and stored["clocks.max.sm"] == "1980 MHz"
    assert len(stored["entries"]) == len(ENTRIES) - fails
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(f"{len(ENTRIES) - fails} entries of NVIDIA H100 80GB HBM3 in {file}, {int(fails)} meas")
    assert ("ex2 failed: unspecified launch failure" in lines) == fails


def test_a_source_that_does_not_compile(tmp_path, monkeypatch, capsys):
    program(tmp_path, monkeypatch, "nvidia-smi", SMI)
    program(
        tmp_path, monkeypatch, "nvcc", 'case "$*" in *--version) echo V13.0.88;; *) echo error: no >&2; exit 1;; esac'
    )
    monkeypatch.setattr(machine_times, "find_nvcc", lambda: str(tmp_path / "nvcc"))
    assert machine_times.main(["--json", str(tmp_path / "x.json")]) == 1
    assert "error: no" in capsys.readouterr().out
    assert not (tmp_path / "x.json").exists()
