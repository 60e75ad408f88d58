"""The start of a run: its teacher, and the student made of it, of a directory or at random.

    embeddings   the teacher's where a layer or the head is copied (F4), and in MobileBERT's stages
    layers       the teacher's that `--init-layers` names, or random
    head         fresh, as released (F5); `--init-head copy`, and MobileBERT's stages: the teacher's

`--from DIR` is the other way: all weights are the directory's, and a head that was never trained
can start from new weights (F10). `describe` says all this of one run, before its first step. Read
objectives.py before this file and train.py after it.
"""

import dataclasses
from pathlib import Path

import torch
import torch.nn as nn

from minibio.config import MODELS, RunConfig
from minibio.distil.objectives import Objective, Staged
from minibio.model.convert import load_with_report
from minibio.model.heads import MaskedLMHead, Model
from minibio.model.transformer import initialise
from minibio.run.errors import InputError
from minibio.text.corpus import Corpus
from minibio.text.tokenizer import Tokenizer


def copies_embeddings(run: RunConfig) -> bool:
    """Whether the embeddings start as the teacher's.

    Neither layers nor head are of use on others: the head's decoder is the embedding table.
    """
    return bool(run.init_layers or run.stages or copies_head(run))


def copies_head(run: RunConfig) -> bool:
    """Whether the student's masked-LM head starts as the teacher's."""
    return run.init_head == "copy" or (run.init_head is None and run.stages > 0)


def load_teacher(path: Path, run: RunConfig) -> tuple[Model, Tokenizer | None]:
    """The frozen teacher, with its masked-LM head where anything of the method asks for it.

    Raises:
        InputError: it has no such head, or cannot be read.
    """
    # Eq. 13 as printed compares only layers
    is_needed = run.method != "mobile" or run.stages > 0 or copies_head(run)
    head = "mlm" if is_needed else "encoder"
    teacher, tokenizer, report = load_with_report(path, head, new_head=True)
    if report.missing and is_needed:
        raise InputError(
            f"--teacher {path} has no masked-LM head (missing: {', '.join(report.missing[:2])}, "
            f"...), expected one: --method {run.method} learns from its predictions"
        )
    return teacher.requires_grad_(False), tokenizer


def build_student(
    run: RunConfig,
    corpus: Corpus,
    teacher: Model | None = None,
    start: Path | None = None,
) -> Model:
    """The model to be trained, the same on every process.

    Args:
        start: a Hugging Face directory whose weights it starts from, in place of all below.
    Raises:
        InputError: the parts do not fit, or cannot be read.
    """
    torch.manual_seed(run.seed)
    if start is not None:
        return start_from(start, run, corpus)
    shape = {"L": run.layers, "C": run.width, "H": run.heads, "F": run.ffn, "V": corpus.V}
    shape = {name: x for name, x in shape.items() if x is not None}
    try:
        config = dataclasses.replace(MODELS[run.model], **shape)
    except ValueError as error:
        raise InputError(f"{error} (--width, --heads)") from None
    student = Model(config)
    if teacher is not None:
        initialise_from(student, teacher, run)
    return student


def start_from(path: Path, run: RunConfig, corpus: Corpus) -> Model:
    """The model of a Hugging Face directory; its masked-LM head too, unless a fresh one is wanted.

    Raises:
        InputError: it has no masked-LM head, another vocabulary than the corpus, or is damaged.
    """
    student, tokenizer, report = load_with_report(path, "mlm", new_head=True)
    if tokenizer is not None:
        corpus.check_tokenizer(tokenizer)
    if run.init_head == "fresh":
        student.head = MaskedLMHead(student.config)
        initialise(student.head, student.config.init_std)
    elif report.missing:
        raise InputError(
            f"--from {path} has no masked-LM head (missing: {', '.join(report.missing[:2])}, ...); "
            f"pass --init-head fresh to start one"
        )
    return student.train()


