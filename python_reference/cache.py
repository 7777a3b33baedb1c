"""What decoding keeps of earlier tokens."""

from __future__ import annotations

from python_reference.mixer import KeysValues, MixerState


class HymbaCache:
    """The state of a dense batch of sequences of equal length, memory tokens included; grows with every call.

    kv: keys [B, M + length, Hkv, Dk] after RoPE and values [B, M + length, Hkv, Dv] of every layer that makes its own,
        by layer index: all positions, also in layers whose window no longer sees them.
    states: conv state [B, K - 1, C] and SSM state [B, C, N] of every layer, by layer index.
    length: tokens so far, memory tokens not counted.
    """

    def __init__(self) -> None:
        self.kv: dict[int, KeysValues] = {}
        self.states: dict[int, MixerState] = {}
        self.length = 0

    @property
    def started(self) -> bool:
        """Whether the memory tokens have passed through the layers."""
        return len(self.states) > 0
