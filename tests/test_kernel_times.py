"""bench/kernel_times.py without a GPU: which call stands for which launch, what is found in a profile, what is said."""

from __future__ import annotations

import ctypes
import itertools
import json
import re
from types import SimpleNamespace

import pytest
import torch

import hymba_ops
from bench import kernel_calls, kernel_times, report
from bench.kernel_times import Kernel, Launch, launches_of
from tools import cubins, measured
from tools.sass_model.kernels import INNER, META_TOKENS, Case, Plan, Workload, workloads

OPS = [source.stem for source in cubins.sources() if workloads(source.stem)]
LAUNCHES = launches_of(OPS)
CHANGED = {  # arguments that are written, too
    "causal_conv1d_update": slice(1, 2), "selective_state_update": slice(1), "decode_attention": slice(1, 3),
    "mamba_update": slice(2, 4),
}  # fmt: skip


# ---- Calls ----


def tensors(values):
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors(value)


def stored_bytes(values):
    """Of a dimension with stride 0 one row is stored."""
    return sum(
        tensor.itemsize * torch.Size(n for n, step in zip(tensor.shape, tensor.stride(), strict=True) if step).numel()
        for tensor in tensors(values)
    )


def called(case, monkeypatch):
    """On the meta device: what was called how often, the call's first tensor and result, and its bytes."""
    seen = []

    def watch(op):
        right = getattr(hymba_ops, op)

        def watched(*args, **kwargs):
            out = right(*args, **kwargs)
            moved = stored_bytes([*args, *kwargs.values(), out, *args[CHANGED.get(op, slice(0))]])
            seen.append(SimpleNamespace(op=op, args=args, out=out, bytes=moved))
            return out

        monkeypatch.setattr(hymba_ops, op, watched)

    for op in {launch.case.op for launch in LAUNCHES}:
        watch(op)
    kernel_calls.make_call(case, torch.device("meta"))()
    assert len(seen) == 1
    return seen[0]


def only_some(launch, call):
    """Bytes that the described kernel moves more often than once, or that are not its own."""
    batch, states, rank = launch.case.batch, 16, 100
    if launch.kernel.startswith("linear_epilogue"):  # it reads and writes the result, and reads one tensor like it
        return 3 * stored_bytes([call.out]) - call.bytes
    if launch.op == "causal_conv1d":  # chunks of 32 rows read the three before them
        return stored_bytes([call.args[0]]) * 3 // 32
    if launch.op == "decode_attention":  # meta tokens once a row of the batch; results of splits
        splits = int(re.search(r"(\d+) splits", launch.workloads[0].what)[1])
        return 2 * (batch - 1) * META_TOKENS * 5 * (64 + 128) + 4 * batch * splits * 25 * (128 + 2)
    if launch.op == "mamba_update":  # what the slices leave for the channels: sums, and the conv's result
        return 2 * (4 * 13 * batch * (rank + 2 * states) + 2 * batch * INNER)
    return 0


@pytest.mark.parametrize("launch", LAUNCHES, ids=lambda launch: f"{launch.op}: {launch.case.text}")
def test_the_call_has_the_shapes_of_the_description(launch, monkeypatch):
    call = called(launch.case, monkeypatch)
    assert call.op == launch.case.op
    assert call.out.device.type == "meta" and all(t.device.type == "meta" for t in tensors(call.args))
    floats = [tensor for tensor in tensors(call.args) if tensor.dtype == torch.bfloat16]
    rows = floats[0].shape[0] if len(floats[0].shape) == 2 else floats[0].shape[0] * floats[0].shape[1]
    assert rows == launch.case.tokens == launch.workloads[0].tokens
    whole = [workload.device_bytes for workload in launch.workloads if not workload.part]
    described = whole[0] if whole else sum(workload.device_bytes for workload in launch.workloads)
    # Small operands (norms' weights, positions, counters) are left out of some descriptions.
    assert described == pytest.approx(call.bytes + only_some(launch, call), rel=0.012)


def test_every_maker_is_for_a_launch_or_an_op_of_its_own():
    assert {(case.op, case.name) for case in (launch.case for launch in LAUNCHES)} <= set(kernel_calls.MAKERS)
    named = {key for key in kernel_calls.MAKERS if key[1] != "1.5B layer"}
    assert named <= {(launch.case.op, launch.case.name) for launch in LAUNCHES}


def test_a_slice_of_x_proj_is_strided(monkeypatch):
    """As in the layer: 8-byte aligned rows, 132 columns apart."""
    for name, offset, width in (("dt", 0, 100), ("B", 100, 16)):
        x = called(Case("rms_norm", name), monkeypatch).args[0]
        assert (x.shape[-1], x.stride(-2), x.storage_offset()) == (width, 132, offset)


