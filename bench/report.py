"""Results as text: one function a table, and the facts of the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import hymba_ops
from bench.roofline import Ceilings

Rows = list[dict[str, Any]]  # as --json writes them


_ROOT = Path(__file__).resolve().parent.parent


def describe_machine(device: torch.device) -> dict[str, Any]:
    facts = hymba_ops.build_info()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "kernels": facts["selected"],
        "torch": facts["torch"],
        "hymba_ops": facts["version"],
    } | (_describe_gpu(device) if device.type == "cuda" else {})


def _describe_gpu(device: torch.device) -> dict[str, Any]:
    card = torch.cuda.get_device_properties(device)
    query = ["nvidia-smi", f"--id=GPU-{card.uuid}", "--format=csv,noheader"]
    driver, clock, power = _output_of(*query, "--query-gpu=driver_version,clocks.max.sm,power.limit", fields=3)
    return {
        "compute_capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,
        "memory_bytes": card.total_memory,
        "driver": driver,
        "max_clock": clock,
        "power_limit": power,
        "cuda": torch.version.cuda,
        "architectures": hymba_ops.build_info()["cuda_architectures"],
    }


def commit() -> str | None:
    """Of the clone, with "+" behind it where files differ from it; None without git."""
    return _output_of("git", "-C", str(_ROOT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+")[0]


def _output_of(*command: str, fields: int = 1) -> list[str | None]:
    """The comma-separated fields of a command's output; None for each where it cannot run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return [None] * fields
    found = [field.strip() for field in done.stdout.strip().split(",")]
    return found if len(found) == fields else [None] * fields


