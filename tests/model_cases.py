"""What the module and model tests share: small configurations with every switch, weights where every term matters."""

from __future__ import annotations

import pytest
import torch

import hymba_ops
import python_reference as reference

from kernel_cases import DEVICE, cu_seqlens

SMALL = {
    "model_type": "hymba",
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "kq_norm": "none",
    "vocab_size": 61,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
    "mlp_hidden_act": "silu",
    "sliding_window": 5,
    "global_attn_idx": [0, 3],
    "num_memory_tokens": 3,
    "kv_reuse_group": [[1, 2]],
    "kv_reuse_every_i_layer": -1,
    "rope": True,
    "rope_theta": 10000.0,
    "rope_type": "ntk",
    "max_position_embeddings": 512,
    "orig_max_position_embeddings": 128,
    "mamba_d_state": 4,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_dt_rank": 5,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
    "mamba_inner_layernorms": True,
}
PRODUCER, BORROWER, GLOBAL = 1, 2, 0  # layers of SMALL

SWITCHES = [
    pytest.param(changes, id=name)
    for name, changes in {
        "published": {},
        "kq_norm_rms": {"kq_norm": "rms"},
        "kq_norm_perhead": {"kq_norm": "perhead-rms"},
        "no_inner_layernorms": {"mamba_inner_layernorms": False},
        "no_conv_bias": {"mamba_conv_bias": False},
        "proj_bias": {"mamba_proj_bias": True},
        "sizes": {"mamba_d_state": 19, "mamba_d_conv": 2, "mamba_dt_rank": "auto", "mamba_expand": 3},
        "expand_1": {"mamba_expand": 1, "mamba_d_conv": 1},
        "relu2": {"mlp_hidden_act": "relu2"},
        "no_mlp": {"intermediate_size": 0},
        "no_rope": {"rope": False},
        "plain_rope": {"rope_type": "default"},
        "null_rope": {"rope_type": None},
        "all_sliding": {"global_attn_idx": [], "kv_reuse_group": None},
        "all_global": {"sliding_window": None, "global_attn_idx": None, "kv_reuse_group": None},
        "no_sharing": {"kv_reuse_group": None},
        "sharing_every_2": {"kv_reuse_group": None, "kv_reuse_every_i_layer": 2, "global_attn_idx": []},
        "no_memory_tokens": {"num_memory_tokens": 0},
        "untied": {"tie_word_embeddings": False},
    }.items()
]

DTYPES = [
    pytest.param(torch.float32, id="fp32"),
    pytest.param(torch.bfloat16, id="bf16"),
    pytest.param(torch.float64, id="fp64"),
]


def randn(*shape, seed=0, dtype=torch.float32):
    """On DEVICE, the same numbers there as on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(dtype).to(DEVICE)


def randomise(module, seed=0):
    """Weights of ordinary size everywhere, all terms away from their initial values; exact in bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            normal = torch.randn(parameter.shape, generator=generator, device="cpu")
            if "norm" in name:
                values = 1 + 0.2 * normal
            elif "A_log" in name or "dt_proj.0.bias" in name:
                values = 0.5 * normal
            elif parameter.dim() > 1 and "embed" not in name and "memory" not in name:
                values = 1.5 * normal / parameter.shape[-1] ** 0.5
            else:
                values = normal
            parameter.copy_(values.bfloat16())
    return module.eval().requires_grad_(False)


def both(kind, changes=None, *args, dtype=torch.float32):
    """hymba_ops' module of that name, the reference's, and the reference's in float64, all with the same weights."""
    fields = SMALL | (changes or {})
    ours = randomise(getattr(hymba_ops, kind)(hymba_ops.HymbaConfig(**fields), *args)).to(dtype)
    plain, exact = (
        getattr(reference, kind)(reference.HymbaConfig(**fields), *args).eval().requires_grad_(False) for _ in range(2)
    )
    plain.load_state_dict(ours.state_dict())
    exact.load_state_dict(ours.state_dict())
    return ours, plain.to(dtype), exact.double()


def token_ids(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(SMALL["vocab_size"], shape, generator=generator, device="cpu").to(DEVICE)


def padding_mask(length, *spans):
    """int64 [rows, length]: each row's tokens are from start to end."""
    columns = torch.arange(length)
    return torch.stack([(columns >= start) & (columns < end) for start, end in spans]).long()


INPUTS = {
    "dense": lambda: {"input_ids": token_ids(2, 9)},
    "embeds": lambda: {"inputs_embeds": randn(2, 9, SMALL["hidden_size"])},
    "packed": lambda: {"input_ids": token_ids(1, 20), "cu_seqlens": cu_seqlens(6, 0, 1, 11)},
    "packed_embeds": lambda: {"inputs_embeds": randn(1, 20, SMALL["hidden_size"]), "cu_seqlens": cu_seqlens(20)},
    "padded": lambda: {"input_ids": token_ids(3, 9), "attention_mask": padding_mask(9, (0, 9), (4, 9), (0, 2))},
}
