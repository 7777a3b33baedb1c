"""The work of a decode step of a stack of layers, and the bytes that a stack and its caches take.

A step reads every weight and, of each row, the keys and values that its tokens see (the meta tokens' once, since all
rows share them) and both states of the SSM branch; it writes the new keys and values and the states. A layer that
borrows keys reads them again: between two layers of a large model lie more bytes than a cache holds. Activations,
lengths, block tables and the angles of RoPE are left out: a thousandth of the weights at one row.
"""

from __future__ import annotations

import functools

import torch

import hymba_ops
from bench.roofline import Ceilings, Work, in_proj_rows
from hymba_ops import HymbaConfig

PAGE = 64  # tokens


@functools.lru_cache(maxsize=256)
def weight_elements(config: HymbaConfig, layer: int) -> tuple[int, int]:
    """How many numbers of a layer's weights a step reads: in the layer's dtype, and A's in float32."""
    named = hymba_ops.HymbaLayer(config, layer, device=torch.device("meta")).named_parameters()
    return (
        sum(parameter.numel() for name, parameter in named if ".A_log" not in name),
        config.inner_size * config.mamba_d_state,
    )


def weight_bytes(config: HymbaConfig, itemsize: int) -> int:
    """Of all layers of the stack."""
    counts = [weight_elements(config, layer) for layer in range(config.num_hidden_layers)]
    return sum(itemsize * own + 4 * rates for own, rates in counts)


def visible_tokens(config: HymbaConfig, layer: int, context: int, tokens: int) -> int:
    """Of one row, without meta tokens: how many keys a step of `tokens` behind `context` others sees."""
    window = config.window(layer)
    return tokens + (context if window is None else min(context, window))


def step_work(config: HymbaConfig, layer: int, *, batch: int, context: int, tokens: int, itemsize: int) -> Work:
    """One layer's. flop: of products, attention and convolution."""
    inner, states, rank = config.inner_size, config.mamba_d_state, config.dt_rank
    heads, kv_heads, dims = (
        config.num_attention_heads, config.num_key_value_heads, config.head_dim + config.value_head_dim
    )  # fmt: skip
    meta, rows, window = config.num_memory_tokens, batch * tokens, config.window(layer)
    own_keys = config.producer(layer) == layer

    mlp = config.intermediate_size * (3 if config.mlp_hidden_act == "silu" else 2)
    products = config.hidden_size * (in_proj_rows(config, layer) + inner + mlp) + inner * (2 * rank + 2 * states)
    seen = [meta + (context + t if window is None else min(context + t, window)) + 1 for t in range(tokens)]
    pairs = batch * heads * sum(seen)  # of a query and a key that it sees

    own, rates = weight_elements(config, layer)
    cached = meta + batch * (visible_tokens(config, layer, context, tokens) + own_keys * tokens)
    conv_state = 2 * batch * (config.mamba_d_conv - 1) * inner
    return Work(
        flop=2 * rows * (products + config.mamba_d_conv * inner) + 2 * pairs * dims,
        special=pairs + rows * inner * (states + 4),
        bytes=itemsize * (own + kv_heads * dims * cached + conv_state) + 4 * (rates + 2 * batch * inner * states),
    )


def stack_work(config: HymbaConfig, *, batch: int, context: int, tokens: int, itemsize: int) -> list[Work]:
    return [
        step_work(config, layer, batch=batch, context=context, tokens=tokens, itemsize=itemsize)
        for layer in range(config.num_hidden_layers)
    ]


def floor_seconds(ceilings: Ceilings, layers: list[Work]) -> float:
    """The least time of a step: layer by layer the longest of bytes, products and special functions. A product reads
    its weights while it multiplies, on a CPU too; a CPU's special functions take vector units, which come on top."""
    seconds = 0.0
    for work in layers:
        special = work.special / ceilings.special
        streamed = max(work.bytes / ceilings.bandwidth, work.flop / ceilings.gemm)
        seconds += max(streamed, special) if ceilings.separate_units else streamed + special
    return seconds


def cached_rows(config: HymbaConfig, layer: int, *, batch: int, context: int, tokens: int, meta_each: bool) -> int:
    """Rows of keys and of values that a layer keeps, in whole pages; meta_each: every row of the batch has the meta
    tokens' too, else they lie there once."""
    if config.producer(layer) != layer:
        return 0
    window, meta = config.window(layer), config.num_memory_tokens
    each = page_count(context + tokens) * PAGE if window is None else window + tokens
    return batch * each + meta * (batch if meta_each else 1)


def state_bytes(config: HymbaConfig, *, batch: int, itemsize: int) -> int:
    """Of both states of all layers."""
    taps = itemsize * (config.mamba_d_conv - 1)
    return config.num_hidden_layers * batch * config.inner_size * (taps + 4 * config.mamba_d_state)


def page_count(tokens: int) -> int:
    return -(-tokens // PAGE)
