r"""The pictures of the pages: `python -m minibio pictures`.

    python -m minibio pictures --out .github/pictures --step bench-results/step-cpu.csv \
        --demo runs/demo --speed runs/speed/speed.csv --results runs/results/measured.jsonl

    strategies    the two ways to a compact biomedical model (the paper's Figure 1)
    walk          one walk over the keys gives a layer's output and its divergence (kernels/README)
    cost          time and memory of a training step beside the authors', from `bench step`
    demo          held-out loss and entity F1 of the demo's three models, from `make demo`
    models        time and memory of inference (the paper's Figure 2), from `eval.py speed`
    frontier      F1 on NCBI-disease against parameters and milliseconds, from `make results`

The first two are always drawn, the others where their options are given. Backgrounds are
transparent, lines and letters of a grey that can be read on white and on black.
"""

import csv
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from minibio.report.compare import read_ner
from minibio.report.plot import COLOURS, new_figure, read_curves, save_figure
from minibio.report.records import read_lines
from minibio.run.errors import InputError
from minibio.run.files import as_written, check_writable
from minibio.run.options import Parser

GREY = "#7d8590"
BLUE, ORANGE, GREEN = COLOURS[:3]
DEMO = {"teacher": BLUE, "distilled": GREEN, "undistilled": ORANGE}  # of `make demo`


def canvas(out: Path, width: float, height: float):
    """A figure without axes, in inches, and its only axes."""
    figure = new_figure(out, width, height)
    figure.set_layout_engine("none")
    figure.patch.set_alpha(0)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    ax.axis("off")
    return figure, ax


def box(ax, x: float, y: float, text: str, colour: str, width: float = 2.3, height: float = 0.62):
    """A rounded box with white text, centred at (x, y)."""
    from matplotlib.patches import FancyBboxPatch

    corner = (x - width / 2, y - height / 2)
    style = "round,pad=0,rounding_size=0.12"
    ax.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=colour, lw=0))
    ax.text(x, y, text, color="white", ha="center", va="center", fontsize=9)


