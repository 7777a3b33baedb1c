"""Pieces of a call: every token once and in order, and the bits of the uncut call."""

from __future__ import annotations

import contextlib
import itertools
import re
from itertools import pairwise

import pytest
import torch

from hymba_ops import HybridMixer, HymbaConfig, HymbaLayer, mixer_call
from hymba_ops.pieces import cut, may_cut

from kernel_cases import cu_seqlens, own_products
from model_cases import BORROWER, GLOBAL, PRODUCER, SMALL, randn, randomise

# ---- cut ----


def tokens_of(pieces, batch, length):
    """(row, token) of every token in the order in which the pieces pass."""
    return [
        (row, token) for piece in pieces for row in range(batch)[piece.rows] for token in range(length)[piece.tokens]
    ]


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("most", [None, 1, 2, 5, 6, 20, 1000])
def test_dense_pieces(most, batch):
    for length in (0, 1, 2, 4, 5, 6, 7, 10, 11, 21, 40):
        pieces = cut(batch, length, None, most=most)
        assert tokens_of(pieces, batch, length) == list(itertools.product(range(batch), range(length)))
        before = None
        for piece in pieces:
            rows, tokens = range(batch)[piece.rows], range(length)[piece.tokens]
            assert piece.states == piece.rows and piece.cu_seqlens is None and piece.keys_from == 0
            if most is not None:
                assert len(rows) * len(tokens) <= most
                assert len(rows) == 1 or tokens == range(length)
            assert piece.continues == (tokens.start > 0)
            assert piece.ends == (tokens.stop == length)
            assert not piece.continues or (range(batch)[before.rows], before.ends) == (rows, False)
            before = piece
        check_states(pieces, batch)


def check_states(pieces, sequences):
    """The final states, put together, are those of the sequences in order."""
    ended = [state for piece in pieces if piece.ends for state in range(sequences)[piece.states]]
    assert ended == list(range(sequences))


PACKED = [
    (),
    (0,),
    (0, 0),
    (5,),
    (3, 4, 2),
    (0, 3, 0, 0, 4),
    (4, 0),
    (12, 1, 1, 13, 0),
    (1,) * 9,
    (6, 6, 6),
    (2, 30, 2),
]


@pytest.mark.parametrize("tail", [0, 1, 9])
@pytest.mark.parametrize("most", [None, 1, 2, 5, 6, 7, 12, 1000])
@pytest.mark.parametrize("lengths", PACKED, ids=str)
def test_packed_pieces(lengths, most, tail):
    starts, length = cu_seqlens(*lengths), sum(lengths) + tail
    pieces = cut(1, length, starts, most=most)
    assert tokens_of(pieces, 1, length) == [(0, token) for token in range(length)]
    check_states(pieces, len(lengths))
    if most is None or length <= most:
        assert len(pieces) == 1 and pieces[0].cu_seqlens is starts
        return
    begins, end = starts.tolist(), sum(lengths)
    for piece in pieces:
        sequences = range(len(lengths))[piece.states]
        tokens = range(length)[piece.tokens]
        if not sequences:  # rows of no sequence
            assert tokens == range(end, length) and piece.cu_seqlens.tolist() == [0] and piece.ends
            continue
        assert piece.keys_from == begins[sequences.start]
        if piece.cu_seqlens is None:  # a part of one sequence
            assert len(sequences) == 1 and 0 < len(tokens) <= most < lengths[sequences.start]
            assert piece.continues == (tokens.start > piece.keys_from)
            assert piece.ends == (tokens.stop == begins[sequences.stop])
        else:
            assert piece.cu_seqlens.dtype == torch.int32 and piece.ends and not piece.continues
            inside = [begins[s] - tokens.start for s in range(sequences.start, sequences.stop + 1)]
            assert piece.cu_seqlens.tolist() == inside and inside[-1] == len(tokens)


BAD_STARTS = [
    ([1, 6], torch.int32, "cu_seqlens must start at 0, got 1"),
    ([0, 4, 3], torch.int32, "cu_seqlens must never decrease, got 3 after 4 at index 2"),
    ([0, 4, 8], torch.int32, "cu_seqlens must end at or below hidden's 7 rows, got 8"),
    ([0, 7], torch.int64, "cu_seqlens must be int32 of shape [sequences + 1], got torch.int64 of [2]"),
    ([[0, 7]], torch.int32, "cu_seqlens must be int32 of shape [sequences + 1], got torch.int32 of [1, 2]"),
    ([], torch.int32, "cu_seqlens must be int32 of shape [sequences + 1], got torch.int32 of [0]"),
]


