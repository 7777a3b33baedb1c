#!/usr/bin/env python3
"""One Hymba layer: hymba_ops against plain PyTorch, in a table.

    python bench/layer_throughput.py                       # both layers, 2048 tokens, float32, every core
    python bench/layer_throughput.py --parts --plot layer.png --json layer.json

Input is random hidden states of --seq-len tokens behind the preset's meta tokens, in torch.inference_mode. All rows
have the same weights, and their outputs are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

import hymba_ops
import python_reference
from bench import parts, plain, roofline
from bench.runner import Call, CannotRun, Progress, available_bytes, relative_rms, time_rounds

IMPLEMENTATIONS = ("hymba_ops", "plain", "naive", "compiled")
PRESETS = {"125m": "hymba_125m", "350m": "hymba_350m", "1.5b": "hymba_1_5b"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Largest allowed rms of a row's difference from plain, over the rms of plain: rounding of 20 to 30 steps.
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 5e-3}

Rows = list[dict[str, Any]]  # as --json writes them


class WrongOutput(Exception):
    """An implementation disagrees with the plain one."""


@dataclass
class Case:
    """One layer with its implementations and inputs."""

    name: str  # sliding or global
    index: int
    layers: dict[str, nn.Module]
    inputs: list[Tensor]  # a GPU's calls take turns through several, larger together than its L2 cache

    def calls(self, implementation: str) -> list[Call]:
        layer = self.layers[implementation]
        return [lambda hidden=hidden: layer(hidden)[0] for hidden in self.inputs]


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="cpu or cuda; default: cuda where torch sees one, else cpu")
    parser.add_argument("--dtype", default="float32", help=f"{', '.join(DTYPES)} (default float32)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seq-len", type=int, default=2048, help="tokens without the meta tokens (default 2048)")
    parser.add_argument("--layers", default="sliding,global")
    parser.add_argument("--implementations", default=",".join(IMPLEMENTATIONS))
    parser.add_argument("--preset", default="1.5b", help=", ".join(PRESETS))
    parser.add_argument("--parts", action="store_true", help="also time the layers' parts")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument("--plot", metavar="FILE", help="draw the results there (needs matplotlib; implies --parts)")
    arguments = parser.parse_args(argv)
    arguments.layers = _choices("--layers", arguments.layers, ("sliding", "global"))
    arguments.implementations = _choices("--implementations", arguments.implementations, IMPLEMENTATIONS)
    _choices("--preset", arguments.preset, tuple(PRESETS))
    _choices("--dtype", arguments.dtype, tuple(DTYPES))
    for option in ("batch", "seq_len"):
        if getattr(arguments, option) < 1:
            raise CannotRun(f"--{option.replace('_', '-')} must be at least 1, got {getattr(arguments, option)}")
    arguments.parts |= arguments.plot is not None
    if arguments.parts and "hymba_ops" not in arguments.implementations:
        raise CannotRun("--parts and --plot need hymba_ops among --implementations")
    _check_outputs(arguments)
    return arguments


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Refuses now what would be lost after minutes of timing."""
    for option in ("json", "plot"):
        path = getattr(arguments, option)
        if path and (Path(path).is_dir() or not os.access(Path(path).absolute().parent, os.W_OK)):
            raise CannotRun(f"--{option} {path}: cannot write there")
    if arguments.plot:
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise CannotRun("--plot needs matplotlib: pip install matplotlib") from None
        formats = Figure().canvas.get_supported_filetypes()
        if Path(arguments.plot).suffix[1:].lower() not in formats:
            raise CannotRun(f"--plot {arguments.plot}: the name must end in one of {', '.join(sorted(formats))}")


def _choices(option: str, text: str, allowed: tuple[str, ...]) -> list[str]:
    chosen = text.split(",")
    for choice in chosen:
        if choice not in allowed:
            raise CannotRun(f"{option} must be of {', '.join(allowed)}, got {choice!r}")
    return [choice for choice in allowed if choice in chosen]


def pick_device(wanted: str | None) -> torch.device:
    if wanted is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted not in ("cpu", "cuda"):
        raise CannotRun(f"--device must be cpu or cuda, got {wanted!r}")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise CannotRun(f"--device cuda: this torch ({torch.__version__}) sees no CUDA device")
    return torch.device(wanted)


