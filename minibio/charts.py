"""Bars: what models cost to run (Figure 2), and how they score beside the paper's.

Drawn straight into a file by matplotlib, which plot.py imports; what the numbers are stands in
speed.py and tables.py.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from minibio.plot import COLOURS, new_figure, save_figure

Bars = Mapping[str, Sequence[float | None]]  # name of a series -> one value a group; None: no bar


def bars(ax, groups: Sequence[str], series: Bars, errors: Mapping[str, Sequence] | None = None,
         ) -> None:  # fmt: skip
    """Groups of bars side by side, a colour for each series.

    Args:
        errors: series -> for each bar how far its whisker goes up, and down; None = no whisker.
    """
    width = 0.8 / max(len(series), 1)
    for i, (name, values) in enumerate(series.items()):
        places = [g + (i - (len(series) - 1) / 2) * width for g in range(len(groups))]
        there = [j for j, y in enumerate(values) if y is not None]
        colour = COLOURS[i % len(COLOURS)]
        ax.bar([places[j] for j in there], [values[j] for j in there], width, color=colour,
               label=name)  # fmt: skip
        for j in there:
            whisker = (errors or {}).get(name, [None] * len(values))[j]
            if whisker is not None:
                up, down = whisker
                ax.errorbar(places[j], values[j], [[down], [up]], color="black", linewidth=0.8,
                            capsize=2)  # fmt: skip
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
        bars(above, models, values("ms_p50"), late)
        bars(below, models, values("peak_mib"))
        above.set_title(f"{B} text{'s' * (B > 1)} a call", fontsize=10)
    axes[0, 0].set_ylabel("inference time (ms), median to 95 %")
    axes[1, 0].set_ylabel("peak memory (MiB)")
    names, device = axes[0, 0].get_legend_handles_labels(), rows[0]["device"]
    figure.legend(*names, loc="outside upper right", ncols=len(lengths), frameon=False, fontsize=8)
    figure.suptitle(f"Inference of the encoder, {rows[0]['precision']}, {device}", fontsize=10)
    save_figure(figure, out)
