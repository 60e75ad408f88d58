"""A training step as the authors' scripts make it, in our own words: what ours is measured against.

Four methods have scripts: `mlm` (Eq. 1), `distil` (Eq. 4), `tiny` (Eq. 9), `compact` (Eq. 11). Each
hands one module, student and teacher and loss, to transformers' Trainer. F-numbers are rows of the
list of differences between paper and code (README); those of this file are

    F32    the Trainer puts the teacher in training mode too, so its dropout is on
    F21    attention maps are those after dropout, of every layer, from eager attention
    F13    the masked-LM loss is of all logits (B, T, V), where all but the predicted are ignored
    F16    the soft loss is KL(t || s) of the predicted tokens, a mean over them
    F17    at a temperature of 2 for `distil`, of 1 elsewhere
    F20    the layer map is uniform; hidden states of `tiny` begin with the embeddings' (F25)
    F23    `tiny` compares padding as well
    F24    with one projection for everything, which has a bias
    F26    and scores only the predicted tokens
    F29-31 `compact` takes the mean of KL(t || s) over the entries of the maps, 1e-12 added to both
    F44    AdamW, gradients clipped to a norm of 1

On a batch without padding and with dropout off the losses are ours under `--fidelity released`.
transformers is imported where it is needed.
"""

import copy

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from minibio.batch import Batch
from minibio.distil.losses import layer_map
from minibio.distil.objectives import Objective
from minibio.model.convert import config_to_hf
from minibio.model.heads import Model
from minibio.model.names import their_name
from minibio.run.errors import InputError

EPSILON = 1e-12  # F31


def in_transformers(model: Model) -> nn.Module:
    """The same masked-LM model as transformers has it, its attention eager, with the same weights.

    Raises:
        InputError: transformers is not installed, or has no such architecture (IB-BERT).
    """
    if model.config.family == "ib-bert":
        raise InputError("transformers has no IB-BERT; name another model to compare with")
    try:
        from transformers import AutoConfig, AutoModelForMaskedLM, logging
    except ImportError:
        raise InputError(
            "the authors' way needs transformers, which is not installed; install the extra test "
            "(pip install -e '.[test]'), or leave it out with --by minibio"
        ) from None
    logging.set_verbosity_error()
    table = model.encoder.embeddings.token.weight
    fields = config_to_hf(model, table.dtype)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    theirs = AutoModelForMaskedLM.from_config(config, attn_implementation="eager")
    state = {
        their_name(name, model.config, model.head_name): x for name, x in model.state_dict().items()
    }
    missing, unexpected = theirs.to(table.device, table.dtype).load_state_dict(state, strict=False)
    tied = ("decoder.weight", "decoder.bias", "vocab_projector.weight")
    lost = [name for name in missing if not name.endswith(tied)]
    assert not lost and not unexpected, (lost, unexpected)
    theirs.tie_weights()
    return theirs


def rectangle(batch: Batch, model: Model) -> dict[str, Tensor]:
    """The batch as their collator makes it: (B, T) each, padded; labels -100 where none is asked.

    Args:
        model: whose padding id is used, and whose token types are left out if it has none.
    """
    labels = torch.full_like(batch.tokens, -100)  # (N,)
    labels[batch.predict] = batch.labels
    inputs = {
        "input_ids": batch.pad(batch.tokens, model.config.pad_id),
        "attention_mask": batch.pad(torch.ones_like(batch.tokens)),
        "labels": batch.pad(labels, -100),
    }
    if model.config.n_segments:
        inputs["token_type_ids"] = batch.pad(batch.segments)
    return inputs