def check_memory(config: hymba_ops.HymbaConfig, arguments: argparse.Namespace, device: torch.device) -> None:
    """Refuses before anything is allocated. An estimate: weights of every row, activations of the largest."""
    itemsize = DTYPES[arguments.dtype].itemsize
    length = arguments.seq_len + config.num_memory_tokens
    mlp = config.intermediate_size
    per_token = roofline.in_proj_rows(config, 0) + 8 * config.inner_size + 3 * mlp
    weights = config.hidden_size * (roofline.in_proj_rows(config, 0) + config.inner_size + 3 * mlp)
    needed = itemsize * (weights * len(arguments.implementations) + arguments.batch * length * per_token)
    if "naive" in arguments.implementations:  # scores of all pairs, twice
        needed += arguments.batch * config.num_attention_heads * length**2 * 2 * max(4, itemsize)
    available = available_bytes(device)
    if available is not None and needed > available:
        raise CannotRun(
            f"not enough memory on {device}: about {needed / 2**30:.1f} GiB needed, {available / 2**30:.1f} GiB "
            "available (a smaller --seq-len or --batch, or --implementations without naive, needs less)"
        )


def make_case(name: str, config: hymba_ops.HymbaConfig, arguments: argparse.Namespace, device: torch.device) -> Case:
    dtype = DTYPES[arguments.dtype]
    index = next(
        i
        for i in range(config.num_hidden_layers)
        if config.is_global(i) == (name == "global") and config.producer(i) == i
    )
    torch.manual_seed(0)
    ours = hymba_ops.HymbaLayer(config, index, device=device, dtype=dtype)
    layers: dict[str, nn.Module] = {}
    plain_config = python_reference.HymbaConfig(**config.to_dict())
    for implementation in dict.fromkeys(["plain", *arguments.implementations]):
        layer: nn.Module = ours
        if implementation != "hymba_ops":
            layer = plain.plain_layer(implementation, plain_config, index).to(device=device, dtype=dtype)
            layer.load_state_dict(ours.state_dict())
        if implementation == "compiled":
            layer = torch.compile(layer, dynamic=False)
        layers[implementation] = layer.eval()
    length = arguments.seq_len + config.num_memory_tokens
    size = arguments.batch * length * config.hidden_size
    copies = 1
    if device.type == "cuda":
        copies = 1 + 2 * torch.cuda.get_device_properties(device).L2_cache_size // (size * dtype.itemsize)
    inputs = [torch.randn(arguments.batch, length, config.hidden_size, device=device).to(dtype) for _ in range(copies)]
    return Case(name, index, layers, inputs)


def compare_outputs(case: Case, arguments: argparse.Namespace, progress: Progress) -> None:
    """Raises WrongOutput where a row differs from plain; the first calls also compile what is compiled."""
    hidden = case.inputs[0]
    expected = case.layers["plain"](hidden)[0]
    for implementation in arguments.implementations:
        if implementation == "plain":
            continue
        try:
            actual = case.layers[implementation](hidden)[0]
        except NotImplementedError as error:
            raise CannotRun(f"{_first_line(error)} (run with --device cpu)") from None
        except TorchDynamoException as error:
            raise CannotRun(f"{implementation} does not compile here: {_first_line(error)}") from None
        error = relative_rms(actual, expected)
        if not error <= TOLERANCE[arguments.dtype]:
            raise WrongOutput(
                f"{implementation} differs from plain in the {case.name} layer: relative rms {error:.2e}, "
                f"allowed {TOLERANCE[arguments.dtype]:.0e}"
            )
        progress.step(f"{case.name}: {implementation} agrees with plain (relative rms {error:.1e})")


def time_layers(case: Case, config: hymba_ops.HymbaConfig, arguments: argparse.Namespace, progress: Progress) -> Rows:
    device = case.inputs[0].device
    timings = time_rounds(
        {name: case.calls(name) for name in arguments.implementations},
        device,
        on_done=lambda name: progress.step(f"{case.name}: timing {name}"),
    )
    best_plain = timings.get("plain")
    rows = []
    for name, timing in timings.items():
        rows.append({
            "implementation": name, "mode": "forward", "layer": case.name, "dtype": arguments.dtype,
            "batch": arguments.batch, "seq_len": arguments.seq_len,
            "ms": timing.ms, "ms_min": timing.ms_min, "ms_max": timing.ms_max,
            "tokens_per_s": 1e3 * arguments.batch * arguments.seq_len / timing.ms,
            "ratio_to_best_plain": best_plain.ms / timing.ms if best_plain else None,
            "floor_ms": None, "ratio_to_floor": None,  # set_floors
            "peak_bytes": timing.peak_bytes,
        })  # fmt: skip
    return rows