def arrow(ax, start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
    """An arrow, its text beside its middle."""
    style = {"arrowstyle": "-|>", "color": GREY, "lw": 1.4, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", end, start, arrowprops=style)
    if text:
        x, y = ((a + b) / 2 for a, b in zip(start, end, strict=True))
        ax.text(x + 0.1, y, text, color=GREY, va="center", fontsize=8)


def strategies(out: Path) -> None:
    """Draw both strategies: distil a biomedical teacher, or train a general student further."""
    figure, ax = canvas(out, 9, 4.1)
    left, right = 2.3, 6.7
    for x, title in (
        (left, "1  distil a biomedical teacher"),
        (right, "2  train a small model further"),
    ):
        ax.text(x, 3.9, title, color=GREY, ha="center", va="center", fontsize=11, weight="bold")
    box(ax, left, 3.3, "BioBERT, 12 layers, frozen", BLUE)
    box(ax, right, 3.3, "DistilBERT, TinyBERT, MobileBERT", BLUE, 3.0)
    box(ax, left, 1.95, "DistilBioBERT, TinyBioBERT,\nCompactBioBERT", GREEN, 2.6)
    box(ax, right, 1.95, "BioDistilBERT, BioTinyBERT,\nBioMobileBERT", GREEN, 2.6)
    arrow(ax, (left, 2.98), (left, 2.27), "PubMed: Eq. 4, 9 or 11\n100,000 steps")
    arrow(ax, (right, 2.98), (right, 2.27), "PubMed: Eq. 1\n200,000 steps")
    box(
        ax, (left + right) / 2, 0.5, "entities, relations, questions: fine-tune, score", ORANGE, 4.2
    )
    for x, end in ((left, 3.4), (right, 5.6)):
        arrow(ax, (x, 1.63), (end, 0.82))
    save_figure(figure, out)


def walk(out: Path) -> None:
    """Draw a query's walk over the blocks of keys, and the sums that it carries."""
    figure, ax = canvas(out, 9, 3.6)
    n, side, gap, low = 4, 0.9, 0.12, 1.35
    maps = (("student", 0.9, BLUE), ("teacher", 0.9 + side + gap, ORANGE))
    for name, _, colour in maps:
        y = low + (side + gap) * (name == "student")
        ax.text(0.15, y + side / 2, name, color=colour, va="center", fontsize=9, weight="bold")
        for b in range(n):
            x = 1.1 + b * (side + gap)
            is_past, is_now = b < 2, b == 2
            for j in range(3):
                cell = (x + j * side / 3, y)
                alpha = 0.95 if is_now else 0.25 if is_past else 0.08
                patch = figure_patch(cell, side / 3 - 0.03, side - 0.03, colour, alpha)
                ax.add_patch(patch)
    now = 1.1 + 2 * (side + gap) + side / 2
    ax.text(now, 1.05, "now", color=GREY, ha="center", va="center", fontsize=8)
    ax.text(1.1, 1.05, "done: only their sums are kept", color=GREY, va="center", fontsize=8)
    ax.text(
        1.1,
        3.42,
        "one row of the attention map, a block of keys at a time",
        color=GREY,
        va="center",
        fontsize=9,
        weight="bold",
    )
    sums = (
        ("m", "largest score so far"),
        ("l", r"$\Sigma\, e^{z-m}$ : lse = m + ln l"),
        ("o", r"$\Sigma\, e^{z-m}\, v$ : out = o / l"),
        ("d", r"$\Sigma\, e^{z-m}(z_s - z_t)$ : KL = d / l - lse$_s$ + lse$_t$"),
    )
    for i, (name, text) in enumerate(sums):
        y = 2.75 - 0.52 * i
        box(ax, 5.75, y, name, GREEN, 0.42, 0.4)
        ax.text(6.1, y, text, color=GREY, va="center", fontsize=9)
    arrow(ax, (now + side * 0.9, low + side + gap / 2), (5.45, low + side + gap / 2))
    said = "A larger m multiplies the sums by $e^{m-m'}$. No map is stored, not even for backward."
    ax.text(1.1, 0.5, said, color=GREY, va="center", fontsize=8.5)
    save_figure(figure, out)


def figure_patch(
    corner: tuple[float, float], width: float, height: float, colour: str, alpha: float
):
    """A filled rectangle."""
    from matplotlib.patches import Rectangle

    return Rectangle(corner, width, height, facecolor=colour, alpha=alpha, lw=0)


def cost(rows: Sequence[dict], out: Path) -> None:
    """Draw bars of time and memory, the authors' being 1.

    Args:
        rows: of `bench step`; those as released that have the authors' beside them.
    Raises:
        InputError: there is none.
    """
    bars: dict[str, dict[str, tuple[float, float]]] = {}  # group -> series -> time, memory
    for row in rows:
        is_drawn = row["by"] == "minibio" and row["fidelity"] == "released"
        if is_drawn and (shares := shares_of_authors(row, rows)):
            group = (
                f"{row['method']},\n{'PubMed' if row['lengths'] == 'pubmed' else row['lengths']}"
            )
            bars.setdefault(group, {})[f"minibio, teacher in {row['teacher']}"] = shares
    if not bars:
        raise InputError("--step: no row of minibio as released beside the authors'")
    figure, panels = panels_of(out, "time of a step", "peak memory", sharey=True)
    names = list(dict.fromkeys(name for group in bars.values() for name in group))
    for i, ax in enumerate(panels):
        for k, name in enumerate(names):
            width = 0.8 / len(names)
            places = [g + (k - (len(names) - 1) / 2) * width for g in range(len(bars))]
            heights = [group.get(name, (float("nan"),) * 2)[i] for group in bars.values()]
            drawn = ax.bar(places, heights, width * 0.92, color=COLOURS[(0, 2)[k % 2]], label=name)
            ax.bar_label(drawn, fmt="{:.2f}", color=GREY, fontsize=8, padding=1)
        ax.axhline(1, color=ORANGE, linewidth=1.5, label="the authors' code")
        ax.set_xticks(range(len(bars)), bars.keys(), fontsize=8)
        ax.set_ylim(0, 1.1)
    panels[1].legend(
        frameon=False, labelcolor=GREY, fontsize=8, loc="upper right", bbox_to_anchor=(1, 0.86)
    )
    save_figure(figure, out)


def shares_of_authors(row: dict, rows: Sequence[dict]) -> tuple[float, float] | None:
    """A row's part of the authors' time and memory; None where they were not measured.

    On a GPU their row comes after ours, which has then no shares: they follow from the two rows.
    """
    if row["time_of_authors"]:
        return float(row["time_of_authors"]), float(row["memory_of_authors"])
    for other in rows:
        is_theirs = other["by"].split("/")[0] == "authors"  # in micro-batches too
        is_same = all(other[x] == row[x] for x in ("method", "lengths"))
        if is_theirs and is_same and other["ms_p50"] and row["ms_p50"]:
            return tuple(float(row[x]) / float(other[x]) for x in ("ms_p50", "peak_mib"))
    return None


def panels_of(out: Path, left: str, right: str, sharey: bool = False):
    """A figure and its two panels, with titles, in grey on a transparent background."""
    figure = new_figure(out, 8, 2.9)
    figure.patch.set_alpha(0)
    panels = figure.subplots(1, 2, sharey=sharey)
    for ax, title in zip(panels, (left, right), strict=True):
        ax.patch.set_alpha(0)
        ax.set_title(title, color=GREY, fontsize=10)
        ax.tick_params(colors=GREY, labelsize=8)
        ax.xaxis.label.set(color=GREY, fontsize=8)
        for place, spine in ax.spines.items():
            spine.set_visible(place == "bottom")
            spine.set_color(GREY)
    return figure, panels


def demo(runs: Path, out: Path) -> None:
    """Draw the demo's held-out losses as curves, and its entity scores as bars.

    Args:
        runs: directory of `make demo`.
    Raises:
        InputError: a model's log or its scores are missing.
    """
    curves = {name: read_curves(runs / name / "log.jsonl")[1] for name in DEMO}
    f1 = [100 * read_ner(runs / "ner" / name, runs / name)["ner_f1"] for name in DEMO]
    figure, (left, right) = panels_of(
        out, "masked-LM loss on held-out text (nats)", "entity F1 by words, after fine-tuning"
    )
    for name, curve in curves.items():
        left.plot(*zip(*curve, strict=True), "o-", color=DEMO[name], markersize=3, label=name)
    left.set_xlabel("optimiser step")
    left.legend(frameon=False, labelcolor=GREY, fontsize=8)
    drawn = right.bar(range(len(DEMO)), f1, 0.6, color=DEMO.values())
    right.bar_label(drawn, fmt="{:.2f}", color=GREY, fontsize=8, padding=1)
    right.set_xticks(range(len(DEMO)), DEMO)
    right.margins(y=0.15)
    save_figure(figure, out)


def models(rows: Sequence[dict], out: Path) -> None:
    """Draw the paper's Figure 2: models side by side, at the first precision and batch size.

    Args:
        rows: of `eval.py speed`.
    Raises:
        InputError: there is none.
    """
    if not rows:
        raise InputError("--speed: no row, nothing to draw")
    same = ("precision", "batch")
    rows = [row for row in rows if all(row[x] == rows[0][x] for x in same)]
    names, lengths = (list(dict.fromkeys(row[x] for row in rows)) for x in ("model", "length"))
    B = int(rows[0]["batch"])
    figure, panels = panels_of(
        out,
        f"milliseconds for {B} text{'s' * (B > 1)}, {rows[0]['precision']}",
        "peak memory (MiB)",
    )
    for ax, key in zip(panels, ("ms_p50", "peak_mib"), strict=True):
        for k, T in enumerate(lengths):
            width = 0.8 / len(lengths)
            there = {row["model"]: float(row[key]) for row in rows if row["length"] == T}
            places = [names.index(x) + (k - (len(lengths) - 1) / 2) * width for x in there]
            ax.bar(places, there.values(), width * 0.92, color=COLOURS[k % 6], label=f"{T} tokens")
        ax.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    panels[1].legend(frameon=False, labelcolor=GREY, fontsize=8)
    save_figure(figure, out)


def frontier(lines: Sequence[dict], out: Path) -> None:
    """Draw F1 on NCBI-disease against parameters, and against milliseconds.

    Models of one shape have one speed: that of the one that was timed.

    Args:
        lines: of measured.jsonl.
    """
    timed = next((x["scores"] for x in reversed(lines) if x["name"] == "speed"), {})
    ms = {x["parameters"]: x["ms_p50"] for x in timed.values()}
    points = {}
    for x in lines:
        place, _, name = x["name"].partition("/")
        if place == "ncbi":
            f1 = [100 * run["word f1"] for run in x["scores"]["seeds"].values()]
            n = x["scores"]["parameters"]
            points[name] = (n / 1e6, ms.get(n), sum(f1) / len(f1))
    title = "NCBI-disease, F1 by words, mean over seeds"
    figure, panels = panels_of(out, title, title, sharey=True)
    names = ("parameters of the encoder (millions)", "milliseconds, 8 texts of 128")
    colours = {model: COLOURS[k % 6] for k, model in enumerate(points)}  # the seventh is black
    for i, (ax, name) in enumerate(zip(panels, names, strict=True)):
        known = {model: (x[i], x[2]) for model, x in points.items() if x[i] is not None}
        for j, x in enumerate(sorted({x for x, _ in known.values()})):
            of_shape = sorted((f1, model) for model, (at, f1) in known.items() if at == x)
            middle = sum(f1 for f1, _ in of_shape) / len(of_shape)
            side, align = (-8, "right") if j else (8, "left")  # off the frame, and the next ones
            for k, (f1, model) in enumerate(of_shape):  # names above one another, beside the points
                ax.plot(x, f1, "o", color=colours[model])
                place = (side, 11 * (k - len(of_shape) / 2))
                ax.annotate(model, (x, middle), place, textcoords="offset points", ha=align,
                            color=colours[model], fontsize=8)  # fmt: skip
        ax.set_xlabel(name)
        ax.margins(0.25)
    save_figure(figure, out)


def read_table(path: Path) -> list[dict]:
    """The rows of a benchmark's CSV; its first line says which machine it was.

    Raises:
        InputError: it cannot be read.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
        return list(csv.DictReader(x for x in lines if not x.startswith("#")))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: {error}, expected the CSV of a benchmark") from None


def main(argv=None) -> None:
    p = Parser("minibio pictures", description=__doc__)
    p.add_argument("--out", type=Path, default=Path("pictures"), help="directory (%(default)s)")
    p.add_argument("--step", type=Path, metavar="CSV", help="of `bench step`: draws cost.png too")
    p.add_argument("--demo", type=Path, metavar="DIR", help="of `make demo`: draws demo.png too")
    p.add_argument("--speed", type=Path, metavar="CSV", help="of `eval.py speed`: models.png too")
    p.add_argument(
        "--results", type=Path, metavar="JSONL", help="of `make results`: draws frontier.png too"
    )
    args = p.parse_args(argv)
    drawn = {"strategies": strategies, "walk": walk}
    if args.step:
        drawn["cost"] = partial(cost, read_table(args.step))
    if args.demo:
        drawn["demo"] = partial(demo, args.demo)
    if args.speed:
        drawn["models"] = partial(models, read_table(args.speed))
    if args.results:
        lines = read_lines(args.results)
        if not any(x["name"].startswith("ncbi/") for x in lines):
            raise InputError(f"--results {args.results}: no row ncbi/MODEL, nothing to draw")
        drawn["frontier"] = partial(frontier, lines)
    sources = {"cost": args.step, "demo": args.demo, "models": args.speed, "frontier": args.results}
    for name, draw in drawn.items():
        check_writable(args.out / f"{name}.png")
        args.out.mkdir(parents=True, exist_ok=True)
        source = sources.get(name)
        with as_written(source, "name another, or measure again") if source else nullcontext():
            draw(args.out / f"{name}.png")
        print(args.out / f"{name}.png")
