"""A block reads, sums and writes a row of each branch; a thread holds up to 4 chunks of either.

Both kinds of weights' loads are counted, one of them runs; and the second reading of rows that registers do not hold,
which does not run. Rounds without elements run, but for their loads and stores.
"""

from tools.sass_model.kernels import INNER, META_TOKENS, TOKENS, Plan, Workload
from tools.sass_model.predict import KernelModel

_ROWS = TOKENS + META_TOKENS


def _plan(model: KernelModel) -> Plan:
    return Plan({})


WORKLOADS = [
    Workload(
        kernel="norm_average_kernel<bfloat16, true, true>",
        what="1.5B layer, 8192 + 128 tokens, bf16",
        tokens=_ROWS,
        blocks=_ROWS,
        device_bytes=3 * 2 * INNER * _ROWS,
        plan=_plan,
    )
]
