"""The decode benchmark's stacks, work of a step, caches and forms; no step waits for a value of a GPU."""

from __future__ import annotations

import pytest
import torch

import hymba_ops
from bench import decode_cases, decode_work, options, plain_step, roofline
from bench.cases import WrongOutput
from bench.decode_cases import Case, Size, Stack, stack_config

from fake_cuda import fake_cuda

CPU = torch.device("cpu")


def stack_of(kind, count=2, dtype=torch.float32, preset="125m"):
    return Stack.make(stack_config(options.preset(preset), kind, count), CPU, dtype)


# ---- Stacks ----


def test_stacks_share_keys_as_the_presets_do():
    preset = options.preset("1.5b")
    model = stack_config(preset, "model", 32)
    assert [model.producer(i) for i in range(32)] == [preset.producer(i) for i in range(32)]
    assert [model.window(i) for i in range(32)] == [preset.window(i) for i in range(32)]
    short = stack_config(preset, "model", 4)
    assert [short.producer(i) for i in range(4)] == [0, 1, 1, 3] and [short.is_global(i) for i in range(2)] == [1, 0]
    sliding, everything = (stack_config(preset, kind, 5) for kind in ("sliding", "global"))
    assert [sliding.producer(i) for i in range(5)] == [0, 0, 2, 2, 4]
    assert {sliding.window(i) for i in range(5)} == {1024}
    assert [everything.producer(i) for i in range(5)] == [0, 1, 2, 3, 4]
    assert {everything.window(i) for i in range(5)} == {None}


