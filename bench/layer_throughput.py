#!/usr/bin/env python3
"""One Hymba layer: hymba_ops against plain PyTorch, in a table.

    python bench/layer_throughput.py                       # both layers, 2048 tokens, float32, every core
    python bench/layer_throughput.py --parts --plot layer.png --json layer.json
    python bench/layer_throughput.py --threads             # hymba_ops alone at 1, 2, 4 .. threads
    python bench/layer_throughput.py --memory              # growth of the peak resident set at 8192 tokens

Input is random hidden states of --seq-len tokens behind the preset's meta tokens, in torch.inference_mode. All rows
have the same weights, and their outputs are compared before anything is timed. On a GPU the peers of bench/peers.py are
timed too; those that cannot run are named with the reason. Many lengths, batch sizes, presets and
the single ops: bench/sweep.py.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import hymba_ops
from bench import memory, options, parts, peers, report, roofline, threads
from bench.cases import (
    Case,
    WrongOutput,
    admit,
    check_kernels,
    check_memory,
    compare_outputs,
    layer_bytes,
    make_case,
)
from bench.report import Rows
from bench.runner import CannotRun, Progress, time_rounds

IMPLEMENTATIONS = ("hymba_ops", "plain", "naive", "compiled", "upcast", *peers.MIXERS)
EAGER_PLAIN = ("plain", "naive", "upcast")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="cpu or cuda; default: cuda where torch sees one, else cpu")
    parser.add_argument("--dtype", default="float32", help=f"{', '.join(options.DTYPES)} (default float32)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seq-len", type=int, help="tokens without the meta tokens (default 2048, --memory 8192)")
    parser.add_argument("--layers", default="sliding,global")
    parser.add_argument(
        "--implementations",
        help=f"of {','.join(IMPLEMENTATIONS)}; default all (not upcast in float32, not the peers "
        f"{', '.join(peers.MIXERS)} on a CPU), --memory hymba_ops,plain",
    )
    parser.add_argument("--preset", default="1.5b", help=", ".join(options.PRESETS))
    parser.add_argument("--parts", action="store_true", help="also time the layers' parts")
    parser.add_argument(
        "--peers", help=f"in --parts, of {','.join(peers.PARTS)}; or none. Default all on a GPU, flex on a CPU"
    )
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument("--plot", metavar="FILE", help="draw the results there (needs matplotlib; implies --parts)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--threads", nargs="?", const="", metavar="COUNTS",
        help="instead of the table: hymba_ops and its parts at these thread counts (default 1,2,4 .. all cores)",
    )  # fmt: skip
    instead.add_argument(
        "--memory", action="store_true", help="instead of the table: growth of the peak resident set, on a CPU"
    )
    return _checked(parser.parse_args(argv))


def _checked(arguments: argparse.Namespace) -> argparse.Namespace:
    """The arguments with lists for texts and every default filled in."""
    arguments.seq_len = arguments.seq_len if arguments.seq_len is not None else 8192 if arguments.memory else 2048
    if (arguments.memory or arguments.threads is not None) and arguments.device == "cuda":
        raise CannotRun("--threads and --memory are about a CPU, got --device cuda")
    device = options.pick_device("cpu" if arguments.memory or arguments.threads is not None else arguments.device)
    wanted = arguments.implementations or ",".join(_default_implementations(arguments, device))
    arguments.layers = options.choices("--layers", arguments.layers, options.LAYERS)
    arguments.implementations = options.choices("--implementations", wanted, IMPLEMENTATIONS)
    wanted_peers = arguments.peers or ("flex" if device.type == "cpu" else ",".join(peers.PARTS))
    arguments.peers = [] if wanted_peers == "none" else options.choices("--peers", wanted_peers, peers.PARTS)
    options.choices("--preset", arguments.preset, tuple(options.PRESETS))
    options.choices("--dtype", arguments.dtype, tuple(options.DTYPES))
    options.at_least_one("--batch", arguments.batch)
    options.at_least_one("--seq-len", arguments.seq_len)
    arguments.parts |= arguments.plot is not None
    if arguments.parts and "hymba_ops" not in arguments.implementations:
        raise CannotRun("--parts and --plot need hymba_ops among --implementations")
    if arguments.parts and (arguments.threads is not None or arguments.memory):
        raise CannotRun("--parts and --plot belong to the table, which --threads and --memory replace")
    if arguments.threads is not None:
        cores = len(os.sched_getaffinity(0))
        given = options.counts("--threads", arguments.threads, cores) if arguments.threads else []
        arguments.threads = sorted({1, *(given or threads.default_counts(cores))})  # speed-ups are over one thread
        arguments.implementations = ["hymba_ops"]
    options.check_outputs(arguments.json, arguments.plot)
    arguments.device = device
    return arguments


def _default_implementations(arguments: argparse.Namespace, device: torch.device) -> list[str]:
    if arguments.memory:
        return ["hymba_ops", "plain"]
    left_out = {"upcast"} if arguments.dtype == "float32" else set()
    if device.type == "cpu":
        left_out |= set(peers.MIXERS)
    return [name for name in IMPLEMENTATIONS if name not in left_out]


def check_layers(case: Case, arguments: argparse.Namespace, progress: Progress) -> tuple[list[str], Rows]:
    """The implementations to time, and of those that are not the layer, the name and the reason."""
    own = [name for name in arguments.implementations if name not in peers.MIXERS]
    compare_outputs(case, own, options.DTYPES[arguments.dtype], progress)
    wanted = [name for name in arguments.implementations if name in peers.MIXERS]
    if not wanted:
        return own, []
    admitted, refused = admit({name: case.calls(name) for name in wanted}, case.layers["plain"](case.inputs[0])[0])
    for name in wanted:
        progress.step(f"{case.name}: {name} {refused.get(name, 'agrees with plain')}")
    if "published" in admitted:
        refused |= {
            f"{library} in published": f"{reason}; PyTorch stands in" for library, reason in peers.stand_ins().items()
        }
    return [*own, *admitted], _not_run(case.name, "layer", refused)


def _not_run(layer: str, part: str, refused: dict[str, str]) -> Rows:
    return [
        {"layer": layer, "part": part, "implementation": name, "reason": reason} for name, reason in refused.items()
    ]


def time_layers(case: Case, names: list[str], arguments: argparse.Namespace, progress: Progress) -> Rows:
    timings = time_rounds(
        {name: case.calls(name) for name in names},
        arguments.device,
        on_done=lambda name: progress.step(f"{case.name}: timing {name}"),
    )
    best_plain = min((timings[name].ms for name in EAGER_PLAIN if name in timings), default=None)
    rows = []
    for name, timing in timings.items():
        rows.append({
            "implementation": name, "mode": "forward", "layer": case.name, "dtype": arguments.dtype,
            "batch": arguments.batch, "seq_len": arguments.seq_len,
            "ms": timing.ms, "ms_min": timing.ms_min, "ms_max": timing.ms_max,
            "tokens_per_s": 1e3 * arguments.batch * arguments.seq_len / timing.ms,
            "ratio_to_best_plain": best_plain / timing.ms if best_plain else None,
            "floor_ms": None, "ratio_to_floor": None,  # set_floors
            "peak_bytes": timing.peak_bytes,
        })  # fmt: skip
    return rows


def time_parts(
    case: Case, config: hymba_ops.HymbaConfig, arguments: argparse.Namespace, progress: Progress
) -> tuple[Rows, Rows]:
    """Rows of what was timed, and those of what could not run, as check_layers has them."""
    ours, plain = case.layers["hymba_ops"], case.layers["plain"]
    of_inputs = [parts.part_calls(ours, plain, config, case.index, hidden, arguments.peers) for hidden in case.inputs]
    rows: Rows = []
    not_run: Rows = []
    for part in roofline.PARTS:
        candidates = {name: [calls[part][name] for calls in of_inputs] for name in of_inputs[0][part]}
        rivals = {name: candidates.pop(name) for name in peers.PARTS if name in candidates}
        if rivals:
            admitted, refused = admit(rivals, of_inputs[0][part]["plain"]())
            candidates |= admitted
            not_run += _not_run(case.name, part, refused)
        timings = time_rounds(candidates, arguments.device, seconds=0.5)
        progress.step(f"{case.name}: {part}")
        for name, timing in timings.items():
            rows.append({"layer": case.name, "part": part, "implementation": name, "ms": timing.ms,
                         "ms_min": timing.ms_min, "ms_max": timing.ms_max, "floor_ms": None})  # fmt: skip
    return rows, not_run


def set_floors(
    rows: Rows, part_rows: Rows, work: dict[str, dict[str, roofline.Work]], ceilings: roofline.Ceilings
) -> None:
    """work: of each layer's parts."""
    for row in rows:
        row["floor_ms"] = 1e3 * ceilings.layer_seconds(work[row["layer"]])
        row["ratio_to_floor"] = row["ms"] / row["floor_ms"]
    for row in part_rows:
        row["floor_ms"] = 1e3 * ceilings.seconds(work[row["layer"]][row["part"]])


