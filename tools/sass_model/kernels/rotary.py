"""A thread computes one sine and cosine, then turns every 8th head of its frequencies: tiles of 8 tokens."""

import math
from functools import partial

from tools.sass_model.kernels import META_TOKENS, TOKENS, Case, Plan, Workload, rounds
from tools.sass_model.predict import KernelModel

_ROWS = TOKENS + META_TOKENS
_HEAD_DIM, _GROUPS = 64, 8
_TOKENS_OF_TILE = 256 // (_HEAD_DIM // 2)


def _plan(heads: int, model: KernelModel) -> Plan:
    loads = 2 * heads / _GROUPS  # 16-byte loads of a warp, on average
    return Plan({loop: rounds(model, loop, "LDG.E.128", loads) for loop in model.loops})


def _workload(name: str, heads: int) -> Workload:
    return Workload(
        kernel="rotary_kernel<bfloat16, 8>",
        case=Case("rotary", name),
        detail=f"{heads} heads of {_HEAD_DIM}",
        blocks=math.ceil(_ROWS / _TOKENS_OF_TILE),
        device_bytes=2 * 2 * heads * _HEAD_DIM * _ROWS,
        plan=partial(_plan, heads),
    )


WORKLOADS = [_workload("queries", 25), _workload("keys", 5)]
