"""Pictures: loss curves of runs, and bars of scores and speed.

    python -m minibio plot runs/tiny runs/scratch --out loss.png

Curves, left: the loss a run is trained on, which each method defines for itself; right: the
masked-LM loss on held-out text, which all runs share. Bars show what models cost to run (Figure 2)
and how they score beside the paper's. Everything is drawn straight into a file, never on a display;
matplotlib is an extra (`pip install minibio[plot]`) and imported only here.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from minibio.run.errors import InputError
from minibio.run.files import real, staged_file
from minibio.run.options import Parser

# Okabe and Ito (2008): told apart by colour-blind readers too
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
FORMATS = ("png", "svg", "pdf")

Curve = list[tuple[int, float]]  # (optimiser step, value), steps ascending
Bars = Mapping[str, Sequence[float | None]]  # name of a series -> one value a group; None: no bar


def read_curves(path) -> tuple[Curve, Curve]:
    """Training loss and held-out masked-LM loss in a run's log.jsonl.

    A last line without its newline, which a killed run leaves, is skipped; so are values that are
    not finite.
    Raises:
        InputError: no such file, a line that is not the JSON of an event, no curve in it.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}, expected the log of a run") from None
    train, held_out = [], []
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
            kind = event["event"]
            # an interval whose steps were all skipped has no loss
            if kind == "train" and ("loss" in event or not event.get("skipped")):
                train.append((int(event["step"]), float(event["loss"])))
            elif kind == "held_out" and "devel" not in event:  # a fine-tuning's is a score
                held_out.append((int(event["step"]), float(event["mlm_loss"])))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise InputError(f"{path}: line {number} is not an event of a training log") from None
    train, held_out = (
        [(step, y) for step, y in curve if math.isfinite(y)] for curve in (train, held_out)
    )
    if not train and not held_out:
        raise InputError(f"{path}: holds no losses; is it the log of a finished interval?")
    return train, held_out


def moving_average(values: list[float], width: int) -> list[float]:
    """The mean of up to `width` neighbours around each value: fewer at the ends, never shifted."""
    half, n = width // 2, len(values)
    windows = (values[i - r : i + r + 1] for i in range(n) for r in [min(half, i, n - 1 - i)])
    return [sum(window) / len(window) for window in windows]


def is_noisy(values: list[float], smooth: list[float]) -> bool:
    """Whether values are more than 1 % away from their moving average, on average."""
    scatter = sum(abs(a - b) / (abs(b) or 1.0) for a, b in zip(values, smooth, strict=True))
    return scatter > 0.01 * len(values)


