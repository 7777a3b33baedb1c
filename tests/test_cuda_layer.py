"""The layer on a GPU: no wait of the host, what a layer allocates (both shown with fake tensors), graph capture.

What needs a GPU runs with HYMBA_OPS_TEST_DEVICE=cuda.
"""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from hymba_ops import HymbaConfig, HymbaForCausalLM, HymbaLayer, _inputs
from hymba_ops.decoding import LayerCache, layer_step

from fake_cuda import fake_cuda
from kernel_cases import DEVICE, cu_seqlens
from model_cases import BORROWER, GLOBAL, PRODUCER, SMALL, padding_mask, randn, randomise, token_ids

needs_no_gpu = pytest.mark.skipif(DEVICE != "cpu", reason="shown without a GPU")
needs_gpu = pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU: HYMBA_OPS_TEST_DEVICE=cuda")

# ---- Nothing waits ----


FAKE_INPUTS = {
    "dense": lambda: {"input_ids": torch.zeros(2, 9, dtype=torch.int64)},
    "embeds": lambda: {"inputs_embeds": torch.zeros(2, 9, SMALL["hidden_size"])},
    "packed": lambda: {
        "input_ids": torch.zeros(1, 20, dtype=torch.int64),
        "cu_seqlens": torch.zeros(4, dtype=torch.int32),
    },
}


@needs_no_gpu
@pytest.mark.parametrize("inputs", FAKE_INPUTS.values(), ids=FAKE_INPUTS)
@pytest.mark.parametrize("changes", [{}, {"kq_norm": "perhead-rms"}, {"num_memory_tokens": 0}], ids=str)
def test_nothing_waits_and_all_is_on_the_gpu(monkeypatch, changes, inputs):
    """A tensor of fake_cuda has no value to be read, and does not meet one on another device."""
    with fake_cuda(monkeypatch):
        model = HymbaForCausalLM(HymbaConfig(**SMALL | changes)).requires_grad_(False)
        inputs = inputs()
        tokens = next(iter(inputs.values())).shape[:2]
        plain, last = model(**inputs), model(**inputs, logits_to_keep=1)
        labelled = model(**inputs, labels=torch.zeros(tokens, dtype=torch.int64))
        for tensor in (plain.logits, last.logits, labelled.logits, labelled.loss):
            assert tensor.device == torch.device("cuda", 0)
        assert plain.logits.shape == (*tokens, SMALL["vocab_size"])


class Reads(TorchDispatchMode):
    """Ops for whose result the host waits on a GPU."""

    WAITING = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique", "repeat_interleave")

    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._opname in self.WAITING:
            self.ops.append(func._opname)
        return func(*args, **(kwargs or {}))


@needs_no_gpu
@pytest.mark.parametrize("n", [1, 3])
def test_a_decode_step_does_not_wait_either(monkeypatch, n):
    with fake_cuda(monkeypatch):
        model = HymbaForCausalLM(HymbaConfig(**SMALL)).model
        hidden, lengths = torch.empty(3, n, 48), torch.empty(4, dtype=torch.int32)
        slots, table = torch.empty(3, dtype=torch.int32), torch.empty(4, 6, dtype=torch.int32)
        caches = [LayerCache.empty(layer.mamba, 4, step_tokens=n, pages=24, page=8) for layer in model.layers]
        for i, layer in enumerate(model.layers):
            producer = model.config.producer(i)
            hidden = layer_step(
                layer, hidden, caches[i], lengths, slots=slots, block_table=table,
                producer=caches[producer] if producer != i else None,
            )  # fmt: skip
        assert hidden.shape == (3, n, 48) and hidden.device.type == "cuda"


