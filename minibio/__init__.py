"""Compact biomedical transformers, from scratch.

Read in this order:

    config        every number of the paper, in two tables
    batch         one row of real tokens
    attention     multi-head attention over the row
    transformer   BERT, DistilBERT, TinyBERT
    losses        Equations 1 to 13
    (kernels/reference.py, kernels/README.md)
    distil        the objectives
    students      what a run starts from
    feed          which samples a step takes
    engine        the one training loop
    (train.py)
    mobilebert    bottlenecks; IB-BERT
    names         Hugging Face's names and ours
    convert       Hugging Face directories, in and out
    checkpoint    a whole run on disk, and back
    finetune      one fine-tuning, from a pre-trained directory to a scored one
    (eval.py)

`minibio.load`, `minibio.save` and `minibio.Batch` are the doors for users of the weights.
"""

__version__ = "0.1.0"


def __getattr__(name: str):
    # on first use: `python -m minibio convert` must not find itself imported already
    if name in ("load", "save"):
        from minibio.model import convert

        return getattr(convert, name)
    if name == "Batch":
        from minibio.batch import Batch

        return Batch
    raise AttributeError(f"module 'minibio' has no attribute {name!r}")
