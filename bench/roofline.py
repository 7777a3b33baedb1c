"""What a layer has to do, what the machine can do, and the least time that follows: the floor.

Work is counted for the best known form of each part: a projection is its multiplications; attention touches allowed
keys only; an elementwise part reads its inputs and writes its outputs once. Special functions (exp, log, reciprocal)
are counted where they weigh: the softmax and the scan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

import hymba_ops
from bench.runner import elapsed_ms
from hymba_ops import HymbaConfig

# (x [rows, in], weight [out, in]) -> [rows, out]; the fastest sets the rate.
_PRODUCTS = {
    "cpu": (torch.nn.functional.linear, hymba_ops.linear),
    "cuda": (torch.nn.functional.linear,),
}
# Enough for the full rate. On a CPU a larger result would measure the page faults of fresh memory too.
_GEMM_ROWS = {"cpu": 512, "cuda": 4096}


@dataclass(frozen=True)
class Work:
    """flop: multiplications and additions; special: exps, logs and reciprocals; bytes: to and from memory."""

    flop: float = 0
    special: float = 0
    bytes: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.flop + other.flop, self.special + other.special, self.bytes + other.bytes)

    def __mul__(self, factor: float) -> Work:
        return Work(self.flop * factor, self.special * factor, self.bytes * factor)


def visible_pairs(length: int, window: int | None, num_meta: int) -> int:
    """Allowed (query, key) pairs of one sequence of `length` positions, meta tokens included."""
    full = length * (length + 1) // 2
    if window is None:
        return full
    # Query i sees keys i - window .. i and the first num_meta: it loses what lies between.
    most_lost = max(0, length - 1 - window - num_meta)
    return full - most_lost * (most_lost + 1) // 2


def in_proj_rows(config: HymbaConfig, layer: int) -> int:
    """Outputs of in_proj: q, k and v where the layer makes its own, SSM input and gate."""
    kv_heads = config.num_key_value_heads if config.producer(layer) == layer else 0
    kv = kv_heads * (config.head_dim + config.value_head_dim)
    return config.num_attention_heads * config.head_dim + kv + 2 * config.inner_size


def layer_work(config: HymbaConfig, layer: int, *, batch: int, seq_len: int, element_size: int) -> dict[str, Work]:
    """The work of each part of one layer's forward, for batch * (seq_len + num_memory_tokens) rows.

    element_size: bytes of an activation. Weights are not counted as bytes.
    """
    length = seq_len + config.num_memory_tokens
    hidden, inner, states, rank = config.hidden_size, config.inner_size, config.mamba_d_state, config.dt_rank
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    own_kv = kv_heads if config.producer(layer) == layer else 0
    key_dim, value_dim = config.head_dim, config.value_head_dim
    mlp_matrices = 3 if config.mlp_hidden_act == "silu" else 2

    per_row = {
        "norms": Work(bytes=4 * hidden * element_size),
        "in_proj": Work(flop=2 * hidden * in_proj_rows(config, layer)),
        "rotary": Work(bytes=2 * (heads + own_kv) * key_dim * element_size),
        "conv + SiLU": Work(flop=2 * config.mamba_d_conv * inner, bytes=2 * inner * element_size),
        "x, dt proj + norms": Work(
            flop=2 * inner * (rank + 2 * states) + 2 * rank * inner, bytes=2 * (rank + 2 * states) * element_size
        ),
        # An exp for each state; exp and log of softplus, exp and reciprocal of the gate for each channel. x, dt, z, y.
        "scan": Work(special=inner * (states + 4), bytes=4 * inner * element_size),
        # These two also read the residual stream and write it.
        "norm-average + out_proj": Work(flop=2 * inner * hidden, bytes=(3 * inner + 2 * hidden) * element_size),
        "MLP": Work(flop=2 * mlp_matrices * hidden * config.intermediate_size, bytes=2 * hidden * element_size),
    }
    work = {part: amount * (batch * length) for part, amount in per_row.items()}
    pairs = batch * heads * visible_pairs(length, config.window(layer), config.num_memory_tokens)
    work["attention"] = Work(flop=2 * pairs * (key_dim + value_dim), special=pairs)
    return {part: work[part] for part in PARTS}


PARTS = (
    "norms",
    "in_proj",
    "rotary",
    "attention",
    "conv + SiLU",
    "x, dt proj + norms",
    "scan",
    "norm-average + out_proj",
    "MLP",
)


@dataclass(frozen=True)
class Ceilings:
    """Rates of a machine: FLOP/s of its matrix products, bytes/s read, special functions/s.

    separate_units: matrix products, special functions and memory have hardware of their own and work side by side (a
    GPU); otherwise they follow each other (a CPU's vector units do both kinds of arithmetic).
    """

    gemm: float
    bandwidth: float
    special: float
    separate_units: bool

    def seconds(self, work: Work) -> float:
        """The least time for `work`."""
        times = (work.flop / self.gemm, work.special / self.special, work.bytes / self.bandwidth)
        return max(times) if self.separate_units else sum(times)

    def layer_seconds(self, work: dict[str, Work]) -> float:
        """The least time for a whole layer. On separate units attention and scan, which do not depend on each other,
        count as one: tensor cores for the one while the other fills the special-function units."""
        if not self.separate_units:
            return sum(map(self.seconds, work.values()))
        rest = sum(self.seconds(amount) for part, amount in work.items() if part not in ("attention", "scan"))
        return rest + self.seconds(work["attention"] + work["scan"])

    def best(self, other: Ceilings) -> Ceilings:
        """The higher of two measurements of one machine: other work on it only ever lowers them."""
        rates = [max(getattr(self, name), getattr(other, name)) for name in ("gemm", "bandwidth", "special")]
        return Ceilings(*rates, separate_units=self.separate_units)


# ---- Measuring ----


def measure(config: HymbaConfig, *, rows: int, device: torch.device, dtype: torch.dtype) -> Ceilings:
    """This machine's ceilings, the best of a few repeats (about two seconds)."""
    gemm = gemm_rate(config, rows, device, dtype)
    if device.type == "cuda":
        return Ceilings(gemm, _read_bandwidth(device), _cuda_exp_rate(device), separate_units=True)
    vector = gemm if dtype == torch.float32 else gemm_rate(config, rows, device, torch.float32)
    # Low precision may be widened before the product: float32's rate is then the better one on a CPU without AMX.
    return Ceilings(max(gemm, vector), _read_bandwidth(device), _cpu_exp_rate(), separate_units=False)


def _seconds(function: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The shortest of `repeats` runs, after one to warm up."""
    function()
    return min(elapsed_ms(function, device) for _ in range(repeats)) / 1e3


def gemm_rate(config: HymbaConfig, rows: int, device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s, the best of the known products over the layer's own shapes."""
    rows = min(rows, _GEMM_ROWS[device.type])
    hidden, inner, mlp = config.hidden_size, config.inner_size, config.intermediate_size
    shapes = [(hidden, in_proj_rows(config, 0)), (inner, hidden)]  # in_proj, out_proj
    if mlp:
        shapes += [(hidden, mlp), (mlp, hidden)]
    rate = 0.0
    for size_in, size_out in shapes:
        x = torch.randn(rows, size_in, device=device, dtype=dtype)
        weight = torch.randn(size_out, size_in, device=device, dtype=dtype)
        flop = 2 * rows * size_in * size_out
        repeats = 50 if device.type == "cuda" else 3 if flop > 5e9 else 20
        for product in _PRODUCTS[device.type]:
            rate = max(rate, flop / _seconds(partial(product, x, weight), device, repeats))
    return rate


def _read_bandwidth(device: torch.device) -> float:
    """Bytes/s of a sum over a tensor that no cache holds."""
    size = 1 << 30 if device.type == "cuda" else 1 << 28
    data = torch.ones(size // 4, device=device)
    return size / _seconds(data.sum, device, repeats=10)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes/s, read and written together, of a copy between two tensors that no cache holds."""
    size = 1 << 30 if device.type == "cuda" else 1 << 28
    source, target = (torch.ones(size // 4, device=device) for _ in range(2))
    return 2 * size / _seconds(partial(target.copy_, source), device, repeats=10)


def _cpu_exp_rate() -> float:
    """The kernels' own vector exp2 with nothing around it, exps/s with torch's threads."""
    x, repeats = -torch.rand(1 << 12), 3000
    return repeats * x.numel() / _seconds(lambda: torch.ops.hymba_ops._exp2_sum(x, repeats), x.device, repeats=10)


def _cuda_exp_rate(device: torch.device) -> float:
    """Hardware exp2 in registers, four independent chains a thread."""
    steps = 256
    kernel, x = torch.cuda.jiterator._create_jit_fn(_exp2_chains(steps)), torch.zeros(1 << 22, device=device)
    return 4 * steps * x.numel() / _seconds(lambda: kernel(x), device, repeats=20)


def _exp2_chains(steps: int) -> str:
    chains = "; ".join(f'asm volatile("ex2.approx.ftz.f32 %0, %0;" : "+f"({name}))' for name in "abcd")
    return (
        f"template <typename T> T chains(T x) {{ float a = x, b = x + 1, c = x + 2, d = x + 3;"
        f" for (int i = 0; i < {steps}; ++i) {{ {chains}; }} return a + b + c + d; }}"
    )
