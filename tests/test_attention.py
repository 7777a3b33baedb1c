"""attention against python_reference: every mask, layout, packing and size around its tiles."""

from __future__ import annotations

import itertools
from itertools import pairwise

import pytest
import torch

import python_reference as reference
from hymba_ops import functional as F

from attention_cases import LARGE_SCORES, check, make_inputs, with_large_scores
from kernel_cases import (
    DEVICE,
    DTYPES,
    LAYOUTS,
    assert_compiles_once,
    assert_threads_do_not_matter,
    bad_input,
    cu_seqlens,
    randn,
    strided,
)
from tolerance import assert_close

KEY_TILE = 128  # csrc/cpu/attention.cpp
SEGMENT = 512
SPLIT_QUERIES = 16  # up to so many queries, segments are work items of their own
QUERY_TILE = 36  # 192 rows / 5 heads a group, down to a multiple of 6 (AVX2)


MASKS = [
    pytest.param({}, id="global"),
    pytest.param({"window": 16, "num_meta": 8}, id="window16-meta8"),
    pytest.param({"window": 0, "num_meta": 0}, id="window0"),
    pytest.param({"window": 70, "num_meta": 130}, id="window70-meta130"),
    pytest.param({"window": 5, "num_meta": 1000}, id="meta-beyond-S"),
    pytest.param({"window": 10**12, "num_meta": 3}, id="window-huge"),
]


@pytest.mark.sm90
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mask", MASKS)
def test_matches_reference(ops, mask, layout, dtype):
    check(ops, *make_inputs(150, B=2, dtype=dtype, layout=layout), dtype=dtype, **mask)


@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (6, 2), (25, 5), (40, 1)], ids=lambda h: f"heads{h[0]}over{h[1]}")
@pytest.mark.parametrize(
    "dims", [(64, 128), (1, 1), (17, 33), (256, 256), (7, 250)], ids=lambda d: f"dims{d[0]}x{d[1]}"
)
def test_heads_and_dims(ops, heads, dims):
    check(ops, *make_inputs(19, heads=heads, dims=dims), dtype=torch.float32, window=9, num_meta=4)


def test_more_heads_than_rows_of_a_tile(ops):
    check(ops, *make_inputs(3, heads=(200, 1), dims=(8, 8)), dtype=torch.float32, window=1)


@pytest.mark.parametrize(
    "T", [1, 2, QUERY_TILE - 1, QUERY_TILE, QUERY_TILE + 1, KEY_TILE - 1, KEY_TILE, KEY_TILE + 1, 129]
)
@pytest.mark.parametrize("num_meta", [0, 1, KEY_TILE - 1, KEY_TILE, KEY_TILE + 1])
def test_sizes_around_tiles(ops, T, num_meta):
    check(ops, *make_inputs(T), dtype=torch.float32, window=KEY_TILE - 2, num_meta=num_meta)


@pytest.mark.parametrize("window", [None, KEY_TILE - 1, KEY_TILE, KEY_TILE + 1])
@pytest.mark.parametrize("T,S", [(1, 1), (1, 200), (16, 200), (33, 97), (0, 5)], ids=lambda n: str(n))
def test_fewer_queries_than_keys(ops, T, S, window):
    """Chunked prefill and decode: the queries are the last T of the S positions."""
    check(ops, *make_inputs(T, S, B=2), dtype=torch.float32, window=window, num_meta=3)


LONG_MASKS = [
    pytest.param({}, id="global"),
    pytest.param({"window": 600, "num_meta": 3}, id="window600-meta3"),
    pytest.param({"window": SEGMENT, "num_meta": SEGMENT + 1}, id="window512-meta513"),
    pytest.param({"window": 20, "num_meta": 130}, id="window20-meta130"),
]


