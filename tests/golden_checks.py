"""Comparisons with the golden data. `impl` is python_reference or hymba_ops.

Limits are golden/README.md's measurements, with room for another order of float32 sums.
"""

from __future__ import annotations

import contextlib
import functools

import torch

from golden_data import LAYER, TINY, forward_data, generate_data, golden_model

LENGTHS = [1, 15, 16, 17, 18, 51]  # the prompts of tiny_a's forward data
PROMPTS = {TINY: ["1", "13", "16", "33", "b2"], LAYER: ["1020", "1300"]}  # labels of the generate data
BRANCHES = ["attn_out", "ssm_out", "mixer_out", "layer_out"]

LOGIT_LIMIT = 2e-4  # largest float32 error
TENSOR_LIMIT = 2e-5  # float32 error of an intermediate tensor, relative to its largest element
BFLOAT16_LIMIT = {LAYER: 1.5 * 0.01, TINY: 1.5 * 0.045}  # of the logits, relative rms
FLOAT16_LIMIT = BFLOAT16_LIMIT[TINY] / 8  # three more bits


def assert_near(actual, expected, limit, name):
    assert actual.shape == expected.shape, f"{name}: shape {list(actual.shape)}, expected {list(expected.shape)}"
    error = (actual.double() - expected.double()).abs().max().item()
    assert error <= limit, f"{name}: error {error:.2e}, limit {limit:.2e}"


def assert_tensor_near(actual, expected, name):
    assert_near(actual, expected, TENSOR_LIMIT * expected.abs().max().item(), name)


def relative_rms(actual, expected):
    error = actual.double() - expected.double()
    return (error.square().mean() / expected.double().square().mean()).sqrt().item()


@contextlib.contextmanager
def recorded(model):
    """Gathers the tensors that golden/README.md names while the model runs."""
    seen, hooks = {}, []
    layers = model.model.layers

    def keep(name, module, pick=lambda out: out):
        hook = module.register_forward_hook(lambda module, args, out: seen.update({name: pick(out)}))
        hooks.append(hook)

    def keep_branches(i, mixer):
        join = mixer.join

        def recording_join(attn, ssm, *residual):
            seen[f"attn_out.{i}"], seen[f"ssm_out.{i}"], seen[f"mixer_out.{i}"] = attn, ssm, join(attn, ssm)
            return join(attn, ssm, *residual)

        mixer.join = recording_join

    hooks.append(layers[0].register_forward_pre_hook(lambda module, args: seen.update(embed_with_memory=args[0])))
    for i, layer in enumerate(layers):
        keep(f"layer_out.{i}", layer, lambda out: out[0])
        keep_branches(i, layer.mamba)
    keep("final_norm_out", model.model.final_layernorm)
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers:
            del layer.mamba.join


@functools.cache
def tiny_run(impl, length):
    """float32 (logits, recorded tensors) of tiny_a's prompts of that length."""
    model = golden_model(impl, TINY)
    with recorded(model) as seen:
        logits = model(forward_data(TINY)[f"input_ids.{length}"]).logits
    return logits, seen


@functools.cache
def layer_run(impl):
    """float32 (logits, recorded tensors at the kept rows) of layer_1p5b."""
    model, data = golden_model(impl, LAYER), forward_data(LAYER)
    with recorded(model) as seen:
        logits = model(data["input_ids"]).logits
    return logits, {name: seen[f"{name}.0"][:, data["rows"]] for name in BRANCHES}


def check_tiny_logits(impl, length):
    logits = tiny_run(impl, length)[0]
    assert logits.dtype == torch.float32
    assert_near(logits, forward_data(TINY)[f"logits.{length}"], LOGIT_LIMIT, "logits")


def check_tiny_layer_outputs(impl, length):
    """The residual stream after every layer and the final norm, memory positions included."""
    data, seen = forward_data(TINY), tiny_run(impl, length)[1]
    names = [f"layer_out.{i}" for i in range(8)] + ["final_norm_out"]
    for name in names:
        assert_tensor_near(seen[name], data[f"{name}.{length}"], name)


def check_tiny_branches(impl):
    """What the longest prompt's data holds besides: the layers' input, both branches and the mixer's output."""
    data, seen = forward_data(TINY), tiny_run(impl, 51)[1]
    names = ["embed_with_memory"] + [f"{name}.{i}" for name in BRANCHES[:3] for i in range(8)]
    for name in names:
        assert_tensor_near(seen[name], data[f"{name}.51"], name)


def check_layer_logits(impl):
    """With autograd on, and in inference, where hymba_ops cuts a layer's tokens into pieces."""
    data = forward_data(LAYER)
    with torch.inference_mode():
        inferred = golden_model(impl, LAYER)(data["input_ids"]).logits
    for logits in (layer_run(impl)[0], inferred):
        assert logits.dtype == torch.float32
        assert_near(logits, data["logits"], LOGIT_LIMIT, "logits")


def check_layer_branches(impl):
    data, seen = forward_data(LAYER), layer_run(impl)[1]
    for name in BRANCHES:
        assert_tensor_near(seen[name], data[f"{name}.0"], name)


def check_greedy_tokens(impl, folder, prompt):
    """One forward over prompt and tokens_full: each position must choose the token that follows."""
    data = generate_data(folder)
    ids, tokens = data[f"prompt.{prompt}"], data[f"tokens_full.{prompt}"]
    steps = tokens.shape[1]
    logits = golden_model(impl, folder)(torch.cat([ids, tokens[:, :-1]], dim=1), logits_to_keep=steps).logits
    assert logits.argmax(dim=-1).tolist() == tokens.tolist()
    assert_near(logits, data[f"logits_full.{prompt}"], LOGIT_LIMIT, "logits")


def check_bfloat16(impl, folder):
    suffix = ".51" if folder == TINY else ""
    data = forward_data(folder)
    logits = golden_model(impl, folder, torch.bfloat16)(data[f"input_ids{suffix}"]).logits
    assert logits.dtype == torch.float32
    error = relative_rms(logits, data[f"logits{suffix}"])
    assert error <= BFLOAT16_LIMIT[folder], f"relative rms {error:.2%}, limit {BFLOAT16_LIMIT[folder]:.2%}"


def check_tiny_float16(impl):
    data = forward_data(TINY)
    logits = golden_model(impl, TINY, torch.float16)(data["input_ids.51"]).logits
    assert logits.dtype == torch.float32
    error = relative_rms(logits, data["logits.51"])
    assert error <= FLOAT16_LIMIT, f"relative rms {error:.2%}, limit {FLOAT16_LIMIT:.2%}"
