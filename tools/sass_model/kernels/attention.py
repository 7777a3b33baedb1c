"""The tensor-core kernel on the 1.5B layer: a tile of 64 keys for 64 rows (query, head of the group) a round.

Tiles that need an element mask are counted in full, though most do not.
"""

import math
from functools import partial

from tools.sass_model.kernels import META_TOKENS, TOKENS, Plan, Workload, most
from tools.sass_model.predict import KernelModel

_T = TOKENS + META_TOKENS
_ROWS, _KEYS = 64, 64
_HEADS, _KV_HEADS, _KEY_DIM, _VALUE_DIM, _WINDOW = 25, 5, 64, 128, 1024
_GROUP = _HEADS // _KV_HEADS
_BLOCKS = math.ceil(_T * _GROUP / _ROWS)  # of a KV head


def _tiles(block: int, window: int | None) -> int:
    """Key tiles of a block of rows (csrc/cuda/attention_tiles.cuh)."""
    first, last = block * _ROWS // _GROUP, (min((block + 1) * _ROWS, _T * _GROUP) - 1) // _GROUP
    begin = 0 if window is None else max(first - window, 0)
    prefix = min(META_TOKENS, last + 1) if begin > META_TOKENS else 0
    prefix_tiles = math.ceil(prefix / _KEYS)
    return prefix_tiles + math.ceil((last + 1) / _KEYS) - max((begin if prefix else 0) // _KEYS, prefix_tiles)


def _plan(tiles: float, model: KernelModel) -> Plan:
    return Plan({most(model, "HMMA"): tiles})


def _workload(what: str, window: int | None) -> Workload:
    tiles = sum(_tiles(block, window) for block in range(_BLOCKS)) / _BLOCKS
    return Workload(
        kernel="mma_attention_kernel<bfloat16, 64, 128, true>",
        what=f"1.5B layer, {what}, 8192 + 128 tokens, bf16, {tiles:.1f} tiles a block",
        tokens=_T,
        blocks=_BLOCKS * _KV_HEADS,
        device_bytes=2 * _T * (_HEADS * (_KEY_DIM + _VALUE_DIM) + _KV_HEADS * (_KEY_DIM + _VALUE_DIM)),
        plan=partial(_plan, tiles),
    )


WORKLOADS = [_workload("window 1024", _WINDOW), _workload("global", None)]
