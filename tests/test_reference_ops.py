"""python_reference's ops against independent forms: other formulas, loops, and torch's own functions."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import python_reference as reference
from python_reference.attention import visible

FLOAT_DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ends(*lengths):
    return torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)


def same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)


# ---- attention ----


@pytest.mark.parametrize("window, num_meta", [(None, 0), (None, 2), (0, 0), (3, 0), (3, 2), (0, 3), (2, 99)])
def test_mask_is_the_published_one(window, num_meta):
    mask = visible(torch.arange(4, 9), torch.arange(9), window, num_meta)
    for i in range(4, 9):
        for j in range(9):
            near = window is None or i - j <= window or j < num_meta
            assert mask[i - 4, j].item() == (j <= i and near), (i, j)


def qkv(length, keys, batch=2, seed=0):
    """Six query heads on two key heads; value heads wider than key heads."""
    return (
        randn(batch, length, 6, 4, seed=seed),
        randn(batch, keys, 2, 4, seed=seed + 1),
        randn(batch, keys, 2, 8, seed=seed + 2),
    )


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("length, keys", [(9, 9), (3, 9), (1, 9)], ids=["full", "chunk", "decode"])
def test_attention_equals_torch(length, keys, scale):
    """Also with the keys repeated for each query head, and lse by its definition."""
    q, k, v = qkv(length, keys)
    mask = visible(torch.arange(keys - length, keys), torch.arange(keys), 3, 2)
    repeated = [t.repeat_interleave(3, dim=2).transpose(1, 2) for t in (k, v)]
    expected = F.scaled_dot_product_attention(q.transpose(1, 2), *repeated, attn_mask=mask, scale=scale)
    out, lse = reference.attention(q, k, v, window=3, num_meta=2, scale=scale, return_lse=True)
    same(out, expected.transpose(1, 2))
    scores = (scale or 0.5) * q.transpose(1, 2) @ repeated[0].mT
    same(lse, scores.masked_fill(~mask, -torch.inf).logsumexp(-1).transpose(1, 2))


def test_attention_packed_equals_single_sequences():
    """More keys than queries, empty sequences of queries and of both, rows behind the last one."""
    lengths, key_lengths = [3, 0, 1, 0], [5, 2, 1, 0]
    singles = [qkv(n, s, batch=1, seed=10 * i) for i, (n, s) in enumerate(zip(lengths, key_lengths, strict=True))]
    q, k, v = (torch.cat([*parts, randn(1, 2, *parts[0].shape[2:])], dim=1) for parts in zip(*singles, strict=True))
    options = {"window": 1, "num_meta": 1, "return_lse": True}
    out, lse = reference.attention(q, k, v, cu_seqlens=ends(*lengths), cu_seqlens_k=ends(*key_lengths), **options)
    expected = [reference.attention(*single, **options) for single in singles]
    same(out[:, :4], torch.cat([o for o, _ in expected], dim=1))
    same(lse[:, :4], torch.cat([one for _, one in expected], dim=1))
    assert out.shape[1] == 6 and (out[:, 4:] == 0).all() and (lse[:, 4:] == 0).all()


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_attention_meta_keys_stand_before_every_sequence(packed):
    (q, k, v), (_, meta_k, meta_v) = qkv(5, 5, batch=1), qkv(2, 2, batch=1, seed=5)
    spans = [(0, 2), (2, 5)] if packed else [(0, 5)]
    expected = [
        reference.attention(
            q[:, a:b], torch.cat([meta_k, k[:, a:b]], 1), torch.cat([meta_v, v[:, a:b]], 1), window=1, num_meta=2
        )
        for a, b in spans
    ]
    cu_seqlens = ends(2, 3) if packed else None
    out = reference.attention(q, k, v, window=1, meta_k=meta_k[0], meta_v=meta_v[0], cu_seqlens=cu_seqlens)
    same(out, torch.cat(expected, dim=1))
    with pytest.raises(ValueError, match="num_meta must be 0"):
        reference.attention(q, k, v, num_meta=1, meta_k=meta_k[0], meta_v=meta_v[0])


@pytest.mark.parametrize("batch, length, keys", [(0, 3, 3), (2, 0, 3), (2, 0, 0)])
def test_attention_of_nothing(batch, length, keys):
    out, lse = reference.attention(*qkv(length, keys, batch), return_lse=True)
    assert out.shape == (batch, length, 6, 8) and lse.shape == (batch, length, 6)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_attention_rounds_scores_and_probabilities(dtype):
    q, k, v = (t.to(dtype) for t in qkv(6, 6))
    out, lse = reference.attention(q, k, v, return_lse=True)
    exact = reference.attention(*(t.double() for t in (q, k, v)))
    assert out.dtype == dtype and lse.dtype == torch.promote_types(dtype, torch.float32)
    assert (out.double() - exact).abs().max() <= 4 * torch.finfo(dtype).eps * v.abs().max()


# ---- causal_conv1d ----


@pytest.mark.parametrize("activation", ["silu", None])
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_conv_equals_torch(width, activation):
    x, weight, bias = randn(2, 5, 3), randn(3, width, seed=1), randn(3, seed=2)
    padded = F.pad(x.mT, (width - 1, 0))
    expected = F.conv1d(padded, weight[:, None], bias, groups=3).mT
    expected = F.silu(expected) if activation else expected
    out, state = reference.causal_conv1d(x, weight, bias, activation=activation, return_final_state=True)
    same(out, expected)
    same(state, padded.mT[:, 5:])
    with pytest.raises(ValueError, match="activation"):
        reference.causal_conv1d(x, weight, bias, activation="relu")


@pytest.mark.parametrize("split", [0, 1, 2, 6])
def test_conv_split_equals_whole(split):
    x, weight, first = randn(2, 6, 3), randn(3, 4, seed=1), randn(2, 3, 3, seed=2)
    whole, end = reference.causal_conv1d(x, weight, initial_state=first, return_final_state=True)
    left, state = reference.causal_conv1d(x[:, :split], weight, initial_state=first, return_final_state=True)
    right, state = reference.causal_conv1d(x[:, split:], weight, initial_state=state, return_final_state=True)
    same(torch.cat([left, right], dim=1), whole)
    same(state, end)


@pytest.mark.parametrize("with_state", [False, True], ids=["zeros", "initial_state"])
def test_conv_packed_equals_single_sequences(with_state):
    lengths, x, weight = [2, 0, 5, 0], randn(1, 9, 3), randn(3, 4, seed=1)
    first = randn(4, 3, 3, seed=2) if with_state else None
    out, state = reference.causal_conv1d(
        x, weight, initial_state=first, return_final_state=True, cu_seqlens=ends(*lengths)
    )
    for i, (start, length) in enumerate(zip(ends(*lengths).tolist(), lengths, strict=False)):
        rows = slice(start, start + length)
        own = first[i : i + 1] if with_state else None
        single, end = reference.causal_conv1d(x[:, rows], weight, initial_state=own, return_final_state=True)
        same(out[:, rows], single)
        same(state[i : i + 1], end)
    assert (out[:, 7:] == 0).all()
    assert torch.equal(state[1], first[1] if with_state else torch.zeros(3, 3, dtype=torch.float64))


# ---- selective_scan ----


def scan_inputs(length, batch=2, channels=3, states=5):
    """x, dt, A, B, C, D, z and dt_bias."""
    token_sizes = {"x": channels, "dt": channels, "B": states, "C": states, "z": channels}
    tokens = {name: randn(batch, length, size, seed=i) for i, (name, size) in enumerate(token_sizes.items())}
    A, D, dt_bias = -randn(channels, states, seed=7).exp(), randn(channels, seed=8), randn(channels, seed=9)
    return tokens | {"A": A, "D": D, "dt_bias": dt_bias}


def rows_of(inputs, rows):
    return {name: t[:, rows] if t.dim() == 3 else t for name, t in inputs.items()}


@pytest.mark.parametrize("left_out", [(), ("D",), ("z",), ("dt_bias",), ("D", "z", "dt_bias")], ids=str)
@pytest.mark.parametrize("softplus", [True, False], ids=["softplus", "plain_dt"])
def test_scan_equals_its_closed_form(softplus, left_out):
    """h_t = sum over s of exp(A * sum of dt after s) dt_s B_s x_s, and the initial state decayed by all of it."""
    inputs = {name: t for name, t in scan_inputs(6).items() if name not in left_out}
    first = randn(2, 3, 5, seed=20)
    dt = inputs["dt"] + inputs.get("dt_bias", 0)
    dt = torch.log1p(dt.exp()) if softplus else dt
    total = dt.cumsum(1)
    expected = []
    for t in range(6):
        h = torch.exp(total[:, t, :, None] * inputs["A"]) * first
        for s in range(t + 1):
            decay = torch.exp((total[:, t] - total[:, s])[..., None] * inputs["A"])
            h = h + decay * (dt * inputs["x"])[:, s, :, None] * inputs["B"][:, s, None]
        expected.append((h * inputs["C"][:, t, None]).sum(-1))
    y = torch.stack(expected, dim=1) + inputs.get("D", 0) * inputs["x"]
    y = y * F.silu(inputs["z"]) if "z" in inputs else y
    out, state = reference.selective_scan(**inputs, dt_softplus=softplus, initial_state=first, return_final_state=True)
    same(out, y)
    same(state, h)


@pytest.mark.parametrize("split", [0, 1, 4, 6])
def test_scan_split_equals_whole(split):
    inputs = scan_inputs(6)
    whole, end = reference.selective_scan(**inputs, return_final_state=True)
    left, state = reference.selective_scan(**rows_of(inputs, slice(0, split)), return_final_state=True)
    right, state = reference.selective_scan(
        **rows_of(inputs, slice(split, 6)), initial_state=state, return_final_state=True
    )
    same(torch.cat([left, right], dim=1), whole)
    same(state, end)


@pytest.mark.parametrize("with_state", [False, True], ids=["zeros", "initial_state"])
def test_scan_packed_equals_single_sequences(with_state):
    lengths, inputs = [2, 0, 5, 0], scan_inputs(9, batch=1)
    first = randn(4, 3, 5, seed=20) if with_state else None
    out, state = reference.selective_scan(
        **inputs, initial_state=first, return_final_state=True, cu_seqlens=ends(*lengths)
    )
    for i, (start, length) in enumerate(zip(ends(*lengths).tolist(), lengths, strict=False)):
        rows = slice(start, start + length)
        own = first[i : i + 1] if with_state else None
        single, end = reference.selective_scan(**rows_of(inputs, rows), initial_state=own, return_final_state=True)
        same(out[:, rows], single)
        same(state[i : i + 1], end)
    assert (out[:, 7:] == 0).all()
    assert torch.equal(state[1], first[1] if with_state else torch.zeros(3, 5, dtype=torch.float64))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_scan_and_conv_round_once(dtype):
    """Low-precision inputs, float32 arithmetic and states."""
    inputs = {name: t.to(dtype) for name, t in scan_inputs(8).items()}
    out, state = reference.selective_scan(**inputs, return_final_state=True)
    exact, exact_state = reference.selective_scan(
        **{name: t.double() for name, t in inputs.items()}, return_final_state=True
    )
    assert out.dtype == dtype and state.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(out.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)
    torch.testing.assert_close(state.double(), exact_state, rtol=1e-5, atol=1e-5)

    x, weight = inputs["x"], randn(3, 4, seed=1).to(dtype)
    out, state = reference.causal_conv1d(x, weight, return_final_state=True)
    assert out.dtype == state.dtype == dtype
    exact = reference.causal_conv1d(x.double(), weight.double())
    torch.testing.assert_close(out.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


# ---- Updates ----

SLOTS = pytest.mark.parametrize(
    "slots_in, slots_out",
    [(None, None), ([3, -1, 0], None), ([3, 1, -1], [2, -1, 4])],
    ids=["rows", "padding_row", "fork"],
)


def check_update(update, state, one_row, slots_in, slots_out):
    """update(state, slots): changes state, gives [3, ...]; one_row(b, state of b): what row b must give."""
    before, to_slots = state.clone(), lambda s: None if s is None else torch.tensor(s, dtype=torch.int32)
    out = update(state, slots_in=to_slots(slots_in), slots_out=to_slots(slots_out))
    expected = before.clone()
    for b in range(3):
        read = b if slots_in is None else slots_in[b]
        write = read if slots_out is None else slots_out[b]
        if -1 in (read, write):
            assert (out[b] == 0).all()
            continue
        row, expected[write : write + 1] = one_row(b, before[read : read + 1])
        same(out[b], row[0].reshape(out[b].shape))
    same(state, expected)


@SLOTS
@pytest.mark.parametrize("tokens", [None, 1, 3])
def test_conv_update_equals_the_convolution(tokens, slots_in, slots_out):
    x, weight, bias = randn(3, tokens or 1, 2), randn(2, 4, seed=1), randn(2, seed=2)
    check_update(
        lambda state, **slots: reference.causal_conv1d_update(
            x[:, 0] if tokens is None else x, state, weight, bias, **slots
        ),
        randn(5, 3, 2, seed=3),
        lambda b, state: reference.causal_conv1d(
            x[b : b + 1], weight, bias, initial_state=state, return_final_state=True
        ),
        slots_in,
        slots_out,
    )


@SLOTS
@pytest.mark.parametrize("tokens", [None, 1, 3])
def test_state_update_equals_the_scan(tokens, slots_in, slots_out):
    inputs = scan_inputs(tokens or 1, batch=3)
    given = {name: t[:, 0] if tokens is None and t.dim() == 3 else t for name, t in inputs.items()}
    one_row = lambda b: {name: t[b : b + 1] if t.dim() == 3 else t for name, t in inputs.items()}  # noqa: E731
    check_update(
        lambda state, **slots: reference.selective_state_update(state, **given, **slots),
        randn(5, 3, 5, seed=20),
        lambda b, state: reference.selective_scan(**one_row(b), initial_state=state, return_final_state=True),
        slots_in,
        slots_out,
    )


def update_calls():
    """Each update op on three rows, as a function of the state, its slots and the inputs' overrides."""
    conv = {"x": randn(3, 2), "weight": randn(2, 4, seed=1)}
    scan = {name: t[:, 0] if t.dim() == 3 else t for name, t in scan_inputs(1, batch=3).items()}
    return {
        "causal_conv1d_update": (reference.causal_conv1d_update, randn(5, 3, 2, seed=3), conv),
        "selective_state_update": (reference.selective_state_update, randn(5, 3, 5, seed=20), scan),
    }


