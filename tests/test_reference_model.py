"""python_reference's whole model: its parameters, every config switch, cached, packed and padded input, loss, decoding."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import pytest
import torch

import python_reference as reference

from golden_data import GOLDEN, TINY, config_path, state_dict

# ---- Parameters ----

BASE = json.loads(config_path(TINY).read_text()) | {
    "num_hidden_layers": 4,
    "global_attn_idx": [0, 3],
    "kv_reuse_group": [[1, 2]],
    "sliding_window": 5,
    "num_memory_tokens": 3,
}
MIXER = "model.layers.N.mamba"
Q_NORM, K_NORM = f"{MIXER}.self_attn.q_norm.weight", f"{MIXER}.self_attn.k_norm.weight"
MAKES_KV = "model.layers.1.mamba.in_proj.weight"
BORROWS_KV = "model.layers.2.mamba.in_proj.weight"
GONE = None  # in place of a shape

# Each switch and the parameters, N for every layer, that it adds, reshapes or takes away.
SWITCHES = {
    "published": ({}, {MAKES_KV: [448, 80], BORROWS_KV: [400, 80], "lm_head.weight": [97, 80]}),
    "kq_norm_rms": ({"kq_norm": "rms"}, {Q_NORM: [16], K_NORM: [16]}),
    "kq_norm_perhead": ({"kq_norm": "perhead-rms"}, {Q_NORM: [1, 5, 1, 16], K_NORM: [1, 1, 1, 16]}),
    "no_inner_layernorms": (
        {"mamba_inner_layernorms": False},
        {f"{MIXER}.{name}_layernorm.weight": GONE for name in ("dt", "B", "C")},
    ),
    "no_conv_bias": ({"mamba_conv_bias": False}, {f"{MIXER}.conv1d.bias": GONE}),
    "proj_bias": (
        {"mamba_proj_bias": True, "kv_reuse_group": []},
        {f"{MIXER}.in_proj.bias": [448], f"{MIXER}.out_proj.bias": [80], BORROWS_KV: [448, 80]},
    ),
    "sizes": (
        {"mamba_d_state": 3, "mamba_d_conv": 2, "mamba_dt_rank": 7},
        {
            f"{MIXER}.A_log.0": [160, 3],
            f"{MIXER}.x_proj.0.weight": [13, 160],
            f"{MIXER}.dt_proj.0.weight": [160, 7],
            f"{MIXER}.conv1d.weight": [160, 1, 2],
            f"{MIXER}.dt_layernorm.weight": [7],
            f"{MIXER}.B_layernorm.weight": [3],
            f"{MIXER}.C_layernorm.weight": [3],
        },
    ),
    "dt_rank_auto": ({"mamba_dt_rank": "auto"}, {f"{MIXER}.dt_proj.0.weight": [160, 5]}),
    "expand_1_conv_1": (
        {"mamba_expand": 1, "mamba_d_conv": 1, "kv_reuse_group": None},
        {
            f"{MIXER}.in_proj.weight": [272, 80],
            f"{MIXER}.out_proj.weight": [80, 80],
            f"{MIXER}.conv1d.weight": [80, 1, 1],
            f"{MIXER}.conv1d.bias": [80],
            f"{MIXER}.x_proj.0.weight": [37, 80],
            f"{MIXER}.dt_proj.0.weight": [80, 5],
            f"{MIXER}.dt_proj.0.bias": [80],
            f"{MIXER}.A_log.0": [80, 16],
            f"{MIXER}.D.0": [80],
            f"{MIXER}.pre_avg_layernorm1.weight": [80],
            f"{MIXER}.pre_avg_layernorm2.weight": [80],
        },
    ),
    "relu2": ({"mlp_hidden_act": "relu2"}, {"model.layers.N.moe.experts.0.gate_proj.weight": GONE}),
    "no_mlp": (
        {"intermediate_size": 0},
        {
            "model.layers.N.pre_moe_layernorm.weight": GONE,
            **{f"model.layers.N.moe.experts.0.{name}_proj.weight": GONE for name in ("gate", "up", "down")},
        },
    ),
    "no_rope": ({"rope": False}, {}),
    "default_rope": ({"rope_type": "default"}, {}),
    "null_rope": ({"rope_type": None}, {}),
    "all_sliding": ({"global_attn_idx": []}, {}),
    "no_window": ({"sliding_window": None, "global_attn_idx": None}, {}),
    "no_sharing": ({"kv_reuse_group": None}, {BORROWS_KV: [448, 80]}),
    "sharing_every_2": (
        {"kv_reuse_group": None, "kv_reuse_every_i_layer": 2, "global_attn_idx": []},
        {MAKES_KV: [400, 80], BORROWS_KV: [448, 80], "model.layers.3.mamba.in_proj.weight": [400, 80]},
    ),
    "no_memory_tokens": ({"num_memory_tokens": 0}, {"model.memory_tokens": GONE}),
    "untied": ({"tie_word_embeddings": False}, {}),
}
EVERY_SWITCH = pytest.mark.parametrize("changes", [pytest.param(c, id=name) for name, (c, _) in SWITCHES.items()])


def shapes(module):
    return {name: list(tensor.shape) for name, tensor in module.state_dict().items()}


def small_model(dtype=torch.float64, seed=0, **changes):
    """Weights of ordinary size, all away from their initial values, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # the noise below is added to random initial values
        model = reference.HymbaForCausalLM(reference.HymbaConfig(**BASE | changes))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        matrix = parameter.dim() > 1 and "embed" not in name and "A_log" not in name and "norm" not in name
        parameter.data.copy_(noise / parameter.shape[-1] ** 0.5 if matrix else parameter.data + 0.3 * noise)
    return model.to(dtype).eval().requires_grad_(False)