def test_keys_that_tma_cannot_read(monkeypatch):
    """kernels/attention.py's kernel, on a GPU whose own kernel takes everything else."""
    for launch in (launch for launch in LAUNCHES if launch.op.startswith("attention")):
        strides = called(launch.case, monkeypatch).args[1].stride()
        assert (strides[2] == 0) == (launch.op == "attention")


def test_the_layer_decides_the_mask(monkeypatch):
    seen = []
    monkeypatch.setattr(hymba_ops, "attention", lambda *_, **mask: seen.append((mask["window"], mask["num_meta"])))
    for launch in LAUNCHES:
        if launch.case.op == "attention":
            kernel_calls.make_call(launch.case, torch.device("meta"))()
    assert seen == [(1024, 128), (None, 128)] * 2


# ---- Launches ----


def test_parts_have_their_launch_s_time():
    parts = {launch.op: [w.part for w in launch.workloads if w.part] for launch in LAUNCHES if launch.case.batch == 1}
    assert [len(parts[op]) for op in ("mamba_update", "gated_mlp", "decode_attention", "rms_norm")] == [2, 2, 1, 0]
    mamba = next(launch for launch in LAUNCHES if launch.op == "mamba_update")
    assert mamba.blocks == 13 + 50 and len(mamba.workloads) == 2
    attention = [launch for launch in LAUNCHES if launch.op == "decode_attention" and launch.case.layer == "global"]
    assert [(launch.case.batch, launch.blocks) for launch in attention] == [(1, 165), (32, 5280)]
    assert len({(launch.kernel, launch.case.text) for launch in LAUNCHES}) == len(LAUNCHES)


def test_texts_say_what_is_called():
    assert Case("rotary", "keys").text == "keys, 8192 + 128 tokens, bf16"
    case = Case("decode_attention", layer="sliding", batch=4, length=1)
    assert (case.text, case.tokens) == ("1.5B layer, window 1024, batch 4, 1 token, bf16", 4)
    described = Workload("k", case, 1, 0.0, lambda _: Plan({}), detail="2 splits", part="some")
    assert described.what == f"{case.text}, 2 splits: some"


# ---- Names ----


def runtime_demangled(mangled):
    """By the C++ runtime, as torch's profiler does it."""
    demangle = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    demangle.restype, status = ctypes.c_char_p, ctypes.c_int()
    return demangle(mangled.encode(), None, None, ctypes.byref(status)).decode()


MANGLED = {
    "_ZN5hymba4cuda20mma_attention_kernelINS_8bfloat16ELi64ELi128ELb1EEEvNS_15AttentionParamsE": (
        "mma_attention_kernel<bfloat16, 64, 128, true>"
    ),
    "_ZN5hymba4cuda61_GLOBAL__N__8e3f4b5c_20_causal_conv1d_update_cu_9c2b1a2d_123427causal_conv1d_update_kernelINS_"
    "8bfloat16ELi8ELi4EEEvNS_24CausalConv1dUpdateParamsE": "causal_conv1d_update_kernel<bfloat16, 8, 4>",
    "_ZN5hymba4cuda12_GLOBAL__N_120norm_few_rows_kernelINS_8bfloat16ELi1ELi2EEEvNS_16NormLinearParamsENS0_"
    "11NormOffsetsENS0_10RowOffsetsE": "norm_few_rows_kernel<bfloat16, 1, 2>",
    "_ZN5hymba4cuda12_GLOBAL__N_117list_items_kernelILi64EEEvNS_15AttentionParamsEiPNS0_13AttentionItemEPi": (
        "list_items_kernel<64>"
    ),
}


@pytest.mark.parametrize("mangled", MANGLED, ids=MANGLED.values())
def test_names_are_short_whoever_demangled_them(mangled):
    full = runtime_demangled(mangled)
    assert full.startswith("void hymba::cuda::") and full.endswith(")")
    assert cubins.short_name(full) == MANGLED[mangled] == cubins.demangle([mangled])[0]
    verbose = re.sub(r"(?<=[<, ])(\d+)(?=[,>])", r"(int)\1", full.replace("true", "(bool)1"))
    assert cubins.short_name(verbose) == MANGLED[mangled]


def profiler_name(short, params="hymba::SomeParams, hymba::cuda::RowOffsets, int*"):
    return f"void hymba::cuda::(anonymous namespace)::{short.replace('bfloat16', 'hymba::bfloat16')}({params})"


def test_every_described_kernel_is_found_by_its_full_name():
    for launch in LAUNCHES:
        assert cubins.short_name(profiler_name(launch.kernel)) == launch.kernel
    others = "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<int>, std::array<char*, 1ul> >"
    assert cubins.short_name(f"{others}(int, int*)") == others.removeprefix("void ")


# ---- Measuring, on stand-ins ----


