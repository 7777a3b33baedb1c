"""bench/sweep.py: its cases and their order, what it leaves out and says of it, its verdicts; no timing is judged."""

from __future__ import annotations

import json
import re

import pytest
import torch

import python_reference
from bench import cases, op_calls, options, sweep
from bench.runner import Timing

CPU = torch.device("cpu")
TINY = ["--device", "cpu", "--presets", "125m", "--batches", "1", "--dtypes", "float32"]


def planned(*options):
    return list(sweep.all_cases(sweep.parse_arguments(list(options))))


def case(**changes):
    values = {"preset": "125m", "batch": 1, "dtype": "float32", "op": "rotary", "layer": "", "seq_len": 1}
    return sweep.Case(**values | changes)


def row(op="attention", seq_len=16, ours=(1.0, 0.9), plain=(1.0, 0.9)):
    timings = {"hymba_ops": Timing(*ours, 9.0, None), "plain": Timing(*plain, 9.0, None)}
    return sweep.make_row(case(op=op, seq_len=seq_len), timings)


def test_every_case_once_and_the_large_preset_first():
    cases_ = planned()
    assert len(cases_) == len(set(cases_)) == 3 * 2 * 2 * (6 * 14 + 2 + 3)
    assert [c.preset for c in cases_[:: len(cases_) // 3]][:3] == ["1.5b", "350m", "125m"]
    assert {c.seq_len for c in cases_ if c.op == "layer"} == {1, 16, 128, 1024, 4096, 16384}
    assert {c.layer for c in cases_ if c.op in sweep.LAYERED_OPS} == {"sliding", "global"}
    assert {c.seq_len for c in cases_ if c.op in sweep.UPDATE_OPS} == {1}
    assert {c.op for c in cases_} - {"layer"} == set(python_reference.__all__) & set(op_calls.OPS) == set(op_calls.OPS)


def test_selections():
    options = ("--presets", "125m,1.5b", "--seq-lens", "9,3", "--batches", "2", "--dtypes", "bfloat16")
    chosen = planned(*options, "--ops", "attention", "--layers", "global")
    assert chosen == [
        case(preset=preset, batch=2, dtype="bfloat16", op="attention", layer="global", seq_len=seq_len)
        for preset in ("1.5b", "125m")
        for seq_len in (3, 9)
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("op", op_calls.OPS)
def test_every_form_of_an_op_agrees(op, dtype):
    config = options.preset("125m")
    with torch.inference_mode():
        calls = op_calls.random_calls(op, config, 1, batch=2, length=40, dtype=options.DTYPES[dtype], device=CPU)
        expected = calls["plain"]()
        assert {"hymba_ops", "plain"} <= set(calls)
        for name, call in calls.items():
            if name != "plain":
                cases.check_agreement(name, call(), expected)


@pytest.mark.parametrize("dtype,names", [("float32", 3), ("bfloat16", 4)])
def test_every_form_of_the_layer_agrees(dtype, names):
    chosen = case(op="layer", layer="sliding", dtype=dtype)
    with torch.inference_mode():
        calls = sweep.LayerCache(CPU).calls(chosen, options.preset("125m"), 1, 150)
        assert list(calls)[:2] == ["hymba_ops", "plain"] and len(calls) == names
        assert {call().dtype for call in calls.values()} == {options.DTYPES[dtype]}
        assert sweep.compare(calls) > 0


@pytest.mark.parametrize("op", ["causal_conv1d_update", "mamba_update", "selective_state_update"])
def test_update_forms_leave_the_same_state(op):
    """The second call starts from the state that the first one left."""
    with torch.inference_mode():
        calls = op_calls.random_calls(op, options.preset("125m"), 1, batch=3, length=1, dtype=torch.float32, device=CPU)
        first, second = ({name: call() for name, call in calls.items()} for _ in range(2))
    assert not torch.allclose(first["plain"], second["plain"])
    for out in second.values():
        assert torch.allclose(out, second["plain"], atol=1e-5)


def test_a_small_run(tmp_path, capsys):
    out, picture = tmp_path / "out.json", tmp_path / "out.png"
    ops = ["--ops", "layer,rms_norm,causal_conv1d_update", "--seq-lens", "1,3", "--layers", "global"]
    pytest.importorskip("matplotlib")
    assert sweep.main([*TINY, *ops, "--json", str(out), "--plot", str(picture)]) == 0
    results = json.loads(out.read_text())
    assert [(r["op"], r["layer"], r["seq_len"]) for r in results["rows"]] == [
        ("layer", "global", 1), ("layer", "global", 3), ("rms_norm", "", 1), ("rms_norm", "", 3),
        ("causal_conv1d_update", "", 1),
    ]  # fmt: skip
    for r in results["rows"]:
        assert 0 < r["ms_min"] <= r["ms"] <= r["ms_max"]
        assert r["ratio"] == pytest.approx(r["plain_ms"] / r["ms"])
        assert r["difference_us"] == pytest.approx(1e3 * (r["ms"] - r["plain_ms"]))
        assert r["plain_form"] in ("plain", "naive", "library") and r["relative_rms"] < 1e-4
        assert r["forms_ms"][r["plain_form"]] == r["plain_ms"] == min(r["forms_ms"].values())
    assert results["left_out"] == results["wrong"] == []
    assert {"device", "threads", "kernels", "torch"} <= set(results["machine"])
    assert picture.stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "rms_norm" in printed and "slower than plain PyTorch:" in printed


def test_best_plain_is_the_fastest_form():
    timings = {name: Timing(ms, ms, ms, None) for name, ms in (("hymba_ops", 1.0), ("plain", 9.0), ("naive", 3.0))}
    made = sweep.make_row(case(), timings)
    assert (made["plain_form"], made["plain_ms"], made["ratio"], made["difference_us"]) == ("naive", 3.0, 3.0, -2000.0)


@pytest.mark.parametrize(
    "made,slower",
    [
        (row(ours=(1.2, 1.1)), True),
        (row(ours=(1.01, 0.95)), False),  # within noise
        (row(ours=(1.2, 0.8)), False),  # the fastest call was faster than plain's
        (row(ours=(0.8, 0.7)), False),
        (row("rms_norm", 1, ours=(0.030, 0.029), plain=(0.011, 0.010)), False),  # 19 us
        (row("rms_norm", 1, ours=(0.032, 0.031), plain=(0.011, 0.010)), True),  # 21 us
        (row("rms_norm", 16, ours=(0.030, 0.029), plain=(0.011, 0.010)), True),
        (row("selective_scan", 1, ours=(0.030, 0.029), plain=(0.011, 0.010)), True),
    ],
)
def test_is_slower(made, slower):
    assert sweep.is_slower(made) == slower


def test_what_looks_slower_is_timed_again(monkeypatch, capsys):
    """Once slower, then not: the second time counts. Always slower: it is named."""
    answers = iter([5.0, 0.5, 5.0, 5.0])

    def fake(candidates, device):
        plain = {name: Timing(1.0, 1.0, 1.0, None) for name in candidates}
        ms = next(answers)
        return plain | {"hymba_ops": Timing(ms, ms, ms, None)}

    monkeypatch.setattr(sweep, "_time", fake)
    assert sweep.main([*TINY, "--ops", "rotary", "--seq-lens", "2,3"]) == 0
    printed = capsys.readouterr().out
    assert printed.split("slower than plain PyTorch:")[1].strip() == (
        "125m float32 batch 1 rotary, length 3: 5 ms, plain 1 ms (0.20x, +4000 us)"
    )
    assert next(answers, None) is None


def test_a_case_too_big_is_left_out_and_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sweep, "available_bytes", lambda _: 1 << 20)
    out = tmp_path / "out.json"
    options = [*TINY, "--ops", "rms_norm", "--seq-lens", "3,2000,3000", "--json", str(out)]
    assert sweep.main(options) == 0
    results = json.loads(out.read_text())
    assert [r["seq_len"] for r in results["rows"]] == [3]
    assert [r["seq_len"] for r in results["left_out"]] == [2000, 3000]
    assert "GiB needed" in results["left_out"][0]["reason"]
    assert "125m float32 batch 1 rms_norm, length 2000, 3000: about 0 GiB needed" in capsys.readouterr().out


def test_a_case_too_slow_is_left_out_and_named(capsys):
    assert sweep.main([*TINY, "--ops", "rms_norm", "--seq-lens", "3,2000", "--slowest", "1e-9"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"rms_norm, length 2000: a call of plain takes about \d+ s, more than 1e-09 s", printed)


def test_only_forms_that_are_too_slow_are_dropped(monkeypatch, tmp_path):
    """One of two plain forms seems slow: the case is timed against the other, and the slow one does not run in full."""
    right = op_calls.random_calls

    def never():
        raise AssertionError("ran a form that is too slow")

    monkeypatch.setattr(op_calls, "random_calls", lambda *args, **sizes: right(*args, **sizes) | {"plain": never})
    monkeypatch.setattr(sweep, "elapsed_ms", lambda call, device: 1e6 if call is never else 1e-3)
    out = tmp_path / "out.json"
    assert sweep.main([*TINY, "--ops", "causal_conv1d", "--seq-lens", "1600", "--json", str(out)]) == 0
    (r,) = json.loads(out.read_text())["rows"]
    assert r["plain_form"] == "naive"


def test_the_budget_is_kept(capsys):
    assert sweep.main([*TINY, "--ops", "rotary,rms_norm", "--budget", "0.000001"]) == 0
    printed = capsys.readouterr().out
    assert "rotary, length 1, 16, 128, 1024, 4096, 16384: the budget of 1e-06 s is used up" in printed
    assert printed.strip().endswith("slower than plain PyTorch: none")


def test_resumed_where_it_stopped(monkeypatch, tmp_path):
    """The second run measures what the first had no time for, and only that."""
    out, times = tmp_path / "out.json", []
    selection = [*TINY, "--ops", "rotary", "--seq-lens", "2,3,2000", "--slowest", "1e-9", "--json", str(out)]
    seconds_left = sweep.Sweep._seconds_left
    monkeypatch.setattr(sweep.Sweep, "_seconds_left", lambda self: 1.0 - len(self.results["rows"]))
    assert sweep.main([*selection, "--budget", "1"]) == 0
    first = json.loads(out.read_text())
    assert [r["seq_len"] for r in first["rows"]] == [2]
    assert [(r["seq_len"], r["for_now"]) for r in first["left_out"]] == [(3, True), (2000, True)]

    monkeypatch.setattr(sweep.Sweep, "_seconds_left", seconds_left)
    timed = sweep._time
    monkeypatch.setattr(sweep, "_time", lambda *args: times.append(args) or timed(*args))
    for _ in range(2):
        assert sweep.main([*selection, "--resume"]) == 0
        second = json.loads(out.read_text())
        assert [r["seq_len"] for r in second["rows"]] == [2, 3] and second["rows"][0] == first["rows"][0]
        assert [(r["seq_len"], r["for_now"]) for r in second["left_out"]] == [(2000, False)]
    assert len(times) in (1, 2)  # twice where the first time looked slow


def test_results_of_another_machine_are_not_mixed_in(tmp_path, capsys):
    out = tmp_path / "out.json"
    selection = [*TINY, "--ops", "rotary", "--seq-lens", "2", "--json", str(out)]
    assert sweep.main(selection) == 0
    other = json.loads(out.read_text())
    other["machine"]["device"] = "abacus"
    out.write_text(json.dumps(other))
    assert sweep.main([*selection, "--resume"]) == 2
    assert "--resume: the file was measured on {'device': 'abacus'" in capsys.readouterr().err
    assert json.loads(out.read_text()) == other


def test_results_of_another_commit_are_not_mixed_in(tmp_path, capsys):
    out = tmp_path / "out.json"
    selection = [*TINY, "--ops", "rotary", "--seq-lens", "2", "--json", str(out)]
    assert sweep.main(selection) == 0
    out.write_text(json.dumps(json.loads(out.read_text()) | {"commit": "abc"}))
    assert sweep.main([*selection, "--resume"]) == 2
    assert "sweep: --resume: the file is of commit abc, this is " in capsys.readouterr().err


def test_wrong_output_is_named_and_not_timed(monkeypatch, capsys):
    right = python_reference.rotary
    monkeypatch.setattr(python_reference, "rotary", lambda x, p, f: right(x, p + 1, f))
    monkeypatch.setattr(sweep, "_time", None)
    assert sweep.main([*TINY, "--ops", "rotary", "--seq-lens", "5"]) == 1
    assert (
        "125m float32 batch 1 rotary, length 5: hymba_ops differs from plain: relative rms" in capsys.readouterr().out
    )


def test_what_raises_is_named_and_the_rest_goes_on(monkeypatch, capsys):
    def out_of_memory(x, positions, inv_freq):
        raise torch.OutOfMemoryError("no memory left\nand a long story")

    monkeypatch.setattr(python_reference, "rotary", out_of_memory)
    assert sweep.main([*TINY, "--ops", "rotary,rms_norm", "--seq-lens", "5"]) == 1
    printed = capsys.readouterr().out
    assert "WRONG, not timed:\n  125m float32 batch 1 rotary, length 5: no memory left\n" in printed
    assert re.search(r"125m +float32 +1 +rms_norm +\S+ \(", printed)


@pytest.mark.parametrize("op", op_calls.OPS)
@pytest.mark.parametrize("layer", ["sliding", "global"])
def test_estimates_grow_with_the_length(op, layer):
    config, index = options.preset("1.5b"), 0 if layer == "global" else 1
    sizes = [case(preset="1.5b", op=op, layer=layer, seq_len=length) for length in (4096, 8192)]
    small, large = (sweep.needed_bytes(size, config) for size in sizes)
    assert 1.9 * small < large < 2.1 * small
    work = [sweep.relative_work(size, config, index, size.seq_len) for size in sizes]
    assert work[1] / work[0] == pytest.approx(4 if (op, layer) == ("attention", "global") else 2, rel=0.1)


@pytest.mark.parametrize(
    "options,message",
    [
        (("--presets", "7b"), "--presets must be of 1.5b, 350m, 125m, got '7b'"),
        (("--dtypes", "float16"), "--dtypes must be of float32, bfloat16, got 'float16'"),
        (("--ops", "softmax"), "--ops must be of layer, attention, "),
        (("--layers", "odd"), "--layers must be of sliding, global, got 'odd'"),
        (("--seq-lens", "1,0"), "--seq-lens must be at least 1, got '0'"),
        (("--batches", "1.5"), "--batches must be at least 1, got '1.5'"),
        (("--peers", "fast"), "--peers must be of flex, flex-halves, sdpa, compiled-blocks, compiled-masked, "),
        (("--budget", "0"), "--budget must be above 0 seconds, got 0"),
        (("--slowest", "-1"), "--slowest must be above 0 seconds, got -1"),
        (("--resume",), "--resume needs --json FILE"),
        (("--json", "/no/such/folder/out.json"), "--json /no/such/folder/out.json: cannot write there"),
    ],
    ids=lambda value: "-".join(value).strip("-") if isinstance(value, tuple) else "",
)
def test_refused_in_one_line_with_status_2(options, message, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "Sweep", None)
    assert sweep.main(list(options)) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith(f"sweep: {message}")
