"""The directory of a trained model: weights, tokenizer, curves, and the card of it all."""

from pathlib import Path

import torch

import minibio
from minibio.config import ModelConfig
from minibio.model.convert import save
from minibio.model.heads import Model
from minibio.report.plot import loss_curves
from minibio.run.errors import InputError
from minibio.text.tokenizer import Tokenizer

WHAT = {
    "mlm": "masked-language-model pre-training (Eq. 1)",
    "distil": "distillation of predictions and last hidden state (Eq. 4, DistilBioBERT)",
    "tiny": "transformer-layer distillation (Eq. 9, TinyBioBERT)",
    "compact": "distillation of predictions and of every layer (Eq. 11, CompactBioBERT)",
    "mobile": "layer-wise distillation from an inverted-bottleneck teacher (Eq. 13, MobileBERT)",
}
STAGED = (
    "distillation from an inverted-bottleneck teacher in two stages (MobileBERT's own: each layer "
    "by Eq. 12, one after the other, then masked LM with soft labels)"
)
FIELDS = (
    "fidelity", "alpha", "init_layers", "init_head", "stages", "teacher", "start", "corpus",
    "documents", "steps", "batch", "length", "lr", "warmup", "schedule", "weight_decay",
    "precision", "seed", "processes", "samples", "tokens", "skipped", "seconds",
)  # fmt: skip


def write_model(
    student: Model, tokenizer: Tokenizer, facts: dict, out: Path, journal: Path
) -> dict:
    """Fill `out` with a trained model, its card and its loss curves -> the record of the run.

    Args:
        facts:   configuration and figures of the run.
        journal: its log.jsonl.
    """
    student = student.cpu().eval()
    save(student, tokenizer, out, overwrite=True)
    record = {
        **facts,
        "parameters": student.n_parameters,
        "parameters_encoder": sum(p.numel() for p in student.encoder.parameters()),
        "versions": {"torch": torch.__version__, "minibio": minibio.__version__},
    }
    (out / "README.md").write_text(model_card(record, student.config), "utf-8")
    try:
        loss_curves({journal.resolve().parent.name: journal}, out / "loss.png")
    except InputError as error:  # matplotlib is an extra
        print(f"no loss.png: {error}")
    return record


def model_card(record: dict, config: ModelConfig) -> str:
    """Markdown with the Hugging Face front matter, from the run's record (run.json)."""
    rows = "\n".join(f"| {name} | {record[name]} |" for name in FIELDS if name in record)
    method = record["method"]  # one of WHAT, or a method of the reader's own
    what = STAGED if record.get("stages") else WHAT.get(method, f"--method {method}")
    loss, first = record["held_out"]["mlm_loss"], record["held_out_first"]["mlm_loss"]
    terms = ", ".join(f"{name} {x:.4g}" for name, x in record["losses"].items())
    load = "model, tokenizer = minibio.load(directory)"
    if config.family != "ib-bert":  # transformers has no such model
        load += "\n\nfrom transformers import AutoModelForMaskedLM\n"
        load += "\nmodel = AutoModelForMaskedLM.from_pretrained(directory)"
    return f"""---
library_name: {"minibio" if config.family == "ib-bert" else "transformers"}
pipeline_tag: fill-mask
tags: [biomedical, {config.family}, minibio]
---

# {record["model"]}

A {config.family} of {config.L} layers, {config.C} wide, {config.H} heads, {config.V:,} word pieces:
{record["parameters"]:,} parameters, {record["parameters_encoder"]:,} of them in the encoder.
Trained by {what} with minibio {record["versions"]["minibio"]}
on torch {record["versions"]["torch"]}.

| | |
|---|---|
{rows}

Held-out masked-LM loss: {first:.4f} before, **{loss:.4f}** nats per masked token after;
accuracy {record["held_out"]["accuracy"]:.2%}. Training loss at the end, by its terms: {terms}.
The curve is in `log.jsonl` and `loss.png`.

```python
import minibio

{load}
```
"""
