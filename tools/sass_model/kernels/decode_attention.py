"""One token of a sliding or a global layer behind 8192: splits of the keys, and what joins them.

A tile has 128 keys, a quarter a warp; a split is one tile of a ring, two of pages
(csrc/cuda/decode_attention_splits.cuh).
"""

import math
from functools import partial

from tools.sass_model.control_flow import Loop
from tools.sass_model.kernels import META_TOKENS, TOKENS, Plan, Tile, Workload, blocks_with, most, packs, warps_of
from tools.sass_model.predict import KernelModel

_ROWS, _KEYS, _WARPS, _THREADS, _JOIN_WARPS = 16, 128, 4, 128, 4  # of the rows one token has five
_HEADS, _KV_HEADS, _KEY_DIM, _VALUE_DIM, _WINDOW = 25, 5, 64, 128, 1024
_GROUP = _HEADS // _KV_HEADS
_STATS = 2  # maximum and sum of a split
_RING_TILES, _PAGED_TILES = 1, 2
_TILE_BYTES = 2 * _KEYS * (_KEY_DIM + _VALUE_DIM)


def _tiles(window: int | None) -> int:
    """Key tiles that the token at position 8192 + 128 sees."""
    position = META_TOKENS + TOKENS
    if window is None:
        return math.ceil((position + 1) / _KEYS)
    return math.ceil(META_TOKENS / _KEYS) + math.ceil((position + 1) / _KEYS) - (position - window) // _KEYS


def _splits(window: int | None) -> int:
    return math.ceil(_tiles(window) / (_PAGED_TILES if window is None else _RING_TILES))


def _masked(window: int | None) -> float:
    """The part of tiles that some of their rows do not see whole: the last one, and the window's first."""
    return (1 if window is None else 2) / _tiles(window)


def _plan(tiles: int, masked: float, model: KernelModel) -> Plan:
    """`tiles` of a split. This step's key is in one warp of one block, which the plan leaves out."""
    tile = most(model, "HMMA")
    mask = blocks_with(model, tile, "ISETP") & blocks_with(model, tile, "FSEL")
    rescale = blocks_with(model, tile, "FMUL") - blocks_with(model, tile, "MUFU")
    scores = _ROWS * _KEYS
    asked = {  # as the prompt kernel's, kernels/attention.py; keys and values pass through one warp only, queries all
        "tensor": scores * (_KEY_DIM + _VALUE_DIM) / (16 * 8 * 16),
        "special": warps_of(scores + _WARPS * _ROWS),
        "float": warps_of(2 * scores + 3 * _WARPS * _ROWS),
        "max, round": warps_of(scores + scores / 2),
        "shared loads": packs(_TILE_BYTES) + _WARPS * packs(2 * _ROWS * _KEY_DIM),
        "loads": packs(_TILE_BYTES) * (tiles - 1) / tiles,  # a split's first tile is asked for before the loop
    }
    named = {"mask": frozenset(mask), "rescaling": frozenset(rescale)}
    keys, values = (_KEYS // _WARPS * dim // 8 / 32 for dim in (_KEY_DIM, _VALUE_DIM))  # chunks a lane

    def copies(parent: Loop | None) -> list[Loop]:
        found = [loop for loop in model.loops if loop.parent is parent and model.count(loop, "SHFL")]
        return sorted((loop for loop in found if model.count(loop, "LDGSTS")), key=lambda loop: loop.header)

    trips = {loop: 0.0 for loop in model.loops} | {tile: float(tiles)}
    for loop, chunks in zip(copies(None), (keys, values), strict=True):
        trips[loop] = chunks / model.count(loop, "LDGSTS")
    for loop, chunks in zip(copies(tile), (keys, values), strict=True):
        trips[loop] = chunks / model.count(loop, "LDGSTS") * (tiles - 1) / tiles
    queries = next(
        loop for loop in model.loops if loop.parent is None and model.count(loop, "LDGSTS") and loop not in copies(None)
    )
    turn = next(loop for loop in model.loops if loop.parent is None and model.count(loop, "DFMA"))
    trips |= {queries: 1.0, turn: math.ceil(_GROUP * _KEY_DIM / 2 / _THREADS)}
    what = Tile(f"{_ROWS} rows x {_KEYS} keys", (tile,), asked, _TILE_BYTES, named)
    return Plan(trips, weights=dict.fromkeys(mask, masked), tile=what)


def _plan_join(splits: int, model: KernelModel) -> Plan:
    values = most(model, "LDG")
    unrolled = [loop for loop in model.loops if loop is not values and model.count(loop, "LDG") >= 4]
    padding = [loop for loop in model.loops if model.count(loop, "STG") and not model.count(loop, "LDS")]
    each = 2  # splits a round
    return Plan({loop: 0.0 for loop in (*unrolled, *padding)} | {values: splits / _JOIN_WARPS / each})


def _workloads(what: str, window: int | None, batch: int) -> list[Workload]:
    keys = TOKENS + META_TOKENS + 1 if window is None else META_TOKENS + window + 1
    splits, tiles = _splits(window), _PAGED_TILES if window is None else _RING_TILES
    partials = 4 * batch * splits * _HEADS * (_VALUE_DIM + _STATS)
    where = f"1.5B layer, {what}, batch {batch}, 1 token behind 8192 + 128, bf16, {splits} splits"
    return [
        Workload(
            kernel="mma_decode_kernel<bfloat16, 64, 128, true>",
            what=where,
            tokens=batch,
            blocks=batch * _KV_HEADS * splits,
            device_bytes=2 * batch * keys * _KV_HEADS * (_KEY_DIM + _VALUE_DIM) + partials,
            plan=partial(_plan, tiles, _masked(window)),
        ),
        Workload(
            kernel="join_splits_kernel<bfloat16, 128>",
            what=where,
            tokens=batch,
            blocks=batch * _HEADS,
            device_bytes=partials + 2 * batch * _HEADS * _VALUE_DIM,
            plan=partial(_plan_join, splits),
        ),
    ]


WORKLOADS = [
    workload
    for batch in (1, 32)
    for what, window in (("window 1024", _WINDOW), ("global", None))
    for workload in _workloads(what, window, batch)
]
