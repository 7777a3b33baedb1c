"""HybridMixer, HymbaLayer and the MLP against python_reference with the same weights."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from hymba_ops import HybridMixer, HymbaConfig, HymbaLayer, functional

from kernel_cases import DEVICE, cu_seqlens
from model_cases import BORROWER, DTYPES, GLOBAL, PRODUCER, SMALL, SWITCHES, both, randn, randomise
from tolerance import assert_close

LAYERS = [
    pytest.param(GLOBAL, id="global"),
    pytest.param(PRODUCER, id="producer"),
    pytest.param(BORROWER, id="borrower"),
]
LENGTH = 13


def hidden_states(batch=2, length=LENGTH, dtype=torch.float32, seed=1):
    return randn(batch, length, SMALL["hidden_size"], dtype=dtype, seed=seed)


def shared_kv(config, batch=2, length=LENGTH, dtype=torch.float32):
    heads = config.num_key_value_heads
    return (
        randn(batch, length, heads, config.head_dim, dtype=dtype, seed=2),
        randn(batch, length, heads, config.value_head_dim, dtype=dtype, seed=3),
    )


def mixer(layer=PRODUCER, **changes):
    return randomise(HybridMixer(HymbaConfig(**SMALL | changes), layer))


def flat(result):
    """out, (k, v), (conv state, SSM state) as a list."""
    out, kv, state = result
    return [out, *kv, *state]


def compare(modules, hidden, *, dtype, kv=None, state=None, **kwargs):
    def run(module, kind):
        pair = None if kv is None else tuple(t.to(kind) for t in kv)
        # An SSM state is float32 beside bfloat16.
        states = (
            None if state is None else (state[0].to(kind), state[1].double() if kind == torch.float64 else state[1])
        )
        return flat(module(hidden.to(kind), kv=pair, initial_state=states, **kwargs))

    ours, plain, exact = modules
    names = "out", "keys", "values", "conv_state", "ssm_state"
    results = zip(names, run(ours, dtype), run(plain, dtype), run(exact, torch.float64), strict=True)
    for name, a, p, e in results:
        assert_close(a, p, e, dtype=dtype, name=name)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("changes", SWITCHES)
def test_mixer(changes, dtype, layer):
    modules = both("HybridMixer", changes, layer, dtype=dtype)
    borrows = modules[0].borrows_kv
    kv = shared_kv(modules[0].config, dtype=dtype) if borrows else None
    compare(modules, hidden_states(dtype=dtype), dtype=dtype, kv=kv)


@pytest.mark.parametrize("changes", [c for c in SWITCHES if c.id in ("published", "relu2", "no_mlp", "proj_bias")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layer(changes, dtype):
    modules = both("HymbaLayer", changes, PRODUCER, dtype=dtype)
    compare(modules, hidden_states(dtype=dtype), dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mixer_packed(dtype):
    modules = both("HybridMixer", None, PRODUCER, dtype=dtype)
    boundaries = cu_seqlens(5, 0, 7, 4)
    state = (randn(4, 3, 96, dtype=dtype, seed=5), randn(4, 96, 4, seed=6))
    compare(modules, hidden_states(1, 16, dtype), dtype=dtype, cu_seqlens=boundaries, state=state)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mixer_continues(dtype):
    """Earlier keys and values, states, positions of the caller's."""
    modules = both("HybridMixer", None, PRODUCER, dtype=dtype)
    kv = shared_kv(modules[0].config, length=6, dtype=dtype)
    state = (randn(2, 3, 96, dtype=dtype, seed=5), randn(2, 96, 4, seed=6))
    compare(modules, hidden_states(dtype=dtype), dtype=dtype, kv=kv, state=state)
    positions = torch.arange(100, 100 + LENGTH, dtype=torch.int32) + torch.tensor([[0], [7]], dtype=torch.int32)
    compare(modules, hidden_states(dtype=dtype), dtype=dtype, kv=kv, state=state, positions=positions)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("split", [1, 4, LENGTH - 1])
