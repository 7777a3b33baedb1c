"""hymba_ops' whole model against the published model's outputs: tests/golden/README.md."""

from __future__ import annotations

import pytest
import torch

import hymba_ops

import golden_checks
from golden_checks import LAYER, LENGTHS, PROMPTS, TINY
from golden_data import config_path, forward_data, state_dict
from kernel_cases import DEVICE


@pytest.mark.parametrize("length", LENGTHS)
def test_tiny_logits(length):
    golden_checks.check_tiny_logits(hymba_ops, length)


@pytest.mark.parametrize("length", LENGTHS)
def test_tiny_layer_outputs(length):
    golden_checks.check_tiny_layer_outputs(hymba_ops, length)


def test_tiny_branches():
    golden_checks.check_tiny_branches(hymba_ops)


def test_layer_logits():
    golden_checks.check_layer_logits(hymba_ops)


def test_layer_branches():
    golden_checks.check_layer_branches(hymba_ops)


@pytest.mark.parametrize(
    "folder, prompt",
    [pytest.param(folder, prompt, id=f"{folder}-{prompt}") for folder in PROMPTS for prompt in PROMPTS[folder]],
)
def test_greedy_tokens_of_the_full_forward(folder, prompt):
    golden_checks.check_greedy_tokens(hymba_ops, folder, prompt)


@pytest.mark.parametrize("folder", [TINY, LAYER])
def test_bfloat16_logits(folder):
    golden_checks.check_bfloat16(hymba_ops, folder)


def test_float64_logits():
    model = hymba_ops.HymbaForCausalLM(hymba_ops.HymbaConfig.from_pretrained(config_path(TINY)), dtype=torch.float64)
    model.load_state_dict(state_dict(TINY, torch.float64))
    data = forward_data(TINY)
    with torch.no_grad():
        logits = model(data["input_ids.51"]).logits
    golden_checks.assert_near(logits, data["logits64.51"], 5e-6, "logits")


def test_published_checkpoint_files(tmp_path):
    """The golden folder's weight file, read as a user reads one: bfloat16 as stored, float32 when asked for."""
    folder = config_path(TINY).parent
    for name, target in (("config.json", "config.json"), ("weights.safetensors", "model.safetensors")):
        (tmp_path / target).symlink_to(folder / name)
    assert {p.dtype for p in hymba_ops.HymbaForCausalLM.from_pretrained(tmp_path, device=DEVICE).parameters()} == {
        torch.bfloat16
    }
    model = hymba_ops.HymbaForCausalLM.from_pretrained(tmp_path, device=DEVICE, dtype=torch.float32)
    data = forward_data(TINY)
    with torch.no_grad():
        logits = model(data["input_ids.51"]).logits
    golden_checks.assert_near(logits, data["logits.51"], golden_checks.LOGIT_LIMIT, "logits")
