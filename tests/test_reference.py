"""python_reference against the golden data, by full forwards and through the cache."""

from __future__ import annotations

import pytest
import torch

import python_reference as reference

import golden_checks
from golden_checks import LAYER, LENGTHS, LOGIT_LIMIT, PROMPTS, TINY, assert_near, assert_tensor_near
from golden_data import forward_data, generate_data, golden_model

TINY_PROMPTS = PROMPTS[TINY]
ALL_PROMPTS = [
    pytest.param(folder, prompt, id=f"{folder}-{prompt}") for folder in PROMPTS for prompt in PROMPTS[folder]
]


# ---- Golden data ----


@pytest.mark.parametrize("length", LENGTHS)
def test_tiny_logits(length):
    golden_checks.check_tiny_logits(reference, length)


@pytest.mark.parametrize("length", LENGTHS)
def test_tiny_layer_outputs(length):
    golden_checks.check_tiny_layer_outputs(reference, length)


def test_tiny_branches():
    golden_checks.check_tiny_branches(reference)


def test_layer_logits():
    golden_checks.check_layer_logits(reference)


def test_layer_branches():
    golden_checks.check_layer_branches(reference)


@pytest.mark.parametrize("folder, prompt", ALL_PROMPTS)
def test_greedy_tokens_of_the_full_forward(folder, prompt):
    golden_checks.check_greedy_tokens(reference, folder, prompt)


@pytest.mark.parametrize("folder", [TINY, LAYER])
def test_bfloat16_logits(folder):
    golden_checks.check_bfloat16(reference, folder)


def test_float16_logits():
    golden_checks.check_tiny_float16(reference)


@pytest.mark.parametrize("folder, suffix", [(TINY, ".51"), (LAYER, "")], ids=[TINY, LAYER])
def test_float64_logits(folder, suffix):
    """The golden run's cos and sin tables are float32, ours float64 of the same float32 angles: hence not closer."""
    data = forward_data(folder)
    expected = data[f"logits64{suffix}"]
    logits = golden_model(reference, folder, torch.float64)(data[f"input_ids{suffix}"][: len(expected)]).logits
    assert logits.dtype == torch.float64
    assert_near(logits, expected, 5e-6, "logits")


# ---- Golden data through the cache ----


def decode(model, ids, tokens):
    """Logits [B, n, V] that chose each of tokens [B, n], one token a step after the prompt's prefill; the cache."""
    result = model(ids, cache=True, logits_to_keep=1)
    logits = [result.logits]
    for step in tokens[:, :-1].split(1, dim=1):
        logits.append(model(step, cache=result.cache).logits)
    return torch.cat(logits, dim=1), result.cache


@pytest.mark.parametrize("folder, prompt", ALL_PROMPTS)
def test_generate_gives_the_greedy_tokens(folder, prompt):
    data = generate_data(folder)
    ids, tokens = data[f"prompt.{prompt}"], data[f"tokens_full.{prompt}"]
    generated = golden_model(reference, folder).generate(ids, max_new_tokens=12, stop_token_ids=())
    assert generated.tolist() == torch.cat([ids, tokens], dim=1).tolist()


@pytest.mark.parametrize("prompt", TINY_PROMPTS)
def test_cached_logits_equal_the_full_forward(prompt):
    data, model = generate_data(TINY), golden_model(reference, TINY)
    for tokens, logits in (("tokens_full", "logits_full"), ("tokens_cached", "logits_full_on_cached_tokens")):
        actual, _ = decode(model, data[f"prompt.{prompt}"], data[f"{tokens}.{prompt}"])
        assert_near(actual, data[f"{logits}.{prompt}"], LOGIT_LIMIT, logits)


def published_kv(tensor, kept):
    """Ours [B, S, H, D] as published [B, H, kept, D]: the memory tokens and the last positions."""
    memory, last = tensor[:, :8], tensor[:, 8:][:, -(kept - 8) :]
    return torch.cat([memory, last], dim=1).transpose(1, 2)


@pytest.mark.parametrize("moment", ["prefill", "end"])
def test_cache_contents(moment):
    """Beyond layer 1 the published decode differs, by the one position that it forgets."""
    data, model = generate_data(TINY), golden_model(reference, TINY)
    ids, tokens = data["prompt.16"], data["tokens_cached.16"]
    _, cache = decode(model, ids, tokens if moment == "end" else tokens[:, :1])
    assert cache.length == (27 if moment == "end" else 16)
    for i in range(2 if moment == "end" else 8):
        expected = lambda name, i=i: data[f"cache.16.{moment}.{name}.{i}"]  # noqa: E731
        conv, ssm = cache.states[i]
        assert_tensor_near(conv.transpose(1, 2), expected("conv")[:, :, 1:], f"conv.{i}")
        assert_tensor_near(ssm, expected("ssm"), f"ssm.{i}")
        if i in cache.kv:
            for name, tensor in zip(("key", "value"), cache.kv[i], strict=True):
                assert_tensor_near(published_kv(tensor, expected(name).shape[2]), expected(name), f"{name}.{i}")
    assert sorted(cache.kv) == [0, 1, 3, 4, 7]


def test_layer_cache_contents():
    data, model = forward_data(LAYER), golden_model(reference, LAYER)
    cache = model(data["input_ids"][:1], cache=True, logits_to_keep=1).cache
    conv, ssm = cache.states[0]
    assert_tensor_near(conv.transpose(1, 2), data["conv_state.0"][:, :, 1:], "conv")
    assert_tensor_near(ssm, data["ssm_state.0"], "ssm")
    for name, tensor in zip(("key_rows", "value_rows"), cache.kv[0], strict=True):
        assert_tensor_near(tensor[:, data["rows"]].transpose(1, 2), data[f"{name}.0"], name)
