"""The specification of hymba_ops in plain PyTorch: the same names and signatures, each op as its equation.

Any float dtype, any device; imports torch and the standard library only.
"""

from python_reference.attention import attention
from python_reference.cache import HymbaCache
from python_reference.config import HymbaConfig
from python_reference.conv import causal_conv1d, causal_conv1d_update
from python_reference.decode import decode_attention
from python_reference.linear import gated_linear, linear
from python_reference.mamba import decode_branches, mamba_update
from python_reference.mixer import HybridMixer, PerHeadRMSNorm, RMSNorm
from python_reference.mlp import gated_mlp
from python_reference.model import HymbaForCausalLM, HymbaLayer, HymbaMLP, HymbaModel
from python_reference.norms import norm_average, norm_average_project, norm_project, rms_norm
from python_reference.rotary import rotary
from python_reference.scan import selective_scan, selective_state_update

__all__ = [
    "HybridMixer",
    "HymbaCache",
    "HymbaConfig",
    "HymbaForCausalLM",
    "HymbaLayer",
    "HymbaMLP",
    "HymbaModel",
    "PerHeadRMSNorm",
    "RMSNorm",
    "attention",
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