def run_table(
    config: hymba_ops.HymbaConfig, arguments: argparse.Namespace
) -> tuple[roofline.Ceilings, dict[str, Rows]]:
    """The ceilings, and "rows", "not_run" and with --parts "parts" of the results."""
    dtype = options.DTYPES[arguments.dtype]
    per_layer = 2 * len(arguments.implementations) - 1 + (len(roofline.PARTS) if arguments.parts else 0)
    progress = Progress(1 + per_layer * len(arguments.layers))

    def measure() -> roofline.Ceilings:
        rows = arguments.batch * arguments.seq_len
        return roofline.measure(config, rows=rows, device=arguments.device, dtype=dtype)

    ceilings = measure()
    progress.step("ceilings measured")
    rows, part_rows, not_run, work = [], [], [], {}
    for name in arguments.layers:
        case = _case(name, config, arguments)
        work[name] = roofline.layer_work(
            config, case.index, batch=arguments.batch, seq_len=arguments.seq_len, element_size=dtype.itemsize
        )
        names, refused = check_layers(case, arguments, progress)
        rows += time_layers(case, names, arguments, progress)
        not_run += refused
        if arguments.parts:
            timed, refused = time_parts(case, config, arguments, progress)
            part_rows += timed
            not_run += refused
    ceilings = ceilings.best(measure())  # other work on the machine only ever lowers them
    set_floors(rows, part_rows, work, ceilings)
    progress.close()
    return ceilings, {"rows": rows, "not_run": not_run} | ({"parts": part_rows} if arguments.parts else {})


