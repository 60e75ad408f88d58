"""Every number of the paper, in tables: what the models are and how each one is trained.

`MODELS` names architectures, `METHODS` names experiments; `--model` and `--method` pick a row, and
any field can be overridden on the command line. Letters are the project's (README): C width,
H heads, F feed-forward width, E embedding width, V vocabulary, L layers, P positions. Each number
carries its source; F-numbers refer to the list of differences between paper and code in README.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple


@dataclass(frozen=True)
class ModelConfig:
    """One architecture. The defaults are BERT-base's, uncased."""

    family: str = "bert"  # bert | distilbert | mobilebert | ib-bert
    V: int = 30522  # vocabulary
    L: int = 12  # layers
    C: int = 768  # width of the stream between layers
    H: int = 12  # heads
    F: int = 3072  # width inside the feed-forward network
    P: int = 512  # positions: the longest sequence
    n_segments: int = 2  # token types; DistilBERT has none
    activation: str = "gelu"
    dropout: float = 0.1  # on embeddings and on each sub-layer's output
    attention_dropout: float = 0.1  # on attention probabilities
    classifier_dropout: float | None = None  # before a classifier; None = family's rule
    norm_eps: float = 1e-12
    init_std: float = 0.02
    pad_id: int = 0
    # MobileBERT and IB-BERT
    C_embed: int | None = None  # width of the token embedding table; None = C
    C_intra: int | None = None  # width inside a bottleneck block; None = no bottleneck
    n_ffn: int = 1  # feed-forward networks in a block
    norm: str = "layer_norm"  # layer_norm | no_norm
    shared_qk: bool = False  # queries and keys read one shared bottleneck
    trigram: bool = False  # embeddings of neighbours concatenated
    tanh_pooler: bool = True  # MobileBERT's classifier_activation; False: the raw first token

    @property
    def E(self) -> int:
        """Width of the token embedding table."""
        return self.C_embed or self.C

    @property
    def width(self) -> int:
        """Width of queries, keys and values, all heads together."""
        return self.C_intra or self.C

    @property
    def D(self) -> int:
        """Width of one head."""
        return self.width // self.H

    def __post_init__(self):
        if self.width % self.H:
            raise ValueError(
                f"ModelConfig: width {self.width} is not a multiple of {self.H} heads; change one"
            )
        if self.E > self.C:
            raise ValueError(
                f"ModelConfig: token embeddings are {self.E} wide, expected at most {self.C}, the "
                f"width between layers: the masked-LM head has the difference of its own"
            )


CASED, UNCASED = 28996, 30522  # BERT's WordPiece vocabularies; BioBERT's is the cased one

BERT = ModelConfig()
# section 4.1.1; a BERT with token types, not a DistilBERT (F2)
BERT_6 = replace(BERT, L=6, V=CASED)
DISTILBERT = ModelConfig(family="distilbert", L=6, n_segments=0)
TINYBERT = ModelConfig(L=4, C=312, F=1200)  # section 4.2.1; TinyBERT's own configuration (F8)
MOBILEBERT = ModelConfig(
    family="mobilebert",
    L=24,
    C=512,
    H=4,
    F=512,
    C_embed=128,
    C_intra=128,
    n_ffn=4,
    norm="no_norm",
    activation="relu",
    shared_qk=True,
    trigram=True,
    dropout=0.0,
    tanh_pooler=False,  # both as the published configuration has them
)
IB_BERT = ModelConfig(
    family="ib-bert",
    L=24,
    C=512,
    H=4,
    F=4096,
    C_embed=128,
    C_intra=1024,
    trigram=True,
    activation="gelu_new",  # its source's gelu is the tanh form
)  # MobileBERT's teacher: configuration uncased_L-24_H-1024_B-512_A-4 (F32e)
SAMPLE_BERT = ModelConfig(V=2048, H=4, dropout=0.0, attention_dropout=0.0)