def test_small_models_are_the_same_at_every_call():
    first, second = small_model().state_dict(), small_model().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def random_ids(*shape, seed=0):
    return torch.randint(3, 97, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("changes, differences", SWITCHES.values(), ids=SWITCHES)
def test_parameter_names_and_shapes(changes, differences):
    expected = shapes(reference.HymbaForCausalLM(reference.HymbaConfig(**BASE)))
    for name, shape in differences.items():
        for i in range(4) if ".N." in name else [None]:
            full = name.replace(".N.", f".{i}.")
            expected[full] = shape
    expected = {name: shape for name, shape in expected.items() if shape is not GONE}
    assert shapes(reference.HymbaForCausalLM(reference.HymbaConfig(**BASE | changes))) == expected


def test_published_parameter_names():
    published = json.loads((GOLDEN / "hymba_1p5b_state_dict.json").read_text())
    with torch.device("meta"):
        config = reference.HymbaConfig.from_pretrained(GOLDEN / "hymba_1p5b_config.json")
        actual = shapes(reference.HymbaForCausalLM(config))
    assert len(published) == 612
    assert actual == published


def test_tied_head_may_be_left_out_and_stays_tied():
    model = reference.HymbaForCausalLM(reference.HymbaConfig.from_pretrained(config_path(TINY).parent))
    model.load_state_dict(state_dict(TINY, torch.float32))
    model = model.double()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    untied = reference.HymbaForCausalLM(reference.HymbaConfig(**BASE | {"tie_word_embeddings": False}))
    without_head = {name: weight for name, weight in untied.state_dict().items() if name != "lm_head.weight"}
    with pytest.raises(RuntimeError, match="Missing key.*lm_head.weight"):
        untied.load_state_dict(without_head)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=["bf16", "fp64"])
def test_cast_keeps_the_frequencies_float32(dtype):
    model = small_model(dtype)
    inv_freq = model.model.layers[0].mamba.inv_freq
    assert inv_freq.dtype == torch.float32
    assert torch.equal(inv_freq, model.config.inv_freq())


def test_initial_values():
    torch.manual_seed(0)
    mixer = reference.HybridMixer(reference.HymbaConfig(**BASE), 0)
    dt = torch.nn.functional.softplus(mixer.dt_proj[0].bias)
    assert 0.99e-3 < dt.min() < 3e-3 and 3e-2 < dt.max() < 1.01e-1
    assert torch.allclose(mixer.A_log[0].exp(), torch.arange(1.0, 17).expand(160, 16))
    assert (mixer.D[0] == 1).all()
    assert 0.019 < mixer.in_proj.weight.std() < 0.021


