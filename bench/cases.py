"""The data of the layer benchmarks: one layer in each implementation with the same weights, inputs, and the check that
their outputs agree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

import hymba_ops
import python_reference
from bench import peers, plain, roofline
from bench.runner import (
    Call,
    CannotRun,
    Progress,
    available_bytes,
    first_line,
    inputs_beyond_cache,
    missing_kernels,
    relative_rms,
)

# Largest allowed rms of a row's difference from plain, over the rms of plain: rounding of 20 to 30 steps.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


# What a layer's forward calls.
LAYER_OPS = (
    "rms_norm",
    "linear",
    "rotary",
    "attention",
    "causal_conv1d",
    "selective_scan",
    "norm_average_project",
    "gated_linear",
)


class WrongOutput(Exception):
    """An implementation disagrees with the plain one."""


@dataclass
class Case:
    """One layer with its implementations and inputs."""

    name: str  # sliding or global
    index: int
    layers: dict[str, nn.Module]
    inputs: list[Tensor]  # hidden states; several on a GPU (inputs_beyond_cache)

    def calls(self, implementation: str) -> list[Call]:
        layer = self.layers[implementation]
        return [lambda hidden=hidden: layer(hidden)[0] for hidden in self.inputs]


def layer_index(config: hymba_ops.HymbaConfig, name: str) -> int:
    """The first layer of the kind (sliding or global) that makes its own keys and values."""
    return next(
        i
        for i in range(config.num_hidden_layers)
        if config.is_global(i) == (name == "global") and config.producer(i) == i
    )


def make_layers(
    config: hymba_ops.HymbaConfig, index: int, implementations: Iterable[str], device: torch.device, dtype: torch.dtype
) -> dict[str, nn.Module]:
    """Implementation to layer, all with the same weights: the same tensors."""
    torch.manual_seed(0)
    ours = hymba_ops.HymbaLayer(config, index, device=device, dtype=dtype)
    plain_config = python_reference.HymbaConfig(**config.to_dict())
    layers: dict[str, nn.Module] = {}
    for implementation in implementations:
        layer: nn.Module = ours
        if implementation != "hymba_ops":
            kind = "plain" if implementation == "upcast" else implementation
            mixer = (plain.MIXERS | peers.MIXERS)[kind]
            layer = plain.layer_with(mixer, plain_config, index).to(device=device, dtype=dtype)
            layer.load_state_dict(ours.state_dict(), assign=True)
        if implementation == "upcast":
            layer = plain.Upcast(layer)
        if implementation == "compiled":
            layer = torch.compile(layer, dynamic=False)
        layers[implementation] = layer.eval()
    return layers


def make_case(
    name: str,
    config: hymba_ops.HymbaConfig,
    implementations: Iterable[str],
    *,
    batch: int,
    length: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Case:
    """length: positions, meta tokens included. Plain is always among the layers: the others are compared with it."""
    index = layer_index(config, name)
    layers = make_layers(config, index, dict.fromkeys(["plain", *implementations]), device, dtype)
    count = inputs_beyond_cache(batch * length * config.hidden_size * dtype.itemsize, device)
    inputs = [torch.randn(batch, length, config.hidden_size, device=device).to(dtype) for _ in range(count)]
    return Case(name, index, layers, inputs)


def layer_bytes(
    config: hymba_ops.HymbaConfig, *, batch: int, length: int, itemsize: int, implementations: Iterable[str]
) -> int:
    """An estimate of the most memory in use: the weights, and the activations of the largest implementation."""
    mlp = config.intermediate_size
    per_token = roofline.in_proj_rows(config, 0) + 8 * config.inner_size + 3 * mlp
    weights = config.hidden_size * (roofline.in_proj_rows(config, 0) + config.inner_size + 3 * mlp)
    if "upcast" in implementations:
        itemsize = 4
    needed = itemsize * (2 * weights + batch * length * per_token)  # twice: what is prepared from them
    if "naive" in implementations:  # scores of all pairs, twice
        needed += batch * config.num_attention_heads * length**2 * 2 * max(4, itemsize)
    return needed


def check_memory(needed: int, device: torch.device, advice: str) -> None:
    """Refuses before anything is allocated."""
    available = available_bytes(device)
    if available is not None and needed > available:
        raise CannotRun(
            f"not enough memory on {device}: about {needed / 2**30:.1f} GiB needed, {available / 2**30:.1f} GiB "
            f"available ({advice})"
        )


def check_kernels(device: torch.device, ops: Iterable[str] = LAYER_OPS) -> None:
    """Refuses a layer some of whose ops have no kernel for the device."""
    if missing := missing_kernels(ops, device):
        raise CannotRun(
            f"hymba_ops has no {device.type} kernel of {', '.join(missing)} (leave hymba_ops out of --implementations, "
            "or time the ops that have one: bench/sweep.py)"
        )


def compare_outputs(case: Case, implementations: Iterable[str], dtype: torch.dtype, progress: Progress) -> None:
    """Raises WrongOutput where a row differs from plain; the first calls also compile what is compiled."""
    hidden = case.inputs[0]
    expected = case.layers["plain"](hidden)[0]
    for implementation in implementations:
        if implementation == "plain":
            continue
        try:
            actual = case.layers[implementation](hidden)[0]
        except TorchDynamoException as error:
            raise CannotRun(f"{implementation} does not compile here: {first_line(error)}") from None
        error = check_agreement(f"{implementation} differs from plain in the {case.name} layer", actual, expected)
        progress.step(f"{case.name}: {implementation} agrees with plain (relative rms {error:.1e})")


def check_agreement(complaint: str, actual: Tensor, expected: Tensor) -> float:
    """The relative rms of the difference; raises WrongOutput where it is larger than rounding."""
    error, allowed = relative_rms(actual, expected), TOLERANCE[expected.dtype]
    if not error <= allowed:
        raise WrongOutput(f"{complaint}: relative rms {error:.2e}, allowed {allowed:.0e}")
    return error


def admit(
    candidates: Mapping[str, Sequence[Call]], expected: Tensor
) -> tuple[dict[str, Sequence[Call]], dict[str, str]]:
    """Those peers that run here and agree with plain, and of the others the reasons why not.

    Args:
        candidates: a peer's name to its calls, as bench.runner.time_rounds takes them; the first also compiles.
        expected: what plain makes of the first input.
    """
    admitted, refused = {}, {}
    for name, calls in candidates.items():
        try:
            check_agreement("it differs from plain", calls[0](), expected)
        except (WrongOutput, CannotRun) as reason:
            refused[name] = str(reason)
        except Exception as reason:  # whatever compilers and libraries raise: it is reported
            refused[name] = f"{type(reason).__name__}: {first_line(reason)}"
        else:
            admitted[name] = calls
    return admitted, refused
