"""--memory: how far one forward of a layer raises the resident set, in a process of its own.

`python -m bench.memory '{"preset": ..., ...}'` is that process: it prints its measurements as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from bench import cases, roofline
from bench.options import DTYPES, preset
from bench.runner import CannotRun, peak_extra_bytes, status_bytes

_ROOT = Path(__file__).resolve().parent.parent
_FIRST_CALL_LENGTH = 16  # positions of the call that loads libraries and prepares weights


def measure(
    preset_name: str, layer: str, implementation: str, *, batch: int, length: int, dtype: str, threads: int
) -> dict[str, Any]:
    """One row: the child's measurements and what they are a multiple of. length: positions, meta tokens included."""
    task = {"preset": preset_name, "layer": layer, "implementation": implementation, "batch": batch,
            "length": length, "dtype": dtype, "threads": threads}  # fmt: skip
    child = subprocess.run(
        [sys.executable, "-m", "bench.memory", json.dumps(task)], cwd=_ROOT, capture_output=True, text=True
    )
    if child.returncode != 0:
        last = (child.stderr.strip() or f"exit status {child.returncode}").splitlines()[-1]
        raise CannotRun(f"--memory: the process that measures {implementation} failed: {last}")
    measured = json.loads(child.stdout)
    if measured["growth_bytes"] is None:
        raise CannotRun("--memory needs Linux's /proc/self/clear_refs and glibc to read the peak resident set")
    config = preset(preset_name)
    width = roofline.in_proj_rows(config, cases.layer_index(config, layer)) + config.hidden_size
    outputs = batch * length * width * DTYPES[dtype].itemsize
    return task | measured | {"outputs_bytes": outputs, "multiple": measured["growth_bytes"] / outputs}


@torch.inference_mode()
def _measure_here(task: dict[str, Any]) -> dict[str, int | None]:
    torch.set_num_threads(task["threads"])
    config, dtype, device = preset(task["preset"]), DTYPES[task["dtype"]], torch.device("cpu")
    index = cases.layer_index(config, task["layer"])
    layer = cases.make_layers(config, index, [task["implementation"]], device, dtype)[task["implementation"]]
    hidden = torch.randn(task["batch"], task["length"], config.hidden_size, dtype=dtype)
    before = status_bytes("VmRSS")
    layer(hidden[:, :_FIRST_CALL_LENGTH])
    first_call = max(0, status_bytes("VmRSS") - before)
    return {"growth_bytes": peak_extra_bytes(lambda: layer(hidden), device), "first_call_bytes": first_call}


if __name__ == "__main__":
    print(json.dumps(_measure_here(json.loads(sys.argv[1]))))
