"""The maps, divergences and predictions that are drawn, against transformers' and sums by hand."""

import dataclasses
import json

import pytest
import torch

from minibio.config import METHODS, ModelConfig
from minibio.model.convert import save
from minibio.model.heads import Model
from minibio.report import look
from minibio.run.errors import InputError
from minibio.text.tokenizer import Tokenizer

TEXT = "Aspirin inhibits [MASK] in mice."


def write_model(directory, tokenizer, L, C, seed):
    """A random BERT with weights large enough for maps that are not flat."""
    torch.manual_seed(seed)
    config = ModelConfig("bert", L=L, C=C, H=2, F=24, V=tokenizer.V, P=24, init_std=0.5)
    save(Model(config), tokenizer, directory)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run of --method tiny: two layers of 8 beside a teacher's four of 12."""
    base = tmp_path_factory.mktemp("look")
    tokenizer = Tokenizer.train(["Aspirin inhibits enzymes in mice and men."] * 9, 120)
    write_model(base / "teacher", tokenizer, 4, 12, 0)
    write_model(base / "run", tokenizer, 2, 8, 1)
    write_record(base / "run")
    return base / "run"


def write_record(run_dir, method="tiny", **changed):
    run = vars(dataclasses.replace(METHODS[method], **changed))
    record = run | {"teacher": str(run_dir.parent / "teacher")}
    (run_dir / "run.json").write_text(json.dumps(record), "utf-8")


def maps_of_transformers(directory, ids):
    """Attention maps (H, T, T) of each layer, and (T, V) logits."""
    from transformers import BertForMaskedLM

    model = BertForMaskedLM.from_pretrained(directory, attn_implementation="eager").eval()
    with torch.no_grad():
        out = model(torch.tensor([ids]), output_attentions=True)
    return [a[0] for a in out.attentions], out.logits[0]


def test_what_is_drawn_is_what_transformers_computes(run_dir):
    seen = look.look(run_dir, TEXT)
    tokenizer = Tokenizer.from_dir(run_dir)
    ids = tokenizer.encode(TEXT)
    a_s, x_s = maps_of_transformers(run_dir, ids)
    a_t, x_t = maps_of_transformers(run_dir.parent / "teacher", ids)
    assert [(pair.l_s, pair.l_t) for pair in seen.pairs] == [(1, 2), (2, 4)]
    assert seen.divergence == "mse_maps" and seen.pieces == [tokenizer.pieces[i] for i in ids]
    for pair in seen.pairs:
        mine, theirs = a_s[pair.l_s - 1], a_t[pair.l_t - 1]
        torch.testing.assert_close(pair.map_s, mine, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(pair.map_t, theirs, rtol=1e-4, atol=1e-6)
        rows = (mine - theirs).square().sum(-1)  # (H, T)
        torch.testing.assert_close(pair.rows.T, rows, rtol=1e-4, atol=1e-6)
        assert pair.widest == int(rows.mean(1).argmax())
    (guess,) = seen.guesses
    assert ids[guess.place] == tokenizer.mask_id
    for said, x in ((guess.teacher, x_t), (guess.student, x_s)):
        p = x[guess.place].softmax(-1)
        assert [tokenizer.vocab[piece] for piece, _ in said] == p.topk(5).indices.tolist()
        assert [q for _, q in said] == pytest.approx(p.topk(5).values.tolist(), rel=1e-4)


def test_the_command_draws_and_prints(run_dir, tmp_path, capsys):
    image = pytest.importorskip("matplotlib.image", reason="drawing is the extra `plot`")
    out = tmp_path / "look.png"
    look.main([str(run_dir), "--text", TEXT, "--head", "2", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "layer 2 and the teacher's 4: " in printed and printed.count("[MASK] 1") == 2
    picture = image.imread(out)[..., :3]
    assert (abs(picture - [0xD5 / 255, 0x5E / 255, 0]).max(-1) < 0.01).sum() > 200  # the bars
    assert (picture[..., 2] - picture[..., 0] > 0.3).sum() > 200  # the dark entries of the maps


def test_a_text_without_a_mask_has_maps_only(run_dir):
    seen = look.look(run_dir, "Aspirin inhibits enzymes.")
    assert not seen.guesses and len(seen.pairs) == 2 and not look.describe(seen.guesses)


def test_refusals(run_dir, tmp_path):
    with pytest.raises(InputError, match=r"--text has \d+ tokens, expected at most 24"):
        look.look(run_dir, "mice and " * 30)
    with pytest.raises(InputError, match=r"--head is 3, expected 1 to 2"):
        look.draw(look.look(run_dir, TEXT), tmp_path / "x.png", head=3)
    with pytest.raises(InputError, match=r"run\.json"):
        look.look(tmp_path, TEXT)
    with pytest.raises(InputError, match="nowhere"):
        look.look(run_dir, TEXT, tmp_path / "nowhere")
    other = tmp_path / "run"
    other.mkdir()
    write_record(other, "distil")
    with pytest.raises(InputError, match="--method distil, which compares no attention maps"):
        look.look(other, TEXT)
    (other / "run.json").write_text('{"task": "ner"}', "utf-8")
    with pytest.raises(InputError, match=r"run\.json has no method; is .* a run of train\.py"):
        look.look(other, TEXT)
    text = (run_dir / "run.json").read_text("utf-8")
    for changed in ({"layer_map": 5}, {"alpha": [None]}, {"temperature": -1}, {"teacher": 5}):
        (run_dir / "run.json").write_text(json.dumps(json.loads(text) | changed), "utf-8")
        with pytest.raises(InputError, match=r"run\.json is not as it was|--alpha|--temperature"):
            look.look(run_dir, TEXT)
    (run_dir / "run.json").write_text(text, "utf-8")
