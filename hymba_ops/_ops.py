"""The one place that touches torch.ops.hymba_ops: calls, fake kernels and autograd registration.

Fake kernels know shapes and dtypes only; the checks are the C++ ops' own and raise ValueError.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hymba_ops import _library  # noqa: F401  (registers the ops)

_ops = torch.ops.hymba_ops

# Tokens between two saved states of selective_scan; csrc/ops/selective_scan.h has the same.
CHECKPOINT_INTERVAL = 64


def call(name: str, *args: Any) -> Any:
    """torch.ops.hymba_ops.<name>(*args).

    Raises:
        ValueError: a check of the C++ op failed; its text names the tensor, what was expected and what came.
        TypeError: an argument is of another Python type than the schema's.
    """
    op = getattr(_ops, name)
    if torch.compiler.is_compiling():
        return op(*args)
    try:
        return op(*args)
    except RuntimeError as error:
        if "Expected a value of type" in str(error):
            raise TypeError(str(error).split("\nDeclaration")[0]) from None
        raise


def build_info() -> dict[str, str]:
    """The compiled library's own facts, as strings."""
    return dict(pair.split("=", 1) for pair in _ops.build_info().split(";"))


# ---- Fake kernels ----


def _fake(name: str) -> Callable[[Callable[..., Any]], None]:
    """Registers the fake kernel of an op, with the one check that the C++ op cannot make: torch sends a mix with a
    tensor of the meta device here."""

    def register(kernel: Callable[..., Any]) -> None:
        names = list(inspect.signature(kernel).parameters)

        def fake(*args: Any) -> Any:
            tensors = [(n, a) for n, a in zip(names, args, strict=True) if isinstance(a, Tensor)]
            first, like = tensors[0]
            for n, tensor in tensors[1:]:
                if tensor.device != like.device:
                    raise ValueError(f"{name}: {n} must be on {first}'s device {like.device}, got {tensor.device}")
            return kernel(*args)

        torch.library.register_fake(f"hymba_ops::{name}", fake)

    return register


def _state_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _sequences(x: Tensor, cu_seqlens: Tensor | None) -> int:
    return x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1


