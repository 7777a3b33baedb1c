"""HymbaConfig: the published file, presets, derived sizes and what is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

from hymba_ops.config import HymbaConfig

PUBLISHED = Path(__file__).parent / "golden" / "hymba_1p5b_config.json"
SMALL = {
    "hidden_size": 80,
    "intermediate_size": 176,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
    "vocab_size": 97,
    "sliding_window": 16,
    "global_attn_idx": [0, 3],
    "kv_reuse_group": [[1, 2]],
    "rope": True,
}


def test_published_file_loads_without_warning_and_round_trips(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = HymbaConfig.from_pretrained(PUBLISHED)
    config.save_pretrained(tmp_path / "new")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["config.json"]
    written, published = (json.loads(f.read_text()) for f in (tmp_path / "new" / "config.json", PUBLISHED))
    assert written == published and list(written) == list(published)
    assert HymbaConfig.from_pretrained(tmp_path / "new") == config


def test_published_sizes():
    config = HymbaConfig.from_pretrained(PUBLISHED)
    assert (config.head_dim, config.value_head_dim, config.inner_size, config.dt_rank) == (64, 128, 3200, 100)
    assert config.attention_scale == 0.125
    assert [config.is_global(i) for i in (0, 1, 15, 31)] == [True, False, True, True]
    assert [config.window(i) for i in (0, 1)] == [None, 1024]
    assert [config.producer(i) for i in (0, 1, 2, 3, 15, 16, 17, 18, 19)] == [0, 1, 1, 3, 15, 16, 16, 16, 19]


def test_ntk_frequencies():
    inv_freq = HymbaConfig.from_pretrained(PUBLISHED).inv_freq()
    base = 10000.0 * (2 * 8192 / 2048 - 1) ** (64 / 62)
    exact = base ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    assert inv_freq.dtype == torch.float32 and inv_freq.shape == (32,)
    assert torch.allclose(inv_freq.double(), exact, rtol=1e-6)
    assert HymbaConfig(**SMALL | {"rope": False}).inv_freq() is None
    plain = HymbaConfig(**SMALL | {"rope_type": "default"}).inv_freq()
    assert torch.equal(plain, HymbaConfig(**SMALL).inv_freq()) and plain[0] == 1


def test_presets():
    assert HymbaConfig.hymba_1_5b() == HymbaConfig.from_pretrained(PUBLISHED)
    for preset, sizes, global_layers in (
        (HymbaConfig.hymba_125m(), (24, 512, 8, 4, 1664), [0, 11, 23]),
        (HymbaConfig.hymba_350m(), (32, 768, 12, 4, 2432), [0, 15, 31]),
        (HymbaConfig.hymba_1_5b(), (32, 1600, 25, 5, 5504), [0, 15, 31]),
    ):
        fields = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
        assert tuple(getattr(preset, field) for field in fields) == sizes
        assert list(preset.global_attn_idx) == global_layers
        grouped = [layer for group in preset.kv_reuse_group for layer in group]
        assert sorted(grouped + global_layers) == list(range(preset.num_hidden_layers))
        assert {len(group) for group in preset.kv_reuse_group} <= {2, 3}


def test_unknown_fields_are_kept_and_named_once(tmp_path):
    with pytest.warns(UserWarning, match="unknown fields, kept without effect: colour, shape") as caught:
        config = HymbaConfig(**SMALL, colour="red", use_cache=True, shape=[1, {"a": 2}])
    assert len(caught) == 1
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["colour"] == "red" and written["shape"] == [1, {"a": 2}] and written["model_type"] == "hymba"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert config.replace(hidden_size=160, num_attention_heads=10).to_dict()["colour"] == "red"


def test_unknown_fields_shadow_nothing():
    with pytest.warns(UserWarning, match="window, self, to_dict"):
        config = HymbaConfig(**SMALL | {"window": 3, "self": 1, "to_dict": None})
    assert config.window(1) == 16 and config.to_dict()["window"] == 3


def test_defaults_fill_missing_fields():
    config = HymbaConfig(**SMALL)
    assert (config.dt_rank, config.mamba_d_conv, config.rms_norm_eps, config.num_memory_tokens) == (5, 4, 1e-6, 0)
    assert config.tie_word_embeddings is False
    assert HymbaConfig(**SMALL | {"kv_reuse_group": None}).producer(2) == 2
    assert HymbaConfig(**SMALL | {"global_attn_idx": [], "kv_reuse_group": [[0, 1, 3]]}).producer(3) == 0
    every = HymbaConfig(**SMALL | {"global_attn_idx": None, "kv_reuse_group": None, "kv_reuse_every_i_layer": 2})
    assert [every.producer(i) for i in range(4)] == [0, 0, 2, 2]
    assert HymbaConfig(**SMALL | {"sliding_window": None}).is_global(1)


def test_read_only():
    with pytest.raises(AttributeError, match=r"read-only: use config.replace\(hidden_size=...\)"):
        HymbaConfig(**SMALL).hidden_size = 5
    with pytest.raises(AttributeError, match="read-only: hidden_size cannot be deleted"):
        del HymbaConfig(**SMALL).hidden_size
    layers = [0, 3]
    config = HymbaConfig(**SMALL | {"global_attn_idx": layers})
    layers.append(99)
    config.to_dict()["global_attn_idx"].append(99)
    assert config.global_attn_idx == (0, 3) and config.to_dict()["global_attn_idx"] == [0, 3]
    assert config == HymbaConfig(**SMALL | {"global_attn_idx": (0, 3)})
    with pytest.raises(AttributeError, match="no field 'hidden'"):
        _ = HymbaConfig(**SMALL).hidden
    with pytest.raises(TypeError, match="unknown fields colour"):
        HymbaConfig(**SMALL).replace(colour=1)


REFUSED = [
    ({"hidden_size": 81}, "hidden_size must be a multiple of num_attention_heads = 5, got 81"),
    ({"num_key_value_heads": 2}, "num_attention_heads must be a multiple of num_key_value_heads = 2, got 5"),
    ({"hidden_size": "80"}, "hidden_size must be a positive integer, got '80'"),
    ({"hidden_size": True}, "hidden_size must be a positive integer, got True"),
    ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer, got 0"),
    ({"intermediate_size": -1}, "intermediate_size must be an integer of at least 0"),
    ({"vocab_size": None}, "vocab_size must be a positive integer, got None"),
    ({"sliding_window": -1}, "sliding_window must be a positive integer, or null for none, got -1"),
    ({"sliding_window": 0}, "sliding_window must be .*, got 0"),
    ({"global_attn_idx": [0, 4]}, "global_attn_idx must be indices below num_hidden_layers = 4, got 4"),
    ({"global_attn_idx": [-1]}, r"global_attn_idx must be a list of layer indices, or null, got \[-1\]"),
    ({"global_attn_idx": 3}, "global_attn_idx must be a list of layer indices, or null, got 3"),
    ({"kv_reuse_group": [[2, 1]]}, r"kv_reuse_group must be groups in ascending order .*got \[2, 1\]"),
    ({"kv_reuse_group": [[1, 1]]}, r"kv_reuse_group must be groups in ascending order .*got \[1, 1\]"),
    ({"kv_reuse_group": [[]]}, r"kv_reuse_group must be groups in ascending order .*got \[\]"),
    ({"kv_reuse_group": [[2, 4]]}, r"kv_reuse_group must be indices below num_hidden_layers = 4, got \[2, 4\]"),
    ({"kv_reuse_group": [[1, 2], [2, 3]]}, r"kv_reuse_group must be groups that share no layer, got \[2, 3\]"),
    ({"kv_reuse_group": [[2, 3]]}, "kv_reuse_group must be such that global and sliding .*layer 3 would use .*layer 2"),
    ({"kv_reuse_group": None, "kv_reuse_every_i_layer": 2}, "kv_reuse_every_i_layer must be such that global and"),
    ({"kv_reuse_group": [1, 2]}, "kv_reuse_group must be a list of groups"),
    ({"kv_weight_reuse": True}, "kv_weight_reuse must be false.*got True"),
    ({"num_experts": 4}, "num_experts must be 1.*got 4"),
    ({"num_mamba": 2}, "num_mamba must be 1.*got 2"),
    ({"memory_tokens_interspersed_every": 512}, "memory_tokens_interspersed_every must be 0.*got 512"),
    ({"layer_type": ["h", "h", "h"]}, "layer_type must be one entry for each of the 4 layers, got 3 entries"),
    ({"layer_type": ["h", "h", "m", "h"]}, "layer_type must be a list of 'h'"),
    ({"rope_type": "dynamic_ntk"}, "rope_type must be null, 'default' or 'ntk' .*got 'dynamic_ntk'"),
    ({"rope_type": "yarn"}, "rope_type must be .*got 'yarn'"),
    ({"rope_type": "ntk"}, "orig_max_position_embeddings must be a positive integer .*got None"),
    (
        {"num_attention_heads": 16, "num_key_value_heads": 16},
        "rope must be false where head dims are odd, got true with",
    ),
    ({"kq_norm": "layer"}, "kq_norm must be 'none', 'rms' or 'perhead-rms', got 'layer'"),
    ({"mlp_hidden_act": "gelu"}, "mlp_hidden_act must be 'silu' or 'relu2', got 'gelu'"),
    ({"mamba_d_conv": 9}, "mamba_d_conv must be an integer from 1 to 8, got 9"),
    ({"mamba_d_state": 257}, "mamba_d_state must be an integer from 1 to 256, got 257"),
    ({"mamba_dt_rank": "big"}, "mamba_dt_rank must be 'auto' or a positive integer, got 'big'"),
    ({"v_head_dim": 16}, "v_head_dim must be 32 .*got 16"),
    ({"kq_head_dim": 32}, "kq_head_dim must be 16 .*got 32"),
    ({"attn_hidden_size": 40}, "attn_hidden_size must be 80 .*got 40"),
    ({"hidden_size": 1000}, "hidden_size must be such that head dims are at most 256, got value head dim 400"),
    ({"attention_dropout": 0.1}, "attention_dropout must be 0.*got 0.1"),
    ({"rms_norm_eps": float("inf")}, "rms_norm_eps must be a positive number, got inf"),
    ({"rope_theta": 10**400}, "rope_theta must be a positive number, got 1000"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false, got 1"),
    ({"eos_token_id": "</s>"}, "eos_token_id must be a token id"),
]


@pytest.mark.parametrize("change,message", REFUSED, ids=lambda case: "-".join(case) if isinstance(case, dict) else "")
def test_refused(change, message):
    with pytest.raises(ValueError, match=f"HymbaConfig: {message}"):
        HymbaConfig(**SMALL | change)


@pytest.mark.parametrize(
    "change",
    [{"v_head_dim": -1}, {"v_head_dim": 32}, {"kq_head_dim": 16}, {"attn_hidden_size": 80}, {"attention_dropout": 0},
     {"rope_theta": 10000}, {"eos_token_id": [2, 5]}, {"eos_token_id": None}, {"layer_type": ["h"] * 4}],
    ids=str,
)  # fmt: skip
def test_accepted(change):
    HymbaConfig(**SMALL | change)


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json does not exist"):
        HymbaConfig.from_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text('{"hidden_size": 80,')
    with pytest.raises(ValueError, match="config.json must be JSON, got: "):
        HymbaConfig.from_pretrained(file)
    file.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="config.json must be JSON, got: "):
        HymbaConfig.from_pretrained(file)
    file.write_text(json.dumps(SMALL | {"num_experts": 4}))
    with pytest.raises(ValueError, match=r"num_experts must be 1.*, got 4 \(in .*config.json\)"):
        HymbaConfig.from_pretrained(file)
    file.write_text("[1, 2]")
    with pytest.raises(ValueError, match="config.json must hold a JSON object, got list"):
        HymbaConfig.from_pretrained(tmp_path)