def run_threads(config: hymba_ops.HymbaConfig, arguments: argparse.Namespace) -> Rows:
    progress = Progress((1 + len(arguments.threads)) * len(arguments.layers))
    rows: Rows = []
    for name in arguments.layers:
        case = _case(name, config, arguments)
        compare_outputs(case, ["hymba_ops"], options.DTYPES[arguments.dtype], progress)
        rows += threads.time_threads(case, config, arguments.threads, progress)
    progress.close()
    return rows


def run_memory(config: hymba_ops.HymbaConfig, arguments: argparse.Namespace) -> Rows:
    progress = Progress(len(arguments.layers) * len(arguments.implementations))
    rows: Rows = []
    for name in arguments.layers:
        for implementation in arguments.implementations:
            rows.append(
                memory.measure(
                    arguments.preset, name, implementation, batch=arguments.batch,
                    length=arguments.seq_len + config.num_memory_tokens, dtype=arguments.dtype,
                    threads=torch.get_num_threads(),
                )
            )  # fmt: skip
            progress.step(f"{name}: {implementation}")
    progress.close()
    return rows


def _case(name: str, config: hymba_ops.HymbaConfig, arguments: argparse.Namespace) -> Case:
    return make_case(
        name, config, arguments.implementations, batch=arguments.batch,
        length=arguments.seq_len + config.num_memory_tokens, device=arguments.device,
        dtype=options.DTYPES[arguments.dtype],
    )  # fmt: skip


@torch.inference_mode()
def run(arguments: argparse.Namespace) -> dict[str, Any]:
    config = options.preset(arguments.preset)
    if "hymba_ops" in arguments.implementations:
        check_kernels(arguments.device)
    needed = layer_bytes(
        config, batch=arguments.batch, length=arguments.seq_len + config.num_memory_tokens,
        itemsize=options.DTYPES[arguments.dtype].itemsize, implementations=arguments.implementations,
    )  # fmt: skip
    advice = "a smaller --seq-len or --batch, or --implementations without naive, needs less"
    check_memory(needed, arguments.device, advice)
    results: dict[str, Any] = {
        "machine": report.describe_machine(arguments.device), "commit": report.commit(), "preset": arguments.preset,
    }  # fmt: skip
    if arguments.threads:
        return results | {"threads": run_threads(config, arguments)}
    if arguments.memory:
        return results | {"memory": run_memory(config, arguments)}
    ceilings, tables = run_table(config, arguments)
    results["machine"] |= report.describe_ceilings(ceilings)
    return results | tables


def print_results(results: dict[str, Any], arguments: argparse.Namespace) -> None:
    print(
        f"Hymba-{results['preset']} layer, forward, {arguments.dtype}, batch {arguments.batch}, "
        f"{arguments.seq_len} tokens behind the meta tokens"
    )
    report.print_machine(results["machine"])
    if "threads" in results:
        report.print_threads(results["threads"])
    elif "memory" in results:
        report.print_memory(results["memory"])
    else:
        report.print_ceilings(results["machine"])
        report.print_layers(results["rows"])
        if "parts" in results:
            report.print_parts(results["parts"])
        report.print_not_run(results["not_run"])


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
    print_results(results, arguments)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1) + "\n")
    if arguments.plot:
        from bench.plot import draw

        draw(results, arguments.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
