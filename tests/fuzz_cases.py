"""Random calls of every op for test_fuzz.py: a strategy of plain numbers for each, and the tensors made from them.

A case is a dict of sizes and switches, which hypothesis prints and shrinks; the tensors' values follow from its seed.
"""

from __future__ import annotations

import math
import random
from itertools import cycle

import torch
from hypothesis import strategies as st

from kernel_cases import cu_seqlens, dense, strided, unaligned

# With fewer results than this a sum that cancels by chance makes "the plain form's error" and "the rms of the results"
# (tolerance.py) meaningless, so nothing may cancel: all values are positive.
ENOUGH_RESULTS = 64
F32_OR_F64 = {torch.float64: torch.float64}  # the states' dtype beside each input dtype, default float32


def transposed(x):
    """x with its first dimensions in memory in the opposite order."""
    order = [*reversed(range(x.dim() - 1)), x.dim() - 1]  # its own inverse
    return x.permute(order).contiguous().permute(order)


LAYOUTS = {"dense": dense, "strided": strided, "unaligned": unaligned, "transposed": transposed}


def size(low, high, *edges):
    return st.sampled_from(edges) | st.integers(low, high) if edges else st.integers(low, high)


COMMON = {
    "dtype": st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    "f32_parameters": st.booleans(),
    "layouts": st.lists(st.sampled_from(sorted(LAYOUTS)), min_size=1, max_size=3),
    "seed": st.integers(0, 2**20),
}
BATCH = size(0, 3)
TOKENS = {
    "B": BATCH,
    "T": size(0, 150, 0, 1, 32, 33, 64, 65),
    # Packed: lengths of the sequences, then `tail` rows that belong to none; B and T do not count.
    "lengths": st.none() | st.lists(size(0, 90, 0, 1, 32, 64), max_size=5),
    "tail": size(0, 5, 0),
}
SLOTS = {"slots": st.sampled_from(["none", "in", "out", "in and out", "fork"]), "padding": st.booleans()}
STEP = {"B": size(0, 5), "n": st.none() | size(1, 16)}
WIDTH = {"C": size(0, 80, 0, 1, 8, 16, 64), "K": size(1, 8), "bias": st.booleans(), "silu": st.booleans()}
SCAN = {
    "C": size(0, 80, 0, 1, 16, 63, 64, 65), "N": size(1, 40, 1, 16, 16), "softplus": st.booleans(), "D": st.booleans(),
    "z": st.booleans(), "dt_bias": st.booleans(),
}  # fmt: skip
ROWS = {"rows": st.lists(size(0, 7), max_size=3), "D": size(1, 200, 1, 16, 80), "eps": st.sampled_from([1e-6, 1e-2])}
EXTRAS = {"bias": st.booleans(), "residual": st.booleans()}
PRODUCT = {
    "rows": st.lists(size(0, 20, 1, 4, 5, 6, 7), max_size=3), "K": size(1, 400, 1, 8, 320, 321),
    "O": size(0, 150, 0, 1, 16, 17, 64),
}  # fmt: skip


class Tensors:
    """Makes a case's tensors. results: how many numbers the smallest of the op's outputs holds."""

    def __init__(self, case, results):
        self.dtype, self.f32_parameters = case["dtype"], case["f32_parameters"]
        self.positive = results < ENOUGH_RESULTS
        self.layouts = cycle(case["layouts"])
        self.generator = torch.Generator().manual_seed(case["seed"])

    def __call__(self, *shape, scale=1.0, dtype=None):
        values = torch.randn(shape, generator=self.generator)
        if self.positive:
            values = values.abs().clamp(max=2) / 2 + 0.25
        x = (values * scale).to(dtype or self.dtype)
        return self.laid_out(x)

    def laid_out(self, x):
        return LAYOUTS[next(self.layouts)](x) if x.numel() > 0 else x

    def parameter(self, *shape, scale=1.0):
        return self(*shape, scale=scale, dtype=torch.float32 if self.f32_parameters else None)

    def state(self, *shape):
        return self(*shape, dtype=F32_OR_F64.get(self.dtype, torch.float32))


def batch_and_tokens(case):
    """B, T, the number of sequences and cu_seqlens."""
    if case["lengths"] is None:
        return case["B"], case["T"], case["B"], None
    return 1, sum(case["lengths"]) + case["tail"], len(case["lengths"]), cu_seqlens(*case["lengths"])