@pytest.mark.parametrize("op", update_calls())
@pytest.mark.parametrize(
    "slots_in, slots_out",
    [([0, 1, 0], None), ([0, 1, 2], [3, 4, 3]), ([0, 1, 2], [1, 3, 4])],
    ids=["same_row_twice", "written_twice", "written_and_read"],
)
def test_update_refuses_slots_that_depend_on_the_order_of_rows(op, slots_in, slots_out):
    update, state, inputs = update_calls()[op]
    before = state.clone()
    slots = [None if s is None else torch.tensor(s, dtype=torch.int32) for s in (slots_in, slots_out)]
    with pytest.raises(ValueError, match="slots_out must name each slot once, and none that another row reads"):
        update(state=state, **inputs, slots_in=slots[0], slots_out=slots[1])
    assert torch.equal(state, before)


@pytest.mark.parametrize("op", update_calls())
@pytest.mark.parametrize("name", ["x", "state"])
def test_update_refuses_inputs_that_require_grad(op, name):
    update, state, inputs = update_calls()[op]
    inputs = inputs | {"state": state}
    inputs[name].requires_grad_()
    with pytest.raises(ValueError, match=f"{op}: {name} must not require grad"):
        update(**inputs)
    with torch.no_grad():
        update(**inputs)


# ---- Norms and rotary ----


