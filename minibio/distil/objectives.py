"""The objectives: what the student is asked for, and what it needs from the teacher.

    MaskedLM   Eq. 1     no teacher                              BioDistilBERT, BioTinyBERT, ...
    Distil     Eq. 4     predictions, last hidden state          DistilBioBERT
    Tiny       Eq. 9     embeddings, every layer, predictions    TinyBioBERT
    Compact    Eq. 11    predictions and every layer             CompactBioBERT
    Mobile     Eq. 13    every layer                             MobileBERT, from IB-BERT
    Staged     Eq. 12    each layer in turn, then predictions    the same in MobileBERT's own stages

An objective holds the student and the projections that are trained with it and thrown away at the
end; the teacher stays outside, and is run no further than the objective says it has to be. Its
forward gives the terms of the equation by name and their sum as "loss". Read losses.py before this
file and train.py after it.
"""

from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

import kernels
from kernels.reference import wide
from minibio.batch import Batch, Counts
from minibio.config import RunConfig
from minibio.distil import losses
from minibio.model.attention import Match
from minibio.model.heads import Model, Output
from minibio.model.transformer import initialise
from minibio.run.errors import InputError


class TeacherNeeds(NamedTuple):
    """The part of a teacher that an objective compares its student with: `teach` runs no more."""

    keep: tuple[int, ...] = ()  # layers whose attention maps are needed
    hidden: tuple[int, ...] = ()  # layers whose hidden states are needed; 0: the embeddings
    depth: int | None = None  # the last layer that has to be run; None = all
    head: bool = True  # the masked-LM head is run
    every_token: bool = False  # the head works on all N tokens, not on the M predicted ones


