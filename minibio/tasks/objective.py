"""The losses of a task: the right labels and, where there is a teacher, its answers too.

    Labels   cross-entropy of the labels                                        no teacher
    Taught   a_1 labels + a_2 soft labels + a_3 layers                          a fine-tuned teacher

A head answers in rows of logits, one for each question of the batch: a labelled piece, a sequence,
the first or the last token of an answer. So one loss serves all three tasks, and the equations of
the paper hold as printed, with the task's labels in the place of the masked tokens:

    method     hard, soft, layers   layers                                      weights
    soft       2, 5, 0              nothing: student and teacher of any shapes  Eq. 4
    distil     2, 5, 1              Eq. 3: last hidden state, equal widths      Eq. 4
    tiny       1, 1, 1              Eq. 7, 6: embeddings, states and maps       Eq. 9; the labels'
    compact    1, 5, 3              Eq. 10: states and maps, equal widths       Eq. 11

The paper distils before fine-tuning only; its TinyBERT (Jiao et al., 2020) does so again on the
task, with soft labels only: `--method tiny --alpha 0,1,1`. Read minibio/distil/objectives.py
before this file.
"""

import torch.nn as nn
from torch import Tensor

from kernels.reference import cross_entropy_rows, wide
from minibio.batch import Batch, Counts
from minibio.config import METHODS, Recipe
from minibio.distil import losses
from minibio.distil.objectives import Objective, TeacherNeeds
from minibio.model.heads import Model, Output
from minibio.model.transformer import initialise
from minibio.run.errors import InputError

ALPHA = {
    "soft": (*METHODS["distil"].alpha[:2], 0.0),
    "distil": METHODS["distil"].alpha,
    "tiny": (1.0, 1.0, 1.0),
    "compact": METHODS["compact"].alpha,
}
NOWHERE = -1e4  # the logit of a place that a sequence does not have: e^-10000 is 0, and 0 x it too


def rows(logits: Tensor, batch: Batch, head: str) -> Tensor:
    """A head's logits as one row of K logits for each of the batch's R questions.

    Args:
        logits: (N, K) of a token head, (B, K) of a sequence head, (N, 2) of a span head.
    Returns:
        (M, K), (B, K), or (2 B, T): for each sequence its tokens as the first and as the last of
        the answer.
    """
    if head == "token":
        return logits[batch.predict]
    if head == "sequence":
        return logits
    return batch.pad(wide(logits), NOWHERE).transpose(1, 2).flatten(0, 1)  # (B, T, 2) -> (2 B, T)


def questions(counts: Counts, head: str) -> float:
    """R, over the whole step: what sums of rows are divided by."""
    return {"token": counts.M, "sequence": counts.B, "span": 2 * counts.B}[head]


class Labels(Objective):
    """Cross-entropy of the labels, nats per question."""

    equation = "labels"
    needs = TeacherNeeds(head=False)

    def __init__(self, student: Model, run: Recipe):
        nn.Module.__init__(self)
        self.student, self.run, self.head = student, run, student.head_name

    def forward(self, batch, taught, counts):
        loss = self.hard(self.student(batch), batch, counts)
        return {"labels": loss, "loss": loss}

    def hard(self, s: Output, batch: Batch, counts: Counts) -> Tensor:
        """The labels' term; a label of -100 is of a class that the model lacks."""
        r = rows(s.logits, batch, self.head)  # (R, K)
        return losses.ratio(
            cross_entropy_rows(r, batch.labels.flatten()), questions(counts, self.head)
        )


class Taught(Labels):
    """The labels, the teacher's answers and, by some methods, its layers.

    Args:
        teacher: fine-tuned on the same task, frozen; looked at for its shapes only.
    Raises:
        InputError: the teacher's head, labels, layers, heads or widths do not fit the student's.
    """

    needs = TeacherNeeds()

    def __init__(self, student: Model, teacher: Model, run: Recipe):
        super().__init__(student, run)
        if (teacher.head_name, teacher.labels) != (student.head_name, student.labels):
            raise InputError(
                f"the teacher answers with {teacher.labels}, expected {student.labels} (as the "
                f"student); fine-tune it on this training set"
            )
        self.alpha = run.alpha or ALPHA[run.method]
        if len(self.alpha) != 3:
            raise InputError(
                f"--alpha has {len(self.alpha)} weights, expected 3: labels, soft labels, layers"
            )
        self.temperature = run.temperature
        self.hidden_s = ()
        if run.method == "distil":
            self.same_width(teacher, "Eq. 3")
        if run.method == "compact":
            self.same_width(teacher, "Eq. 10")
            self.match_layers(teacher, losses.DIVERGENCE["compact", "paper"])
            self.hidden_s = self.layers_s(1)
        if run.method == "tiny":
            self.match_layers(teacher, losses.DIVERGENCE["tiny", "paper"])
            self.needs = self.needs._replace(hidden=(0, *self.g))
            self.hidden_s = self.layers_s(0)
            C_s, C_t = student.config.C, teacher.config.C
            self.W_h = self.W_e = None
            if C_s != C_t:
                self.W_h, self.W_e = (nn.Linear(C_s, C_t, bias=False) for _ in range(2))
                for W in (self.W_h, self.W_e):
                    initialise(W, student.config.init_std)

    @property
    def equation(self):
        return "{:g} labels + {:g} soft + {:g} layers".format(*self.alpha)

    def forward(self, batch, taught, counts):
        match = self.matches(taught) if self.needs.keep else None
        s = self.student(batch, match=match, hidden=self.hidden_s)
        terms = {"labels": self.hard(s, batch, counts)}
        terms["soft"] = losses.soft_mlm(
            rows(s.logits, batch, self.head),
            rows(taught.logits, batch, self.head),
            temperature=self.temperature,
            M=questions(counts, self.head),
        )
        if self.run.method != "soft":
            terms["layers"] = self.layers(s, taught, counts)
        loss = sum(a * term for a, term in zip(self.alpha, terms.values(), strict=False))
        return {**terms, "loss": loss}

    def layers(self, s: Output, taught: Output, counts: Counts) -> Tensor:
        """The sum over layers of the method's equation."""
        h_s, h_t, N = s.hidden_states, taught.hidden_states, counts.N
        if self.run.method == "distil":
            return losses.align(s.last, taught.last, N=N)
        pairs = list(enumerate(self.g, start=1))
        if self.run.method == "compact":
            return sum(
                losses.compact_layer(h_s[l], h_t[g_l], s.row_losses[l], N=N) for l, g_l in pairs
            )
        return losses.embed(h_s[0], h_t[0], self.W_e, N=N) + sum(
            losses.tiny_layer(
                h_s[l], h_t[g_l], self.W_h, s.row_losses[l], n_pairs=counts.n_pairs, N=N
            )
            for l, g_l in pairs
        )
