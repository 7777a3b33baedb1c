"""What of the benchmarks is for a GPU and can be tried without one: what is timed on which input, floors, refusals."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch

import hymba_ops
from bench import cases, layer_throughput, op_calls, options, report, roofline, runner, sweep
from bench.op_work import op_work

CUDA = torch.device("cuda")
KEYS = ("float32", "bfloat16")


class Clock:
    """Stands for a GPU's events and its waiting: `log` has what happened in order; calls advance `now`."""

    def __init__(self, monkeypatch):
        self.log, self.now, clock = [], 0.0, self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                clock.log.append("record")
                self.at = clock.now

            def synchronize(self):
                clock.log.append("synchronize")

            def elapsed_time(self, end):
                return end.at - self.at

        def sleep(cycles):
            assert cycles > 1e6
            self.log.append("sleep")
            self.now += 1.0

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "_sleep", sleep)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=50 << 20))

    def call(self, name, ms=lambda: 2.0):
        def run():
            self.log.append(name)
            self.now += ms()

        return run


def test_a_call_is_timed_by_events_behind_a_wait(monkeypatch):
    clock = Clock(monkeypatch)
    assert runner.elapsed_ms(clock.call("call"), CUDA) == 2.0  # without the wait's 1 ms
    assert clock.log == ["sleep", "record", "call", "record", "synchronize"]


def test_the_median_counts(monkeypatch):
    clock = Clock(monkeypatch)
    times = itertools.chain([9.0], itertools.cycle([1.0, 4.0, 2.0]))
    timing = runner.time_rounds({"one": [clock.call("one", lambda: next(times))]}, CUDA, most=3, warm=True)["one"]
    assert (timing.ms, timing.ms_min, timing.ms_max, timing.peak_bytes) == (2.0, 1.0, 4.0, None)


@pytest.mark.parametrize("names", [["a"], ["a", "b"], ["a", "b", "c"]], ids=len)
def test_no_call_finds_its_input_in_the_cache(names, monkeypatch):
    """Between two calls on one input, whoever makes them, come calls on all the others."""
    clock, count = Clock(monkeypatch), 5
    candidates = {name: [clock.call((name, i)) for i in range(count)] for name in names}
    runner.time_rounds(candidates, CUDA, seconds=0.06, warm=True)
    calls = [entry for entry in clock.log if isinstance(entry, tuple)][len(names) :]  # without the estimates
    assert len(calls) == 30 * len(names)
    assert {name for name, _ in calls} == set(names)
    inputs = [i for _, i in calls]
    assert all(len(set(inputs[at : at + count])) == count for at in range(len(inputs) - count))


@pytest.mark.parametrize(
    "size,count", [(7e6, 15), (52e6, 3), (105e6, 1), (4e9, 1), (100, 1024), (0, 1)], ids=lambda size: f"{size:g}"
)
def test_inputs_exceed_the_cache_twice(size, count, monkeypatch):
    Clock(monkeypatch)
    assert runner.inputs_beyond_cache(size, CUDA) == count
    assert count in (1, 1024) or (count - 1) * size <= 2 * (50 << 20) < count * size
    assert runner.inputs_beyond_cache(size, torch.device("cpu")) == 1


def on_a_cpu_as_if_on_a_gpu(monkeypatch, count):
    """Three inputs and floors, as a GPU would have them."""
    for module in (cases, sweep):
        monkeypatch.setattr(module, "inputs_beyond_cache", lambda size, device: count)
    ceilings = roofline.Ceilings(gemm=1e12, bandwidth=1e9, special=1e15, separate_units=True)
    monkeypatch.setattr(roofline, "measure", lambda *_, **__: ceilings)


@pytest.mark.parametrize("op", ["layer", "rms_norm", "causal_conv1d_update"])
def test_a_sweep_s_case_has_a_call_on_each_input(op, monkeypatch):
    on_a_cpu_as_if_on_a_gpu(monkeypatch, 3)
    case = sweep.Case("125m", 1, "float32", op, "sliding" if op == "layer" else "", 4)
    config = options.preset("125m")
    with torch.inference_mode():
        candidates, rivals = sweep_on("cpu")._candidates(case, config, 1)
        assert rivals == {}
        for name, calls in candidates.items():
            assert len(calls) == 3
            outputs = [call() for call in calls]
            assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2]), name


