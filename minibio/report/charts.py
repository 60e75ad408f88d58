"""Bars: what models cost to run (Figure 2), and how they score beside the paper's.

Drawn straight into a file by matplotlib, which plot.py imports; what the numbers are stands in
speed.py and tables.py.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from minibio.report.plot import COLOURS, new_figure, save_figure

Bars = Mapping[str, Sequence[float | None]]  # name of a series -> one value a group; None: no bar


DIAMOND = {
    "marker": "D", "linestyle": "", "color": "white", "markeredgecolor": "black", "markersize": 4,
    "zorder": 3, "label": "the paper",
}  # fmt: skip


class Panel(NamedTuple):
    """Groups of bars side by side, a colour for each series."""

    title: str
    groups: Sequence[str]
    series: Bars
    whiskers: Mapping[str, Sequence[tuple[float, float] | None]] = {}  # up and down, of each bar
    marks: Bars = {}  # what each bar is compared with


def draw(ax, panel: Panel) -> None:
    """Draw one."""
    _, groups, series, whiskers, marks = panel
    width = 0.8 / max(len(series), 1)
    for i, (name, values) in enumerate(series.items()):
        places = [g + (i - (len(series) - 1) / 2) * width for g in range(len(groups))]
        there = [j for j, y in enumerate(values) if y is not None]
        colour = COLOURS[i % len(COLOURS)]
        ax.bar([places[j] for j in there], [values[j] for j in there], width, color=colour,
               label=name)  # fmt: skip
        for j in there:
            if whiskers.get(name) and whiskers[name][j]:
                up, down = whiskers[name][j]
                ax.errorbar(places[j], values[j], [[down], [up]], color="black", linewidth=0.8,
                            capsize=2)  # fmt: skip
            if marks.get(name) and marks[name][j] is not None:
                ax.plot(places[j], marks[name][j], **DIAMOND)
    ax.set_title(panel.title, fontsize=10)
    ax.set_xticks(range(len(groups)), groups, rotation=20, ha="right", fontsize=8)
    ax.grid(axis="y", alpha=0.25, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)


def time_and_memory(rows: Sequence[dict], out: Path) -> None:
    """Figure 2: inference time above, memory below, of each model; a column for each batch size.

    Args:
        rows: of speed.py, of one precision.
    """
    models, batches, lengths = (list(dict.fromkeys(row[k] for row in rows))
                                for k in ("model", "batch", "length"))  # fmt: skip
    known = {(row["model"], row["batch"], row["length"]): row for row in rows}
    figure = new_figure(out, max(4.5, 3.6 * len(batches)), 6)
    axes = figure.subplots(2, len(batches), squeeze=False)
    for (above, below), B in zip(axes.T, batches, strict=True):
        cells = {f"{T} tokens": [known[model, B, T] for model in models] for T in lengths}

        def values(key, cells=cells):
            return {name: [row[key] for row in column] for name, column in cells.items()}

        late = {
            name: [(row["ms_p95"] - row["ms_p50"], 0) for row in column]
            for name, column in cells.items()
        }
        draw(above, Panel(f"{B} text{'s' * (B > 1)} a call", models, values("ms_p50"), late))
        draw(below, Panel("", models, values("peak_mib")))
    axes[0, 0].set_ylabel("inference time (ms), median to 95 %")
    axes[1, 0].set_ylabel("peak memory (MiB)")
    names, device = axes[0, 0].get_legend_handles_labels(), rows[0]["device"]
    figure.legend(*names, loc="outside upper right", ncols=len(lengths), frameon=False, fontsize=8)
    figure.suptitle(f"Inference of the encoder, {rows[0]['precision']}, {device}", fontsize=10)
    save_figure(figure, out)


def scores(panels: Sequence[Panel], out: Path) -> None:
    """Scores of models on sets, one panel a task; diamonds are the paper's."""
    widths = [max(2.5, 0.25 * len(p.series) * len(p.groups) + 1) for p in panels]
    figure = new_figure(out, max(5.0, sum(widths)), 4.5)
    axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0]
    names = dict.fromkeys(name for p in panels for name in p.series)
    for ax, panel in zip(axes, panels, strict=True):
        draw(ax, panel._replace(series={
            name: panel.series.get(name, [None] * len(panel.groups)) for name in names
        }))  # fmt: skip
    handles = {}
    for ax in axes:
        handles.update(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", frameon=False,
                  ncols=min(4, len(handles)), fontsize=8)  # fmt: skip
    save_figure(figure, out)
