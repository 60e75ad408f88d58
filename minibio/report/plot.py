"""Loss curves from the logs of one or several runs.

    python -m minibio plot runs/tiny runs/scratch --out loss.png

Left: the loss a run is trained on, which each method defines for itself. Right: the masked-LM loss
on held-out text, which all runs share. Drawn straight into a file, never on a display; matplotlib
is an extra (`pip install minibio[plot]`) and imported only here.
"""

import argparse
import json
import math
from pathlib import Path

from minibio.run.errors import InputError
from minibio.run.files import staged_file

# Okabe and Ito (2008): told apart by colour-blind readers too
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
FORMATS = ("png", "svg", "pdf")

Curve = list[tuple[int, float]]  # (optimiser step, value), steps ascending


def read_curves(path) -> tuple[Curve, Curve]:
    """Training loss and held-out masked-LM loss in a run's log.jsonl.

    A last line without its newline is what a killed run leaves, and is passed over; so are values
    that are not finite.
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
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}: line {number} is no event of a training log") from None
    train, held_out = (
        [(step, y) for step, y in curve if math.isfinite(y)] for curve in (train, held_out)
    )
    if not train and not held_out:
        raise InputError(f"{path}: holds no losses; is it the log of a finished interval?")
    return train, held_out


def moving_average(values: list[float], width: int) -> list[float]:
    """The mean of up to `width` neighbours around each value; fewer at the ends, never shifted."""
    half, n = width // 2, len(values)
    windows = (values[i - r : i + r + 1] for i in range(n) for r in [min(half, i, n - 1 - i)])
    return [sum(window) / len(window) for window in windows]


def is_noisy(values: list[float], smooth: list[float]) -> bool:
    """Whether the eye needs the average: values are over 1 % of it away, on average."""
    scatter = sum(abs(a - b) / (abs(b) or 1.0) for a, b in zip(values, smooth, strict=True))
    return scatter > 0.01 * len(values)


def draw_training(ax, curve: Curve, colour: str, label: str) -> None:
    """One run's training loss; where it is noisy, pale beneath its moving average."""
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
        steps, values, color=colour, linewidth=1.6, marker="o", markersize=3.5,
        label=f"{label}: {values[-1]:.3f}",
    )  # fmt: skip


def new_figure(out: Path, width: float, height: float):
    """An empty matplotlib figure for the file `out`, in inches; without pyplot: no display, no
    global state.

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
    """Write it; a file that was there is replaced in one move."""
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


def labels(paths: list[Path]) -> list[str]:
    """Directory names where they tell the runs apart, whole paths where they do not."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def main(argv=None) -> None:
    p = argparse.ArgumentParser("minibio plot", description=__doc__.split("\n")[0])
    p.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="holds log.jsonl")
    p.add_argument("--out", type=Path, default=Path("loss.png"), help="picture (default: loss.png)")
    args = p.parse_args(argv)
    logs = [run / "log.jsonl" for run in args.runs]
    loss_curves(dict(zip(labels(args.runs), logs, strict=True)), args.out)
    print(args.out)
