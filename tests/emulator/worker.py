"""The process that runs emulated kernels: reads cases from stdin, writes results to stdout. numpy only, no torch.

    python -m emulator.worker FOLDER_OF_THE_MODULE

A case is (function, arguments, names of arguments that it changes, mode); the reply is ("ok", results, changed) or
("error", text), or none, when the process dies of the case. An argument is (name, value), an array a Shipped.
"""

from __future__ import annotations

import os
import pickle
import sys

import numpy as np

from emulator.shipped import Shipped


def main() -> None:
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a kernel prints must not mix with the replies
    sys.path.insert(0, sys.argv[1])
    import hymba_emulated

    pickle.dump(sorted(hymba_emulated.functions), replies)
    replies.flush()
    while True:
        try:
            case = pickle.load(requests)
        except EOFError:
            return
        try:
            reply = ("ok", *run(hymba_emulated, *case))
        except Exception as error:  # reported by the test that sent the case
            reply = ("error", f"{type(error).__name__}: {error}")
        pickle.dump(reply, replies)
        replies.flush()


def run(module, op, arguments, changes, mode):
    """Results and changed arguments of one call, as Shipped arrays."""
    module.set_mode(*mode)
    placed = {name: Placed(module, value) for name, value in arguments if isinstance(value, Shipped)}
    for name in placed.keys() & changes:
        placed[name].memory.watch()
    results = module.functions[op](*(placed[name].array if name in placed else value for name, value in arguments))
    for name in placed.keys() - changes:
        if placed[name].changed():
            raise RuntimeError(f"the kernel has changed its input {name}")
    return (
        [Shipped.contiguous(result) if isinstance(result, np.ndarray) else result for result in results],
        {name: placed[name].memory.bytes().tobytes() for name in placed.keys() & changes},
    )


class Placed:
    """An argument in the emulated device's memory: same strides and misalignment, nothing addressable around it."""

    def __init__(self, module, shipped: Shipped):
        self.shipped = shipped
        self.memory = module.GuardedMemory(len(shipped.memory), shipped.misalignment)
        self.memory.bytes()[:] = np.frombuffer(shipped.memory, np.uint8)
        self.array = np.ndarray(shipped.shape, shipped.dtype, self.memory.bytes(), 0, shipped.strides)

    def changed(self) -> bool:
        return self.memory.bytes().tobytes() != self.shipped.memory


if __name__ == "__main__":
    main()
