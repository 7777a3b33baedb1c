"""The tensor-core kernel on the 1.5B layer: a tile of 64 keys for 64 rows (query, head of the group) a round.

A GPU of compute capability 9.0 runs it only where TMA cannot read the keys, so here all heads share the keys of one, at
a head stride of 0. A block's tiles on the edge of what its rows see take an element mask, a basic block of its own; so
does rescaling the output, whose share of tiles depends on the scores: the time counts it in all. Queries become
fragments in the first.
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
    enters,
    most,
    packs,
    warps_of,
)
from tools.sass_model.predict import KernelModel

_T = TOKENS + META_TOKENS
_ROWS, _KEYS, _WARPS = 64, 64, 4
_HEADS, _KV_HEADS, _KEY_DIM, _VALUE_DIM = 25, 5, 64, 128
_GROUP = _HEADS // _KV_HEADS
_TILE_BYTES = 2 * _KEYS * (_KEY_DIM + _VALUE_DIM)
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


def _copies(model: KernelModel, loop: Loop) -> tuple[dict[Loop, float], set[int]]:
    """Rounds of the loops that copy a tile's keys and values, and basic blocks that lead to those which never run here.

    Rows at equal distances are copied without a branch; rows that lie in two tensors or behind the end, in a block's
    last tile at most, one by one.
    """
    inner = [child for child in loop.children if model.count(child, "LDGSTS")]
    straight = [child for child in inner if len(child.blocks) == 1]
    left = packs(_TILE_BYTES) / _WARPS - model.count(loop, "LDGSTS")
    each = sum(model.count(child, "LDGSTS") for child in straight)
    slow = [child for child in inner if child not in straight]
    trips = dict.fromkeys(straight, left / each if each else 0.0) | dict.fromkeys(slow, 0.0)
    return trips, {address for child in slow for address in enters(model, child)}


def _plan(tiles: float, masked: float, model: KernelModel) -> Plan:
    loop = most(model, "HMMA")
    # Comparisons of positions, and scores that become minus infinity.
    mask = blocks_with(model, loop, "ISETP") & blocks_with(model, loop, "FSEL")
    queries = blocks_with(model, loop, "LDSM") - blocks_with(model, loop, "HMMA")
    rescale = blocks_with(model, loop, "FMUL") - blocks_with(model, loop, "MUFU")
    trips, unused = _copies(model, loop)
    weights = dict.fromkeys(mask, masked / tiles) | dict.fromkeys(queries, 1 / tiles) | dict.fromkeys(unused, 0.0)
    scores = _ROWS * _KEYS
    asked = {
        "tensor": scores * (_KEY_DIM + _VALUE_DIM) / (16 * 8 * 16),  # m16n8k16
        "special": warps_of(scores + _ROWS),  # probabilities, and a row's factor where its maximum grows
        # Scale and shift, and the sum; of a row its shift, its factor, and the sum that follows it.
        "float": warps_of(2 * scores + 3 * _ROWS),
        "max, round": warps_of(scores + scores / 2),  # two probabilities become 16-bit at a time
        "shared loads": _WARPS * packs(_TILE_BYTES),  # keys and values once a warp
        "loads": packs(_TILE_BYTES),
    }
    sometimes = {"mask": mask, "rescaling": rescale, "queries to fragments": queries}
    named = {name: frozenset(addresses) for name, addresses in sometimes.items()}
    return Plan(
        {loop: tiles} | trips, weights=weights, tile=Tile("64 rows x 64 keys", (loop,), asked, _TILE_BYTES, named)
    )


def _workload(layer: str, window: int | None) -> Workload:
    tiles, masked = (
        sum(count) / _BLOCKS for count in zip(*(_tiles(block, window) for block in range(_BLOCKS)), strict=True)
    )
    return Workload(
        kernel="mma_attention_kernel<bfloat16, 64, 128, true>",
        case=Case("attention", "1.5B layer with one head of keys", layer),
        detail=f"{tiles:.1f} tiles a block, {masked:.1f} of them masked",
        blocks=_BLOCKS * _KV_HEADS,
        device_bytes=2 * _T * (_HEADS * (_KEY_DIM + _VALUE_DIM) + _KEY_DIM + _KV_HEADS * _VALUE_DIM),
        plan=partial(_plan, tiles, masked),
    )


WORKLOADS = [_workload("sliding", WINDOW), _workload("global", None)]