class Gpu:
    """Stands for CUDA and torch's profiler. A call's kernels are those that `runs` names for its case."""

    def __init__(self, monkeypatch, runs):
        self.log, self.events, self.runs, self.inputs = [], None, runs, itertools.count()
        self.durations = itertools.cycle([3.0, 9.0, 4.0])
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: self.log.append("synchronize"))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=50 << 20))
        monkeypatch.setattr(torch.profiler, "profile", self.profile)
        monkeypatch.setattr(kernel_times, "missing_kernels", lambda ops, device: [])
        monkeypatch.setattr(kernel_times, "make_call", self.make_call)
        machine = {"device": "NVIDIA H100 80GB HBM3", "driver": "1.2", "threads": 1, "kernels": "-", "torch": "2"}
        monkeypatch.setattr(report, "describe_machine", lambda device: machine)
        monkeypatch.setattr(report, "commit", lambda: "c" * 40)

    def make_call(self, case, device):
        number = next(self.inputs)

        def call():
            self.log.append(number)
            for name, blocks in self.runs(case):
                if self.events is not None:
                    args = {"grid": [blocks, 1, 1], "block": [128, 1, 1], "device": 0, "stream": 7}
                    self.events.append(
                        {"ph": "X", "cat": "kernel", "name": name, "ts": 1.0, "dur": next(self.durations), "args": args}
                    )

        return call

    def profile(self, activities):
        assert [activity.name for activity in activities] == ["CUDA"]
        return self

    def __enter__(self):
        self.events = [
            {"ph": "M", "name": "process_name"},
            {"ph": "X", "cat": "gpu_memset", "name": "Memset", "dur": 1},
        ]
        self.log.append("begin")
        return self

    def __exit__(self, *_):
        self.log.append("end")
        self.trace, self.events = {"traceEvents": self.events}, None

    def export_chrome_trace(self, path):
        with open(path, "w") as file:
            json.dump(self.trace, file)


def all_kernels(case):
    """As they would be on a GPU: another launch first where the library's product is."""
    yield "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16>(cutlass::Params)", 1
    for launch in LAUNCHES:
        if launch.case == case:
            yield profiler_name(launch.kernel), launch.blocks


def test_all_launches_are_found(monkeypatch, capsys, tmp_path):
    Gpu(monkeypatch, all_kernels)
    path = tmp_path / "bench" / "results" / "h100_kernels.json"
    path.parent.mkdir(parents=True)
    assert kernel_times.main(["--json", str(path), "--no-predictions"]) == 0
    printed = capsys.readouterr().out
    assert "not found" not in printed and "blocks" not in printed.split("us: median")[1]
    results = json.loads(path.read_text())
    assert results["missing"] == [] and len(results["rows"]) == len(LAUNCHES)
    first = next(row for row in results["rows"] if row["op"] == "rms_norm")
    assert first["kernel"] == "rms_norm_kernel<bfloat16, 64, true, true>"
    assert first["what"] == "hidden states, 8192 + 128 tokens, bf16"
    assert (first["us_min"], first["us_max"], first["launches"]) == (3.0, 9.0, kernel_times.CALLS)
    assert results["machine"]["driver"] == "1.2" and results["commit"] == "c" * 40
    # And tools/check_cubins.py finds a time for every workload of docs' tables.
    files = measured.read(tmp_path)
    assert [file.card for file in files] == ["H100"]
    cells = [measured.cell(files, workload) for op in OPS for workload in workloads(op)]
    assert measured.NOT_YET not in cells and sum("whole launch" in cell for cell in cells) == 7


def test_calls_are_timed_alone_on_inputs_beyond_the_cache(monkeypatch):
    gpu = Gpu(monkeypatch, all_kernels)
    launch = next(launch for launch in LAUNCHES if launch.case == Case("rms_norm", "dt"))
    kernels = kernel_times.time_case(launch.case, [launch], torch.device("cuda"))
    assert [kernel.us for kernel in kernels if kernel.name == launch.kernel][:3] == [9.0, 3.0, 4.0]
    inputs = next(gpu.inputs)
    assert (inputs - 1) * 3_328_000 <= 2 * (50 << 20) < inputs * 3_328_000
    begin, end = gpu.log.index("begin"), gpu.log.index("end")
    warm_up = gpu.log[:begin]
    assert warm_up == [*range(kernel_times.WARM_UP), "synchronize"]
    timed = gpu.log[begin + 1 : end]
    assert timed[1::2] == ["synchronize"] * kernel_times.CALLS
    assert timed[::2] == [(kernel_times.WARM_UP + i) % inputs for i in range(kernel_times.CALLS)]


