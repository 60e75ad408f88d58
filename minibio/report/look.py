"""A sentence through a teacher and its student, in one picture.

    python -m minibio look runs/tiny --text "Aspirin inhibits [MASK] in patients with [MASK]."

A row of the picture is a pair of layers that the run compared (Eq. 5): the teacher's attention
map, the student's, and the divergence of each of their rows, the very numbers that Eq. 6, 10 and 12
sum (`kernels.attention_kl`). Below them is what both predict at each [MASK], which Eq. 2 and 8
compare. This is the only place where a map is drawn, so it is formed here, from queries and keys.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.reference import attention_scores
from minibio.batch import Batch
from minibio.config import RunConfig
from minibio.distil.objectives import OBJECTIVES
from minibio.distil.students import load_teacher
from minibio.model.convert import load
from minibio.model.heads import Output, freeze
from minibio.report.plot import COLOURS, new_figure, save_figure
from minibio.run.errors import InputError
from minibio.run.files import as_written, read_json
from minibio.run.options import Parser, check
from minibio.text.tokenizer import Tokenizer

EXPECTED = "expected the record of a run of train.py"
UNITS = {"kl_st": "KL(student ‖ teacher), nats", "kl_ts": "KL(teacher ‖ student), nats",
         "mse_maps": "squared difference"}  # fmt: skip


class LayerPair(NamedTuple):
    """A student's layer beside the teacher's layer that it follows."""

    l_s: int
    l_t: int
    map_s: Tensor  # (H, T, T), rows sum to 1
    map_t: Tensor  # (H, T, T)
    rows: Tensor  # (T, H) divergence of each row of the two maps

    @property
    def widest(self) -> int:
        """The head whose maps differ most, from 0."""
        return int(self.rows.mean(0).argmax())


class Guess(NamedTuple):
    """The likeliest pieces at one [MASK], and their probabilities."""

    place: int  # in the sentence, [CLS] being 0
    teacher: list[tuple[str, float]]
    student: list[tuple[str, float]]


class Look(NamedTuple):
    """All that is drawn of one sentence."""

    pieces: list[str]  # T word pieces
    pairs: list[LayerPair]
    guesses: list[Guess]
    divergence: str  # one of kernels.DIVERGENCES


def look(
    run_dir: str | Path, text: str, teacher_dir: str | Path | None = None, top: int = 5
) -> Look:
    """Run `text` through the student of `run_dir` and through its teacher.

    Args:
        run_dir:     of train.py, by a method that compares attention maps: tiny, compact, mobile.
        text:        a sentence; each [MASK] in it is predicted.
        teacher_dir: in place of the directory that the run names, if it has moved.
        top:         predictions of each [MASK].
    Raises:
        InputError: not such a run, its teacher is not there, more tokens than the models read.
    """
    run, named = read_run(Path(run_dir))
    student, tokenizer = load(run_dir, "mlm")
    teacher, _ = load_teacher(Path(teacher_dir or named), run)
    with as_written(Path(run_dir) / "run.json", EXPECTED):
        objective = OBJECTIVES[run.method](student, freeze(teacher), run)
    batch = read_sentence(text, tokenizer, min(student.config.P, teacher.config.P))
    g = objective.g  # the teacher's layer of each of the student's, Eq. 5
    with torch.no_grad():
        taught = teacher(batch, keep=set(g), predict=teacher.head_name == "mlm")
        learned = student(batch, objective.matches(taught), keep=range(1, student.config.L + 1))
    pairs = [
        LayerPair(l, g_l, map_of(learned, l), map_of(taught, g_l), learned.row_losses[l])
        for l, g_l in enumerate(g, start=1)
    ]
    pieces = [tokenizer.pieces[i] for i in batch.tokens.tolist()]
    guesses = [
        Guess(place, *(likeliest(x.logits, m, tokenizer, top) for x in (taught, learned)))
        for m, place in enumerate(batch.predict.tolist())
    ]
    return Look(pieces, pairs, guesses, objective.divergence)


def read_run(run_dir: Path) -> tuple[RunConfig, str]:
    """The configuration of a finished run, and the directory of its teacher."""
    where = run_dir / "run.json"
    record = read_json(where)
    names = [f.name for f in dataclasses.fields(RunConfig)]
    absent = [name for name in (*names, "teacher") if name not in record]
    if absent:
        raise InputError(f"{where} has no {absent[0]}; is {run_dir} a run of train.py?")
    values = ((name, record[name]) for name in names)
    run = RunConfig(**{name: tuple(x) if isinstance(x, list) else x for name, x in values})
    with as_written(where, EXPECTED):
        check(run)
        if not isinstance(record["teacher"], str):
            raise TypeError(f"teacher is {record['teacher']!r}")
    if run.method in ("mlm", "distil"):
        raise InputError(
            f"{run_dir} was trained by --method {run.method}, which compares no attention maps; "
            f"expected a run of tiny, compact or mobile"
        )
    return run, record["teacher"]


def read_sentence(text: str, tokenizer: Tokenizer, longest: int) -> Batch:
    """A batch of one sequence, in which each [MASK] is to be predicted."""
    ids = tokenizer.encode(text)
    if len(ids) > longest:
        raise InputError(f"--text has {len(ids)} tokens, expected at most {longest}; cut it")
    places = [i for i, token in enumerate(ids) if token == tokenizer.mask_id]
    return Batch.from_sequences([ids], predict=places, labels=[-100] * len(places))


def map_of(output: Output, l: int) -> Tensor:
    """(H, T, T): the attention map of layer l, formed whole, which training never does."""
    a = output.kept[l]
    return attention_scores(a.q, a.k).softmax(-1)


def likeliest(
    logits: Tensor | None, m: int, tokenizer: Tokenizer, top: int
) -> list[tuple[str, float]]:
    """The `top` pieces of row m of (M, V); none without a masked-LM head."""
    if logits is None:
        return []
    p, ids = logits[m].float().softmax(-1).topk(min(top, tokenizer.V))
    return [(tokenizer.pieces[i], x) for i, x in zip(ids.tolist(), p.tolist(), strict=True)]


def draw(seen: Look, out: str | Path, head: int | None = None) -> None:
    """Draw a look.

    Args:
        out:  the picture: .png, .svg or .pdf.
        head: the head drawn, from 1; None = in each pair the one whose maps differ most.
    Raises:
        InputError: no such head, matplotlib is not installed, another kind of picture.
    """
    H, T = seen.pairs[0].rows.shape[1], len(seen.pieces)
    if head is not None and not 1 <= head <= H:
        raise InputError(f"--head is {head}, expected 1 to {H} (the models' heads)")
    n, side = len(seen.pairs), max(2.4, 0.16 * T)  # inches of a map
    said = describe(seen.guesses)
    heights = [side] * n + [0.17 * len(said.split("\n"))] * bool(said)
    figure = new_figure(Path(out), 2 * side + 4.2, sum(heights) + 0.3 * n + 0.8)
    grid = figure.add_gridspec(len(heights), 3, width_ratios=[1, 1, 0.7], height_ratios=heights)
    small = min(8.0, 72 * 0.9 * side / T)  # points; a line for each piece
    most = float(max(pair.rows.max() for pair in seen.pairs))
    for i, pair in enumerate(seen.pairs):
        h = pair.widest if head is None else head - 1
        darkest = float(torch.stack([pair.map_s[h], pair.map_t[h]]).max())
        below = seen.pieces if i == n - 1 else [""] * T
        sides = (("teacher", pair.l_t, pair.map_t), ("student", pair.l_s, pair.map_s))
        for column, (who, l, a) in enumerate(sides):
            ax = figure.add_subplot(grid[i, column])
            ax.imshow(a[h].numpy(), cmap="Blues", vmin=0, vmax=darkest, aspect="auto")
            ax.set_title(f"{who}, layer {l}, head {h + 1}", fontsize=9)
            ax.set_xticks(range(T), below, fontsize=small, rotation=90)
            ax.set_yticks(range(T), [""] * T if column else seen.pieces, fontsize=small)
            ax.tick_params(length=0)
        draw_rows(figure.add_subplot(grid[i, 2], sharey=ax), pair, h, most)
    figure.axes[-1].set_xlabel(f"of each row: {UNITS[seen.divergence]}", fontsize=8)
    if said:
        ax = figure.add_subplot(grid[n, :])
        ax.axis("off")
        ax.text(0, 1, said, va="top", fontsize=8, family="monospace")
    save_figure(figure, Path(out))


def draw_rows(ax, pair: LayerPair, h: int, most: float) -> None:
    """A bar for each row of head h's two maps: their divergence, on a scale up to `most`."""
    T, H = pair.rows.shape
    ax.barh(range(T), pair.rows[:, h].numpy(), color=COLOURS[1], height=0.7)
    ax.set_xlim(0, 1.05 * most or 1)
    ax.set_title(f"mean over {H} heads: {float(pair.rows.mean()):.3g}", fontsize=9)
    ax.tick_params(labelleft=False, left=False, labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)