class Objective(nn.Module):
    """A student with its projections, and the loss of one method.

    Args:
        student: a masked-LM model.
        teacher: the frozen teacher, looked at for its shapes only; None for plain masked LM.
        run:     weights, temperature, layer map, fidelity.
    Raises:
        InputError: the teacher does not fit the student: layers, heads, widths, vocabulary.
    """

    needs = TeacherNeeds()
    phase: int | None = None  # the only layer of the student that is trained; None = all of it
    temperature = 1.0  # of the soft labels

    n_alpha = 0  # weights in its equation

    def __init__(self, student: Model, teacher: Model | None, run: RunConfig):
        super().__init__()
        self.student, self.run = student, run
        self.check_alpha((self.n_alpha,))
        if teacher is not None and teacher.config.V != student.config.V:
            raise InputError(
                f"the teacher has {teacher.config.V} word pieces, expected {student.config.V} "
                f"(as the student): soft labels need one vocabulary"
            )

    def check_alpha(self, lengths: tuple[int, ...]) -> None:
        """Refuse weights that the equation has no terms for."""
        n = len(self.run.alpha)
        if n not in lengths:
            expected = " or ".join(map(str, lengths))
            raise InputError(f"--alpha has {n} weights, expected {expected} for {self.run.method}")

    def forward(self, batch: Batch, taught: Output | None, counts: Counts) -> dict[str, Tensor]:
        """The terms of this micro-batch and their weighted sum, "loss".

        Args:
            batch:  the row of tokens with its M targets.
            taught: `teach(...)` of the same batch.
            counts: the denominators; the losses of all micro-batches add up to the step's loss.
        """
        raise TypeError(f"{type(self).__name__} has no equation; use one of OBJECTIVES")

    def set_step(self, step: int) -> None:
        """Set `needs` and `phase` for step `step`, counted from 0.

        Called before every step, also of a resumed run, so it depends on nothing but the step.
        """

    @property
    def equation(self) -> str:
        """The sum that forward returns as "loss", of the terms it returns beside it."""
        raise TypeError(f"{type(self).__name__} has no equation; use one of OBJECTIVES")

    def match_layers(self, teacher: Model, divergence: str) -> None:
        """Fix g (Eq. 5) and check that the paired attention maps can be compared."""
        L_s, L_t = self.student.config.L, teacher.config.L
        if self.run.layer_map:
            self.g = tuple(self.run.layer_map)
            if len(self.g) != L_s or not all(0 < l <= L_t for l in self.g):
                raise InputError(
                    f"--layer-map is {','.join(map(str, self.g))}, expected {L_s} layers "
                    f"(the student's) of 1..{L_t} (the teacher's)"
                )
        else:
            try:
                self.g = losses.layer_map(L_s, L_t)
            except ValueError as error:
                raise InputError(f"{error}; or name the layers with --layer-map") from None
        H_s, H_t = self.student.config.H, teacher.config.H
        if H_s != H_t:
            raise InputError(
                f"the student has {H_s} heads, expected {H_t} (as the teacher): "
                f"attention maps are compared head by head"
            )
        self.needs = self.needs._replace(keep=self.g, hidden=self.g)
        self.divergence = divergence

    def without_predictions(self) -> None:
        """Have the teacher stop at the last layer that is compared."""
        depth = max(self.needs.hidden, default=0)
        self.needs = self.needs._replace(head=False, depth=depth)

    def matches(self, taught: Output) -> dict[int, Match]:
        """Student layer -> what its teacher layer hands to it; only those that were kept."""
        pairs = ((l, taught.kept.get(g_l)) for l, g_l in enumerate(self.g, start=1))
        return {l: Match(a.q, a.k, a.lse, self.divergence) for l, a in pairs if a is not None}

    # The predictions, Eq. 1, 2 and 8. With `--kernels reference` the functions of losses.py run, on
    # the logits; the other implementations form no logits (`kernels.masked_mlm`).

    @property
    def impl(self) -> str:
        """The implementation of the masked-LM losses."""
        return self.student.head.impl

    def mlm(self, s: Output, labels: Tensor, count: float) -> Tensor:
        """Eq. 1 by itself."""
        if self.impl == "reference":
            return losses.mlm(s.decoder.logits(), labels, M=count)
        return kernels.masked_mlm(
            as_in_autocast(s.decoder), labels, count=count, impl=self.impl
        ).loss

    def output(self, s: Output, taught: Output, count: float) -> Tensor:
        """Eq. 8 by itself: every row counts."""
        t = taught.decoder.detach()
        if self.impl == "reference":
            return losses.output(
                s.decoder.logits(), t.logits(), temperature=self.temperature, N=count
            )
        return kernels.masked_mlm(
            as_in_autocast(s.decoder),
            None,
            as_in_autocast(t),
            temperature=self.temperature,
            divergence="soft_ce",
            count=count,
            impl=self.impl,
        ).loss

    def predictions(
        self,
        s: Output,
        taught: Output,
        labels: Tensor,
        count: float,
        *,
        weights: tuple[float, float],
        divergence: str = "kl_ts",
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Eq. 1 with Eq. 2 (or 8); a weight of 0 leaves its term out.

        Returns:
            fused, mlm, soft: the weighted sum of the two terms, and the terms. In one pass over
            the decoder only the sum has a gradient; on logits the terms have, and fused is None.
        """
        a_mlm, a_soft = weights
        t = taught.decoder.detach() if a_soft else None
        labels = labels if a_mlm or t is None else None  # the head has a gradient, if of 0
        if self.impl != "reference":
            t = None if t is None else as_in_autocast(t)
            return kernels.masked_mlm(
                as_in_autocast(s.decoder),
                labels,
                t,
                weights=weights,
                temperature=self.temperature,
                divergence=divergence,
                count=count,
                impl=self.impl,
            )
        x_s = s.decoder.logits()  # (M, V)
        mlm = soft = x_s.new_zeros(())
        if labels is not None:
            mlm = losses.mlm(x_s, labels, M=count)
        if t is not None and divergence == "kl_ts":
            soft = losses.soft_mlm(x_s, t.logits(), temperature=self.temperature, M=count)
        elif t is not None:
            soft = losses.output(x_s, t.logits(), temperature=self.temperature, N=count)
        return None, mlm, soft

    def layers_s(self, first: int) -> range:
        """The student's hidden states from `first` on: 0 with the embeddings', 1 without."""
        return range(first, self.student.config.L + 1)

    def same_width(self, teacher: Model, what: str) -> None:
        """Refuse hidden states that no projection brings together."""
        C_s, C_t = self.student.config.C, teacher.config.C
        if C_s != C_t:
            raise InputError(
                f"the student is {C_s} wide, expected {C_t} (as the teacher): {what} compares "
                f"hidden states without a projection"
            )


class MaskedLM(Objective):
    """Only Eq. 1: pre-training, from scratch or further."""

    needs = TeacherNeeds(head=False)
    equation = "mlm"

    def forward(self, batch, taught, counts):
        s = self.student(batch, multiply=False)
        loss = self.mlm(s, batch.labels, counts.M)
        return {"mlm": loss, "loss": loss}


class Distil(Objective):
    """Eq. 4: masked LM, the teacher's predictions, and the direction of its last hidden state."""

    n_alpha = 3

    def __init__(self, student, teacher, run):
        super().__init__(student, teacher, run)
        self.same_width(teacher, "Eq. 3")
        # the paper has no temperature; the authors' code for this model has 2 (F17)
        released = 2.0 if run.fidelity == "released" else 1.0
        self.temperature = run.temperature or released
        self.needs = TeacherNeeds(head=run.alpha[1] != 0)

    @property
    def equation(self):
        return "{:g} mlm + {:g} soft + {:g} align".format(*self.run.alpha)

    def forward(self, batch, taught, counts):
        s = self.student(batch, multiply=False)
        alpha = self.run.alpha
        fused, mlm, soft = self.predictions(s, taught, batch.labels, counts.M, weights=alpha[:2])
        align = losses.align(s.last, taught.last, N=counts.N)
        loss = losses.distil(mlm, soft, align, alpha=alpha, fused=fused)
        return {"mlm": mlm, "soft": soft, "align": align, "loss": loss}


class Tiny(Objective):
    """Eq. 9: embeddings, every layer's hidden state and attention map, and predictions.

    As printed, W_h is one matrix for all layers, W_e another, both only where the widths differ,
    and Eq. 8 ranges over all N tokens; the authors' code shares one projection with a bias, always,
    and predicts only masked tokens (F24, F26). `alpha` holds the lambdas of Eq. 9: embeddings, each
    layer, predictions; () = all 1.
    """

    def __init__(self, student, teacher, run):
        super().__init__(student, teacher, run)
        self.match_layers(teacher, losses.DIVERGENCE["tiny", run.fidelity])
        C_s, C_t = student.config.C, teacher.config.C
        paper = run.fidelity == "paper"
        self.needs = self.needs._replace(hidden=(0, *self.g), every_token=paper)
        self.W_h = self.W_e = None
        if not paper:
            self.W_h = self.W_e = nn.Linear(C_s, C_t)
        elif C_s != C_t:
            self.W_h, self.W_e = (nn.Linear(C_s, C_t, bias=False) for _ in range(2))
        for W in dict.fromkeys((self.W_h, self.W_e)):  # one that is shared is drawn once
            if W is not None:
                initialise(W, student.config.init_std)
        self.temperature = run.temperature or 1.0

    def check_alpha(self, lengths):
        super().check_alpha((0, self.student.config.L + 2))

    @property
    def equation(self):
        if not self.run.alpha:
            return "embed + layers + output"
        first, *layers, last = self.run.alpha
        each = " + ".join(f"{a:g} layer {l}" for l, a in enumerate(layers, start=1))
        return f"{first:g} embed + {each} + {last:g} output"

    def forward(self, batch, taught, counts):
        batch_s = batch.without_targets() if self.needs.every_token else batch
        s = self.student(
            batch_s, match=self.matches(taught), hidden=self.layers_s(0), multiply=False
        )
        h_s, h_t = s.hidden_states, taught.hidden_states
        N_out = counts.N if self.needs.every_token else counts.M
        output = self.output(s, taught, N_out)
        terms = {
            "embed": losses.embed(h_s[0], h_t[0], self.W_e, N=counts.N),
            "layers": [
                losses.tiny_layer(
                    h_s[l], h_t[g_l], self.W_h, s.row_losses[l], n_pairs=counts.n_pairs, N=counts.N
                )
                for l, g_l in enumerate(self.g, start=1)
            ],
            "output": output,
        }
        loss = losses.tiny(*terms.values(), lambdas=self.run.alpha or None)
        return {**terms, "layers": losses.added(terms["layers"]), "loss": loss}


class Compact(Objective):
    """Eq. 11: Distil's predictions with a cosine and a KL term on every layer."""

    n_alpha = 3

    def __init__(self, student, teacher, run):
        super().__init__(student, teacher, run)
        self.same_width(teacher, "Eq. 10")
        self.match_layers(teacher, losses.DIVERGENCE["compact", run.fidelity])
        self.temperature = run.temperature or 1.0
        if run.alpha[1] == 0:
            self.without_predictions()

    @property
    def equation(self):
        return "{:g} mlm + {:g} soft + {:g} layers".format(*self.run.alpha)

    def forward(self, batch, taught, counts):
        s = self.student(batch, match=self.matches(taught), hidden=self.layers_s(1), multiply=False)
        layers = [
            losses.compact_layer(
                s.hidden_states[l],
                taught.hidden_states[g_l],
                s.row_losses[l],
                T=batch.own_lengths,
                N=counts.N,
                fidelity=self.run.fidelity,
            )
            for l, g_l in enumerate(self.g, start=1)
        ]
        total, alpha = losses.added(layers), self.run.alpha
        fused, mlm, soft = self.predictions(s, taught, batch.labels, counts.M, weights=alpha[:2])
        loss = losses.compact(mlm, soft, [total], alpha=alpha, fused=fused)
        return {"mlm": mlm, "soft": soft, "layers": total, "loss": loss}


class Mobile(Objective):
    """Eq. 13: masked LM and the mean over layers of Eq. 12; student and teacher equally deep.

    The teacher's predictions are not asked for: it needs no masked-LM head. As in MobileBERT's code
    the student has no dropout while it is distilled.
    """

    n_alpha = 1

    def train(self, mode=True):
        super().train(mode)
        self.student.eval()
        return self

    def __init__(self, student, teacher, run):
        super().__init__(student, teacher, run)
        self.same_width(teacher, "Eq. 12")
        self.match_layers(teacher, losses.DIVERGENCE["mobile", run.fidelity])
        self.without_predictions()

    @property
    def equation(self):
        alpha = self.run.alpha[0]
        return f"{alpha:g} mlm + {1 - alpha:g} layers"

    def forward(self, batch, taught, counts):
        s = self.student(batch, match=self.matches(taught), hidden=self.layers_s(1), multiply=False)
        layers = [self.layer(l, s, taught, counts) for l in self.layers_s(1)]
        mlm = self.mlm(s, batch.labels, counts.M)
        loss = losses.mobile(mlm, layers, alpha=self.run.alpha[0])
        return {"mlm": mlm, "layers": sum(layers) / len(layers), "loss": loss}

    def layer(self, l: int, s: Output, taught: Output, counts: Counts) -> Tensor:
        """Eq. 12 of the student's layer l."""
        return losses.mobile_layer(
            s.hidden_states[l],
            taught.hidden_states[self.g[l - 1]],
            s.row_losses[l],
            N=counts.N,
            fidelity=self.run.fidelity,
        )


class Staged(Mobile):
    """Eq. 12 one layer at a time, then predictions: how MobileBERT itself was trained (F32d).

    Stage 1 has as many phases, equally long, as the student has layers. In phase l the loss is
    Eq. 12 of layer l; teacher and student run to that layer and no further. As in MobileBERT's
    paper the layers below are frozen; as in its code (`released`) they are trained on, and the loss
    is divided by the layers. The embeddings rest in both: they are the teacher's (students.py).
    Stage 2 is masked LM, alpha of it with the true labels and 1 - alpha with the teacher's.

    Not imitated: a warm-up, a decay and moments of its own for each stage (one schedule spans both
    here), a rate of its own for every layer in each phase (its optimiser's affair), and the
    steps at which no gate is open, the first one and what division by the phases leaves over.
    """

    def __init__(self, student, teacher, run):
        super().__init__(student, teacher, run)
        self.temperature = run.temperature or 1.0
        self.phase_steps = phase_steps(run, student.config.L)
        self.set_step(0)

    @property
    def equation(self):
        alpha = self.run.alpha[0]
        return f"stage 1: layers, stage 2: {alpha:g} mlm + {1 - alpha:g} soft"

    def set_step(self, step):
        l = step // self.phase_steps + 1
        self.phase = l if l <= self.student.config.L else None  # None: stage 2
        layers = () if self.phase is None else (self.g[l - 1],)
        self.needs = TeacherNeeds(keep=layers, hidden=layers)
        if self.phase is not None or self.run.alpha[0] == 1:
            self.without_predictions()

    def forward(self, batch, taught, counts):
        if self.phase is None:
            alpha = self.run.alpha[0]
            s = self.student(batch, multiply=False)
            fused, mlm, soft = self.predictions(
                s, taught, batch.labels, counts.M, weights=(alpha, 1 - alpha), divergence="soft_ce"
            )
            loss = alpha * mlm + (1 - alpha) * soft if fused is None else fused
            return {"mlm": mlm, "soft": soft, "loss": loss}
        l, is_released = self.phase, self.run.fidelity == "released"
        s = self.student(
            batch,
            match=self.matches(taught),
            hidden=(l,),
            depth=l,
            frozen=0 if is_released else l - 1,
            predict=False,
        )
        layer = self.layer(l, s, taught, counts)
        loss = layer / self.student.config.L if is_released else layer
        return {"layers": layer, "loss": loss}


def phase_steps(run: RunConfig, L_s: int) -> int:
    """Steps of one phase of stage 1: its share of the run, split equally among the layers.

    Raises:
        InputError: the share is 1 or more, or too small for the layers.
    """
    steps = round(run.stages * run.steps) // L_s
    if steps < 1 or run.stages >= 1:
        raise InputError(
            f"--stages is {run.stages:.4g} of {run.steps} steps, expected a share below 1 with at "
            f"least one step for each of the student's {L_s} layers"
        )
    return steps


def mobile(student: Model, teacher: Model, run: RunConfig) -> Mobile:
    """Eq. 13 as printed, or in MobileBERT's own two stages."""
    return (Staged if run.stages else Mobile)(student, teacher, run)


def as_in_autocast(x: kernels.Decoder) -> kernels.Decoder:
    """The decoder's operands in the type that a linear layer would have cast them to."""
    device = x.h.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


OBJECTIVES = {
    "mlm": MaskedLM,
    "distil": Distil,
    "tiny": Tiny,
    "compact": Compact,
    "mobile": mobile,
}


@torch.no_grad()
def teach(teacher: Model, batch: Batch, needs: TeacherNeeds) -> Output:
    """The teacher's side of one batch: the layers that are needed, and its decoder.

    The encoder of a teacher that `freeze` made bf16 multiplies in it, whatever the student does.
    """
    batch = batch.without_targets() if needs.every_token else batch
    is_narrow = teacher.encoder.layers[0].attention.query.weight.dtype == torch.bfloat16
    with torch.autocast(batch.device.type, torch.bfloat16) if is_narrow else nullcontext():
        taught = teacher(
            batch, keep=needs.keep, hidden=needs.hidden, depth=needs.depth, predict=False
        )
    if not needs.head:
        return taught
    taught.last = wide(taught.last)
    return teacher.with_head(taught, batch, multiply=False)
