"""The modules with every op replaced by the emulated CUDA kernel: tests/emulator/README.md.

Products are torch's, as they are the library's on a GPU.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import hymba_ops
from hymba_ops import _ops, functional

import golden_checks
from emulator.client import MODES
from emulator.ops import EmulatedOps
from golden_checks import LENGTHS, TINY
from kernel_cases import cu_seqlens
from model_cases import BORROWER, DTYPES, GLOBAL, INPUTS, PRODUCER, SMALL, SWITCHES, both, randn, token_ids
from tolerance import assert_close

OPS = [
    "attention",
    "causal_conv1d",
    "gated_linear",
    "linear",
    "norm_average_project",
    "rms_norm",
    "rotary",
    "selective_scan",
]


class Emulated:
    """As golden_checks' `impl`: its results are kept apart from the native kernels' and other modes'."""

    HymbaConfig, HymbaForCausalLM = hymba_ops.HymbaConfig, hymba_ops.HymbaForCausalLM


# With the head dims, the states and the packs of the published sizes.
PUBLISHED_TILES = {
    "hidden_size": 320, "num_attention_heads": 5, "num_key_value_heads": 1, "mamba_d_state": 16, "mamba_dt_rank": 20,
    "sliding_window": 40, "num_memory_tokens": 8,
}  # fmt: skip


@pytest.fixture
def capability():
    """Of the emulated device."""
    return 80


@pytest.fixture
def impl(emulator_mode, capability, monkeypatch):
    """hymba_ops, with the emulated kernels in place of the native ones."""
    ops = EmulatedOps(replace(MODES[emulator_mode], capability=capability))
    for name in OPS:
        monkeypatch.setattr(functional, name, getattr(ops, name))
    monkeypatch.delattr(_ops, "call")  # nothing else may run
    return Emulated()


# ---- Against the published model ----


@pytest.mark.parametrize("length", LENGTHS)
def test_tiny_float32(impl, length):
    """Logits and every layer's output; of the longest prompt, whose data has them, both branches too."""
    golden_checks.check_tiny_logits(impl, length)
    golden_checks.check_tiny_layer_outputs(impl, length)
    if length == LENGTHS[-1]:
        golden_checks.check_tiny_branches(impl)


def test_tiny_bfloat16(impl):
    golden_checks.check_bfloat16(impl, TINY)


def test_tiny_float16(impl):
    golden_checks.check_tiny_float16(impl)


# ---- Against the reference ----


def logits(model, inputs):
    kind = model.lm_head.weight.dtype
    return model(**{name: t.to(kind) if t.is_floating_point() else t for name, t in inputs.items()}).logits


@pytest.mark.parametrize("changes", SWITCHES)
def test_every_switch(impl, changes):
    models = both("HymbaForCausalLM", changes)
    assert_close(*(logits(m, {"input_ids": token_ids(2, 9)}) for m in models), dtype=torch.float32)


@pytest.mark.parametrize("inputs", INPUTS.values(), ids=INPUTS)
def test_every_kind_of_input(impl, inputs):
    """Packed with an empty sequence and padded too."""
    assert_close(*(logits(m, inputs()) for m in both("HymbaForCausalLM")), dtype=torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layer", [PRODUCER, BORROWER], ids=["producer", "borrower"])
def test_a_layer_in_parts(impl, layer, dtype):
    """The second part gets the keys and values, and the states, that the first one left."""
    hidden, split = randn(2, 13, SMALL["hidden_size"], dtype=dtype, seed=1), 7
    runs = []
    for module in both("HymbaLayer", None, layer, dtype=dtype):
        kind = module.mamba.D[0].dtype
        kv = state = None
        if module.mamba.borrows_kv:
            kv = tuple(randn(2, 13, 2, dim, dtype=dtype, seed=dim).to(kind) for dim in (8, 16))
        out = []
        for part in (slice(0, split), slice(split, None)):
            seen = tuple(t[:, : part.stop] for t in kv) if module.mamba.borrows_kv else kv
            rows, made, state = module(hidden[:, part].to(kind), kv=seen, initial_state=state)
            kv = kv if module.mamba.borrows_kv else made
            out.append(rows)
        runs.append([torch.cat(out, 1), *kv, *state])
    for name, *results in zip(("out", "keys", "values", "conv_state", "ssm_state"), *runs, strict=True):
        assert_close(*results, dtype=dtype, name=name)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("layer", [PRODUCER, GLOBAL], ids=["sliding", "global"])
def test_a_layer_of_published_tiles(impl, layer):
    """On Hopper too, whose attention and scan are other kernels. 75 tokens, and 3 sequences of them."""
    ours, plain, exact = both("HymbaLayer", PUBLISHED_TILES, layer, dtype=torch.bfloat16)
    hidden = randn(1, 75, PUBLISHED_TILES["hidden_size"], dtype=torch.bfloat16, seed=1)
    for packed in ({}, {"cu_seqlens": cu_seqlens(40, 0, 35)}):
        results = [
            module(hidden.to(kind), **packed)
            for module, kind in ((ours, hidden.dtype), (plain, hidden.dtype), (exact, torch.float64))
        ]
        for name, *of_name in zip(("out", "kv", "state"), *results, strict=True):
            for parts in zip(*(r if isinstance(r, tuple) else (r,) for r in of_name), strict=True):
                assert_close(*parts, dtype=torch.bfloat16, name=name)