MODELS = {
    "biobert": replace(BERT, V=CASED),
    "bert-base-uncased": BERT,
    "distil-biobert": BERT_6,
    "compact-biobert": BERT_6,
    # the teacher's vocabulary, since Eq. 8 needs it (F7)
    "tiny-biobert": replace(TINYBERT, V=CASED),
    "bio-distilbert-cased": replace(DISTILBERT, V=CASED),
    "bio-distilbert-uncased": DISTILBERT,
    "bio-tinybert": TINYBERT,
    "tinybert-6l": replace(BERT, L=6),
    "bio-mobilebert": MOBILEBERT,
    "ib-bert": IB_BERT,
    # for the built-in sample: the same code at a size that trains in minutes on a laptop
    # (no dropout: a run of a few hundred steps sees no text twice)
    "sample-teacher": replace(SAMPLE_BERT, L=4, C=128, F=512),
    "sample-tiny": replace(SAMPLE_BERT, L=2, C=64, F=256),
    "sample-distil": replace(SAMPLE_BERT, L=2, C=128, F=512),  # as wide as its teacher
    # MobileBERT and its teacher: equally deep and wide between layers, narrow and wide inside
    "sample-ib-bert": replace(
        IB_BERT, V=2048, L=4, C=64, F=512, C_embed=32, C_intra=128,
        dropout=0.0, attention_dropout=0.0,
    ),
    "sample-mobile": replace(
        MOBILEBERT, V=2048, L=4, C=64, F=64, C_embed=32, C_intra=32, attention_dropout=0.0
    ),
    # the same for `make demo`: a table as wide as the stream shows a word's neighbours to the first
    # layer, and the loss falls within a hundred steps (with one half as wide it fell half as fast)
    "sample-demo-teacher": replace(
        IB_BERT, V=1024, L=3, C=64, F=256, C_embed=64, C_intra=64,
        dropout=0.0, attention_dropout=0.0,
    ),
    "sample-demo-student": replace(
        MOBILEBERT, V=1024, L=3, C=64, F=64, C_embed=64, C_intra=32, n_ffn=2, attention_dropout=0.0
    ),
    # for `make board`: likewise; a BERT of this size still predicts frequencies after 0.9 M tokens
    "board": replace(
        IB_BERT, L=4, C=256, F=1024, C_embed=256, C_intra=256, dropout=0.0, attention_dropout=0.0
    ),
}  # fmt: skip


# MobileBERT's own: 240,000 steps layer by layer, then 500,000 (F32d; the command in its README)
STAGE_1 = 240 / 740


def option(
    default,
    help: str,
    *,
    choices: Sequence[str] = (),
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    const: object = None,
    metavar: str | None = None,
    may_differ: bool = False,
):
    """A dataclass field that is a command-line option as well.

    Args:
        help:       for `--help`.
        least, above, below: bounds of the value, or of each of several.
        const:      value of the option where it is given without one.
        may_differ: a resumed run may have another value than the run that it continues.
    """
    about = {
        "help": help,
        "choices": tuple(choices),
        "least": least,
        "above": above,
        "below": below,
        "const": const,
        "metavar": metavar,
        "may_differ": may_differ,
    }
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class RunConfig:
    """One training run: which objective, on what, for how long; all ranks together.

    Every field that is an `option` is one of train.py's, too.
    """

    method: str  # mlm | distil | tiny | compact | mobile
    model: str = option("", "architecture: a row of MODELS (the student, where there is a teacher)")
    layers: int | None = option(None, "of the model, in place of its row's", least=1, below=1000)
    width: int | None = option(None, "likewise", least=1, below=100_000)
    heads: int | None = option(None, "likewise", least=1, below=100_000)
    ffn: int | None = option(None, "likewise", least=1, below=1_000_000)
    # the objective
    fidelity: str = option(
        "paper", "paper: as printed; released: as the authors' code", choices=("paper", "released")
    )
    alpha: tuple[float, ...] = option((), "weights of Eq. 4, 9, 11 or 13: 2,5,1", least=0)
    temperature: float | None = option(  # None: 1 in the paper, F17 as released
        None, "of the soft labels", above=0, below=1e6
    )
    layer_map: tuple[int, ...] = option(  # (): uniform
        (), "Eq. 5: teacher layer of each student layer, from 1: 3,6,9,12", least=1
    )
    init_layers: tuple[int, ...] = option(  # (): random
        (), "teacher layers that the student starts from, from 0; or none", least=0
    )
    init_head: str | None = option(  # None: fresh (F5), copy in stages
        None, "masked-LM head: the teacher's, or a fresh one", choices=("copy", "fresh")
    )
    stages: float = option(
        0.0,
        "mobile in MobileBERT's own two stages; SHARE of the steps goes to the first, layer by "
        f"layer ({STAGE_1:.3f})",
        least=0,
        below=1,
        const=STAGE_1,
        metavar="SHARE",
    )
    # the data
    length: int = option(256, "tokens of the longest sequence", least=3)  # F35
    batch: int = option(  # 24 on each of 8 GPUs (F40)
        192, "sequences of one step, all ranks together", least=1, below=10_000_000
    )
    batch_tokens: int = option(0, "in place of --batch: the most tokens of one step", least=0)
    accumulate: int = option(1, "micro-batches of a step", least=1, may_differ=True)
    # the optimiser: AdamW, clipped by global norm, as in F44
    steps: int = option(  # section 5 (F39)
        100_000, "optimiser steps", least=1, may_differ=True
    )
    lr: float = option(5e-4, "peak learning rate", above=0, may_differ=True)  # F41
    warmup: int = option(5_000, "steps", least=0, may_differ=True)  # F42
    schedule: str = option(
        "linear", "of the rate after it", choices=("linear", "cosine", "wsd"), may_differ=True
    )
    weight_decay: float = option(1e-4, "of matrices", least=0, may_differ=True)  # F43
    betas: tuple[float, float] = option((0.9, 0.999), "of AdamW", least=0, below=1, may_differ=True)
    adam_eps: float = option(1e-8, "of AdamW", above=0, may_differ=True)
    clip: float = option(1.0, "largest norm of the gradient", above=0, may_differ=True)
    seed: int = option(42, "of weights, samples, masks and dropout", least=0)
    # how it is computed: equal to rounding
    precision: str = option(  # the authors: fp16
        "auto",
        "bf16: products under autocast; fp64: to check against; auto: bf16 where the processor "
        "multiplies it, else fp32",
        choices=("auto", "fp32", "bf16", "fp64"),
        may_differ=True,
    )
    teacher_precision: str = option(
        "fp32",
        "of its products under a student in fp32; auto as there",
        choices=("auto", "fp32", "bf16"),
        may_differ=True,
    )
    tf32: bool = option(False, "fp32 products in TF32, on GPUs", may_differ=True)
    compile: bool = option(False, "compile the layers with torch.compile", may_differ=True)
    kernels: str = option(
        "auto",
        "of attention, losses and norms: auto, reference, torch, triton, or one each: "
        "attention=triton,mlm=cuda,norm=torch",
        metavar="IMPL",
        may_differ=True,
    )
    # the log and the checkpoints
    log_every: int = option(0, "steps; 0: a hundredth of the run", least=0, may_differ=True)
    eval_every: int = option(
        0, "steps; 0: a tenth of the run, at least 50", least=0, may_differ=True
    )
    eval_documents: int = option(256, "held-out documents measured, the first", least=1)
    save_every: int = option(
        0, "steps; 0: a tenth of the run, at most 1000", least=0, may_differ=True
    )
    keep: int = option(3, "checkpoints kept", least=1, may_differ=True)
    max_skips: int = option(
        10, "steps in a row that are not finite, before the run gives up", least=1, may_differ=True
    )


