"""What a user has today in place of hymba_ops, beside bench/plain.py's forms: timed on a GPU.

attention   flex             FlexAttention, compiled: one call with grouped heads, key dim 64 and value dim 128
            flex-halves      as the published model calls it: once for each half of the values, keys and values repeated
            sdpa             scaled_dot_product_attention, q and k padded to the value dim; all keys: causal, else under
                             a boolean mask with keys and values repeated, as the one fused kernel with masks wants it
            compiled-blocks  torch.compile of plain's blocks of queries, at most 16
            compiled-masked  torch.compile of all scores under the whole mask
conv, scan  causal_conv1d, mamba_ssm: these libraries' kernels, channels first
layer       flex, sdpa       plain with that attention
            published        the published path: flex-halves, the two libraries on [B, D, L], two norms, their sum, its
                             half, out_proj. Where a library is missing, PyTorch stands in (`stand_ins`)

Masks and copies to a peer's own layout are made before it is timed. Compilers and libraries fail in many ways: whoever
times a peer goes through bench.cases.admit, which compares it with plain and keeps the reason why one cannot run.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

import python_reference as reference
from bench import plain
from bench.runner import Call, CannotRun, available_bytes, first_line
from python_reference.attention import visible

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # `attention` on dense input with S = T

_MANY_SHAPES = 1024  # a sweep compiles one function for more shapes than the compiler's default allows


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.config.recompile_limit = _MANY_SHAPES
    torch._dynamo.config.accumulated_recompile_limit = _MANY_SHAPES
    return torch.compile(function, dynamic=False)


@functools.cache
def _flex_attention() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return compiled(flex_attention)


@functools.lru_cache(maxsize=4)
def _block_mask(window: int | None, num_meta: int, length: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def mask(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) if window is None else (j <= i) & ((i - j <= window) | (j < num_meta))

    return create_block_mask(mask, None, None, length, length, device=device)


@functools.lru_cache(maxsize=2)
def _dense_mask(window: int | None, num_meta: int, length: int, device: torch.device) -> Tensor:
    positions = torch.arange(length, device=device)
    return visible(positions, positions, window, num_meta)


def _repeat_heads(x: Tensor, heads: int) -> Tensor:
    """[B, Hkv, T, D] to [B, heads, T, D], each head as often as its group has queries' heads."""
    return x.repeat_interleave(heads // x.shape[1], dim=1)


def _flex(window: int | None, num_meta: int, scale: float) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = _block_mask(window, num_meta, q.shape[1], q.device)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return _flex_attention()(q, k, v, block_mask=mask, scale=scale, enable_gqa=True).transpose(1, 2)

    return attend


def _flex_halves(window: int | None, num_meta: int, scale: float) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = _block_mask(window, num_meta, q.shape[1], q.device)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        k, v = (_repeat_heads(x, q.shape[1]) for x in (k, v))
        halves = [_flex_attention()(q, k, half, block_mask=mask, scale=scale) for half in v.chunk(2, dim=-1)]
        return torch.cat(halves, dim=-1).transpose(1, 2)

    return attend


def _sdpa(window: int | None, num_meta: int, scale: float) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = None if window is None else _dense_mask(window, num_meta, q.shape[1], q.device)
        missing = v.shape[3] - q.shape[3]
        q, k = (nn.functional.pad(x, (0, missing)) for x in (q, k))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if mask is not None:
            k, v = (_repeat_heads(x, q.shape[1]) for x in (k, v))
        return nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=mask is None
        ).transpose(1, 2)

    return attend


def _compiled_blocks(window: int | None, num_meta: int, scale: float) -> Attend:
    return compiled(functools.partial(plain.unrolled_attention, window=window, num_meta=num_meta, scale=scale))