def time_parts(case: Case, config: hymba_ops.HymbaConfig, arguments: argparse.Namespace, progress: Progress) -> Rows:
    ours = case.layers["hymba_ops"]
    hidden, device = case.inputs[0], case.inputs[0].device
    calls = parts.part_calls(ours, case.layers["plain"], config, case.index, hidden)
    reason = _add_flex_attention(calls["attention"], ours, config, case.index, hidden, arguments.dtype)
    rows = []
    for part in roofline.PARTS:
        timings = time_rounds({name: [call] for name, call in calls[part].items()}, device, seconds=0.5)
        progress.step(f"{case.name}: {part}")
        for name, timing in timings.items():
            rows.append({"layer": case.name, "part": part, "implementation": name, "ms": timing.ms,
                         "ms_min": timing.ms_min, "ms_max": timing.ms_max, "floor_ms": None})  # fmt: skip
    if reason:
        rows.append({"layer": case.name, "part": "attention", "implementation": "flex", "not_run": reason})
    return rows


def set_floors(
    rows: Rows, part_rows: Rows, work: dict[str, dict[str, roofline.Work]], ceilings: roofline.Ceilings
) -> None:
    """work: of each layer's parts."""
    for row in rows:
        row["floor_ms"] = 1e3 * ceilings.layer_seconds(work[row["layer"]])
        row["ratio_to_floor"] = row["ms"] / row["floor_ms"]
    for row in part_rows:
        if "ms" in row:
            row["floor_ms"] = 1e3 * ceilings.seconds(work[row["layer"]][row["part"]])


def _add_flex_attention(
    calls: dict[str, Call], ours: nn.Module, config: hymba_ops.HymbaConfig, layer: int, hidden: Tensor, dtype: str
) -> str | None:
    """Adds FlexAttention to attention's candidates where it runs and is right; else says why not."""
    inputs = parts.attention_inputs(ours, config, hidden)
    try:
        call = parts.flex_attention_call(config, layer, *inputs)
        error = relative_rms(call().transpose(1, 2), calls["plain"]())
    except Exception as reason:  # whatever the compiler raises: it is reported
        return f"{type(reason).__name__}: {_first_line(reason)}"
    allowed = TOLERANCE[dtype]
    if not error <= allowed:
        return f"it differs from plain: relative rms {error:.2e}, allowed {allowed:.0e}"
    calls["flex"] = call
    return None


def _work(case: Case, config: hymba_ops.HymbaConfig, arguments: argparse.Namespace) -> dict[str, roofline.Work]:
    itemsize = DTYPES[arguments.dtype].itemsize
    return roofline.layer_work(
        config, case.index, batch=arguments.batch, seq_len=arguments.seq_len, element_size=itemsize
    )


def describe_machine(device: torch.device, ceilings: roofline.Ceilings) -> dict[str, Any]:
    facts = hymba_ops.build_info()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "kernels": facts["selected"],
        "torch": facts["torch"],
        "hymba_ops": facts["version"],
        "gemm_gflops": ceilings.gemm / 1e9,
        "exp_g_per_s": ceilings.special / 1e9,
        "bandwidth_gb_per_s": ceilings.bandwidth / 1e9,
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{model}, {os.cpu_count()} cores"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def print_layers(rows: Rows) -> None:
    lines: list[tuple[str, ...]] = [("layer", "implementation", "ms", "(min - max)", "tokens/s", "x plain", "floor ms",
                                     "x floor", "extra memory")]  # fmt: skip
    for row in rows:
        ratio, peak = row["ratio_to_best_plain"], row["peak_bytes"]
        lines.append((
            row["layer"], row["implementation"], f"{row['ms']:.1f}", f"({row['ms_min']:.1f} - {row['ms_max']:.1f})",
            f"{row['tokens_per_s']:.0f}", "-" if ratio is None else f"{ratio:.2f}", f"{row['floor_ms']:.1f}",
            f"{row['ratio_to_floor']:.2f}", "-" if peak is None else f"{peak / 2**20:.0f} MiB",
        ))  # fmt: skip
    print_table(lines, left=2)


