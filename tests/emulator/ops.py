"""The public functions (same names, arguments and results as in hymba_ops.functional) on emulated CUDA kernels.

Inputs are taken as valid: what the ops refuse is csrc/ops' business and tested there.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import torch

from hymba_ops import functional as F

from emulator.client import Client, Mode
from emulator.shipped import ALIGNMENT, Shipped

NUMPY_NAMES = {
    torch.float32: "float32",
    torch.bfloat16: "uint16",
    torch.float16: "float16",
    torch.float64: "float64",
    torch.int32: "int32",
}
# As the public functions are, also while a test has put the emulated ones in their places.
SIGNATURES = {name: inspect.signature(function) for name, function in vars(F).items() if inspect.isfunction(function)}


class EmulatedOps:
    """`ops.norm_average(...)` and so on."""

    # Arguments that an op changes in place.
    CHANGES = {
        "causal_conv1d_update": {"state"},
        "decode_attention": {"k_cache", "v_cache", "counters"},
        "decode_branches": {"k_cache", "v_cache", "conv_state", "ssm_state", "counters"},
        "gated_mlp": {"counters"},
        "linear_epilogue": {"out"},
        "mamba_update": {"conv_state", "ssm_state", "counters"},
        "selective_state_update": {"state"},
    }

    def __init__(self, mode: Mode, folder: Path | None = None):
        self.mode = mode
        self._client = Client(mode, folder)

    def attention(self, *args, **kwargs):
        out, lse = self._run("attention", args, kwargs)
        return out if lse is None else (out, lse)

    def attention_sm90_items(self, *args, **kwargs) -> torch.Tensor:
        """int32 [items, 6]: what the kernel for Hopper makes of packed sequences, in order (AttentionItem)."""
        (workspace,), _ = self._client.run(
            "attention_sm90_items", shipped(self._arguments("attention", args, kwargs)), set()
        )
        slots = torch.frombuffer(bytearray(workspace.memory), dtype=torch.int32).view(-1, 8)
        return slots[: slots[-1, 0], :6].contiguous()

    def attention_sm90_refusal(self, *args, **kwargs) -> str | None:
        """Why attention does not run on the kernel for Hopper; None where it does."""
        values = self._arguments("attention", args, kwargs)
        (reasons,), _ = self._client.run("attention_sm90_refusal", shipped(values), set())
        return reasons[0] if reasons else None

    def causal_conv1d(self, *args, **kwargs):
        out, final_state = self._run("causal_conv1d", args, kwargs)
        return out if final_state is None else (out, final_state)

    def causal_conv1d_update(self, *args, **kwargs):
        (out,) = self._run("causal_conv1d_update", args, kwargs)
        return out

    def decode_attention(self, q, *args, counters=None, **kwargs):
        if counters is None:
            counters = torch.zeros(q[..., 0].numel(), dtype=torch.int32)
        (out,) = self._run("decode_attention", (q, *args), kwargs, counters=counters)
        assert not counters.any(), counters
        return out

    def decode_branches(self, *args, counters=None, **kwargs):
        bound = SIGNATURES["decode_branches"].bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = bound.arguments
        if counters is None:
            counters = torch.zeros(2 + arguments["q"][..., 0].numel(), dtype=torch.int32)
        attn, ssm = self._run("decode_branches", args, kwargs, counters=counters)
        assert not counters.any(), counters
        if attn is not None:
            return attn, ssm
        of_attention, of_mamba = (
            {name: arguments[name] for name in SIGNATURES[op].parameters if name in arguments and name != "counters"}
            for op in ("decode_attention", "mamba_update")
        )
        return self.decode_attention(**of_attention, counters=counters), self.mamba_update(**of_mamba)

    def gated_linear(self, x, gate_weight, weight):
        own = self._own_product(x, weight, gate_weight, None, None)
        if own is not None:
            return own
        gate, out = (torch.nn.functional.linear(x, w) for w in (gate_weight, weight))
        return self._linear_epilogue(out, gate, None)

    def gated_mlp(self, x, norm_weight, gate_weight, weight, down_weight, *, residual=None, eps=1e-6, counters=None):
        if counters is None:
            counters = torch.zeros(2, dtype=torch.int32)
        if x.numel() > 0 and down_weight.numel() > 0:
            values = {
                "x": x, "norm_weight": norm_weight, "gate_weight": gate_weight, "weight": weight,
                "down_weight": down_weight, "residual": residual, "eps": eps, "counters": counters,
            }  # fmt: skip
            (out,) = self._launch("gated_mlp", values)
            assert not counters.any(), counters
            if out is not None:
                return out
        inner = self.gated_linear(self.rms_norm(x, norm_weight, eps=eps), gate_weight, weight)
        return self.linear(inner, down_weight, residual=residual)

    def linear(self, x, weight, bias=None, *, residual=None):
        own = self._own_product(x, weight, None, bias, residual)
        if own is not None:
            return own
        out = torch.nn.functional.linear(x, weight, bias)
        return out if residual is None else self._linear_epilogue(out, None, residual)

    def mamba_update(self, *args, counters=None, **kwargs):
        if counters is None:
            counters = torch.zeros(2, dtype=torch.int32)
        (out,) = self._run("mamba_update", args, kwargs, counters=counters)
        assert not counters.any(), counters
        return self._composed_mamba_update(*args, **kwargs) if out is None else out

    def _composed_mamba_update(
        self, x, z, conv_state, ssm_state, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, dt_bias, A, D, *,
        dt_norm=None, B_norm=None, C_norm=None, eps=1e-6, slots=None,
    ):  # fmt: skip
        """As csrc/ops/mamba_update.cpp puts it together where one launch does not serve."""
        u = self.causal_conv1d_update(x, conv_state, conv_weight, conv_bias, slots_in=slots)
        sizes = [dt_proj_weight.shape[1], A.shape[1], A.shape[1]]
        parts = self.linear(u, x_proj_weight).split(sizes, -1)
        dt, B, C = (
            part if norm is None else self.rms_norm(part, norm, eps=eps)
            for part, norm in zip(parts, (dt_norm, B_norm, C_norm), strict=True)
        )
        dt = self.linear(dt, dt_proj_weight)
        return self.selective_state_update(ssm_state, u, dt, A, B, C, D, z, dt_bias=dt_bias, slots_in=slots)

    def norm_average(self, *args, **kwargs):
        (out,) = self._run("norm_average", args, kwargs)
        return out

    def norm_average_project(
        self, attn, ssm, attn_weight, ssm_weight, proj_weight, *, bias=None, residual=None, eps=1e-6
    ):
        values = {"attn": attn, "ssm": ssm, "attn_weight": attn_weight, "ssm_weight": ssm_weight}
        out = self._as_one("norm_average_project", values, proj_weight, bias, residual, eps)
        if out is not None:
            return out
        averaged = self.norm_average(attn, ssm, attn_weight, ssm_weight, eps=eps)
        return self.linear(averaged, proj_weight, bias, residual=residual)

    def norm_project(self, x, norm_weight, proj_weight, *, bias=None, residual=None, eps=1e-6):
        out = self._as_one("norm_project", {"x": x, "norm_weight": norm_weight}, proj_weight, bias, residual, eps)
        if out is not None:
            return out
        return self.linear(self.rms_norm(x, norm_weight, eps=eps), proj_weight, bias, residual=residual)

    def rms_norm(self, *args, **kwargs):
        (out,) = self._run("rms_norm", args, kwargs)
        return out

    def rotary(self, *args, **kwargs):
        (out,) = self._run("rotary", args, kwargs)
        return out

    def selective_scan(self, *args, return_final_state=False, **kwargs):
        out, final_state, _ = self.selective_scan_outputs(
            *args, return_final_state=return_final_state, save_checkpoints=False, **kwargs
        )
        return (out, final_state) if return_final_state else out

    def selective_scan_outputs(self, *args, save_checkpoints, **kwargs):
        """Output, final state and checkpoints, as the op has them."""
        return self._run("selective_scan", args, kwargs, save_checkpoints=save_checkpoints)

    def selective_state_update(self, *args, **kwargs):
        (out,) = self._run("selective_state_update", args, kwargs)
        return out

    def _as_one(self, op, values, proj_weight, bias, residual, eps):
        """None where a GPU has no one kernel for it, or there is nothing to do."""
        if next(iter(values.values())).numel() == 0 or proj_weight.numel() == 0:
            return None
        rest = {"proj_weight": proj_weight, "bias": bias, "residual": residual, "eps": eps}
        return self._launch(op, values | rest)[0]

    def _own_product(self, x, weight, gate_weight, bias, residual):
        """None where a GPU takes the library's product, or there is nothing to do."""
        if x.numel() == 0 or weight.numel() == 0:
            return None
        values = {"x": x, "weight": weight, "gate_weight": gate_weight, "bias": bias, "residual": residual}
        return self._launch("linear", values)[0]

    def _linear_epilogue(self, out, gate, residual):
        """The product is the library's on a GPU, torch's here; behind it comes the emulated kernel."""
        if out.numel() > 0:  # as the op
            self._launch("linear_epilogue", {"out": out, "gate": gate, "residual": residual})
        return out

    def _run(self, op: str, args: tuple, kwargs: dict, **replace) -> list[torch.Tensor | None]:
        """Results of the module's function `op`, which takes the public function's arguments in order, those named in
        `replace` replaced, and behind them what else `replace` names."""
        return self._launch(op, self._arguments(op, args, kwargs) | replace)

    def _arguments(self, op: str, args: tuple, kwargs: dict) -> dict:
        """The public function's arguments by name, in order."""
        bound = SIGNATURES[op].bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    def _launch(self, op: str, values: dict) -> list[torch.Tensor | None]:
        """Results of the module's function `op` of the values, in order."""
        tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
        changes = self.CHANGES.get(op, set())
        results, changed = self._client.run(op, shipped(values), changes)
        for name, memory in changed.items():
            if memory:
                memory_of(tensors[name]).copy_(torch.frombuffer(bytearray(memory), dtype=torch.uint8))
        return [None if result is None else unship(result) for result in results]


def memory_of(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes from the first element to the end of the last one, as they lie."""
    span = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    if tensor.numel() == 0:
        span = 0
    return tensor.detach().as_strided((span,), (1,)).view(torch.uint8)


def ship(tensor: torch.Tensor) -> Shipped:
    return Shipped(
        NUMPY_NAMES[tensor.dtype],
        tuple(tensor.shape),
        tuple(stride * tensor.element_size() for stride in tensor.stride()),
        tensor.data_ptr() % ALIGNMENT,
        memory_of(tensor).numpy().tobytes(),
    )


def shipped(values: dict) -> list[tuple]:
    """Arguments by name, tensors as the worker takes them."""
    return [(name, ship(value) if isinstance(value, torch.Tensor) else value) for name, value in values.items()]


def unship(shipped: Shipped) -> torch.Tensor:
    """A contiguous tensor; uint16 is bfloat16."""
    dtype = {name: dtype for dtype, name in NUMPY_NAMES.items()}[shipped.dtype]
    if not shipped.memory:
        return torch.empty(shipped.shape, dtype=dtype)
    return torch.frombuffer(bytearray(shipped.memory), dtype=dtype).view(shipped.shape)
