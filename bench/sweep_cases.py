"""The cases of bench/sweep.py: their names, and estimates of their memory, work and time."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import hymba_ops
from bench import cases, op_calls, options, roofline
from bench.op_work import op_work


@dataclass(frozen=True)
class Case:
    """One row: an op at one size. layer: sliding or global where the op differs, else empty."""

    preset: str
    batch: int
    dtype: str
    op: str
    layer: str
    seq_len: int

    def series(self) -> str:
        """The case without its length."""
        return " ".join(filter(None, (self.preset, self.dtype, f"batch {self.batch}", self.layer, self.op)))


def case_of(row: dict[str, Any]) -> Case:
    return Case(**{field.name: row[field.name] for field in fields(Case)})


def needed_bytes(case: Case, config: hymba_ops.HymbaConfig) -> int:
    """An estimate of the most memory that a case takes at once."""
    itemsize = options.DTYPES[case.dtype].itemsize
    names = ["hymba_ops", "plain"] + ["naive"] * (case.seq_len <= op_calls.MASKED_UP_TO)
    if case.op == "layer":
        return cases.layer_bytes(
            config, batch=case.batch, length=case.seq_len, itemsize=itemsize, implementations=names
        )
    heads, kv_heads, inner = config.num_attention_heads, config.num_key_value_heads, config.inner_size
    widths = {
        "attention": heads * (config.head_dim + config.value_head_dim)
        + kv_heads * (config.head_dim + config.value_head_dim),
        "rotary": 2 * heads * config.head_dim,
        "rms_norm": 2 * config.hidden_size,
        "causal_conv1d": 2 * inner,
        "selective_scan": 4 * inner,
    }  # of inputs and output; plain has two float32 copies of each on the way
    return case.batch * case.seq_len * widths.get(case.op, 3 * inner) * 3 * 4


def relative_work(case: Case, config: hymba_ops.HymbaConfig, index: int, length: int) -> float:
    """How the time of a call grows with the length."""
    if case.op == "layer":
        return sum(amount.flop for amount in layer_work(case, config, index, length, 4).values())
    if case.op == "attention":
        return roofline.visible_pairs(length, config.window(index), config.num_memory_tokens)
    return length


def case_work(case: Case, config: hymba_ops.HymbaConfig, index: int) -> roofline.Work:
    itemsize = options.DTYPES[case.dtype].itemsize
    return op_work(case.op, config, index, batch=case.batch, length=case.seq_len, element_size=itemsize)


def layer_work(
    case: Case, config: hymba_ops.HymbaConfig, index: int, length: int, element_size: int
) -> dict[str, roofline.Work]:
    seq_len = length - config.num_memory_tokens
    return roofline.layer_work(config, index, batch=case.batch, seq_len=seq_len, element_size=element_size)
