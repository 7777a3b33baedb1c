"""decode_attention against python_reference and against attention of the whole sequence: rings and pages, every size of
step, ragged lengths, padding rows, borrowing layers."""

from __future__ import annotations

import pytest
import torch

import python_reference as reference
from hymba_ops import functional as F

from attention_cases import LARGE_SCORES
from kernel_cases import (
    DEVICE,
    DTYPES,
    LAYOUTS,
    assert_threads_do_not_matter,
    bad_input,
    dense,
    randn,
    skip_unless_values_go_unread,
    strided,
    unaligned,
)
from tolerance import assert_close, to_float64

TILE_KEYS = 128  # of the CUDA kernel for 16-bit types, and a split of a ring; 256 are a split of pages


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


def frequencies(dim):
    return 1.0 / 1000.0 ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def make_inputs(
    lengths, n=1, *, B=None, M=3, heads=(5, 1), dims=(16, 32), window=20, page=None, spare=0, dtype=torch.float32,
    layout=dense, borrows=False, seed=0,
):  # fmt: skip
    """The op's arguments by name. lengths: of the slots. page: rows of a page; None for rings of window + n + spare rows.

    Rows of the caches that hold no token are NaN; pages lie scattered, and one page is nobody's."""
    (Hq, Hkv), (Dk, Dv) = heads, dims
    B = len(lengths) if B is None else B
    inputs = {
        "q": layout(randn(B, n, Hq, Dk, dtype=dtype, seed=seed)),
        "k": None if borrows else layout(randn(B, n, Hkv, Dk, dtype=dtype, seed=seed + 1)),
        "v": None if borrows else layout(randn(B, n, Hkv, Dv, dtype=dtype, seed=seed + 2)),
    }
    if page is None:
        table, shape = None, (len(lengths), window + n + spare)
    else:
        each = max(-(-(length + n) // page) for length in lengths)
        count = len(lengths) * each + 1
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed), device="cpu")
        table, shape = order[:-1].view(len(lengths), each).int().to(DEVICE), (count, page)
    caches = {}
    for name, dim, offset in (("k_cache", Dk, 3), ("v_cache", Dv, 4)):
        cache = torch.full((*shape, Hkv, dim), float("nan"), dtype=dtype)
        for slot, length in enumerate(lengths):
            held = length + (n if borrows else 0)
            values = randn(held, Hkv, dim, dtype=dtype, seed=seed + offset + 10 * slot)
            first = max(0, held - shape[1]) if page is None else 0
            tokens = torch.arange(first, held)
            if page is None:
                cache[slot, (M + tokens) % shape[1]] = values[first:]
            else:
                cache[table[slot].long()[tokens // page], tokens % page] = values
        caches[name] = layout(cache)
    return inputs | caches | {
        "lengths": int32(*lengths),
        "block_table": table,
        "meta_k": layout(randn(M, Hkv, Dk, dtype=dtype, seed=seed + 5)) if M > 0 else None,
        "meta_v": layout(randn(M, Hkv, Dv, dtype=dtype, seed=seed + 6)) if M > 0 else None,
        "window": window,
        "inv_freq": frequencies(Dk) if Dk % 2 == 0 else None,
    }  # fmt: skip


def cloned(inputs):
    """The inputs with caches of their own, laid out as they are."""
    copies = {}
    for name in ("k_cache", "v_cache"):
        cache = inputs[name]
        copies[name] = torch.empty_strided(cache.shape, cache.stride(), dtype=cache.dtype).copy_(cache)
    return inputs | copies


def check(ops, inputs, *, dtype, **kwargs):
    """Result and caches against the reference; returns ours."""
    ours, plain, exact = inputs | kwargs, cloned(inputs) | kwargs, to_float64(cloned(inputs) | kwargs)
    exact["inv_freq"] = inputs["inv_freq"]  # phases are float32 always
    before = {name: inputs[name].clone() for name in ("k_cache", "v_cache")}
    out = ops.decode_attention(**ours)
    expected, exactly = (reference.decode_attention(**case) for case in (plain, exact))
    assert_close(out, expected, exactly, dtype=dtype)
    for name in ("k_cache", "v_cache"):
        unwritten = plain[name].isnan() & before[name].isnan() | (plain[name] == before[name])
        same = (ours[name] == before[name]) | (ours[name].isnan() & before[name].isnan())
        assert same[unwritten].all(), f"{name} changed where it holds other tokens"
        written = ~unwritten
        if written.any():
            assert_close(ours[name][written], plain[name][written], exact[name][written], dtype=dtype, name=name)
    return out


STORES = [pytest.param(None, id="ring"), pytest.param(16, id="pages16"), pytest.param(7, id="pages7")]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("page", STORES)
@pytest.mark.parametrize("n", [1, 3, 16])
def test_matches_reference(ops, n, page, layout, dtype):
    inputs = make_inputs([0, 9, 150], n, page=page, layout=layout, dtype=dtype)
    check(ops, inputs, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("page", STORES[:2])
@pytest.mark.parametrize("largest", LARGE_SCORES)
def test_large_scores(ops, largest, page, dtype):
    """In several splits of the keys, each of which has a maximum of its own."""
    inputs = make_inputs([0, 9, 700], 2, window=600, page=page, dtype=dtype)
    names = ("k", "k_cache", "meta_k")
    most = max(inputs[name].nan_to_num().abs().sum(-1).max().item() for name in names)
    size = (abs(largest) / (most * inputs["q"].abs().max().item())) ** 0.5  # no score is beyond `largest`
    inputs["q"] = inputs["q"].abs() * size
    for name in names:
        inputs[name] = inputs[name].abs() * (size if largest > 0 else -size)
    check(ops, inputs | {"inv_freq": None}, dtype=dtype, scale=1.0)


@pytest.mark.parametrize("n", range(1, 17))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_every_size_of_step(ops, n, dtype):
    check(ops, make_inputs([40, 7], n, heads=(10, 2), dtype=dtype), dtype=dtype)


@pytest.mark.parametrize("M", [0, 1, TILE_KEYS - 1, TILE_KEYS, TILE_KEYS + 1, 40], ids=lambda m: f"M{m}")
@pytest.mark.parametrize("window", [0, 5, 31, TILE_KEYS - 1, TILE_KEYS, TILE_KEYS + 1, 300], ids=lambda w: f"window{w}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_windows_and_meta_tokens_around_tiles(ops, window, M, dtype):
    lengths = [0, 1, window, window + 1, 3 * window + 70]
    check(ops, make_inputs(lengths, 2, M=M, window=window, dtype=dtype), dtype=dtype)


@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (25, 5), (40, 1)], ids=lambda h: f"heads{h[0]}over{h[1]}")
@pytest.mark.parametrize(
    "dims",
    [(64, 128), (64, 64), (128, 128), (1, 1), (18, 33), (256, 256), (7, 250)],
    ids=lambda d: f"dims{d[0]}x{d[1]}",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_heads_and_dims(ops, heads, dims, dtype):
    check(ops, make_inputs([33, 100], 3, heads=heads, dims=dims, dtype=dtype), dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("length", [0, 1, 126, 127, 128, 255, 256, 257, 700])
def test_global_layers_over_several_splits(ops, length, dtype):
    check(ops, make_inputs([length, 300], 2, window=None, page=32, dtype=dtype), dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_a_new_key_first_or_last_in_a_tile_or_a_warps_part(ops, dtype):
    check(ops, make_inputs([30, 31, 32, 33, 63, 64, 127, 128, 129], 1, M=0, window=140, dtype=dtype), dtype=dtype)


def test_rings_with_rows_to_spare(ops):
    check(ops, make_inputs([0, 5, 200, 333], 2, spare=45), dtype=torch.float32)


@pytest.mark.parametrize("page", STORES)
def test_padding_rows_and_counts(ops, page):
    inputs = make_inputs([30, 4, 77, 12], 4, page=page)
    slots, counts = int32(2, -1, 0, 3), int32(4, 2, 1, 0)
    out = check(ops, inputs, dtype=torch.float32, slots=slots, counts=counts)
    assert (out[1] == 0).all() and (out[2, 1:] == 0).all() and (out[3] == 0).all()
    assert (out[0] != 0).any() and (out[2, 0] != 0).any()


def test_fewer_rows_than_slots(ops):
    check(ops, make_inputs([30, 4, 77, 12], 2, B=2), dtype=torch.float32, slots=int32(3, 1))


def test_pages_behind_every_window_are_not_read(ops):
    """A sliding layer may give such pages back: their entries are anything."""
    inputs = make_inputs([100, 60], 2, page=8, window=20)
    inputs["block_table"][0, :10] = int32(*[-1, 10**6] * 5)  # tokens 0 to 79; the window begins at 80
    inputs["block_table"][1, :5] = -7
    check(ops, inputs, dtype=torch.float32)


@pytest.mark.parametrize("page", STORES)
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_a_borrowing_layer_sees_what_its_producer_has_put(ops, page, dtype):
    check(ops, make_inputs([0, 9, 150], 3, page=page, borrows=True, dtype=dtype), dtype=dtype)
    inputs = make_inputs([0, 9, 150], 3, page=page, dtype=dtype)
    out = ops.decode_attention(**inputs)
    assert torch.equal(ops.decode_attention(**(inputs | {"k": None, "v": None})), out)


def test_a_scale_and_no_rope(ops):
    check(ops, make_inputs([50], 2) | {"inv_freq": None}, dtype=torch.float32, scale=-0.3)
    check(ops, make_inputs([50], 2, dtype=torch.bfloat16), dtype=torch.bfloat16, scale=0.0)


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_scores_of_any_size(ops, dtype):
    inputs = make_inputs([90], 2, dtype=dtype)
    inputs |= {"q": inputs["q"] * 30, "meta_k": inputs["meta_k"] * 30}
    check(ops, inputs, dtype=dtype)


@pytest.mark.parametrize("name", ["q", "k", "v", "meta_v"])
def test_nan_stays_in_its_row(ops, name):
    inputs = make_inputs([90, 90], 1)
    inputs[name][0 if name != "meta_v" else 1, 0, 0] = float("nan")
    out = ops.decode_attention(**inputs)
    assert out[0].isnan().any() and out[1].isnan().any() == (name == "meta_v")


@pytest.mark.parametrize("page", STORES)
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_impossible_values_reach_no_other_memory(ops, page, dtype):
    """On a GPU nobody reads the values before the kernels do (HYMBA_OPS_CHECK=1 does)."""
    skip_unless_values_go_unread(ops)
    inputs = make_inputs([30, 4, 77, 12, 5], 4, page=page, dtype=dtype)
    inputs["lengths"] = int32(-5, 2**31 - 1, 10**6, -(2**31), 5)
    if page is not None:
        inputs["block_table"][:] = int32(-1, 2**31 - 1, 10**6, -(2**31), 3)[:, None]
    out = ops.decode_attention(**inputs, slots=int32(99, -7, 2, 2**31 - 1, 1), counts=int32(1, 2, -4, 4, 10**6))
    assert (out[:4] == 0).all()


def through_steps(ops, q, k, v, sizes, *, M, window, page, capacity):
    """The tokens of one sequence in steps of these sizes, after M meta tokens; k and q before RoPE."""
    n, inv_freq = max(sizes), frequencies(q.shape[-1])
    meta_positions = torch.arange(M, dtype=torch.int32)
    meta_k, meta_v = ops.rotary(k[:, :M], meta_positions, inv_freq)[0], v[0, :M]
    rows = window + n if page is None else page
    blocks = 1 if page is None else -(-capacity // page)
    caches = [torch.full((blocks, rows, *x.shape[2:]), float("nan"), dtype=x.dtype) for x in (k, v)]
    table = None if page is None else torch.arange(blocks, dtype=torch.int32).flip(0)[None]
    outs, length = [], 0
    for size in sizes:
        tokens = slice(M + length, M + length + size)
        outs.append(ops.decode_attention(
            q[:, tokens], k[:, tokens], v[:, tokens], *caches, int32(length), block_table=table, meta_k=meta_k,
            meta_v=meta_v, window=window, inv_freq=inv_freq,
        ))  # fmt: skip
        length += size
    return torch.cat(outs, 1)


@pytest.mark.parametrize("window,page", [(20, None), (20, 8), (None, 8)], ids=["ring", "window-pages", "global-pages"])
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_steps_give_what_the_whole_sequence_gives(ops, window, page, dtype):
    """Rings wrap several times; on the CPU, where keys are summed in the same order, to the bit."""
    M, sizes = 5, [1, 3, 16, 1, 7, 1, 2, 16, 9, 1, 1, 16, 12, 1, 4]
    T = sum(sizes)
    q, k, v = (randn(1, M + T, h, d, dtype=dtype, seed=s) for s, (h, d) in enumerate([(4, 16), (2, 16), (2, 32)]))
    out = through_steps(ops, q, k, v, sizes, M=M, window=window, page=page, capacity=T)
    positions, inv_freq = torch.arange(M + T, dtype=torch.int32), frequencies(16)

    def whole(module, cast):
        turned = (module.rotary(cast(x), positions, inv_freq) for x in (q, k))
        return module.attention(*turned, cast(v), window=window, num_meta=M)[:, M:]

    assert_close(out, whole(reference, lambda x: x), whole(reference, torch.Tensor.double), dtype=dtype)
    if ops is F and DEVICE == "cpu":
        assert torch.equal(out, whole(F, lambda x: x))


@pytest.mark.parametrize("page", STORES)
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_bits_depend_on_neither_batch_nor_layout(ops, page, dtype):
    inputs = make_inputs([70, 3, 200], 3, page=page, dtype=dtype)
    out = ops.decode_attention(**cloned(inputs))
    for layout in (strided, unaligned):
        tensors = {name: layout(x) for name, x in inputs.items() if isinstance(x, torch.Tensor) and x.dim() >= 3}
        assert torch.equal(ops.decode_attention(**(inputs | tensors)), out)
    row = {name: inputs[name][2:] for name in ("q", "k", "v")}
    alone = ops.decode_attention(**(cloned(inputs) | row), slots=int32(2))
    assert torch.equal(alone, out[2:])


@pytest.mark.parametrize("page", STORES)
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_counters_may_be_the_callers(ops, page, dtype):
    """They serve one call after the other, and are zeros again after each."""
    inputs = make_inputs([70, 3, 200], 3, page=page, dtype=dtype) | {"slots": int32(2, -1, 0)}
    expected = ops.decode_attention(**cloned(inputs))
    counters = torch.zeros(inputs["q"][..., 0].numel() + 1, dtype=torch.int32)
    for _ in range(2):
        assert torch.equal(ops.decode_attention(**cloned(inputs), counters=counters), expected)
        assert not counters.any()


def test_threads_do_not_change_bits():
    inputs = make_inputs([1500, 700, 20], 2, heads=(25, 5), window=1024)
    assert_threads_do_not_matter(lambda: F.decode_attention(**cloned(inputs)))


def test_opcheck():
    for page, borrows in ((None, False), (16, True)):
        inputs = make_inputs([30, 4], 2, page=page, borrows=borrows)
        order = [
            "q",
            "k",
            "v",
            "k_cache",
            "v_cache",
            "lengths",
            None,
            None,
            "block_table",
            "meta_k",
            "meta_v",
            "window",
        ]
        args = [None if name is None else inputs[name] for name in order]
        inputs["k_cache"].nan_to_num_(0), inputs["v_cache"].nan_to_num_(0)  # opcheck compares with ==
        counters = None if page is None else torch.zeros(inputs["q"][..., 0].numel(), dtype=torch.int32)
        torch.library.opcheck(torch.ops.hymba_ops.decode_attention.default, (*args, None, inputs["inv_freq"], counters))


def test_compiles_with_the_caches_changed_in_place():
    inputs = make_inputs([30, 4], 2)
    other = cloned(inputs)
    expected = F.decode_attention(**other) + 1

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def step(inputs):
        return F.decode_attention(**inputs) + 1

    assert torch.equal(step(inputs), expected)
    for name in ("k_cache", "v_cache"):
        assert torch.equal(inputs[name].nan_to_num(7), other[name].nan_to_num(7))


BAD_INPUTS = [
    bad_input({"q": torch.zeros(2, 17, 5, 16)}, ValueError, r"q must have 1 to 16 tokens a row, got 17"),
    bad_input({"q": torch.zeros(2, 2, 5, 300)}, ValueError, r"q must have a head dim of 1 to 256, got 300"),
    bad_input({"k": torch.zeros(2, 1, 1, 16)}, ValueError, r"k must have shape .* = \[2, 2, 1, 16\], got \[2, 1, 1, 16"),
    bad_input({"k": None}, ValueError, r"k must be given together with the other one, got None"),
    bad_input({"v": torch.zeros(2, 2, 1, 31)}, ValueError, r"v must have shape .* = \[2, 2, 1, 32\], got \[2, 2, 1, 31\]"),
    bad_input({"k_cache": torch.zeros(2, 21, 1, 16), "v_cache": torch.zeros(2, 21, 1, 32)}, ValueError,
              r"k_cache must have rings of at least window \+ q's tokens = 20 \+ 2 rows, got 21"),
    bad_input({"k_cache": torch.zeros(3, 22, 1, 16)}, ValueError, r"k_cache must have shape .* = \[2, \*, \*, 16\], got"),
    bad_input({"v_cache": torch.zeros(2, 23, 1, 32)}, ValueError, r"v_cache must have shape .* = \[2, 22, 1, \*\], got"),
    bad_input({"v_cache": torch.zeros(2, 22, 1, 32).half()}, ValueError, r"v_cache must .*float32, got float16"),
    bad_input({"window": None}, ValueError, r"window must be given where keys lie in rings \(no block_table\), got None"),
    bad_input({"window": -1}, ValueError, r"window must be at least 0, got -1"),
    bad_input({"lengths": torch.zeros(2)}, ValueError, r"lengths must be int32, got float32"),
    bad_input({"lengths": int32(3, -1)}, ValueError, r"lengths must have values from 0 to \d+, got -1 at index 1"),
    bad_input({"lengths": int32(3, 2**31 - 1)}, ValueError, r"lengths must have values from 0 to \d+, got 2147483647"),
    bad_input({"counts": int32(1, 3)}, ValueError, r"counts must have values from 0 to q's 2 tokens, got 3 at index 1"),
    bad_input({"counts": int32(1)}, ValueError, r"counts must have shape \[B\] = \[2\], got \[1\]"),
    bad_input({"slots": int32(0, 2)}, ValueError, r"slots must have values from -1 to 1 \(lengths' rows\), got 2 at"),
    bad_input({"slots": int32(1, 1)}, ValueError, r"slots must name each slot once, got slot 1 in rows 0 and 1"),
    bad_input({"block_table": int32(0, 1)}, ValueError, r"block_table must have shape \[slots, P\] = \[2, \*\], got \[2\]"),
    bad_input({"block_table": int32(0, 1).view(2, 1), "lengths": int32(3, 21)}, ValueError,
              r"block_table must have pages for slot 1's 21 tokens and 2 new ones, got 1 pages of 22"),
    bad_input({"block_table": int32(0, 2).view(2, 1)}, ValueError,
              r"block_table must name pages from 0 to 1 where a slot has tokens, got 2 for page 0 of slot 1"),
    bad_input({"meta_k": None}, ValueError, r"meta_k must be given together with the other one, got None"),
    bad_input({"meta_v": torch.zeros(2, 1, 32)}, ValueError, r"meta_v must have shape .* = \[3, 1, 32\], got \[2, 1, 32"),
    bad_input({"inv_freq": torch.zeros(7)}, ValueError, r"inv_freq must have shape \[Dk / 2\] = \[8\], got \[7\]"),
    bad_input({"inv_freq": torch.zeros(8).double()}, ValueError, r"inv_freq must be float32, got float64"),
    bad_input({"counters": int32(*[0] * 19)}, ValueError, r"counters must have at least 20 elements, got \[19\]"),
    bad_input({"counters": torch.zeros(20)}, ValueError, r"counters must be int32, got float32"),
    bad_input({"k": torch.zeros(2, 2, 1, 16).requires_grad_()}, ValueError, r"k must not require grad"),
    bad_input({"lengths": [3, 4]}, TypeError, r"'Tensor' for argument 'lengths'.*list"),
]  # fmt: skip


@pytest.mark.parametrize("change,error,message", BAD_INPUTS)
def test_bad_input_is_refused_and_the_caches_kept(change, error, message):
    inputs = make_inputs([3, 4], 2) | change
    before = {name: inputs[name].clone() for name in ("k_cache", "v_cache")}
    with pytest.raises(error, match=message):
        F.decode_attention(**inputs)
    for name, cache in before.items():
        assert torch.equal(inputs[name].nan_to_num(7), cache.nan_to_num(7))
