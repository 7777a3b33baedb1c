"""The tensor-core kernel on the 1.5B layer: a tile of 64 keys for 64 rows (query, head of the group) a round.

A block's tiles on the edge of what its rows see take an element mask, a basic block of its own.
"""

import math
from functools import partial

from tools.sass_model.kernels import META_TOKENS, TOKENS, Plan, Workload, blocks_with, most
from tools.sass_model.predict import KernelModel

_T = TOKENS + META_TOKENS
_ROWS, _KEYS = 64, 64
_HEADS, _KV_HEADS, _KEY_DIM, _VALUE_DIM, _WINDOW = 25, 5, 64, 128, 1024
_GROUP = _HEADS // _KV_HEADS
_BLOCKS = math.ceil(_T * _GROUP / _ROWS)  # of a KV head


def _tiles(block: int, window: int | None) -> tuple[int, int]:
    """Key tiles of a block of rows, and how many of them are masked (csrc/cuda/attention_tiles.cuh)."""
    first, last = block * _ROWS // _GROUP, (min((block + 1) * _ROWS, _T * _GROUP) - 1) // _GROUP
    begin = 0 if window is None else max(first - window, 0)
    prefix = min(META_TOKENS, last + 1) if begin > META_TOKENS else 0
    prefix_tiles = math.ceil(prefix / _KEYS)
    first_tile = max((begin if prefix else 0) // _KEYS, prefix_tiles)
    keys = [tile * _KEYS for tile in (*range(prefix_tiles), *range(first_tile, math.ceil((last + 1) / _KEYS)))]
    whole = [
        key + _KEYS - 1 <= first and (window is None or last - key <= window or key + _KEYS <= META_TOKENS)
        for key in keys
    ]
    return len(keys), whole.count(False)


def _plan(tiles: float, masked: float, model: KernelModel) -> Plan:
    loop = most(model, "HMMA")
    # Comparisons of positions, and scores that become minus infinity.
    mask = set(blocks_with(model, loop, "ISETP")) & set(blocks_with(model, loop, "FSEL"))
    # The loops over rows that lie in two tensors or behind the end run in a block's last tile at most.
    rows = {inner: 0.0 for inner in model.loops if inner.parent is loop}
    return Plan({loop: tiles, **rows}, weights=dict.fromkeys(mask, masked / tiles))


def _workload(what: str, window: int | None) -> Workload:
    tiles, masked = (
        sum(count) / _BLOCKS for count in zip(*(_tiles(block, window) for block in range(_BLOCKS)), strict=True)
    )
    return Workload(
        kernel="mma_attention_kernel<bfloat16, 64, 128, true>",
        what=f"1.5B layer, {what}, 8192 + 128 tokens, bf16, {tiles:.1f} tiles a block, {masked:.1f} of them masked",
        tokens=_T,
        blocks=_BLOCKS * _KV_HEADS,
        device_bytes=2 * _T * (_HEADS * (_KEY_DIM + _VALUE_DIM) + _KV_HEADS * (_KEY_DIM + _VALUE_DIM)),
        plan=partial(_plan, tiles, masked),
    )


WORKLOADS = [_workload("window 1024", _WINDOW), _workload("global", None)]