def test_mixer_in_two_parts(split, layer):
    whole = mixer(layer)
    hidden = hidden_states()
    kv = shared_kv(whole.config) if whole.borrows_kv else None
    expected, expected_kv, expected_state = whole(hidden, kv=kv)

    first_kv = tuple(t[:, :split] for t in kv) if whole.borrows_kv else None
    first, made_kv, state = whole(hidden[:, :split], kv=first_kv)
    second, made_kv, state = whole(hidden[:, split:], kv=kv if whole.borrows_kv else made_kv, initial_state=state)
    torch.testing.assert_close(torch.cat([first, second], 1), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made_kv, expected_kv, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, expected_state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", LAYERS)
def test_packed_equals_singles(layer):
    module = mixer(layer)
    lengths = 6, 0, 1, 9
    hidden = hidden_states(1, sum(lengths))
    kv = shared_kv(module.config, 1, sum(lengths)) if module.borrows_kv else None
    out, out_kv, state = module(hidden, cu_seqlens=cu_seqlens(*lengths), kv=kv)
    start = 0
    for index, length in enumerate(lengths):
        rows = slice(start, start + length)
        single, single_kv, single_state = module(
            hidden[:, rows], kv=tuple(t[:, rows] for t in kv) if module.borrows_kv else None
        )
        torch.testing.assert_close(out[:, rows], single, rtol=1e-4, atol=1e-5)
        for packed, alone in zip(out_kv, single_kv, strict=True):
            torch.testing.assert_close(packed[:, rows], alone, rtol=1e-4, atol=1e-5)
        for packed, alone in zip(state, single_state, strict=True):
            torch.testing.assert_close(packed[index : index + 1], alone, rtol=1e-4, atol=1e-5)
        start += length


def test_rows_past_the_last_sequence_are_zero():
    out, _, _ = mixer()(hidden_states(1, 12), cu_seqlens=cu_seqlens(4, 5))
    assert out[:, :9].abs().min() > 0
    assert torch.equal(out[:, 9:], torch.zeros_like(out[:, 9:]))


def test_reads_the_projection_in_place(monkeypatch):
    """q, k, v, x and z go to the kernels as slices of in_proj's output, and keys are not repeated for query heads."""
    module = mixer(rope=False)
    storages, seen = [], {}
    module.in_proj.register_forward_hook(lambda m, args, out: storages.append(out.untyped_storage().data_ptr()))

    def spy(name):
        kernel = getattr(functional, name)

        def record(*args, **kwargs):
            seen[name] = args
            return kernel(*args, **kwargs)

        monkeypatch.setattr(functional, name, record)

    for name in ("attention", "causal_conv1d", "selective_scan"):
        spy(name)
    module(hidden_states())
    q, k, v = seen["attention"]
    slices = {"q": q, "k": k, "v": v, "x": seen["causal_conv1d"][0], "z": seen["selective_scan"][6]}
    for name, tensor in slices.items():
        assert tensor.untyped_storage().data_ptr() == storages[0], f"{name} was copied"
    assert k.shape[2] == v.shape[2] == SMALL["num_key_value_heads"]


def test_weights_are_not_transposed_or_copied(monkeypatch):
    module, seen = mixer(), {}
    kernel = functional.norm_average_project
    monkeypatch.setattr(functional, "norm_average_project", lambda *a, **k: seen.update(weight=a[4]) or kernel(*a, **k))
    module(hidden_states())
    assert seen["weight"].data_ptr() == module.out_proj.weight.data_ptr()


# ---- dtypes and devices ----


def cpu_frequencies(config):
    """A GPU's differ in the last bits; modules have the CPU's everywhere."""
    with torch.device("cpu"):
        return config.inv_freq()


@pytest.mark.parametrize(
    "convert",
    [
        pytest.param(lambda m: m.to(torch.bfloat16), id="to"),
        pytest.param(lambda m: m.bfloat16(), id="bfloat16"),
        pytest.param(lambda m: m.double(), id="double"),
        pytest.param(lambda m: m.to(torch.bfloat16).float(), id="there_and_back"),
        pytest.param(copy.deepcopy, id="deepcopy"),
    ],
)
def test_frequencies_stay_float32(convert):
    module = mixer()
    frequencies = convert(module).inv_freq
    assert frequencies.dtype == torch.float32
    assert torch.equal(frequencies.cpu(), cpu_frequencies(module.config))


def test_frequencies_are_made_where_the_weights_are(monkeypatch):
    """A copy to a GPU in every forward would make the host wait."""
    asked = []
    monkeypatch.setattr(HybridMixer, "_frequencies", lambda self, device: asked.append(device.type))
    for device in ("meta", "cpu"):
        HybridMixer(HymbaConfig(**SMALL), PRODUCER, device=device)
    assert asked == ["meta", "cpu"]


def test_frequencies_survive_the_meta_device():
    module = HybridMixer(HymbaConfig(**SMALL), PRODUCER, device="meta")
    assert all(parameter.is_meta for parameter in module.parameters())
    module.to_empty(device="cpu")
    assert torch.equal(module.inv_freq, cpu_frequencies(module.config))
    with torch.device("meta"):
        module = HybridMixer(HymbaConfig(**SMALL), PRODUCER)
    module.load_state_dict(mixer().state_dict(), assign=True)
    assert torch.equal(module(hidden_states())[0], mixer()(hidden_states())[0])


def test_frequencies_are_not_stored():
    assert not [name for name in mixer().state_dict() if "freq" in name]


@pytest.mark.parametrize("changes", [c for c in SWITCHES if c.id in ("published", "kq_norm_perhead", "proj_bias")])
def test_autocast(changes):
    """float32 weights, bfloat16 matrices: as close to float32 as the module in bfloat16 is."""
    module = randomise(HymbaLayer(HymbaConfig(**SMALL | changes), PRODUCER))
    expected, _, _ = module(hidden_states())
    with torch.autocast(DEVICE, torch.bfloat16):
        out, kv, state = module(hidden_states())
    assert out.dtype == torch.float32  # the residual stream stays as it was
    assert kv[0].dtype == kv[1].dtype == state[0].dtype == torch.bfloat16
    assert state[1].dtype == torch.float32
    assert (out - expected).square().mean().sqrt() < 0.02 * expected.square().mean().sqrt()


def test_state_parameters_in_float32_beside_bfloat16():
    module = mixer().to(torch.bfloat16)
    expected, _, _ = module(hidden_states(dtype=torch.bfloat16))
    for parameter in (module.A_log[0], module.D[0], module.dt_proj[0].bias):
        parameter.data = parameter.data.float()
    assert torch.equal(module(hidden_states(dtype=torch.bfloat16))[0], expected)


def test_inference_mode():
    module = mixer()
    with torch.inference_mode():
        out = module(hidden_states())[0]
    assert torch.equal(out, module(hidden_states())[0])


def test_backward_names_the_op():
    module = mixer().requires_grad_(True)
    out = module(hidden_states())[0]
    with pytest.raises(NotImplementedError, match="hymba_ops::norm_average_project has no backward yet"):
        out.sum().backward()


@torch.no_grad()
def test_initial_values():
    """A, D and dt start as Mamba's do."""
    module = HybridMixer(HymbaConfig(**SMALL), PRODUCER)
    states = SMALL["mamba_d_state"]
    torch.testing.assert_close(module.A_log[0].exp(), torch.arange(1.0, states + 1).expand(96, states))
    assert torch.equal(module.D[0], torch.ones(96))
    dt = torch.nn.functional.softplus(module.dt_proj[0].bias)
    assert 0.99e-3 < dt.min() < dt.max() < 1.01e-1
    assert 0.015 < module.in_proj.weight.std() < 0.025


# ---- torch.compile ----


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_compiles_once_for_all_lengths(layer):
    module = randomise(HymbaLayer(HymbaConfig(**SMALL), layer))
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(module, backend=counter, fullgraph=True, dynamic=True)
    counts = []
    for length in (9, 12, 33):
        kv = shared_kv(module.mamba.config, length=length) if layer == BORROWER else None
        hidden = hidden_states(length=length)
        torch.testing.assert_close(compiled(hidden, kv=kv), module(hidden, kv=kv))
        counts.append(counter.frame_count)
    assert counts[0] == counts[-1], "a new length compiled again"


# ---- Errors ----


@pytest.mark.parametrize(
    "call, error, message",
    [
        pytest.param(lambda m: m([1.0]), TypeError, "HybridMixer 1: hidden must be a tensor, got list", id="list"),
        pytest.param(
            lambda m: m(randn(3, 48)),
            ValueError,
            "HybridMixer 1: hidden must have shape [B, T, 48], got [3, 48]",
            id="rank",
        ),
        pytest.param(
            lambda m: m(randn(1, 3, 47)),
            ValueError,
            "hidden must have shape [B, T, 48], got [1, 3, 47]",
            id="hidden_size",
        ),
        pytest.param(
            lambda m: m(hidden_states(), cu_seqlens=cu_seqlens(3)),
            ValueError,
            "hidden must have batch size 1 with cu_seqlens, got [2, 13, 48]",
            id="packed_batch",
        ),
        pytest.param(
            lambda m: m(hidden_states(1, 3), kv=shared_kv(m.config, 1, 3), cu_seqlens=cu_seqlens(3)),
            ValueError,
            "kv must be None in packed input",
            id="packed_kv",
        ),
        pytest.param(
            lambda m: m(hidden_states(), kv=randn(2)), TypeError, "kv must be a pair of tensors", id="kv_type"
        ),
        pytest.param(
            lambda m: m(hidden_states(), kv=(randn(2, 3, 4, 8), randn(2, 3, 4, 16))),
            ValueError,
            "kv's k must have shape [2, 3, 2, 8], got [2, 3, 4, 8]",
            id="kv_heads",
        ),
        pytest.param(
            lambda m: m(hidden_states(), initial_state=(randn(2, 3, 96), None)),
            TypeError,
            "initial_state must be a pair of tensors",
            id="state_type",
        ),
        pytest.param(
            lambda m: m(hidden_states(), initial_state=(randn(2, 2, 96), randn(2, 96, 4))),
            ValueError,
            "initial_state",
            id="state_shape",
        ),
        pytest.param(
            lambda m: m(hidden_states(), positions=torch.arange(LENGTH)), ValueError, "positions must be", id="int64"
        ),
        pytest.param(
            lambda m: m(hidden_states(1), cu_seqlens=torch.tensor([0, 5, 3, 13], dtype=torch.int32)),
            ValueError,
            "cu_seqlens",
            id="cu_seqlens",
            marks=pytest.mark.skipif(DEVICE != "cpu", reason="on a GPU these values are not read"),
        ),
    ],
)
def test_bad_inputs(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call(mixer())


def test_borrower_without_keys():
    with pytest.raises(ValueError, match="HybridMixer 2: kv must be the keys and values of layer 1, got None"):
        mixer(BORROWER)(hidden_states())


@pytest.mark.parametrize("index", [-1, 4])
def test_layer_index_out_of_range(index):
    with pytest.raises(ValueError, match=f"layer_index must be from 0 to 3, got {index}"):
        HybridMixer(HymbaConfig(**SMALL), index)
