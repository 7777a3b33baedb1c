#!/usr/bin/env python3
"""The tables of measurements in README.md and docs/, made from bench/results/*.json.

    python bench/tables.py              # print them
    python bench/tables.py --write      # renew them
    python bench/tables.py --check      # end with status 1 where one is out of date (CI)

They stand between `<!-- results: KIND FILE... -->` and `<!-- end -->`: KIND is one of `KINDS`, a file is named without
folder and ending. * and ? stand for as many files as there are, in the order of their names, be it none: then the page
says so. No number in such a table is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.machine_times import machine_table  # noqa: E402
from tools.measured import card_of  # noqa: E402

RESULTS = ROOT / "bench" / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
MARKED = re.compile(r"(<!-- results: (\w+) ([^>]+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

Result = dict[str, Any]  # a file of bench/results


class Unusable(Exception):
    """A marker that asks for what is not there."""


# ---- Cells ----


def number(value: float) -> str:
    """Three digits, more where the number has more before its point."""
    if value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}" if value >= 0.9995 else f"{value:.3g}"


def markdown(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rows)]


def label(result: Result) -> str:
    """A word for the machine: "H100", "cpu avx2"."""
    facts = result["machine"]
    return card_of(facts["device"]) if "driver" in facts else str(facts["kernels"])


def measured(titles: Sequence[str], rows: Sequence[tuple[Result, Sequence[str]]]) -> list[str]:
    """A table; where its rows are of several machines it says which."""
    labels = [label(result) for result, _ in rows]
    if len(set(labels)) < 2:
        return markdown(titles, [cells for _, cells in rows])
    return markdown(("machine", *titles), [(name, *cells) for name, (_, cells) in zip(labels, rows, strict=True)])


def machine(result: Result) -> str:
    """One line: the machine, its ceilings in this run, versions."""
    facts = result["machine"]
    parts = [facts["device"]]
    if "driver" in facts:
        parts += [f"driver {facts['driver']}", f"{facts['max_clock']}", f"{facts['power_limit']}"]
    else:
        parts.append(f"{facts['threads']} threads")
    parts += [f"kernels: {facts['kernels']}", f"torch {facts['torch']}"]
    if "gemm_gflops" in facts:
        rates = (facts[key] for key in ("gemm_gflops", "exp_g_per_s", "bandwidth_gb_per_s"))
        parts.append("ceilings {} GFLOP/s, {} Gexp/s, {} GB/s".format(*map(number, rates)))
    parts.append(f"commit {result['commit'][:10]}" if result.get("commit") else "commit not recorded")
    return ", ".join(parts) + "."


def machines(results: Sequence[Result]) -> list[str]:
    """The lines above a table: each machine's and run's once."""
    lines = list(dict.fromkeys(map(machine, results)))
    return [*(lines if len(lines) == 1 else [f"- {line}" for line in lines]), ""]


# ---- Kinds ----


def layer(results: Sequence[Result]) -> list[str]:
    """Whole layers of bench/layer_throughput.py."""
    titles = ("layer", "dtype", "batch, tokens", "implementation", "ms (least to most)", "tokens/s", "x plain",
              "floor ms", "x floor", "extra memory MiB")  # fmt: skip
    rows = [
        (result, (
            row["layer"], row["dtype"], f"{row['batch']}, {row['seq_len']}", row["implementation"],
            f"{number(row['ms'])} ({number(row['ms_min'])} to {number(row['ms_max'])})",
            number(row["tokens_per_s"]), _optional(row["ratio_to_best_plain"]), number(row["floor_ms"]),
            number(row["ratio_to_floor"]), _optional(row["peak_bytes"], 2**-20),
        ))
        for result in results
        for row in result["rows"]
    ]  # fmt: skip
    return [*machines(results), *measured(titles, rows), *_not_run(results)]


def _optional(value: float | None, factor: float = 1) -> str:
    return "-" if value is None else number(value * factor)


def parts(results: Sequence[Result]) -> list[str]:
    """A layer's parts of the same, --parts."""
    titles = ("layer", "dtype", "batch, tokens", "part", "hymba_ops ms", "plain ms", "x plain", "floor ms", "x floor",
              "others ms")  # fmt: skip
    rows = []
    for result in results:
        of_layer = {row["layer"]: row for row in result["rows"]}
        for name, part in dict.fromkeys((row["layer"], row["part"]) for row in result["parts"]):
            of_part = [row for row in result["parts"] if (row["layer"], row["part"]) == (name, part)]
            ms = {row["implementation"]: row["ms"] for row in of_part}
            ours, plain, floor, case = ms.pop("hymba_ops"), ms.pop("plain"), of_part[0]["floor_ms"], of_layer[name]
            rows.append((result, (
                name, case["dtype"], f"{case['batch']}, {case['seq_len']}", part, number(ours), number(plain),
                number(plain / ours), number(floor), number(ours / floor),
                ", ".join(f"{other} {number(value)}" for other, value in ms.items()),
            )))  # fmt: skip
    return [*machines(results), *measured(titles, rows), *_not_run(results)]


def _not_run(results: Sequence[Result]) -> list[str]:
    reasons = dict.fromkeys(
        f"Could not run: {row['implementation']} ({_where(row)}): {row['reason']}"
        for result in results
        for row in result.get("not_run", [])
    )
    return [line for reason in reasons for line in ("", reason)]


def _where(row: dict[str, Any]) -> str:
    if "part" in row:
        return str(row["part"])
    return f"{row['layer']}, batch {row['batch']}, context {row['context']}"


