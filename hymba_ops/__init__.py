"""Kernels and modules for the Hymba hybrid-head architecture (arXiv 2411.13676): attention and Mamba side by side."""

from hymba_ops.config import HymbaConfig
from hymba_ops.functional import (
    attention,
    causal_conv1d,
    causal_conv1d_update,
    decode_attention,
    decode_branches,
    gated_linear,
    gated_mlp,
    linear,
    mamba_update,
    norm_average,
    norm_average_project,
    norm_project,
    rms_norm,
    rotary,
    selective_scan,
    selective_state_update,
)
from hymba_ops.info import __version__, build_info
from hymba_ops.model import HymbaForCausalLM, HymbaModel
from hymba_ops.modules import HybridMixer, HymbaLayer

__all__ = [
    "HybridMixer",
    "HymbaConfig",
    "HymbaForCausalLM",
    "HymbaLayer",
    "HymbaModel",
    "__version__",
    "attention",
    "build_info",
    "causal_conv1d",
    "causal_conv1d_update",
    "decode_attention",
    "decode_branches",
    "gated_linear",
    "gated_mlp",
    "linear",
    "mamba_update",
    "norm_average",
    "norm_average_project",
    "norm_project",
    "rms_norm",
    "rotary",
    "selective_scan",
    "selective_state_update",
]