@_fake("attention")
def _attention(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, num_meta: int, scale: float | None, meta_k: Tensor | None,
    meta_v: Tensor | None, cu_seqlens: Tensor | None, cu_seqlens_k: Tensor | None, return_lse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    out = q.new_empty((*q.shape[:3], v.shape[3]))
    return out, q.new_empty(q.shape[:3] if return_lse else (0,), dtype=_state_dtype(q))


@_fake("decode_attention")
def _decode_attention(
    q: Tensor, k: Tensor | None, v: Tensor | None, k_cache: Tensor, v_cache: Tensor, lengths: Tensor,
    counts: Tensor | None, slots: Tensor | None, block_table: Tensor | None, meta_k: Tensor | None,
    meta_v: Tensor | None, window: int | None, scale: float | None, inv_freq: Tensor | None, counters: Tensor | None,
) -> Tensor:  # fmt: skip
    return q.new_empty((*q.shape[:3], v_cache.shape[3]))


@_fake("decode_branches")
def _decode_branches(
    q: Tensor, k: Tensor | None, v: Tensor | None, k_cache: Tensor, v_cache: Tensor, lengths: Tensor,
    slots: Tensor | None, block_table: Tensor | None, meta_k: Tensor | None, meta_v: Tensor | None,
    window: int | None, scale: float | None, inv_freq: Tensor | None, x: Tensor, z: Tensor, conv_state: Tensor,
    ssm_state: Tensor, conv_weight: Tensor, conv_bias: Tensor | None, x_proj_weight: Tensor, dt_proj_weight: Tensor,
    dt_bias: Tensor, A: Tensor, D: Tensor, dt_norm: Tensor | None, B_norm: Tensor | None, C_norm: Tensor | None,
    eps: float, counters: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return q.new_empty((*q.shape[:3], v_cache.shape[3])), x.new_empty(x.shape)


@_fake("rotary")
def _rotary(x: Tensor, positions: Tensor, inv_freq: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@_fake("causal_conv1d")
def _causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, initial_state: Tensor | None,
    cu_seqlens: Tensor | None, return_final_state: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    state_shape = (_sequences(x, cu_seqlens), weight.shape[1] - 1, x.shape[2])
    return x.new_empty(x.shape), x.new_empty(state_shape if return_final_state else (0,))


@_fake("selective_scan")
def _selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, dt_softplus: bool, initial_state: Tensor | None, cu_seqlens: Tensor | None,
    return_final_state: bool, save_checkpoints: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    batch, length, channels = x.shape
    sequences, states = _sequences(x, cu_seqlens), A.shape[1]
    if cu_seqlens is None:
        chunks = (batch, (length + CHECKPOINT_INTERVAL - 1) // CHECKPOINT_INTERVAL, channels, states)
    else:
        chunks = (batch, length // CHECKPOINT_INTERVAL + sequences, channels, states)
    return (
        x.new_empty(x.shape),
        x.new_empty((sequences, channels, states) if return_final_state else (0,), dtype=_state_dtype(x)),
        x.new_empty(chunks if save_checkpoints else (0,), dtype=_state_dtype(x)),
    )


@_fake("causal_conv1d_update")
def _causal_conv1d_update(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, slots_in: Tensor | None,
    slots_out: Tensor | None,
) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape)


@_fake("selective_state_update")
def _selective_state_update(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, dt_softplus: bool, slots_in: Tensor | None, slots_out: Tensor | None,
) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape)


@_fake("mamba_update")
def _mamba_update(
    x: Tensor, z: Tensor, conv_state: Tensor, ssm_state: Tensor, conv_weight: Tensor, conv_bias: Tensor | None,
    x_proj_weight: Tensor, dt_proj_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, dt_norm: Tensor | None,
    B_norm: Tensor | None, C_norm: Tensor | None, eps: float, slots: Tensor | None,
    counters: Tensor | None,
) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape)


@_fake("rms_norm")
def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


@_fake("norm_average")
def _norm_average(attn: Tensor, ssm: Tensor, attn_weight: Tensor, ssm_weight: Tensor, eps: float) -> Tensor:
    return attn.new_empty(attn.shape)


@_fake("norm_project")
def _norm_project(
    x: Tensor, norm_weight: Tensor, proj_weight: Tensor, bias: Tensor | None, residual: Tensor | None, eps: float,
) -> Tensor:  # fmt: skip
    return x.new_empty((*x.shape[:-1], proj_weight.shape[0]))


@_fake("norm_average_project")
def _norm_average_project(
    attn: Tensor, ssm: Tensor, attn_weight: Tensor, ssm_weight: Tensor, proj_weight: Tensor, bias: Tensor | None,
    residual: Tensor | None, eps: float,
) -> Tensor:  # fmt: skip
    return attn.new_empty((*attn.shape[:-1], proj_weight.shape[0]))


@_fake("linear")
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@_fake("gated_linear")
def _gated_linear(x: Tensor, gate_weight: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@_fake("gated_mlp")
def _gated_mlp(
    x: Tensor, norm_weight: Tensor, gate_weight: Tensor, weight: Tensor, down_weight: Tensor, residual: Tensor | None,
    eps: float, counters: Tensor | None,
) -> Tensor:  # fmt: skip
    return x.new_empty((*x.shape[:-1], down_weight.shape[0]))


@_fake("_exp2_sum")
def _exp2_sum(x: Tensor, repeats: int) -> Tensor:
    return x.new_empty(x.shape)


# ---- Autograd ----


def _backward_missing(name: str) -> Callable[..., Any]:
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError(f"hymba_ops::{name} has no backward yet: run it under torch.no_grad()")

    return backward


def _rows(t: Tensor) -> Tensor:
    """[..., D] as [rows, D], which reshape(-1, D) cannot do where D is 0."""
    return t.flatten(0, -2) if t.dim() > 1 else t.unsqueeze(0)


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, _ = inputs
    ctx.save_for_backward(x, weight)


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, needs_residual = ctx.needs_input_grad
    grads = _rows(grad)
    return (
        grad @ weight if needs_x else None,
        grads.T @ _rows(x) if needs_weight else None,
        grads.sum(0) if needs_bias else None,
        grad if needs_residual else None,
    )


def _gated_linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gated_linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """With s = sigmoid(g): d/dg of g s is s (1 + g (1 - s)). Gate and up are computed again, not kept."""
    x, gate_weight, weight = ctx.saved_tensors
    rows, grads = _rows(x), _rows(grad)
    gate, up = rows @ gate_weight.T, rows @ weight.T
    sigmoid = gate.sigmoid()
    up_grad, gate_grad = grads * gate * sigmoid, grads * up * sigmoid * (1 + gate * (1 - sigmoid))
    needs_x, needs_gate, needs_weight = ctx.needs_input_grad
    return (
        (gate_grad @ gate_weight + up_grad @ weight).view_as(x) if needs_x else None,
        gate_grad.T @ rows if needs_gate else None,
        up_grad.T @ rows if needs_weight else None,
    )


torch.library.register_autograd("hymba_ops::linear", _linear_backward, setup_context=_linear_setup)
torch.library.register_autograd("hymba_ops::gated_linear", _gated_linear_backward, setup_context=_gated_linear_setup)

for _name in (
    "attention",
    "rotary",
    "causal_conv1d",
    "selective_scan",
    "rms_norm",
    "norm_average",
    "norm_project",
    "norm_average_project",
):
    torch.library.register_autograd(f"hymba_ops::{_name}", _backward_missing(_name))