class Authors(nn.Module):
    """Student, teacher and loss of one method, with the weights of our objective's.

    Args:
        objective: ours; what it is made of is copied.
        teacher:   ours, or None.
        teacher_dropout: False = the teacher stays in evaluation mode, as theirs does not (F32).
    Raises:
        InputError: there is no script for the method, or no transformers.
    """

    def __init__(
        self, objective: Objective, teacher: Model | None, *, teacher_dropout: bool = True
    ):
        super().__init__()
        method = objective.run.method
        if method not in LOSSES:
            raise InputError(f"the authors have no code for {method}, expected {', '.join(LOSSES)}")
        self.student = in_transformers(objective.student)
        self.teacher = None if teacher is None else in_transformers(teacher).requires_grad_(False)
        self.fit = copy.deepcopy(objective.W_h) if method == "tiny" else None
        self.compare = LOSSES[method]
        self.has_maps = method in ("tiny", "compact")
        self.teacher_dropout = teacher_dropout
        if self.teacher is not None:
            L_s, L_t = objective.student.config.L, teacher.config.L
            self.g = layer_map(L_s, L_t) if self.has_maps else ()

    def train(self, mode: bool = True) -> "Authors":
        super().train(mode)
        if self.teacher is not None and not self.teacher_dropout:
            self.teacher.eval()
        return self

    def forward(self, labels: Tensor, **inputs: Tensor) -> Tensor:
        """The loss of a `rectangle`. All of every layer is formed before any of it is compared."""
        if self.teacher is None:
            return self.student(labels=labels, **inputs).loss
        asked = {"output_hidden_states": True, "output_attentions": self.has_maps}
        s = self.student(labels=labels, **inputs, **asked)
        with torch.no_grad():
            t = self.teacher(**inputs, **asked)
        return self.compare(self, s, t, labels, inputs["attention_mask"])


def rows(x: Tensor, is_wanted: Tensor) -> Tensor:
    """Those of x (..., K) where is_wanted (...) is true: (n, K)."""
    return x.masked_select(is_wanted[..., None].expand_as(x)).view(-1, x.shape[-1])


def soft(s, t, labels: Tensor, temperature: float) -> Tensor:
    """F16, F17: the teacher's predictions."""
    x_s, x_t = rows(s.logits, labels > -1), rows(t.logits, labels > -1)  # (M, V)
    log_p_s, p_t = F.log_softmax(x_s / temperature, -1), F.softmax(x_t / temperature, -1)
    return temperature**2 * F.kl_div(log_p_s, p_t, reduction="batchmean")


def direction(h_s: Tensor, h_t: Tensor, mask: Tensor) -> Tensor:
    """F18: cosine distance of two hidden states (B, T, C), padding left out."""
    h_s, h_t = rows(h_s, mask > 0), rows(h_t, mask > 0)  # (N, C)
    return F.cosine_embedding_loss(h_s, h_t, h_s.new_ones(len(h_s)))


def distil(model: Authors, s, t, labels: Tensor, mask: Tensor) -> Tensor:
    """F19: the weights of Eq. 4."""
    align = direction(s.hidden_states[-1], t.hidden_states[-1], mask)
    return 2 * s.loss + 5 * soft(s, t, labels, temperature=2.0) + align


def tiny(model: Authors, s, t, labels: Tensor, mask: Tensor) -> Tensor:
    """Eq. 9, without a label's loss (F28)."""
    loss = 0
    for a_s, g_l in zip(s.attentions, model.g, strict=True):
        loss = loss + F.mse_loss(a_s, t.attentions[g_l - 1])  # (B, H, T, T)
    for h_s, g_l in zip(s.hidden_states, (0, *model.g), strict=True):
        loss = loss + F.mse_loss(model.fit(h_s), t.hidden_states[g_l])  # (B, T, C_t)
    x_s, x_t = rows(s.logits, labels > -1), rows(t.logits, labels > -1)  # (M, V)
    return loss + F.cross_entropy(x_s, x_t.softmax(-1))


def compact(model: Authors, s, t, labels: Tensor, mask: Tensor) -> Tensor:
    """F19: the weights of Eq. 11."""
    layers = 0
    for l, g_l in enumerate(model.g, start=1):
        a_s, a_t = s.attentions[l - 1], t.attentions[g_l - 1]  # (B, H, T, T)
        is_query = (mask > 0)[:, None].expand(a_s.shape[:3])  # (B, H, T)
        a_s, a_t = rows(a_s, is_query) + EPSILON, rows(a_t, is_query) + EPSILON
        layers = layers + F.kl_div(a_s.log(), a_t, reduction="none").mean()
        layers = layers + direction(s.hidden_states[l], t.hidden_states[g_l], mask)
    return s.loss + 5 * soft(s, t, labels, temperature=1.0) + 3 * layers


LOSSES = {"mlm": None, "distil": distil, "tiny": tiny, "compact": compact}