def memory(results: Sequence[Result]) -> list[str]:
    """bench/layer_throughput.py --memory."""
    titles = ("layer", "dtype", "batch, positions", "implementation", "growth MiB", "times in_proj's and the layer's "
              "output", "kept by a first call MiB")  # fmt: skip
    rows = [
        (result, (
            row["layer"], row["dtype"], f"{row['batch']}, {row['length']}", row["implementation"],
            number(row["growth_bytes"] / 2**20), number(row["multiple"]), number(row["first_call_bytes"] / 2**20),
        ))
        for result in results
        for row in result["memory"]
    ]  # fmt: skip
    return [*machines(results), *measured(titles, rows)]


def ratios(results: Sequence[Result]) -> list[str]:
    """bench/sweep.py: how many times as long as ours the best plain form takes, least to most over all cases."""
    rows = [row for result in results for row in result["rows"]]
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    lines = []
    for op in dict.fromkeys(row["op"] for row in rows):
        of_op = {dtype: [row["ratio"] for row in rows if (row["op"], row["dtype"]) == (op, dtype)] for dtype in dtypes}
        lines.append((
            op, *(f"{number(min(found))} to {number(max(found))}" if found else "-" for found in of_op.values()),
            f"{sum(map(len, of_op.values()))}",
        ))  # fmt: skip
    slower = [row for result in results for row in result["slower"]]
    note = f"{len(rows)} cases, slower than the best plain form in {len(slower)}."
    return [*machines(results), note, "", *markdown(("op", *dtypes, "cases"), lines)]


def decode(results: Sequence[Result]) -> list[str]:
    """bench/decode_throughput.py: steps of a stack of layers, the other implementations at the end of each line."""
    titles = ("layers", "dtype", "batch", "context", "ms (least to most)", "us a layer", "tokens/s", "x plain", "MB",
              "of copy bandwidth", "floor ms", "x floor", "others ms")  # fmt: skip
    rows = []
    for result in results:
        cases: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
        for row in result["rows"]:
            case = (row["layer"], row["dtype"], row["batch"], row["context"])
            cases.setdefault(case, {})[row["implementation"]] = row
        for case, forms in cases.items():
            ours = forms.pop("hymba_ops")
            rows.append((result, (
                *map(str, case), f"{number(ours['ms'])} ({number(ours['ms_min'])} to {number(ours['ms_max'])})",
                number(ours["us_per_layer"]), number(ours["tokens_per_s"]), _optional(ours["ratio_to_best_plain"]),
                number(ours["bytes"] / 1e6), f"{ours['share_of_copy']:.0%}", number(ours["floor_ms"]),
                number(ours["ratio_to_floor"]), ", ".join(f"{name} {number(row['ms'])}" for name, row in forms.items()),
            )))  # fmt: skip
    return [*machines(results), *measured(titles, rows), *_not_run(results)]


def op_times(results: Sequence[Result]) -> list[str]:
    """bench/sweep.py on a GPU: single ops beside their floors, and peers."""
    titles = ("op", "layer", "dtype", "batch, tokens", "ms", "x plain", "floor ms", "x floor", "peers ms")
    rows = []
    for result in results:
        for row in result["rows"]:
            peers = [f"{name} {number(ms)}" for name, ms in row.get("peers_ms", {}).items()]
            peers += [f"{name} could not run: {reason}" for name, reason in row.get("peers_not_run", {}).items()]
            rows.append((result, (
                row["op"], row["layer"], row["dtype"], f"{row['batch']}, {row['seq_len']}", number(row["ms"]),
                number(row["ratio"]), _optional(row.get("floor_ms")), _optional(row.get("ratio_to_floor")),
                ", ".join(peers),
            )))  # fmt: skip
    return [*machines(results), *measured(titles, rows)]


KINDS: dict[str, Callable[[Sequence[Result]], list[str]]] = {
    "layer": layer,
    "parts": parts,
    "memory": memory,
    "ratios": ratios,
    "op_times": op_times,
    "decode": decode,
    "machine": machine_table,  # of what was not measured it says what the static model assumes
}


# ---- Pages ----


def load(names: str, folder: Path) -> list[Result]:
    """The files that a marker names."""
    found = []
    for name in names.split():
        paths = sorted(folder.glob(f"{name}.json"))
        if not paths and not set(name) & set("*?"):
            raise Unusable(f"no {folder.name}/{name}.json")
        found += [json.loads(path.read_text()) for path in paths]
    return found


def renew(page: str, folder: Path = RESULTS) -> str:
    """A page with its tables made anew."""

    def block(match: re.Match[str]) -> str:
        begin, kind, names, _, end = match.groups()
        if kind not in KINDS:
            raise Unusable(f"no table is called {kind}: {', '.join(KINDS)}")
        results = load(names, folder)
        try:
            if results or kind == "machine":
                lines = KINDS[kind](results)
            else:
                lines = [f"Not measured yet: bench/results/ has no {' or '.join(names.split())}."]
        except KeyError as missing:
            raise Unusable(f"{names} has no {missing} for a table {kind}") from None
        return begin + "\n".join(lines) + "\n" + end

    return MARKED.sub(block, page)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--write", action="store_true", help="renew the tables")
    what.add_argument("--check", action="store_true", help="refuse tables that are out of date")
    options = parser.parse_args(argv)
    stale = 0
    for path in PAGES:
        page = path.read_text()
        try:
            new = renew(page)
        except Unusable as reason:
            print(f"tables: {path.name}: {reason}", file=sys.stderr)
            return 2
        if options.write:
            path.write_text(new)
        elif options.check:
            if page != new:
                stale += 1
                print(f"tables: {path.name} is out of date: run bench/tables.py --write", file=sys.stderr)
        else:
            print("".join(f"{match[0]}\n\n" for match in MARKED.finditer(new)), end="")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
