"""One call of a mixer over the pieces of its tokens (hymba_ops/pieces.py)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from hymba_ops.pieces import PIECE_TOKENS, Piece, cut, may_cut
from hymba_ops.streams import side_by_side

if TYPE_CHECKING:
    from hymba_ops.modules import HybridMixer

KeysValues = tuple[Tensor, Tensor]  # [B, S, Hkv, Dk] after RoPE, [B, S, Hkv, Dv]
MixerState = tuple[Tensor, Tensor]  # conv state [B or n, K - 1, C], SSM state [B or n, C, N]


class MixerCall:
    """One call of a mixer, piece by piece: keys, values and states pass from each piece to the next.

    Args: as `HybridMixer.forward`'s; `hidden` gives shape and device only.
    """

    def __init__(
        self,
        mixer: HybridMixer,
        hidden: Tensor,
        positions: Tensor | None,
        cu_seqlens: Tensor | None,
        kv: KeysValues | None,
        initial_state: MixerState | None,
    ) -> None:
        mixer.check(hidden, cu_seqlens, kv, initial_state)
        self.mixer, self.initial_state = mixer, initial_state
        batch, length = hidden.shape[:2]
        self.pieces = cut(batch, length, cu_seqlens, most=PIECE_TOKENS if may_cut(hidden) else None)
        self.kv = kv
        self.earlier = 0 if kv is None else kv[0].shape[1]
        if mixer.borrows_kv:
            self.earlier -= length  # kv holds this call's tokens too
        if positions is None:
            positions = default_positions(length, cu_seqlens, hidden.device, start=self.earlier)
        self.positions = positions
        self.decay_rates: Tensor | None = None  # A, made by the first piece's SSM branch
        self.state: MixerState | None = None  # after the last piece
        self.final_states: list[MixerState] = []

    def over_pieces(self, hidden: Tensor, step: Callable[[Piece, Tensor], Tensor]) -> Tensor:
        """step(piece, hidden's tokens of it) for each piece; what it gives, put together like `hidden`."""
        if len(self.pieces) == 1:
            return step(self.pieces[0], hidden)
        out = None
        for piece in self.pieces:
            part = step(piece, hidden[piece.rows, piece.tokens])
            out = part.new_empty(hidden.shape) if out is None else out
            out[piece.rows, piece.tokens] = part
        return cast(Tensor, out)

    def mix(self, piece: Piece, normed: Tensor, residual: Tensor | None = None) -> Tensor:
        """A piece's normalised hidden states to the mixer's output for it, plus `residual`."""
        q, k, v, x, z = self.mixer.in_proj(normed).split(self.mixer.in_proj_sizes(), dim=-1)
        (ssm, self.state), attn = side_by_side(normed.device, self._scan(piece, x, z), self._attention(piece, q, k, v))
        if piece.ends:
            self.final_states.append(self.state)
        return self.mixer.join(attn, ssm, residual)

    def _scan(self, piece: Piece, x: Tensor, z: Tensor) -> Callable[[], tuple[Tensor, MixerState]]:
        """The SSM branch's output and state, computed up to the scan."""
        mixer = self.mixer
        conv_state: Tensor | None = None
        ssm_state: Tensor | None = None
        if piece.continues:
            assert self.state is not None
            conv_state, ssm_state = self.state
        elif self.initial_state is not None:
            conv_state, ssm_state = (state[piece.states] for state in self.initial_state)
        if self.decay_rates is None:
            self.decay_rates = mixer.decay_rates()
        u, conv_state = mixer.convolve(x, piece.cu_seqlens, conv_state)
        dt, B, C = mixer.scan_inputs(u)
        operands = u, dt, self.decay_rates, B, C, z, piece.cu_seqlens, ssm_state

        def scan() -> tuple[Tensor, MixerState]:
            y, ssm_state = mixer.scan(*operands)
            return y, (conv_state, ssm_state)

        return scan

    def _attention(self, piece: Piece, q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Tensor]:
        """The attention branch's output, computed up to queries and keys after RoPE."""
        mixer = self.mixer
        positions = self.positions[..., piece.tokens]
        if positions.dim() == 2:
            positions = positions[piece.rows]
        q = mixer.norm_and_rotate("q_norm", q, positions)
        if not mixer.borrows_kv:
            k = mixer.norm_and_rotate("k_norm", k, positions)
            self._append(piece, k, v.unflatten(-1, (-1, mixer.config.value_head_dim)))
        assert self.kv is not None  # the check refuses a layer that borrows and gets none
        end = None if piece.tokens.stop is None else self.earlier + piece.tokens.stop
        keys, values = (t[piece.rows, piece.keys_from : end] for t in self.kv)
        return partial(mixer.attend, q, keys, values, piece.cu_seqlens)

    def _append(self, piece: Piece, k: Tensor, v: Tensor) -> None:
        """Puts a piece's keys and values behind the earlier ones."""
        if len(self.pieces) == 1:
            earlier = self.kv
            self.kv = (k, v) if earlier is None else (torch.cat([earlier[0], k], 1), torch.cat([earlier[1], v], 1))
            return
        if piece is self.pieces[0]:
            last = self.pieces[-1]
            shape = (last.rows.stop, self.earlier + last.tokens.stop)
            buffers = k.new_empty(*shape, *k.shape[2:]), v.new_empty(*shape, *v.shape[2:])
            if self.kv is not None:
                for buffer, earlier_part in zip(buffers, self.kv, strict=True):
                    buffer[:, : self.earlier] = earlier_part
            self.kv = buffers
        assert self.kv is not None
        place = slice(self.earlier + piece.tokens.start, self.earlier + piece.tokens.stop)
        for buffer, part in zip(self.kv, (k, v), strict=True):
            buffer[piece.rows, place] = part

    def results(self) -> tuple[KeysValues, MixerState]:
        """Keys and values, and the final states, once all pieces are done."""
        assert self.kv is not None
        if len(self.final_states) == 1:
            return self.kv, self.final_states[0]
        conv_states, ssm_states = zip(*self.final_states, strict=True)
        return self.kv, (torch.cat(conv_states), torch.cat(ssm_states))


def default_positions(length: int, cu_seqlens: Tensor | None, device: torch.device, start: int = 0) -> Tensor:
    """int32 [length]: start + arange, or in packed rows each row's distance from its sequence's first row."""
    if cu_seqlens is None:
        return torch.arange(start, start + length, device=device, dtype=torch.int32)
    rows = torch.arange(length, device=device, dtype=torch.int32)
    sequence = torch.searchsorted(cu_seqlens, rows, right=True) - 1
    return rows - cu_seqlens[sequence]