def test_what_is_not_found_is_named(monkeypatch, capsys, tmp_path):
    def runs(case):
        if case.name == "dt":
            yield profiler_name("rms_norm_kernel<bfloat16, 8, false, false>"), 260
        elif case.name == "B":
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")
        else:
            yield profiler_name("rms_norm_kernel<bfloat16, 64, true, true>"), 2081

    gpu = Gpu(monkeypatch, runs)
    path = tmp_path / "times.json"
    assert kernel_times.main(["--ops", "rms_norm", "--json", str(path), "--no-predictions"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("kernel_times: ")]
    assert [line.removeprefix("kernel_times: ") for line in lines] == [
        "note: rms_norm_kernel<bfloat16, 64, true, true> (hidden states, 8192 + 128 tokens, bf16) has 2081 blocks, of "
        "which 2080 are described",
        "not found: rms_norm_kernel<bfloat16, 8, true, true> (dt, 8192 + 128 tokens, bf16): its call ran "
        "rms_norm_kernel<bfloat16, 8, false, false>",
        "not found: rms_norm_kernel<bfloat16, 8, true, true> (B, 8192 + 128 tokens, bf16): RuntimeError: CUDA error: an "
        "illegal memory access was encountered",
    ]
    results = json.loads(path.read_text())
    assert [row["what"].split(",")[0] for row in results["missing"]] == ["dt", "B"]
    gpu.runs = lambda case: ()
    assert kernel_times.main(["--ops", "rotary", "--no-predictions"]) == 1
    assert "its call ran no kernel that the profiler saw" in capsys.readouterr().out


def test_an_empty_profile_is_made_again(monkeypatch):
    gpu, begun = Gpu(monkeypatch, all_kernels), []
    right = Gpu.__exit__

    def misses_the_first(self, *error):
        begun.append(len(self.events))
        if len(begun) == 1:
            self.events = []
        right(self, *error)

    monkeypatch.setattr(Gpu, "__exit__", misses_the_first)
    launch = next(launch for launch in LAUNCHES if launch.op == "norm_average")
    kernels = kernel_times.time_case(launch.case, [launch], torch.device("cuda"))
    assert len(begun) == 2 and launch.kernel in {kernel.name for kernel in kernels} and gpu.log.count("begin") == 2


def test_times_stand_beside_predictions(capsys):
    plan = lambda _: Plan({})  # noqa: E731
    case = Case("rotary", "keys")
    whole, part = Workload("k", case, 5, 0.0, plan), Workload("k", case, 2, 0.0, plan, part="joins")
    launch = Launch("rotary", "k", case, (whole, part))
    results = {"machine": {"device": "d", "threads": 1, "kernels": "-", "torch": "2"}, "rows": [], "missing": []}
    kernels = [Kernel("k", 12.0, 5), Kernel("other", 1.0, 1), Kernel("k", 10.0, 5), Kernel("k", 20.0, 5)]
    kernel_times.add_result(results, launch, kernels, "")
    assert (
        results["rows"][0] | {"us": 12.0, "launches": 3, "blocks": 5, "described_blocks": 5, "parts": ["joins"]}
        == (results["rows"][0])
    )
    said = {("k", whole.what): SimpleNamespace(bound_us=4.0, simulated_us=7.25, bytes_us=8.0)}
    said["k", part.what] = SimpleNamespace(bound_us=1.0, simulated_us=None, bytes_us=None)
    kernel_times.print_times([launch], results, said)
    rows = [line.split("bf16")[1] for line in capsys.readouterr().out.splitlines() if line.startswith("k ")]
    assert [row.replace(": joins", "").split() for row in rows] == [
        ["12.0", "(10.0", "-", "20.0)", "4.0", "7.2", "8.0", "1.50"],
        ["12.0", "(10.0", "-", "20.0)", "1.0", "-", "-", "-"],
    ]


def test_without_nvcc_times_are_all_there_is(monkeypatch, capsys):
    Gpu(monkeypatch, all_kernels)

    def none():
        raise cubins.CompileError("no nvcc in CUDA_HOME/bin")

    monkeypatch.setattr(cubins, "find_nvcc", none)
    assert kernel_times.main(["--ops", "rotary"]) == 0
    printed = capsys.readouterr().out
    assert "no prediction: no nvcc in CUDA_HOME/bin" in printed and "queries, 8192 + 128 tokens, bf16" in printed


# ---- Refusals ----


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_there_is_one_line(capsys):
    assert kernel_times.main([]) == 2
    error = capsys.readouterr().err
    assert error.startswith("kernel_times: this torch (") and error.count("\n") == 1


def test_refusals(monkeypatch, capsys):
    Gpu(monkeypatch, all_kernels)
    assert kernel_times.main(["--ops", "nothing"]) == 2
    assert "--ops must be of attention, attention_sm90, " in capsys.readouterr().err
    monkeypatch.setattr(kernel_times, "missing_kernels", lambda ops, device: sorted(ops)[:1])
    assert kernel_times.main(["--ops", "rotary"]) == 2
    assert "hymba_ops has no CUDA kernel of rotary" in capsys.readouterr().err