def describe(guesses: list[Guess]) -> str:
    """The predictions at each [MASK], in two lines each."""
    lines = []
    for i, guess in enumerate(guesses, start=1):
        for name, pieces in (("teacher", guess.teacher), ("student", guess.student)):
            said = "  ".join(f"{piece} {p:.1%}" for piece, p in pieces) or "no masked-LM head"
            lines.append(f"[MASK] {i}  {name}  {said}")
    return "\n".join(lines)


def main(argv=None) -> None:
    p = Parser("minibio look", description=__doc__)
    p.add_argument("run", type=Path, metavar="RUN_DIR", help="of train.py: tiny, compact or mobile")
    p.add_argument("--text", required=True, help="a sentence; each [MASK] in it is predicted")
    p.add_argument("--teacher", type=Path, metavar="DIR", help="the run's teacher, if it has moved")
    p.add_argument("--head", type=int, help="the head drawn, from 1 (default: which differs most)")
    p.add_argument("--out", type=Path, default=Path("look.png"), help="picture (default: look.png)")
    args = p.parse_args(argv)
    seen = look(args.run, args.text, args.teacher)
    draw(seen, args.out, args.head)
    unit = UNITS[seen.divergence]
    for pair in seen.pairs:
        mean = float(pair.rows.mean())
        print(f"layer {pair.l_s} and the teacher's {pair.l_t}: {mean:.4g}, mean of {unit}")
    print(describe(seen.guesses) or "no [MASK] in the text: nothing is predicted")
    print(args.out)
