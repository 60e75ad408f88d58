"""Heads: shapes, ties, and each family's own habit. Parity with transformers is in test_parity."""

import dataclasses

import pytest
import torch

from minibio.batch import Batch
from minibio.config import ModelConfig
from minibio.model.heads import Model

BERT = ModelConfig(V=31, L=1, C=12, H=2, F=16, P=16)
DISTILBERT = dataclasses.replace(BERT, family="distilbert", n_segments=0)
MOBILEBERT = ModelConfig(
    family="mobilebert", V=31, L=1, C=12, H=2, F=8, P=16, C_embed=8, C_intra=8, n_ffn=2,
    norm="no_norm", activation="relu", shared_qk=True, trigram=True, tanh_pooler=False,
)  # fmt: skip
IB_BERT = ModelConfig(
    family="ib-bert", V=31, L=1, C=12, H=2, F=16, P=16, C_embed=8, C_intra=16, trigram=True
)
CONFIGS = [BERT, DISTILBERT, MOBILEBERT, IB_BERT]
BATCH = Batch.from_sequences([[2, 9, 3], [2, 4, 5, 3]], predict=[1, 4, 5], labels=[6, 7, 8])
ids = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.family)


@ids
@pytest.mark.parametrize(
    ("head", "shape"),
    [
        ("mlm", (3, 31)),
        ("token", (7, 5)),
        ("sequence", (2, 5)),
        ("span", (7, 2)),
        ("encoder", None),
    ],
)
def test_shapes(config, head, shape):
    model = Model(config, head, labels=5 if head in ("token", "sequence") else None)
    logits = model(BATCH).logits
    assert (logits if shape is None else logits.shape) == shape


@ids
def test_predicted_rows_are_rows_of_all_logits(config):
    model = Model(config).double().eval()
    some, every = model(BATCH).logits, model(BATCH.without_targets()).logits
    assert every.shape == (7, 31)
    torch.testing.assert_close(some, every[BATCH.predict])


@ids
def test_the_decoder_is_the_embedding_table(config):
    model = Model(config)
    model(BATCH).logits.sum().backward()
    # a token that is not in the batch has a gradient, since every token is scored
    assert model.encoder.embeddings.token.weight.grad[30].abs().sum() > 0
    assert not any("decoder" in name for name, _ in model.named_parameters())


def test_sequence_heads_pool_as_their_family_does():
    batch = Batch.from_sequences([[2, 9, 3], [2, 4]])
    for config in (BERT, DISTILBERT, MOBILEBERT):
        model = Model(config, "sequence", labels=3).double().eval()
        for p in model.parameters():
            torch.nn.init.normal_(p)
        out = model(batch)
        x = out.last[[0, 3]]
        if config.family == "bert":
            x = torch.tanh(x @ model.head.pooler.weight.T + model.head.pooler.bias)
        if config.family == "distilbert":
            x = (x @ model.head.pre_classifier.weight.T + model.head.pre_classifier.bias).clip(0)
        expected = x @ model.head.classifier.weight.T + model.head.classifier.bias
        torch.testing.assert_close(out.logits, expected)


def test_labels_are_named_or_counted():
    assert Model(BERT, "token", labels=["O", "B", "I"]).labels == ("O", "B", "I")
    assert Model(BERT, "sequence", labels=2).labels == ("LABEL_0", "LABEL_1")


@pytest.mark.parametrize(
    ("config", "head", "message"),
    [
        (BERT, "token", "labels is None, expected names for the token head"),
        (BERT, "pairs", "head is 'pairs'"),
        (dataclasses.replace(BERT, family="gpt"), "mlm", "family is 'gpt'"),
    ],
)
def test_refusals(config, head, message):
    with pytest.raises(ValueError, match=message):
        Model(config, head)


@ids
@pytest.mark.parametrize("head", ["mlm", "encoder", "sequence"])
def test_a_head_that_is_not_wanted_is_not_run(config, head):
    model = Model(config, head, labels=2 if head == "sequence" else None).eval()
    model.head.register_forward_pre_hook(lambda *_: pytest.fail("the head was run"))
    out = model(BATCH, hidden=(0,), depth=0, predict=False)
    assert out.logits is None and out.decoder is None
    assert torch.equal(out.last, out.hidden_states[0])