@pytest.mark.parametrize("mask", LONG_MASKS)
@pytest.mark.parametrize("T", [1, SPLIT_QUERIES, SPLIT_QUERIES + 1, 60])
@pytest.mark.parametrize("S", [SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT, 2 * SEGMENT + 1, 1500, 2600])
def test_sizes_around_segments(S, T, mask):
    check(F, *make_inputs(T, S, B=2, heads=(4, 2)), dtype=torch.float32, **mask)


@pytest.mark.sm90
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("T", [3, 30])
def test_segments_in_every_dtype(ops, T, dtype):
    check(ops, *make_inputs(T, 1100, dtype=dtype), dtype=dtype, window=700, num_meta=5)


@pytest.mark.parametrize("mask", LONG_MASKS)
@pytest.mark.parametrize("heads", [(2, 2), (5, 1)], ids=["group1", "group5"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_do_not_depend_on_how_a_sequence_is_cut(dtype, heads, mask):
    """Queries [a, b) on the keys [0, b) have the bits, lse's too, that they have in the whole sequence."""
    q, k, v = make_inputs(1500, heads=heads, dtype=dtype)
    out, lse = F.attention(q, k, v, return_lse=True, **mask)
    ends = 1, 17, KEY_TILE, KEY_TILE + 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 1024, 1030, 1500
    for b, T in itertools.product(ends, (1, 2, 5, SPLIT_QUERIES, SPLIT_QUERIES + 1, 100)):
        rows = slice(max(b - T, 0), b)
        part, part_lse = F.attention(q[:, rows], k[:, :b], v[:, :b], return_lse=True, **mask)
        assert torch.equal(part, out[:, rows]), (b, T)
        assert torch.equal(part_lse, lse[:, rows]), (b, T)


# ---- CUDA: blocks of 64 or 32 rows (query, head of the group), tiles of 64 or 32 keys ----


@pytest.mark.sm90
@pytest.mark.parametrize("mask", [{}, {"window": 90, "num_meta": 3}], ids=["global", "window90-meta3"])
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_rows_do_not_depend_on_calls_around_tiles(ops, dtype, mask):
    q, k, v = make_inputs(200, dtype=dtype)
    out, lse = ops.attention(q, k, v, return_lse=True, **mask)
    for b, T in itertools.product((1, 31, 32, 64, 65, 200), (1, 13, 40)):
        rows = slice(max(b - T, 0), b)
        part, part_lse = ops.attention(q[:, rows], k[:, :b], v[:, :b], return_lse=True, **mask)
        assert torch.equal(part, out[:, rows]), (b, T)
        assert torch.equal(part_lse, lse[:, rows]), (b, T)


@pytest.mark.sm90
@pytest.mark.parametrize("heads", [(1, 1), (10, 2)], ids=lambda h: f"heads{h[0]}over{h[1]}")
@pytest.mark.parametrize(
    "dims",
    [(64, 128), (64, 64), (80, 128), (256, 256), (17, 33), (7, 250), (72, 8)],
    ids=lambda d: f"dims{d[0]}x{d[1]}",
)
def test_heads_and_dims_in_bfloat16(ops, heads, dims):
    inputs = make_inputs(37, heads=heads, dims=dims, dtype=torch.bfloat16)
    check(ops, *inputs, dtype=torch.bfloat16, window=9, num_meta=4)


@pytest.mark.sm90
@pytest.mark.parametrize("window", [20, 62, 63, 64, 65, None])
@pytest.mark.parametrize("num_meta", [0, 1, 63, 64, 65, 130])
def test_masks_around_tiles(ops, num_meta, window):
    check(ops, *make_inputs(211, heads=(2, 1), dtype=torch.bfloat16), dtype=torch.bfloat16, window=window,
          num_meta=num_meta)  # fmt: skip


@pytest.mark.sm90
@pytest.mark.parametrize("T", [1, 2, 12, 13, 14, 26, 63, 64, 65, 129, 1300])
def test_lengths_around_tiles(ops, T):
    inputs = make_inputs(T, dims=(64, 128), dtype=torch.bfloat16)
    check(ops, *inputs, dtype=torch.bfloat16, window=100, num_meta=5)


@pytest.mark.sm90
@pytest.mark.parametrize("where", ["q", "k", "v"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_nan_and_inf_in_bfloat16(ops, where, value):
    q, k, v = inputs = make_inputs(100, dtype=torch.bfloat16)
    {"q": q[:, 60, 2], "k": k[:, 0, 0], "v": v[:, 0, 0]}[where][..., 3] = value  # key 0 is in the prefix
    mask = {"window": 10, "num_meta": 4}
    # torch's bfloat16 products on a CPU spread NaN to other rows; its float32 ones do not.
    plain = reference.attention(*(x.float() for x in inputs), **mask).to(torch.bfloat16)
    exact = reference.attention(*(x.double() for x in inputs), **mask)
    assert_close(ops.attention(*inputs, **mask), plain, exact, dtype=torch.bfloat16)


@pytest.mark.sm90
@pytest.mark.parametrize("scale", [0.0, -0.5, 3.0, 40.0])
def test_scale_in_bfloat16(ops, scale):
    check(ops, *make_inputs(70, dtype=torch.bfloat16), dtype=torch.bfloat16, window=20, num_meta=2, scale=scale)


@pytest.mark.parametrize("T", [1, SPLIT_QUERIES, 40])
def test_a_batch_equals_its_rows(ops, T):
    """Bits do not depend on how many items there are, which decides whether segments are items of their own."""
    B = 40 if ops is F else 3  # the CPU's reason is none of a block's
    q, k, v = make_inputs(T, 1100, B=B, heads=(4, 2), dims=(8, 8))
    out, lse = ops.attention(q, k, v, window=900, num_meta=2, return_lse=True)
    for b in (0, 1, B - 1):
        single = ops.attention(*(x[b : b + 1] for x in (q, k, v)), window=900, num_meta=2, return_lse=True)
        assert torch.equal(single[0][0], out[b]) and torch.equal(single[1][0], lse[b])


def test_packed_decoding_equals_singles_bitwise(ops):
    """A few queries of each sequence against keys of several segments, separate meta keys before them."""
    lengths_q, lengths_k = (1, 0, 5, 2), (1100, 40, 5, 700)
    starts_q, starts_k = cu_seqlens(*lengths_q), cu_seqlens(*lengths_k)
    q, k, v = make_inputs(sum(lengths_q), sum(lengths_k), heads=(10, 2))
    extra = {"meta_k": randn(9, 2, 16, seed=5), "meta_v": randn(9, 2, 32, seed=6), "window": 600}
    packed = check(ops, q, k, v, dtype=torch.float32, cu_seqlens=starts_q, cu_seqlens_k=starts_k, **extra)
    for (q0, q1), (k0, k1) in zip(pairwise(starts_q.tolist()), pairwise(starts_k.tolist()), strict=True):
        single = ops.attention(q[:, q0:q1], k[:, k0:k1], v[:, k0:k1], return_lse=True, **extra)
        assert torch.equal(packed[0][:, q0:q1], single[0]) and torch.equal(packed[1][:, q0:q1], single[1])


@pytest.mark.sm90
@pytest.mark.parametrize("dtype", DTYPES)
def test_separate_meta_keys_equal_concatenated_ones(ops, dtype):
    q, k, v = make_inputs(90, B=2, heads=(10, 2), dtype=dtype)
    meta_k, meta_v = randn(13, 2, 16, dtype=dtype, seed=7), randn(13, 2, 32, dtype=dtype, seed=8)
    out, lse = check(ops, q, k, v, dtype=dtype, window=20, meta_k=meta_k, meta_v=meta_v)
    check(ops, q, k, v, dtype=dtype, window=20, meta_k=strided(meta_k), meta_v=strided(meta_v))
    both_k, both_v = (torch.cat([m.expand(2, -1, -1, -1), x], 1) for m, x in ((meta_k, k), (meta_v, v)))
    joined = ops.attention(q, both_k, both_v, window=20, num_meta=13, return_lse=True)
    assert torch.equal(out, joined[0]) and torch.equal(lse, joined[1])


@pytest.mark.sm90
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_matches_reference(ops, layout, dtype):
    starts = cu_seqlens(70, 0, 1, 33)
    q, k, v = make_inputs(110, dtype=dtype, layout=layout)  # 6 rows belong to no sequence
    out, lse = check(ops, q, k, v, dtype=dtype, window=20, num_meta=5, cu_seqlens=starts)
    assert (out[:, 104:] == 0).all() and (lse[:, 104:] == 0).all()


@pytest.mark.parametrize("meta", [False, True], ids=["num_meta", "separate-meta"])
def test_packed_equals_singles_bitwise(ops, meta):
    lengths_q, lengths_k = (40, 0, 7, 100), (40, 3, 90, 100)
    q, k, v = make_inputs(147, 233, heads=(10, 2))
    extra = {"meta_k": randn(9, 2, 16, seed=5), "meta_v": randn(9, 2, 32, seed=6)} if meta else {"num_meta": 9}
    starts_q, starts_k = cu_seqlens(*lengths_q), cu_seqlens(*lengths_k)
    packed = ops.attention(q, k, v, window=30, cu_seqlens=starts_q, cu_seqlens_k=starts_k, **extra)
    for i in range(len(lengths_q)):
        rows_q, rows_k = slice(*starts_q[i : i + 2].tolist()), slice(*starts_k[i : i + 2].tolist())
        single = ops.attention(q[:, rows_q], k[:, rows_k], v[:, rows_k], window=30, **extra)
        assert torch.equal(packed[:, rows_q], single)


def test_neighbours_do_not_matter(ops):
    """NaN in the next packed sequence, and in the next row of the batch, never reaches this one."""
    q, k, v = make_inputs(80)
    clean = ops.attention(q[:, :50], k[:, :50], v[:, :50], window=10)
    for x in (q, k, v):
        x[:, 50:] = float("nan")
    packed = ops.attention(q, k, v, window=10, cu_seqlens=cu_seqlens(50, 30))
    assert torch.equal(packed[:, :50], clean)
    assert packed[:, 50:].isnan().all()


@pytest.mark.parametrize("where", ["q", "k", "v"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_nan_and_inf_stand_where_the_reference_has_them(ops, where, value):
    q, k, v = make_inputs(100)
    # In key 0 of the prefix, which all queries see: elsewhere a plain masked product spreads 0 * NaN to the others.
    if where == "q":
        q[:, 60, 2, 3] = value
    elif where == "k":
        k[:, 0, 0, 3] = value
    else:
        v[:, 0, 0, 3] = value
    check(ops, q, k, v, dtype=torch.float32, window=10, num_meta=4)


@pytest.mark.parametrize("position", [0, 100, SEGMENT, 1099])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_nan_and_inf_in_any_segment(ops, value, position):
    q, k, v = make_inputs(2, 1100)
    k[:, position, 0, 3] = value
    check(ops, q[:, 1:], k, v, dtype=torch.float32)  # one query, which sees them all


@pytest.mark.parametrize("scale", [0.0, -0.5, 3.0, 40.0])
def test_scale(ops, scale):
    check(ops, *make_inputs(70), dtype=torch.float32, window=20, num_meta=2, scale=scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("largest", LARGE_SCORES)
def test_large_scores(ops, largest, dtype):
    q, k, v = with_large_scores(*make_inputs(150, dtype=dtype), largest)
    check(ops, q, k, v, dtype=dtype, scale=1.0)
    check(ops, q, k, v, dtype=dtype, scale=1.0, window=70, num_meta=3)


def test_threads_do_not_change_bits():
    q, k, v = make_inputs(300, heads=(10, 2), dims=(64, 128))
    assert_threads_do_not_matter(lambda: F.attention(q, k, v, window=100, num_meta=20))
    few, k, v = make_inputs(3, 1500, heads=(10, 2), dims=(64, 128))
    assert_threads_do_not_matter(lambda: F.attention(few, k, v, num_meta=20))


def test_empty_batch(ops):
    q, k, v = make_inputs(5, B=0)
    assert ops.attention(q, k, v).shape == (0, 5, 5, 32)


OPCHECK_CASES = [
    pytest.param({}, id="global"),
    pytest.param({"window": 7, "num_meta": 2, "return_lse": True}, id="window-lse"),
    pytest.param({"packed": True, "window": 7}, id="packed"),
    pytest.param({"meta": True, "window": 7, "scale": 0.3}, id="separate-meta"),
]


@pytest.mark.parametrize("case", OPCHECK_CASES)
def test_opcheck(case):
    q, k, v = make_inputs(20)
    meta = (randn(3, 1, 16), randn(3, 1, 32)) if case.get("meta") else (None, None)
    starts = cu_seqlens(12, 0, 8) if case.get("packed") else None
    args = (q, k, v, case.get("window"), case.get("num_meta", 0), case.get("scale"), *meta, starts, None)
    torch.library.opcheck(torch.ops.hymba_ops.attention.default, (*args, case.get("return_lse", False)))


def test_compiles_once_for_all_lengths():
    def f(q, k, v):
        return F.attention(q * 2, k, v, window=8, num_meta=3, return_lse=True)

    assert_compiles_once(f, make_inputs, (40, 17, 90))


def test_backward_is_refused_by_name():
    q, k, v = make_inputs(4)
    out = F.attention(q.requires_grad_(), k, v)
    with pytest.raises(NotImplementedError, match="hymba_ops::attention"):
        out.sum().backward()


Q, K, V = (1, 6, 4, 8), (1, 6, 2, 8), (1, 6, 2, 12)
BAD_INPUTS = [
    bad_input({"q": torch.zeros(6, 4, 8)}, ValueError, r"q must have shape \[B, T, Hq, Dk\], got \[6, 4, 8\]"),
    bad_input({"k": torch.zeros(1, 6, 2, 9)}, ValueError, r"k must have shape .* = \[1, \*, \*, 8\], got \[1, 6, 2, 9\]"),
    bad_input({"k": torch.zeros(2, 6, 2, 8)}, ValueError, r"k must have shape .*got \[2, 6, 2, 8\]"),
    bad_input({"v": torch.zeros(1, 5, 2, 12)}, ValueError, r"v must have shape .*got \[1, 5, 2, 12\]"),
    bad_input({"v": torch.zeros(1, 6, 1, 12)}, ValueError, r"v must have shape .*got \[1, 6, 1, 12\]"),
    bad_input({"q": torch.zeros(1, 6, 5, 8)}, ValueError, r"q must have a multiple of k's 2 heads, got 5"),
    bad_input({"q": torch.zeros(1, 6, 0, 8)}, ValueError, r"q must have a multiple of k's 2 heads, got 0"),
    bad_input({"q": torch.zeros(1, 7, 4, 8)}, ValueError, r"k must have at least q's 7 positions .*got 6"),
    bad_input({"k": torch.zeros(K, dtype=torch.bfloat16)}, ValueError, r"k must have q's dtype float32, got bfloat16"),
    bad_input({"q": torch.zeros(Q, dtype=torch.int64)}, ValueError, r"q must be float16, .*got int64"),
    bad_input({"q": torch.zeros(1, 6, 8, 4).transpose(2, 3)}, ValueError, r"q must have a contiguous last .*got stride 4"),
    bad_input({"q": torch.zeros(1, 6, 4, 257), "k": torch.zeros(1, 6, 2, 257)}, ValueError, r"q must have a head .*got 257"),
    bad_input({"v": torch.zeros(1, 6, 2, 0)}, ValueError, r"v must have a head dim of 1 to 256, got 0"),
    bad_input({"window": -1}, ValueError, r"window must be at least 0, or None, got -1"),
    bad_input({"num_meta": -3}, ValueError, r"num_meta must be at least 0, got -3"),
    bad_input({"meta_k": torch.zeros(3, 2, 8)}, ValueError, r"meta_v must be given together with the other one, got None"),
    bad_input({"meta_v": torch.zeros(3, 2, 12)}, ValueError, r"meta_k must be given together with the other one, got None"),
    bad_input({"meta_k": torch.zeros(3, 2, 8), "meta_v": torch.zeros(4, 2, 12)}, ValueError, r"meta_v .*got \[4"),
    bad_input({"meta_k": torch.zeros(3, 2, 8), "meta_v": torch.zeros(3, 2, 12), "num_meta": 1}, ValueError,
        r"num_meta must be 0 where meta_k and meta_v are given, got 1"),
    bad_input({"meta_k": torch.zeros(1, 2, 8).expand(2**30, 2, 8), "meta_v": torch.zeros(1, 2, 12).expand(2**30, 2, 12)},
        ValueError, r"meta_k must have, with k, at most 1073741824 positions, got 1073741830"),
    bad_input({"cu_seqlens": torch.tensor([0, 6])}, ValueError, r"cu_seqlens must be int32, got int64"),
    bad_input({"cu_seqlens": torch.tensor([1, 6], dtype=torch.int32)}, ValueError, r"cu_seqlens must start at 0, got 1"),
    bad_input({"cu_seqlens": torch.tensor([0, 4, 3], dtype=torch.int32)}, ValueError, r"cu_seqlens must never .*got 3"),
    bad_input({"cu_seqlens": torch.tensor([0, 7], dtype=torch.int32)}, ValueError, r"cu_seqlens must end at or below q's 6"),
    bad_input({"cu_seqlens": torch.zeros(0, dtype=torch.int32)}, ValueError, r"cu_seqlens must have shape \[sequences"),
    bad_input({"cu_seqlens_k": cu_seqlens(6)}, ValueError, r"cu_seqlens_k must come with cu_seqlens"),
    bad_input({"cu_seqlens": cu_seqlens(3, 3), "cu_seqlens_k": cu_seqlens(6)}, ValueError, r"cu_seqlens_k must have cu"),
    bad_input({"cu_seqlens": cu_seqlens(3, 3), "cu_seqlens_k": cu_seqlens(4, 2)}, ValueError, r"sequence 1 at least its 3"),
    bad_input({"k": "keys"}, TypeError, r"'Tensor' for argument 'k'.*str"),
    bad_input({"q": [[1.0]]}, TypeError, r"'Tensor' for argument 'q'.*list"),
    bad_input({"window": 2.5}, TypeError, r"argument 'window'.*float"),
]  # fmt: skip


@pytest.mark.parametrize("change,error,message", BAD_INPUTS)
def test_bad_input_is_refused(change, error, message):
    arguments = {"q": torch.zeros(Q), "k": torch.zeros(K), "v": torch.zeros(V), **change}
    with pytest.raises(error, match=message):
        F.attention(arguments.pop("q"), arguments.pop("k"), arguments.pop("v"), **arguments)


def test_packed_needs_batch_one():
    with pytest.raises(ValueError, match="q must have batch size 1 where cu_seqlens is given, got 2"):
        F.attention(*make_inputs(6, B=2), cu_seqlens=cu_seqlens(6))


@pytest.mark.skipif(DEVICE != "cpu", reason="mixes the CPU with the meta device")
def test_device_mix_is_refused():
    q, k, v = make_inputs(6)
    with pytest.raises((ValueError, TypeError), match="device"):
        F.attention(q, k.to("meta"), v)


def test_tolerance_refuses_a_window_that_is_off_by_one():
    q, k, v = make_inputs(40)
    right = reference.attention(q, k, v, window=8)
    wrong = reference.attention(q, k, v, window=9)
    with pytest.raises(AssertionError, match="error .* against float64"):
        assert_close(
            wrong, right, reference.attention(q.double(), k.double(), v.double(), window=8), dtype=torch.float32
        )