def draw_slots(case, rows):
    """slots_in, slots_out and the number of the state's rows: none written by a row is read or written by another."""
    kind, rng = case["slots"], random.Random(case["seed"])
    if kind == "none":
        return None, None, rows
    order = list(range(2 * rows + 1))
    if kind != "out":
        rng.shuffle(order)
    read, written = order[:rows], order[rows : 2 * rows]
    if kind == "fork":
        read = order[-1:] * rows
    elif kind != "in":
        written = [rng.choice(pair) for pair in zip(read, written, strict=True)]
    if case["padding"]:
        read, written = ([-1 if rng.random() < 0.3 else slot for slot in slots] for slots in (read, written))
    read, written = (torch.tensor(slots, dtype=torch.int32) for slots in (read, written))
    return None if kind == "out" else read, None if kind == "in" else written, len(order)


# ---- One function an op: the keyword arguments of a case ----


def attention(case):
    B, T, _, starts = batch_and_tokens(case)
    S, key_starts = T + case["more_keys"], None
    if starts is not None:
        key_starts = cu_seqlens(*[n + (case["more_keys"] if i % 2 else 0) for i, n in enumerate(case["lengths"])])
        S = key_starts[-1].item() + case["tail"]
        if case["more_keys"] == 0:
            key_starts = None  # the queries' serve
    heads = case["Hkv"] * case["group"]
    tensors = Tensors(case, B * T * heads)  # lse is the smaller output
    separate = case["separate_meta"]
    shape = (case["num_meta"], case["Hkv"]) if separate else None
    return {
        "q": tensors(B, T, heads, case["Dk"]),
        "k": tensors(B, S, case["Hkv"], case["Dk"]),
        "v": tensors(B, S, case["Hkv"], case["Dv"]),
        "window": case["window"],
        "num_meta": 0 if separate else case["num_meta"],
        "scale": case["scale"],
        "meta_k": tensors(*shape, case["Dk"]) if separate else None,
        "meta_v": tensors(*shape, case["Dv"]) if separate else None,
        "cu_seqlens": starts,
        "cu_seqlens_k": key_starts,
        "return_lse": True,
    }


def rotary(case):
    B, T, H, D = case["B"], case["T"], case["H"], 2 * case["half"]
    shape = (B, T) if case["position_rows"] else (T,)
    generator = torch.Generator().manual_seed(case["seed"])
    return {
        "x": Tensors(case, B * T * H * D)(B, T, H, D),
        "positions": torch.randint(0, case["positions"], shape, generator=generator, dtype=torch.int32),
        "inv_freq": 10000.0 ** -(torch.arange(case["half"], dtype=torch.float32) / case["half"]),
    }


def causal_conv1d(case):
    B, T, count, starts = batch_and_tokens(case)
    C, K = case["C"], case["K"]
    tensors = Tensors(case, min(B * T * C, count * (K - 1) * C))
    return {
        "x": tensors(B, T, C),
        "weight": tensors.parameter(C, K),
        "bias": tensors.parameter(C) if case["bias"] else None,
        "activation": "silu" if case["silu"] else None,
        "initial_state": tensors(count, K - 1, C) if case["with_state"] else None,
        "return_final_state": True,
        "cu_seqlens": starts,
    }


def scan_operands(tensors, case, *leading):
    C, N = case["C"], case["N"]
    # dt > 0 without softplus; with positive values the decays stay below 1 in any case.
    dt = tensors(*leading, C, scale=0.5)
    return {
        "x": tensors(*leading, C),
        "dt": dt if case["softplus"] else dt.abs(),
        "A": -(tensors.parameter(C, N, scale=0.7).exp()),
        "B": tensors(*leading, N),
        "C": tensors(*leading, N, scale=1 / math.sqrt(N)),
        "D": tensors.parameter(C) if case["D"] else None,
        "z": tensors(*leading, C) if case["z"] else None,
        "dt_bias": tensors.parameter(C).abs() if case["dt_bias"] else None,
        "dt_softplus": case["softplus"],
    }


