"""attention's kernel for Hopper: sizes around its own tiles, and which calls it takes.

Items are 128 rows (query, head of the group) at head dims of 64 and 128, else 192; tiles have 64 keys, 128 where both
head dims are at most 64. The rest is test_attention.py's, whose 16-bit tests run on this kernel too.
"""

from __future__ import annotations

import itertools
from itertools import pairwise

import pytest
import torch

import python_reference as reference

from attention_cases import check, make_inputs
from kernel_cases import DTYPES, LAYOUTS, cu_seqlens, randn, skip_unless_values_go_unread, strided, unaligned
from tolerance import assert_close

pytestmark = pytest.mark.sm90(only=True)

HALF = DTYPES[1:3]
BF16 = torch.bfloat16
DIMS = [
    pytest.param(dims, id=f"dims{dims[0]}x{dims[1]}") for dims in ((64, 64), (64, 128), (128, 128), (72, 80), (8, 72))
]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_head_dims(ops, layout, dims, dtype):
    inputs = make_inputs(150, B=2, heads=(10, 2), dims=dims, dtype=dtype, layout=layout)
    check(ops, *inputs, dtype=dtype, window=70, num_meta=20)


@pytest.mark.parametrize(
    "dims,rows,group", [*(((64, 128), 128, group) for group in range(1, 9)), ((64, 64), 192, 5), ((128, 128), 192, 7)]
)
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_groups_and_lengths_around_items(ops, dims, rows, group, more):
    inputs = make_inputs(rows // group + more, heads=(2 * group, 2), dims=dims, dtype=BF16)
    check(ops, *inputs, dtype=BF16, window=25, num_meta=3)


@pytest.mark.parametrize("window", [0, 1, 62, 63, 64, 65, 127, 128, 129, None])
@pytest.mark.parametrize("num_meta", [0, 1, 63, 64, 65, 130, 500])
def test_masks_around_tiles(ops, num_meta, window):
    inputs = make_inputs(211, heads=(4, 1), dims=(64, 128), dtype=BF16)
    check(ops, *inputs, dtype=BF16, window=window, num_meta=num_meta)


@pytest.mark.parametrize("window,num_meta", [(None, 0), (300, 130), (1024, 128)])
def test_rings_that_turn(ops, window, num_meta):
    """More tiles than the ring has stages, more items than blocks."""
    inputs = make_inputs(1300, heads=(5, 1), dims=(64, 128), dtype=BF16)
    check(ops, *inputs, dtype=BF16, window=window, num_meta=num_meta)


@pytest.mark.parametrize("window", [None, 63, 100])
@pytest.mark.parametrize("T,S", [(1, 1), (1, 300), (40, 300), (33, 97), (100, 101)])
def test_fewer_queries_than_keys(ops, T, S, window):
    check(ops, *make_inputs(T, S, B=2, dims=(64, 128), dtype=BF16), dtype=BF16, window=window, num_meta=3)


@pytest.mark.parametrize("separate", [False, True], ids=["num_meta", "separate-meta"])
@pytest.mark.parametrize("mask", [{}, {"window": 90}], ids=["global", "window90"])
@pytest.mark.parametrize("dtype", HALF)
def test_rows_do_not_depend_on_how_a_sequence_is_cut(ops, dtype, mask, separate):
    """Queries [b - T, b) on the keys [0, b) have the bits, lse's too, that they have in the whole sequence."""
    q, k, v = make_inputs(330, dims=(64, 128), dtype=dtype)
    meta = {"meta_k": randn(70, 1, 64, dtype=dtype, seed=8), "meta_v": randn(70, 1, 128, dtype=dtype, seed=9)}
    mask = mask | (meta if separate else {"num_meta": 70})
    out, lse = ops.attention(q, k, v, return_lse=True, **mask)
    for b, T in itertools.product((1, 64, 65, 200, 330), (1, 13, 60)):
        rows = slice(max(b - T, 0), b)
        part, part_lse = ops.attention(q[:, rows], k[:, :b], v[:, :b], return_lse=True, **mask)
        assert torch.equal(part, out[:, rows]), (b, T)
        assert torch.equal(part_lse, lse[:, rows]), (b, T)


@pytest.mark.parametrize("num_meta", [0, 13, 64, 100])
@pytest.mark.parametrize("T,S", [(90, 90), (20, 150)])
@pytest.mark.parametrize("dtype", HALF)
def test_separate_meta_keys_equal_concatenated_ones(ops, dtype, T, S, num_meta):
    q, k, v = make_inputs(T, S, B=2, heads=(10, 2), dims=(64, 128), dtype=dtype)
    meta_k, meta_v = (strided(randn(num_meta, 2, dim, dtype=dtype, seed=dim)) for dim in (64, 128))
    out, lse = check(ops, q, k, v, dtype=dtype, window=20, meta_k=meta_k, meta_v=meta_v)
    both_k, both_v = (torch.cat([m.expand(2, -1, -1, -1), x], 1) for m, x in ((meta_k, k), (meta_v, v)))
    joined = ops.attention(q, both_k, both_v, window=20, num_meta=num_meta, return_lse=True)
    assert torch.equal(out, joined[0]) and torch.equal(lse, joined[1])


def test_a_batch_equals_its_rows(ops):
    q, k, v = make_inputs(50, 210, B=3, heads=(4, 2), dims=(64, 128), dtype=BF16)
    out, lse = ops.attention(q, k, v, window=90, num_meta=2, return_lse=True)
    for b in range(3):
        single = ops.attention(*(x[b : b + 1] for x in (q, k, v)), window=90, num_meta=2, return_lse=True)
        assert torch.equal(single[0][0], out[b]) and torch.equal(single[1][0], lse[b])


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("separate", [False, True], ids=["num_meta", "separate-meta"])
def test_packed_equals_singles_bitwise(ops, separate, dtype):
    lengths_q, lengths_k = (40, 0, 7, 200), (40, 3, 90, 230)
    starts_q, starts_k = cu_seqlens(*lengths_q), cu_seqlens(*lengths_k)
    q, k, v = make_inputs(250, 370, heads=(10, 2), dims=(64, 128), dtype=dtype)  # some rows are no sequence's
    meta = {"meta_k": randn(9, 2, 64, dtype=dtype, seed=5), "meta_v": randn(9, 2, 128, dtype=dtype, seed=6)}
    extra = {"window": 30, "return_lse": True, **(meta if separate else {"num_meta": 50})}
    out, lse = ops.attention(q, k, v, cu_seqlens=starts_q, cu_seqlens_k=starts_k, **extra)
    for (q0, q1), (k0, k1) in zip(pairwise(starts_q.tolist()), pairwise(starts_k.tolist()), strict=True):
        single = ops.attention(q[:, q0:q1], k[:, k0:k1], v[:, k0:k1], **extra)
        assert torch.equal(out[:, q0:q1], single[0]) and torch.equal(lse[:, q0:q1], single[1])
    assert (out[:, 247:] == 0).all() and (lse[:, 247:] == 0).all()


@pytest.mark.parametrize(
    "lengths", [(1, *(0,) * 9) * 40, (*(0,) * 300, 300), (2, 300, *(0,) * 300, 1, 200), (700, 100)]
)
def test_lists_of_items(ops, lengths):
    """Items of packed sequences are found by threads that have a run of them each."""
    T = sum(lengths)
    inputs = make_inputs(T, dims=(64, 128), dtype=BF16)
    check(ops, *inputs, dtype=BF16, window=100, num_meta=2, cu_seqlens=cu_seqlens(*lengths))


@pytest.mark.parametrize("window", [None, 100])
def test_lists_begin_with_the_longest_items(ops, window):
    if not hasattr(ops, "attention_sm90_items"):
        pytest.skip("the public functions show no items")
    lengths, room, tile = (2, 900, *(0,) * 300, 1, 25, 26, 400), 25, 64
    inputs = make_inputs(sum(lengths), dims=(64, 128), dtype=BF16)
    items = ops.attention_sm90_items(*inputs, window=window, cu_seqlens=cu_seqlens(*lengths))
    starts = cu_seqlens(*lengths).tolist()
    expected = {
        (begin + query, min(room, end - begin - query), query, begin, end - begin)
        for begin, end in pairwise(starts)
        for query in range(0, end - begin, room)
    }
    assert {tuple(item[1:6]) for item in items.tolist()} == expected and len(items) == len(expected)
    first_keys = (items[:, 3] - window).clamp(min=0) // tile if window else 0
    tiles = (items[:, 3] + items[:, 2] + tile - 1) // tile - first_keys
    assert tiles.max() < 32  # buckets
    assert torch.equal(tiles, tiles.sort(descending=True).values) and tiles[0] > tiles[-1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("dims", [(64, 64), (64, 128), (128, 128)], ids=lambda d: f"dims{d[0]}x{d[1]}")
@pytest.mark.parametrize("num_meta", [4, 70])
def test_neighbours_do_not_matter(ops, num_meta, dims, value):
    """What another packed sequence holds, or rows of none, never reaches this one."""
    q, k, v = make_inputs(120, heads=(2, 1), dims=dims, dtype=BF16)
    mask = {"window": 10, "num_meta": num_meta}
    clean = ops.attention(q[:, 30:80], k[:, 30:80], v[:, 30:80], **mask)
    for x in (q, k, v):
        x[:, :30] = x[:, 80:] = value
    packed = ops.attention(q, k, v, cu_seqlens=cu_seqlens(30, 50, 17), **mask)
    assert torch.equal(packed[:, 30:80], clean)
    assert packed[:, :30].isnan().all() and packed[:, 80:97].isnan().all() and (packed[:, 97:] == 0).all()


@pytest.mark.parametrize("where", ["q", "k", "v"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_nan_and_inf_stand_where_the_reference_has_them(ops, where, value):
    q, k, v = inputs = make_inputs(100, dims=(64, 128), dtype=BF16)
    {"q": q[:, 60, 2], "k": k[:, 0, 0], "v": v[:, 0, 0]}[where][..., 3] = value  # key 0 is in the prefix
    mask = {"window": 10, "num_meta": 4}
    plain = reference.attention(*(x.float() for x in inputs), **mask).to(BF16)
    exact = reference.attention(*(x.double() for x in inputs), **mask)
    assert_close(ops.attention(*inputs, **mask), plain, exact, dtype=BF16)


@pytest.mark.parametrize("scale", [0.0, -0.5, 3.0, 40.0])
@pytest.mark.parametrize("dims", [(64, 64), (128, 128)], ids=lambda d: f"dims{d[0]}x{d[1]}")
@pytest.mark.parametrize("dtype", HALF)
def test_scale(ops, dtype, dims, scale):
    inputs = make_inputs(130, heads=(10, 2), dims=dims, dtype=dtype)
    check(ops, *inputs, dtype=dtype, window=20, num_meta=2, scale=scale)


@pytest.mark.parametrize("size", [1e2, -1e2, 1e16, -1e16])
def test_large_scores(ops, size):
    """Of both signs: a row's largest one may be far below zero."""
    q, k, v = make_inputs(130, dims=(64, 128), dtype=BF16)
    check(ops, q.abs() * abs(size), k.abs() * size, v, dtype=BF16, window=70)


@pytest.mark.parametrize("window", [None, 80])
def test_scores_that_grow_along_the_keys(ops, window):
    """The running maximum moves in every tile."""
    q, k, v = make_inputs(400, dims=(64, 128), dtype=BF16)
    k = (k.abs() * torch.arange(1, 401)[:, None, None] / 40).to(BF16)
    check(ops, q.abs(), k, v, dtype=BF16, window=window, num_meta=3)


@pytest.mark.parametrize("values", [(-(2**31), 3, 1, 2**31 - 1), (4, 2**31 - 1, 2, 5), (90, 5, 200, 100)])
def test_impossible_lengths_reach_no_other_memory(ops, values):
    skip_unless_values_go_unread(ops)
    q, k, v = make_inputs(200, dims=(64, 128), dtype=BF16)
    starts = torch.tensor(values, dtype=torch.int32)
    ops.attention(q, k, v, window=9, num_meta=3, cu_seqlens=starts, cu_seqlens_k=starts.flip(0))


def refusal(ops, *args, **kwargs):
    if not hasattr(ops, "attention_sm90_refusal"):
        pytest.skip("the public functions do not say which kernel runs")
    return ops.attention_sm90_refusal(*args, **kwargs)


def meta_of(q, v, layout=lambda x: x):
    return {
        "meta_k": layout(randn(3, 1, q.shape[3], dtype=BF16)),
        "meta_v": layout(randn(3, 1, v.shape[3], dtype=BF16)),
    }


@pytest.mark.parametrize("change,reason", [
    ({"dtype": torch.float32}, "16-bit types"),
    ({"dims": (136, 128)}, "128 columns"),
    ({"dims": (64, 136)}, "128 columns"),
    ({"dims": (60, 64)}, "whole 16 bytes"),
    ({"dims": (64, 60)}, "whole 16 bytes"),
    ({"heads": (9, 1)}, "whole groups"),
    ({"layout": unaligned}, "addresses and strides"),
    ({"layout": lambda x: x[:, :1].expand(-1, 20, -1, -1)}, "addresses and strides"),
    ({"layout": lambda x: unaligned(x) if x.shape[3] == 64 else x}, "addresses and strides"),
    ({"layout": lambda x: unaligned(x) if x.shape[3] == 128 else x}, "addresses and strides"),
    ({"meta": unaligned}, "addresses and strides"),
    ({"layout": strided, "dtype": torch.float16, "heads": (8, 1)}, None),
    ({"dims": (8, 8)}, None),
    ({"dims": (128, 128), "heads": (25, 5)}, None),
    ({"meta": strided}, None),
])  # fmt: skip
def test_which_calls_it_takes(ops, change, reason):
    change = {"dims": (64, 128), "dtype": BF16, **change}
    meta = change.pop("meta", None)
    q, k, v = make_inputs(20, **change)
    said = refusal(ops, q, k, v, **(meta_of(q, v, meta) if meta else {}))
    assert reason in said if reason else said is None


@pytest.mark.parametrize("T", [1, 50, 4000])
def test_lengths_do_not_choose_the_kernel(ops, T):
    """Else a row's bits would depend on its neighbours."""
    q, k, v = make_inputs(T, dims=(64, 128), dtype=BF16)
    assert refusal(ops, q, k, v) is None
    assert refusal(ops, q, k, v, cu_seqlens=cu_seqlens(T)) is None