METHODS = {
    # section 3: BioDistilBERT, BioTinyBERT, BioMobileBERT, pre-trained further (F39, F41-F43);
    # BERT's own rate, warm-up and decay, so IB-BERT's as well
    "mlm": RunConfig(
        "mlm", "bio-tinybert", steps=200_000, lr=1e-4, warmup=10_000, weight_decay=0.01
    ),
    # section 4.1: Eq. 4 with its weights; every other layer of the teacher (F3)
    "distil": RunConfig(
        "distil", "distil-biobert", alpha=(2.0, 5.0, 1.0),
        init_layers=(0, 2, 4, 6, 8, 10), weight_decay=0.0,
    ),
    # section 4.2: Eq. 9, all weights 1; a student at random (F9)
    "tiny": RunConfig("tiny", "tiny-biobert", warmup=10_000),
    # section 4.3: Eq. 11 with its weights; the odd layers of the teacher (F3)
    "compact": RunConfig(
        "compact", "compact-biobert", alpha=(1.0, 5.0, 3.0), init_layers=(1, 3, 5, 7, 9, 11)
    ),
    # section 4.4: Eq. 13, which the authors could not run for want of its teacher; alpha: F32d;
    # the rest is silent: steps as the other distillations, rate and decay as MobileBERT's further
    # pre-training (F39, F41, F43)
    "mobile": RunConfig("mobile", "bio-mobilebert", alpha=(0.5,), lr=1e-4, weight_decay=0.01),
}  # fmt: skip


class Published(NamedTuple):
    """One of the paper's published models: the row of `METHODS` and what it starts from."""

    method: str
    model: str  # row of MODELS
    source: str  # Hugging Face name: the teacher, or with mlm the model trained further
    cased: bool  # the tokenizer's vocabulary


BIOBERT = "dmis-lab/biobert-base-cased-v1.2"  # with its masked-LM head; v1.1 in the paper (F1)

CHECKPOINTS = {  # names as published under nlpie/
    "distil-biobert": Published("distil", "distil-biobert", BIOBERT, True),
    "compact-biobert": Published("compact", "compact-biobert", BIOBERT, True),
    "tiny-biobert": Published("tiny", "tiny-biobert", BIOBERT, True),  # cased: F7
    "bio-distilbert-cased": Published(
        "mlm", "bio-distilbert-cased", "distilbert/distilbert-base-cased", True
    ),
    # published too, though which of the two was scored is not said (F11)
    "bio-distilbert-uncased": Published(
        "mlm", "bio-distilbert-uncased", "distilbert/distilbert-base-uncased", False
    ),
    # its masked-LM head was never trained before (F10)
    "bio-tinybert": Published(
        "mlm", "bio-tinybert", "huawei-noah/TinyBERT_General_4L_312D", False
    ),
    "bio-mobilebert": Published(
        "mlm", "bio-mobilebert", "google/mobilebert-uncased", False
    ),
}  # fmt: skip

