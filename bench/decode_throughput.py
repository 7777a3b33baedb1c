#!/usr/bin/env python3
"""A decode step of a stack of Hymba layers: hymba_ops against plain PyTorch, in a table.

    python bench/decode_throughput.py                                   # cpu: 4 layers; cuda: as many as the preset has
    python bench/decode_throughput.py --device cuda --dtype bfloat16 --json decode.json
    python bench/decode_throughput.py --layers sliding --batches 1 --contexts 2048,131072 --implementations hymba_ops

One step takes --tokens new tokens of each of the batch's rows through --count layers, each with weights of its own, so
that no cache holds them from one step to the next; embedding, last norm and head are not part of it. The caches are
filled with random keys, values and states, as if every row had --contexts tokens behind the meta tokens: nothing is
prefilled. Lengths do not advance between the timed steps, which all do the same work.

Stacks (--layers): model, the preset's own first --count layers with their keys shared as published; sliding, layers
with a window in pairs that share keys; global, layers that see everything, each with keys of its own, in pages of 64
tokens.

hymba_ops  hymba_ops.decoding.layer_step
plain      the best eager PyTorch form that we know (bench/plain_step.py), attention by batched products
sdpa       the same with scaled_dot_product_attention
upcast     plain in float32 throughout, weights too
compiled   torch.compile of plain, layer by layer. On a GPU it is captured in the same kind of graph as the others: its
           own mode "reduce-overhead" would make a graph of each layer, and none where inputs change in place

Layer by layer, outputs, states and new keys are compared with plain's before anything is timed. On a GPU a whole step
is a CUDA graph (--eager: launches one by one), whose result is compared with the eager step's. Floor and share of the
copy bandwidth count the bytes of bench/decode_work.py. What does not fit into memory is left out and named. The JSON
file is written after every case, so a run that is stopped loses nothing. Exit status: 1 where an output is wrong or
hymba_ops fails, 2 where nothing can run.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from bench import decode_work, options, report, roofline
from bench.cases import WrongOutput, check_agreement, check_kernels
from bench.decode_cases import KINDS, PLAIN_FORMS, STEP_OPS, Case, Size, Stack, needed_bytes, stack_config
from bench.graphs import captured
from bench.report import Rows
from bench.runner import Call, CannotRun, Progress, Timing, available_bytes, first_line, time_rounds

IMPLEMENTATIONS = ("hymba_ops", *PLAIN_FORMS)
EAGER_PLAIN = ("plain", "sdpa", "upcast")
_MOST_TOKENS = 16  # of a step, as the ops have it
_MANY_ROWS = 4096  # at which products reach their full rate


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="cpu or cuda; default: cuda where torch sees one, else cpu")
    parser.add_argument("--dtype", help=f"{', '.join(options.DTYPES)} (default bfloat16 on a GPU, float32 on a CPU)")
    parser.add_argument("--preset", default="1.5b", help=", ".join(options.PRESETS))
    parser.add_argument("--layers", default=",".join(KINDS), help="stacks (default %(default)s)")
    parser.add_argument("--count", type=int, help="layers of a stack (default the preset's on a GPU, 4 on a CPU)")
    parser.add_argument("--batches", help="default 1,32 on a GPU, 1,8 on a CPU")
    parser.add_argument("--contexts", help="default 2048,8192,32768,131072 on a GPU, 2048,8192 on a CPU")
    parser.add_argument("--tokens", type=int, default=1, help="of a step, 1 to 16 (default 1)")
    parser.add_argument(
        "--implementations",
        help=f"of {','.join(IMPLEMENTATIONS)}; default on a GPU all but upcast, on a CPU all but compiled (which takes "
        "minutes to compile) and, in float32, upcast",
    )
    parser.add_argument("--eager", action="store_true", help="on a GPU: without CUDA graphs")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    return _checked(parser.parse_args(argv))


def _checked(arguments: argparse.Namespace) -> argparse.Namespace:
    """The arguments with lists for texts and every default filled in."""
    arguments.device = options.pick_device(arguments.device)
    on_gpu = arguments.device.type == "cuda"
    arguments.dtype = arguments.dtype or ("bfloat16" if on_gpu else "float32")
    options.choices("--dtype", arguments.dtype, tuple(options.DTYPES))
    options.choices("--preset", arguments.preset, tuple(options.PRESETS))
    most = options.preset(arguments.preset).num_hidden_layers
    arguments.count = arguments.count if arguments.count is not None else most if on_gpu else 4
    if not 1 <= arguments.count <= most:
        raise CannotRun(f"--count must be from 1 to the preset's {most}, got {arguments.count}")
    if not 1 <= arguments.tokens <= _MOST_TOKENS:
        raise CannotRun(f"--tokens must be from 1 to {_MOST_TOKENS}, got {arguments.tokens}")
    left_out = {"upcast"} if on_gpu or arguments.dtype == "float32" else set()
    left_out |= set() if on_gpu else {"compiled"}
    wanted = arguments.implementations or ",".join(name for name in IMPLEMENTATIONS if name not in left_out)
    contexts = "2048,8192,32768,131072" if on_gpu else "2048,8192"
    arguments.layers = options.choices("--layers", arguments.layers, KINDS)
    arguments.implementations = options.choices("--implementations", wanted, IMPLEMENTATIONS)
    arguments.batches = options.counts("--batches", arguments.batches or ("1,32" if on_gpu else "1,8"))
    arguments.contexts = options.counts("--contexts", arguments.contexts or contexts)
    options.check_outputs(arguments.json, None)
    arguments.graph = on_gpu and not arguments.eager
    return arguments


class Benchmark:
    """The loop over stacks, batch sizes and contexts; `results` fills up."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.device, self.dtype = arguments, arguments.device, options.DTYPES[arguments.dtype]
        self.preset = options.preset(arguments.preset)
        cases = len(arguments.layers) * len(arguments.batches) * len(arguments.contexts)
        self.progress = Progress(cases * (2 * len(arguments.implementations) - ("plain" in arguments.implementations)))
        self.results: dict[str, Any] = {
            "machine": report.describe_machine(self.device), "commit": report.commit(), "preset": arguments.preset,
            "count": arguments.count, "graph": arguments.graph,
            "rows": [], "not_run": [], "left_out": [], "wrong": [], "flatness": [],
        }  # fmt: skip
        self.copy, self.gemm = 0.0, dict.fromkeys(arguments.batches, 0.0)
        self.ceilings: roofline.Ceilings | None = None
        self.measure_ceilings()

    def measure_ceilings(self) -> None:
        """Called again at the end: other work on the machine only ever lowers them. The products' ceiling is that of
        many rows; `gemm` is what the best of them reaches at a step's own rows, where it waits for the weights."""
        kind = {"device": self.device, "dtype": self.dtype}
        now = roofline.measure(self.preset, rows=_MANY_ROWS, **kind)
        self.ceilings = now.best(self.ceilings or now)
        self.copy = max(self.copy, roofline.copy_bandwidth(self.device))
        for batch, rate in self.gemm.items():
            self.gemm[batch] = max(rate, roofline.gemm_rate(self.preset, batch * self.arguments.tokens, **kind))

    @torch.inference_mode()
    def run(self) -> None:
        for kind in self.arguments.layers:
            self._run_stack(kind)
        self.measure_ceilings()
        self.set_floors()
        self.progress.close()
        if not self.results["rows"] and self.results["left_out"] and not self.failed():
            raise CannotRun(self.results["left_out"][0]["reason"])

    def failed(self) -> bool:
        return bool(self.results["wrong"]) or any(
            row["implementation"] == "hymba_ops" for row in self.results["not_run"]
        )

    def _run_stack(self, kind: str) -> None:
        config = stack_config(self.preset, kind, self.arguments.count)
        stack, weights = None, decode_work.weight_bytes(config, self.dtype.itemsize)
        for batch, context in itertools.product(self.arguments.batches, self.arguments.contexts):
            size = Size(batch, context, self.arguments.tokens)
            where = {"layer": kind, "batch": batch, "context": context}
            needed = needed_bytes(config, size, self.arguments.implementations, self.dtype.itemsize)
            reason = self._no_room(needed + (weights if stack is None else 0))
            if reason:
                self.results["left_out"].append(where | {"reason": reason})
                continue
            try:
                stack = stack or Stack.make(config, self.device, self.dtype)
                self._run_case(where, stack, size)
            except torch.OutOfMemoryError as error:
                self.results["left_out"].append(where | {"reason": first_line(error)})
            self.set_floors()  # with the ceilings known by now
            self.save()

    def _no_room(self, needed: int) -> str | None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # what the last case took counts as free again
        available = available_bytes(self.device)
        if available is None or needed <= available:
            return None
        return (
            f"not enough memory on {self.device}: about {needed / 2**30:.1f} GiB needed, {available / 2**30:.1f} GiB "
            "available (a smaller --count, or fewer --implementations, need less)"
        )

    def _run_case(self, where: dict[str, Any], stack: Stack, size: Size) -> None:
        case = Case.make(stack, size, self.arguments.implementations)
        errors, calls = {}, {}
        label = "{layer}, batch {batch}, context {context}".format(**where)
        for name in self.arguments.implementations:
            try:
                errors[name] = case.compare(name) if name != "plain" else 0.0
                calls[name] = self._call(case, name)
            except WrongOutput as wrong:
                self.results["wrong"].append(where | {"implementation": name, "reason": str(wrong)})
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever compilers, libraries and captures raise: it is reported
                reason = f"{type(error).__name__}: {first_line(error)}"
                self.results["not_run"].append(where | {"implementation": name, "reason": reason})
            if name != "plain":
                agrees = f"agrees with plain (relative rms {errors[name]:.1e})" if name in errors else "does not run"
                self.progress.step(f"{label}: {name} {agrees}")
        if not calls:
            return
        timings = time_rounds(
            {name: [call] for name, call in calls.items()}, self.device, seconds=1.0, warm=True,
            on_done=lambda name: self.progress.step(f"{label}: timing {name}"),
        )  # fmt: skip
        self.results["rows"] += self._rows(where, stack, size, timings, errors)

    def _call(self, case: Case, name: str) -> Call:
        """What is timed, which has run once: a step, or the replay of its graph if it gives what the step gave."""
        run = case.runs[name]
        case.reset(name)
        expected = run.step(case.hidden)
        if not self.arguments.graph:
            return lambda: run.step(case.hidden)
        replay, result = captured(lambda: run.step(case.hidden))
        case.reset(name)
        replay()
        check_agreement(f"{name}'s graph differs from its step", result, expected)
        return replay

    def _rows(
        self, where: dict[str, Any], stack: Stack, size: Size, timings: dict[str, Timing], errors: dict[str, float]
    ) -> Rows:
        best_plain = min((timings[name].ms for name in EAGER_PLAIN if name in timings), default=None)
        work = decode_work.stack_work(
            stack.config, batch=size.batch, context=size.context, tokens=size.tokens, itemsize=self.dtype.itemsize
        )
        moved = sum(layer.bytes for layer in work)
        return [
            {
                "implementation": name, "mode": "decode", **where, "dtype": self.arguments.dtype, "tokens": size.tokens,
                "ms": timing.ms, "ms_min": timing.ms_min, "ms_max": timing.ms_max,
                "us_per_layer": 1e3 * timing.ms / len(work),
                "tokens_per_s": 1e3 * size.batch * size.tokens / timing.ms,
                "ratio_to_best_plain": best_plain / timing.ms if best_plain else None,
                "floor_ms": None, "ratio_to_floor": None,  # set_floors
                "bytes": moved, "weight_bytes": decode_work.weight_bytes(stack.config, self.dtype.itemsize),
                "share_of_copy": None, "gemm_gflops": None,  # set_floors
                "relative_rms": errors[name],
            } for name, timing in timings.items()
        ]  # fmt: skip

    def set_floors(self) -> None:
        """What follows from the ceilings, and how times grow with the context."""
        self.results["machine"] |= report.describe_ceilings(self.ceilings) | {"copy_gb_per_s": self.copy / 1e9}
        for row in self.results["rows"]:
            config = stack_config(self.preset, row["layer"], self.arguments.count)
            work = decode_work.stack_work(
                config, batch=row["batch"], context=row["context"], tokens=row["tokens"], itemsize=self.dtype.itemsize
            )
            row["floor_ms"] = 1e3 * decode_work.floor_seconds(self.ceilings, work)
            row["ratio_to_floor"] = row["ms"] / row["floor_ms"]
            row["share_of_copy"] = 1e3 * row["bytes"] / row["ms"] / self.copy
            row["gemm_gflops"] = self.gemm[row["batch"]] / 1e9
        self.results["flatness"] = flatness(self.results["rows"])

    def save(self) -> None:
        if self.arguments.json:
            Path(self.arguments.json).write_text(json.dumps(self.results, indent=1) + "\n")


def flatness(rows: Rows) -> Rows:
    """Of each stack, batch size and implementation the time at the longest context over that at the shortest."""
    ends: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        ends.setdefault((row["layer"], row["batch"], row["implementation"]), []).append(row)
    found = []
    for (layer, batch, name), group in ends.items():
        first, last = (pick(group, key=lambda row: row["context"]) for pick in (min, max))
        if first is not last:
            found.append({
                "layer": layer, "batch": batch, "implementation": name, "from": first["context"],
                "to": last["context"], "ratio": last["ms"] / first["ms"],
            })  # fmt: skip
    return found


def main(argv: list[str] | None = None) -> int:
    try:
        arguments = parse_arguments(argv)
        if "hymba_ops" in arguments.implementations:
            check_kernels(arguments.device, STEP_OPS)
        benchmark = Benchmark(arguments)
        benchmark.run()
    except CannotRun as reason:
        print(f"\ndecode_throughput: {reason}", file=sys.stderr)
        return 2
    report.print_steps(benchmark.results)
    benchmark.save()
    return 1 if benchmark.failed() else 0


if __name__ == "__main__":
    sys.exit(main())