@needs_no_gpu
def test_a_padded_batch_waits_once(monkeypatch):
    """For the number of its tokens. Run on a CPU, as if its values were not to be read."""
    waits = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: waits.append("tolist") or tolist(tensor))
    monkeypatch.setattr(_inputs, "_can_read", lambda tensor: False)
    model = randomise(HymbaForCausalLM(HymbaConfig(**SMALL)))
    mask = padding_mask(9, (0, 9), (4, 9), (0, 2))
    with Reads() as reads:
        model(token_ids(3, 9), attention_mask=mask, labels=token_ids(3, 9, seed=1))
    assert reads.ops == [] and waits == ["tolist"]


# ---- What a layer allocates ----


class Allocations(TorchDispatchMode):
    """Bytes of the storages that ops make: all together, and the most that live at a time."""

    def __init__(self):
        super().__init__()
        self.known, self.live, self.peak, self.total = weakref.WeakSet(), 0, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {t.untyped_storage() for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(result):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is None or storage in self.known or storage in before:
                continue
            self.known.add(storage)
            self._made(storage.nbytes())
            weakref.finalize(storage, self._freed, storage.nbytes())
        return result

    def _made(self, size):
        self.live += size
        self.total += size
        self.peak = max(self.peak, self.live)

    def _freed(self, size):
        self.live -= size


@needs_no_gpu
def test_what_a_layer_of_the_large_model_allocates(monkeypatch):
    """Every tensor that an op makes, none of it twice; the most live while the scan runs (docs/cuda_layer.md)."""
    tokens, channels, states, x_proj = 8192 + 128, 3200, 16, 100 + 2 * 16
    with fake_cuda(monkeypatch):
        layer = HymbaLayer(HymbaConfig.hymba_1_5b(), 1, dtype=torch.bfloat16).requires_grad_(False)
        hidden = torch.empty(1, tokens, 1600, dtype=torch.bfloat16)
        with Allocations() as allocations:
            layer(hidden)
    normed, in_proj = 1600, 8960
    ssm = [channels, x_proj, x_proj, channels, channels]  # u, x_proj's output and its norms, dt, y
    attention = [1600, 320, channels]  # q, k, output
    rest = [1600, 1600, 5504, 1600]  # out_proj, and the MLP: norm, gate, down
    small = 4 * tokens + 2 * 3 * channels + 4 * states * channels  # positions, final states
    decay_rates = 4 * states * channels  # float32, exp, minus: one after the other
    assert allocations.total == 2 * tokens * sum([normed, in_proj, *ssm, *attention, *rest]) + small + 3 * decay_rates
    scan = [channels, channels, 2 * states, channels, 1600, 320]  # u, dt, B and C, y; attention's q and k
    assert allocations.peak == 2 * tokens * (normed + in_proj + sum(scan)) + small + decay_rates


# ---- On a GPU ----


def flat(result):
    """out, (k, v), (conv state, SSM state) as a list."""
    out, kv, state = result
    return [out, *kv, *state]


def assert_near(actual, expected):
    """In rms, relative: roundings in another order, a few of them in 16 bits."""
    limit = 2e-2 if actual.dtype == torch.bfloat16 else 1e-4
    actual, expected = actual.cpu().double(), expected.cpu().double()
    assert (actual - expected).square().mean().sqrt() <= limit * expected.square().mean().sqrt()


# With 16 states and sizes in whole packs, so that 16-bit types take the kernels that the published models take.
PUBLISHED_SIZES = SMALL | {"hidden_size": 128, "num_attention_heads": 4, "mamba_d_state": 16, "mamba_dt_rank": 8}
GPU_DTYPES = [pytest.param(torch.float32, id="fp32"), pytest.param(torch.bfloat16, id="bf16")]
GPU_LAYERS = [pytest.param(GLOBAL, id="global"), pytest.param(PRODUCER, id="producer"), pytest.param(BORROWER, id="borrower")]  # fmt: skip


def gpu_layer(index, dtype):
    """A layer, and its arguments beside the hidden states."""
    layer = randomise(HymbaLayer(HymbaConfig(**PUBLISHED_SIZES), index)).to(dtype)
    kv = tuple(randn(2, 40, 2, dim, dtype=dtype, seed=dim) for dim in (32, 64)) if layer.mamba.borrows_kv else None
    return layer, {"kv": kv}


def hidden_states(dtype, seed):
    return randn(2, 40, 128, dtype=dtype, seed=seed)


def on_cpu(module, *args, **kwargs):
    """module(...) with everything on the CPU."""
    with torch.device("cpu"):
        args, kwargs = pytree.tree_map_only(torch.Tensor, torch.Tensor.cpu, (args, kwargs))
        return copy.deepcopy(module).cpu()(*args, **kwargs)


def captured(function):
    """A graph of function() and what it gave."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()  # libraries set themselves up
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()
    return graph, results


@needs_gpu
@torch.inference_mode()
@pytest.mark.parametrize("dtype", GPU_DTYPES)
@pytest.mark.parametrize("index", GPU_LAYERS)
def test_as_on_the_cpu(index, dtype):
    layer, arguments = gpu_layer(index, dtype)
    hidden = hidden_states(dtype, seed=1)
    for actual, expected in zip(
        flat(layer(hidden, **arguments)), flat(on_cpu(layer, hidden, **arguments)), strict=True
    ):
        assert_near(actual, expected)


@needs_gpu
@pytest.mark.parametrize("dtype", GPU_DTYPES)
@pytest.mark.parametrize("index", GPU_LAYERS)
def test_side_by_side_gives_the_bits_of_in_order(index, dtype):
    """Many calls whose results are dropped at once, so that memory goes from stream to stream."""
    layer, arguments = gpu_layer(index, dtype)
    hidden = hidden_states(dtype, seed=1)
    with torch.enable_grad():  # nothing asks for gradients, but they could be recorded: in order
        expected = flat(layer(hidden, **arguments))
    with torch.no_grad():
        for _ in range(50):
            results = [flat(layer(hidden, **arguments)) for _ in range(3)]
            for actual in results:
                for a, e in zip(actual, expected, strict=True):
                    assert torch.equal(a, e)


@needs_gpu
@torch.no_grad()
@pytest.mark.parametrize("dtype", GPU_DTYPES)
@pytest.mark.parametrize("index", GPU_LAYERS)
def test_a_captured_layer_replays(index, dtype):
    """With new hidden states, and without an allocation."""
    layer, arguments = gpu_layer(index, dtype)
    hidden = hidden_states(dtype, seed=1)
    graph, results = captured(lambda: flat(layer(hidden, **arguments)))
    for seed in (2, 3):
        hidden.copy_(hidden_states(dtype, seed))
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        graph.replay()
        assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
        eager = flat(layer(hidden, **arguments))
        cpu = flat(on_cpu(layer, hidden, **arguments))
        for actual, e, c in zip(results, eager, cpu, strict=True):
            assert_near(actual, e)
            assert_near(actual, c)


@needs_gpu
@torch.no_grad()
def test_no_call_of_cuda_waits():
    model = randomise(HymbaForCausalLM(HymbaConfig(**PUBLISHED_SIZES)))
    ids, boundaries = token_ids(1, 20), cu_seqlens(6, 0, 1, 11)
    model(ids)  # libraries set themselves up
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(ids)
        model(ids, cu_seqlens=boundaries)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@torch.no_grad()
def test_a_captured_model_takes_other_sequences():
    """The graph of a packed batch serves any boundaries of as many sequences: nobody has read them."""
    model = randomise(HymbaForCausalLM(HymbaConfig(**PUBLISHED_SIZES)))
    ids, boundaries = token_ids(1, 20), cu_seqlens(6, 0, 1, 11)
    graph, logits = captured(lambda: model(ids, cu_seqlens=boundaries).logits)
    for seed, lengths in enumerate([(6, 0, 1, 11), (2, 9, 0, 7), (20, 0, 0, 0)]):
        ids.copy_(token_ids(1, 20, seed=seed))
        boundaries.copy_(cu_seqlens(*lengths))
        graph.replay()
        assert_near(logits, on_cpu(model, ids, cu_seqlens=boundaries).logits)