def test_dynamic_rope_is_refused():
    with pytest.raises(ValueError, match="rope_type"):
        small_model(rope_type="dynamic_ntk")


def test_imports_torch_and_the_standard_library_only():
    allowed = {"torch", "python_reference", *sys.stdlib_module_names}
    for file in Path(reference.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert {name.partition(".")[0] for name in names} <= allowed, file.name


# ---- One answer, whichever way the tokens come ----


def same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


@EVERY_SWITCH
@pytest.mark.parametrize("chunks", [[1] * 13, [4, 1, 8], [0, 11, 0, 2]], ids=["decode", "chunks", "empty_chunks"])
def test_cached_calls_equal_one_forward(changes, chunks):
    model, ids = small_model(**changes), random_ids(2, 13)
    cache = reference.HymbaCache()
    parts = [model(chunk, cache=cache).logits for chunk in ids.split(chunks, dim=1)]
    same(torch.cat(parts, dim=1), model(ids).logits)
    assert cache.length == 13


@EVERY_SWITCH
def test_packed_and_padded_equal_single_sequences(changes):
    """Lengths below and above the window, an empty sequence, rows behind the last one."""
    model, lengths = small_model(**changes), [2, 0, 11, 7]
    singles = [random_ids(1, length, seed=length) for length in lengths]
    logits = [model(ids).logits for ids in singles]

    ends = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    packed = model(torch.cat([*singles, random_ids(1, 3)], dim=1), cu_seqlens=ends).logits
    same(packed[:, :20], torch.cat(logits, dim=1))
    assert packed.shape[1] == 23 and (packed[:, 20:] == 0).all()

    for left in (True, False):
        ids, mask, expected = padded(singles[2:], left), padded([1 + 0 * i for i in singles[2:]], left), logits[2:]
        actual = model(ids, attention_mask=mask).logits
        for row, single in enumerate(expected):
            same(actual[row : row + 1, mask[row].bool()], single)
        assert (actual[mask == 0] == 0).all() and (mask == 0).sum() == 4


def padded(rows, left):
    width = max(row.shape[1] for row in rows)
    pad = lambda n: (n, 0) if left else (0, n)  # noqa: E731
    return torch.cat([torch.nn.functional.pad(row, pad(width - row.shape[1])) for row in rows])


def test_inputs_embeds_and_logits_to_keep():
    model, ids = small_model(), random_ids(2, 6)
    full = model(ids).logits
    same(model(inputs_embeds=model.model.embed_tokens(ids)).logits, full)
    same(model(ids, logits_to_keep=2).logits, full[:, -2:])


@pytest.mark.parametrize("other", ["attention_mask", "cu_seqlens"])
def test_cache_takes_dense_input_only(other):
    extra = {"attention_mask": torch.ones(1, 4), "cu_seqlens": torch.tensor([0, 4], dtype=torch.int32)}[other]
    with pytest.raises(ValueError, match="at most one of attention_mask, cu_seqlens and cache"):
        small_model()(random_ids(1, 4), cache=True, **{other: extra})


@pytest.mark.parametrize("row", [[1, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]], ids=["hole", "left_hole", "empty"])
@pytest.mark.parametrize("call", ["forward", "generate"])
def test_attention_mask_must_be_one_run_of_tokens(call, row):
    model, mask = small_model(), torch.tensor([[1, 1, 1, 1], row])
    function = model if call == "forward" else lambda *args, **kwargs: model.generate(*args, max_new_tokens=1, **kwargs)
    with pytest.raises(ValueError, match="attention_mask must hold one unbroken run of tokens in each row"):
        function(random_ids(2, 4), attention_mask=mask)


def test_a_packed_mixer_takes_no_earlier_keys():
    model = small_model()
    hidden, ends = torch.zeros(1, 2, 80, dtype=torch.float64), torch.tensor([0, 2], dtype=torch.int32)
    _, kv, _ = model.model.layers[1].mamba(hidden)
    with pytest.raises(ValueError, match="HybridMixer 1: kv must be None in packed input"):
        model.model.layers[1].mamba(hidden, kv=kv, cu_seqlens=ends)
    model.model.layers[2].mamba(hidden, kv=kv, cu_seqlens=ends)  # borrowed ones it must take


def test_a_borrowing_mixer_needs_keys_and_values():
    mixer = small_model().model.layers[2].mamba
    with pytest.raises(ValueError, match="kv must be the keys and values of layer 1"):
        mixer(torch.zeros(1, 2, 80, dtype=torch.float64))


# ---- Loss ----


def mean_loss(model, sequences, labels):
    """Over each sequence's predicted tokens, one sequence at a time."""
    total, count = 0, 0
    for ids, targets in zip(sequences, labels, strict=True):
        logits, targets = model(ids).logits[0, :-1], targets[0, 1:]
        kept = targets != -100
        total -= logits.log_softmax(-1)[kept, targets[kept]].sum()
        count += kept.sum()
    return total / count


@pytest.mark.parametrize("form", ["dense", "packed", "left", "right"])
def test_loss(form):
    model, lengths = small_model(), [6, 6] if form == "dense" else [6, 1, 9]
    sequences = [random_ids(1, length, seed=i) for i, length in enumerate(lengths)]
    labels = [ids.clone() for ids in sequences]
    labels[0][0, 3] = -100
    expected = mean_loss(model, sequences, labels)
    if form == "dense":
        result = model(torch.cat(sequences), labels=torch.cat(labels))
    elif form == "packed":
        ends = torch.tensor([0, 6, 7, 16], dtype=torch.int32)
        result = model(torch.cat(sequences, dim=1), labels=torch.cat(labels, dim=1), cu_seqlens=ends)
    else:
        left = form == "left"
        mask = padded([1 + 0 * ids for ids in sequences], left)
        result = model(padded(sequences, left), labels=padded(labels, left), attention_mask=mask)
    same(result.loss, expected)
    with pytest.raises(ValueError, match="logits_to_keep"):
        model(sequences[0], labels=labels[0], logits_to_keep=1)


# ---- Generation ----


def test_generate_stops_and_pads():
    """The first row stops at its second token, the other at its fourth."""
    model, ids = small_model(), random_ids(2, 5, seed=9)
    free = model.generate(ids, max_new_tokens=8, stop_token_ids=())
    assert free.shape == (2, 13)
    first, second = free[0, 6].item(), free[1, 8].item()
    apart = first not in [free[0, 5], *free[1, 5:9]] and second not in [*free[0, 5:7], *free[1, 5:8]]
    assert apart, "the seed no longer gives rows that stop apart"

    stopped = model.generate(ids, max_new_tokens=8, stop_token_ids=[first, second])
    assert stopped[0].tolist() == free[0, :7].tolist() + [0, 0]
    assert stopped[1].tolist() == free[1, :9].tolist()


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_generate_of_padded_rows_equals_single_rows(left):
    """The longer prompt stops first and is filled up."""
    model, prompts = small_model(), [random_ids(1, 3, seed=1), random_ids(1, 7, seed=2)]
    free = [model.generate(ids, max_new_tokens=6, stop_token_ids=()) for ids in prompts]
    stop = free[1][0, 8].item()
    assert stop not in free[0][0, 3:] and stop != free[1][0, 7], "the seed no longer gives rows that stop apart"

    mask = padded([1 + 0 * ids for ids in prompts], left)
    ids = padded(prompts, left)
    both = model.generate(ids, attention_mask=mask, max_new_tokens=6, stop_token_ids=[stop])
    assert torch.equal(both[:, :7], ids)
    assert both[0, 7:].tolist() == free[0][0, 3:].tolist()
    assert both[1, 7:].tolist() == free[1][0, 7:9].tolist() + [0] * 4


def test_generate_stops_at_the_configured_tokens():
    model, ids = small_model(), random_ids(1, 5)
    free = model.generate(ids, max_new_tokens=4, stop_token_ids=())
    third = free[0, 7].item()
    at = 5 + free[0, 5:].tolist().index(third)
    for eos, length in ((third, at + 1), ([third], at + 1), (None, 9)):
        model.config.eos_token_id = eos
        assert model.generate(ids, max_new_tokens=4).tolist() == free[:, :length].tolist()
    assert model.generate(ids, max_new_tokens=0).tolist() == ids.tolist()
