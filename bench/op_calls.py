"""Each op's candidates: hymba_ops' function and the plain forms of the same, on given or on random inputs.

"plain" is what the others are compared with. Further names are other plain forms, which are faster at some sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

import hymba_ops
import python_reference
from bench import peers, plain, roofline
from bench.runner import Call

# Of a global layer's token that is decoded: the tokens that it sees, itself among them, and rows of a page.
CONTEXT, PAGE = 8192, 64
# The masked form computes all pairs and holds their scores: it is a rival on short input only.
MASKED_UP_TO = 1024


def both(run: Callable[[Any], object]) -> dict[str, Call]:
    """The same call on hymba_ops' functions and on python_reference's."""
    return {"hymba_ops": lambda: run(hymba_ops), "plain": lambda: run(python_reference)}


def attention(q: Tensor, k: Tensor, v: Tensor, *, peer_names: Collection[str] = (), **mask: Any) -> dict[str, Call]:
    calls: dict[str, Call] = {
        "hymba_ops": lambda: hymba_ops.attention(q, k, v, **mask),
        "plain": lambda: plain.blocked_attention(q, k, v, **mask),
        "naive": lambda: plain.masked_attention(q, k, v, **mask),
    }
    if q.dtype != torch.float32:
        calls["upcast"] = lambda: plain.blocked_attention(q.float(), k.float(), v.float(), **mask).to(q.dtype)
    return calls | peers.attention_calls(peer_names, q, k, v, **mask)


def causal_conv1d(x: Tensor, taps: Tensor, bias: Tensor, *, peer_names: Collection[str] = ()) -> dict[str, Call]:
    return {
        "hymba_ops": lambda: hymba_ops.causal_conv1d(x, taps, bias),
        "plain": lambda: plain.library_conv1d(x, taps, bias),
        "naive": lambda: python_reference.causal_conv1d(x, taps, bias),
    } | peers.conv_calls(peer_names, x, taps, bias)


def selective_scan(*operands: Tensor, dt_bias: Tensor, peer_names: Collection[str] = ()) -> dict[str, Call]:
    """operands: x, dt, A, B, C, D, z."""
    calls = both(lambda module: module.selective_scan(*operands, dt_bias=dt_bias))
    return calls | peers.scan_calls(peer_names, *operands, dt_bias=dt_bias)


# ---- On random inputs ----


def random_calls(
    op: str,
    config: hymba_ops.HymbaConfig,
    layer: int,
    *,
    batch: int,
    length: int,
    dtype: torch.dtype,
    device: torch.device,
    peer_names: Collection[str] = (),
) -> dict[str, Call]:
    """The candidates of `op`, a name of OPS, at the sizes it has in `layer`. length: positions (update ops: one).

    peer_names: of bench.peers.PARTS; those that do what `op` does are candidates too, and may not run here.
    """
    torch.manual_seed(0)
    with torch.device(device):
        rivals = {"peer_names": peer_names} if op in PEER_OPS else {}
        return OPS[op](config, layer, batch, length, dtype, **rivals)


def _attention(
    config: hymba_ops.HymbaConfig,
    layer: int,
    batch: int,
    length: int,
    dtype: torch.dtype,
    peer_names: Collection[str] = (),
) -> dict[str, Call]:
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    q, k, v = (
        torch.randn(batch, length, *shape, dtype=dtype)
        for shape in ((heads, config.head_dim), (kv_heads, config.head_dim), (kv_heads, config.value_head_dim))
    )
    calls = attention(
        q, k, v, window=config.window(layer), num_meta=config.num_memory_tokens, scale=config.attention_scale,
        peer_names=peer_names,
    )  # fmt: skip
    if length > MASKED_UP_TO:
        del calls["naive"]
    return calls


def _decode_attention(
    config: hymba_ops.HymbaConfig, layer: int, batch: int, length: int, dtype: torch.dtype
) -> dict[str, Call]:
    """One token a row: a sliding layer's rings are full, a global layer has CONTEXT tokens with it, in pages."""
    heads, kv_heads, window = config.num_attention_heads, config.num_key_value_heads, config.window(layer)
    dims = config.head_dim, config.value_head_dim
    q = torch.randn(batch, 1, heads, config.head_dim, dtype=dtype)
    k, v = (torch.randn(batch, 1, kv_heads, dim, dtype=dtype) for dim in dims)
    meta = [torch.randn(config.num_memory_tokens, kv_heads, dim, dtype=dtype) for dim in dims]
    if window is None:
        shape, table = (batch * CONTEXT // PAGE, PAGE), torch.arange(batch * CONTEXT // PAGE, dtype=torch.int32)
        table = table.view(batch, -1)
    else:
        shape, table = (batch, window + 1), None
    caches = [torch.randn(*shape, kv_heads, dim, dtype=dtype) for dim in dims]
    lengths = torch.full((batch,), CONTEXT - 1, dtype=torch.int32)
    options = {
        "block_table": table, "meta_k": meta[0], "meta_v": meta[1], "window": window, "scale": config.attention_scale,
        "inv_freq": config.inv_freq(),
    }  # fmt: skip
    ours, theirs, references = ([cache.clone() for cache in caches] for _ in range(3))
    return {
        "hymba_ops": lambda: hymba_ops.decode_attention(q, k, v, *ours, lengths, **options),
        "plain": lambda: plain.decode_attention(q, k, v, *theirs, lengths, **options),
        "naive": lambda: python_reference.decode_attention(q, k, v, *references, lengths, **options),
    }


def _rotary(config: hymba_ops.HymbaConfig, layer: int, batch: int, length: int, dtype: torch.dtype) -> dict[str, Call]:
    x = torch.randn(batch, length, config.num_attention_heads, config.head_dim, dtype=dtype)
    positions, inv_freq = torch.arange(length, dtype=torch.int32), config.inv_freq()
    return both(lambda module: module.rotary(x, positions, inv_freq))


def _causal_conv1d(
    config: hymba_ops.HymbaConfig,
    layer: int,
    batch: int,
    length: int,
    dtype: torch.dtype,
    peer_names: Collection[str] = (),
) -> dict[str, Call]:
    return causal_conv1d(
        torch.randn(batch, length, config.inner_size, dtype=dtype), *_filter(config, dtype), peer_names=peer_names
    )


def _causal_conv1d_update(
    config: hymba_ops.HymbaConfig, layer: int, batch: int, length: int, dtype: torch.dtype
) -> dict[str, Call]:
    x, (taps, bias) = torch.randn(batch, config.inner_size, dtype=dtype), _filter(config, dtype)
    state = torch.randn(batch, config.mamba_d_conv - 1, config.inner_size, dtype=dtype)
    ours, theirs, references = (state.clone() for _ in range(3))
    return {
        "hymba_ops": lambda: hymba_ops.causal_conv1d_update(x, ours, taps, bias),
        "plain": lambda: plain.conv1d_update(x, theirs, taps, bias),
        "naive": lambda: python_reference.causal_conv1d_update(x, references, taps, bias),
    }


def _selective_scan(
    config: hymba_ops.HymbaConfig,
    layer: int,
    batch: int,
    length: int,
    dtype: torch.dtype,
    peer_names: Collection[str] = (),
) -> dict[str, Call]:
    operands, dt_bias = _scan_operands(config, (batch, length), dtype)
    return selective_scan(*operands, dt_bias=dt_bias, peer_names=peer_names)


def _selective_state_update(
    config: hymba_ops.HymbaConfig, layer: int, batch: int, length: int, dtype: torch.dtype
) -> dict[str, Call]:
    operands, dt_bias = _scan_operands(config, (batch,), dtype)
    state = torch.randn(batch, config.inner_size, config.mamba_d_state)
    ours, theirs, references = (state.clone() for _ in range(3))
    return {
        "hymba_ops": lambda: hymba_ops.selective_state_update(ours, *operands, dt_bias=dt_bias),
        "plain": lambda: plain.state_update(theirs, *operands, dt_bias=dt_bias),
        "naive": lambda: python_reference.selective_state_update(references, *operands, dt_bias=dt_bias),
    }


def _mamba_update(
    config: hymba_ops.HymbaConfig, layer: int, batch: int, length: int, dtype: torch.dtype
) -> dict[str, Call]:
    inner, states, rank = config.inner_size, config.mamba_d_state, config.dt_rank
    x, z = (torch.randn(batch, inner, dtype=dtype) for _ in range(2))
    x_proj, dt_proj = (
        torch.randn(*shape, dtype=dtype) * shape[1] ** -0.5 for shape in ((rank + 2 * states, inner), (inner, rank))
    )
    A = -torch.arange(1.0, states + 1).repeat(inner, 1)
    weights = (*_filter(config, dtype), x_proj, dt_proj, torch.randn(inner, dtype=dtype), A, torch.randn(inner))
    norms = dict(
        zip(("dt_norm", "B_norm", "C_norm"), (torch.rand(n, dtype=dtype) for n in (rank, states, states)), strict=True)
    )
    options: dict[str, Any] = {**norms, "eps": config.rms_norm_eps}
    conv_state = torch.randn(batch, config.mamba_d_conv - 1, inner, dtype=dtype)
    state = torch.randn(batch, inner, states)
    ours, theirs, references = ((conv_state.clone(), state.clone()) for _ in range(3))
    counters = torch.zeros(2, dtype=torch.int32)
    return {
        "hymba_ops": lambda: hymba_ops.mamba_update(x, z, *ours, *weights, **options, counters=counters),
        "plain": lambda: plain.mamba_update(x, z, *theirs, *weights, **options),
        "naive": lambda: python_reference.mamba_update(x, z, *references, *weights, **options),
    }


def _rms_norm(
    config: hymba_ops.HymbaConfig, layer: int, batch: int, length: int, dtype: torch.dtype
) -> dict[str, Call]:
    size, eps = config.hidden_size, config.rms_norm_eps
    x, weight = torch.randn(batch, length, size, dtype=dtype), torch.randn(size, dtype=dtype)
    return both(lambda module: module.rms_norm(x, weight, eps=eps)) | {
        "library": lambda: nn.functional.rms_norm(x, (size,), weight, eps)
    }


def _norm_average(
    config: hymba_ops.HymbaConfig, layer: int, batch: int, length: int, dtype: torch.dtype
) -> dict[str, Call]:
    operands = _branches(config, batch, length, dtype)
    return both(lambda module: module.norm_average(*operands)) | {"library": lambda: _library_average(*operands)}


def _norm_average_project(
    config: hymba_ops.HymbaConfig, layer: int, batch: int, length: int, dtype: torch.dtype
) -> dict[str, Call]:
    operands = _branches(config, batch, length, dtype)
    project = torch.randn(config.hidden_size, config.inner_size, dtype=dtype)
    calls = both(lambda module: module.norm_average_project(*operands, project)) | {
        "library": lambda: nn.functional.linear(_library_average(*operands), project)
    }
    if dtype != torch.float32:
        wide = project.float()  # once, as a layer would
        calls["upcast"] = lambda: nn.functional.linear(_library_average(*operands).float(), wide).to(dtype)
    return calls


def _linear(config: hymba_ops.HymbaConfig, layer: int, batch: int, length: int, dtype: torch.dtype) -> dict[str, Call]:
    """in_proj."""
    x = torch.randn(batch, length, config.hidden_size, dtype=dtype)
    weight = torch.randn(roofline.in_proj_rows(config, layer), config.hidden_size, dtype=dtype)
    calls: dict[str, Call] = {
        "hymba_ops": lambda: hymba_ops.linear(x, weight),
        "plain": lambda: nn.functional.linear(x, weight),
    }
    if dtype != torch.float32:
        wide = weight.float()  # once, as a layer would
        calls["upcast"] = lambda: nn.functional.linear(x.float(), wide).to(dtype)
    return calls


def _gated_linear(
    config: hymba_ops.HymbaConfig, layer: int, batch: int, length: int, dtype: torch.dtype
) -> dict[str, Call]:
    x = torch.randn(batch, length, config.hidden_size, dtype=dtype)
    weights = [torch.randn(config.intermediate_size, config.hidden_size, dtype=dtype) for _ in range(2)]
    calls = both(lambda module: module.gated_linear(x, *weights))
    if dtype != torch.float32:
        wide = [weight.float() for weight in weights]
        calls["upcast"] = lambda: python_reference.gated_linear(x.float(), *wide).to(dtype)
    return calls


def _norm_project(
    config: hymba_ops.HymbaConfig, layer: int, batch: int, length: int, dtype: torch.dtype
) -> dict[str, Call]:
    """in_proj behind its norm."""
    size, eps = config.hidden_size, config.rms_norm_eps
    x, norm = torch.randn(batch, length, size, dtype=dtype), torch.randn(size, dtype=dtype)
    weight = torch.randn(roofline.in_proj_rows(config, layer), size, dtype=dtype)
    return {
        "hymba_ops": lambda: hymba_ops.norm_project(x, norm, weight, eps=eps),
        "plain": lambda: nn.functional.linear(nn.functional.rms_norm(x, (size,), norm, eps), weight),
    }


def _gated_mlp(
    config: hymba_ops.HymbaConfig, layer: int, batch: int, length: int, dtype: torch.dtype
) -> dict[str, Call]:
    size, inner, eps = config.hidden_size, config.intermediate_size, config.rms_norm_eps
    x, norm = torch.randn(batch, length, size, dtype=dtype), torch.randn(size, dtype=dtype)
    gate, up, down = (torch.randn(*shape, dtype=dtype) for shape in ((inner, size), (inner, size), (size, inner)))
    counters = torch.zeros(2, dtype=torch.int32)

    def library() -> Tensor:
        normed = nn.functional.rms_norm(x, (size,), norm, eps)
        inside = nn.functional.silu(nn.functional.linear(normed, gate)) * nn.functional.linear(normed, up)
        return nn.functional.linear(inside, down)

    return {
        "hymba_ops": lambda: hymba_ops.gated_mlp(x, norm, gate, up, down, eps=eps, counters=counters),
        "plain": library,
    }


OPS = {
    "attention": _attention,
    "decode_attention": _decode_attention,
    "selective_scan": _selective_scan,
    "causal_conv1d": _causal_conv1d,
    "rotary": _rotary,
    "rms_norm": _rms_norm,
    "norm_average": _norm_average,
    "norm_project": _norm_project,
    "norm_average_project": _norm_average_project,
    "linear": _linear,
    "gated_linear": _gated_linear,
    "gated_mlp": _gated_mlp,
    "causal_conv1d_update": _causal_conv1d_update,
    "selective_state_update": _selective_state_update,
    "mamba_update": _mamba_update,
}
PEER_OPS = ("attention", "selective_scan", "causal_conv1d")  # of which bench/peers.py has some


def _library_average(attn: Tensor, ssm: Tensor, attn_weight: Tensor, ssm_weight: Tensor) -> Tensor:
    size = attn.shape[-1:]
    first, second = (nn.functional.rms_norm(x, size, w, 1e-6) for x, w in ((attn, attn_weight), (ssm, ssm_weight)))
    return (first + second) / 2


def _filter(config: hymba_ops.HymbaConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.randn(config.inner_size, config.mamba_d_conv, dtype=dtype), torch.randn(config.inner_size, dtype=dtype)


def _branches(config: hymba_ops.HymbaConfig, batch: int, length: int, dtype: torch.dtype) -> list[Tensor]:
    shapes = [(batch, length, config.inner_size)] * 2 + [(config.inner_size,)] * 2
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def _scan_operands(
    config: hymba_ops.HymbaConfig, rows: tuple[int, ...], dtype: torch.dtype
) -> tuple[tuple[Tensor, ...], Tensor]:
    """x, dt, A, B, C, D, z and the bias of dt."""
    inner, states = config.inner_size, config.mamba_d_state
    x, dt, z = (torch.randn(*rows, inner, dtype=dtype) for _ in range(3))
    B, C = (torch.randn(*rows, states, dtype=dtype) for _ in range(2))
    A = -torch.arange(1.0, states + 1).repeat(inner, 1)
    return (x, dt, A, B, C, torch.randn(inner), z), torch.randn(inner)
