#!/usr/bin/env python3
"""Every op and the layer over lengths, batch sizes, presets and dtypes: hymba_ops against the best plain PyTorch form.

    python bench/sweep.py --budget 3600 --json sweep.json --plot sweep.png
    python bench/sweep.py --budget 600 --json sweep.json --resume         # go on with what sweep.json lacks
    python bench/sweep.py --presets 1.5b --dtypes float32 --ops layer,attention --seq-lens 1,4096
    python bench/sweep.py --device cuda --presets 1.5b --dtypes bfloat16 --batches 1 --seq-lens 1,2048,8320

A length counts all positions, the meta tokens (the first ones) included; update ops take one token. The best plain form
of a case is the fastest of bench/op_calls.py's (for the layer, bench/plain.py's) in that case. Outputs are compared
before they are timed. A case that looks slower than plain PyTorch is timed again, and the second time counts. Cases run
in order of weight (1.5b first, batch 1 first); those left out are named with the reason. The JSON file is written after
every case, so a run that is stopped loses nothing.

On a GPU each call finds its inputs in memory, not in the L2 cache, what has no CUDA kernel is left out, and each case
has its floor: the least time for its bytes, FLOP and special functions at the rates that the run measures. The peers of
bench/peers.py are timed beside the layer, attention, conv and scan; compiling them takes more of a budget than timing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

import hymba_ops
from bench import cases, op_calls, options, peers, report, roofline
from bench.runner import (
    Call,
    CannotRun,
    Progress,
    Timing,
    available_bytes,
    elapsed_ms,
    first_line,
    inputs_beyond_cache,
    missing_kernels,
    time_rounds,
)
from bench.sweep_cases import Case, case_of, case_work, layer_work, needed_bytes, relative_work

OPS = ("layer", *op_calls.OPS)
UPDATE_OPS = ("causal_conv1d_update", "decode_attention", "mamba_update", "selective_state_update")  # a token a row
LAYERED_OPS = ("layer", "attention", "decode_attention")  # sliding and global layers differ
BRANCHES = ("layer", "attention", "selective_scan", "causal_conv1d")  # the others are small: a call's cost dominates
PRESETS = ("1.5b", "350m", "125m")
DTYPES = ("float32", "bfloat16")

Candidates = dict[str, list[Call]]  # name to a call on each input, as bench.runner.time_rounds takes them

NOISE = 0.03  # of the ratio of two medians
SMALL_OP_US = 20.0  # allowed to a small op at one token

_SURE_TO_FIT = 1024  # rows up to which memory is not estimated
_SURE_TO_BE_QUICK = 16  # rows up to which time is not estimated
_PROBE = 16  # a call is estimated from one on this fraction of the length, of at most _SURE_TO_FIT rows


class LeftOut(Exception):
    """A case is not run; the text says why. for_now: a run with more time would measure it."""

    def __init__(self, reason: str, *, for_now: bool = False) -> None:
        super().__init__(reason)
        self.for_now = for_now


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="cpu or cuda; default: cuda where torch sees one, else cpu")
    parser.add_argument("--presets", default=",".join(PRESETS))
    parser.add_argument("--seq-lens", default="1,16,128,1024,4096,16384")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument(
        "--layers", default=",".join(options.LAYERS), help="of the ops layer, attention and decode_attention"
    )
    parser.add_argument("--ops", default=",".join(OPS), help="default: %(default)s")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="of the whole run; default: none")
    parser.add_argument(
        "--slowest", type=float, default=20.0, metavar="SECONDS", help="of one plain call; default: %(default)g"
    )
    parser.add_argument("--peers", help=f"of {','.join(peers.NAMES)}; or none. Default all on a GPU, none on a CPU")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument("--resume", action="store_true", help="keep what --json FILE holds, measure the rest")
    parser.add_argument("--plot", metavar="FILE", help="draw the results there (needs matplotlib)")
    arguments = parser.parse_args(argv)
    arguments.presets = options.choices("--presets", arguments.presets, PRESETS)
    arguments.dtypes = options.choices("--dtypes", arguments.dtypes, DTYPES)
    arguments.layers = options.choices("--layers", arguments.layers, options.LAYERS)
    arguments.ops = options.choices("--ops", arguments.ops, OPS)
    arguments.seq_lens = options.counts("--seq-lens", arguments.seq_lens)
    arguments.batches = options.counts("--batches", arguments.batches)
    for option, value in (("--budget", arguments.budget), ("--slowest", arguments.slowest)):
        if value is not None and not value > 0:
            raise CannotRun(f"{option} must be above 0 seconds, got {value:g}")
    if arguments.resume and not arguments.json:
        raise CannotRun("--resume needs --json FILE")
    options.check_outputs(arguments.json, arguments.plot)
    arguments.device = options.pick_device(arguments.device)
    wanted = arguments.peers or ("none" if arguments.device.type == "cpu" else ",".join(peers.NAMES))
    arguments.peers = [] if wanted == "none" else options.choices("--peers", wanted, peers.NAMES)
    return arguments


def all_cases(arguments: argparse.Namespace) -> Iterator[Case]:
    for preset in arguments.presets:
        for batch in arguments.batches:
            for dtype in arguments.dtypes:
                for op in arguments.ops:
                    for layer in arguments.layers if op in LAYERED_OPS else [""]:
                        for seq_len in [1] if op in UPDATE_OPS else arguments.seq_lens:
                            yield Case(preset, batch, dtype, op, layer, seq_len)


class LayerCache:
    """The layers of the last preset, dtype and kind: their weights take longer to make than a short call."""

    def __init__(self, device: torch.device, peer_names: Sequence[str] = ()) -> None:
        self.device = device
        self.peers = [name for name in peer_names if name in peers.MIXERS]
        self.key: tuple[str, str, str] | None = None
        self.layers: dict[str, nn.Module] = {}

    def calls(self, case: Case, config: hymba_ops.HymbaConfig, index: int, seq_len: int) -> dict[str, Call]:
        key = (case.preset, case.dtype, case.layer)
        if key != self.key:
            self.key, self.layers = None, {}  # the old weights go before the new ones come
            names = ["hymba_ops", "plain", "naive"] + ["upcast"] * (case.dtype != "float32") + self.peers
            self.layers = cases.make_layers(config, index, names, self.device, options.DTYPES[case.dtype])
            self.key = key
        torch.manual_seed(0)
        hidden = torch.randn(case.batch, seq_len, config.hidden_size, device=self.device)
        hidden = hidden.to(options.DTYPES[case.dtype])
        names = [name for name in self.layers if name != "naive" or seq_len <= op_calls.MASKED_UP_TO]
        return {name: (lambda layer=self.layers[name]: layer(hidden)[0]) for name in names}


class Sweep:
    """The loop over cases within a budget of seconds; `results` fills up and is handed to `save` after each case."""

    def __init__(
        self,
        *,
        device: torch.device,
        budget: float | None,
        slowest: float,
        save: Callable[[dict[str, Any]], None],
        peer_names: Sequence[str] = (),
    ) -> None:
        self.device, self.budget, self.begin = device, budget, time.monotonic()
        self.slowest, self.save = slowest, save
        self.peers = peer_names
        self.layer_cache = LayerCache(device, peer_names)
        self.ceilings: dict[str, roofline.Ceilings] = {}  # by dtype
        self.results: dict[str, Any] = {
            "machine": report.describe_machine(device), "commit": report.commit(),
            "rows": [], "left_out": [], "wrong": [], "slower": [],
        }  # fmt: skip

    def resume(self, earlier: dict[str, Any]) -> None:
        """Takes over an earlier run's results; what it left out for want of time is measured now."""
        if earlier["machine"] != self.results["machine"]:
            raise CannotRun(
                f"--resume: the file was measured on {earlier['machine']}, this is {self.results['machine']}"
            )
        if earlier.get("commit") != self.results["commit"]:
            raise CannotRun(
                f"--resume: the file is of commit {earlier.get('commit')}, this is {self.results['commit']}"
            )
        self.results |= earlier
        self.results["left_out"] = [row for row in earlier["left_out"] if not row["for_now"]]

    @torch.inference_mode()
    def run(self, planned: list[Case]) -> None:
        done = {case_of(row) for key in ("rows", "left_out", "wrong") for row in self.results[key]}
        planned = [case for case in planned if case not in done]
        progress = Progress(len(planned))
        for case in planned:
            try:
                row = self._measure(case)
                self.results["rows"].append(row)
                self.results["slower"] += [row] * is_slower(row)
            except LeftOut as reason:
                self.results["left_out"].append(asdict(case) | {"reason": str(reason), "for_now": reason.for_now})
            except (cases.WrongOutput, RuntimeError) as wrong:  # the second: of torch, out of memory and the like
                self.results["wrong"].append(asdict(case) | {"reason": first_line(wrong)})
            self.save(self.results)
            progress.step(f"{case.series()}, length {case.seq_len}")
        progress.close()

    def _measure(self, case: Case) -> dict[str, Any]:
        if self._seconds_left() <= 0:
            raise LeftOut(f"the budget of {self.budget:g} s is used up", for_now=True)
        if missing := missing_kernels(cases.LAYER_OPS if case.op == "layer" else [case.op], self.device):
            raise LeftOut(f"no {self.device.type} kernel of {', '.join(missing)}")
        config = options.preset(case.preset)
        index = cases.layer_index(config, case.layer or "sliding")
        if case.batch * case.seq_len > _SURE_TO_FIT:
            self._check_memory(case, config)
        candidates, rivals = self._candidates(case, config, index)
        expected = first_plain(candidates)
        error = compare({name: calls[0] for name, calls in candidates.items()})
        admitted, refused = cases.admit(rivals, candidates[expected][0]()) if rivals else ({}, {})
        row = make_row(case, _time(candidates | admitted, self.device))
        if is_slower(row):
            row = make_row(case, _time(candidates | admitted, self.device))
        row |= {"relative_rms": error} | ({"peers_not_run": refused} if refused else {})
        return row | self._floor(case, config, index, row["ms"])

    def _candidates(self, case: Case, config: hymba_ops.HymbaConfig, index: int) -> tuple[Candidates, Candidates]:
        """The forms to time, and the peers; on a GPU each has calls on as many inputs as its L2 cache does not hold."""
        calls = self._calls(case, config, index, case.seq_len)
        rivals = {name: calls.pop(name) for name in peers.NAMES if name in calls}
        if case.batch * case.seq_len > _SURE_TO_BE_QUICK:
            self._drop_slow_forms(calls, case, config, index)
        itemsize = options.DTYPES[case.dtype].itemsize
        if case.op == "layer":
            size = case.batch * case.seq_len * config.hidden_size * itemsize
        else:
            size = case_work(case, config, index).bytes
        count = inputs_beyond_cache(size, self.device)
        of_inputs = [calls | rivals, *(self._calls(case, config, index, case.seq_len) for _ in range(count - 1))]
        of_forms, of_rivals = ({name: [c[name] for c in of_inputs] for name in names} for names in (calls, rivals))
        return of_forms, of_rivals

    def _floor(self, case: Case, config: hymba_ops.HymbaConfig, index: int, ms: float) -> dict[str, float]:
        """On a GPU (bench/op_work.py says why)."""
        if self.device.type != "cuda":
            return {}
        dtype = options.DTYPES[case.dtype]
        if case.dtype not in self.ceilings:
            largest = options.preset(PRESETS[0])
            self.ceilings[case.dtype] = roofline.measure(largest, rows=4096, device=self.device, dtype=dtype)
        ceilings = self.ceilings[case.dtype]
        if case.op == "layer":
            seconds = ceilings.layer_seconds(layer_work(case, config, index, case.seq_len, dtype.itemsize))
        else:
            seconds = ceilings.seconds(case_work(case, config, index))
        return {"floor_ms": 1e3 * seconds, "ratio_to_floor": ms / (1e3 * seconds)}

    def _seconds_left(self) -> float:
        return float("inf") if self.budget is None else self.begin + self.budget - time.monotonic()

    def _calls(self, case: Case, config: hymba_ops.HymbaConfig, index: int, seq_len: int) -> dict[str, Call]:
        if case.op == "layer":
            return self.layer_cache.calls(case, config, index, seq_len)
        dtype = options.DTYPES[case.dtype]
        return op_calls.random_calls(
            case.op, config, index, batch=case.batch, length=seq_len, dtype=dtype, device=self.device,
            peer_names=self.peers,
        )  # fmt: skip

    def _check_memory(self, case: Case, config: hymba_ops.HymbaConfig) -> None:
        needed, available = needed_bytes(case, config), available_bytes(self.device)
        if available is not None and needed > available:
            raise LeftOut(f"about {needed / 2**30:.0f} GiB needed, {available / 2**30:.0f} GiB available")

    def _drop_slow_forms(self, calls: dict[str, Call], case: Case, config: hymba_ops.HymbaConfig, index: int) -> None:
        """Takes plain forms out of `calls` by an estimate from a call on a part of the length."""
        part = max(1, min(case.seq_len // _PROBE, _SURE_TO_FIT // case.batch))
        probes = self._calls(case, config, index, part)
        growth = relative_work(case, config, index, case.seq_len) / relative_work(case, config, index, part)
        seconds = {
            name: growth * _shortest_ms(probes[name], self.device) / 1e3 for name in calls if name != "hymba_ops"
        }
        best = min(seconds.values())
        if best > self.slowest:
            raise LeftOut(f"a call of plain takes about {best:.0f} s, more than {self.slowest:g} s")
        for name in seconds:
            if seconds[name] > self.slowest:
                del calls[name]
        # A comparison and three times of what is left, hymba_ops taken to be no slower than the best.
        whole, left = 4 * (best + sum(seconds[name] for name in calls if name in seconds)), self._seconds_left()
        if whole > left:
            raise LeftOut(f"it takes about {whole:.0f} s, and {left:.0f} s of the budget are left", for_now=True)


def first_plain(forms: Iterable[str]) -> str:
    return next(name for name in forms if name != "hymba_ops")


def compare(calls: dict[str, Call]) -> float:
    """The largest relative rms of the differences from the first plain form; raises WrongOutput."""
    first = first_plain(calls)
    expected = calls[first]()
    return max(
        cases.check_agreement(f"{name} differs from {first}", call(), expected)
        for name, call in calls.items()
        if name != first
    )


def _shortest_ms(call: Call, device: torch.device) -> float:
    first = elapsed_ms(call, device)
    return first if first > 500 else min(first, elapsed_ms(call, device), elapsed_ms(call, device))


def _time(candidates: Candidates, device: torch.device) -> dict[str, Timing]:
    return time_rounds(candidates, device, seconds=0.15, most=300, warm=True)


def make_row(case: Case, timings: dict[str, Timing]) -> dict[str, Any]:
    """The ratio is to the best plain form; peers stand beside it, as `peers_ms`."""
    ours = timings["hymba_ops"]
    plain = {name: timing for name, timing in timings.items() if name not in ("hymba_ops", *peers.NAMES)}
    form = min(plain, key=lambda name: plain[name].ms)
    best = timings[form]
    rivals = {name: timing.ms for name, timing in timings.items() if name in peers.NAMES}
    return asdict(case) | {
        "ms": ours.ms, "ms_min": ours.ms_min, "ms_max": ours.ms_max,
        "plain_form": form, "plain_ms": best.ms, "plain_ms_min": best.ms_min, "plain_ms_max": best.ms_max,
        "forms_ms": {name: timing.ms for name, timing in plain.items()},
        "ratio": best.ms / ours.ms, "difference_us": 1e3 * (ours.ms - best.ms),
    } | ({"peers_ms": rivals} if rivals else {})  # fmt: skip


def is_slower(row: dict[str, Any]) -> bool:
    """Whether we are slower than plain PyTorch, noise aside. At one token a small op may be SMALL_OP_US slower."""
    if row["op"] not in BRANCHES and row["seq_len"] == 1:
        return row["difference_us"] > SMALL_OP_US
    return row["ratio"] < 1 - NOISE and row["ms_min"] > row["plain_ms_min"]


def write(path: Path | None, results: dict[str, Any]) -> None:
    """Replaces the file whole: a run stopped in the middle of writing leaves the old one."""
    if path is not None:
        temporary = path.with_name(path.name + ".new")
        temporary.write_text(json.dumps(results, indent=1) + "\n")
        os.replace(temporary, path)


def main(argv: list[str] | None = None) -> int:
    try:
        arguments = parse_arguments(argv)
        path = Path(arguments.json) if arguments.json else None
        sweep = Sweep(
            device=arguments.device,
            budget=arguments.budget,
            slowest=arguments.slowest,
            save=lambda results: write(path, results),
            peer_names=arguments.peers,
        )
        if arguments.resume and path.exists():
            sweep.resume(json.loads(path.read_text()))
    except CannotRun as reason:
        print(f"\nsweep: {reason}", file=sys.stderr)
        return 2
    sweep.run(list(all_cases(arguments)))
    report.print_sweep(sweep.results)
    if arguments.plot and sweep.results["rows"]:
        from bench.plot import draw_sweep

        draw_sweep(sweep.results, arguments.plot)
    return 1 if sweep.results["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
