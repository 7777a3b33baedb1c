"""A layer's decode steps against the full forward: every switch, ragged slots, wrapped rings, the golden tokens."""

from __future__ import annotations

import copy

import pytest
import torch

import hymba_ops
from hymba_ops import _ops
from hymba_ops.decoding import LayerCache, layer_step

import golden_checks
from emulator.client import MODES
from emulator.ops import EmulatedOps
from golden_data import TINY, generate_data, golden_model
from kernel_cases import DEVICE
from model_cases import SMALL, SWITCHES, randomise, token_ids
from tolerance import assert_close

PAGE = 8


class Decoder:
    """A model's layers, each with a cache of its slots."""

    def __init__(self, model, slots, *, step_tokens, capacity):
        self.model, self.layers = model.model, model.model.layers
        self.head = model.lm_head
        each = -(-capacity // PAGE)
        order = torch.randperm(slots * each, generator=torch.Generator().manual_seed(1), device="cpu").to(DEVICE)
        self.table = order.view(slots, each).int()
        self.caches = [
            LayerCache.empty(layer.mamba, slots, step_tokens=step_tokens, pages=slots * each, page=PAGE)
            for layer in self.layers
        ]
        self.lengths = torch.zeros(slots, dtype=torch.int32)

    def prompt(self, ids, slots):
        """Prompts of one length [B, T] into these slots; the logits of their last positions."""
        M = self.model.config.num_memory_tokens
        hidden = self.model.embed_tokens(ids)
        if M > 0:
            hidden = torch.cat([self.model.memory_tokens.to(hidden.dtype).expand(len(ids), -1, -1), hidden], 1)
        made = {}
        for i, layer in enumerate(self.layers):
            producer = self.model.config.producer(i)
            hidden, made[i], state = layer(hidden, kv=made.get(producer) if producer != i else None)
            table = self.table if layer.mamba.window is None else None
            self.caches[i].start(slots, made[i], state, block_table=table)
        self.lengths[slots] = ids.shape[1]
        return self.head(self.model.final_layernorm(hidden))[:, -1].float()

    def step(self, ids, slots=None):
        """The next tokens [B, n]; their logits [B, n, V]."""
        hidden = self.model.embed_tokens(ids)
        for i, layer in enumerate(self.layers):
            producer = self.model.config.producer(i)
            hidden = layer_step(
                layer, hidden, self.caches[i], self.lengths, slots=slots, block_table=self.table,
                producer=self.caches[producer] if producer != i else None,
            )  # fmt: skip
        used = slice(None) if slots is None else slots[slots >= 0].long()
        self.lengths[used] += ids.shape[1]
        return self.head(self.model.final_layernorm(hidden)).float()


def small(changes=None, **fields):
    config = hymba_ops.HymbaConfig(**(SMALL | (changes or {}) | fields))
    return randomise(hymba_ops.HymbaForCausalLM(config))


def assert_same(actual, expected):
    """Float32 sums in another order."""
    error, size = (actual - expected).abs().max().item(), expected.abs().max().item()
    assert error <= 2e-5 * size, f"error {error:.2e}, of numbers up to {size:.2e}"


@torch.no_grad()
def check_steps(model, ids, prompt, sizes):
    """Tokens behind the prompt, in steps of these sizes, have the logits of one forward over all."""
    decoder = Decoder(model, len(ids), step_tokens=max(sizes), capacity=ids.shape[1])
    whole = model(ids).logits
    assert_same(decoder.prompt(ids[:, :prompt], torch.arange(len(ids))), whole[:, prompt - 1])
    for size in sizes:
        assert_same(decoder.step(ids[:, prompt : prompt + size]), whole[:, prompt : prompt + size])
        prompt += size
    assert prompt == ids.shape[1]


@pytest.mark.parametrize("changes", SWITCHES)
def test_every_switch(changes):
    sizes = [1, 1, 4, 1, 16, 2]
    check_steps(small(changes), token_ids(2, 12 + sum(sizes)), 12, sizes)


@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize("prompt", [1, 5, 40])
def test_rings_wrap_many_times(batch, prompt):
    """A window of 5 in rings of 6 or 9 rows."""
    for sizes in ([1] * 20, [4, 1, 4, 4, 3, 4]):
        check_steps(small(), token_ids(batch, prompt + sum(sizes)), prompt, sizes)


@torch.no_grad()
def test_slots_at_different_lengths_with_padding_rows():
    model, ids = small(), token_ids(4, 30)
    decoder = Decoder(model, 5, step_tokens=2, capacity=40)
    for slot, row, length in ((3, 0, 9), (0, 1, 14), (4, 2, 1)):
        decoder.prompt(ids[row : row + 1, :length], torch.tensor([slot]))
    untouched = [decoder.caches[0].ssm_state[1].clone(), decoder.caches[1].k[1].clone()]
    whole = model(ids).logits
    at = {3: 9, 0: 14, 4: 1}
    for slots in ([4, -1, 3], [3, 0, -1], [0, 4, 3], [-1, -1, 4]):
        rows = [{3: 0, 0: 1, 4: 2}.get(slot, 3) for slot in slots]
        tokens = torch.cat(
            [ids[row : row + 1, at.get(s, 0) : at.get(s, 0) + 2] for s, row in zip(slots, rows, strict=True)]
        )
        logits = decoder.step(tokens, torch.tensor(slots, dtype=torch.int32))
        for i, (slot, row) in enumerate(zip(slots, rows, strict=True)):
            if slot >= 0:
                assert_same(logits[i], whole[row, at[slot] : at[slot] + 2])
                at[slot] += 2
    assert torch.equal(decoder.caches[0].ssm_state[1], untouched[0])
    assert torch.equal(decoder.caches[1].k[1], untouched[1])


@torch.no_grad()
def greedy(decoder, ids, steps):
    """tokens [B, steps], logits [B, steps, V]."""
    logits = [decoder.prompt(ids, torch.arange(len(ids)))]
    tokens = [logits[0].argmax(-1)]
    for _ in range(steps - 1):
        logits.append(decoder.step(tokens[-1][:, None])[:, 0])
        tokens.append(logits[-1].argmax(-1))
    return torch.stack(tokens, 1), torch.stack(logits, 1)


@pytest.mark.parametrize("prompt", golden_checks.PROMPTS[TINY])
def test_golden_tokens(prompt):
    """What the published model gives without a cache: tokens_full, and then on to 40 tokens as our own forward goes."""
    data, model = generate_data(TINY), golden_model(hymba_ops, TINY)
    ids = data[f"prompt.{prompt}"]
    tokens, logits = greedy(Decoder(model, len(ids), step_tokens=1, capacity=80), ids, 40)
    full = data[f"tokens_full.{prompt}"]
    assert tokens[:, : full.shape[1]].tolist() == full.tolist()
    golden_checks.assert_near(logits[:, :12], data[f"logits_full.{prompt}"], golden_checks.LOGIT_LIMIT, "logits")
    with torch.no_grad():
        whole = model(torch.cat([ids, tokens[:, :-1]], 1), logits_to_keep=40).logits
    assert_same(logits, whole)


# What a model and its decode steps call.
OPS = ["rms_norm", "linear", "gated_linear", "rotary", "attention", "causal_conv1d", "selective_scan", "norm_project",
       "norm_average_project", "decode_branches", "gated_mlp"]  # fmt: skip


@pytest.fixture
def emulated(emulator_mode, monkeypatch):
    """All ops on emulated kernels, until it is called."""
    ops = EmulatedOps(MODES[emulator_mode])
    for name in OPS:
        monkeypatch.setattr(hymba_ops.functional, name, getattr(ops, name))
    call = _ops.call
    monkeypatch.delattr(_ops, "call")  # nothing else may run

    def end():
        monkeypatch.undo()
        assert _ops.call is call

    end.ops = ops
    return end


def test_golden_tokens_on_emulated_kernels(emulator_mode, emulated):
    """In the quickest mode all 40 tokens of a batch, in the others the first few."""
    data, model = generate_data(TINY), golden_model(hymba_ops, TINY)
    ids, full = data["prompt.b2"], data["tokens_full.b2"]
    steps = 40 if emulator_mode == "ascending" else 4
    tokens, logits = greedy(Decoder(model, len(ids), step_tokens=1, capacity=80), ids, steps)
    known = min(steps, full.shape[1])
    assert tokens[:, :known].tolist() == full[:, :known].tolist()
    golden_checks.assert_near(logits[:, :known], data["logits_full.b2"][:, :known], golden_checks.LOGIT_LIMIT, "logits")
    emulated()
    with torch.no_grad():
        whole = model(torch.cat([ids, tokens[:, :-1]], 1), logits_to_keep=steps).logits
    golden_checks.assert_near(logits, whole, golden_checks.LOGIT_LIMIT, "logits")


@torch.no_grad()
def test_tiny_bfloat16_on_emulated_kernels(emulator_mode, emulated):
    """Steps of the golden tokens err as the forward in bfloat16 does, both against the forward in float64."""
    data, model = generate_data(TINY), golden_model(hymba_ops, TINY)
    prompt, full = data["prompt.b2"], data["tokens_full.b2"]
    steps = min(full.shape[1], 12 if emulator_mode == "ascending" else 3)
    ids = torch.cat([prompt, full[:, : steps - 1]], 1)
    short = copy.deepcopy(model).bfloat16()
    decoder = Decoder(short, len(ids), step_tokens=1, capacity=ids.shape[1])
    logits = [decoder.prompt(prompt, torch.arange(len(ids)))]
    for t in range(prompt.shape[1], ids.shape[1]):
        logits.append(decoder.step(ids[:, t : t + 1])[:, 0])
    emulated()
    plain, exact = (m(ids, logits_to_keep=steps).logits for m in (short, model.double()))
    assert_close(torch.stack(logits, 1), plain.float(), exact, dtype=torch.bfloat16)


def layer_and_hidden(tokens):
    """A sliding layer of the 125m model in bfloat16, and hidden states of one row, meta tokens first."""
    config = hymba_ops.HymbaConfig.hymba_125m()
    layer = randomise(hymba_ops.HymbaLayer(config, 1)).bfloat16()
    shape = (1, config.num_memory_tokens + tokens, config.hidden_size)
    return config, layer, torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()


def assert_tokens_near(actual, expected):
    """Each token by itself, to the noise of bfloat16."""
    for token, whole in zip(actual, expected, strict=True):
        assert golden_checks.relative_rms(token, whole) <= 0.01


def steps_after(layer, hidden, start, count, rows=1):
    """Results of `count` one-token steps from position `start` on, [rows, count, hidden_size]: rows with equal inputs."""
    meta = layer.mamba.config.num_memory_tokens
    _, kv, state = layer(hidden[:, :start])
    cache = LayerCache.empty(layer.mamba, rows, step_tokens=1)
    for slot in range(rows):
        cache.start(torch.tensor([slot]), kv, state)
    results = []
    for t in range(start, start + count):
        lengths = torch.full((rows,), t - meta, dtype=torch.int32)
        results.append(layer_step(layer, hidden[:, t : t + 1].expand(rows, -1, -1).contiguous(), cache, lengths))
    return torch.cat(results, 1)


@torch.no_grad()
def test_a_full_sized_layer_in_bfloat16():
    """125m, one sliding layer: steps of one token against the forward, to the noise of bfloat16."""
    config, layer, hidden = layer_and_hidden(40)
    start = config.num_memory_tokens + 20
    whole, _, _ = layer(hidden)
    out = steps_after(layer, hidden, start, 20)
    assert_tokens_near(out[0], whole[0, start:])


@torch.no_grad()
def test_a_full_sized_layer_on_emulated_kernels(emulator_mode, emulated):
    """The same behind 8 tokens, for 40 tokens in the quickest mode; three rows with equal inputs have equal bits. A step
    is five launches: four ops, of which one has two."""
    count, rows = (40, 1) if emulator_mode == "ascending" else (2, 3)
    config, layer, hidden = layer_and_hidden(8 + count)
    start = config.num_memory_tokens + 8
    launched, launch = [], emulated.ops._launch
    emulated.ops._launch = lambda op, values: launched.append(op) or launch(op, values)
    out = steps_after(layer, hidden, start, count, rows)
    emulated()
    assert launched[-4 * count :] == ["norm_project", "decode_branches", "norm_average_project", "gated_mlp"] * count
    whole, _, _ = layer(hidden)
    for row in out:
        assert torch.equal(row, out[0])
        assert_tokens_near(row, whole[0, start:])


def test_a_borrowing_layer_needs_its_producers_cache():
    layer = small().model.layers[2]
    cache = LayerCache.empty(layer.mamba, 1, step_tokens=1)
    with pytest.raises(ValueError, match=r"layer_step 2: producer must be the cache of layer 1, got None"):
        layer_step(layer, torch.zeros(1, 1, 48), cache, torch.zeros(1, dtype=torch.int32))


def test_gradients_are_refused():
    layer = small().requires_grad_(True).model.layers[1]
    cache = LayerCache.empty(layer.mamba, 1, step_tokens=1)
    with pytest.raises(ValueError, match=r"must not require grad .*call it under torch.no_grad\(\)"):
        layer_step(layer, torch.zeros(1, 1, 48), cache, torch.zeros(1, dtype=torch.int32))
