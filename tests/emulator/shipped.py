"""How arrays travel between the test process and the worker: with their strides and what lies in between."""

from __future__ import annotations

from dataclasses import dataclass

ALIGNMENT = 256  # what the misalignment counts from; buffers of the emulated device begin at multiples of it


@dataclass
class Shipped:
    """A strided array. bfloat16 travels as uint16."""

    dtype: str  # numpy's name
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # bytes
    misalignment: int  # of the first element, in bytes behind a multiple of ALIGNMENT
    memory: bytes  # from the first element to the end of the last one

    @classmethod
    def contiguous(cls, array) -> Shipped:
        return cls(str(array.dtype), array.shape, array.strides, 0, array.tobytes())
