"""bench/peers.py: each peer is right where it runs, none is timed unseen, none disappears without a reason."""

from __future__ import annotations

import functools
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import python_reference as reference
from bench import cases, layer_throughput, op_calls, options, peers, plain, report, roofline, runner, sweep

CPU = torch.device("cpu")


@pytest.fixture
def uncompiled(monkeypatch):
    """FlexAttention and plain forms as they are: compiling them takes a quarter of a minute each."""
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(peers, "compiled", lambda function: function)
    monkeypatch.setattr(peers, "_flex_attention", lambda: flex_attention)
    peers._attend.cache_clear()
    yield
    peers._attend.cache_clear()


def random_heads(length, dtype=torch.float32, batch=2):
    torch.manual_seed(0)
    shapes = ((6, 8), (2, 8), (2, 16))
    return [torch.randn(batch, length, heads, dim, dtype=dtype) for heads, dim in shapes]


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("name", peers.ATTENTION)
def test_attention_is_the_reference(name, window, uncompiled):
    """Longer than window and meta tokens; 16 blocks of more than 128 queries."""
    qkv = random_heads(2100 if name == "compiled-blocks" else 150, batch=1)
    mask = {"window": window, "num_meta": 5, "scale": 0.3}
    (call,) = peers.attention_calls([name], *qkv, **mask).values()
    assert torch.allclose(call(), reference.attention(*qkv, **mask), atol=2e-6)


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("name", ["sdpa", "compiled-blocks", "compiled-masked"])  # FlexAttention knows no such device
def test_masks_are_made_on_the_inputs_device(name, window, uncompiled):
    """On the meta device: a tensor left on the CPU would meet one that is not."""
    qkv = [x.to("meta") for x in random_heads(150, torch.bfloat16)]
    (call,) = peers.attention_calls([name], *qkv, window=window, num_meta=5, scale=1.0).values()
    assert (out := call()).device.type == "meta" and out.shape == (2, 150, 6, 16)


def test_compiled_blocks_are_few(monkeypatch, uncompiled):
    blocks = []
    monkeypatch.setattr(plain, "blocked_attention", lambda q, k, v, *, block, **_: blocks.append(block) or q)
    for length in (1, 4096, 4097, 8320):
        peers.attention_calls(["compiled-blocks"], *random_heads(length, batch=1), window=9, num_meta=0, scale=1.0)[
            "compiled-blocks"
        ]()
    assert blocks == [256, 256, 257, 520]


def test_all_scores_are_refused_where_memory_ends(monkeypatch, uncompiled):
    monkeypatch.setattr(peers, "available_bytes", lambda device: 1 << 30)
    calls = peers.attention_calls(["compiled-masked"], *random_heads(6000, batch=1), window=9, num_meta=0, scale=1.0)
    admitted, refused = cases.admit({"compiled-masked": list(calls.values())}, torch.zeros(1, 1))
    assert admitted == {} and refused == {"compiled-masked": "about 2 GiB needed, 1 GiB available"}


@pytest.mark.parametrize(
    "layer,dtype,length",
    [("sliding", torch.float32, 1200), ("global", torch.float32, 150), ("sliding", torch.bfloat16, 150)],
    ids=["window", "global", "bfloat16"],
)
@pytest.mark.parametrize("name", peers.MIXERS)
def test_layers_agree_with_plain(name, layer, dtype, length, uncompiled):
    config = options.preset("125m")
    case = cases.make_case(layer, config, [name], batch=1, length=length, device=CPU, dtype=dtype)
    with torch.inference_mode():
        expected = case.layers["plain"](case.inputs[0])[0]
        admitted, refused = cases.admit({name: case.calls(name)}, expected)
    assert list(admitted) == [name] and refused == {}


# ---- Libraries, by stand-ins of the same signature ----


def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """As mamba_ssm's: channels first, B and C [B, N, T]."""
    assert A.dtype == D.dtype == delta_bias.dtype == torch.float32 and delta_softplus
    u, delta, B, C, z = (x.transpose(1, 2) for x in (u, delta, B, C, z))
    return reference.selective_scan(u, delta, A, B, C, D, z, dt_bias=delta_bias).transpose(1, 2)


def causal_conv1d_fn(x, weight, bias=None, activation=None):
    assert activation == "silu"
    return reference.causal_conv1d(x.transpose(1, 2), weight, bias).transpose(1, 2)


