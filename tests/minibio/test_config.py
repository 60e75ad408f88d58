"""The table of models has the very sizes of the published checkpoints (as transformers counts)."""

from dataclasses import replace

import pytest
import torch

from minibio.config import (
    CASED,
    CHECKPOINTS,
    METHODS,
    MODELS,
    SAMPLE,
    SAMPLE_TEACHERS,
    UNCASED,
    ModelConfig,
    RunConfig,
)
from minibio.model.heads import Model

# encoder, with masked-LM head, with a token classifier of 2 labels
COUNTS = {
    "biobert": (107_719_680, 108_340_804, 107_721_218),
    "bert-base-uncased": (108_891_648, 109_514_298, 108_893_186),
    "distil-biobert": (65_192_448, 65_813_572, 65_193_986),
    "compact-biobert": (65_192_448, 65_813_572, 65_193_986),
    "tiny-biobert": (13_776_480, 13_903_756, 13_777_106),
    "bio-distilbert-cased": (65_190_912, 65_812_036, 65_192_450),
    "bio-distilbert-uncased": (66_362_880, 66_985_530, 66_364_418),
    "bio-tinybert": (14_252_592, 14_381_394, 14_253_218),
    "tinybert-6l": (66_364_416, 66_987_066, 66_365_954),
    "bio-mobilebert": (24_581_888, 36_596_538, 24_582_914),
    # its head is MobileBERT's: 512 x 512, a norm, 384 columns of its own, a bias
    "ib-bert": (294_205_184, 294_205_184 + 262_656 + 1_024 + 384 * 30_522 + 30_522, 294_206_210),
}
POOLED = {
    "biobert": 108_310_272, "distil-biobert": 65_783_040, "tiny-biobert": 13_874_136,
    "bio-tinybert": 14_350_248,
}  # fmt: skip


def build(*args, **options) -> Model:
    with torch.device("meta"):  # shapes without memory
        return Model(*args, **options)


def test_every_model_of_the_paper_is_counted():
    own = {name for name in MODELS if name.startswith("sample") or name == "board"}
    assert set(COUNTS) == set(MODELS) - own


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    config = MODELS[name]
    mlm = build(config)
    encoder = sum(p.numel() for p in mlm.encoder.parameters())
    token = build(config, "token", labels=2)
    assert (encoder, mlm.n_parameters, token.n_parameters) == COUNTS[name]


@pytest.mark.parametrize("name", POOLED)
def test_parameter_counts_with_a_pooler(name):
    assert build(MODELS[name], "encoder", has_pooler=True).n_parameters == POOLED[name]


def test_mobilebert_with_a_pooler_and_with_the_cased_vocabulary():
    mobile = MODELS["bio-mobilebert"]
    pooled = build(replace(mobile, tanh_pooler=True), "encoder", has_pooler=True)
    assert pooled.n_parameters == 24_844_544
    assert build(replace(mobile, V=28_996)).n_parameters == 35_813_700


def test_derived_widths():
    mobile = MODELS["bio-mobilebert"]
    assert (mobile.width, mobile.D, mobile.E) == (128, 32, 128)
    assert (MODELS["ib-bert"].D, MODELS["tiny-biobert"].D) == (256, 26)
    assert replace(MODELS["biobert"], C=60, H=5).E == 60


def test_heads_that_do_not_divide_the_width():
    with pytest.raises(ValueError, match="width 64 is not a multiple of 5 heads"):
        ModelConfig(C=64, H=5)


def test_embeddings_wider_than_the_stream():
    with pytest.raises(ValueError, match="embeddings are 65 wide, expected at most 64"):
        ModelConfig(C=64, H=4, C_embed=65)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_papers_checkpoints_have_their_method_model_and_numbers(name):
    row = CHECKPOINTS[name]
    assert MODELS[row.model].V == (CASED if row.cased else UNCASED)
    run = METHODS[row.method]
    assert (run.batch, run.length, run.betas, run.adam_eps) == (192, 256, (0.9, 0.999), 1e-8)
    assert (run.clip, run.schedule, run.precision, run.seed) == (1.0, "linear", "auto", 42)  # F44
    assert (run.steps, run.lr, run.warmup, run.weight_decay) == {
        "distil": (100_000, 5e-4, 5_000, 0.0),  # F39, F41-F43
        "compact": (100_000, 5e-4, 5_000, 1e-4),
        "tiny": (100_000, 5e-4, 10_000, 1e-4),
        "mlm": (200_000, 1e-4, 10_000, 0.01),
    }[row.method]
    assert run.init_layers == {  # F3
        "distil": (0, 2, 4, 6, 8, 10), "compact": (1, 3, 5, 7, 9, 11)
    }.get(row.method, ())  # fmt: skip
    assert (run.init_head, run.stages, run.fidelity) == (None, 0.0, "paper")  # F5
    # what the published model counts, head included
    assert build(MODELS[row.model]).n_parameters == COUNTS[row.model][1]


def test_there_are_seven_checkpoints():
    assert len(CHECKPOINTS) == 7 and {row.method for row in CHECKPOINTS.values()} == set(
        METHODS
    ) - {"mobile"}


def test_mobilebert_s_sample_has_its_shape():
    """Equally deep and wide between layers, with as many heads; narrow inside, and wide."""
    for t, s in (("ib-bert", "bio-mobilebert"), ("sample-ib-bert", "sample-mobile")):
        t, s = MODELS[t], MODELS[s]
        assert (t.L, t.C, t.H, t.E, t.V) == (s.L, s.C, s.H, s.E, s.V)
        assert s.C_intra < s.C < t.C_intra


def test_methods_name_models_that_exist_and_the_papers_weights():
    assert {run.model for run in (*METHODS.values(), *SAMPLE_TEACHERS.values())} <= set(MODELS)
    assert METHODS["distil"].alpha == (2.0, 5.0, 1.0)  # Eq. 4
    assert METHODS["compact"].alpha == (1.0, 5.0, 3.0)  # Eq. 11
    assert {METHODS[m].steps for m in ("distil", "tiny", "compact")} == {100_000}
    assert METHODS["mlm"].steps == 200_000


@pytest.mark.parametrize("method", SAMPLE)
def test_the_samples_rows_are_whole(method):
    assert set(SAMPLE[method]) <= set(RunConfig.__dataclass_fields__)
    run = replace(METHODS[method], **SAMPLE[method])
    student = MODELS[run.model]
    teacher = student if method == "mlm" else MODELS[SAMPLE_TEACHERS[method].model]
    assert teacher.L % student.L == 0 and teacher.H == student.H and teacher.V == student.V
    assert method in ("mlm", "tiny") or teacher.C == student.C  # compared without a projection
    assert len(run.init_layers) in (0, student.L)
