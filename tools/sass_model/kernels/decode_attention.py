"""One token of a sliding or a global layer behind 8192: splits of the keys, and what joins them.

A tile has 128 keys, a quarter a warp; a split is one tile of a ring, two of pages
(csrc/cuda/decode_attention_splits.cuh).
"""

import math
from functools import partial

from tools.sass_model.control_flow import Loop
from tools.sass_model.kernels import META_TOKENS, TOKENS, Plan, Workload, most
from tools.sass_model.predict import KernelModel

_KEYS, _WARPS, _THREADS, _JOIN_WARPS = 128, 4, 128, 4
_HEADS, _KV_HEADS, _KEY_DIM, _VALUE_DIM, _WINDOW = 25, 5, 64, 128, 1024
_GROUP = _HEADS // _KV_HEADS
_STATS = 2  # maximum and sum of a split
_RING_TILES, _PAGED_TILES = 1, 2


def _tiles(window: int | None) -> int:
    """Key tiles that the token at position 8192 + 128 sees."""
    position = META_TOKENS + TOKENS
    if window is None:
        return math.ceil((position + 1) / _KEYS)
    return math.ceil(META_TOKENS / _KEYS) + math.ceil((position + 1) / _KEYS) - (position - window) // _KEYS


def _splits(window: int | None) -> int:
    return math.ceil(_tiles(window) / (_PAGED_TILES if window is None else _RING_TILES))


def _plan(tiles: int, model: KernelModel) -> Plan:
    """`tiles` of a split. This step's key is in one warp of one block, which the plan leaves out."""
    tile = most(model, "HMMA")
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
    return Plan(trips | {queries: 1.0, turn: math.ceil(_GROUP * _KEY_DIM / 2 / _THREADS)})


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
            plan=partial(_plan, tiles),
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