def test_layers_share_weights_with_plain_and_not_with_each_other():
    stack = stack_of("sliding")
    for layer, weights in zip(stack.layers, stack.weights, strict=True):
        mlp = layer.moe["experts"][0]
        assert torch.equal(weights.gate_up, torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
        assert weights.gate_up.data_ptr() == mlp.gate_proj.weight.data_ptr()
        assert weights.in_proj.data_ptr() == layer.mamba.in_proj.weight.data_ptr()
    assert not torch.equal(stack.weights[0].down, stack.weights[1].down)


# ---- Work ----


def test_work_of_a_step_counted_by_hand():
    """Hymba-1.5B, bfloat16, a sliding layer that makes its keys, batch 32 behind 8192 tokens."""
    config = options.preset("1.5b")
    work = decode_work.step_work(config, 1, batch=32, context=8192, tokens=1, itemsize=2)
    products = 1600 * 8960 + 3200 * 1600 + 3 * 1600 * 5504 + 3200 * 132 + 100 * 3200
    norms, vectors = 2 * 3200 + 2 * 1600 + 100 + 2 * 16, 3 * 3200  # of conv, dt and D
    small = norms + vectors + 4 * 3200  # and the filter
    keys = 128 + 32 * (1025 + 1)  # meta tokens once; those that a row sees, its new one written too
    states = 32 * (2 * 3 * 3200 * 2 + 2 * 4 * 3200 * 16)
    assert work.bytes == 2 * (products + small) + 4 * 3200 * 16 + 2 * 5 * (64 + 128) * keys + states
    pairs = 32 * 25 * (128 + 1025)
    assert work.special == pairs + 32 * 3200 * 20
    assert work.flop == 2 * 32 * (products + 4 * 3200) + 2 * pairs * 192
    borrower = decode_work.step_work(config, 2, batch=32, context=8192, tokens=1, itemsize=2)
    assert work.bytes - borrower.bytes == 2 * (1600 * 5 * 192 + 32 * 5 * 192)  # rows of in_proj, new keys
    everything = decode_work.step_work(config, 0, batch=32, context=8192, tokens=1, itemsize=2)
    assert everything.bytes - work.bytes == 2 * 5 * 192 * 32 * (8193 - 1025)


@pytest.mark.parametrize("size", [Size(1, 40, 1), Size(3, 1500, 1), Size(2, 1030, 3)], ids=str)
@pytest.mark.parametrize("kind", decode_cases.KINDS)
def test_bytes_of_a_step_are_those_of_its_tensors(kind, size, monkeypatch):
    """What a step hands to the ops, with the rows of caches that its tokens see."""
    stack = stack_of(kind, 3, torch.bfloat16)
    config, counted = stack.config, []
    with torch.inference_mode():
        run = decode_cases.Ours(stack, size)
        right = hymba_ops._ops.call

        def watched(name, *args):
            counted.append([t for t in args if isinstance(t, torch.Tensor)])
            return right(name, *args)

        monkeypatch.setattr(hymba_ops._ops, "call", watched)
        for index in range(3):
            counted.clear()
            run.layer(index, torch.randn(size.batch, size.tokens, config.hidden_size).bfloat16())
            cache, own = run.caches[index], config.producer(index) == index
            keys = run.caches[config.producer(index)]
            storages = {t.untyped_storage().data_ptr(): t for call in counted for t in call}
            weights = {p.untyped_storage().data_ptr(): p for p in stack.layers[index].parameters()}
            read = sum(t.untyped_storage().nbytes() for at, t in storages.items() if at in weights)
            assert {cache.ssm_state.data_ptr(), cache.conv_state.data_ptr(), keys.k.data_ptr()} <= set(storages)
            read += sum(t.nbytes for t in (keys.meta_k, keys.meta_v, cache.decay_rates))
            read += 2 * (cache.ssm_state.nbytes + cache.conv_state.nbytes)
            window = config.window(index)
            positions = torch.arange(size.context + size.tokens)
            seen = positions >= (0 if window is None else size.context - window)
            row = (keys.k.nbytes + keys.v.nbytes) // keys.k.shape[:2].numel()
            read += row * size.batch * (int(seen.sum()) + own * size.tokens)
            work = decode_work.step_work(
                config, index, batch=size.batch, context=size.context, tokens=size.tokens, itemsize=2
            )
            assert work.bytes == read


def test_floors_take_the_longer_of_bytes_and_products():
    layer = roofline.Work(flop=4e9, special=1e9, bytes=8e9)
    for gemm, seconds in ((1e9, 4.0), (100e9, 2.0)):
        ceilings = roofline.Ceilings(gemm=gemm, bandwidth=4e9, special=2e9, separate_units=True)
        assert decode_work.floor_seconds(ceilings, [layer, layer]) == 2 * seconds
        on_a_cpu = roofline.Ceilings(gemm=gemm, bandwidth=4e9, special=2e9, separate_units=False)
        assert decode_work.floor_seconds(on_a_cpu, [layer]) == seconds + 0.5


def test_copies_are_counted_twice(monkeypatch):
    monkeypatch.setattr(roofline, "_seconds", lambda call, device, repeats: call() is not None and 0.5)
    assert roofline.copy_bandwidth(CPU) == 2 * (1 << 28) / 0.5


def test_memory_that_a_case_takes():
    """At least what its tensors take, and not much more than that."""
    size, names = Size(3, 1500, 1), ["hymba_ops", "plain", "sdpa", "upcast"]
    for kind in decode_cases.KINDS:
        stack = stack_of(kind, 3, torch.bfloat16)
        with torch.inference_mode():
            case = Case.make(stack, size, names)
        tensors = [t for states in case.first_states for t in states]
        tensors += [t for cache in case.runs["hymba_ops"].caches for t in vars(cache).values() if t is not None]
        for name in names[1:]:
            tensors += [t for cache in case.runs[name].caches for t in cache]
        tensors += [t for weights in case.runs["upcast"].weights for t in weights]
        taken = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
        needed = decode_cases.needed_bytes(stack.config, size, names, 2) - decode_cases._SLACK
        assert taken <= needed <= 1.5 * taken, kind
    config = stack_config(options.preset("1.5b"), "model", 32)
    weights = decode_work.weight_bytes(config, 2)
    assert weights == pytest.approx(32 * 93.2e6, rel=0.02)


# ---- The plain step ----


@pytest.mark.parametrize("size", [Size(2, 3, 1), Size(1, 1023, 1), Size(2, 4000, 1), Size(2, 1022, 5)], ids=str)
@pytest.mark.parametrize("kind", decode_cases.KINDS)
def test_every_form_agrees_and_is_timed_on_what_it_was_given(kind, size):
    """Two steps, of which the second sees what the first has written; resetting the states gives the first again."""
    with torch.inference_mode():
        case = Case.make(stack_of(kind, 3), size, ["sdpa", "upcast"])
        for name in ("hymba_ops", "sdpa", "upcast"):
            assert case.compare(name) <= 1e-5
        for run in case.runs.values():
            first, hidden = run.step(case.hidden), case.hidden.clone()
            assert torch.equal(case.hidden, hidden)
            second = run.step(case.hidden)
            assert not torch.equal(first, second)
        for name, run in case.runs.items():
            again = [case.reset(name) or run.step(case.hidden) for _ in range(2)]
            assert torch.equal(*again)


@pytest.mark.parametrize(
    "break_it,what",
    [
        (lambda cache, place: cache.conv_state[:, 1].zero_(), "conv state"),
        (lambda cache, place: cache.ssm_state.mul_(1.01), "SSM state"),
        (lambda cache, place: cache.k.index_fill_(2, place.rows, 0), "new keys"),
        (lambda cache, place: cache.v.index_fill_(2, place.rows, 0), "new values"),
    ],
    ids=["conv", "ssm", "keys", "values"],
)
def test_what_a_step_leaves_behind_is_compared(break_it, what):
    with torch.inference_mode():
        case = Case.make(stack_of("model"), Size(2, 30, 1), [])
        plain_run = case.runs["plain"]

        def broken(weights, hidden, cache, place, *rest):
            out = plain_step.layer_step(weights, hidden, cache, place, *rest)
            break_it(cache, place)
            return out

        plain_run.one_layer = broken
        with pytest.raises(WrongOutput, match=f"hymba_ops differs from plain in layer 0, {what}: relative rms"):
            case.compare("hymba_ops")


def test_pages_lie_in_random_order():
    with torch.inference_mode():
        run = decode_cases.Ours(stack_of("global"), Size(2, 640, 1))
    assert sorted(run.table.flatten().tolist()) == list(range(22)) and run.table.tolist() != [
        list(range(11)), list(range(11, 22))
    ]  # fmt: skip


def test_a_step_calls_the_ops_that_are_looked_up(monkeypatch):
    called, right = [], hymba_ops._ops.call
    monkeypatch.setattr(hymba_ops._ops, "call", lambda name, *args: called.append(name) or right(name, *args))
    with torch.inference_mode():
        case = Case.make(stack_of("model"), Size(1, 30, 1), [])
        case.runs["hymba_ops"].step(case.hidden)
    assert called == 2 * list(decode_cases.STEP_OPS)


@pytest.mark.parametrize("size", [Size(1, 2048, 1), Size(3, 500, 1), Size(2, 1500, 3)], ids=str)
@pytest.mark.parametrize("kind", decode_cases.KINDS)
def test_no_step_waits_and_all_of_it_is_on_the_gpu(kind, size, monkeypatch):
    """So that it can be captured. The default device is the CPU, as it is where a benchmark runs."""
    with fake_cuda(monkeypatch), torch.device("cpu"):
        device = torch.device("cuda", 0)
        stack = Stack.make(stack_config(options.preset("1.5b"), kind, 4), device, torch.bfloat16)
        case = Case.make(stack, size, ["sdpa", "compiled"])
        for name, run_ in case.runs.items():
            if name == "compiled":
                continue
            case.reset(name)
            out = run_.step(case.hidden)
            assert (out.device, out.dtype, out.shape) == (device, torch.bfloat16, case.hidden.shape)
        assert {t.device for cache in case.runs["compiled"].caches for t in cache} == {device}