def describe_ceilings(ceilings: Ceilings) -> dict[str, float]:
    return {
        "gemm_gflops": ceilings.gemm / 1e9,
        "exp_g_per_s": ceilings.special / 1e9,
        "bandwidth_gb_per_s": ceilings.bandwidth / 1e9,
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{model}, {os.cpu_count()} cores"


def print_machine(machine: dict[str, Any]) -> None:
    driver = f", driver {machine['driver']}" if "driver" in machine else ""
    print(
        f"{machine['device']}{driver}, {machine['threads']} threads, kernels: {machine['kernels']}, "
        f"torch {machine['torch']}"
    )


def print_ceilings(machine: dict[str, Any]) -> None:
    rates = (machine[key] for key in ("gemm_gflops", "exp_g_per_s", "bandwidth_gb_per_s"))
    print("ceilings measured: {:.0f} GFLOP/s, {:.1f} Gexp/s, {:.1f} GB/s\n".format(*rates))


def _ms(ms: float) -> str:
    """A tenth of a millisecond is enough on a CPU, where a call takes long; three digits on a GPU."""
    return f"{ms:.1f}" if ms >= 10 else f"{ms:.3g}"


def print_layers(rows: Rows) -> None:
    lines: list[tuple[str, ...]] = [("layer", "implementation", "ms", "(min - max)", "tokens/s", "x plain", "floor ms",
                                     "x floor", "extra memory")]  # fmt: skip
    for row in rows:
        ratio, peak = row["ratio_to_best_plain"], row["peak_bytes"]
        lines.append((
            row["layer"], row["implementation"], _ms(row["ms"]), f"({_ms(row['ms_min'])} - {_ms(row['ms_max'])})",
            f"{row['tokens_per_s']:.0f}", "-" if ratio is None else f"{ratio:.2f}", _ms(row["floor_ms"]),
            f"{row['ratio_to_floor']:.2f}", "-" if peak is None else f"{peak / 2**20:.0f} MiB",
        ))  # fmt: skip
    print_table(lines, left=2)
    print(
        "\nms: median. x plain: ms of the best eager plain row / this row's. x floor: this row's ms / floor. extra "
        "memory: peak beyond\nwhat was in use. plain: attention in query blocks, scan as a loop over time. naive: "
        "masked scaled_dot_product_attention.\ncompiled: torch.compile of plain. upcast: plain in float32."
    )


def print_parts(rows: Rows) -> None:
    lines = [("layer", "part", "hymba_ops ms", "plain ms", "x plain", "floor ms", "x floor", "others ms")]
    for layer, part in dict.fromkeys((row["layer"], row["part"]) for row in rows):
        group = {row["implementation"]: row for row in rows if (row["layer"], row["part"]) == (layer, part)}
        ours, best, floor = group["hymba_ops"]["ms"], group["plain"]["ms"], group["plain"]["floor_ms"]
        others = [f"{name} {_ms(row['ms'])}" for name, row in group.items() if name not in ("hymba_ops", "plain")]
        lines.append((layer, part, _ms(ours), _ms(best), f"{best / ours:.2f}", _ms(floor), f"{ours / floor:.2f}",
                      ", ".join(others)))  # fmt: skip
    print()
    print_table(lines, left=2)


def print_not_run(rows: Rows) -> None:
    for row in rows:
        print(f"could not run: {row['implementation']} ({row['layer']}, {row['part']}): {row['reason']}")


def print_threads(rows: Rows) -> None:
    """One line a part, one column a thread count; a cell is the time and the speed-up over one thread."""
    counts = list(dict.fromkeys(row["threads"] for row in rows))
    titles = [f"{count} thread{'s' * (count > 1)} ms" for count in counts]
    lines: list[tuple[str, ...]] = [("layer", "hymba_ops", *titles)]
    for layer, part in dict.fromkeys((row["layer"], row["part"]) for row in rows):
        cells = [row for row in rows if (row["layer"], row["part"]) == (layer, part)]
        lines.append((layer, part, *(f"{cell['ms']:.2f} ({cell['speedup']:.2f}x)" for cell in cells)))
    print_table(lines, left=2)
    print("\nms: median; in brackets the speed-up over one thread.")


def print_memory(rows: Rows) -> None:
    lines: list[tuple[str, ...]] = [("layer", "implementation", "growth MiB", "in_proj + layer out MiB", "multiple",
                                     "kept by a first call MiB")]  # fmt: skip
    for row in rows:
        mebibytes = (row[key] / 2**20 for key in ("growth_bytes", "outputs_bytes", "first_call_bytes"))
        growth, outputs, first_call = (f"{size:.0f}" for size in mebibytes)
        lines.append((row["layer"], row["implementation"], growth, outputs, f"{row['multiple']:.2f}", first_call))
    print_table(lines, left=2)
    print(
        "\ngrowth: of the peak resident set during one forward, over weights and input, in a process of its own. "
        "multiple: growth over\nthe bytes of in_proj's output and the layer's output. kept by a first call: libraries "
        "and what is prepared from the weights."
    )


def print_steps(results: dict[str, Any]) -> None:
    """Of decode_throughput."""
    machine, rows = results["machine"], results["rows"]
    graph = ", each step a CUDA graph" * results["graph"]
    print(f"a decode step of {results['count']} layers of Hymba-{results['preset']}{graph}")
    print_machine(machine)
    rates = dict.fromkeys((row["batch"] * row["tokens"], row["gemm_gflops"]) for row in rows)
    print(
        f"ceilings measured: {machine['bandwidth_gb_per_s']:.1f} GB/s read, {machine['copy_gb_per_s']:.1f} GB/s copied "
        f"(read + written), {machine['gemm_gflops']:.0f} GFLOP/s"
        + "".join(f" ({rate:.0f} at {count} row{'s' * (count > 1)})" for count, rate in rates)
        + f", {machine['exp_g_per_s']:.1f} Gexp/s\n"
    )
    lines: list[tuple[str, ...]] = [("layers", "implementation", "batch", "context", "ms", "(min - max)", "us/layer",
                                     "tokens/s", "MB", "of copy", "floor ms", "x floor", "x plain")]  # fmt: skip
    for row in rows:
        ratio = row["ratio_to_best_plain"]
        lines.append((
            row["layer"], row["implementation"], str(row["batch"]), str(row["context"]), _ms(row["ms"]),
            f"({_ms(row['ms_min'])} - {_ms(row['ms_max'])})", f"{row['us_per_layer']:.1f}",
            f"{row['tokens_per_s']:.0f}", f"{row['bytes'] / 1e6:.0f}", f"{100 * row['share_of_copy']:.0f} %",
            _ms(row["floor_ms"]), f"{row['ratio_to_floor']:.2f}", "-" if ratio is None else f"{ratio:.2f}",
        ))  # fmt: skip
    print_table(lines, left=2)
    print(
        "\nms: median of a step. MB: weights, keys, values and states, read and written. of copy: MB / ms over the "
        "copy bandwidth.\nx floor: ms / floor. x plain: ms of the best of plain, sdpa and upcast / this row's. "
        "Lengths do not advance from step to step."
    )
    ends: dict[tuple[Any, ...], list[str]] = {}
    for row in results["flatness"]:
        ends.setdefault((row["layer"], row["batch"], row["from"], row["to"]), []).append(
            f"{row['implementation']} {row['ratio']:.2f}"
        )
    for (layer, batch, first, last), ratios in ends.items():
        print(f"{layer}, batch {batch}: a step at context {last} over one at {first}: {', '.join(ratios)}")
    for title, key in (("could not run", "not_run"), ("left out", "left_out"), ("WRONG, not timed", "wrong")):
        for row in results[key]:
            name = f"{row['implementation']}, " if "implementation" in row else ""
            print(f"{title}: {name}{row['layer']}, batch {row['batch']}, context {row['context']}: {row['reason']}")


def print_sweep(results: dict[str, Any]) -> None:
    """One line a series, one column a length; a cell is hymba_ops' time, how many times as long plain takes, and how
    many times its floor it is, where it has one."""
    rows = results["rows"]
    floors = ", x floor" * any("floor_ms" in row for row in rows)
    print(f"hymba_ops against the best plain PyTorch form: ms (x plain{floors})")
    print_machine(results["machine"])
    if rows:
        lengths = sorted({row["seq_len"] for row in rows})
        table = {series: ["-"] * len(lengths) for series in map(_series, rows)}
        for row in rows:
            floor = f", {row['ratio_to_floor']:.2f}x" if "floor_ms" in row else ""
            table[_series(row)][lengths.index(row["seq_len"])] = f"{row['ms']:.3g} ({row['ratio']:.2f}x{floor})"
        titles = ("preset", "dtype", "batch", "layer", "op", *(str(length) for length in lengths))
        print_table([titles, *((*map(str, series), *cells) for series, cells in table.items())], left=5)
    print_peers(rows)
    for title, key in (("left out", "left_out"), ("WRONG, not timed", "wrong")):
        if results[key]:
            print(f"\n{title}:")
        for (series, reason), lengths in _grouped(results[key]).items():
            print(f"  {_label(series)}, length {', '.join(lengths)}: {reason}")
    print("\nslower than plain PyTorch:" + ("" if results["slower"] else " none"))
    for row in results["slower"]:
        print(
            f"  {_label(_series(row))}, length {row['seq_len']}: {row['ms']:.3g} ms, {row['plain_form']} "
            f"{row['plain_ms']:.3g} ms ({row['ratio']:.2f}x, {row['difference_us']:+.0f} us)"
        )


def print_peers(rows: Rows) -> None:
    """Of a sweep's rows: each peer's time and the ratio to ours, or why it could not run."""
    for row in rows:
        ran = [f"{name} {_ms(ms)} ({ms / row['ms']:.2f}x)" for name, ms in row.get("peers_ms", {}).items()]
        failed = [f"{name} could not run: {reason}" for name, reason in row.get("peers_not_run", {}).items()]
        if ran or failed:
            lines = [f"\n{_label(_series(row))}, length {row['seq_len']}: {_ms(row['ms'])} ms; peers " + ", ".join(ran)]
            print("\n  ".join([*lines, *failed]))


def _series(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("preset", "dtype", "batch", "layer", "op"))


def _label(series: tuple[Any, ...]) -> str:
    preset, dtype, batch, layer, op = series
    return " ".join(filter(None, (preset, dtype, f"batch {batch}", layer, op)))


def _grouped(rows: Rows) -> dict[tuple[Any, str], list[str]]:
    """(series, reason) to lengths."""
    groups: dict[tuple[Any, str], list[str]] = {}
    for row in rows:
        groups.setdefault((_series(row), row["reason"]), []).append(str(row["seq_len"]))
    return groups


def print_table(lines: list[tuple[str, ...]], *, left: int) -> None:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        cells = [
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
