"""The published config.json as attributes, read without validation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Those of the published configuration class.
_DEFAULTS = {
    "vocab_size": 65536,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "kq_norm": "none",
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "mlp_hidden_act": "silu",
    "sliding_window": None,
    "global_attn_idx": None,
    "num_memory_tokens": 0,
    "kv_reuse_group": None,
    "kv_reuse_every_i_layer": -1,
    "rope": False,
    "rope_theta": 10000.0,
    "rope_type": None,
    "max_position_embeddings": 262144,
    "orig_max_position_embeddings": None,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_dt_rank": "auto",
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
    "mamba_inner_layernorms": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


class HymbaConfig:
    """Published field names as attributes, defaults where a field is missing, and what follows from them.

    >>> HymbaConfig(hidden_size=80, num_attention_heads=5).head_dim
    16
    """

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(_DEFAULTS | fields)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> HymbaConfig:
        """path: a folder with config.json, or the file itself."""
        path = Path(path)
        return cls(**json.loads((path / "config.json" if path.is_dir() else path).read_text()))

    @property
    def head_dim(self) -> int:
        """Of queries and keys."""
        return self.hidden_size // self.num_attention_heads

    @property
    def inner_size(self) -> int:
        """Channels of the SSM branch, and the width of the attention branch's output."""
        return self.mamba_expand * self.hidden_size

    @property
    def value_head_dim(self) -> int:
        """Of values."""
        return self.inner_size // self.num_attention_heads

    @property
    def dt_rank(self) -> int:
        """Rank of the projection to dt."""
        return math.ceil(self.hidden_size / 16) if self.mamba_dt_rank == "auto" else self.mamba_dt_rank

    @property
    def attention_scale(self) -> float:
        """Factor on q k^T."""
        return self.head_dim**-0.5

    def is_global(self, layer: int) -> bool:
        """Whether every earlier key is visible in this layer."""
        return self.window(layer) is None

    def window(self, layer: int) -> int | None:
        """Keys visible before the query's own; None for all."""
        return None if layer in (self.global_attn_idx or ()) else self.sliding_window

    def producer(self, layer: int) -> int:
        """Index of the layer whose keys and values this one uses: its own when it makes them."""
        if self.kv_reuse_group is not None:
            return next((group[0] for group in self.kv_reuse_group if layer in group), layer)
        every = self.kv_reuse_every_i_layer
        return layer - layer % every if every > 0 else layer

    def inv_freq(self) -> Tensor | None:
        """RoPE's frequencies, float32 [head_dim / 2]; None without RoPE.

        "ntk" stretches the base by a fixed factor, whatever the actual length; the 2 in it is published so.
        """
        if not self.rope:
            return None
        base, dim = self.rope_theta, self.head_dim
        if self.rope_type == "ntk":
            stretch = 2 * self.max_position_embeddings / self.orig_max_position_embeddings - 1
            base = base * stretch ** (dim / (dim - 2))
        elif self.rope_type not in (None, "default"):
            raise ValueError(f"HymbaConfig: rope_type must be null, 'default' or 'ntk', got {self.rope_type!r}")
        return 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim)