def _compiled_masked(window: int | None, num_meta: int, scale: float) -> Attend:
    @compiled
    def all_scores(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return plain.grouped_products(q, k, v, mask, scale)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, length, heads, _ = q.shape
        needed, available = 2 * 4 * batch * heads * length**2, available_bytes(q.device)  # scores, twice
        if available is not None and needed > available:
            raise CannotRun(f"about {needed / 2**30:.0f} GiB needed, {available / 2**30:.0f} GiB available")
        return all_scores(q, k, v, _dense_mask(window, num_meta, length, q.device))

    return attend


ATTENTION: dict[str, Callable[..., Attend]] = {
    "flex": _flex,
    "flex-halves": _flex_halves,
    "sdpa": _sdpa,
    "compiled-blocks": _compiled_blocks,
    "compiled-masked": _compiled_masked,
}
LIBRARIES = {
    "causal_conv1d": ("causal_conv1d", "causal_conv1d_fn"),
    "mamba_ssm": ("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn"),
}


def _library(name: str) -> Callable[..., Any]:
    """Raises ImportError, or whatever else the import of a library built for another torch raises."""
    module, function = LIBRARIES[name]
    return getattr(importlib.import_module(module), function)


@functools.cache
def stand_ins() -> dict[str, str]:
    """The libraries that "published" does without here, and why."""
    missing = {}
    for name in LIBRARIES:
        try:
            _library(name)
        except Exception as reason:  # the reason is reported
            missing[name] = f"{type(reason).__name__}: {first_line(reason)}"
    return missing


# ---- Calls on a part's inputs. They compile and import when they are first called. ----


def attention_calls(
    names: Iterable[str], q: Tensor, k: Tensor, v: Tensor, *, window: int | None, num_meta: int, scale: float
) -> dict[str, Call]:
    """Those of `names` that are forms of attention; arguments as of hymba_ops.attention."""
    calls: dict[str, Call] = {}
    for name in names:
        if name in ATTENTION:
            attend, inputs = ATTENTION[name](window, num_meta, scale), (q, k, v)
            if not name.startswith("compiled"):
                inputs = tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs)
            calls[name] = functools.partial(attend, *inputs)
    return calls


def conv_calls(names: Iterable[str], x: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Call]:
    if "causal_conv1d" not in names:
        return {}
    x = _channels_first(x)
    return {"causal_conv1d": lambda: _library("causal_conv1d")(x, weight, bias, activation="silu").transpose(1, 2)}


def scan_calls(names: Iterable[str], *operands: Tensor, dt_bias: Tensor) -> dict[str, Call]:
    """operands: x, dt, A, B, C, D, z as of hymba_ops.selective_scan."""
    if "mamba_ssm" not in names:
        return {}
    x, dt, A, B, C, D, z = operands
    x, dt, B, C, z = map(_channels_first, (x, dt, B, C, z))
    return {"mamba_ssm": lambda: _library_scan(x, dt, A, B, C, D, z, dt_bias).transpose(1, 2)}


def _channels_first(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous()


def _library_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor
) -> Tensor:
    return _library("mamba_ssm")(x, dt, A, B, C, D, z=z, delta_bias=dt_bias, delta_softplus=True)


# ---- Layers ----


class _AttentionMixer(plain.PlainMixer):
    """plain's mixer with another attention."""

    form: str

    def attend(self, q, k, v, *, window, num_meta, scale, cu_seqlens):
        return _attend(self.form, window, num_meta, scale)(q, k, v)


_attend = functools.cache(lambda form, window, num_meta, scale: ATTENTION[form](window, num_meta, scale))


class FlexMixer(_AttentionMixer):
    form = "flex"


class SdpaMixer(_AttentionMixer):
    form = "sdpa"


class PublishedMixer(_AttentionMixer):
    """The published path, of its parts."""

    form = "flex-halves"

    def convolve(self, x, weight, bias, *, initial_state, cu_seqlens):
        length, width = x.shape[1], weight.shape[1]
        channels = x.transpose(1, 2)
        if "causal_conv1d" in stand_ins():
            out = nn.functional.conv1d(channels, weight[:, None], bias, padding=width - 1, groups=x.shape[2])
            out = nn.functional.silu(out[..., :length])
        else:
            out = _library("causal_conv1d")(channels, weight, bias, activation="silu")
        return out.transpose(1, 2), x[:, length - (width - 1) :]

    def scan(self, x, dt, A, B, C, D, z, *, dt_bias, initial_state, cu_seqlens):
        if "mamba_ssm" in stand_ins():
            return super().scan(
                x, dt, A, B, C, D, z, dt_bias=dt_bias, initial_state=initial_state, cu_seqlens=cu_seqlens
            )
        x, dt, B, C, z = (t.transpose(1, 2) for t in (x, dt, B, C, z))
        return _library_scan(x, dt, A, B, C, D, z, dt_bias).transpose(1, 2), None

    def join(self, attn: Tensor, ssm: Tensor) -> Tensor:
        return self.out_proj((self.pre_avg_layernorm1(attn) + self.pre_avg_layernorm2(ssm)) / 2)


MIXERS: dict[str, type[reference.HybridMixer]] = {
    "flex": FlexMixer,
    "sdpa": SdpaMixer,
    "published": PublishedMixer,
}
PARTS = (*ATTENTION, *LIBRARIES)
NAMES = (*PARTS, "published")