@pytest.fixture
def libraries(monkeypatch):
    """Both installed; gives the names called."""
    called = []

    def watch(name, function):
        return lambda *args, **kwargs: called.append(name) or function(*args, **kwargs)

    scan = SimpleNamespace(selective_scan_fn=watch("mamba_ssm", selective_scan_fn))
    monkeypatch.setitem(sys.modules, "mamba_ssm", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", scan)
    conv = SimpleNamespace(causal_conv1d_fn=watch("causal_conv1d", causal_conv1d_fn))
    monkeypatch.setitem(sys.modules, "causal_conv1d", conv)
    peers.stand_ins.cache_clear()
    yield called
    peers.stand_ins.cache_clear()


@pytest.mark.parametrize("op,name", [("selective_scan", "mamba_ssm"), ("causal_conv1d", "causal_conv1d")])
def test_libraries_get_what_their_signatures_say(op, name, libraries):
    calls = op_calls.random_calls(
        op, options.preset("125m"), 1, batch=2, length=9, dtype=torch.float32, device=CPU, peer_names=peers.PARTS
    )
    assert list(cases.admit({name: [calls[name]]}, calls["plain"]())[0]) == [name]
    assert libraries == [name]


def test_the_published_path_takes_the_libraries_where_they_are(libraries, uncompiled):
    config = options.preset("125m")
    case = cases.make_case("sliding", config, ["published"], batch=2, length=30, device=CPU, dtype=torch.float32)
    with torch.inference_mode():
        expected = case.layers["plain"](case.inputs[0])[0]
        assert list(cases.admit({"published": case.calls("published")}, expected)[0]) == ["published"]
    assert libraries == ["causal_conv1d", "mamba_ssm"] and peers.stand_ins() == {}


# ---- What is wrong or missing ----


def test_admission():
    expected = torch.randn(2, 5)

    def crash():
        raise RuntimeError("no kernel image\nand a long trace")

    def refuse():
        raise runner.CannotRun("about 9 GiB needed")

    calls = {"right": lambda: expected.clone(), "wrong": lambda: expected * 1.1, "crash": crash, "refuse": refuse}
    admitted, refused = cases.admit({name: [call] * 2 for name, call in calls.items()}, expected)
    assert {name: len(found) for name, found in admitted.items()} == {"right": 2}
    assert refused == {
        "wrong": "it differs from plain: relative rms 1.00e-01, allowed 1e-04",
        "crash": "RuntimeError: no kernel image",
        "refuse": "about 9 GiB needed",
    }


@pytest.mark.parametrize("window,num_meta,right", [(1024, 128, True), (512, 128, False), (1024, 0, False)])
def test_attention_with_a_wrong_mask_is_not_timed(window, num_meta, right, monkeypatch):
    """The output is small (rms 0.03 here), so that only a relative bound tells the masks apart."""

    def maker(_window, _num_meta, scale):
        return lambda q, k, v: plain.blocked_attention(q, k, v, window=window, num_meta=num_meta, scale=scale)

    timed = {}
    monkeypatch.setitem(peers.ATTENTION, "flex", maker)
    monkeypatch.setattr(layer_throughput, "time_rounds", lambda calls, *_, **__: timed.update(calls) or {})
    config = options.preset("125m")
    with torch.inference_mode():
        case = cases.make_case("sliding", config, ["hymba_ops"], batch=1, length=1228, device=CPU, dtype=torch.float32)
        arguments = SimpleNamespace(device=CPU, peers=["flex"])
        _, not_run = layer_throughput.time_parts(case, config, arguments, runner.Progress(9))
    assert ("flex" in timed) == right
    assert [(row["part"], row["implementation"]) for row in not_run] == ([] if right else [("attention", "flex")])


def test_a_layer_s_peers_are_timed_or_named(monkeypatch, tmp_path, capsys, uncompiled):
    class Broken(peers.SdpaMixer):
        def attend(self, q, k, v, **_):
            raise NotImplementedError("no such kernel")

    quick = functools.partial(runner.time_rounds, seconds=0.01)
    ceilings = roofline.Ceilings(gemm=1e12, bandwidth=1e9, special=1e15, separate_units=True)
    monkeypatch.setattr(layer_throughput, "time_rounds", quick)
    monkeypatch.setattr(roofline, "measure", lambda *_, **__: ceilings)
    monkeypatch.setitem(peers.MIXERS, "sdpa", Broken)
    out = tmp_path / "out.json"
    small = ["--preset", "125m", "--seq-len", "20", "--device", "cpu", "--layers", "sliding", "--json", str(out)]
    assert layer_throughput.main([*small, "--implementations", "hymba_ops,plain,sdpa,published"]) == 0
    results = json.loads(out.read_text())
    assert [row["implementation"] for row in results["rows"]] == ["hymba_ops", "plain", "published"]
    reasons = {row["implementation"]: row["reason"] for row in results["not_run"]}
    assert reasons.pop("sdpa") == "NotImplementedError: no such kernel"
    assert set(reasons) == {f"{name} in published" for name in peers.stand_ins()}
    assert "could not run: sdpa (sliding, layer): NotImplementedError: no such kernel" in capsys.readouterr().out


def test_a_sweep_s_row_has_its_peers(tmp_path, capsys, uncompiled):
    out = tmp_path / "out.json"
    options_ = ["--device", "cpu", "--presets", "125m", "--batches", "1", "--dtypes", "float32", "--seq-lens", "30"]
    options_ += ["--ops", "layer,attention,selective_scan,rotary", "--layers", "global", "--json", str(out)]
    assert sweep.main([*options_, "--peers", "sdpa,flex-halves,mamba_ssm"]) == 0
    results = json.loads(out.read_text())
    found = {row["op"]: (set(row.get("peers_ms", {})), set(row.get("peers_not_run", {}))) for row in results["rows"]}
    missing = {"mamba_ssm"} & set(peers.stand_ins())
    assert found == {
        "layer": ({"sdpa"}, set()),
        "attention": ({"sdpa", "flex-halves"}, set()),
        "selective_scan": ({"mamba_ssm"} - missing, missing),
        "rotary": (set(), set()),
    }
    for row in results["rows"]:
        assert row["plain_form"] not in peers.NAMES and not set(row["forms_ms"]) & set(peers.NAMES)
    printed = capsys.readouterr().out
    assert "global attention, length 30: " in printed and "ms; peers " in printed
    assert not missing or "\n  mamba_ssm could not run: ModuleNotFoundError: No module named 'mamba_ssm'" in printed


def test_peers_are_a_gpu_s_by_default(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    chosen = layer_throughput.parse_arguments(["--device", "cuda", "--dtype", "bfloat16"])
    assert chosen.implementations == list(layer_throughput.IMPLEMENTATIONS) and chosen.peers == list(peers.PARTS)
    assert sweep.parse_arguments(["--device", "cuda"]).peers == list(peers.NAMES)
    chosen = layer_throughput.parse_arguments(["--device", "cpu"])
    assert chosen.implementations == ["hymba_ops", "plain", "naive", "compiled"] and chosen.peers == ["flex"]
    assert sweep.parse_arguments(["--device", "cpu"]).peers == []
    assert layer_throughput.parse_arguments(["--device", "cuda", "--peers", "none"]).peers == []


def test_parts_have_their_peers():
    assert set(peers.MIXERS) - set(peers.ATTENTION) == {"published"} == set(peers.NAMES) - set(peers.PARTS)
    assert not set(peers.NAMES) & {"hymba_ops", "plain", "naive", "upcast", "library"}
    assert {"attention", "conv + SiLU", "scan"} <= set(roofline.PARTS)


# ---- What results say of where they come from ----


def test_results_name_card_driver_and_commit(monkeypatch):
    card = SimpleNamespace(uuid="8", major=9, minor=0, multi_processor_count=132, total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")
    asked = []

    def run(command, **_):
        asked.append(command)
        return SimpleNamespace(stdout="580.1, 1980 MHz, 700.00 W\n" if command[0] == "nvidia-smi" else "0123abc+\n")

    monkeypatch.setattr(report.subprocess, "run", run)
    machine = report.describe_machine(torch.device("cuda"))
    assert machine["device"] == "NVIDIA H100" and machine["torch"] and machine["compute_capability"] == "9.0"
    assert (machine["driver"], machine["max_clock"], machine["power_limit"]) == ("580.1", "1980 MHz", "700.00 W")
    assert "--id=GPU-8" in asked[0] and report.commit() == "0123abc+"

    def absent(command, **_):
        raise FileNotFoundError(command[0])

    monkeypatch.setattr(report.subprocess, "run", absent)
    assert report.describe_machine(torch.device("cuda"))["driver"] is None and report.commit() is None


def test_published_mixer_is_made_of_separate_parts():
    """Its join is two norms, a sum, a half and out_proj: no fused op of python_reference."""
    mixer = peers.PublishedMixer(reference.HymbaConfig(**options.preset("125m").to_dict()), 1)
    attn, ssm = (torch.randn(1, 3, mixer.config.inner_size) for _ in range(2))
    norms = [norm(x) for norm, x in ((mixer.pre_avg_layernorm1, attn), (mixer.pre_avg_layernorm2, ssm))]
    expected = nn.functional.linear((norms[0] + norms[1]) / 2, mixer.out_proj.weight)
    assert torch.equal(mixer.join(attn, ssm), expected)
