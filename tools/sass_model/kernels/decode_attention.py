"""The last token of 8192 + 128 in a sliding or a global layer: splits of the keys, which a row's last block joins.

A tile has 128 keys, a quarter a warp; a split is one tile of a ring, two of pages
(csrc/cuda/decode_attention_splits.cuh). One block in as many as a row has splits joins. Where a
launch is one wave, that block's way is how long it takes: there all blocks join, or a KV head's last ones are by
themselves.
"""

import math
from functools import partial

from tools.sass_model.control_flow import Loop
from tools.sass_model.kernels import (
    META_TOKENS,
    TOKENS,
    WINDOW,
    Case,
    Plan,
    Tile,
    Workload,
    blocks_with,
    most,
    packs,
    warps_of,
)
from tools.sass_model.predict import KernelModel

_ROWS, _KEYS, _WARPS, _THREADS = 16, 128, 4, 128  # of the rows one token has five
_AHEAD = 12  # splits that the join asks for at once
_HEADS, _KV_HEADS, _KEY_DIM, _VALUE_DIM = 25, 5, 64, 128
_GROUP = _HEADS // _KV_HEADS
_STATS = 2  # maximum and sum of a split
_RING_TILES, _PAGED_TILES = 1, 2
_TILE_BYTES = 2 * _KEYS * (_KEY_DIM + _VALUE_DIM)


def _tiles(window: int | None) -> int:
    """Key tiles that the token sees."""
    position = META_TOKENS + TOKENS - 1
    if window is None:
        return math.ceil((position + 1) / _KEYS)
    return math.ceil(META_TOKENS / _KEYS) + math.ceil((position + 1) / _KEYS) - (position - window) // _KEYS


def _splits(window: int | None) -> int:
    return math.ceil(_tiles(window) / (_PAGED_TILES if window is None else _RING_TILES))


def _masked(window: int | None) -> float:
    """The part of tiles that some of their rows do not see whole: the last one, and the window's first."""
    return (1 if window is None else 2) / _tiles(window)


def _plan(tiles: int, masked: float, splits: int, joins: float, model: KernelModel) -> Plan:
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
    trips |= _join_trips(splits, joins, model)
    what = Tile(f"{_ROWS} rows x {_KEYS} keys", (tile,), asked, _TILE_BYTES, named)
    return Plan(trips, weights=dict.fromkeys(mask, masked), tile=what)


def _join_trips(splits: int, part: float, model: KernelModel) -> dict[Loop, float]:
    """Rounds of the join's loops, where this part of the blocks joins: a warp has a row at a time."""
    ahead = most(model, "LDG")
    columns = ahead.parent
    assert columns is not None and columns.parent is not None
    rows = columns.parent
    inside = [loop for loop in model.loops if loop.parent is rows]
    return dict.fromkeys(inside, float(math.ceil(splits / 32))) | {
        rows: part * math.ceil(_GROUP / _WARPS),
        columns: 1.0,
        ahead: float(math.ceil(splits / _AHEAD)),
    }


def _workload(layer: str, window: int | None, batch: int, *, join: bool = False) -> Workload:
    """join: blocks that join, else their average."""
    keys = TOKENS + META_TOKENS if window is None else META_TOKENS + window + 1
    splits, tiles = _splits(window), _PAGED_TILES if window is None else _RING_TILES
    partials = 4 * batch * splits * _HEADS * (_VALUE_DIM + _STATS)
    alone = join and window is None
    return Workload(
        kernel="mma_decode_kernel<bfloat16, 64, 128, true>",
        case=Case("decode_attention", layer=layer, batch=batch, length=1),
        detail=f"the last of {TOKENS} + {META_TOKENS}, {splits} splits"
        + (", all blocks join" if join and not alone else ""),
        part="the blocks that join" if alone else "",
        blocks=batch * _KV_HEADS * (1 if alone else splits),
        device_bytes=2 * batch * keys * _KV_HEADS * (_KEY_DIM + _VALUE_DIM) / (splits if alone else 1) + partials,
        plan=partial(_plan, tiles, _masked(window), splits, 1.0 if join else 1 / splits),
    )


WORKLOADS = [
    _workload("sliding", WINDOW, 1, join=True),
    _workload("global", None, 1),
    _workload("global", None, 1, join=True),
    _workload("sliding", WINDOW, 32),
    _workload("global", None, 32),
]
