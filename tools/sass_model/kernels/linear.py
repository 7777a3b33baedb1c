"""The product of few rows: chunks of k a warp; and the epilogue behind the library's: a pack a thread.

Of the epilogue's gate and residual both are counted, one of them runs.
"""

import math
from functools import partial

from tools.sass_model.kernels import HIDDEN, INNER, META_TOKENS, TOKENS, Plan, Tile, Workload, most
from tools.sass_model.predict import KernelModel

_ROWS = TOKENS + META_TOKENS
_MLP, _VECTOR, _THREADS = 5504, 8, 256
_IN_PROJ = 8960
_WARPS, _CHUNK, _TILE_OUTPUTS = 8, 32, 8  # k of a warp's round; outputs of an mma


def _plan(model: KernelModel) -> Plan:
    return Plan({})


def _few_plan(inner: int, weights: int, model: KernelModel) -> Plan:
    """A warp's rounds, in the unrolled loop as far as they go; a block's results are one a thread of half the block."""
    loop = most(model, "HMMA")
    each = model.count(loop, "HMMA") / (2 * weights)  # rounds in one of the loop
    rounds = math.ceil(inner / _CHUNK) / _WARPS
    rest = [other for other in model.loops if other is not loop and model.count(other, "HMMA")]
    trips = {loop: rounds // each if rest else rounds / each} | dict.fromkeys(rest, rounds % each)
    memory = 2 * _TILE_OUTPUTS * weights * _CHUNK * _WARPS * each
    asked = {"tensor": 2 * weights * _WARPS * each, "loads": (weights + 2) * _WARPS * each}
    return Plan(trips, tile=Tile(f"16 rows x 8 outputs x {int(_CHUNK * _WARPS * each)} k", (loop,), asked, memory))


def _few_rows(name: str, outputs: int, inner: int, weights: int = 1) -> Workload:
    return Workload(
        kernel=f"few_rows_kernel<bfloat16, 8, 1, {weights}>",
        what=f"{name}, {weights * outputs} x {inner}, 1 row, bf16",
        tokens=1,
        blocks=math.ceil(outputs / _TILE_OUTPUTS),
        device_bytes=2 * weights * outputs * inner,
        plan=partial(_few_plan, inner, weights),
    )


def _epilogue(name: str, outputs: int) -> Workload:
    return Workload(
        kernel="linear_epilogue_kernel<bfloat16, 8>",
        what=f"{name}, {outputs} wide, 8192 + 128 tokens, bf16",
        tokens=_ROWS,
        blocks=math.ceil(_ROWS * outputs / _VECTOR / _THREADS),
        device_bytes=3 * 2 * outputs * _ROWS,
        plan=_plan,
    )


WORKLOADS = [
    _few_rows("in_proj", _IN_PROJ, HIDDEN),
    _few_rows("out_proj", HIDDEN, INNER),
    _few_rows("gate and up", _MLP, HIDDEN, 2),
    _few_rows("down", HIDDEN, _MLP),
    _epilogue("gate of the MLP", _MLP),
    _epilogue("residual of out_proj", HIDDEN),
]