def print_parts(rows: Rows) -> None:
    lines = [("layer", "part", "hymba_ops ms", "plain ms", "x plain", "floor ms", "x floor", "others ms")]
    timed = [row for row in rows if "ms" in row]
    for layer, part in dict.fromkeys((row["layer"], row["part"]) for row in timed):
        group = {row["implementation"]: row for row in timed if (row["layer"], row["part"]) == (layer, part)}
        ours, best, floor = group["hymba_ops"]["ms"], group["plain"]["ms"], group["plain"]["floor_ms"]
        others = [f"{name} {row['ms']:.1f}" for name, row in group.items() if name not in ("hymba_ops", "plain")]
        lines.append((layer, part, f"{ours:.2f}", f"{best:.2f}", f"{best / ours:.2f}", f"{floor:.2f}",
                      f"{ours / floor:.2f}", ", ".join(others)))  # fmt: skip
    print_table(lines, left=2)
    for row in rows:
        if "not_run" in row:
            print(f"{row['implementation']} ({row['layer']}) was not run: {row['not_run']}")


def print_table(lines: list[tuple[str, ...]], *, left: int) -> None:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        cells = [
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


@torch.inference_mode()
def run(arguments: argparse.Namespace) -> dict[str, Any]:
    device = pick_device(arguments.device)
    config = getattr(hymba_ops.HymbaConfig, PRESETS[arguments.preset])()
    check_memory(config, arguments, device)
    per_layer = 2 * len(arguments.implementations) - 1 + (len(roofline.PARTS) if arguments.parts else 0)
    progress = Progress(1 + per_layer * len(arguments.layers))

    def measure() -> roofline.Ceilings:
        rows = arguments.batch * arguments.seq_len
        return roofline.measure(config, rows=rows, device=device, dtype=DTYPES[arguments.dtype])

    ceilings = measure()
    progress.step("ceilings measured")
    rows, part_rows, work = [], [], {}
    for name in arguments.layers:
        case = make_case(name, config, arguments, device)
        work[name] = _work(case, config, arguments)
        compare_outputs(case, arguments, progress)
        rows += time_layers(case, config, arguments, progress)
        if arguments.parts:
            part_rows += time_parts(case, config, arguments, progress)
    ceilings = ceilings.best(measure())  # other work on the machine only ever lowers them
    set_floors(rows, part_rows, work, ceilings)
    progress.close()
    results = {"machine": describe_machine(device, ceilings), "preset": arguments.preset, "rows": rows}
    return results | ({"parts": part_rows} if arguments.parts else {})


def report(results: dict[str, Any], arguments: argparse.Namespace) -> None:
    machine = results["machine"]
    rates = (machine[key] for key in ("gemm_gflops", "exp_g_per_s", "bandwidth_gb_per_s"))
    print(
        f"Hymba-{results['preset']} layer, forward, {arguments.dtype}, batch {arguments.batch}, "
        f"{arguments.seq_len} tokens behind the meta tokens\n"
        f"{machine['device']}, {machine['threads']} threads, kernels: {machine['kernels']}, torch {machine['torch']}\n"
        "ceilings measured: {:.0f} GFLOP/s, {:.1f} Gexp/s, {:.1f} GB/s\n".format(*rates)
    )
    print_layers(results["rows"])
    print(
        "\nms: median. x plain: plain's ms / this row's. x floor: this row's ms / floor. extra memory: peak beyond "
        "what was in use.\nplain: attention in query blocks, scan as a loop over time. naive: masked "
        "scaled_dot_product_attention. compiled: torch.compile of plain."
    )
    if "parts" in results:
        print()
        print_parts(results["parts"])


def main(argv: list[str] | None = None) -> int:
    try:
        arguments = parse_arguments(argv)
        results = run(arguments)
    except CannotRun as reason:
        print(f"\nlayer_throughput: {reason}", file=sys.stderr)
        return 2
    except WrongOutput as wrong:
        print(f"\nlayer_throughput: {wrong}", file=sys.stderr)
        return 1
    report(results, arguments)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1) + "\n")
    if arguments.plot:
        from bench.plot import draw

        draw(results, arguments.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