def test_norms_equal_torch():
    attn, ssm, w1, w2, proj = randn(2, 3, 8), randn(2, 3, 8, seed=1), randn(8, seed=2), randn(8, seed=3), randn(5, 8)
    norm1, norm2 = F.rms_norm(attn, [8], w1, eps=1e-2), F.rms_norm(ssm, [8], w2, eps=1e-2)
    same(reference.rms_norm(attn, w1, eps=1e-2), norm1)
    same(reference.norm_average(attn, ssm, w1, w2, eps=1e-2), (norm1 + norm2) / 2)
    projected = F.linear((norm1 + norm2) / 2, proj)
    same(reference.norm_average_project(attn, ssm, w1, w2, proj, eps=1e-2), projected)


def test_norm_rounds_before_the_weight():
    x, weight = randn(4, 8).bfloat16(), randn(8, seed=1).float()
    normalised = F.rms_norm(x.float(), [8], eps=1e-6).bfloat16()
    assert torch.equal(reference.rms_norm(x, weight), (normalised.float() * weight).bfloat16())


@pytest.mark.parametrize("per_row", [False, True], ids=["positions_t", "positions_bt"])
def test_rotary_is_a_complex_rotation(per_row):
    x, inv_freq = randn(2, 3, 4, 6), torch.tensor([1.0, 0.1, 0.01])
    positions = torch.tensor([[0, 7, 1000], [3, 4, 5]] if per_row else [0, 7, 1000], dtype=torch.int32)
    angle = (positions[..., None].float() * inv_freq).double()
    turned = torch.complex(x[..., :3], x[..., 3:]) * torch.polar(torch.ones_like(angle), angle)[..., None, :]
    same(reference.rotary(x, positions, inv_freq), torch.cat([turned.real, turned.imag], dim=-1))


# ---- Gradients flow through the packed forms, which write into slices ----


def test_packed_gradients():
    q, k, v = (t.requires_grad_() for t in qkv(4, 4, batch=1))
    cu_seqlens = ends(1, 0, 2)
    assert torch.autograd.gradcheck(
        lambda *args: reference.attention(*args, window=1, cu_seqlens=cu_seqlens, return_lse=True), (q, k, v)
    )
    inputs = {name: t.requires_grad_() for name, t in scan_inputs(4, batch=1, channels=2, states=2).items()}
    assert torch.autograd.gradcheck(
        lambda *args: reference.selective_scan(**dict(zip(inputs, args, strict=True)), cu_seqlens=cu_seqlens),
        tuple(inputs.values()),
    )
