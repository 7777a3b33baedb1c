"""The Hopper kernel on the 1.5B layer: blocks that stay on their SMs and take items, 64 keys of one a round.

Eight warps consume and one loads; three more of the loading warpgroup end at once, so its code counts a quarter. An
SM's time is that of the block whose items have most tiles. The mask and moved maxima are basic blocks of their own;
how often maxima move depends on the scores, and a tenth of the tiles is a guess.
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
    rounds,
    warps_of,
)
from tools.sass_model.predict import KernelModel

_T = TOKENS + META_TOKENS
_ROWS, _KEYS, _CONSUMERS, _SMS = 128, 64, 8, 132
_HEADS, _KV_HEADS, _KEY_DIM, _VALUE_DIM = 25, 5, 64, 128
_ROOM = _ROWS // (_HEADS // _KV_HEADS)  # queries of an item
_TILE_BYTES = 2 * _KEYS * (_KEY_DIM + _VALUE_DIM)
_MOVED = 0.1


def _tiles(item: int, window: int | None) -> tuple[int, int]:
    """Key tiles of an item, and how many of them are masked (csrc/cuda/attention_sm90_items.cuh)."""
    first, last = item * _ROOM, min((item + 1) * _ROOM, _T) - 1
    begin = 0 if window is None else max(first - window, 0)
    prefix = math.ceil(min(META_TOKENS, last + 1) / _KEYS)
    others = META_TOKENS + max(begin - META_TOKENS, 0) // _KEYS * _KEYS
    keys = range(others, last + 1, _KEYS)
    whole = [key + _KEYS - 1 <= first and (window is None or last - window <= key) for key in keys]
    masked_prefix = sum(key + _KEYS - 1 > min(first, META_TOKENS - 1) for key in range(0, prefix * _KEYS, _KEYS))
    return prefix + len(keys), whole.count(False) + masked_prefix


def _longest(window: int | None) -> tuple[int, int, float]:
    """Of the block with most tiles: items, tiles, and what part of the tiles is masked (over all blocks)."""
    each = [_tiles(item, window) for item in reversed(range(math.ceil(_T / _ROOM))) for _ in range(_KV_HEADS)]
    blocks: list[list[int]] = [[] for _ in range(_SMS)]
    for index, (tiles, _) in enumerate(each):
        turn, place = divmod(index, _SMS)
        blocks[place if turn % 2 == 0 else _SMS - 1 - place].append(tiles)
    longest = max(blocks, key=sum)
    return len(longest), sum(longest), sum(masked for _, masked in each) / sum(tiles for tiles, _ in each)


def _outermost(loop: Loop) -> Loop:
    return loop if loop.parent is None else _outermost(loop.parent)


def _plan(items: int, tiles: int, masked: float, model: KernelModel) -> Plan:
    consumer = _outermost(most(model, "HGMMA"))
    producer = _outermost(most(model, "UTMALDG"))
    loop = most(model, "HGMMA", [child for child in model.loops if child.parent is consumer])
    loads = most(model, "SYNCS", [child for child in model.loops if child.parent is producer])
    each = tiles / items
    # Loops that wait, of queries that change their signs, of values that are cleared: none of them counts.
    trips = dict.fromkeys(model.loops, 0.0)
    trips |= {inner: 1.0 for inner in model.loops if model.count(inner, "UTMALDG") or inner.parent is None}
    trips |= {consumer: float(items), producer: float(items), loop: each - 1, loads: each}
    results = most(model, "STG", [child for child in model.loops if child.parent is consumer])
    trips[results] = rounds(model, results, "STG", packs(2 * 16 * _VALUE_DIM))
    has = partial(blocks_with, model, loop)
    mask = (has("FSEL") | has("VIMNMX")) - (has("FADD") | has("MUFU") | has("HGMMA") | has("FMNMX"))
    move, rescale = has("MUFU") & has("FSEL"), has("FMUL") - has("MUFU") - has("FADD")
    far = (has("FADD") & has("FMUL")) - has("MUFU")
    weights = dict.fromkeys(mask, masked) | dict.fromkeys(move | rescale, _MOVED) | dict.fromkeys(far, 0.0)
    weights |= {model.flow.address(block): 0.25 for block in producer.blocks}
    scores = _ROWS * _KEYS
    asked = {
        "tensor": _CONSUMERS * (_KEY_DIM + _KEYS) / 16,  # m64nNk16: Q K^T and P V
        "special": warps_of(scores),  # probabilities
        "float": warps_of(2 * scores + _ROWS),  # scale and shift, and the sum; a row's sum
        "max, round": warps_of(scores + scores / 2),  # two probabilities become 16-bit at a time
    }
    sometimes = {"mask": mask, "moved maximum": move | rescale, "scores far from zero": far}
    named = {name: frozenset(addresses) for name, addresses in sometimes.items()}
    return Plan(
        trips,
        roles=((_CONSUMERS, consumer), (4, producer)),
        weights=weights,
        tile=Tile(f"{_ROWS} rows x {_KEYS} keys", (loop, loads), asked, _TILE_BYTES, named),
    )


def _workload(layer: str, window: int | None) -> Workload:
    items, tiles, masked = _longest(window)
    return Workload(
        kernel=f"sm90_attention_kernel<bfloat16, {_KEY_DIM}, {_VALUE_DIM}>",
        case=Case("attention", layer=layer),
        detail=f"{tiles} tiles in the longest block's {items} items",
        blocks=_SMS,
        device_bytes=2 * _T * (_HEADS * (_KEY_DIM + _VALUE_DIM) + _KV_HEADS * (_KEY_DIM + _VALUE_DIM)),
        plan=partial(_plan, items, tiles, masked),
    )


WORKLOADS = [_workload("sliding", WINDOW), _workload("global", None)]
