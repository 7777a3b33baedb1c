"""bench/decode_throughput.py: results, refusals, and what is for a GPU on stand-ins; no timing is judged."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hymba_ops
from bench import decode_cases, decode_throughput, decode_work, graphs, options, plain_step, roofline, runner
from bench.decode_cases import Size, stack_config

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--preset", "125m", "--count", "2", "--device", "cpu"]


ROW = {
    "implementation", "mode", "layer", "batch", "context", "dtype", "tokens", "ms", "ms_min", "ms_max", "us_per_layer",
    "tokens_per_s", "ratio_to_best_plain", "floor_ms", "ratio_to_floor", "bytes", "weight_bytes", "share_of_copy",
    "gemm_gflops", "relative_rms",
}  # fmt: skip


def test_a_small_run_from_elsewhere(tmp_path):
    out, script = tmp_path / "out.json", ROOT / "bench" / "decode_throughput.py"
    options_ = ["--layers", "model", "--batches", "2", "--contexts", "1030,40", "--dtype", "bfloat16"]
    command = [sys.executable, str(script), *SMALL, *options_, "--json", str(out)]
    finished = subprocess.run(command, capture_output=True, text=True, env=os.environ, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    results = json.loads(out.read_text())
    rows = results["rows"]
    assert [(row["context"], row["implementation"]) for row in rows] == [
        (context, name) for context in (40, 1030) for name in ("hymba_ops", "plain", "sdpa", "upcast")
    ]
    for row in rows:
        assert set(row) == ROW and (row["mode"], row["layer"]) == ("decode", "model")
        assert (row["dtype"], row["batch"], row["tokens"]) == ("bfloat16", 2, 1)
        assert 0 < row["ms_min"] <= row["ms"] <= row["ms_max"] and row["relative_rms"] < 0.03
        assert row["us_per_layer"] == pytest.approx(500 * row["ms"])
        assert row["tokens_per_s"] == pytest.approx(2e3 / row["ms"])
        assert row["ratio_to_floor"] == pytest.approx(row["ms"] / row["floor_ms"])
        copied = 1e9 * results["machine"]["copy_gb_per_s"]
        assert row["share_of_copy"] == pytest.approx(row["bytes"] / (1e-3 * row["ms"]) / copied)
        assert row["ratio_to_best_plain"] == pytest.approx(min(plain_times(rows, row)) / row["ms"])
    assert len(results["flatness"]) == 4
    assert {"gemm_gflops", "exp_g_per_s", "bandwidth_gb_per_s", "device", "torch"} <= set(results["machine"])
    assert (results["graph"], results["count"], results["preset"]) == (False, 2, "125m")
    assert results["left_out"] == results["not_run"] == results["wrong"] == []
    assert "of copy" in finished.stdout and "a step at context 1030 over one at 40: hymba_ops" in finished.stdout


def plain_times(rows, row):
    """Of the eager plain forms in the same case."""
    same = [r for r in rows if (r["layer"], r["context"]) == (row["layer"], row["context"])]
    return [r["ms"] for r in same if r["implementation"] in ("plain", "sdpa", "upcast")]


@pytest.fixture
def quick(monkeypatch):
    """Ceilings are not measured, and a call is timed a few times only."""
    ceilings = roofline.Ceilings(gemm=1e12, bandwidth=1e9, special=1e15, separate_units=True)
    monkeypatch.setattr(roofline, "measure", lambda *_, **__: ceilings)
    monkeypatch.setattr(roofline, "copy_bandwidth", lambda device: 2e9)
    monkeypatch.setattr(roofline, "gemm_rate", lambda *_, **__: 3e11)
    right = runner.time_rounds
    monkeypatch.setattr(
        decode_throughput,
        "time_rounds",
        lambda calls, device, **options_: right(calls, device, **options_ | {"most": 2}),
    )


def run(tmp_path, *words):
    """The exit status and the results."""
    out = tmp_path / "out.json"
    status = decode_throughput.main([*SMALL, "--json", str(out), *words])
    return status, json.loads(out.read_text())


def test_floors_and_shares_follow_from_the_ceilings(quick, tmp_path, capsys):
    _, results = run(tmp_path, "--layers", "global", "--contexts", "40,70", "--batches", "1", "--tokens", "2")
    config = stack_config(options.preset("125m"), "global", 2)
    for row in results["rows"]:
        work = decode_work.stack_work(config, batch=1, context=row["context"], tokens=2, itemsize=4)
        assert row["bytes"] == sum(layer.bytes for layer in work)
        assert row["floor_ms"] == pytest.approx(row["bytes"] / 1e6)  # at 1 GB/s
        assert row["share_of_copy"] == pytest.approx(row["bytes"] / row["ms"] * 1e3 / 2e9)
        assert row["gemm_gflops"] == 300 and row["tokens"] == 2
    first, last = (
        next(row for row in results["rows"] if row["context"] == context and row["implementation"] == "plain")
        for context in (40, 70)
    )
    flat = {"layer": "global", "batch": 1, "implementation": "plain", "from": 40, "to": 70}
    assert flat | {"ratio": last["ms"] / first["ms"]} in results["flatness"]
    assert "1000 GFLOP/s (300 at 2 rows)" in capsys.readouterr().out


def test_a_wrong_output_is_named_and_not_timed(quick, tmp_path, monkeypatch, capsys):
    right = decode_cases.layer_step
    monkeypatch.setattr(decode_cases, "layer_step", lambda *args, **kwargs: 1.001 * right(*args, **kwargs))
    status, results = run(tmp_path, "--layers", "sliding", "--contexts", "40", "--batches", "1")
    assert status == 1
    assert [row["implementation"] for row in results["rows"]] == ["plain", "sdpa"]
    (wrong,) = results["wrong"]
    assert (wrong["layer"], wrong["batch"], wrong["context"], wrong["implementation"]) == (
        "sliding",
        1,
        40,
        "hymba_ops",
    )
    assert wrong["reason"].startswith("hymba_ops differs from plain in layer 0: relative rms 1.0")
    assert "WRONG, not timed: hymba_ops, sliding, batch 1, context 40" in capsys.readouterr().out


@pytest.mark.parametrize("name,status", [("sdpa", 0), ("hymba_ops", 1)])
def test_what_cannot_run_is_named(name, status, quick, tmp_path, monkeypatch, capsys):
    def fails(*_, **__):
        raise RuntimeError("no such kernel\nand a long trace")

    where = (plain_step, "padded_sdpa") if name == "sdpa" else (decode_cases, "layer_step")
    monkeypatch.setattr(*where, fails)
    words = ("--layers", "sliding", "--contexts", "40", "--batches", "1")
    got, results = run(tmp_path, *words)
    assert got == status
    assert [row["implementation"] for row in results["rows"]] == [
        other for other in ("hymba_ops", "plain", "sdpa") if other != name
    ]
    assert [(row["implementation"], row["reason"]) for row in results["not_run"]] == [
        (name, "RuntimeError: no such kernel")
    ]
    assert (
        f"could not run: {name}, sliding, batch 1, context 40: RuntimeError: no such kernel" in capsys.readouterr().out
    )


def test_what_does_not_fit_is_left_out_and_named(quick, tmp_path, monkeypatch, capsys):
    config = stack_config(options.preset("125m"), "sliding", 2)
    room = decode_work.weight_bytes(config, 4) + decode_cases.needed_bytes(
        config, Size(2, 40, 1), ["hymba_ops", "plain", "sdpa"], 4
    )
    monkeypatch.setattr(decode_throughput, "available_bytes", lambda device: room)
    status, results = run(tmp_path, "--layers", "sliding,global", "--contexts", "40,9000", "--batches", "2")
    assert status == 0
    assert [(row["layer"], row["batch"], row["context"]) for row in results["left_out"]] == [("global", 2, 9000)]
    printed = capsys.readouterr().out
    assert "left out: global, batch 2, context 9000: not enough memory on cpu: about" in printed
    monkeypatch.setattr(decode_throughput, "available_bytes", lambda device: room // 2)
    assert decode_throughput.main([*SMALL, "--contexts", "40", "--batches", "1"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("decode_throughput: not enough memory on cpu: about")


def test_running_out_of_memory_leaves_out_one_case(quick, tmp_path, monkeypatch):
    right = decode_throughput.Case.make

    def make(stack, size, names):
        if size.context == 50:
            raise torch.OutOfMemoryError("out of memory\nand how it is used")
        return right(stack, size, names)

    monkeypatch.setattr(decode_throughput.Case, "make", make)
    status, results = run(tmp_path, "--layers", "sliding", "--contexts", "40,50,60", "--batches", "1")
    assert status == 0 and {row["context"] for row in results["rows"]} == {40, 60}
    assert results["left_out"] == [{"layer": "sliding", "batch": 1, "context": 50, "reason": "out of memory"}]


REFUSED = [
    (("--preset", "7b"), "--preset must be of 125m, 350m, 1.5b, got '7b'"),
    (("--dtype", "int8"), "--dtype must be of float32, bfloat16, float16, got 'int8'"),
    (("--layers", "sliding,odd"), "--layers must be of sliding, global, model, got 'odd'"),
    (
        ("--implementations", "fast"),
        "--implementations must be of hymba_ops, plain, sdpa, upcast, compiled, got 'fast'",
    ),
    (("--device", "tpu"), "--device must be cpu or cuda, got 'tpu'"),
    (("--count", "0"), "--count must be from 1 to the preset's 32, got 0"),
    (("--preset", "125m", "--count", "25"), "--count must be from 1 to the preset's 24, got 25"),
    (("--tokens", "17"), "--tokens must be from 1 to 16, got 17"),
    (("--batches", "1,0"), "--batches must be at least 1, got '0'"),
    (("--contexts", "many"), "--contexts must be at least 1, got 'many'"),
    (("--json", "/no/such/folder/out.json"), "--json /no/such/folder/out.json: cannot write there"),
]


@pytest.mark.parametrize(
    "words,message", REFUSED, ids=lambda case: "-".join(case).strip("-")[:40] if isinstance(case, tuple) else ""
)
def test_refused_in_one_line_with_status_2(words, message, capsys):
    assert decode_throughput.main(list(words)) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1] == f"decode_throughput: {message}"


def test_a_device_without_kernels_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(hymba_ops, "build_info", lambda: {"cuda_architectures": ""})
    assert decode_throughput.main(["--device", "cuda"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(
        "decode_throughput: hymba_ops has no cuda kernel of norm_project, decode_branches, norm_average_project, gated_mlp"
    )


# ---- For a GPU ----


def test_defaults_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    arguments = decode_throughput.parse_arguments([])
    assert (arguments.device.type, arguments.dtype, arguments.count, arguments.graph) == ("cuda", "bfloat16", 32, True)
    assert arguments.layers == ["sliding", "global", "model"] and arguments.batches == [1, 32]
    assert arguments.contexts == [2048, 8192, 32768, 131072] and arguments.tokens == 1
    assert arguments.implementations == ["hymba_ops", "plain", "sdpa", "compiled"]
    assert not decode_throughput.parse_arguments(["--eager"]).graph
    on_cpu = decode_throughput.parse_arguments(["--device", "cpu"])
    assert not on_cpu.graph and on_cpu.implementations == ["hymba_ops", "plain", "sdpa"]


class StandIn:
    """For CUDA's streams and graphs: `log` has what happened in order."""

    def __init__(self, monkeypatch):
        self.log = log = []

        class Stream:
            def __init__(self, name="side"):
                self.name = name

            def wait_stream(self, other):
                log.append(f"{self.name} waits for {other.name}")

        class Graph:
            def replay(self):
                log.append("replay")

        @contextlib.contextmanager
        def within(what):
            log.append(f"begin {type(what).__name__}")
            yield
            log.append(f"end {type(what).__name__}")

        for name, stand_in in (
            ("Stream", Stream), ("current_stream", lambda: Stream("main")), ("stream", within), ("CUDAGraph", Graph),
            ("graph", within),
        ):  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, stand_in)


