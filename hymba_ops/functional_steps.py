"""The kernels of a step of decoding as functions: what changes caches and states in place, or has no gradients.

Layouts, dtypes and errors are those of `functional`, which has these functions too.
"""

from __future__ import annotations

from torch import Tensor, is_grad_enabled

from hymba_ops import _ops


def decode_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    counts: Tensor | None = None,
    slots: Tensor | None = None,
    block_table: Tensor | None = None,
    meta_k: Tensor | None = None,
    meta_v: Tensor | None = None,
    window: int | None = None,
    scale: float | None = None,
    inv_freq: Tensor | None = None,
    counters: Tensor | None = None,
) -> Tensor:
    """`attention` of the next 1 to 16 tokens of each row on cached keys; the caches change in place.

    The new keys, turned by RoPE, and the new values go into the cache, then each token attends to what it sees:
    positions count the M meta keys, which stand before every row, so token t of a slot has position M + t. The mask is
    that of `attention`. Slots keep their keys in one of two ways:

    - rings, without block_table: position p lies in row p mod R of the slot's ring, R >= window + n;
    - pages (PagedAttention, arXiv 2309.06180), with block_table: token t lies in row t mod page of page
      block_table[slot, t // page].

    `lengths` is only read: several layers use it in one step, and what drives the step adds the counts behind the last.

    Args:
        q: [B, n, Hq, Dk], before RoPE where inv_freq is given.
        k, v: [B, n, Hkv, Dk] before RoPE, [B, n, Hkv, Dv]; None in a layer that borrows the keys of another, which has
            put this step's into the cache.
        k_cache: rings [slots, R, Hkv, Dk], or pages [pages, page, Hkv, Dk]; keys after RoPE.
        v_cache: the same with Dv.
        lengths: int32 [slots], the tokens that a slot held before this step, meta tokens not counted.
        counts: int32 [B], how many of a row's n tokens there are; None for n. The other ones' results are zero.
        slots: int32 [B], each row's slot, all different, -1 for a padding row (its result is zero); None for row b.
        block_table: int32 [slots, P]; entries of pages without tokens, or before every window, are not used.
        meta_k, meta_v: [M, Hkv, Dk] after RoPE and [M, Hkv, Dv], the same for all slots; None for M = 0.
        window: keys visible before a token's own, >= 0; None for all (pages only).
        scale: factor on q k^T; None for 1 / sqrt(Dk).
        inv_freq: float32 [Dk / 2], as in `rotary`; None for no RoPE.
        counters: as in `gated_mlp`, but at least B * n * Hq.

    Returns:
        [B, n, Hq, Dv], q's dtype.
    """
    tensors = {"q": q, "k": k, "v": v, "k_cache": k_cache, "v_cache": v_cache, "meta_k": meta_k, "meta_v": meta_v}
    _refuse_grad("decode_attention", **tensors)
    return _ops.call(
        "decode_attention", q, k, v, k_cache, v_cache, lengths, counts, slots, block_table, meta_k, meta_v, window,
        scale, inv_freq, counters,
    )  # fmt: skip


def causal_conv1d_update(
    x: Tensor,
    state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = "silu",
    slots_in: Tensor | None = None,
    slots_out: Tensor | None = None,
) -> Tensor:
    """`causal_conv1d` of the next 1 to 16 tokens; the state changes in place.

    Args:
        x: [B, C] or [B, n, C].
        state: [slots, K - 1, C], x's dtype.
        weight, bias, activation: as in `causal_conv1d`.
        slots_in, slots_out: int32 [B], the rows of `state` to read and to write; None for row b, and for slots_in.
            -1 marks a padding row, which is skipped (its output is zero). No row may write a slot that another row
            reads or writes.

    Returns:
        x's shape and dtype.
    """
    _refuse_grad("causal_conv1d_update", x=x, state=state, weight=weight, bias=bias)
    silu = is_silu("causal_conv1d_update", activation)
    return _ops.call("causal_conv1d_update", x, state, weight, bias, silu, slots_in, slots_out)


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = True,
    slots_in: Tensor | None = None,
    slots_out: Tensor | None = None,
) -> Tensor:
    """`selective_scan` of the next 1 to 16 tokens; the state changes in place.

    Args:
        state: [slots, C, N], float32 (float64 for float64 inputs).
        x, dt, z: [B, C] or [B, n, C].
        B, C: [B, N] or [B, n, N].
        A, D, dt_bias, dt_softplus: as in `selective_scan`.
        slots_in, slots_out: as in `causal_conv1d_update`.

    Returns:
        x's shape and dtype.
    """
    _refuse_grad("selective_state_update", state=state, x=x, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias)
    return _ops.call("selective_state_update", state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, slots_in, slots_out)


