"""The calls that tools/sass_model/kernels describes launches of (`Case`), on random inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch

import hymba_ops
from bench import cases, op_calls, options
from bench.runner import Call
from tools.sass_model.kernels import Case

DTYPE = torch.bfloat16

Maker = Callable[[hymba_ops.HymbaConfig, int, Case], Call]


def make_call(case: Case, device: torch.device) -> Call:
    """One call on inputs of its own."""
    config = options.preset("1.5b")
    layer = cases.layer_index(config, case.layer or "global")
    torch.manual_seed(0)
    with torch.device(device):
        return MAKERS[case.op, case.name](config, layer, case)


def _of_op_calls(config: hymba_ops.HymbaConfig, layer: int, case: Case) -> Call:
    return op_calls.OPS[case.op](config, layer, case.batch, case.length, DTYPE)["hymba_ops"]


def _one_head_of_keys(config: hymba_ops.HymbaConfig, layer: int, case: Case) -> Call:
    """Keys at a head stride of 0, which TMA cannot read (attention_sm90_refusal, csrc/cuda/attention_sm90.cu)."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    q, k, v = (
        torch.randn(case.batch, case.length, *shape, dtype=DTYPE)
        for shape in ((heads, config.head_dim), (1, config.head_dim), (kv_heads, config.value_head_dim))
    )
    k = k.expand(-1, -1, kv_heads, -1)
    mask = {"window": config.window(layer), "num_meta": config.num_memory_tokens, "scale": config.attention_scale}
    return lambda: hymba_ops.attention(q, k, v, **mask)


def _norm_of_x_proj(begin: int, width: int) -> Maker:
    """rms_norm of a slice of x_proj's output, where it lies."""

    def make(config: hymba_ops.HymbaConfig, layer: int, case: Case) -> Call:
        columns = config.dt_rank + 2 * config.mamba_d_state
        x = torch.randn(case.batch, case.length, columns, dtype=DTYPE)[..., begin : begin + width]
        weight = torch.randn(width, dtype=DTYPE)
        return lambda: hymba_ops.rms_norm(x, weight, eps=config.rms_norm_eps)

    return make


def _rotary_of_keys(config: hymba_ops.HymbaConfig, layer: int, case: Case) -> Call:
    x = torch.randn(case.batch, case.length, config.num_key_value_heads, config.head_dim, dtype=DTYPE)
    positions, inv_freq = torch.arange(case.length, dtype=torch.int32), config.inv_freq()
    return lambda: hymba_ops.rotary(x, positions, inv_freq)


def _to_hidden(inner: str, *, residual: bool = False) -> Maker:
    """A product whose outputs are hidden states. inner: the field of the configuration that says of how many inputs."""

    def make(config: hymba_ops.HymbaConfig, layer: int, case: Case) -> Call:
        size = getattr(config, inner)
        x = torch.randn(case.batch, case.length, size, dtype=DTYPE)
        weight = torch.randn(config.hidden_size, size, dtype=DTYPE)
        added = torch.randn(case.batch, case.length, config.hidden_size, dtype=DTYPE) if residual else None
        return lambda: hymba_ops.linear(x, weight, residual=added)

    return make


_RANK, _STATES = options.preset("1.5b").dt_rank, options.preset("1.5b").mamba_d_state

# Op and name of a Case to what makes its call.
MAKERS: dict[tuple[str, str], Maker] = {
    **{(op, "1.5B layer"): _of_op_calls for op in op_calls.OPS},
    ("gated_linear", "gate and up"): _of_op_calls,
    ("gated_linear", "gate of the MLP"): _of_op_calls,
    ("linear", "in_proj"): _of_op_calls,
    ("norm_average_project", "norm-average, out_proj"): _of_op_calls,
    ("norm_project", "norm, in_proj"): _of_op_calls,
    ("rms_norm", "hidden states"): _of_op_calls,
    ("rotary", "queries"): _of_op_calls,
    ("attention", "1.5B layer with one head of keys"): _one_head_of_keys,
    ("linear", "down"): _to_hidden("intermediate_size"),
    ("linear", "out_proj"): _to_hidden("inner_size"),
    ("linear", "residual of out_proj"): _to_hidden("inner_size", residual=True),
    ("rms_norm", "B"): _norm_of_x_proj(_RANK, _STATES),
    ("rms_norm", "dt"): _norm_of_x_proj(0, _RANK),
    ("rotary", "keys"): _rotary_of_keys,
}