@torch.no_grad()
def initialise_from(student: Model, teacher: Model, run: RunConfig) -> None:
    """Start the student from what the run names of its teacher (section 4.1.2).

    Raises:
        InputError: the number or range of the layers is wrong, or student and teacher differ in
            kind or shape where one is to start from the other.
    """
    layers, L_s, L_t = run.init_layers, student.config.L, teacher.config.L
    if layers and (len(layers) != L_s or not all(0 <= l < L_t for l in layers)):
        raise InputError(
            f"--init-layers is {','.join(map(str, layers))}, expected {L_s} layers "
            f"(the student's) of 0..{L_t - 1} (the teacher's)"
        )
    if copies_embeddings(run):
        remedy = "no --stages" if run.stages else "--init-head fresh"
        copy_embeddings(student, teacher, "--init-layers none" if layers else remedy)
    for mine, l in zip(student.encoder.layers if layers else (), layers, strict=True):
        copy(
            mine,
            teacher.encoder.layers[l].state_dict(),
            student,
            teacher,
            "layers",
            "--init-layers none",
        )
    if copies_head(run):
        copy(
            student.head,
            teacher.head.state_dict(),
            student,
            teacher,
            "masked-LM head",
            "--init-head fresh",
        )


def copy_embeddings(student: Model, teacher: Model, remedy: str) -> None:
    """The embedding layer; its norm only where it is the same kind of norm.

    MobileBERT's `NoNorm` has the names and shapes of its teacher's LayerNorm and not its meaning:
    it stays the identity, as in MobileBERT's code.
    """
    mine, theirs = student.encoder.embeddings, teacher.encoder.embeddings
    state = theirs.state_dict()
    if type(mine.norm) is not type(theirs.norm):
        state |= {name: x for name, x in mine.state_dict().items() if name.startswith("norm.")}
    copy(mine, state, student, teacher, "embeddings", remedy)


def copy(
    module: nn.Module, state: dict, student: Model, teacher: Model, what: str, remedy: str
) -> None:
    """Fill `module` of the student, or say in one line why it cannot be."""
    try:
        module.load_state_dict(state)
    except RuntimeError:  # names or shapes
        s, t = student.config, teacher.config
        raise InputError(
            f"the student ({s.family}, {s.C} wide, {s.V} word pieces) cannot start from the "
            f"teacher's {what} ({t.family}, {t.C} wide, {t.V} word pieces): they differ in kind or "
            f"shape; pass {remedy}"
        ) from None


def summary(run: RunConfig, teacher: Path | None, start: Path | None) -> str:
    """One line, the first of a run: the weights that the model starts from, and its teacher."""
    taught = f", taught by {teacher}" if teacher is not None else ""
    if start is not None:
        return f"--method {run.method} starts from the weights of {start}{taught}"
    if run.init_layers:
        layers = ", ".join(str(l + 1) for l in run.init_layers)
        return f"{run.model} starts from layers {layers} of its teacher{taught}"
    remedy = "" if taught else "; --from DIR starts from trained ones"
    return f"{run.model} starts from random weights{remedy}{taught}"


def describe(
    objective: Objective, teacher: Model | None, run: RunConfig, start: Path | None = None
) -> dict[str, str]:
    """A table of the student's start and of its comparisons, layer by layer, printed before step 1.

    Layers are counted from 1 on both sides, as in Eq. 5; `--init-layers` counts from 0, as F3 does.
    """
    L_s, g = objective.student.config.L, getattr(objective, "g", ())
    if start is not None:
        origin, head = [f"from {start}"] * (L_s + 1), f"from {start}"
    else:
        has_embeddings = teacher is not None and copies_embeddings(run)
        layers = run.init_layers if teacher is not None else ()
        origin = ["teacher's embeddings" if has_embeddings else "random"]
        origin += [f"teacher's layer {l + 1}" for l in layers] or ["random"] * L_s
        head = "teacher's" if teacher is not None and copies_head(run) else "fresh"
    compared = {0: "embeddings"} if 0 in objective.needs.hidden else {}
    compared |= {l: f"layer {g_l}" for l, g_l in enumerate(g, start=1)}
    rows = {}
    for l, text in enumerate(origin):
        against = f"; compared with the teacher's {compared[l]}" if l in compared else ""
        rows[f"layer {l}" if l else "embeddings"] = text + against
    rows["masked-LM head"] = "fresh" if run.init_head == "fresh" else head
    rows["loss"] = objective.equation
    if isinstance(objective, Staged):
        until, n = objective.phase_steps * L_s, objective.phase_steps
        rows["stage 1"] = f"steps 1 to {until:,}: layers 1 to {L_s} in turn, {n:,} steps each"
        rows["stage 2"] = f"steps {until + 1:,} to {run.steps:,}: predictions"
    if teacher is not None:
        rows["temperature"] = f"{objective.temperature:g}"
        rows["fidelity"] = run.fidelity
    return rows
