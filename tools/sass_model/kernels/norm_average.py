"""A block reads, sums and writes a row of each branch; a thread holds up to 4 chunks of either.

Weights are bfloat16. Rounds without elements run, but for their loads and stores.
"""

from tools.sass_model.kernels import (
    INNER,
    META_TOKENS,
    TOKENS,
    Case,
    Plan,
    Tile,
    Workload,
    blocks_with,
    packs,
    warps_of,
)
from tools.sass_model.predict import KernelModel

_ROWS = TOKENS + META_TOKENS


def _plan(model: KernelModel) -> Plan:
    loads, widened = blocks_with(model, None, "LDG"), blocks_with(model, None, "PRMT")
    asked = {
        "special": 2.0,  # a square root a branch
        # Of each branch's elements the square, its weight times the row's factor, and that times the element.
        "float": warps_of(2 * 3 * INNER),
        "max, round": warps_of(INNER / 2),  # two at a time
        "loads": packs(2 * 4 * INNER),  # rows and weights
        "stores": packs(2 * INNER),
    }
    tile = Tile("a row", (None,), asked, memory_bytes=3 * 2 * INNER)
    return Plan({}, weights=dict.fromkeys(loads - widened, 0.0), tile=tile)  # weights that are float32


WORKLOADS = [
    Workload(
        kernel="norm_average_kernel<bfloat16, true, true>",
        case=Case("norm_average"),
        blocks=_ROWS,
        device_bytes=3 * 2 * INNER * _ROWS,
        plan=_plan,
    )
]
