"""The benchmark's arithmetic, its results' form and how it refuses; no timing is judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import hymba_ops
from bench import cases, layer_throughput, memory, parts, plain, roofline, runner, threads
from hymba_ops import HymbaConfig

ROOT = Path(__file__).resolve().parent.parent
SLIDING, GLOBAL = 1, 0  # layers of the 1.5b preset


def work_of(layer, seq_len, element_size):
    return roofline.layer_work(HymbaConfig.hymba_1_5b(), layer, batch=1, seq_len=seq_len, element_size=element_size)


def test_work_a_token():
    """Hand-counted for Hymba-1.5B: FLOP, special functions and bytes (bfloat16) of a position."""
    work, positions = work_of(SLIDING, 8192, 2), 8192 + 128
    mixer = sum(work[part].flop for part in ("in_proj", "x, dt proj + norms", "norm-average + out_proj"))
    assert mixer / positions == pytest.approx(40.4e6, rel=2e-3)
    assert work["MLP"].flop / positions == pytest.approx(52.8e6, rel=2e-3)
    assert work["scan"].special / positions == pytest.approx(64.0e3, rel=1e-3)
    assert work["scan"].bytes / positions == pytest.approx(25.6e3, rel=1e-3)
    assert work["conv + SiLU"].bytes / positions == pytest.approx(12.8e3, rel=1e-3)


@pytest.mark.parametrize("layer,keys", [(SLIDING, 1089), (GLOBAL, 4225)], ids=["sliding", "global"])
def test_attention_work_of_the_real_tokens(layer, keys):
    """Keys that a token of 8192 behind 128 meta tokens sees on average."""
    config = HymbaConfig.hymba_1_5b()
    pairs = work_of(layer, 8192, 2)["attention"].special / config.num_attention_heads
    meta_pairs = 128 * 129 / 2
    assert (pairs - meta_pairs) / 8192 == pytest.approx(keys, rel=5e-3)


@pytest.mark.parametrize("length", [1, 2, 5, 9, 30])
@pytest.mark.parametrize("window", [None, 0, 1, 4, 100])
@pytest.mark.parametrize("num_meta", [0, 1, 3, 50])
def test_visible_pairs_by_brute_force(length, window, num_meta):
    positions = torch.arange(length)
    mask = plain.visible(positions, positions, window, num_meta)
    assert roofline.visible_pairs(length, window, num_meta) == int(mask.sum())


def test_floors_add_up_on_a_cpu():
    """At 350 GFLOP/s, 14.6 Gexp/s and 24 GB/s, float32, 2048 tokens: floors in ms that were worked out by hand."""
    ceilings = roofline.Ceilings(gemm=350e9, bandwidth=24e9, special=14.6e9, separate_units=False)
    work = work_of(SLIDING, 2048, 4)
    expected = {"in_proj": 178, "attention": 54, "conv + SiLU": 2.4, "x, dt proj + norms": 9, "scan": 14, "MLP": 328}
    for part, ms in expected.items():
        assert 1e3 * ceilings.seconds(work[part]) == pytest.approx(ms, rel=0.06), part
    assert 1e3 * ceilings.layer_seconds(work) == pytest.approx(659, rel=0.03)


@pytest.mark.parametrize("window", [None, 20, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["padded", "products"])
@pytest.mark.parametrize("attention", [plain.blocked_attention, plain.masked_attention])
def test_plain_attention_is_the_reference(attention, dtype, window):
    import python_reference as reference

    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 600, heads, dim, dtype=dtype) for heads, dim in ((6, 8), (2, 8), (2, 12)))
    mask = {"window": window, "num_meta": 5, "scale": 0.3}
    assert torch.allclose(attention(q, k, v, **mask), reference.attention(q, k, v, **mask), atol=2e-6)


def test_plain_convolution_is_the_reference():
    import python_reference as reference

    x, weight, bias = torch.randn(2, 20, 6), torch.randn(6, 4), torch.randn(6)
    expected = reference.causal_conv1d(x, weight, bias)
    assert torch.allclose(plain.library_conv1d(x, weight, bias), expected, atol=1e-6)


def run(*options, **environment):
    command = [sys.executable, str(ROOT / "bench" / "layer_throughput.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, cwd="/")


def test_a_small_run_from_elsewhere(tmp_path):
    out = tmp_path / "out.json"
    small = ("--preset", "125m", "--seq-len", "40", "--device", "cpu", "--implementations", "hymba_ops,plain,naive")
    finished = run(*small, "--json", str(out))
    assert finished.returncode == 0, finished.stderr
    results = json.loads(out.read_text())
    rows = results["rows"]
    assert [(row["layer"], row["implementation"]) for row in rows] == [
        (layer, name) for layer in ("sliding", "global") for name in ("hymba_ops", "plain", "naive")
    ]
    for row in rows:
        assert set(row) == {
            "implementation", "mode", "layer", "dtype", "batch", "seq_len", "ms", "ms_min", "ms_max", "tokens_per_s",
            "ratio_to_best_plain", "floor_ms", "ratio_to_floor", "peak_bytes",
        }  # fmt: skip
        assert (row["mode"], row["dtype"], row["batch"], row["seq_len"]) == ("forward", "float32", 1, 40)
        assert 0 < row["ms_min"] <= row["ms"] <= row["ms_max"] and row["floor_ms"] > 0
        assert row["tokens_per_s"] == pytest.approx(40e3 / row["ms"])
    assert {"device", "threads", "kernels", "torch"} <= set(results["machine"])
    assert results["not_run"] == [] and set(results) == {"machine", "commit", "preset", "rows", "not_run"}
    assert "hymba_ops" in finished.stdout and "tokens/s" in finished.stdout


def test_threads_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(layer_throughput.os, "sched_getaffinity", lambda _: {0, 1})
    out, before = tmp_path / "out.json", torch.get_num_threads()
    small = ["--preset", "125m", "--seq-len", "4", "--layers", "sliding", "--threads", "2"]
    assert layer_throughput.main([*small, "--json", str(out)]) == 0
    assert torch.get_num_threads() == before
    rows = json.loads(out.read_text())["threads"]
    assert [(row["threads"], row["part"]) for row in rows] == [
        (count, part) for count in (1, 2) for part in ("layer", *parts_in_order())
    ]
    alone = {row["part"]: row["ms"] for row in rows if row["threads"] == 1}
    for row in rows:
        assert row["ms_min"] <= row["ms"] <= row["ms_max"]
        assert row["speedup"] == pytest.approx(alone[row["part"]] / row["ms"])
    printed = capsys.readouterr().out
    assert "1 thread ms" in printed and "2 threads ms" in printed and "(1.00x)" in printed


def parts_in_order():
    config = HymbaConfig.hymba_125m()
    layers = cases.make_layers(config, 1, ["hymba_ops", "plain"], torch.device("cpu"), torch.float32)
    hidden = torch.randn(1, 3, config.hidden_size)
    with torch.inference_mode():
        return list(parts.part_calls(layers["hymba_ops"], layers["plain"], config, 1, hidden))


@pytest.mark.parametrize("cores,counts", [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_default_thread_counts(cores, counts):
    assert threads.default_counts(cores) == counts


def test_memory_table(tmp_path, capsys):
    out = tmp_path / "out.json"
    small = ["--preset", "125m", "--seq-len", "400", "--layers", "sliding", "--memory"]
    assert layer_throughput.main([*small, "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["memory"]
    assert [row["implementation"] for row in rows] == ["hymba_ops", "plain"]
    for row in rows:
        config, positions = HymbaConfig.hymba_125m(), 400 + 128
        assert (row["layer"], row["length"], row["dtype"]) == ("sliding", positions, "float32")
        in_proj = hymba_ops.HybridMixer(config, 1, device="meta").in_proj.out_features
        assert row["outputs_bytes"] == 4 * positions * (in_proj + config.hidden_size)
        # What the layer returns is part of the growth, and nothing near its square of scores is.
        assert 4 * positions * config.hidden_size <= row["growth_bytes"] < 2**28
        assert row["multiple"] == pytest.approx(row["growth_bytes"] / row["outputs_bytes"])
    assert "growth MiB" in capsys.readouterr().out


def test_memory_measures_what_a_call_takes():
    """A call that fills 64 MiB and frees them, then one that takes nothing."""
    device = torch.device("cpu")
    taken = runner.peak_extra_bytes(lambda: torch.ones(1 << 24).sum(), device)
    if taken is None:
        pytest.skip("this system does not say the peak resident set")
    assert 0.9 * 2**26 < taken < 2 * 2**26
    assert runner.peak_extra_bytes(lambda: None, device) < 2**22


def test_a_failed_memory_child_is_refused_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(memory.sys, "executable", "/bin/false")
    assert layer_throughput.main(["--preset", "125m", "--seq-len", "8", "--memory"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == "layer_throughput: --memory: the process that measures hymba_ops failed: exit status 1"


@pytest.mark.parametrize("length", [1, 1024, 2500])
def test_relative_rms(length):
    expected = torch.randn(2, length, 3)
    actual = expected + 0.01 * torch.randn(2, length, 3)
    by_hand = (actual - expected).double().norm() / expected.double().norm()
    assert runner.relative_rms(actual, expected) == pytest.approx(by_hand.item())
    assert not runner.relative_rms(actual.index_fill(1, torch.tensor([length - 1]), torch.nan), expected) <= 1
    assert not runner.relative_rms(actual, torch.zeros_like(expected)) <= 1
    assert runner.relative_rms(torch.zeros(2, 3), torch.zeros(2, 3)) == 0


def test_the_gemm_ceiling_is_the_fastest_product(monkeypatch):
    """A product that takes no time raises the rate; one that takes long does not lower it."""
    config, device = HymbaConfig.hymba_125m(), torch.device("cpu")

    def instant(x, weight):
        pass

    def slow(x, weight):
        time.sleep(0.02)

    monkeypatch.setattr(roofline, "_PRODUCTS", {"cpu": (slow,)})
    alone = roofline.gemm_rate(config, 64, device, torch.float32)
    monkeypatch.setattr(roofline, "_PRODUCTS", {"cpu": (slow, instant, slow)})
    assert roofline.gemm_rate(config, 64, device, torch.float32) > 2 * alone


REFUSED = [
    (("--preset", "7b"), "--preset must be of 125m, 350m, 1.5b, got '7b'"),
    (("--dtype", "int8"), "--dtype must be of float32, bfloat16, float16, got 'int8'"),
    (("--layers", "sliding,odd"), "--layers must be of sliding, global, got 'odd'"),
    (
        ("--implementations", "fast"),
        "--implementations must be of hymba_ops, plain, naive, compiled, upcast, flex, sdpa, published, got 'fast'",
    ),
    (("--device", "tpu"), "--device must be cpu or cuda, got 'tpu'"),
    (("--seq-len", "0"), "--seq-len must be at least 1, got 0"),
    (("--device", "cpu", "--seq-len", "100000000"), "not enough memory on cpu: about"),
    (("--parts", "--implementations", "plain"), "--parts and --plot need hymba_ops among --implementations"),
    (("--parts", "--peers", "flex,fast"), "--peers must be of flex, flex-halves, sdpa, compiled-blocks, "),
    (("--threads", "0"), "--threads must be from 1 to "),
    (("--threads", "two"), "--threads must be from 1 to "),
    (("--threads", "1,100000"), "--threads must be from 1 to "),
    (("--threads", "--parts"), "--parts and --plot belong to the table, which --threads and --memory replace"),
    (("--memory", "--parts"), "--parts and --plot belong to the table, which --threads and --memory replace"),
    (("--memory", "--device", "cuda"), "--threads and --memory are about a CPU, got --device cuda"),
    (
        ("--memory", "--implementations", "fast"),
        "--implementations must be of hymba_ops, plain, naive, compiled, upcast, flex, sdpa, published, got",
    ),
    (("--memory", "--seq-len", "-3"), "--seq-len must be at least 1, got -3"),
    (("--json", "/no/such/folder/out.json"), "--json /no/such/folder/out.json: cannot write there"),
]


@pytest.mark.parametrize(
    "options,message", REFUSED, ids=lambda case: "-".join(case).strip("-") if isinstance(case, tuple) else ""
)
def test_refused_in_one_line_with_status_2(options, message, capsys):
    assert layer_throughput.main(list(options)) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith(f"layer_throughput: {message}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_absent_cuda_is_refused(capsys):
    assert layer_throughput.main(["--device", "cuda"]) == 2
    assert "--device cuda: this torch" in capsys.readouterr().err


def test_wrong_output_is_found_before_timing(monkeypatch, capsys):
    """A window that is one key short must not be timed: the sequence is longer than window and meta tokens."""
    right = plain.masked_attention

    def one_key_short(q, k, v, *, window, num_meta, scale):
        return right(q, k, v, window=window - 1, num_meta=num_meta, scale=scale)

    def never(*_, **__):
        raise AssertionError("timed a wrong row")

    monkeypatch.setattr(plain, "masked_attention", one_key_short)
    monkeypatch.setattr(layer_throughput, "time_layers", never)
    small = ["--preset", "125m", "--seq-len", "1100", "--device", "cpu", "--implementations", "plain,naive"]
    assert layer_throughput.main([*small, "--layers", "sliding"]) == 1
    assert "naive differs from plain in the sliding layer: relative rms" in capsys.readouterr().err


def test_a_plot_in_an_unknown_format_is_refused_at_once(capsys):
    pytest.importorskip("matplotlib")
    assert layer_throughput.main(["--plot", "layer.odd"]) == 2
    assert "--plot layer.odd: the name must end in one of" in capsys.readouterr().err


def test_what_does_not_compile_is_refused_in_one_line(monkeypatch, capsys):
    from torch._dynamo.exc import TorchDynamoException

    class Uncompilable(torch.nn.Module):
        def forward(self, hidden):
            raise TorchDynamoException("no working C++ compiler\nand a long trace")

    monkeypatch.setattr(torch, "compile", lambda layer, **_: Uncompilable())
    small = ["--preset", "125m", "--seq-len", "40", "--device", "cpu", "--implementations", "plain,compiled"]
    assert layer_throughput.main(small) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == "layer_throughput: compiled does not compile here: no working C++ compiler"


def test_parts_cover_the_roofline():
    config = HymbaConfig.hymba_125m()
    from hymba_ops import HymbaLayer

    ours = HymbaLayer(config, 1)
    theirs = plain.layer_with(plain.PlainMixer, config, 1)
    theirs.load_state_dict(ours.state_dict())
    with torch.inference_mode():
        calls = parts.part_calls(ours, theirs, config, 1, torch.randn(1, 140, config.hidden_size))
        assert set(calls) == set(roofline.PARTS)
        for part in ("attention", "conv + SiLU", "scan", "norm-average + out_proj"):
            actual, expected = (calls[part][name]() for name in ("hymba_ops", "plain"))
            assert torch.allclose(actual, expected, atol=1e-4, rtol=1e-4), part
