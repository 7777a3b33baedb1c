"""The work of one op by itself, as bench/op_calls.py calls it: what its floor in a sweep on a GPU follows from.

Bytes are those of every input, read once, and of every output (a state that changes in place is both): inputs come from
memory there. A CPU's caches hold most of these sizes, so that a sweep on a CPU has no floors.
"""

from __future__ import annotations

from bench import op_calls
from bench.roofline import Work, in_proj_rows, visible_pairs
from hymba_ops import HymbaConfig


def op_work(op: str, config: HymbaConfig, layer: int, *, batch: int, length: int, element_size: int) -> Work:
    """element_size: bytes of an activation and of a weight. length: positions (update ops: one)."""
    hidden, inner, mlp = config.hidden_size, config.inner_size, config.intermediate_size
    states, taps = config.mamba_d_state, config.mamba_d_conv
    heads, kv_heads, key_dim, value_dim = (
        config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.value_head_dim
    )  # fmt: skip
    rows, in_proj = batch * length, in_proj_rows(config, layer)
    pairs = batch * heads * visible_pairs(length, config.window(layer), config.num_memory_tokens)
    # Per token: x, dt, z, y, B and C. Per channel: A in float32, D and the bias of dt.
    scan = element_size * rows * (4 * inner + 2 * states) + 4 * inner * (states + 2)
    # Per channel and state an exp; per channel softplus (exp, log) and the gate (exp, reciprocal).
    scan_special = rows * inner * (states + 4)

    # decode_attention: keys that a token sees, and entries of the block table.
    meta, window = config.num_memory_tokens, config.window(layer)
    cached = meta + (op_calls.CONTEXT if window is None else window + 1)
    table = batch * op_calls.CONTEXT // op_calls.PAGE if window is None else 0

    def elements(count: int) -> int:
        return element_size * count

    return {
        "attention": Work(
            flop=2 * pairs * (key_dim + value_dim),
            special=pairs,
            bytes=elements(rows * (heads + kv_heads) * (key_dim + value_dim)),
        ),
        "decode_attention": Work(
            flop=2 * batch * heads * cached * (key_dim + value_dim),
            special=batch * heads * cached,
            # Keys and values of meta tokens once, of the cache, q and out, and new ones twice: they are written too.
            bytes=elements(
                (kv_heads * (meta + batch * (cached - meta + 2)) + batch * heads) * (key_dim + value_dim)
            ) + 4 * (batch + key_dim // 2 + table),
        ),
        "selective_scan": Work(special=scan_special, bytes=scan),
        "causal_conv1d": Work(flop=2 * taps * rows * inner, bytes=elements(inner * (2 * rows + taps + 1))),
        "rotary": Work(bytes=elements(2 * rows * heads * key_dim) + 4 * (length + key_dim // 2)),
        "rms_norm": Work(bytes=elements(hidden * (2 * rows + 1))),
        "norm_average": Work(bytes=elements(inner * (3 * rows + 2))),
        "norm_project": Work(
            flop=2 * rows * hidden * in_proj, bytes=elements(rows * (hidden + in_proj) + hidden * (in_proj + 1))
        ),
        "norm_average_project": Work(
            flop=2 * rows * inner * hidden, bytes=elements(rows * (2 * inner + hidden) + inner * (2 + hidden))
        ),
        "linear": Work(
            flop=2 * rows * hidden * in_proj, bytes=elements(rows * (hidden + in_proj) + hidden * in_proj)
        ),
        "gated_linear": Work(
            flop=4 * rows * hidden * mlp, bytes=elements(rows * (hidden + mlp) + 2 * hidden * mlp)
        ),
        "gated_mlp": Work(
            # x and out; the norm, three weights and two counters.
            flop=6 * rows * hidden * mlp, bytes=elements(2 * rows * hidden + hidden + 3 * hidden * mlp) + 8
        ),
        "causal_conv1d_update": Work(
            flop=2 * taps * rows * inner, bytes=elements(inner * (rows * (2 + 2 * (taps - 1)) + taps + 1))
        ),
        "mamba_update": Work(
            flop=2 * rows * inner * (taps + 2 * config.dt_rank + 2 * states),
            special=scan_special,
            # x, z, out and the conv state twice; filter, x_proj, dt_proj, norms and dt_bias; A and D in float32, the
            # states twice; two counters.
            bytes=elements(inner * (rows * (3 + 2 * (taps - 1)) + taps + 2 + 2 * (config.dt_rank + states)))
            + elements(config.dt_rank + 2 * states) + 4 * inner * (states + 1 + 2 * rows * states) + 8,
        ),
        "selective_state_update": Work(special=scan_special, bytes=scan + 2 * 4 * rows * inner * states),
    }[op]  # fmt: skip