def selective_scan(case):
    B, T, count, starts = batch_and_tokens(case)
    tensors = Tensors(case, min(B * T * case["C"], count * case["C"] * case["N"]))
    return {
        **scan_operands(tensors, case, B, T),
        "initial_state": tensors.state(count, case["C"], case["N"]) if case["with_state"] else None,
        "return_final_state": True,
        "cu_seqlens": starts,
    }


def step_shape(case):
    return (case["B"],) if case["n"] is None else (case["B"], case["n"])


def decode_attention(case):
    """Slots, all of them with tokens, of which some are a row's; what the caches hold beside is somebody's."""
    rng = random.Random(case["seed"])
    B, n, Hkv, Dk, Dv, M = (case[name] for name in ("B", "n", "Hkv", "Dk", "Dv", "M"))
    page, window = case["page"], case["window"]
    if page is None and (window is None or window > 200):
        window = 30
    tensors = Tensors(case, B * n * Hkv * case["group"] * Dv)
    count = B if case["slots"] == "none" else B + 2
    lengths = [rng.choice([0, 1, rng.randrange(200)]) for _ in range(count)]
    table = None
    if page is None:
        shape = (count, window + n + rng.choice([0, 0, 13]))
    else:
        each = max((-(-(length + n) // page) for length in lengths), default=1)
        table = torch.randperm(max(count * each, 1), generator=torch.Generator().manual_seed(case["seed"]))
        shape, table = (len(table), page), table[: count * each].view(count, each).int()
    slots = None
    if case["slots"] != "none":
        slots = rng.sample(range(count), B)
        if case["padding"]:
            slots = [-1 if rng.random() < 0.3 else slot for slot in slots]
    counts = [rng.randint(0, n) for _ in range(B)] if case["fewer"] else None

    def int32(values):
        return None if values is None else torch.tensor(values, dtype=torch.int32)

    def new(*sizes):
        return None if case["borrows"] else tensors(*sizes)

    return {
        "q": tensors(B, n, Hkv * case["group"], Dk),
        "k": new(B, n, Hkv, Dk),
        "v": new(B, n, Hkv, Dv),
        "k_cache": tensors(*shape, Hkv, Dk),
        "v_cache": tensors(*shape, Hkv, Dv),
        "lengths": int32(lengths),
        "counts": int32(counts),
        "slots": int32(slots),
        "block_table": table,
        "meta_k": tensors(M, Hkv, Dk) if M else None,
        "meta_v": tensors(M, Hkv, Dv) if M else None,
        "window": window,
        "scale": case["scale"],
        "inv_freq": torch.rand(Dk // 2, generator=tensors.generator) if case["rope"] and Dk % 2 == 0 else None,
    }


def causal_conv1d_update(case):
    C, K = case["C"], case["K"]
    slots_in, slots_out, rows = draw_slots(case, case["B"])
    tensors = Tensors(case, min(math.prod(step_shape(case)) * C, rows * (K - 1) * C))
    return {
        "x": tensors(*step_shape(case), C),
        "state": tensors(rows, K - 1, C),
        "weight": tensors.parameter(C, K),
        "bias": tensors.parameter(C) if case["bias"] else None,
        "activation": "silu" if case["silu"] else None,
        "slots_in": slots_in,
        "slots_out": slots_out,
    }


def selective_state_update(case):
    slots_in, slots_out, rows = draw_slots(case, case["B"])
    tensors = Tensors(case, min(math.prod(step_shape(case)) * case["C"], rows * case["C"] * case["N"]))
    return {
        "state": tensors.state(rows, case["C"], case["N"]),
        **scan_operands(tensors, case, *step_shape(case)),
        "slots_in": slots_in,
        "slots_out": slots_out,
    }


def mamba_update(case):
    C, K, N, R = (case[name] for name in ("C", "K", "N", "R"))
    slots, _, rows = draw_slots(case | {"slots": case["slots"] if case["slots"] == "none" else "in"}, case["B"])
    tensors = Tensors(case, min(math.prod(step_shape(case)) * C, rows * C * min(K - 1, N)))
    arguments = {
        "x": tensors(*step_shape(case), C),
        "z": tensors(*step_shape(case), C),
        "conv_state": tensors(rows, K - 1, C),
        "ssm_state": tensors.state(rows, C, N),
        "conv_weight": tensors.parameter(C, K, scale=1 / math.sqrt(K)),
        "conv_bias": tensors.parameter(C) if case["bias"] else None,
        "x_proj_weight": tensors(R + 2 * N, C, scale=1 / math.sqrt(C)),
        "dt_proj_weight": tensors(C, R, scale=1 / math.sqrt(R)),
        "dt_bias": tensors.parameter(C).abs(),
        "A": -(tensors.parameter(C, N, scale=0.7).exp()),
        "D": tensors.parameter(C),
        "eps": case["eps"],
        "slots": slots,
    }
    if case["norms"]:
        arguments |= {"dt_norm": tensors.parameter(R), "B_norm": tensors.parameter(N), "C_norm": tensors.parameter(N)}
    return arguments


def rms_norm(case):
    D = case["D"]
    tensors = Tensors(case, math.prod(case["rows"]) * D)
    return {"x": tensors(*case["rows"], D, scale=3.0), "weight": tensors.parameter(D), "eps": case["eps"]}


def norm_average(case):
    D = case["D"]
    tensors = Tensors(case, math.prod(case["rows"]) * D)
    return {
        "attn": tensors(*case["rows"], D, scale=3.0),
        "ssm": tensors(*case["rows"], D, scale=0.3),
        "attn_weight": tensors.parameter(D),
        "ssm_weight": tensors.parameter(D),
        "eps": case["eps"],
    }


def norm_average_project(case):
    """The average is rounded before it is projected. Where only a few roundings decide the result, the plain form may
    be lucky in them: low precision comes with many rows, columns and outputs."""
    outputs, D = case["O"], case["D"]
    if case["dtype"] in (torch.bfloat16, torch.float16):
        outputs, D, case = outputs + 30, D + 30, {**case, "rows": [*case["rows"][:1], 30]}
    arguments = norm_average({**case, "D": D})
    tensors = Tensors(case, math.prod(case["rows"]) * min(outputs, D))
    weight = tensors(outputs, D, scale=1 / math.sqrt(D))
    return {**arguments, "proj_weight": weight, **bias_and_residual(tensors, case, outputs)}


def norm_project(case):
    outputs, D = case["O"], case["D"]
    arguments = rms_norm(case)
    tensors = Tensors(case, math.prod(case["rows"]) * min(outputs, D))
    return {
        "x": arguments["x"],
        "norm_weight": arguments["weight"],
        "proj_weight": tensors(outputs, D, scale=1 / math.sqrt(D)),
        "eps": case["eps"],
        **bias_and_residual(tensors, case, outputs),
    }


def gated_mlp(case):
    K, inner, outputs = case["K"], case["I"], case["O"]
    tensors = Tensors(case, math.prod(case["rows"]) * outputs)
    return {
        "x": tensors(*case["rows"], K, scale=3.0),
        "norm_weight": tensors.parameter(K),
        "gate_weight": tensors(inner, K, scale=1 / math.sqrt(K)),
        "weight": tensors(inner, K, scale=1 / math.sqrt(K)),
        "down_weight": tensors(outputs, inner, scale=1 / math.sqrt(inner)),
        "eps": case["eps"],
        "residual": tensors(*case["rows"], outputs) if case["residual"] else None,
    }


def decode_branches(case):
    """Every token of every row, and the slots of attention for both."""
    attention = decode_attention(case | {"fewer": False})
    rows = len(attention["lengths"])
    mamba = mamba_update(case | {"slots": "none", "B": rows})
    for name in ("x", "z"):
        mamba[name] = mamba[name][: case["B"]]
    return {name: value for name, value in (mamba | attention).items() if name != "counts"}


def bias_and_residual(tensors, case, outputs):
    return {
        "bias": tensors(outputs) if case["bias"] else None,
        "residual": tensors(*case["rows"], outputs) if case["residual"] else None,
    }


def linear(case):
    K, outputs = case["K"], case["O"]
    tensors = Tensors(case, math.prod(case["rows"]) * outputs)
    return {
        "x": tensors(*case["rows"], K),
        "weight": tensors(outputs, K, scale=1 / math.sqrt(K)),
        **bias_and_residual(tensors, case, outputs),
    }


def gated_linear(case):
    K, outputs = case["K"], case["O"]
    tensors = Tensors(case, math.prod(case["rows"]) * outputs)
    gate_weight, weight = (tensors(outputs, K, scale=1 / math.sqrt(K)) for _ in range(2))
    return {"x": tensors(*case["rows"], K), "gate_weight": gate_weight, "weight": weight}


CASES = {
    attention: {
        **TOKENS, "Hkv": size(1, 3), "group": st.sampled_from([1, 1, 2, 5]), "Dk": size(1, 80, 1, 16, 64, 256),
        "Dv": size(1, 80, 1, 16, 64, 256), "window": st.none() | size(0, 80, 0, 10**12),
        "num_meta": size(0, 70, 0), "separate_meta": st.booleans(), "more_keys": size(0, 130, 0, 0, 1),
        "scale": st.sampled_from([None, 0.3]),
    },
    decode_attention: {
        "B": size(0, 4), "n": size(1, 16, 1, 1), "Hkv": size(1, 3), "group": st.sampled_from([1, 1, 2, 5]),
        "Dk": size(1, 80, 16, 64, 256), "Dv": size(1, 80, 1, 16, 64, 256), "M": size(0, 70, 0),
        "page": st.none() | size(1, 40, 16), "window": st.none() | size(0, 80, 0, 10**12),
        "scale": st.sampled_from([None, 0.3]), "rope": st.booleans(), "borrows": st.booleans(), "fewer": st.booleans(),
        **SLOTS,
    },
    rotary: {
        "B": BATCH, "T": size(0, 60, 0, 1), "H": size(0, 5), "half": size(1, 40, 1, 32), "position_rows": st.booleans(),
        "positions": st.sampled_from([1, 200, 10**6]),
    },
    causal_conv1d: {**TOKENS, **WIDTH, "with_state": st.booleans()},
    selective_scan: {**TOKENS, **SCAN, "with_state": st.booleans()},
    causal_conv1d_update: {**STEP, **WIDTH, **SLOTS},
    selective_state_update: {**STEP, **SCAN, **SLOTS},
    mamba_update: {  # of 16-bit types a few roundings decide the largest error: test_mamba_update.py has them
        "dtype": st.sampled_from([torch.float32, torch.float64]),
        **STEP, **SLOTS, "C": size(1, 80, 1, 8, 64), "K": size(1, 8), "N": size(1, 40, 1, 16, 16),
        "R": size(1, 20, 1, 8), "bias": st.booleans(), "norms": st.booleans(), "eps": st.sampled_from([1e-6, 1e-2]),
    },
    decode_branches: {
        "dtype": st.sampled_from([torch.float32, torch.float64]),
        **SLOTS, "B": size(0, 4), "n": size(1, 16, 1, 1), "Hkv": size(1, 2), "group": st.sampled_from([1, 2]),
        "Dk": size(1, 40, 16), "Dv": size(1, 40, 1, 16), "M": size(0, 40, 0), "page": st.none() | size(1, 40, 16),
        "window": st.none() | size(0, 80, 0), "scale": st.sampled_from([None, 0.3]), "rope": st.booleans(),
        "borrows": st.booleans(), "C": size(1, 40, 8), "K": size(1, 5), "N": size(1, 20, 16), "R": size(1, 12, 8),
        "bias": st.booleans(), "norms": st.booleans(), "eps": st.sampled_from([1e-6, 1e-2]),
    },
    gated_mlp: {  # as mamba_update
        "dtype": st.sampled_from([torch.float32, torch.float64]),
        **PRODUCT, "I": size(1, 90, 1, 8, 16), "residual": st.booleans(), "eps": st.sampled_from([1e-6, 1e-2]),
    },
    norm_project: {
        "dtype": st.sampled_from([torch.float32, torch.float64]), **ROWS, **EXTRAS, "O": size(0, 60),
    },
    rms_norm: ROWS,
    norm_average: ROWS,
    norm_average_project: {**ROWS, **EXTRAS, "O": size(0, 60)},
    linear: {**PRODUCT, **EXTRAS},
    gated_linear: PRODUCT,
}  # fmt: skip
# By the op's name: how a case becomes arguments, and the strategy of cases.
MAKE = {make.__name__: make for make in CASES}
STRATEGIES = {make.__name__: st.fixed_dictionaries({**COMMON, **parts}) for make, parts in CASES.items()}