def draw_training(ax, curve: Curve, colour: str, label: str) -> None:
    """One run's training loss; a noisy one pale beneath its moving average."""
    steps, values = zip(*curve, strict=True)
    smooth = moving_average(list(values), max(len(values) // 20, 1))
    if is_noisy(list(values), smooth):
        ax.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
        values = smooth
    ax.plot(steps, values, color=colour, linewidth=1.6, label=label)


def draw_held_out(ax, curve: Curve, colour: str, label: str) -> None:
    """One run's held-out loss, a dot for each evaluation, its last value in the legend."""
    steps, values = zip(*curve, strict=True)
    ax.plot(
        steps,
        values,
        color=colour,
        linewidth=1.6,
        marker="o",
        markersize=3.5,
        label=f"{label}: {values[-1]:.3f}",
    )


def new_figure(out: Path, width: float, height: float):
    """An empty matplotlib figure for the file `out`.

    Made without pyplot, so that there is neither a display nor global state.

    Args:
        width, height: inches.
    Raises:
        InputError: matplotlib is not installed, or `out` is another kind of picture.
    """
    if out.suffix.lstrip(".").lower() not in FORMATS:
        raise InputError(f"{out}: expected a name that ends in .{', .'.join(FORMATS)}")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("drawing needs matplotlib: pip install minibio[plot]") from None
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def save_figure(figure, out: Path) -> None:
    """Write a figure; a file that was there is replaced in one move."""
    with staged_file(out) as staged:
        figure.savefig(staged, format=out.suffix.lstrip(".").lower())


def loss_curves(runs: dict[str, str | Path], out: str | Path) -> None:
    """Draw the runs' training loss and held-out masked-LM loss side by side.

    Args:
        runs: label -> path of its log.jsonl.
        out:  the picture: .png, .svg or .pdf.
    Raises:
        InputError: matplotlib is not installed, a log cannot be read, another kind of picture.
    """
    out = Path(out)
    figure = new_figure(out, 10, 4)
    from matplotlib.ticker import LogLocator, NullFormatter

    curves = {label: read_curves(path) for label, path in runs.items()}
    left, right = figure.subplots(1, 2)
    for i, (label, (train, held_out)) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        if train:
            draw_training(left, train, colour, label)
        if held_out:
            draw_held_out(right, held_out, colour, label)
    values = [y for train, _ in curves.values() for _, y in train if y > 0]
    if values and max(values) > 10 * min(values):
        left.set_yscale("log")
        left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        left.yaxis.set_major_formatter("{x:g}")  # 20, not 2 x 10^1
        left.yaxis.set_minor_formatter(NullFormatter())
    left.set(title="Training loss", ylabel="loss (sum of the method's terms)")
    right.set(title="Held-out text", ylabel="masked-LM loss (nats per predicted token)")
    for ax in (left, right):
        ax.set_xlabel("optimiser step")
        ax.grid(alpha=0.25, linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
        if ax.lines:
            ax.legend(frameon=False)
    save_figure(figure, out)


DIAMOND = {
    "marker": "D", "linestyle": "", "color": "white", "markeredgecolor": "black", "markersize": 4,
    "zorder": 3, "label": "the paper",
}  # fmt: skip


class Panel(NamedTuple):
    """Groups of bars side by side, one colour for each series."""

    title: str
    groups: Sequence[str]
    series: Bars
    whiskers: Mapping[str, Sequence[tuple[float, float] | None]] = {}  # up and down, for each bar
    marks: Bars = {}  # the value that each bar is compared with


def draw_bars(ax, panel: Panel) -> None:
    """Draw one panel."""
    _, groups, series, whiskers, marks = panel
    width = 0.8 / max(len(series), 1)
    for i, (name, values) in enumerate(series.items()):
        places = [g + (i - (len(series) - 1) / 2) * width for g in range(len(groups))]
        there = [j for j, y in enumerate(values) if y is not None]
        colour = COLOURS[i % len(COLOURS)]
        ax.bar(
            [places[j] for j in there], [values[j] for j in there], width, color=colour, label=name
        )
        for j in there:
            if whiskers.get(name) and whiskers[name][j]:
                up, down = whiskers[name][j]
                ax.errorbar(
                    places[j], values[j], [[down], [up]], color="black", linewidth=0.8, capsize=2
                )
            if marks.get(name) and marks[name][j] is not None:
                ax.plot(places[j], marks[name][j], **DIAMOND)
    ax.set_title(panel.title, fontsize=10)
    ax.set_xticks(range(len(groups)), groups, rotation=20, ha="right", fontsize=8)
    ax.grid(axis="y", alpha=0.25, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)


def time_and_memory(rows: Sequence[dict], out: Path) -> None:
    """Figure 2: inference time above, memory below, for each model; a column for each batch size.

    Args:
        rows: of bench/speed.py, all of one precision.
    """
    models, batches, lengths = (
        list(dict.fromkeys(row[k] for row in rows)) for k in ("model", "batch", "length")
    )
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
        draw_bars(above, Panel(f"{B} text{'s' * (B > 1)} a call", models, values("ms_p50"), late))
        draw_bars(below, Panel("", models, values("peak_mib")))
    axes[0, 0].set_ylabel("inference time (ms), median to 95 %")
    axes[1, 0].set_ylabel("peak memory (MiB)")
    names, device = axes[0, 0].get_legend_handles_labels(), rows[0]["device"]
    figure.legend(*names, loc="outside upper right", ncols=len(lengths), frameon=False, fontsize=8)
    figure.suptitle(f"Inference of the encoder, {rows[0]['precision']}, {device}", fontsize=10)
    save_figure(figure, out)


def scores(panels: Sequence[Panel], out: Path) -> None:
    """Scores of models on sets, one panel for each task; diamonds are the paper's."""
    widths = [max(2.5, 0.25 * len(p.series) * len(p.groups) + 1) for p in panels]
    figure = new_figure(out, max(5.0, sum(widths)), 4.5)
    axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0]
    names = dict.fromkeys(name for p in panels for name in p.series)
    for ax, panel in zip(axes, panels, strict=True):
        draw_bars(
            ax,
            panel._replace(
                series={name: panel.series.get(name, [None] * len(panel.groups)) for name in names}
            ),
        )
    handles = {}
    for ax in axes:
        handles.update(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper center",
        frameon=False,
        ncols=min(4, len(handles)),
        fontsize=8,
    )
    save_figure(figure, out)


def labels(paths: list[Path]) -> list[str]:
    """Names of runs: of the directories, or the whole paths where two directories share a name."""
    names = [real(path).name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def main(argv=None) -> None:
    p = Parser("minibio plot", description=__doc__)
    p.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="holds log.jsonl")
    p.add_argument("--out", type=Path, default=Path("loss.png"), help="picture (default: loss.png)")
    args = p.parse_args(argv)
    logs = [run / "log.jsonl" for run in args.runs]
    loss_curves(dict(zip(labels(args.runs), logs, strict=True)), args.out)
    print(args.out)
