"""Loads the golden data: golden/README.md says what each tensor is."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import torch
from safetensors.torch import load_file

from kernel_cases import DEVICE

GOLDEN = Path(__file__).resolve().parent / "golden"
TINY, LAYER = "tiny_a", "layer_1p5b"


def config_path(folder):
    return GOLDEN / folder / "config.json"


@functools.cache
def forward_data(folder):
    return load_file(GOLDEN / folder / "forward.safetensors", device=DEVICE)


@functools.cache
def generate_data(folder):
    return load_file(GOLDEN / folder / "generate.safetensors", device=DEVICE)


@functools.cache
def _weights(folder):
    """Published names to bfloat16 tensors, the head of a tied model left out."""
    if folder == TINY:
        return load_file(GOLDEN / folder / "weights.safetensors")
    big = _big_weights_module()
    made = {
        name: torch.from_numpy(big.bf16_bits(name, spec)).view(torch.bfloat16) for name, spec in big.specs().items()
    }
    return load_file(GOLDEN / folder / "small_weights.safetensors") | made


def _big_weights_module():
    spec = importlib.util.spec_from_file_location("big_weights", GOLDEN / LAYER / "big_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def state_dict(folder, dtype):
    return {name: weight.to(dtype) for name, weight in _weights(folder).items()}


@functools.lru_cache(maxsize=4)
def golden_model(impl, folder, dtype=torch.float32):
    """impl: python_reference or hymba_ops. Shared between tests, which must not change it."""
    model = impl.HymbaForCausalLM(impl.HymbaConfig.from_pretrained(config_path(folder)))
    model = model.to(dtype).eval().requires_grad_(False)
    model.load_state_dict(state_dict(folder, dtype))
    return model