# What differs where the corpus is the built-in sample: sizes and lengths of run for a laptop.
SAMPLE_TEACHER = RunConfig(
    "mlm",
    "sample-teacher",
    batch=8,
    steps=2500,
    lr=1e-3,
    warmup=100,
    weight_decay=0.01,
    length=192,
    betas=(0.9, 0.98),
)
SAMPLE_STUDENT = {
    "batch": 8,
    "steps": 1000,
    "lr": 1e-3,
    "warmup": 100,
    "length": 192,
    "weight_decay": 0.01,
    "betas": (0.9, 0.98),
    "layer_map": (),
}
# Eq. 12 wants a teacher of its own: IB-BERT
SAMPLE_TEACHERS = {
    "tiny": SAMPLE_TEACHER,
    "distil": SAMPLE_TEACHER,
    "compact": SAMPLE_TEACHER,
    "mobile": replace(SAMPLE_TEACHER, model="sample-ib-bert"),
}
SAMPLE = {
    "mlm": {**SAMPLE_STUDENT, "model": "sample-tiny"},
    "tiny": {**SAMPLE_STUDENT, "model": "sample-tiny"},
    "distil": {**SAMPLE_STUDENT, "model": "sample-distil", "init_layers": (0, 2)},
    "compact": {**SAMPLE_STUDENT, "model": "sample-distil", "init_layers": (1, 3)},
    "mobile": {**SAMPLE_STUDENT, "model": "sample-mobile"},
}


@dataclass(frozen=True)
class Recipe:
    """One fine-tuning on a task: section 5, and where it is silent the released scripts (F48, F49).

    Every field is one of eval.py's options.
    """

    epochs: int = option(5, "passes over the training set", least=1)
    batch: int = option(16, "examples of one step, all ranks together", least=1)
    lr: float = option(  # elsewhere than on questions "in a few cases" 3e-5, not recorded which
        5e-5, "peak learning rate (of qa: 5e-5 if 312 wide, else 3e-5)", above=0, may_differ=True
    )
    schedule: str = option(
        "cosine", "of the rate", choices=("linear", "cosine", "wsd"), may_differ=True
    )
    warmup: int = option(0, "steps", least=0, may_differ=True)
    weight_decay: float = option(0.01, "of matrices", least=0, may_differ=True)
    clip: float = option(  # the default of the authors' trainer
        1.0, "largest norm of the gradient", above=0, may_differ=True
    )
    length: int = option(512, "tokens of the longest window", least=3)
    seed: int = option(42, "of the head, the order of examples and dropout", least=0)
    precision: str = option(
        "auto",
        "bf16: products under autocast; auto: where the processor multiplies it, else fp32",
        choices=("auto", "fp32", "bf16"),
        may_differ=True,
    )
    patience: int = option(  # 0: all epochs are trained
        0, "epochs without a better score on the development set before the run ends", least=0
    )
    # with a teacher (tasks/objective.py)
    method: str = option(
        "soft", "what is learnt of the teacher", choices=("soft", "distil", "tiny", "compact")
    )
    alpha: tuple[float, ...] = option(  # (): the method's
        (), "weights of labels, soft labels and layers: 1,5,3", least=0
    )
    temperature: float = option(1.0, "of the soft labels", above=0, below=1e6)
    layer_map: tuple[int, ...] = option(  # (): uniform
        (), "Eq. 5: teacher layer of each student layer, from 1: 3,6,9,12", least=1
    )
    # how it is computed: the same up to rounding, so no part of what tells one run from another
    accumulate: int = option(1, "micro-batches of a step", least=1)
    log_every: int = option(0, "steps; 0: a twentieth of the run", least=0)
    save_every: int = option(0, "steps; 0: an epoch, at most 500", least=0)


HOW = ("accumulate", "log_every", "save_every")  # fields of Recipe that no record keeps

# section 5.2: three epochs (F57b); the released README: windows of 384 (F61)
RECIPES = {"ner": Recipe(), "relation": Recipe(epochs=3), "qa": Recipe(length=384, lr=3e-5)}


def recipe_of(task: str, width: int | None) -> Recipe:
    """The recipe of a task for a model of this width.

    Section 5.3: on questions 5e-5 for TinyBERT, TinyBioBERT and BioTinyBERT, which are 312 wide,
    3e-5 for all others.
    """
    recipe = RECIPES[task]
    return replace(recipe, lr=5e-5) if task == "qa" and width == TINYBERT.C else recipe
