"""python_reference under every config switch against a second writing of golden/README.md's description."""

from __future__ import annotations

import math

import pytest
import torch
from test_reference_model import BASE, SWITCHES, random_ids, same, small_model
from torch.nn import functional as F


def norm(x, weight, eps):
    return F.rms_norm(x, [x.shape[-1]], eps=eps) * weight


def turned(x, fields):
    """x [L, heads, d]: pairs (j, j + d / 2) rotated as complex numbers, by float32 angles."""
    if not fields["rope"]:
        return x
    length, half = x.shape[0], x.shape[-1] // 2
    base = fields["rope_theta"]
    if fields["rope_type"] == "ntk":
        stretch = 2 * fields["max_position_embeddings"] / fields["orig_max_position_embeddings"] - 1
        base *= stretch ** (2 * half / (2 * half - 2))
    frequencies = 1.0 / base ** (torch.arange(half).float() / half)
    angles = (torch.arange(length).float()[:, None] * frequencies).double()
    rotated = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.cat([rotated.real, rotated.imag], dim=-1)


def head_norm(x, kind, weight):
    """x [L, heads, d]. The eps is fixed."""
    if kind == "none":
        return x
    return norm(x, weight[0, :, 0] if kind == "perhead-rms" else weight, 1e-6)


def attention_branch(q, k, v, window, num_meta):
    """One head and one query at a time."""
    (length, heads, dim), group = q.shape, q.shape[1] // k.shape[1]
    out = q.new_zeros(length, heads, v.shape[-1])
    for head in range(heads):
        for i in range(length):
            seen = [j for j in range(i + 1) if window is None or i - j <= window or j < num_meta]
            scores = k[seen, head // group] @ q[i, head] / math.sqrt(dim)
            out[i, head] = scores.softmax(0) @ v[seen, head // group]
    return out.flatten(1)


def ssm_branch(x, z, w, fields, eps):
    width, states = fields["mamba_d_conv"], fields["mamba_d_state"]
    u = F.conv1d(F.pad(x.mT, (width - 1, 0)), w["conv1d.weight"], w.get("conv1d.bias"), groups=x.shape[1]).mT
    u = u * u.sigmoid()
    projected = u @ w["x_proj.0.weight"].mT
    dt, B, C = projected[:, : -2 * states], projected[:, -2 * states : -states], projected[:, -states:]
    if fields["mamba_inner_layernorms"]:
        dt, B, C = (norm(t, w[f"{name}_layernorm.weight"], eps) for name, t in (("dt", dt), ("B", B), ("C", C)))
    dt = (1 + (dt @ w["dt_proj.0.weight"].mT + w["dt_proj.0.bias"]).exp()).log()
    h, y = torch.zeros_like(w["A_log.0"]), []
    for t in range(x.shape[0]):
        h = (-w["A_log.0"].exp() * dt[t, :, None]).exp() * h + torch.outer(dt[t] * u[t], B[t])
        y.append(h @ C[t] + w["D.0"] * u[t])
    return torch.stack(y) * z * z.sigmoid()


def layer_output(hidden, w, fields, window, kv):
    """hidden [L, H], w: the layer's weights; kv: what the layer borrows, or None. Returns hidden and (k, v)."""
    eps, heads, kv_heads = fields["rms_norm_eps"], fields["num_attention_heads"], fields["num_key_value_heads"]
    m = {name.removeprefix("mamba."): tensor for name, tensor in w.items() if name.startswith("mamba.")}
    dim, inner = hidden.shape[1] // heads, fields["mamba_expand"] * hidden.shape[1]
    rows = F.linear(norm(hidden, w["input_layernorm.weight"], eps), m["in_proj.weight"], m.get("in_proj.bias"))
    q, x, z = rows[:, : heads * dim], rows[:, -2 * inner : -inner], rows[:, -inner:]
    q = turned(head_norm(q.unflatten(1, (heads, dim)), fields["kq_norm"], m.get("self_attn.q_norm.weight")), fields)
    if kv is None:
        k, v = rows[:, heads * dim : -2 * inner].split([kv_heads * dim, kv_heads * inner // heads], dim=1)
        k, v = k.unflatten(1, (kv_heads, dim)), v.unflatten(1, (kv_heads, inner // heads))
        kv = turned(head_norm(k, fields["kq_norm"], m.get("self_attn.k_norm.weight")), fields), v

    attn = norm(attention_branch(q, *kv, window, fields["num_memory_tokens"]), m["pre_avg_layernorm1.weight"], eps)
    ssm = norm(ssm_branch(x, z, m, fields, eps), m["pre_avg_layernorm2.weight"], eps)
    hidden = hidden + F.linear((attn + ssm) / 2, m["out_proj.weight"], m.get("out_proj.bias"))
    if fields["intermediate_size"] == 0:
        return hidden, kv

    normed = norm(hidden, w["pre_moe_layernorm.weight"], eps)
    up, down = (w[f"moe.experts.0.{name}_proj.weight"] for name in ("up", "down"))
    inside = normed @ up.mT
    if fields["mlp_hidden_act"] == "relu2":
        inside = inside.clamp(min=0) ** 2
    else:
        gate = normed @ w["moe.experts.0.gate_proj.weight"].mT
        inside = gate * gate.sigmoid() * inside
    return hidden + inside @ down.mT, kv


# For each switch: {borrowing layer: producer} and the layers without a window, written down rather than derived.
SHARING = {
    "proj_bias": {}, "expand_1_conv_1": {}, "no_sharing": {}, "sharing_every_2": {1: 0, 3: 2},
}  # fmt: skip
GLOBAL = {"all_sliding": [], "sharing_every_2": [], "no_window": [0, 1, 2, 3]}


@pytest.mark.parametrize("eps", [1e-6, 1e-2], ids=["eps_1e-6", "eps_1e-2"])
@pytest.mark.parametrize("switch", SWITCHES)
def test_logits_equal_a_second_writing(switch, eps):
    changes = SWITCHES[switch][0] | {"rms_norm_eps": eps}
    fields, model, ids = BASE | changes, small_model(**changes), random_ids(1, 9)
    weights = model.state_dict()
    hidden = weights["model.embed_tokens.weight"][ids[0]]
    if fields["num_memory_tokens"] > 0:
        hidden = torch.cat([weights["model.memory_tokens"], hidden])
    made = {}
    for i in range(4):
        prefix = f"model.layers.{i}."
        own = {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}
        producer = SHARING.get(switch, {2: 1}).get(i)
        window = None if i in GLOBAL.get(switch, [0, 3]) else fields["sliding_window"]
        hidden, made[i] = layer_output(hidden, own, fields, window, made.get(producer))
    hidden = norm(hidden, weights["model.final_layernorm.weight"], eps)[-9:]
    same(model(ids).logits[0], hidden @ weights["lm_head.weight"].mT)