def mamba_update(
    x: Tensor,
    z: Tensor,
    conv_state: Tensor,
    ssm_state: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj_weight: Tensor,
    dt_proj_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    *,
    dt_norm: Tensor | None = None,
    B_norm: Tensor | None = None,
    C_norm: Tensor | None = None,
    eps: float = 1e-6,
    slots: Tensor | None = None,
    counters: Tensor | None = None,
) -> Tensor:
    """The SSM branch of the next 1 to 16 tokens, from its input to its gated output; both states change in place.

    u = silu(conv(x)); dt, B, C = x_proj(u), each with its RMS norm; y = the scan of u with softplus(dt_proj(dt) +
    dt_bias), times silu(z): Mamba (arXiv 2312.00752), section 3.4, with the inner norms of Hymba. On a GPU at most 16
    tokens in all take one launch (docs/cuda_mamba_update.md says of which sizes), others one for each part.

    Args:
        x, z: [B, C] or [B, n, C].
        conv_state: [slots, K - 1, C], x's dtype.
        ssm_state: [slots, C, N], float32 (float64 for float64 inputs).
        conv_weight, conv_bias: [C, K] and [C] or None, x's dtype or float32.
        x_proj_weight: [R + 2 N, C], x's dtype: the rows of dt, of B and of C.
        dt_proj_weight: [C, R], x's dtype.
        dt_bias, D: [C], x's dtype or float32.
        A: [C, N], negative, x's dtype or float32.
        dt_norm, B_norm, C_norm: the norms' weights [R], [N] and [N], x's dtype or float32; all None for no norms.
        slots: int32 [B], each row's row of both states; None for row b. -1 marks a padding row, which is skipped (its
            output is zero). No slot may be named twice.
        counters: as in `gated_mlp`.

    Returns:
        x's shape and dtype.
    """
    _refuse_grad(
        "mamba_update", x=x, z=z, conv_state=conv_state, ssm_state=ssm_state, conv_weight=conv_weight,
        conv_bias=conv_bias, x_proj_weight=x_proj_weight, dt_proj_weight=dt_proj_weight, dt_bias=dt_bias, A=A, D=D,
        dt_norm=dt_norm, B_norm=B_norm, C_norm=C_norm,
    )  # fmt: skip
    return _ops.call(
        "mamba_update", x, z, conv_state, ssm_state, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, dt_bias, A,
        D, dt_norm, B_norm, C_norm, eps, slots, counters,
    )  # fmt: skip


def decode_branches(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    x: Tensor,
    z: Tensor,
    conv_state: Tensor,
    ssm_state: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj_weight: Tensor,
    dt_proj_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    *,
    slots: Tensor | None = None,
    block_table: Tensor | None = None,
    meta_k: Tensor | None = None,
    meta_v: Tensor | None = None,
    window: int | None = None,
    scale: float | None = None,
    inv_freq: Tensor | None = None,
    dt_norm: Tensor | None = None,
    B_norm: Tensor | None = None,
    C_norm: Tensor | None = None,
    eps: float = 1e-6,
    counters: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`decode_attention` and `mamba_update` of one step, which need nothing of each other: on a GPU they run at once.

    Args:
        q, k, v, k_cache, v_cache, lengths, block_table, meta_k, meta_v, window, scale, inv_freq: as in
            `decode_attention`.
        x, z, conv_state, ssm_state, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, dt_bias, A, D, dt_norm,
            B_norm, C_norm, eps: as in `mamba_update`, x and z [B, n, C].
        slots: as in both.
        counters: as in `gated_mlp`, but at least 2 + B * n * Hq.

    Returns:
        Attention's [B, n, Hq, Dv] and the SSM branch's [B, n, C], q's dtype.
    """
    _refuse_grad(
        "decode_branches", q=q, k=k, v=v, k_cache=k_cache, v_cache=v_cache, meta_k=meta_k, meta_v=meta_v, x=x, z=z,
        conv_state=conv_state, ssm_state=ssm_state, conv_weight=conv_weight, conv_bias=conv_bias,
        x_proj_weight=x_proj_weight, dt_proj_weight=dt_proj_weight, dt_bias=dt_bias, A=A, D=D, dt_norm=dt_norm,
        B_norm=B_norm, C_norm=C_norm,
    )  # fmt: skip
    return _ops.call(
        "decode_branches", q, k, v, k_cache, v_cache, lengths, slots, block_table, meta_k, meta_v, window, scale,
        inv_freq, x, z, conv_state, ssm_state, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, dt_bias, A, D,
        dt_norm, B_norm, C_norm, eps, counters,
    )  # fmt: skip


def gated_mlp(
    x: Tensor,
    norm_weight: Tensor,
    gate_weight: Tensor,
    weight: Tensor,
    down_weight: Tensor,
    *,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    counters: Tensor | None = None,
) -> Tensor:
    """gated_linear(rms_norm(x), gate_weight, weight) @ down_weight.T + residual. Without gradients.

    Args:
        x: [..., K], 1 to 4 dimensions.
        norm_weight: [K], x's dtype or float32.
        gate_weight, weight: [I, K], x's dtype.
        down_weight: [O, I], x's dtype.
        residual: [..., O] or None, x's dtype.
        counters: int32, at least 2 zeros on x's device, by which blocks of a GPU's kernel wait for each other: zeros
            again afterwards, and nobody else's meanwhile. None: made for the call, a launch more.

    Returns:
        [..., O], x's dtype.
    """
    tensors = {"x": x, "norm_weight": norm_weight, "gate_weight": gate_weight, "weight": weight}
    _refuse_grad("gated_mlp", **tensors, down_weight=down_weight, residual=residual)
    return _ops.call("gated_mlp", x, norm_weight, gate_weight, weight, down_weight, residual, eps, counters)


def is_silu(op: str, activation: str | None) -> bool:
    if activation not in ("silu", None):
        raise ValueError(f"{op}: activation must be 'silu' or None, got {activation!r}")
    return activation == "silu"


def _refuse_grad(op: str, **tensors: Tensor | None) -> None:
    if not is_grad_enabled():
        return
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and tensor.requires_grad:
            raise ValueError(
                f"{op}: {name} must not require grad (the op changes its state in place and has no backward), "
                "got requires_grad=True: call it under torch.no_grad()"
            )
