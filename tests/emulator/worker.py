"""The process that runs emulated kernels: reads cases from stdin, writes results to stdout. numpy only, no torch.

    python -m emulator.worker FOLDER_OF_THE_MODULE

A case is (op, arguments, keywords, names of arguments that the op changes, mode); the reply is ("ok", results, changed),
("error", text), or none, when the process dies of the case.
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

    ops = sorted(name for name in vars(hymba_emulated) if callable(getattr(hymba_emulated, name)))
    pickle.dump(ops, replies)
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
        module.watch(placed[name].array)
    results = getattr(module, op)(*(placed[name].array if name in placed else value for name, value in arguments))
    module.check_guards()
    for name in placed.keys() - changes:
        if placed[name].changed():
            raise RuntimeError(f"the kernel has changed its input {name}")
    results = results if isinstance(results, tuple) else (results,)
    return (
        [None if result is None else Shipped.contiguous(result) for result in results],
        {name: placed[name].buffer.tobytes() for name in placed.keys() & changes},
    )


class Placed:
    """An argument in the emulated device's memory: same strides and misalignment, nothing addressable around it."""

    def __init__(self, module, shipped: Shipped):
        self.shipped = shipped
        self.buffer = module.new_buffer(len(shipped.memory), shipped.misalignment)
        self.buffer[:] = np.frombuffer(shipped.memory, np.uint8)
        self.array = np.ndarray(shipped.shape, shipped.dtype, self.buffer, 0, shipped.strides)

    def changed(self) -> bool:
        return self.buffer.tobytes() != self.shipped.memory


if __name__ == "__main__":
    main()
