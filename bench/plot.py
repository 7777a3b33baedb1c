"""--plot: the layer rows and the parts beside their floors; the sweep's ratios. The only user of matplotlib."""

from __future__ import annotations

from typing import Any

COLOURS = {"hymba_ops": "#1b6ca8", "plain": "#c9a227", "naive": "#b5523b", "compiled": "#6b8e4e", "flex": "#8a63a8",
           "upcast": "#3aa6a0", "sdpa": "#d98880", "flex-halves": "#b39ac6", "published": "#7d6608",
           "compiled-blocks": "#9bbf7a", "compiled-masked": "#c5dcae", "causal_conv1d": "#5d6d7e",
           "mamba_ssm": "#85929e"}  # fmt: skip
FLOOR = "#222222"


def draw(results: dict[str, Any], path: str) -> None:
    """Writes the picture; the format follows the file's ending."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    layers = list(dict.fromkeys(row["layer"] for row in results["rows"]))
    figure, axes = plt.subplots(2, len(layers), figsize=(7.5 * len(layers), 9), squeeze=False, layout="constrained")
    for column, layer in enumerate(layers):
        _draw_layer(axes[0][column], [row for row in results["rows"] if row["layer"] == layer])
        _draw_parts(axes[1][column], [row for row in results["parts"] if row["layer"] == layer])
    row, machine = results["rows"][0], results["machine"]
    figure.suptitle(
        f"Hymba-{results['preset']} layer, forward, {row['dtype']}, batch {row['batch']}, {row['seq_len']} tokens\n"
        f"{machine['device']}, {machine['threads']} threads, {machine['kernels']}"
    )
    handles, labels = axes[1][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.savefig(path, dpi=110)
    plt.close(figure)


# The ops whose time a layer is made of are drawn strong, the small ones thin.
_STRONG = ("layer", "attention", "selective_scan", "causal_conv1d")


def draw_sweep(results: dict[str, Any], path: str) -> None:
    """The ratio to plain over the length: a panel a preset (rows), dtype and batch (columns); a line an op."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = results["rows"]
    presets = list(dict.fromkeys(row["preset"] for row in rows))
    columns = sorted(
        {(row["dtype"], row["batch"]) for row in rows}, key=lambda column: (column[0] != "float32", column)
    )
    lines = list(dict.fromkeys((row["op"], row["layer"]) for row in rows))
    figure, axes = plt.subplots(
        len(presets), len(columns), figsize=(1.5 + 4.5 * len(columns), 2 + 3.6 * len(presets)), squeeze=False,
        sharex=True, sharey=True, layout="constrained",
    )  # fmt: skip
    styles = _sweep_styles(lines)
    for preset, row_of_axes in zip(presets, axes, strict=True):
        for (dtype, batch), panel in zip(columns, row_of_axes, strict=True):
            chosen = [row for row in rows if (row["preset"], row["dtype"], row["batch"]) == (preset, dtype, batch)]
            _draw_ratios(panel, chosen, styles)
            panel.set_title(f"{preset}, {dtype}, batch {batch}", fontsize=10)
        row_of_axes[0].set_ylabel("plain ms / hymba_ops ms")
    for panel in axes[-1]:
        panel.set_xlabel("length")
    machine = results["machine"]
    figure.suptitle(
        "hymba_ops against the best plain PyTorch form (above 1: hymba_ops is faster)\n"
        f"{machine['device']}, {machine['threads']} threads, {machine['kernels']}"
    )
    handles = [plt.Line2D([], [], label=" ".join(filter(None, line[::-1])), **styles[line]) for line in lines]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(lines), 2 + len(columns)), handlelength=4)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _sweep_styles(lines: list[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """One colour an op; the global layers dashed."""
    palette = (
        "#1b6ca8",
        "#b5523b",
        "#6b8e4e",
        "#8a63a8",
        "#c9a227",
        "#3aa6a0",
        "#d4709b",
        "#7a5c3e",
        "#888888",
        "#222222",
    )
    ops = list(dict.fromkeys(op for op, _ in lines))
    return {
        (op, layer): {
            "color": palette[ops.index(op) % len(palette)],
            "linestyle": "--" if layer == "global" else "-",
            "linewidth": 2.2 if op in _STRONG else 1.1,
            "marker": "o" if op in _STRONG else "D" if op.endswith("_update") else ".",
            "markersize": 5,
        }
        for op, layer in lines
    }


def _draw_ratios(axes: Any, rows: list[dict[str, Any]], styles: dict[tuple[str, str], dict[str, Any]]) -> None:
    for line, style in styles.items():
        mine = [row for row in rows if (row["op"], row["layer"]) == line]
        axes.plot([row["seq_len"] for row in mine], [row["ratio"] for row in mine], **style)
    axes.axhline(1, color=FLOOR, linewidth=1.5)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    _tidy(axes)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)


def _draw_layer(axes: Any, rows: list[dict[str, Any]]) -> None:
    names = [row["implementation"] for row in rows]
    times = [row["ms"] for row in rows]
    spread = [[row["ms"] - row["ms_min"] for row in rows], [row["ms_max"] - row["ms"] for row in rows]]
    axes.barh(names, times, xerr=spread, color=[COLOURS[name] for name in names], ecolor="#777777", capsize=3)
    for y, row in enumerate(rows):
        axes.text(row["ms_max"], y, f"  {row['ms']:.0f} ms", va="center")
    axes.axvline(rows[0]["floor_ms"], color=FLOOR, linestyle="--", label=f"floor {rows[0]['floor_ms']:.0f} ms")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(row["ms_max"] for row in rows))
    axes.set_xlabel("ms (bar: median, whisker: min to max)")
    axes.set_title(f"{rows[0]['layer']} layer")
    axes.legend(loc="upper right")
    _tidy(axes)


def _draw_parts(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Groups of bars on a logarithmic scale, since parts differ a hundredfold; the floor is a tick over each."""
    names = list(dict.fromkeys(row["part"] for row in rows))
    implementations = [name for name in COLOURS if any(row["implementation"] == name for row in rows)]
    height = 0.8 / len(implementations)
    for i, implementation in enumerate(implementations):
        mine = [row for row in rows if row["implementation"] == implementation]
        places = [names.index(row["part"]) - 0.4 + (i + 0.5) * height for row in mine]
        axes.barh(places, [row["ms"] for row in mine], height, color=COLOURS[implementation], label=implementation)
    floors = {row["part"]: row["floor_ms"] for row in rows}
    for y, name in enumerate(names):
        axes.plot([floors[name]] * 2, [y - 0.45, y + 0.45], color=FLOOR, linewidth=2, label="floor" if y == 0 else None)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("ms (logarithmic)")
    axes.set_title(f"{rows[0]['layer']} layer, part by part")
    _tidy(axes)


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