def test_a_graph_is_captured_after_warming_up_beside(monkeypatch):
    stand_in = StandIn(monkeypatch)
    replay, result = graphs.captured(lambda: stand_in.log.append("call") or torch.ones(len(stand_in.log)))
    assert stand_in.log == [
        "side waits for main", "begin Stream", "call", "call", "call", "end Stream", "main waits for side",
        "begin Graph", "call", "end Graph",
    ]  # fmt: skip
    assert len(result) == 9  # of the call that was captured
    replay()
    assert stand_in.log[-1] == "replay"


@pytest.mark.parametrize("replays", ["right", "wrong", "raises"])
def test_graphs_are_timed_if_they_give_what_the_step_gave(replays, quick, tmp_path, monkeypatch):
    """On a CPU as if on a GPU: a replay of a step of `sdpa` that was captured too early gives the step before."""
    captured = []

    def capture(call):
        captured.append(call)
        if replays == "raises" and len(captured) == 3:
            raise RuntimeError("operation not permitted when stream is capturing")
        for _ in range(4):
            result = call()
        stale = replays == "wrong" and len(captured) == 3
        return (lambda: None if stale else result.copy_(call())), result

    parse = decode_throughput.parse_arguments

    def with_graphs(argv):
        arguments = parse(argv)
        arguments.graph = True
        return arguments

    monkeypatch.setattr(decode_throughput, "captured", capture)
    monkeypatch.setattr(decode_throughput, "parse_arguments", with_graphs)
    status, results = run(tmp_path, "--layers", "model", "--contexts", "40", "--batches", "1")
    assert len(captured) == 3 and results["graph"]
    assert status == (1 if replays == "wrong" else 0)
    timed = [row["implementation"] for row in results["rows"]]
    assert timed == (["hymba_ops", "plain", "sdpa"] if replays == "right" else ["hymba_ops", "plain"])
    reasons = [row["reason"] for row in results["wrong"] + results["not_run"]]
    if replays == "wrong":
        assert reasons[0].startswith("sdpa's graph differs from its step: relative rms")
    elif replays == "raises":
        assert reasons == ["RuntimeError: operation not permitted when stream is capturing"]


def test_freed_memory_counts_before_a_case_is_made(monkeypatch):
    """What torch keeps of the case before is given back, then the device is asked."""
    log = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: log.append("empty_cache"))
    monkeypatch.setattr(decode_throughput, "available_bytes", lambda device: log.append(device.type) or 100)
    benchmark = decode_throughput.Benchmark.__new__(decode_throughput.Benchmark)
    benchmark.device = torch.device("cuda")
    assert benchmark._no_room(100) is None and "not enough memory on cuda" in benchmark._no_room(101)
    assert log == ["empty_cache", "cuda"] * 2