def sweep_on(device):
    return sweep.Sweep(device=torch.device(device), budget=None, slowest=20, save=lambda results: None)


def test_parts_are_timed_on_every_input(monkeypatch):
    on_a_cpu_as_if_on_a_gpu(monkeypatch, 2)
    timed = []

    def never_timed(candidates, device, **_):
        timed.append({name: len(calls) for name, calls in candidates.items()})
        return {}

    monkeypatch.setattr(layer_throughput, "time_rounds", never_timed)
    config, cpu = options.preset("125m"), torch.device("cpu")
    arguments = SimpleNamespace(device=cpu, peers=["sdpa", "mamba_ssm"])
    with torch.inference_mode():
        case = cases.make_case("sliding", config, ["hymba_ops"], batch=1, length=3, device=cpu, dtype=torch.float32)
        layer_throughput.time_parts(case, config, arguments, runner.Progress(9))
    assert len(timed) == len(roofline.PARTS)
    assert all(counts["hymba_ops"] == counts["plain"] == 2 for counts in timed)
    assert [counts["sdpa"] for counts in timed if "sdpa" in counts] == [2]


# ---- Floors ----


def tensor_bytes(values):
    return sum(value.numel() * value.itemsize for value in values if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("layer", [0, 1], ids=["global", "sliding"])
@pytest.mark.parametrize("batch,length", [(1, 7), (3, 20)])
@pytest.mark.parametrize("dtype", KEYS)
@pytest.mark.parametrize("op", op_calls.OPS)
def test_bytes_of_an_op_are_those_of_its_tensors(op, dtype, batch, length, layer, monkeypatch):
    config, dtype = options.preset("125m"), options.DTYPES[dtype]
    length = 1 if op in sweep.UPDATE_OPS else length
    right, seen = getattr(hymba_ops, op), []

    def watched(*args, **kwargs):
        out = right(*args, **kwargs)
        written = {
            "causal_conv1d_update": args[1:2], "selective_state_update": args[:1], "decode_attention": args[1:3],
            "mamba_update": args[2:4],
        }  # fmt: skip
        seen.append(tensor_bytes([*args, *kwargs.values(), out, *written.get(op, ())]))
        return out

    monkeypatch.setattr(hymba_ops, op, watched)
    device = torch.device("cpu")
    op_calls.random_calls(op, config, layer, batch=batch, length=length, dtype=dtype, device=device)["hymba_ops"]()
    work = op_work(op, config, layer, batch=batch, length=length, element_size=dtype.itemsize)
    assert seen == [work.bytes]


def test_flop_and_special_functions_of_ops():
    """At the 1.5B layer's sizes they are the layer's, which are counted by hand in test_bench.py."""
    config, (batch, length) = options.preset("1.5b"), (2, 2176)
    for layer in (0, 1):
        parts_ = roofline.layer_work(config, layer, batch=batch, seq_len=length - 128, element_size=2)
        for op, part in (("attention", "attention"), ("selective_scan", "scan"), ("causal_conv1d", "conv + SiLU"),
                         ("linear", "in_proj"), ("norm_average_project", "norm-average + out_proj"),
                         ("gated_linear", "MLP")):  # fmt: skip
            work = op_work(op, config, layer, batch=batch, length=length, element_size=2)
            flop = parts_[part].flop * (2 / 3 if op == "gated_linear" else 1)  # the MLP has down_proj too
            assert work.flop == pytest.approx(flop) and work.special == parts_[part].special, op


def test_a_row_has_its_floor_on_a_gpu_only(monkeypatch, capsys):
    on_a_cpu_as_if_on_a_gpu(monkeypatch, 1)
    case, config = sweep.Case("1.5b", 1, "bfloat16", "rms_norm", "", 1000), options.preset("1.5b")
    assert sweep_on("cpu")._floor(case, config, 1, 0.02) == {}
    monkeypatch.setattr(report, "describe_machine", lambda device: {"device": str(device)})
    floor = sweep_on("cuda")._floor(case, config, 1, 20.0)
    assert floor == {"floor_ms": pytest.approx(6.4032), "ratio_to_floor": pytest.approx(20 / 6.4032)}  # at 1 GB/s
    layer = sweep_on("cuda")._floor(sweep.Case("1.5b", 1, "bfloat16", "layer", "global", 2176), config, 0, 20.0)
    assert layer["floor_ms"] > floor["floor_ms"]

    timings = {name: runner.Timing(ms, ms, ms, None) for name, ms in (("hymba_ops", 20.0), ("plain", 60.0))}
    row = sweep.make_row(case, timings) | floor
    machine = {"device": "none", "threads": 1, "kernels": "none", "torch": "none"}
    report.print_sweep({"machine": machine, "rows": [row], "left_out": [], "wrong": [], "slower": []})
    printed = capsys.readouterr().out
    assert "ms (x plain, x floor)" in printed and "20 (3.00x, 3.12x)" in printed


def test_small_times_keep_their_digits(capsys):
    row = {"layer": "sliding", "part": "scan", "implementation": "hymba_ops", "ms": 0.01234, "floor_ms": 0.00987}
    report.print_parts([row, row | {"implementation": "plain", "ms": 123.456}])
    assert "0.0123" in (printed := capsys.readouterr().out) and "0.00987" in printed and "123.5" in printed


def test_the_exp_kernel_is_what_torch_s_compiler_takes():
    from torch.cuda import jiterator

    source = roofline._exp2_chains(256)
    assert jiterator._CodeParser(source).function_name == "chains"
    assert source.count("ex2.approx.ftz.f32") == 4


# ---- What cannot run ----


def test_kernels_are_looked_up_by_device(monkeypatch):
    facts = {"cuda_architectures": "sm_80"}
    monkeypatch.setattr(hymba_ops, "build_info", lambda: facts)
    assert runner.missing_kernels(op_calls.OPS, torch.device("cpu")) == []
    assert "norm_average" not in runner.missing_kernels(op_calls.OPS, CUDA)
    assert runner.missing_kernels(["norm_average", "_exp2_sum"], CUDA) == ["_exp2_sum"]
    facts["cuda_architectures"] = ""  # built without nvcc
    assert runner.missing_kernels(["norm_average", "_exp2_sum"], CUDA) == ["norm_average", "_exp2_sum"]


def test_an_op_without_a_kernel_is_left_out_and_named(monkeypatch, capsys):
    monkeypatch.setattr(sweep, "missing_kernels", lambda ops, device: [op for op in ops if op == "rotary"])
    small = ["--device", "cpu", "--presets", "125m", "--batches", "1", "--dtypes", "float32", "--seq-lens", "3"]
    assert sweep.main([*small, "--ops", "rotary,rms_norm,layer"]) == 0
    printed = capsys.readouterr().out
    assert "125m float32 batch 1 rotary, length 3: no cpu kernel of rotary" in printed
    assert "125m float32 batch 1 sliding layer, length 3: no cpu kernel of rotary" in printed
    assert len([line for line in printed.splitlines() if "rms_norm" in line and "x)" in line]) == 1


def test_a_layer_without_a_kernel_is_refused_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(cases, "missing_kernels", lambda ops, device: ["attention", "selective_scan"])
    small = ["--preset", "125m", "--seq-len", "4", "--device", "cpu", "--implementations"]
    assert layer_throughput.main([*small, "hymba_ops,plain"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(
        "layer_throughput: hymba_ops has no cpu kernel of attention, selective_scan (leave hymba_ops"
    )
    assert layer_throughput.main([*small, "plain", "--layers", "sliding"]) == 0


def test_the_layer_s_ops_are_those_it_calls(monkeypatch):
    called = set()
    right = hymba_ops._ops.call
    monkeypatch.setattr(hymba_ops._ops, "call", lambda name, *args: called.add(name) or right(name, *args))
    config = options.preset("125m")
    with torch.inference_mode():
        hymba_ops.HymbaLayer(config, 1)(torch.randn(1, 3, config.hidden_size))
    assert called == set(cases.LAYER_OPS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_absent_cuda_is_refused(capsys):
    assert sweep.main(["--device", "cuda"]) == 2
    assert "sweep: --device cuda: this torch" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", KEYS)
@pytest.mark.parametrize("op", op_calls.OPS)
def test_every_input_is_made_on_the_device(op, dtype):
    """On the meta device: a tensor left on the CPU would meet one that is not, or give a CPU result."""
    config = options.preset("125m")
    calls = op_calls.random_calls(
        op, config, 1, batch=2, length=40, dtype=options.DTYPES[dtype], device=torch.device("meta")
    )
    for name, call in calls.items():
        if (op, name) not in {(update, "naive") for update in sweep.UPDATE_OPS}:  # reads slots' values
            assert call().device.type == "meta", name
