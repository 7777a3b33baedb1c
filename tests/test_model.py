"""HymbaModel and HymbaForCausalLM: against python_reference, packed and padded against single sequences, errors."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from hymba_ops import HymbaConfig, HymbaForCausalLM, HymbaModel

from kernel_cases import DEVICE, cu_seqlens
from model_cases import INPUTS, SMALL, SWITCHES, both, padding_mask, randomise, token_ids
from tolerance import assert_close

GOLDEN = Path(__file__).parent / "golden"


def model(**changes):
    return randomise(HymbaForCausalLM(HymbaConfig(**SMALL | changes)))


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


# ---- Against the reference ----


@pytest.mark.parametrize("changes", SWITCHES)
def test_logits_of_every_switch(changes):
    ours, plain, exact = both("HymbaForCausalLM", changes)
    ids = token_ids(2, 17)
    logits = [m(ids).logits for m in (ours, plain, exact)]
    assert_close(*logits, dtype=torch.float32)


@pytest.mark.parametrize("length", [1, 4, 5, 6, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_logits(dtype, length):
    """Lengths around window and memory tokens."""
    ours, plain, exact = both("HymbaForCausalLM", dtype=dtype)
    logits = [m(token_ids(2, length)).logits for m in (ours, plain, exact)]
    assert logits[0].dtype == dtype
    assert_close(*logits, dtype=dtype)


def rms(x):
    return x.double().square().mean().sqrt().item()


def test_logits_bfloat16():
    """Through four layers bfloat16 leaves a few per cent of noise: as much as in the plain form, in rms."""
    ours, plain, exact = both("HymbaForCausalLM", dtype=torch.bfloat16)
    ids = token_ids(8, 40)
    logits, plain_logits, exact_logits = (m(ids).logits for m in (ours, plain, exact))
    assert logits.dtype == torch.float32
    assert rms(logits - exact_logits) < 1.25 * rms(plain_logits - exact_logits) < 0.05 * rms(exact_logits)


@pytest.mark.parametrize("inputs", INPUTS.values(), ids=INPUTS)
def test_logits_and_loss_of_every_kind_of_input(inputs):
    """Also with labels and with logits_to_keep."""
    ours, plain, exact = both("HymbaForCausalLM")
    inputs = inputs()
    tokens = next(iter(inputs.values()))
    wide = {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}
    for extra in ({"labels": token_ids(*tokens.shape[:2], seed=1)}, {"logits_to_keep": 3}):
        results = ours(**inputs, **extra), plain(**inputs, **extra), exact(**wide, **extra)
        assert_close(*(r.logits for r in results), dtype=torch.float32, name="logits")
        if "labels" in extra:
            assert_close(*(r.loss for r in results), dtype=torch.float32, name="loss")


# ---- A sequence alone, packed, padded ----

LENGTHS = 6, 0, 1, 11


@pytest.mark.parametrize("tail", [0, 3], ids=["full", "tail"])
@pytest.mark.parametrize("changes", [c for c in SWITCHES if c.id in ("published", "no_memory_tokens", "all_global")])
def test_packed_equals_singles(changes, tail):
    m = model(**changes)
    ids = token_ids(1, sum(LENGTHS) + tail)
    logits = m(ids, cu_seqlens=cu_seqlens(*LENGTHS)).logits
    start = 0
    for length in filter(None, LENGTHS):
        close(logits[:, start : start + length], m(ids[:, start : start + length]).logits)
        start += length
    assert torch.equal(logits[:, start:], torch.zeros_like(logits[:, start:]))


SPANS = {
    "right": [(0, 9), (0, 4), (0, 1)],
    "left": [(0, 9), (5, 9), (8, 9)],
    "both_sides": [(1, 8), (0, 9), (3, 5)],
    "none": [(0, 9), (0, 9), (0, 9)],
}


@pytest.mark.parametrize("kind", [torch.int64, torch.bool])
@pytest.mark.parametrize("spans", SPANS.values(), ids=SPANS)
def test_padded_equals_singles(spans, kind):
    m, mask = model(), padding_mask(9, *spans)
    ids = token_ids(3, 9).masked_fill(mask == 0, 10**6)  # padding may hold any id
    logits = m(ids, attention_mask=mask.to(kind)).logits
    for row, (start, end) in enumerate(spans):
        close(logits[row, start:end], m(ids[row : row + 1, start:end]).logits[0])
    padding = logits[mask == 0]
    assert torch.equal(padding, torch.zeros_like(padding))


def test_neighbours_do_not_matter():
    """The same sequence beside others: equal bits where the matrices have the same number of rows."""
    m, ids = model(), token_ids(1, 12)
    other = ids.clone()
    other[:, 7:] = token_ids(1, 5, seed=9)
    first, second = (m(x, cu_seqlens=cu_seqlens(7, 5)).logits[:, :7] for x in (ids, other))
    assert torch.equal(first, second)


def test_prefix_does_not_see_what_follows():
    m, ids = model(), token_ids(2, 12)
    changed = ids.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % SMALL["vocab_size"]
    assert torch.equal(m(ids).logits[:, :8], m(changed).logits[:, :8])


@pytest.mark.parametrize("shape", [(2, 0), (0, 3)], ids=["no_tokens", "no_rows"])
def test_empty_input(shape):
    assert model()(token_ids(*shape)).logits.shape == (*shape, SMALL["vocab_size"])


def test_only_empty_sequences():
    m = model()
    for boundaries in (cu_seqlens(), cu_seqlens(0, 0)):
        logits = m(token_ids(1, 4), cu_seqlens=boundaries).logits
        assert torch.equal(logits, torch.zeros(1, 4, SMALL["vocab_size"]))


# ---- Arguments and results ----


def test_embeddings_equal_ids():
    m, ids = model(), token_ids(2, 9)
    embeds = m.model.embed_tokens(ids)
    assert torch.equal(m(inputs_embeds=embeds).logits, m(ids).logits)
    assert torch.equal(m(ids.int()).logits, m(ids).logits)


@pytest.mark.parametrize("keep", [1, 4, 9, 100])
def test_logits_to_keep(keep):
    m, ids = model(), token_ids(2, 9)
    close(m(ids, logits_to_keep=keep).logits, m(ids).logits[:, -keep:])


def test_model_is_the_part_below_the_head():
    m, ids = model(), token_ids(2, 9)
    hidden = m.model(ids)
    assert hidden.shape == (2, 9, SMALL["hidden_size"])
    assert torch.equal(m.lm_head(hidden), m(ids).logits)
    alone = HymbaModel(m.config)
    alone.load_state_dict(m.model.state_dict())
    assert torch.equal(alone(ids), hidden)


def expected_loss(logits, ids, spans):
    """spans: (row, start, end) of each sequence."""
    each = [(logits[r, a : b - 1], ids[r, a + 1 : b]) for r, a, b in spans if b > a]
    return torch.nn.functional.cross_entropy(torch.cat([x for x, _ in each]), torch.cat([y for _, y in each]))


def test_loss_dense():
    m, ids = model(), token_ids(2, 9)
    result = m(ids, labels=ids)
    close(result.loss, expected_loss(result.logits, ids, [(0, 0, 9), (1, 0, 9)]))
    labels = ids.masked_fill(torch.arange(9) >= 6, -100)
    close(m(ids, labels=labels).loss, expected_loss(result.logits, ids, [(0, 0, 6), (1, 0, 6)]))


def test_loss_packed_does_not_cross_sequences():
    m, ids = model(), token_ids(1, 21)
    result = m(ids, labels=ids, cu_seqlens=cu_seqlens(6, 0, 1, 11))
    close(result.loss, expected_loss(result.logits, ids, [(0, 0, 6), (0, 6, 7), (0, 7, 18)]))


@pytest.mark.parametrize("spans", SPANS.values(), ids=SPANS)
def test_loss_padded_ignores_padding(spans):
    m, ids, mask = model(), token_ids(3, 9), padding_mask(9, *spans)
    labels = ids.masked_fill(mask == 0, 10**6)
    result = m(ids, labels=labels, attention_mask=mask)
    close(result.loss, expected_loss(result.logits, ids, [(r, a, b) for r, (a, b) in enumerate(spans)]))


# ---- Modes ----


def test_autocast():
    """As close to float32 as the whole model in bfloat16."""
    m, ids = model(), token_ids(8, 40)
    expected = m(ids).logits
    with torch.autocast(DEVICE, torch.bfloat16):
        logits = m(ids).logits
    whole = copy.deepcopy(m).to(torch.bfloat16)(ids).logits
    assert logits.dtype == torch.float32
    assert 0 < rms(logits - expected) < 1.25 * rms(whole - expected) < 0.05 * rms(expected)


def test_inference_mode():
    m, ids = model(), token_ids(2, 9)
    with torch.inference_mode():
        logits = m(ids).logits
    assert torch.equal(logits, m(ids).logits)


def test_backward_is_refused():
    m, ids = model().requires_grad_(True), token_ids(1, 5)
    with pytest.raises(NotImplementedError, match=r"hymba_ops::\w+ has no backward yet"):
        m(ids, labels=ids).loss.backward()


def test_compiles_once_for_all_lengths():
    m = model()
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(m, backend=counter, fullgraph=True, dynamic=True)
    counts = []
    for length in (8, 11, 30):
        ids = token_ids(2, length)
        compiled_result, result = compiled(ids, labels=ids), m(ids, labels=ids)
        close(compiled_result.logits, result.logits)
        close(compiled_result.loss, result.loss)
        counts.append(counter.frame_count)
    assert counts[0] == counts[-1], "a new length compiled again"


def test_compiles_packed():
    m = model()
    compiled = torch.compile(m, backend="aot_eager", fullgraph=True, dynamic=True)
    for lengths in ((4, 5), (10, 7)):
        ids, boundaries = token_ids(1, sum(lengths)), cu_seqlens(*lengths)
        close(compiled(ids, cu_seqlens=boundaries).logits, m(ids, cu_seqlens=boundaries).logits)


# ---- Parameters ----


def test_parameters_of_the_published_model():
    """612 names and shapes, in the published order, without allocating anything."""
    config = HymbaConfig.from_pretrained(GOLDEN / "hymba_1p5b_config.json")
    state = HymbaForCausalLM(config, device="meta").state_dict()
    expected = json.loads((GOLDEN / "hymba_1p5b_state_dict.json").read_text())
    assert {name: list(tensor.shape) for name, tensor in state.items()} == expected
    assert list(state) == list(expected)
    assert len(state) == 612


def is_tied(m):
    return m.lm_head.weight is m.model.embed_tokens.weight


@pytest.mark.parametrize("assign", [False, True], ids=["copy", "assign"])
@pytest.mark.parametrize("with_head", [False, True], ids=["without_head", "with_head"])
def test_tied_head_may_be_left_out(with_head, assign):
    source, target = model(), HymbaForCausalLM(HymbaConfig(**SMALL), device="meta" if assign else None)
    state = source.state_dict()
    if not with_head:
        del state["lm_head.weight"]
    names = list(state)
    target.load_state_dict(state, assign=assign)
    assert list(state) == names
    assert is_tied(target)
    assert torch.equal(target(token_ids(1, 5)).logits, source(token_ids(1, 5)).logits)


def test_untied_head_may_not_be_left_out():
    m = model(tie_word_embeddings=False)
    state = m.state_dict()
    del state["lm_head.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*lm_head\.weight"):
        m.load_state_dict(state)


@pytest.mark.parametrize(
    "convert",
    [
        pytest.param(lambda m: m.to(torch.bfloat16), id="bf16"),
        pytest.param(copy.deepcopy, id="deepcopy"),
        pytest.param(lambda m: pickle.loads(pickle.dumps(m)), id="pickle"),
        pytest.param(lambda m: HymbaForCausalLM(m.config, device="meta").to_empty(device="cpu"), id="meta"),
    ],
)
def test_head_stays_tied(convert):
    assert is_tied(convert(model()))
    assert not is_tied(convert(model(tie_word_embeddings=False)))


def test_dtype_and_device_arguments():
    config = HymbaConfig(**SMALL)
    assert {p.dtype for p in HymbaForCausalLM(config, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}
    assert {p.device.type for p in HymbaForCausalLM(config, device="meta").parameters()} == {"meta"}


def test_forward_on_the_meta_device():
    m = HymbaForCausalLM(HymbaConfig(**SMALL), device="meta")
    assert m(torch.zeros(2, 9, dtype=torch.int64, device="meta")).logits.shape == (2, 9, SMALL["vocab_size"])