@pytest.mark.parametrize("starts,dtype,message", BAD_STARTS)
def test_bad_cu_seqlens_are_refused(starts, dtype, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        cut(1, 7, torch.tensor(starts, dtype=dtype), most=3)


@pytest.mark.parametrize("starts,dtype,message", BAD_STARTS)
@pytest.mark.parametrize("most", [3, 384])
def test_a_mixer_refuses_them_cut_or_not(most, starts, dtype, message, monkeypatch):
    monkeypatch.setattr(mixer_call, "PIECE_TOKENS", most)
    with torch.no_grad(), pytest.raises(ValueError, match="cu_seqlens"):
        make(HybridMixer)(randn(1, 7, 48), cu_seqlens=torch.tensor(starts, dtype=dtype))


def test_where_pieces_pay():
    hidden = torch.zeros(1)
    assert not may_cut(hidden)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert may_cut(hidden) and not may_cut(hidden.to("meta"))


# ---- Modules ----


def make(kind, layer=PRODUCER, dtype=torch.float32, **changes):
    return randomise(kind(HymbaConfig(**SMALL | changes), layer)).to(dtype)


def flat(result):
    out, kv, state = result
    return [out, *kv, *state]


def allowed_difference(dtype):
    """No difference where the kernels' own products are used; where torch's GEMMs are, rounding."""
    rounding = {torch.float32: {"rtol": 1e-4, "atol": 1e-4}, torch.bfloat16: {"rtol": 3e-2, "atol": 3e-2}}[dtype]
    return {"rtol": 0, "atol": 0} if own_products(dtype) else rounding


def assert_cutting_changes_nothing(module, hidden, monkeypatch, pieces=(1, 5, 8, 11), **kwargs):
    """The same bits in pieces of any length as in one; where torch's GEMMs are used, the same up to rounding."""
    with torch.no_grad():
        monkeypatch.setattr(mixer_call, "PIECE_TOKENS", None)
        expected = flat(module(hidden, **kwargs))
    for most, context in itertools.product(pieces, (torch.no_grad, torch.inference_mode)):
        monkeypatch.setattr(mixer_call, "PIECE_TOKENS", most)
        with context():
            actual = flat(module(hidden, **kwargs))
        for name, a, e in zip(("out", "keys", "values", "conv state", "SSM state"), actual, expected, strict=True):
            torch.testing.assert_close(a, e, **allowed_difference(hidden.dtype), msg=lambda text, name=name, most=most:
                                       f"{name} in pieces of {most}: {text}")  # fmt: skip


def keys_values(module, batch, length, dtype):
    config = module.mamba.config if isinstance(module, HymbaLayer) else module.config
    heads = config.num_key_value_heads
    return (
        randn(batch, length, heads, config.head_dim, dtype=dtype, seed=2),
        randn(batch, length, heads, config.value_head_dim, dtype=dtype, seed=3),
    )


def states(sequences, dtype):
    return randn(sequences, 3, 96, dtype=dtype, seed=5), randn(sequences, 96, 4, seed=6)


KINDS = [HybridMixer, HymbaLayer]
LAYERS = [pytest.param(i, id=n) for i, n in ((GLOBAL, "global"), (PRODUCER, "sliding"), (BORROWER, "borrower"))]
DTYPES = [pytest.param(torch.float32, id="fp32"), pytest.param(torch.bfloat16, id="bf16")]
every_module = [
    pytest.mark.parametrize("kind", KINDS),
    pytest.mark.parametrize("layer", LAYERS),
    pytest.mark.parametrize("dtype", DTYPES),
]


def on_every_module(test):
    for mark in every_module:
        test = mark(test)
    return test


@on_every_module
@pytest.mark.parametrize("batch,length", [(1, 23), (3, 13), (3, 4)])
def test_dense(batch, length, kind, layer, dtype, monkeypatch):
    module = make(kind, layer, dtype)
    kv = keys_values(module, batch, length, dtype) if layer == BORROWER else None
    assert_cutting_changes_nothing(module, randn(batch, length, 48, dtype=dtype), monkeypatch, kv=kv)


@on_every_module
def test_continuing(kind, layer, dtype, monkeypatch):
    """Initial states, and earlier keys and values; positions that follow from them or are the caller's."""
    module, batch, length, earlier = make(kind, layer, dtype), 3, 13, 6
    kv = keys_values(module, batch, earlier + length if layer == BORROWER else earlier, dtype)
    rows = torch.arange(100, 100 + length, dtype=torch.int32)
    for positions in (None, rows, rows + torch.tensor([[0], [7], [40]], dtype=torch.int32)):
        assert_cutting_changes_nothing(
            module, randn(batch, length, 48, dtype=dtype), monkeypatch, kv=kv, initial_state=states(batch, dtype),
            positions=positions,
        )  # fmt: skip


@on_every_module
@pytest.mark.parametrize("lengths", [(5, 0, 7, 4), (), (0, 0), (13, 2, 0), (0, 1, 1, 1, 12, 6)], ids=str)
@pytest.mark.parametrize("tail", [0, 3])
def test_packed(tail, lengths, kind, layer, dtype, monkeypatch):
    module, length = make(kind, layer, dtype), sum(lengths) + tail
    kv = keys_values(module, 1, length, dtype) if layer == BORROWER else None
    hidden = randn(1, length, 48, dtype=dtype)
    for initial, positions in (
        (None, None),
        (states(len(lengths), dtype), torch.arange(length, dtype=torch.int32)[None] * 2),
    ):
        assert_cutting_changes_nothing(
            module, hidden, monkeypatch, cu_seqlens=cu_seqlens(*lengths), kv=kv, initial_state=initial,
            positions=positions,
        )  # fmt: skip


SWITCHES = [{"mamba_proj_bias": True}, {"mlp_hidden_act": "relu2"}, {"intermediate_size": 0}, {"kq_norm": "rms"},
            {"rope": False}, {"mamba_d_conv": 1, "mamba_expand": 1}, {"mamba_inner_layernorms": False}]  # fmt: skip


@pytest.mark.parametrize("changes", SWITCHES, ids=lambda c: "-".join(c))
def test_switches(changes, monkeypatch):
    assert_cutting_changes_nothing(make(HymbaLayer, **changes), randn(2, 17, 48), monkeypatch)


def test_layer_longer_than_the_kernels_blocks(monkeypatch):
    """Pieces cross the scan's blocks, attention's tiles and segments, and the product's blocks of rows."""
    for layer in (GLOBAL, PRODUCER):
        module = make(HymbaLayer, layer, sliding_window=200)
        assert_cutting_changes_nothing(module, randn(1, 1300, 48), monkeypatch, pieces=(37, 384, 512))


@pytest.mark.parametrize("kind", KINDS)
def test_results_do_not_keep_the_pieces_apart(kind, monkeypatch):
    """A later call continues from the keys, values and states that a cut call returns."""
    module, hidden = make(kind), randn(2, 21, 48)
    with torch.no_grad():
        monkeypatch.setattr(mixer_call, "PIECE_TOKENS", 4)
        out, kv, state = module(hidden[:, :15])
        rest = module(hidden[:, 15:], kv=kv, initial_state=state)
        assert torch.equal(rest[1][0][:, :15], kv[0]) and all(t.is_contiguous() for t in (out, *kv, *state))
        whole = module(hidden)
    for a, e in zip([torch.cat([out, rest[0]], 1), *flat(rest)[1:]], flat(whole), strict=True):
        torch.testing.assert_close(a, e, **allowed_difference(torch.float32))


def test_a_call_that_records_gradients_is_not_cut(monkeypatch):
    monkeypatch.setattr(mixer_call, "PIECE_TOKENS", 4)
    hidden, counts = randn(1, 21, 48), []
    for context in (contextlib.nullcontext(), torch.no_grad()):
        with context:
            counts.append(len(mixer_call.MixerCall(make(HybridMixer), hidden, None, None, None, None).pieces))
    assert counts == [1, 6]


def test_positions_follow_each_sequence():
    starts = cu_seqlens(3, 0, 4)
    positions = mixer_call.default_positions(9, starts, torch.device("cpu"))
    expected = [row - begin for begin, end in pairwise(starts.tolist()) for row in range(begin, end)]
    assert positions[:7].tolist() == expected
